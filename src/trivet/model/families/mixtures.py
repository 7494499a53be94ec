"""More mixtures of experts, each an ordinary decoder style with a mixture in some of its layers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from trivet.errors import TrivetError
from trivet.model.architecture import FeedForward, Mixer
from trivet.model.blueprint import Block, Blueprint, attention, decoder, dense, stack, windows
from trivet.model.families.experts import moe, sparse_layer
from trivet.model.families.latent import deepseek_experts, latent_bias, latent_mixer
from trivet.model.families.plain import Style, read_style
from trivet.model.fields import Fields

_FULL_BIAS = Style("attention_bias", "attention_bias")


def mlp_kinds(f: Fields, first: int) -> list[bool]:
    """Which layers have experts: as ``mlp_layer_types`` lists, else all but the first ones."""
    layers = f.positive("num_hidden_layers")
    kinds = f.many("mlp_layer_types")
    if kinds and len(kinds) < layers:
        raise TrivetError(f"{len(kinds)} entries for {layers} layers", field=f.name("mlp_layer_types"))
    return [kind == "sparse" for kind in kinds[:layers]] if kinds else [i >= first for i in range(layers)]


def mixed(f: Fields, style: Style, sparse: FeedForward, where: Sequence[bool], **extras: int) -> Blueprint:
    """Experts where ``where`` says so, the style's dense feed-forward elsewhere; ``extras`` count in sparse layers."""
    plain = sparse if all(where) else dense(f)
    f.ignore("intermediate_size")
    return read_style(
        f,
        style,
        lambda i: sparse if where[i] else plain,
        feed_forward_extra=lambda i: extras.get("feed_forward_extra", 0) if where[i] else extras.get("dense_extra", 0),
        router_extra=lambda i: extras.get("router_extra", 0) if where[i] else 0,
        mixer_extra=extras.get("mixer_extra", 0),
    )


def afmoe(f: Fields) -> Blueprint:
    width = f.positive("moe_intermediate_size")
    sparse = moe(
        f, "num_experts", "moe_intermediate_size", shared_intermediate=width * f.optional("num_shared_experts")
    )
    gate = f.positive("hidden_size") * attention(f).heads * attention(f).head_dim
    every = f.positive("global_attn_every_n_layers")
    style = Style(
        "attention_bias",
        "attention_bias",
        norms=4,
        qk_norm="head",
        window=lambda f, i: "sliding_attention" if (i + 1) % every else "full_attention",
    )
    where = [i >= f.optional("num_dense_layers") for i in range(f.positive("num_hidden_layers"))]
    f.ignore("mup_enabled", "route_scale", "score_func", "route_norm", "num_expert_groups", "num_limited_groups")
    return mixed(f, style, sparse, where, router_extra=sparse.experts, mixer_extra=gate)


def aria_text(f: Fields) -> Blueprint:
    width, bias = f.positive("intermediate_size"), f.flag("mlp_bias")
    shared = width * f.optional("moe_num_shared_experts")
    sparse = moe(f, "moe_num_experts", "intermediate_size", "moe_topk", shared_intermediate=shared)
    extra = 2 * shared + f.positive("hidden_size") if bias else 0
    return read_style(f, _FULL_BIAS, sparse, feed_forward_extra=extra)


def cohere2_moe(f: Fields) -> Blueprint:
    first = f.optional("first_k_dense_replace")
    where = mlp_kinds(f, first)
    width = f.positive("intermediate_size")
    sparse = moe(f, "num_experts", "intermediate_size", shared_intermediate=width * f.optional("num_shared_experts"))
    plain = sparse if all(where) else FeedForward("dense", f.positive("prefix_dense_intermediate_size"))
    pattern = f.positive("sliding_window_pattern")
    f.ignore(
        "prefix_dense_sliding_window_pattern",
        "prefix_dense_intermediate_size",
        "shared_expert_combination_strategy",
        "expert_selection_fn",
    )
    style = Style(
        "attention_bias",
        "attention_bias",
        norms=1,
        window=lambda f, i: "sliding_attention" if i < first or (i - first + 1) % pattern else "full_attention",
    )
    return read_style(f, style, lambda i: sparse if where[i] else plain)


def dbrx(f: Fields) -> Blueprint:
    hidden, heads = f.positive("d_model"), f.positive("n_heads")
    attn, ffn = f.sub("attn_config", "dbrx_attention"), f.sub("ffn_config", "dbrx_ffn")
    for child in (attn, ffn):
        child.read.update(child.raw)
    mixer = Mixer("attention", heads, attn.whole("kv_n_heads", 1), hidden // heads)
    sparse = FeedForward(
        "moe",
        experts=ffn.whole("moe_num_experts", 4),
        top_k=ffn.whole("moe_top_k", 1),
        expert_intermediate=ffn.whole("ffn_hidden_size", 3584),
    )
    blocks = [Block(mixer, sparse, 2 * hidden) for _ in range(f.positive("n_layers"))]
    return Blueprint(
        hidden,
        f.positive("vocab_size"),
        blocks,
        f.flag("tie_word_embeddings", False),
        f.optional("max_seq_len"),
        hidden,
    )


def dots1(f: Fields) -> Blueprint:
    where = [i >= f.optional("first_k_dense_replace") for i in range(f.positive("num_hidden_layers"))]
    start = f.optional("max_window_layers")
    style = Style(
        "attention_bias",
        "attention_bias",
        qk_norm="head",
        window=lambda f, i: "sliding_attention" if i >= start else "full_attention",
    )
    return mixed(f, style, deepseek_experts(f), where)


def ernie4_5_moe(f: Fields) -> Blueprint:
    width, bias, hidden = f.positive("moe_intermediate_size"), f.flag("use_bias"), f.positive("hidden_size")
    shared = width * f.optional("moe_num_shared_experts")
    sparse = moe(f, "moe_num_experts", "moe_intermediate_size", "moe_k", shared_intermediate=shared)
    layers, interval = f.positive("num_hidden_layers"), f.positive("moe_layer_interval")
    start, end = f.whole("moe_layer_start_index"), f.get("moe_layer_end_index")
    end = layers - 1 if end == -1 else end
    where = [(i + 1) % interval == 0 and start <= i <= end for i in range(layers)]
    plain = dense(f, bias=bias)
    f.ignore("moe_norm_min")
    return read_style(
        f,
        Style("use_bias", "use_bias", head_bias="use_bias"),
        lambda i: sparse if where[i] else plain,
        feed_forward_extra=lambda i: 2 * shared + hidden if where[i] and bias and shared else 0,
        router_extra=lambda i: sparse.experts if where[i] else 0,
    )


def exaone_moe(f: Fields) -> Blueprint:
    width = f.positive("moe_intermediate_size")
    sparse = moe(
        f, "num_experts", "moe_intermediate_size", shared_intermediate=width * f.optional("num_shared_experts")
    )
    pattern = f.optional("sliding_window_pattern")
    style = Style(
        qk_norm="head", window=lambda f, i: "sliding_attention" if pattern and (i + 1) % pattern else "full_attention"
    )
    return mixed(f, style, sparse, mlp_kinds(f, f.optional("first_k_dense_replace")))


def flex_olmo(f: Fields) -> Blueprint:
    sparse = moe(f, "num_experts", "intermediate_size")
    return read_style(f, Style("attention_bias", "attention_bias", qk_norm="full"), sparse)


def glm4_moe(f: Fields) -> Blueprint:
    where = [i >= f.optional("first_k_dense_replace") for i in range(f.positive("num_hidden_layers"))]
    style = Style("attention_bias", qk_norm="head", qk_norm_field="use_qk_norm")
    blueprint = mixed(f, style, deepseek_experts(f), where)
    blueprint.mtp_layers = f.optional("num_nextn_predict_layers")
    return blueprint


def latent_moe(f: Fields, first: int, *, post_norm: bool = False) -> Blueprint:
    """Latent attention and experts after the first dense layers; ``post_norm``: one more norm after the experts."""
    m = latent_mixer(f)
    f.ignore("num_key_value_heads", "head_dim")
    kinds = f.many("mlp_layer_types")
    step = f.optional("moe_layer_freq") or 1
    layers = f.positive("num_hidden_layers")
    where = mlp_kinds(f, first) if kinds else [i >= first and i % step == 0 for i in range(layers)]
    sparse, plain, hidden = deepseek_experts(f), dense(f), f.positive("hidden_size")
    blueprint = decoder(
        f,
        mixer=m,
        mixer_extra=latent_bias(f, m),
        feed_forward=lambda i: sparse if where[i] else plain,
        other=lambda i: hidden if post_norm and where[i] else 0,
    )
    blueprint.mtp_layers = f.optional("num_nextn_predict_layers")
    return blueprint


def deepseek_v2(f: Fields) -> Blueprint:
    """DeepSeek V2 and V2-Lite (without a query latent)."""
    m = latent_mixer(f)
    f.ignore("num_key_value_heads", "head_dim", "moe_layer_freq")
    first, bias = f.optional("first_k_dense_replace"), f.flag("mlp_bias", False)
    sparse, plain, hidden = replace(deepseek_experts(f)), dense(f, bias=bias), f.positive("hidden_size")
    extra = 2 * sparse.shared_intermediate + hidden if bias else 0
    return decoder(
        f,
        mixer=m,
        mixer_extra=latent_bias(f, m),
        feed_forward=lambda i: sparse if i >= first else plain,
        feed_forward_extra=lambda i: extra if i >= first else 0,
    )


def granitemoe(f: Fields) -> Blueprint:
    sparse = moe(
        f, "num_local_experts", "intermediate_size", shared_intermediate=f.optional("shared_intermediate_size")
    )
    return read_style(f, _FULL_BIAS, sparse)


def granitemoe_swa(f: Fields) -> Blueprint:
    layers, bias = f.positive("num_hidden_layers"), f.flag("attention_bias")
    wide = windows(f, layers, lambda i: "sliding_attention" if i % 4 else "full_attention")
    base = attention(f, qkv_bias=bias, out_bias=bias, sinks=True)
    sparse = moe(
        f, "num_local_experts", "intermediate_size", shared_intermediate=f.optional("shared_intermediate_size")
    )
    return decoder(f, mixer=lambda i: replace(base, window=wide[i]), feed_forward=sparse)


def hunyuan_v1_moe(f: Fields) -> Blueprint:
    top_k = f.get("moe_topk")
    count = f.get("num_experts")
    if isinstance(top_k, list) or isinstance(count, list):
        top_k, count = (max(v) if isinstance(v, list) else v for v in (top_k, count))
    width = f.positive("intermediate_size")
    sparse = FeedForward(
        "moe", experts=int(count), top_k=int(top_k), expert_intermediate=width, shared_intermediate=width
    )
    return read_style(f, Style("attention_bias", "attention_bias", qk_norm="head"), sparse)


def hy_v3(f: Fields) -> Blueprint:
    width, bias, hidden = f.positive("moe_intermediate_size"), f.flag("mlp_bias"), f.positive("hidden_size")
    shared = width * f.optional("num_shared_experts")
    sparse = moe(f, "num_experts", "moe_intermediate_size", shared_intermediate=shared)
    f.ignore("enable_moe_fp32_combine")
    plain = dense(f, bias=bias)
    where = mlp_kinds(f, 1)
    return read_style(
        f,
        Style("attention_bias", "attention_bias", qk_norm="head"),
        lambda i: sparse if where[i] else plain,
        feed_forward_extra=lambda i: 2 * shared + hidden if bias and where[i] else 0,
    )


def laguna(f: Fields) -> Blueprint:
    layers, hidden, bias = f.positive("num_hidden_layers"), f.positive("hidden_size"), f.flag("attention_bias")
    base = attention(f, qkv_bias=bias, out_bias=bias, qk_norm=True)
    heads = f.many("num_attention_heads_per_layer") or [base.heads] * layers
    wide, where = windows(f, layers), mlp_kinds(f, 1)
    gating = f.expect("gating", True, "per-head")
    sparse = moe(
        f, "num_experts", "moe_intermediate_size", shared_intermediate=f.positive("shared_expert_intermediate_size")
    )
    plain = dense(f)
    f.ignore("moe_apply_router_weight_on_input", "per_layer_config")
    return decoder(
        f,
        mixer=lambda i: replace(base, heads=heads[i], window=wide[i]),
        feed_forward=lambda i: sparse if where[i] else plain,
        mixer_extra=lambda i: hidden * heads[i] if gating else 0,
        router_extra=lambda i: sparse.experts if where[i] else 0,
    )


def longcat_flash(f: Fields) -> Blueprint:
    """LongCat-Flash: two attentions and two dense feed-forwards around one mixture, some of whose experts do nothing."""
    hidden, zero = f.positive("hidden_size"), f.optional("zero_expert_num")
    m = latent_mixer(f)
    if f.given("qk_head_dim"):
        f.expect("qk_head_dim", m.nope_head_dim + m.rope_head_dim)
    bias = latent_bias(f, m)
    f.ignore("head_dim", "qk_head_dim", "num_key_value_heads")
    plain = FeedForward("dense", f.positive("ffn_hidden_size"))
    width = f.positive("expert_ffn_hidden_size")
    sparse = moe(f, "n_routed_experts", "expert_ffn_hidden_size", "moe_topk")
    router = zero * hidden
    blocks = []
    for _ in range(f.positive("num_layers")):
        # The class allots gate and up weights to the experts that do nothing, too.
        idle = 2 * zero * width * hidden
        blocks += [
            Block(m, plain, 2 * hidden, bias),
            Block(m, plain, 2 * hidden, bias),
            Block(feed_forward=sparse, feed_forward_extra=idle, router_extra=router),
        ]
    return stack(f, hidden, blocks, tied=False)


def latent_dense(f: Fields) -> Blueprint:
    """MiniCPM3, Youtu: latent attention with a dense feed-forward."""
    heads = f.positive("num_attention_heads")
    v = f.optional("v_head_dim") or f.positive("hidden_size") // heads
    m = Mixer(
        "mla",
        heads=heads,
        kv_heads=1,
        v_head_dim=v,
        q_lora_rank=f.optional("q_lora_rank"),
        kv_lora_rank=f.positive("kv_lora_rank"),
        rope_head_dim=f.positive("qk_rope_head_dim"),
        nope_head_dim=f.positive("qk_nope_head_dim"),
    )
    f.ignore("head_dim", "num_key_value_heads")
    return decoder(f, mixer=m, mixer_extra=latent_bias(f, m), feed_forward=dense(f, bias=f.flag("mlp_bias", False)))


def minimax(f: Fields) -> Blueprint:
    """MiniMax-Text-01: lightning attention with softmax attention in every other layer (or as ``layer_types`` says)."""
    layers = f.positive("num_hidden_layers")
    kinds = [str(k) for k in f.many("layer_types")]
    kinds = kinds or ["full_attention" if (i + 1) % 2 == 0 else "linear_attention" for i in range(layers)]
    full = attention(f)
    linear = Mixer(
        "scan",
        scan_kind="lightning",
        key_heads=full.heads,
        key_dim=full.head_dim,
        value_heads=full.heads,
        value_dim=full.head_dim,
    )
    f.ignore(
        "block_size",
        "full_attn_alpha_factor",
        "full_attn_beta_factor",
        "linear_attn_alpha_factor",
        "linear_attn_beta_factor",
        "mlp_alpha_factor",
        "mlp_beta_factor",
        "sliding_window",
    )
    sparse = moe(f, "num_local_experts", "intermediate_size")
    return decoder(f, mixer=lambda i: full if kinds[i] == "full_attention" else linear, feed_forward=sparse)


def olmoe(f: Fields) -> Blueprint:
    return read_style(
        f, Style("attention_bias", "attention_bias", qk_norm="full"), moe(f, "num_experts", "intermediate_size")
    )


def phimoe(f: Fields) -> Blueprint:
    style = Style("attention_bias", "attention_bias", norm="layer", head_bias="lm_head_bias")
    return read_style(f, style, moe(f, "num_local_experts", "intermediate_size"))


def qwen2_moe(f: Fields) -> Blueprint:
    shared = f.positive("shared_expert_intermediate_size")
    sparse = moe(f, "num_experts", "moe_intermediate_size", shared_intermediate=shared, shared_gate=True)
    layers = f.positive("num_hidden_layers")
    f.ignore("max_window_layers", "use_sliding_window")
    return mixed(f, Style("qkv_bias"), sparse, [sparse_layer(f, i) for i in range(layers)])


def solar_open(f: Fields) -> Blueprint:
    return read_style(f, Style("attention_bias"), deepseek_experts(f))


def mellum(f: Fields) -> Blueprint:
    sparse = moe(f, "num_experts", "moe_intermediate_size")
    f.ignore("mtp_layer_types", "mtp_mlp_layer_types")
    return mixed(f, Style("attention_bias", "attention_bias", qk_norm="head"), sparse, mlp_kinds(f, 0))


FAMILIES = {
    "afmoe": afmoe,
    "aria_text": aria_text,
    "axk1": lambda f: latent_moe(f, f.whole("first_k_dense_replace", 1), post_norm=True),
    "cohere2_moe": cohere2_moe,
    "dbrx": dbrx,
    "deepseek_v2": deepseek_v2,
    "dots1": dots1,
    "ernie4_5_moe": ernie4_5_moe,
    "exaone_moe": exaone_moe,
    "flex_olmo": flex_olmo,
    "glm4_moe": glm4_moe,
    "glm4_moe_lite": lambda f: latent_moe(f, 1),
    "granitemoe": granitemoe,
    "granitemoeshared": granitemoe,
    "granitemoe_swa": granitemoe_swa,
    "hunyuan_v1_moe": hunyuan_v1_moe,
    "hy_v3": hy_v3,
    "laguna": laguna,
    "longcat_flash": longcat_flash,
    "minicpm3": latent_dense,
    "youtu": latent_dense,
    "minimax": minimax,
    "olmoe": olmoe,
    "phimoe": phimoe,
    "qwen2_moe": qwen2_moe,
    "solar_open": solar_open,
    "mellum": mellum,
}
