"""State-space models and hybrids of them: Mamba, Jamba, Falcon-H1, Granite 4, Zamba2, LFM2, Kimi Linear, ..."""

from __future__ import annotations

import math
from dataclasses import replace

from trivet.errors import TrivetError
from trivet.model.architecture import FeedForward, Mixer
from trivet.model.blueprint import NONE, Block, Blueprint, attention, decoder, dense, layer_types
from trivet.model.families.experts import moe
from trivet.model.families.hybrid import mamba2_bias
from trivet.model.families.latent import latent_bias, latent_mixer
from trivet.model.families.mixtures import mlp_kinds
from trivet.model.fields import Fields


def _ignore(f: Fields, *names: str) -> None:
    for name in names:
        f.get(name, None)


def _rank(value: object, hidden: int) -> int:
    return math.ceil(hidden / 16) if value == "auto" or value is None else int(value)  # type: ignore[call-overload]


def mamba1_mixer(hidden: int, expand: float, state: int, conv: int, rank: int) -> Mixer:
    return Mixer(
        "scan", scan_kind="mamba1", value_heads=int(expand * hidden), key_dim=state, value_dim=rank, conv_width=conv
    )


def mamba1_bias(hidden: int, m: Mixer, projection: bool, conv: bool) -> int:
    """Beside the usual convolution bias."""
    return (2 * m.value_heads + hidden if projection else 0) - (0 if conv else m.value_heads)


def mamba(f: Fields) -> Blueprint:
    """Mamba and Falcon-Mamba: nothing but state-space layers behind one norm each."""
    hidden = f.positive("hidden_size")
    m = mamba1_mixer(
        hidden,
        f.get("expand"),
        f.positive("state_size"),
        f.positive("conv_kernel"),
        _rank(f.get("time_step_rank"), hidden),
    )
    _ignore(f, "intermediate_size", "time_step_init_scheme", "time_step_scale", "use_associative_scan", "use_mambapy")
    extra = mamba1_bias(hidden, m, f.flag("use_bias"), f.flag("use_conv_bias"))
    return decoder(f, mixer=m, feed_forward=NONE, norms=1, mixer_extra=extra)


def mamba2_model(f: Fields) -> Blueprint:
    m = Mixer(
        "scan",
        scan_kind="mamba2",
        value_heads=f.positive("num_heads"),
        value_dim=f.positive("head_dim"),
        key_heads=f.positive("n_groups"),
        key_dim=f.positive("state_size"),
        state_groups=f.positive("n_groups"),
        conv_width=f.positive("conv_kernel"),
    )
    inner = int(f.get("expand") * f.positive("hidden_size"))
    if inner != m.value_heads * m.value_dim:
        f.expect("expand", m.value_heads * m.value_dim / f.positive("hidden_size"))
    _ignore(f, "time_step_rank")
    extra = mamba2_bias(f, m, f.flag("use_bias"), f.flag("use_conv_bias"))
    return decoder(f, mixer=m, feed_forward=NONE, norms=1, mixer_extra=extra)


def _mamba2_of(f: Fields, inner: int) -> tuple[Mixer, int]:
    """The Mamba-2 layer of Bamba, Granite 4 and Falcon-H1, and what its biases add."""
    heads = f.positive("mamba_n_heads")
    given = f.get("mamba_d_head")
    dim = inner // heads if given == "auto" else int(given)
    if given != "auto" and dim * heads != inner:
        f.expect("mamba_d_head", inner // heads)
    groups = f.positive("mamba_n_groups")
    m = Mixer(
        "scan",
        scan_kind="mamba2",
        value_heads=heads,
        value_dim=dim,
        key_heads=groups,
        key_dim=f.positive("mamba_d_state"),
        state_groups=groups,
        conv_width=f.positive("mamba_d_conv"),
    )
    _ignore(f, "mamba_chunk_size", "mamba_expand")
    return m, mamba2_bias(f, m, f.flag("mamba_proj_bias"), f.flag("mamba_conv_bias"))


def bamba(f: Fields) -> Blueprint:
    hidden, layers, bias = f.positive("hidden_size"), f.positive("num_hidden_layers"), f.flag("attention_bias")
    scan, extra = _mamba2_of(f, int(f.get("mamba_expand") * hidden))
    chosen = f.many("attn_layer_indices")
    kinds = layer_types(f, layers, lambda i: "full_attention" if i in chosen else "linear_attention")
    full = attention(f, qkv_bias=bias, out_bias=bias)
    where = ["attention" in kind and "linear" not in kind for kind in kinds]
    return decoder(
        f,
        mixer=lambda i: full if where[i] else scan,
        feed_forward=dense(f, bias=f.flag("mlp_bias")),
        mixer_extra=lambda i: 0 if where[i] else extra,
    )


def granitemoehybrid(f: Fields) -> Blueprint:
    """Granite 4: Mamba-2 and attention layers, each with experts (or none) and a shared feed-forward."""
    hidden, layers, bias = f.positive("hidden_size"), f.positive("num_hidden_layers"), f.flag("attention_bias")
    scan, extra = _mamba2_of(f, int(f.get("mamba_expand") * hidden))
    kinds = layer_types(f, layers, lambda i: "linear_attention")
    full = attention(f, qkv_bias=bias, out_bias=bias)
    shared = f.positive("shared_intermediate_size")
    if f.whole("num_local_experts"):
        ff = moe(f, "num_local_experts", "intermediate_size", shared_intermediate=shared)
    else:
        ff = FeedForward("dense", shared)
        _ignore(f, "intermediate_size", "num_experts_per_tok")
    _ignore(f, "position_embedding_type")
    where = [kind in ("attention", "full_attention") for kind in kinds]
    return decoder(
        f,
        mixer=lambda i: full if where[i] else scan,
        feed_forward=ff,
        mixer_extra=lambda i: 0 if where[i] else extra,
    )


def falcon_h1(f: Fields) -> Blueprint:
    """Falcon-H1: attention and Mamba-2 side by side in every block, written here as two layers of one mixer each."""
    hidden, layers = f.positive("hidden_size"), f.positive("num_hidden_layers")
    given = f.optional("mamba_d_ssm")
    scan, extra = _mamba2_of(f, given or int(f.get("mamba_expand") * hidden))
    if not f.flag("mamba_rms_norm"):
        extra -= scan.value_heads * scan.value_dim
    bias = f.flag("attention_bias")
    full = attention(f, qkv_bias=bias, out_bias=bias)
    ff = dense(f, bias=f.flag("mlp_bias"))
    _ignore(
        f,
        "projectors_bias",
        "mamba_norm_before_gate",
        "lm_head_multiplier",
        "mlp_multipliers",
        "key_multiplier",
        "attention_out_multiplier",
        "attention_in_multiplier",
        "ssm_multipliers",
        "ssm_in_multiplier",
        "ssm_out_multiplier",
    )
    # The output product's bias has a switch of its own.
    extra += (hidden if f.flag("projectors_bias") else 0) - (hidden if f.flag("mamba_proj_bias") else 0)
    blocks = [Block(scan, NONE, 0, extra), Block(full, ff, 2 * hidden)] * layers
    return Blueprint(
        hidden,
        f.positive("vocab_size"),
        blocks,
        f.flag("tie_word_embeddings", False),
        f.optional("max_position_embeddings"),
        hidden,
        notes=["attention and state space run side by side in a block"],
    )


def jamba(f: Fields) -> Blueprint:
    hidden = f.positive("hidden_size")
    m = mamba1_mixer(
        hidden,
        f.get("mamba_expand"),
        f.positive("mamba_d_state"),
        f.positive("mamba_d_conv"),
        _rank(f.get("mamba_dt_rank"), hidden),
    )
    extra = mamba1_bias(hidden, m, f.flag("mamba_proj_bias"), f.flag("mamba_conv_bias")) + m.value_dim + 2 * m.key_dim
    period, offset = f.positive("attn_layer_period"), f.whole("attn_layer_offset")
    sparse_period, sparse_offset = f.positive("expert_layer_period"), f.whole("expert_layer_offset")
    full, plain = attention(f), dense(f)
    experts = f.whole("num_experts")
    sparse = moe(f, "num_experts", "intermediate_size") if experts > 1 else plain
    _ignore(f, "use_associative_scan", "use_mambapy", "num_experts_per_tok", "layers_block_type", "layer_types")
    return decoder(
        f,
        mixer=lambda i: full if i % period == offset else m,
        feed_forward=lambda i: sparse if i % sparse_period == sparse_offset else plain,
        mixer_extra=lambda i: 0 if i % period == offset else extra,
    )


def zamba2(f: Fields) -> Blueprint:
    """Zamba2: Mamba-2 layers; in hybrid ones first a transformer over [hidden, embedding] whose weights a few blocks share."""
    hidden, layers = f.positive("hidden_size"), f.positive("num_hidden_layers")
    width, heads = f.optional("intermediate_size") or 4 * hidden, f.positive("num_attention_heads")
    kinds = [str(k) for k in f.many("layers_block_type") or f.many("layer_types")]
    if not kinds:
        m = ["m"]
        kinds = m + (m * 5 + ["hybrid"]) * 7 + m * 4 + ["hybrid"] + m * 3 + ["hybrid"] + m * 2
    kinds = kinds[:layers]
    f.expect("add_bias_linear", False)
    inner, groups = int(f.get("mamba_expand") * hidden), f.positive("mamba_ngroups")
    ssm_heads = f.positive("n_mamba_heads")
    scan = Mixer(
        "scan",
        scan_kind="mamba2",
        value_heads=ssm_heads,
        value_dim=inner // ssm_heads,
        key_heads=groups,
        key_dim=f.positive("mamba_d_state"),
        state_groups=groups,
        conv_width=f.positive("mamba_d_conv"),
    )
    scan_extra = mamba2_bias(f, scan, False, f.flag("use_conv_bias"))
    dim = 2 * hidden // heads
    kv = f.optional("num_key_value_heads") or heads
    full = Mixer("attention", heads, kv, dim)
    wider = hidden * dim * (heads + 2 * kv)  # queries, keys and values read twice the width
    rank, blocks_shared = f.positive("adapter_rank"), f.positive("num_mem_blocks")
    adapter = rank * (hidden + 2 * width)
    if f.flag("use_shared_attention_adapter"):
        adapter += 3 * 2 * rank * 2 * hidden
    _ignore(
        f,
        "use_long_context",
        "use_mem_eff_path",
        "attention_head_dim",
        "attention_hidden_size",
        "mamba_headdim",
        "kv_channels",
        "num_query_groups",
        "hybrid_layer_ids",
        "mamba_chunk_size",
        "use_shared_mlp_adapter",
        "num_logits_to_keep",
        "mamba_ngroups",
    )
    blocks, used = [], 0
    for kind in kinds:
        if kind == "hybrid":
            shared = used >= blocks_shared
            used += 1
            other = hidden * hidden + adapter
            blocks.append(Block(full, FeedForward("dense", width), 3 * hidden, wider, other=other, shared=shared))
        blocks.append(Block(scan, NONE, hidden, scan_extra))
    return Blueprint(
        hidden,
        f.positive("vocab_size"),
        blocks,
        f.flag("tie_word_embeddings", True),
        f.optional("max_position_embeddings"),
        hidden,
        notes=["operators of the shared attention read one width of hidden, not two"],
    )


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
    _ignore(
        f,
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
    f.get("intermediate_size", None)
    if f.flag("block_auto_adjust_ff_dim"):
        width = int(2 * width / 3)
        factor, multiple = f.get("block_ffn_dim_multiplier"), f.positive("block_multiple_of")
        if factor is not None:
            width = int(factor * width)
            width = multiple * ((width + multiple - 1) // multiple)
    else:
        _ignore(f, "block_ffn_dim_multiplier", "block_multiple_of")
    tied = f.flag("tie_embedding", f.flag("tie_word_embeddings", True))
    _ignore(
        f,
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
    _ignore(f, "use_expert_bias")
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
    width = f.positive("moe_intermediate_size")
    sparse = FeedForward(
        "moe",
        experts=f.positive("num_local_experts"),
        top_k=f.positive("num_experts_per_tok"),
        expert_intermediate=width,
        shared_intermediate=width * f.optional("n_shared_experts"),
    )
    plain = dense(f)
    bias = latent_bias(f, full)
    _ignore(
        f,
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
    width = f.positive("moe_intermediate_size")
    sparse = FeedForward(
        "moe",
        experts=f.positive("num_local_experts"),
        top_k=f.positive("num_experts_per_tok"),
        expert_intermediate=width,
        shared_intermediate=width * f.optional("n_shared_experts"),
    )
    plain, bias = dense(f), latent_bias(f, full)
    _ignore(f, "num_key_value_heads", "kda_lower_bound", "kda_safe_gate", "tie_word_embeddings")
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
    _ignore(
        f,
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
    _ignore(f, "activation_sparsity_pattern", "altup_coef_clip", "altup_correct_scale", "altup_active_idx")
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
    blueprint = Blueprint(
        hidden,
        f.positive("vocab_size"),
        blocks,
        f.flag("tie_word_embeddings", True),
        f.optional("max_position_embeddings"),
        hidden,
    )
    table = f.positive("vocab_size_per_layer_input") * layers * per_layer
    blueprint.add("layer_embedding", table + hidden * layers * per_layer + per_layer)
    blueprint.add("other", 2 * (streams - 1) * hidden * hidden)
    return blueprint


FAMILIES = {
    "mamba": mamba,
    "falcon_mamba": mamba,
    "mamba2": mamba2_model,
    "bamba": bamba,
    "granitemoehybrid": granitemoehybrid,
    "falcon_h1": falcon_h1,
    "jamba": jamba,
    "zamba2": zamba2,
    "recurrent_gemma": recurrent_gemma,
    "lfm2": lfm2,
    "lfm2_moe": lfm2_moe,
    "kimi_linear": kimi_linear,
    "bailing_hybrid": bailing_hybrid,
    "olmo_hybrid": olmo_hybrid,
    "gemma3n_text": gemma3n_text,
}
