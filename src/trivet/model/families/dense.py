"""Decoders with one dense feed-forward a layer: Llama and its many relatives."""

from __future__ import annotations

from dataclasses import replace

from trivet.model.architecture import FeedForward, Mixer
from trivet.model.blueprint import Block, Blueprint, attention, decoder, dense, windows
from trivet.model.fields import Fields


def llama(f: Fields) -> Blueprint:
    bias = f.flag("attention_bias", False)
    return decoder(
        f,
        mixer=attention(f, qkv_bias=bias, out_bias=bias),
        feed_forward=dense(f, bias=f.flag("mlp_bias", False)),
    )


def mistral(f: Fields) -> Blueprint:
    window = f.optional("sliding_window")
    return decoder(f, mixer=attention(f, window=window), feed_forward=dense(f))


def qwen2(f: Fields) -> Blueprint:
    layers = f.positive("num_hidden_layers")
    start = f.optional("max_window_layers")
    used = f.flag("use_sliding_window", False)
    wide = windows(f, layers, lambda i: "sliding_attention" if used and i >= start else "full_attention")
    base = attention(f, qkv_bias=True)
    return decoder(f, mixer=lambda i: _windowed(base, wide[i] if used else 0), feed_forward=dense(f))


def qwen3(f: Fields) -> Blueprint:
    layers = f.positive("num_hidden_layers")
    start = f.optional("max_window_layers")
    used = f.flag("use_sliding_window", False)
    bias = f.flag("attention_bias", False)
    wide = windows(f, layers, lambda i: "sliding_attention" if used and i >= start else "full_attention")
    base = attention(f, qkv_bias=bias, out_bias=bias, qk_norm=True)
    return decoder(f, mixer=lambda i: _windowed(base, wide[i] if used else 0), feed_forward=dense(f))


def _windowed(mixer: Mixer, window: int) -> Mixer:
    return replace(mixer, window=window)


def mimo(f: Fields) -> Blueprint:
    """MiMo-7B: Qwen2 with prediction heads, which are not counted."""
    blueprint = qwen2(f)
    blueprint.mtp_layers = f.optional("num_nextn_predict_layers")
    return blueprint


def mpt(f: Fields) -> Blueprint:
    """MPT: ALiBi, no biases by default, scale-only layer norms, tied head."""
    config = f.sub("attn_config", "mpt_attention") if f.get("attn_config", None) is not None else None
    heads, hidden = f.positive("n_heads"), f.positive("d_model")
    kv = heads
    qk_norm = 0
    if config is not None:
        kind = config.expect(
            "attn_type", "multihead_attention", "grouped_query_attention", "multiquery_attention"
        )
        if kind == "grouped_query_attention":
            kv = config.positive("kv_n_heads")
        elif kind == "multiquery_attention":
            kv = 1
        config.expect("qk_ln", False)
        for field in (
            "alibi",
            "alibi_bias_max",
            "attn_impl",
            "prefix_lm",
            "softmax_scale",
            "attn_uses_sequence_id",
            "clip_qkv",
            "rope",
        ):
            config.get(field, None)
    f.expect("no_bias", True)
    ratio = f.get("expansion_ratio")
    intermediate = int(hidden * ratio)
    alibi = bool(config.get("alibi", True)) if config is not None else True
    learned = f.flag("learned_pos_emb", True) and not alibi
    blocks_mixer = Mixer("attention", heads, kv, hidden // heads)
    layers, vocab, context = f.positive("n_layers"), f.positive("vocab_size"), f.optional("max_seq_len")
    blocks = [
        Block(blocks_mixer, FeedForward("dense", intermediate, gated=False), 2 * hidden, qk_norm)
        for _ in range(layers)
    ]
    blueprint = Blueprint(hidden, vocab, blocks, f.flag("tie_word_embeddings", True), context, hidden)
    if learned:
        blueprint.add("position", context * hidden)
    return blueprint


FAMILIES = {
    "llama": llama,
    "mistral": mistral,
    "qwen2": qwen2,
    "qwen3": qwen3,
    "mimo": mimo,
    "mpt": mpt,
}
