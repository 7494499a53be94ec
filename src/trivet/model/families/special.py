"""Families whose layers are like no other's: DeepSeek V4, Gemma 4, MiMo-V2, Step 3.7, MiniMax-M3, Nemotron-NAS."""

from __future__ import annotations

from dataclasses import replace

from trivet.errors import TrivetError, Unsupported
from trivet.model.architecture import FeedForward, Mixer
from trivet.model.blueprint import (
    NO_MIXER,
    NONE,
    Block,
    Blueprint,
    attention,
    decoder,
    dense,
    layer_types,
    stack,
    windows,
)
from trivet.model.families import towers
from trivet.model.families.experts import moe
from trivet.model.fields import Fields

_RATIO_KIND = {0: "sliding_attention", 4: "compressed_sparse_attention", 128: "heavily_compressed_attention"}


def deepseek_v4(f: Fields) -> Blueprint:
    """DeepSeek V4: one shared key-value head, grouped low-rank output, compressed attention, hyper-connections.

    Layers see a sliding window and, compressed 4x (with an indexer's choice) or 128x, all before it.
    """
    hidden, layers, heads = (
        f.positive("hidden_size"),
        f.positive("num_hidden_layers"),
        f.positive("num_attention_heads"),
    )
    dim, q_rank, groups, o_rank = (f.positive(n) for n in ("head_dim", "q_lora_rank", "o_groups", "o_lora_rank"))
    index_heads, index_dim, top_k = f.positive("index_n_heads"), f.positive("index_head_dim"), f.positive("index_topk")
    window, streams = f.positive("sliding_window"), f.positive("hc_mult")
    kinds = [str(k) for k in f.many("layer_types")]
    ratios = f.many("compress_ratios")
    if not kinds and ratios:
        kinds = [_RATIO_KIND.get(r, str(r)) for r in ratios]
    if not kinds:
        kinds = ["heavily_compressed_attention"] * 2
        kinds += [
            "compressed_sparse_attention" if i % 2 else "heavily_compressed_attention"
            for i in range(max(layers - 2, 0))
        ]
    rates: dict[str, int] = {
        "compressed_sparse_attention": 4,
        "heavily_compressed_attention": 128,
        **(f.get("compress_rates", None) or {}),
    }
    f.get("attention_bias", None)  # the class builds none
    f.expect("mlp_bias", False)
    f.expect("num_key_value_heads", 1)
    f.expect("n_shared_experts", 1)
    f.ignore("num_hash_layers", "mlp_layer_types", "qk_rope_head_dim", "compress_rope_theta", "expert_dtype")
    hyper = (2 + streams) * streams * (streams * hidden + 1) + 3
    base = Mixer(
        "compressed", heads, 1, dim, window=window, sinks=True, q_lora_rank=q_rank, o_lora_rank=o_rank, o_groups=groups
    )

    def layer(kind: str) -> Mixer:
        if kind not in _RATIO_KIND.values():
            raise TrivetError(
                f"{kind!r} is not a kind of layer", field=f.name("layer_types"), allowed=_RATIO_KIND.values()
            )
        if kind == "compressed_sparse_attention":
            rate = int(rates[kind])
            return replace(base, compress=rate, index_heads=index_heads, index_head_dim=index_dim, index_top_k=top_k)
        return replace(base, compress=int(rates.get(kind, 0)))

    mixers = [layer(kind) for kind in kinds[:layers]]
    width = f.positive("moe_intermediate_size")
    sparse = moe(f, "n_routed_experts", "moe_intermediate_size", shared_intermediate=width)
    blueprint = decoder(
        f,
        mixer=lambda i: mixers[i],
        feed_forward=sparse,
        other=2 * hyper,
        tied=f.flag("tie_word_embeddings", False),
    )
    blueprint.add("other", streams * streams * hidden + streams + 1)
    blueprint.mtp_layers = f.optional("num_nextn_predict_layers")
    blueprint.notes.append("operators leave out the mixing of the hyper-connections' streams")
    return blueprint


def gemma4_text(f: Fields) -> Blueprint:
    hidden, layers = f.positive("hidden_size"), f.positive("num_hidden_layers")
    kinds = layer_types(f, layers, lambda i: "full_attention" if (i + 1) % 6 == 0 else "sliding_attention")
    kinds[-1] = "full_attention"
    dim, wide_dim = f.positive("head_dim"), f.optional("global_head_dim") or 512
    same, wide_kv = f.flag("attention_k_eq_v", False), f.optional("num_global_key_value_heads")
    bias, shared = f.flag("attention_bias", False), f.optional("num_kv_shared_layers")
    local = attention(f, head_dim=dim, qkv_bias=bias, out_bias=bias, qk_norm=True, window=f.optional("sliding_window"))
    whole = replace(local, head_dim=wide_dim, kv_heads=wide_kv if same and wide_kv else local.kv_heads, window=0)
    overrides = f.get("per_layer_config", None) or {}  # how the class writes the wide layers' sizes out again
    for index, change in overrides.items():
        if set(change) - {"head_dim", "num_key_value_heads"} or "sliding" in kinds[int(index)]:
            raise Unsupported("this override is not understood", field=f.name(f"per_layer_config.{index}"))
        whole = replace(
            whole, head_dim=change.get("head_dim", dim), kv_heads=change.get("num_key_value_heads", local.kv_heads)
        )
    width, per_layer = f.positive("intermediate_size"), f.optional("hidden_size_per_layer_input")
    double, has_experts = f.flag("use_double_wide_mlp", False), f.flag("enable_moe_block", False)
    vocab = f.positive("vocab_size")
    blocks = []
    for i, kind in enumerate(kinds):
        reuse = i >= layers - shared
        mixer = replace(local if "sliding" in kind else whole, shared_kv=reuse)
        extra = 0
        if same and kind == "full_attention" and not reuse:  # values are the keys: no product of their own
            extra = -mixer.kv_heads * mixer.head_dim * (hidden + (1 if bias else 0))
        columns = width * (2 if double and reuse else 1)
        norms = 4 * hidden + (3 * hidden if has_experts else 0)
        router = 0
        if has_experts:
            ff = moe(f, "num_experts", "moe_intermediate_size", "top_k_experts", shared_intermediate=columns)
            router = hidden + ff.experts
        else:
            ff = FeedForward("dense", columns)
        other = 2 * hidden * per_layer + hidden if per_layer else 0
        blocks.append(Block(mixer, ff, norms, extra, router_extra=router, other=other))
    f.ignore("num_experts", "moe_intermediate_size", "top_k_experts")
    blueprint = Blueprint(
        hidden, vocab, blocks, f.flag("tie_word_embeddings", True), f.optional("max_position_embeddings"), hidden
    )
    table = f.optional("vocab_size_per_layer_input")
    if per_layer:
        blueprint.add("layer_embedding", table * layers * per_layer + hidden * layers * per_layer + per_layer)
    return blueprint


def mimo_v2_flash(f: Fields) -> Blueprint:
    """MiMo-V2-Flash: windowed layers with their own head counts and sinks among full ones; keys wider than values."""
    layers = f.positive("num_hidden_layers")
    given = f.many("hybrid_layer_pattern")
    rule = layer_types(f, layers, lambda i: "full_attention" if i == 0 or not (i + 1) % 6 else "sliding_attention")
    sliding = [bool(x) for x in given] if given else ["sliding" in kind for kind in rule]
    bias = f.flag("attention_bias", False)
    full = attention(
        f, v_head_dim=f.positive("v_head_dim"), qkv_bias=bias, sinks=f.flag("add_full_attention_sink_bias", False)
    )
    local = replace(
        full,
        heads=f.optional("swa_num_attention_heads") or full.heads,
        kv_heads=f.optional("swa_num_key_value_heads") or 2 * full.kv_heads,
        head_dim=f.optional("swa_head_dim") or full.head_dim,
        v_head_dim=f.optional("swa_v_head_dim") or full.v_head_dim,
        window=f.optional("sliding_window"),
        sinks=f.flag("add_swa_attention_sink_bias", True),
    )
    f.ignore("sliding_window_size", "attention_chunk_size", "intermediate_size")
    f.expect("n_shared_experts", None)
    frequency, kinds = f.many("moe_layer_freq"), f.many("mlp_layer_types")
    sparse_at = [bool(x) for x in frequency] or (
        [k == "sparse" for k in kinds] if kinds else [i > 0 for i in range(layers)]
    )
    sparse, plain = moe(f, "n_routed_experts", "moe_intermediate_size"), dense(f)
    return decoder(
        f,
        mixer=lambda i: local if sliding[i] else full,
        feed_forward=lambda i: sparse if sparse_at[i] else plain,
    )


def step_text(f: Fields) -> Blueprint:
    """Step 3.5 / 3.7: attention with a gate a head, experts from the fourth layer on."""
    layers = f.positive("num_hidden_layers")
    hidden = f.positive("hidden_size")
    wide = windows(f, layers)
    bias = f.flag("attention_bias", False)
    base = attention(f, qkv_bias=bias, out_bias=bias, qk_norm=True)
    other = f.get("attention_other_setting", None) or {}
    sliding_heads = f.optional("num_sliding_attention_heads") or other.get("num_attention_heads") or base.heads
    f.get("per_layer_config", None)  # repeats num_sliding_attention_heads
    f.ignore("mtp_layer_types", "mtp_mlp_layer_types", "swiglu_limits", "swiglu_limits_shared")
    mlp_bias = f.flag("mlp_bias", False)
    first = f.whole("first_k_dense_replace", 3)
    kinds = f.many("mlp_layer_types")
    listed = f.get("moe_layers_enum", None)
    if listed is not None and not kinds:
        chosen = {int(i) for i in (listed.split(",") if isinstance(listed, str) else listed)}
        kinds = ["sparse" if i in chosen else "dense" for i in range(layers)]
    shared = f.positive("share_expert_dim")
    experts = "n_routed_experts" if "n_routed_experts" in f.defaults or "n_routed_experts" in f.raw else "num_experts"
    sparse = moe(f, experts, "moe_intermediate_size", shared_intermediate=shared)
    plain = dense(f, bias=mlp_bias)
    f.read.update(
        name
        for name in ("n_shared_experts", "num_experts", "num_local_experts", "query_pre_attn_scalar")
        if name in f.raw
    )
    sparse_at = [k == "sparse" for k in kinds] if kinds else [i >= first for i in range(layers)]
    mixers = [
        replace(base, window=w, heads=sliding_heads if "sliding" in kind else base.heads)
        for w, kind in zip(wide, layer_types(f, layers), strict=True)
    ]
    blueprint = decoder(
        f,
        mixer=lambda i: mixers[i],
        feed_forward=lambda i: sparse if sparse_at[i] else plain,
        mixer_extra=lambda i: hidden * mixers[i].heads,
        feed_forward_extra=lambda i: (2 * shared + hidden) if mlp_bias and sparse_at[i] else 0,
    )
    blueprint.mtp_layers = f.optional("num_nextn_predict_layers")
    return blueprint


def step3p7(f: Fields) -> Blueprint:
    """Step 3.7: the text fields stand at the top of published configs, where the class does not look for them: it builds
    its own default table of tokens, which is what is counted."""
    flat = "hidden_size" in f.raw
    text = Fields(f.raw, "step3p7_text") if flat else f.sub("text_config", "step3p7_text")
    blueprint = step_text(text)
    blueprint.tied = f.flag("tie_word_embeddings", False)
    if flat and blueprint.vocab != text.defaults["vocab_size"]:
        blueprint.notes.append(
            f"vocab_size {blueprint.vocab} of the config; counted with the {text.defaults['vocab_size']} of the class"
        )
        blueprint.vocab = text.defaults["vocab_size"]
    if flat:
        f.read.update(f.raw)
        text.finish()
    vision = f.sub("vision_config", "step3p7_vision")
    blueprint.add("vision", towers.step_vision(vision))
    blueprint.add(
        "projector",
        towers.linear(4 * vision.positive("hidden_size"), blueprint.hidden, f.flag("projector_bias", False)),
    )
    return blueprint


def minimax_m3(f: Fields) -> Blueprint:
    """MiniMax-M3's text model: block-sparse attention chosen by a small indexer."""
    layers, hidden = f.positive("num_hidden_layers"), f.positive("hidden_size")
    raw_sparse = f.get("sparse_attention_config", None) or {}
    names = {
        "index_n_heads": "sparse_num_index_heads",
        "index_head_dim": "sparse_index_dim",
        "index_topk_blocks": "sparse_topk_blocks",
        "index_block_size": "sparse_block_size",
    }
    index = {own: int(raw_sparse[hub]) if hub in raw_sparse else f.positive(own) for own, hub in names.items()}
    f.ignore("index_local_blocks")
    kinds = [str(k) for k in f.many("layer_types")] or [
        "minimax_m3_sparse" if x else "full_attention" for x in raw_sparse.get("sparse_attention_freq", [])
    ]
    kinds = kinds or ["full_attention"] * layers
    frequency = f.many("moe_layer_freq") if f.get("moe_layer_freq", None) is not None else []
    mlp = (
        [str(k) for k in f.many("mlp_layer_types")]
        or ["sparse" if x else "dense" for x in frequency]
        or ["sparse"] * layers
    )
    f.expect("attention_output_gate", False)
    base = attention(f, qk_norm=True)
    f.expect("use_qk_norm", True)
    top_k = index["index_topk_blocks"] * index["index_block_size"]
    chosen = replace(
        base, index_heads=index["index_n_heads"], index_head_dim=index["index_head_dim"], index_top_k=top_k
    )
    # The class's indexer has two projections and two norms, no head weights.
    correction = 2 * index["index_head_dim"] - hidden * index["index_n_heads"]
    sparse = moe(
        f, "num_local_experts", "intermediate_size", shared_intermediate=f.positive("shared_intermediate_size")
    )
    plain = FeedForward("dense", f.positive("dense_intermediate_size"))
    f.ignore("first_k_dense_replace", "moe_intermediate_size", "n_shared_experts", "num_mtp_modules")
    blueprint = decoder(
        f,
        mixer=lambda i: chosen if kinds[i] == "minimax_m3_sparse" else base,
        mixer_extra=lambda i: correction if kinds[i] == "minimax_m3_sparse" else 0,
        feed_forward=lambda i: sparse if mlp[i] == "sparse" else plain,
    )
    blueprint.mtp_layers = f.optional("num_nextn_predict_layers")
    return blueprint


def nemotron_nas(f: Fields) -> Blueprint:
    """Llama-Nemotron (DeciLM): each block with its own key-value heads and feed-forward width, or without one of them."""
    hidden, heads = f.positive("hidden_size"), f.positive("num_attention_heads")
    f.ignore("intermediate_size", "num_key_value_heads", "num_hidden_layers")
    f.expect("attention_bias", False)
    f.expect("mlp_bias", False)
    blocks = []
    for i, config in enumerate(f.many("block_configs")):
        mixer_config, ff_config = config["attention"], config["ffn"]
        for part, known in ((mixer_config, "attention"), (ff_config, "ffn")):
            if (
                part.get("replace_with_linear")
                or part.get("sparsify")
                or part.get("unshifted_sink")
                or part.get("num_sink_tokens")
            ):
                raise Unsupported(
                    "linear, sparse or sink blocks are not understood", field=f.name(f"block_configs[{i}].{known}")
                )
        mixer, ff, norms = NO_MIXER, NONE, 0
        if not mixer_config.get("no_op"):
            kv = heads // int(mixer_config["n_heads_in_group"])
            mixer, norms = (
                Mixer("attention", heads, kv, hidden // heads, window=mixer_config.get("window_length") or 0),
                norms + hidden,
            )
        if not ff_config.get("no_op"):
            raw_width = int(2 * float(ff_config["ffn_mult"]) * hidden / 3)
            ff, norms = FeedForward("dense", -(-raw_width // 256) * 256), norms + hidden
        blocks.append(Block(mixer, ff, norms))
    return stack(f, hidden, blocks, tied=False)


FAMILIES = {
    "deepseek_v4": deepseek_v4,
    "deepseek_ref": deepseek_v4,
    "mimo_v2_flash": mimo_v2_flash,
    "step3p7": step3p7,
    "minimax_m3": minimax_m3,
    "minimax_m3_vl_text": minimax_m3,
    "nemotron-nas": nemotron_nas,
}
