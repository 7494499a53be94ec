"""State-space models and hybrids of them: Mamba, Jamba, Falcon-H1, Granite 4, Zamba2, LFM2, Kimi Linear, ..."""

from __future__ import annotations

import math

from trivet.model.architecture import FeedForward, Mixer
from trivet.model.blueprint import NONE, Block, Blueprint, attention, decoder, dense, layer_types, stack
from trivet.model.families.experts import moe
from trivet.model.families.hybrid import mamba2_bias
from trivet.model.fields import Fields


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
    f.ignore("intermediate_size", "time_step_init_scheme", "time_step_scale", "use_associative_scan", "use_mambapy")
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
    f.ignore("time_step_rank")
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
    f.ignore("mamba_chunk_size", "mamba_expand")
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
        f.ignore("intermediate_size", "num_experts_per_tok")
    f.ignore("position_embedding_type")
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
    f.ignore(
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
    return stack(f, hidden, blocks, tied=False, notes=["attention and state space run side by side in a block"])


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
    f.ignore("use_associative_scan", "use_mambapy", "num_experts_per_tok", "layers_block_type", "layer_types")
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
    f.ignore(
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
    return stack(
        f, hidden, blocks, tied=True, notes=["operators of the shared attention read one width of hidden, not two"]
    )


FAMILIES = {
    "mamba": mamba,
    "falcon_mamba": mamba,
    "mamba2": mamba2_model,
    "bamba": bamba,
    "granitemoehybrid": granitemoehybrid,
    "falcon_h1": falcon_h1,
    "jamba": jamba,
    "zamba2": zamba2,
}
