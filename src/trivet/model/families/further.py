"""Decoders each with a twist of its own: older ones (GPT, CTRL) and newer ones (LFM3, Flint, Kolibri, Hunyuan 4, A.X 2)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from trivet.model.architecture import FeedForward, Mixer
from trivet.model.blueprint import Block, Blueprint, attention, decoder, dense, layer_types, windows
from trivet.model.families.experts import moe
from trivet.model.families.latent import deepseek_experts, indexed, latent_bias
from trivet.model.families.mixtures import latent_moe, mlp_kinds
from trivet.model.fields import Fields

Reader = Callable[[Fields], Blueprint]


def openai_gpt(f: Fields) -> Blueprint:
    hidden, heads = f.positive("n_embd"), f.positive("n_head")
    mixer = Mixer("attention", heads, heads, hidden // heads, qkv_bias=True, out_bias=True)
    ff = FeedForward("dense", 4 * hidden, gated=False, bias=True)
    blocks = [Block(mixer, ff, 4 * hidden)] * f.positive("n_layer")
    f.ignore("afn")
    blueprint = Blueprint(
        hidden, f.positive("vocab_size"), blocks, f.flag("tie_word_embeddings", True), f.positive("n_positions")
    )
    blueprint.add("position", f.positive("n_positions") * hidden)
    return blueprint


def ctrl(f: Fields) -> Blueprint:
    hidden, heads, vocab = f.positive("n_embd"), f.positive("n_head"), f.positive("vocab_size")
    mixer = Mixer("attention", heads, heads, hidden // heads, qkv_bias=True, out_bias=True)
    ff = FeedForward("dense", f.positive("dff"), gated=False, bias=True)
    blocks = [Block(mixer, ff, 4 * hidden)] * f.positive("n_layer")
    return Blueprint(
        hidden,
        vocab,
        blocks,
        f.flag("tie_word_embeddings", True),
        f.positive("n_positions"),
        2 * hidden,
        head_bias=vocab,
    )


def gpt_neox_japanese(f: Fields) -> Blueprint:
    hidden, heads = f.positive("hidden_size"), f.positive("num_attention_heads")
    mixer = Mixer("attention", heads, heads, hidden // heads)
    width = int(hidden * f.get("intermediate_multiple_size"))
    blueprint = decoder(f, mixer=mixer, feed_forward=FeedForward("dense", width, gated=False), norm="layer")
    blueprint.add("other", hidden)  # the last layer's output bias
    return blueprint


def doge(f: Fields) -> Blueprint:
    """Doge: a learned scale on each residual and a dynamic mask a key-value head."""
    f.expect("is_moe", False)
    hidden, bias = f.positive("hidden_size"), f.flag("attention_bias")
    base = attention(
        f, qkv_bias=bias, out_bias=bias, qk_norm=True, head_dim=hidden // f.positive("num_attention_heads")
    )
    mask = base.kv_heads + base.kv_heads * base.head_dim * base.kv_heads + (base.kv_heads if bias else 0)
    f.ignore("keep_window_size", "num_experts", "num_experts_per_tok", "sliding_window", "head_dim")
    return decoder(f, mixer=base, feed_forward=dense(f, bias=f.flag("mlp_bias")), mixer_extra=mask, other=2 * hidden)


def kolibri1(f: Fields) -> Blueprint:
    layers = f.positive("num_hidden_layers")
    wide = windows(f, layers, lambda i: "sliding_attention" if (i + 1) % 5 else "full_attention")
    base = attention(f, qk_norm=True)
    sparse = moe(
        f, "num_experts", "moe_intermediate_size", shared_intermediate=f.positive("shared_expert_intermediate_size")
    )
    return decoder(f, mixer=lambda i: replace(base, window=wide[i]), feed_forward=sparse, norms=4)


def lfm3(f: Fields) -> Blueprint:
    hidden, layers = f.positive("hidden_size"), f.positive("num_hidden_layers")

    def rule(i: int) -> str:
        return "full_attention" if i % 4 == 2 else "sliding_attention" if i % 4 == 0 and i > 0 else "conv"

    kinds, window, bias = layer_types(f, layers, rule), f.optional("sliding_window"), f.flag("attention_bias")
    base = attention(f, qkv_bias=bias, out_bias=bias, qk_norm=True)
    conv = Mixer("scan", scan_kind="short_conv", value_heads=hidden, value_dim=1, conv_width=f.positive("conv_L_cache"))
    gate = hidden * base.heads if f.flag("use_attention_gate") else 0
    conv_bias = 5 * hidden if f.flag("conv_bias") else 0
    mixers = [conv if kind == "conv" else replace(base, window=window if "sliding" in kind else 0) for kind in kinds]
    return decoder(
        f,
        mixer=lambda i: mixers[i],
        feed_forward=dense(f),
        norms=4 if f.flag("use_sandwich_norm") else 2,
        mixer_extra=lambda i: conv_bias if mixers[i] is conv else gate,
    )


def flint(f: Fields) -> Blueprint:
    layers, bias = f.positive("num_hidden_layers"), f.flag("attention_bias")

    def rule(i: int) -> str:
        return "full_attention" if i < 2 or i % 4 == 1 or i == layers - 1 else "sliding_attention"

    wide = windows(f, layers, rule)
    base = attention(f, qkv_bias=bias, out_bias=bias, qk_norm=True, sinks=True)
    given = f.get("mlp_only_layers", None)
    plain_at = [0, 1] if given is None else list(given)
    step = f.optional("decoder_sparse_step") or 1
    sparse = moe(
        f, "num_experts", "moe_intermediate_size", shared_intermediate=f.positive("shared_expert_intermediate_size")
    )
    plain = dense(f)
    return decoder(
        f,
        mixer=lambda i: replace(base, window=wide[i]),
        feed_forward=lambda i: sparse if i not in plain_at and (i + 1) % step == 0 else plain,
    )


def jetmoe(f: Fields) -> Blueprint:
    """JetMoE: experts in the attention's query and output products, too; their keys and values are shared."""
    hidden, kv, dim = f.positive("hidden_size"), f.positive("num_key_value_heads"), f.positive("kv_channels")
    top_k, experts = f.positive("num_experts_per_tok"), f.positive("num_local_experts")
    mixer = Mixer("attention", kv * top_k, kv, dim)
    described = 2 * hidden * kv * top_k * dim + 2 * hidden * kv * dim
    held = 2 * experts * hidden * kv * dim + 2 * hidden * kv * dim + experts * hidden + hidden
    sparse = moe(f, "num_local_experts", "intermediate_size")
    f.ignore("num_attention_heads", "head_dim")
    return decoder(f, mixer=mixer, feed_forward=sparse, mixer_extra=held - described, feed_forward_extra=hidden)


def hy_v4(f: Fields) -> Blueprint:
    """Hunyuan 4: indexed latent attention with sinks and a gate, hyper-connections over parallel streams."""
    hidden, layers, streams = f.positive("hidden_size"), f.positive("num_hidden_layers"), f.positive("hc_mult")
    m = indexed(f)
    sharing = replace(m, index_heads=0, index_head_dim=0)
    kinds = f.many("indexer_types") or ["full" if i == 0 or (i - 1) % 4 == 0 else "shared" for i in range(layers)]
    where, sparse, plain = mlp_kinds(f, 1), deepseek_experts(f), dense(f)
    bias = latent_bias(f, m) + m.heads + hidden * m.heads * m.v_head_dim
    hyper = 2 * (2 * streams * streams * hidden + 2 * streams + 2)
    f.ignore("layer_types", "head_dim", "num_key_value_heads", "hc_magnitude")
    blueprint = decoder(
        f,
        mixer=lambda i: m if kinds[i] == "full" else sharing,
        feed_forward=lambda i: sparse if where[i] else plain,
        mixer_extra=lambda i: bias + (2 * m.index_head_dim if kinds[i] == "full" else 0),
        other=hyper,
    )
    blueprint.add("other", streams * streams * hidden + streams + 1)
    return blueprint


def axk2(f: Fields) -> Blueprint:
    """A.X 2: indexed latent attention with a gate, norms with a low-rank gate."""
    hidden, rank = f.positive("hidden_size"), f.positive("gated_norm_rank")
    m = indexed(f)
    layers, first, step = (
        f.positive("num_hidden_layers"),
        f.whole("first_k_dense_replace", 1),
        f.whole("moe_layer_freq", 1),
    )
    where = mlp_kinds(f, first) if f.many("mlp_layer_types") else [i >= first and i % step == 0 for i in range(layers)]
    sparse, plain = deepseek_experts(f), dense(f)
    # Queries and gate are one product over two latents' width.
    qk = m.nope_head_dim + m.rope_head_dim
    queries = 2 * m.q_lora_rank * m.heads * (qk + m.v_head_dim) - m.q_lora_rank * m.heads * qk
    extra = latent_bias(f, m) + 2 * m.index_head_dim + queries
    f.ignore("layer_types", "head_dim", "num_key_value_heads")
    gate = 2 * rank * hidden
    return decoder(
        f,
        mixer=m,
        mixer_extra=extra,
        feed_forward=lambda i: sparse if where[i] else plain,
        other=lambda i: gate + (gate if where[i] else 0),
    )


FAMILIES: dict[str, Reader] = {
    "openai-gpt": openai_gpt,
    "ctrl": ctrl,
    "gpt_neox_japanese": gpt_neox_japanese,
    "doge": doge,
    "kolibri1": kolibri1,
    "lfm3": lfm3,
    "flint": flint,
    "jetmoe": jetmoe,
    "hy_v4": hy_v4,
    "axk2": axk2,
    "mistral4": lambda f: latent_moe(f, f.whole("first_k_dense_replace", 0)),
}
