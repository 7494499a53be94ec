"""Decoders that mix attention with linear-attention or state-space layers: Qwen3-Next, Qwen3.5, Nemotron-H, Jamba, ..."""

from __future__ import annotations

from trivet.errors import TrivetError
from trivet.model.architecture import FeedForward, Mixer
from trivet.model.blueprint import NO_MIXER, NONE, Block, Blueprint, attention, decoder, dense, layer_types
from trivet.model.families.experts import moe, sparse_layer
from trivet.model.fields import Fields


def gated_delta(f: Fields) -> Mixer:
    return Mixer(
        "scan",
        scan_kind="gdn",
        key_heads=f.positive("linear_num_key_heads"),
        key_dim=f.positive("linear_key_head_dim"),
        value_heads=f.positive("linear_num_value_heads"),
        value_dim=f.positive("linear_value_head_dim"),
        conv_width=f.positive("linear_conv_kernel_dim"),
    )


def _qwen_hybrid(f: Fields, feed_forward: object) -> Blueprint:
    layers = f.positive("num_hidden_layers")
    interval = f.optional("full_attention_interval") or 4
    kinds = layer_types(f, layers, lambda i: "linear_attention" if (i + 1) % interval else "full_attention")
    bias = f.flag("attention_bias", False)
    f.get("attn_output_gate", True)
    full = attention(f, qkv_bias=bias, out_bias=bias, qk_norm=True, output_gate=True)
    linear = gated_delta(f)
    blueprint = decoder(
        f,
        mixer=lambda i: linear if kinds[i] == "linear_attention" else full,
        feed_forward=feed_forward,  # type: ignore[arg-type]
    )
    blueprint.mtp_layers = f.optional("mtp_num_hidden_layers")
    f.ignore("mtp_use_dedicated_embeddings")
    return blueprint


def qwen3_5_text(f: Fields) -> Blueprint:
    return _qwen_hybrid(f, dense(f))


def qwen3_5_moe_text(f: Fields) -> Blueprint:
    shared = f.positive("shared_expert_intermediate_size")
    f.ignore("mlp_only_layers")
    return _qwen_hybrid(f, moe(f, "num_experts", "moe_intermediate_size", shared_intermediate=shared, shared_gate=True))


def qwen3_next(f: Fields) -> Blueprint:
    shared = f.positive("shared_expert_intermediate_size")
    sparse = moe(f, "num_experts", "moe_intermediate_size", shared_intermediate=shared, shared_gate=True)
    plain = dense(f)
    return _qwen_hybrid(f, lambda i: sparse if sparse_layer(f, i) else plain)


def mamba2(f: Fields, heads: str, head_dim: int, state: str, groups: str, conv: str) -> Mixer:
    return Mixer(
        "scan",
        scan_kind="mamba2",
        value_heads=f.positive(heads),
        value_dim=head_dim,
        key_heads=f.positive(groups),
        key_dim=f.positive(state),
        state_groups=f.positive(groups),
        conv_width=f.positive(conv),
    )


def mamba2_bias(f: Fields, m: Mixer, projection: bool, conv: bool) -> int:
    """What biases add to (or take from) the usual count: projections have none, the convolution has one."""
    inner, channels = m.value_heads * m.value_dim, m.value_heads * m.value_dim + 2 * m.state_groups * m.key_dim
    extra = inner + channels + m.value_heads + f.positive("hidden_size") if projection else 0
    return extra - (0 if conv else channels)


def nemotron_h(f: Fields) -> Blueprint:
    """Nemotron-H: each layer is one thing only (Mamba-2, attention, feed-forward or experts) behind one norm."""
    hidden, vocab = f.positive("hidden_size"), f.positive("vocab_size")
    names = {
        "M": "mamba",
        "*": "attention",
        "-": "mlp",
        "E": "moe",
        "linear_attention": "mamba",
        "full_attention": "attention",
    }
    listed = f.many("layers_block_type") or f.many("layer_types")
    pattern = f.get("hybrid_override_pattern", None)
    kinds = [names.get(str(kind), str(kind)) for kind in (listed or pattern or ["mamba", "moe", "attention", "mlp"])]
    f.ignore("num_hidden_layers")
    f.ignore("mtp_hybrid_override_pattern", "mtp_layers_block_type", "expand", "sliding_window")
    scan = mamba2(f, "mamba_num_heads", f.positive("mamba_head_dim"), "ssm_state_size", "n_groups", "conv_kernel")
    scan_extra = mamba2_bias(f, scan, f.flag("use_bias", False), f.flag("use_conv_bias", True))
    f.expect("mamba_proj_bias", False)
    f.get("attention_bias", False)  # the class builds none
    full = attention(f)
    bias = f.flag("mlp_bias", False)
    plain = FeedForward("dense", f.positive("intermediate_size"), gated=False, bias=bias)
    latent = f.optional("moe_latent_size")
    f.ignore("n_shared_experts")
    blocks = []
    for kind in kinds:
        if kind == "mamba":
            blocks.append(Block(scan, NONE, hidden, scan_extra))
        elif kind == "attention":
            blocks.append(Block(full, NONE, hidden))
        elif kind == "mlp":
            blocks.append(Block(NO_MIXER, plain, hidden))
        elif kind == "moe":
            shared = f.positive("moe_shared_expert_intermediate_size")
            sparse = moe(
                f,
                "n_routed_experts",
                "moe_intermediate_size",
                gated=False,
                shared_intermediate=shared,
                latent=latent,
            )
            extra = (shared + hidden + ((latent + hidden) if latent else 0)) if bias else 0
            blocks.append(Block(NO_MIXER, sparse, hidden, feed_forward_extra=extra))
        else:
            raise TrivetError(
                f"{kind!r} is not a kind of layer", field=f.name("hybrid_override_pattern"), allowed="M, *, -, E"
            )
    f.ignore(
        "moe_shared_expert_intermediate_size",
        "n_routed_experts",
        "moe_intermediate_size",
        "num_experts_per_tok",
    )
    blueprint = Blueprint(hidden, vocab, blocks, False, f.optional("max_position_embeddings"), hidden)
    f.get("tie_word_embeddings", None)  # the class never ties them
    blueprint.mtp_layers = f.optional("num_nextn_predict_layers")
    return blueprint


FAMILIES = {
    "qwen3_5_text": qwen3_5_text,
    "qwen3_5_moe_text": qwen3_5_moe_text,
    "qwen3_next": qwen3_next,
    "nemotron_h": nemotron_h,
}
