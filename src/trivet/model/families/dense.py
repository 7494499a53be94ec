"""Decoders with one dense feed-forward a layer: Llama and its many relatives."""

from __future__ import annotations

from dataclasses import replace

from trivet.errors import Unsupported
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
    f.expect("attention_bias", True)
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
        kind = config.expect("attn_type", "multihead_attention", "grouped_query_attention", "multiquery_attention")
        if kind == "grouped_query_attention":
            kv = config.positive("kv_n_heads")
        elif kind == "multiquery_attention":
            kv = 1
        config.expect("qk_ln", False)
        config.read.update(config.raw)
    f.expect("no_bias", True)
    f.expect("expansion_ratio", 4)  # the class knows no other
    intermediate = 4 * hidden
    alibi = bool(config.get("alibi", True)) if config is not None else True
    learned = f.flag("learned_pos_emb", True) and not alibi
    blocks_mixer = Mixer("attention", heads, kv, hidden // heads)
    layers, vocab, context = f.positive("n_layers"), f.positive("vocab_size"), f.optional("max_seq_len")
    blocks = [
        Block(blocks_mixer, FeedForward("dense", intermediate, gated=False), 2 * hidden, qk_norm) for _ in range(layers)
    ]
    blueprint = Blueprint(hidden, vocab, blocks, f.flag("tie_word_embeddings", True), context, hidden)
    if learned:
        blueprint.add("position", context * hidden)
    return blueprint


def gpt_bigcode(f: Fields) -> Blueprint:
    """StarCoder: multi-query attention, learned positions, biases everywhere."""
    hidden = f.positive("hidden_size")
    heads = f.positive("num_attention_heads")
    kv = 1 if f.flag("multi_query") else heads
    mixer = Mixer("attention", heads, kv, hidden // heads, qkv_bias=True, out_bias=True)
    intermediate = f.optional("n_inner") or 4 * hidden
    blueprint = decoder(
        f,
        mixer=mixer,
        feed_forward=dense(f, intermediate=intermediate, gated=False, bias=True),
        norm="layer",
    )
    blueprint.add("position", f.positive("max_position_embeddings") * hidden)
    return blueprint


def opt(f: Fields) -> Blueprint:
    hidden, layers = f.positive("hidden_size"), f.positive("num_hidden_layers")
    bias, affine = f.flag("enable_bias"), f.flag("layer_norm_elementwise_affine")
    heads, before = f.positive("num_attention_heads"), f.flag("do_layer_norm_before")
    mixer = Mixer("attention", heads, heads, hidden // heads, qkv_bias=bias, out_bias=bias)
    ff = FeedForward("dense", f.positive("ffn_dim"), gated=False, bias=bias)
    norm = 2 * hidden if affine else 0
    width, vocab = f.optional("word_embed_proj_dim") or hidden, f.positive("vocab_size")
    final = norm if before and not f.flag("_remove_final_layer_norm", False) else 0
    blueprint = Blueprint(
        hidden,
        vocab,
        [Block(mixer, ff, 2 * norm)] * layers,
        f.flag("tie_word_embeddings", True),
        f.positive("max_position_embeddings"),
        final,
        embedding=vocab * width,
        head=vocab * width,
    )
    blueprint.add("position", (f.positive("max_position_embeddings") + 2) * hidden)
    if width != hidden:
        blueprint.add("projection", 2 * width * hidden)
    return blueprint


def bloom(f: Fields) -> Blueprint:
    if f.given("n_embed"):  # published configs spell the hidden size so
        f.raw = {**f.raw, "hidden_size": f.raw["n_embed"]}
    hidden, heads = f.positive("hidden_size"), f.positive("num_attention_heads")
    mixer = Mixer("attention", heads, heads, hidden // heads, qkv_bias=True, out_bias=True)
    blueprint = decoder(
        f,
        mixer=mixer,
        feed_forward=dense(f, intermediate=4 * hidden, gated=False, bias=True),
        norm="layer",
    )
    blueprint.final_norm += 2 * hidden  # the norm after the token table
    return blueprint


def falcon(f: Fields) -> Blueprint:
    """Falcon: old decoder (7B: multi-query, one norm), new decoder (40B, 180B: grouped queries, two norms)."""
    hidden, heads, bias = f.positive("hidden_size"), f.positive("num_attention_heads"), f.flag("bias")
    new, multi, parallel = f.flag("new_decoder_architecture"), f.flag("multi_query"), f.flag("parallel_attn")
    f.flag("alibi", False)
    kv = f.optional("num_kv_heads") or heads
    if not new:
        kv = 1 if multi else heads
    mixer = Mixer("attention", heads, kv, hidden // heads, qkv_bias=bias, out_bias=bias)
    norms = f.optional("num_ln_in_parallel_attn") or (2 if new else 1)
    if not new:
        norms = 1 if parallel else 2
    elif norms not in (1, 2):
        norms = 1
    ff = dense(f, intermediate=f.optional("ffn_hidden_size") or 4 * hidden, gated=False, bias=bias)
    return decoder(f, mixer=mixer, feed_forward=ff, norm="layer", norms=norms)


def helium(f: Fields) -> Blueprint:
    """Llama with an output product of hidden size and without its bias."""
    base = attention(f, qkv_bias=f.flag("attention_bias"))
    if base.heads * base.head_dim != f.positive("hidden_size"):
        raise Unsupported("heads times head_dim must be hidden_size", field=f.name("head_dim"))
    return decoder(f, mixer=base, feed_forward=dense(f, bias=f.flag("mlp_bias")))


def bitnet(f: Fields) -> Blueprint:
    """Ternary Llama with a norm inside each half of the block."""
    bias, hidden = f.flag("attention_bias"), f.positive("hidden_size")
    ff = dense(f)
    return decoder(
        f,
        mixer=attention(f, qkv_bias=bias, out_bias=bias),
        feed_forward=ff,
        mixer_extra=hidden,
        feed_forward_extra=ff.intermediate,
    )


def diffllama(f: Fields) -> Blueprint:
    """Differential attention: four learned vectors a layer."""
    bias = f.flag("attention_bias")
    base = attention(f, qkv_bias=bias, out_bias=bias)
    return decoder(f, mixer=base, feed_forward=dense(f), mixer_extra=4 * base.head_dim)


def granite_swa(f: Fields) -> Blueprint:
    bias, layers = f.flag("attention_bias"), f.positive("num_hidden_layers")
    wide = windows(f, layers, lambda i: "sliding_attention" if i % 4 else "full_attention")
    base = attention(f, qkv_bias=bias, out_bias=bias, sinks=True)
    return decoder(f, mixer=lambda i: _windowed(base, wide[i]), feed_forward=dense(f, bias=f.flag("mlp_bias")))


def hyperclovax(f: Fields) -> Blueprint:
    bias = f.flag("attention_bias")
    return decoder(
        f,
        mixer=attention(f, qkv_bias=bias, out_bias=bias),
        feed_forward=dense(f, bias=f.flag("mlp_bias")),
        norms=4 if f.flag("use_post_norm") else 2,
    )


def stablelm(f: Fields) -> Blueprint:
    """StableLM: layer norms; one of them with a parallel residual; optionally one (scale only) for every head."""
    base = attention(f, qkv_bias=f.flag("use_qkv_bias"))
    extra = (base.heads + base.kv_heads) * base.head_dim if f.flag("qk_layernorm") else 0
    norms = 1 if f.flag("use_parallel_residual") else 2
    return decoder(f, mixer=base, feed_forward=dense(f), norm="layer", norms=norms, mixer_extra=extra)


FAMILIES = {
    "llama": llama,
    "mistral": mistral,
    "qwen2": qwen2,
    "qwen3": qwen3,
    "mimo": mimo,
    "mpt": mpt,
    "gpt_bigcode": gpt_bigcode,
    "opt": opt,
    "bloom": bloom,
    "falcon": falcon,
    "helium": helium,
    "bitnet": bitnet,
    "diffllama": diffllama,
    "granite_swa": granite_swa,
    "hyperclovax": hyperclovax,
    "stablelm": stablelm,
}
