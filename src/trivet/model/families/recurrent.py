"""Hybrids of attention with recurrences and short convolutions: RecurrentGemma, LFM2, Kimi Linear, Gemma 3n, ..."""

from __future__ import annotations

from dataclasses import replace

from trivet.errors import TrivetError
from trivet.model.architecture import FeedForward, Mixer
from trivet.model.blueprint import Block, Blueprint, attention, decoder, dense, layer_types, stack
from trivet.model.families.experts import moe
from trivet.model.families.latent import latent_bias, latent_mixer
from trivet.model.families.mixtures import mlp_kinds
from trivet.model.fields import Fields


def recurrent_gemma(f: Fields) -> Blueprint:
    hidden, layers, heads = (
        f.positive("hidden_size"),
        f.positive("num_hidden_layers"),
        f.positive("num_attention_heads"),
    )
    pattern = [str(k) for k in f.many("layers_block_type") or f.many("block_types")]
    kinds = (pattern * layers)[:layers]
    width, bias = f.optional("lru_width") or hidden, f.flag("attention_bias")
    if width % heads:
        raise TrivetError(f"{width} is not a multiple of {heads} heads", field=f.name("lru_width"))
    m = Mixer(
        "scan", scan_kind="rg_lru", value_heads=heads, value_dim=width // heads, conv_width=f.positive("conv1d_width")
    )
    extra = 2 * width + hidden + 3 * width  # biases of the products, of both gates and the decay
    full = attention(
        f, qkv_bias=bias, out_bias=True, head_dim=hidden // heads, window=f.optional("attention_window_size")
    )
    f.ignore(
        "logits_soft_cap",
        "w_init_variance_scale",
        "block_types",
        "head_dim",
        "final_w_init_variance_scale",
        "layer_types",
    )
    ff = dense(f, intermediate=f.positive("intermediate_size") // 2, bias=True)
    where = ["attention" in kind and "linear" not in kind for kind in kinds]
    return decoder(
        f,
        mixer=lambda i: full if where[i] else m,
        feed_forward=ff,
        mixer_extra=lambda i: 0 if where[i] else extra,
    )


def _lfm2_mixers(f: Fields) -> tuple[list[Mixer], list[int]]:
    hidden, layers, bias = f.positive("hidden_size"), f.positive("num_hidden_layers"), f.flag("conv_bias")
    chosen = f.get("full_attn_idxs", None)
    kinds = layer_types(f, layers, lambda i: "full_attention" if chosen is None or i in chosen else "conv")
    full = attention(f, qk_norm=True, head_dim=hidden // f.positive("num_attention_heads"))
    conv = Mixer("scan", scan_kind="short_conv", value_heads=hidden, value_dim=1, conv_width=f.positive("conv_L_cache"))
    extra = 5 * hidden if bias else 0
    mixers = [full if kind == "full_attention" else conv for kind in kinds]
    return mixers, [extra if m is conv else 0 for m in mixers]


def lfm2(f: Fields) -> Blueprint:
    """LFM2: gated short convolutions with attention in some layers."""
    mixers, extras = _lfm2_mixers(f)
    width = f.optional("block_ff_dim") or f.positive("intermediate_size")
    f.ignore("intermediate_size")
    if f.flag("block_auto_adjust_ff_dim"):
        width = int(2 * width / 3)
        factor, multiple = f.get("block_ffn_dim_multiplier"), f.positive("block_multiple_of")
        if factor is not None:
            width = int(factor * width)
            width = multiple * ((width + multiple - 1) // multiple)
    else:
        f.ignore("block_ffn_dim_multiplier", "block_multiple_of")
    tied = f.flag("tie_embedding", f.flag("tie_word_embeddings", True))
    f.ignore(
        "block_dim",
        "conv_dim",
        "conv_dim_out",
        "block_mlp_init_scale",
        "block_norm_eps",
        "block_out_init_scale",
        "block_use_swiglu",
        "block_use_xavier_init",
        "conv_use_xavier_init",
        "use_pos_enc",
        "num_heads",
    )
    return decoder(
        f,
        mixer=lambda i: mixers[i],
        mixer_extra=lambda i: extras[i],
        feed_forward=FeedForward("dense", width),
        tied=tied,
    )


def lfm2_moe(f: Fields) -> Blueprint:
    mixers, extras = _lfm2_mixers(f)
    first = f.whole("num_dense_layers")
    sparse, plain = moe(f, "num_experts", "moe_intermediate_size"), dense(f)
    f.ignore("use_expert_bias")
    tied = f.flag("tie_embedding", f.flag("tie_word_embeddings", True))
    return decoder(
        f,
        mixer=lambda i: mixers[i],
        mixer_extra=lambda i: extras[i],
        feed_forward=lambda i: sparse if i >= first else plain,
        tied=tied,
    )


def kimi_linear(f: Fields) -> Blueprint:
    """Kimi Linear: Kimi delta attention with latent attention in every fourth layer."""
    layers = f.positive("num_hidden_layers")
    nested = f.get("linear_attn_config", None) or {}
    dim = int(nested.get("head_dim", f.positive("linear_head_dim")))
    heads = int(nested.get("num_heads", f.positive("linear_num_heads")))
    conv = int(nested.get("short_conv_kernel_size", f.positive("linear_conv_kernel_dim")))
    kinds = [str(k) for k in f.many("layer_types")]
    if not kinds and "full_attn_layers" in nested:
        kinds = ["full_attention" if i + 1 in nested["full_attn_layers"] else "linear_attention" for i in range(layers)]
    kinds = kinds or ["full_attention" if i and i % 4 == 0 else "linear_attention" for i in range(layers)]
    scan = Mixer(
        "scan", scan_kind="kda", key_heads=heads, key_dim=dim, value_heads=heads, value_dim=dim, conv_width=conv
    )
    full = latent_mixer(f)
    where = mlp_kinds(f, f.whole("first_k_dense_replace", 1))
    shared = f.positive("moe_intermediate_size") * f.optional("n_shared_experts")
    sparse = moe(f, "num_local_experts", "moe_intermediate_size", shared_intermediate=shared)
    plain = dense(f)
    bias = latent_bias(f, full)
    f.ignore(
        "num_key_value_heads",
        "head_dim",
        "moe_layer_freq",
        "mla_use_nope",
        "use_grouped_topk",
        "moe_router_activation_func",
    )
    f.get("tie_word_embeddings", None)  # the class never ties them
    return decoder(
        f,
        mixer=lambda i: full if kinds[i] == "full_attention" else scan,
        feed_forward=lambda i: sparse if where[i] else plain,
        mixer_extra=lambda i: bias if kinds[i] == "full_attention" else 0,
        tied=False,
    )


def bailing_hybrid(f: Fields) -> Blueprint:
    """Ling / Ring hybrids: Kimi delta attention with full-rank gates, latent attention with a gate a head."""
    hidden, layers, group = f.positive("hidden_size"), f.positive("num_hidden_layers"), f.positive("layer_group_size")
    heads, dim = f.positive("num_attention_heads"), f.positive("head_dim")
    kinds = layer_types(f, layers, lambda i: "linear_attention" if (i + 1) % group else "full_attention")
    # A saved config repeats the linear layers' sizes, because the class overwrites head_dim with that of the rotary part.
    linear_heads, dim = f.optional("linear_num_heads") or heads, f.optional("linear_head_dim") or dim
    scan = Mixer(
        "scan",
        scan_kind="kda",
        key_heads=linear_heads,
        key_dim=dim,
        value_heads=linear_heads,
        value_dim=dim,
        conv_width=f.optional("linear_conv_kernel_dim") or f.positive("short_conv_kernel_size"),
    )
    inner = linear_heads * dim
    correction = 2 * inner * hidden - 2 * dim * hidden - 2 * dim * inner
    full = latent_mixer(f)
    where = mlp_kinds(f, f.whole("first_k_dense_replace"))
    shared = f.positive("moe_intermediate_size") * f.optional("n_shared_experts")
    sparse = moe(f, "num_local_experts", "moe_intermediate_size", shared_intermediate=shared)
    plain, bias = dense(f), latent_bias(f, full)
    f.ignore("num_key_value_heads", "kda_lower_bound", "kda_safe_gate", "tie_word_embeddings")
    blueprint = decoder(
        f,
        mixer=lambda i: full if kinds[i] == "full_attention" else scan,
        feed_forward=lambda i: sparse if where[i] else plain,
        mixer_extra=lambda i: bias + heads * hidden if kinds[i] == "full_attention" else correction,
        tied=False,
    )
    blueprint.mtp_layers = f.optional("num_nextn_predict_layers")
    return blueprint


def olmo_hybrid(f: Fields) -> Blueprint:
    hidden, layers, bias = f.positive("hidden_size"), f.positive("num_hidden_layers"), f.flag("attention_bias")
    heads = f.positive("num_attention_heads")
    kinds = layer_types(f, layers, lambda i: "full_attention" if i % 4 == 3 else "linear_attention")
    if "full_attention" not in kinds:
        kinds[-1] = "full_attention"
    key_heads, value_heads = f.optional("linear_num_key_heads") or heads, f.optional("linear_num_value_heads") or heads
    key_dim = f.optional("linear_key_head_dim") or int(0.75 * hidden / key_heads)
    scan = Mixer(
        "scan",
        scan_kind="gdn",
        key_heads=key_heads,
        key_dim=key_dim,
        value_heads=value_heads,
        value_dim=f.optional("linear_value_head_dim") or 2 * key_dim,
        conv_width=f.positive("linear_conv_kernel_dim"),
    )
    full = attention(f, qkv_bias=bias, out_bias=bias)
    norms = (full.heads + full.kv_heads) * full.head_dim
    f.ignore(
        "linear_a_log_max",
        "linear_a_log_min",
        "linear_allow_neg_eigval",
        "linear_dt_init_floor",
        "linear_dt_max",
        "linear_dt_min",
    )
    return decoder(
        f,
        mixer=lambda i: full if kinds[i] == "full_attention" else scan,
        feed_forward=dense(f),
        mixer_extra=lambda i: norms if kinds[i] == "full_attention" else 0,
    )


def gemma3n_text(f: Fields) -> Blueprint:
    """Gemma 3n: four residual streams (AltUp), a low-rank side path (LAuReL) and an embedding a layer."""
    hidden, layers, streams = f.positive("hidden_size"), f.positive("num_hidden_layers"), f.positive("altup_num_inputs")
    per_layer, rank, shared = (
        f.optional("hidden_size_per_layer_input"),
        f.positive("laurel_rank"),
        f.optional("num_kv_shared_layers"),
    )
    kinds = layer_types(f, layers, lambda i: "full_attention" if (i + 1) % 5 == 0 else "sliding_attention")
    if shared >= layers:
        raise TrivetError(
            f"{shared} of {layers} layers", field=f.name("num_kv_shared_layers"), allowed=f"0 to {layers - 1}"
        )
    bias, window = f.flag("attention_bias"), f.optional("sliding_window")
    base = attention(f, qkv_bias=bias, out_bias=bias, qk_norm=True)
    widths = f.get("intermediate_size")
    widths = list(widths) if isinstance(widths, list) else [f.positive("intermediate_size")] * layers
    f.ignore("activation_sparsity_pattern", "altup_coef_clip", "altup_correct_scale", "altup_active_idx")
    altup = hidden + streams * streams + streams**3 + streams * hidden + hidden
    side = 2 * rank * hidden + hidden + 2 * per_layer * hidden + hidden
    blocks = [
        Block(
            replace(base, window=window if "sliding" in kinds[i] else 0, shared_kv=i >= layers - shared),
            FeedForward("dense", widths[i]),
            4 * hidden,
            other=altup + side,
        )
        for i in range(layers)
    ]
    blueprint = stack(f, hidden, blocks, tied=True)
    table = f.positive("vocab_size_per_layer_input") * layers * per_layer
    blueprint.add("layer_embedding", table + hidden * layers * per_layer + per_layer)
    blueprint.add("other", 2 * (streams - 1) * hidden * hidden)
    return blueprint


FAMILIES = {
    "recurrent_gemma": recurrent_gemma,
    "lfm2": lfm2,
    "lfm2_moe": lfm2_moe,
    "kimi_linear": kimi_linear,
    "bailing_hybrid": bailing_hybrid,
    "olmo_hybrid": olmo_hybrid,
    "gemma3n_text": gemma3n_text,
}
