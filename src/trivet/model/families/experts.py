"""Decoders with a mixture of experts and ordinary attention: Mixtral, Qwen3-MoE, MiniMax-M2, gpt-oss, Llama 4 ..."""

from __future__ import annotations

from dataclasses import replace

from trivet.model.architecture import FeedForward
from trivet.model.blueprint import Blueprint, attention, decoder, dense, windows
from trivet.model.fields import Fields


def moe(
    f: Fields, experts: str, intermediate: str, top_k: str = "num_experts_per_tok", **changes: object
) -> FeedForward:
    """A mixture of experts from the named fields."""
    return FeedForward(
        **{  # type: ignore[arg-type]
            "kind": "moe",
            "experts": f.positive(experts),
            "top_k": f.positive(top_k),
            "expert_intermediate": f.positive(intermediate),
            **changes,
        }
    )


def mixtral(f: Fields) -> Blueprint:
    base = attention(f, window=f.optional("sliding_window"))
    return decoder(f, mixer=base, feed_forward=moe(f, "num_local_experts", "intermediate_size"))


def sparse_layer(f: Fields, index: int) -> bool:
    """Qwen's rule: every ``decoder_sparse_step``-th layer has experts unless ``mlp_only_layers`` names it."""
    step = f.optional("decoder_sparse_step") or 1
    return index not in f.many("mlp_only_layers") and f.positive("num_experts") > 0 and (index + 1) % step == 0


def qwen3_moe(f: Fields) -> Blueprint:
    bias = f.flag("attention_bias", False)
    window = f.optional("sliding_window") * f.flag("use_sliding_window", False)
    base = attention(f, qkv_bias=bias, out_bias=bias, qk_norm=True, window=window)
    sparse = moe(f, "num_experts", "moe_intermediate_size")
    layers = f.positive("num_hidden_layers")
    plain = dense(f) if not all(sparse_layer(f, i) for i in range(layers)) else sparse
    f.ignore("intermediate_size")
    return decoder(f, mixer=base, feed_forward=lambda i: sparse if sparse_layer(f, i) else plain)


def minimax_m2(f: Fields) -> Blueprint:
    base = replace(attention(f), wide_norm=True)
    norms = (base.heads + base.kv_heads) * base.head_dim
    blueprint = decoder(f, mixer=base, feed_forward=moe(f, "num_local_experts", "intermediate_size"), mixer_extra=norms)
    blueprint.mtp_layers = f.optional("num_mtp_modules") if f.flag("use_mtp", False) else 0
    return blueprint


def gpt_oss(f: Fields) -> Blueprint:
    bias = f.flag("attention_bias", True)
    base = attention(f, qkv_bias=bias, out_bias=bias, sinks=True)
    layers = f.positive("num_hidden_layers")
    wide = windows(f, layers, lambda i: "full_attention" if i % 2 else "sliding_attention")
    ff = moe(f, "num_local_experts", "intermediate_size", bias=True)
    return decoder(f, mixer=lambda i: replace(base, window=wide[i]), feed_forward=ff)


def llama4_text(f: Fields) -> Blueprint:
    bias = f.flag("attention_bias", False)
    base = attention(f, qkv_bias=bias, out_bias=bias)
    f.get("use_qk_norm", True)  # scale-free
    layers, step = f.positive("num_hidden_layers"), f.positive("interleave_moe_layer_step")
    given = f.get("moe_layers", None)
    sparse_layers = set(given) if given is not None else set(range(step - 1, layers, step))
    interval = f.positive("no_rope_layer_interval")
    no_rope = f.many("no_rope_layers") or [int((i + 1) % interval != 0) for i in range(layers)]
    chunk = f.optional("attention_chunk_size")
    kinds = [str(k) for k in f.many("layer_types")] or ["chunked_attention" if n else "full_attention" for n in no_rope]
    width = f.positive("intermediate_size")
    sparse = moe(f, "num_local_experts", "intermediate_size", shared_intermediate=width)
    plain = FeedForward("dense", f.positive("intermediate_size_mlp"))
    return decoder(
        f,
        mixer=lambda i: replace(base, chunk=chunk if "chunked" in kinds[i] else 0),
        feed_forward=lambda i: sparse if i in sparse_layers else plain,
    )


def llama4(f: Fields) -> Blueprint:
    """Llama 4's text model (``Llama4ForCausalLM``), which is what the published counts are of."""
    f.ignore("vision_config", "tie_word_embeddings")
    text = f.sub("text_config", "llama4_text")
    blueprint = llama4_text(text)
    blueprint.notes.append("the text model alone is counted")
    return blueprint


FAMILIES = {
    "mixtral": mixtral,
    "qwen3_moe": qwen3_moe,
    "minimax_m2": minimax_m2,
    "gpt_oss": gpt_oss,
    "llama4_text": llama4_text,
    "llama4": llama4,
}
