"""Bidirectional encoders (embedding models) and encoder-decoders: BERT, RoBERTa, ModernBERT, T5, Whisper."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from trivet.errors import Unsupported
from trivet.model.architecture import FeedForward, Mixer
from trivet.model.blueprint import Block, Blueprint, attention, decoder, dense, layer_types
from trivet.model.families.towers import encoder_block, linear, whisper_encoder
from trivet.model.fields import Fields

Reader = Callable[[Fields], Blueprint]


def _class(f: Fields) -> str:
    """The class that ``architectures`` names: these families come with a pooler, with a head or with neither."""
    names = f.raw.get("architectures") or []
    if not names:
        raise Unsupported(
            "needed to know whether there is a pooler or a head",
            field=f.name("architectures"),
            allowed='e.g. ["BertModel"]',
        )
    return str(names[0])


def _masked_head(hidden: int) -> int:
    return linear(hidden, hidden) + 2 * hidden


def bert(f: Fields) -> Blueprint:
    """BERT, RoBERTa, XLM-RoBERTa, CamemBERT: post-norm blocks with biases, learned positions and segments."""
    kind, hidden = _class(f), f.positive("hidden_size")
    heads = f.positive("num_attention_heads")
    f.expect("position_embedding_type", "absolute")
    f.expect("add_cross_attention", False)
    f.ignore("classifier_dropout", "gradient_checkpointing")
    mixer = Mixer("attention", heads, heads, hidden // heads, qkv_bias=True, out_bias=True)
    blueprint = decoder(
        f, mixer=mixer, feed_forward=dense(f, gated=False, bias=True), norm="layer", tied=True, final_norm=False
    )
    f.ignore("tie_word_embeddings")
    blueprint.encoder = True
    positions, segments = f.positive("max_position_embeddings"), f.whole("type_vocab_size", 0)
    blueprint.add("position", (positions + segments) * hidden)
    blueprint.final_norm = 2 * hidden
    if kind.endswith("Model") and not kind.endswith("LMHeadModel"):
        blueprint.add("pooler", linear(hidden, hidden))
    elif kind.endswith(("ForMaskedLM", "LMHeadModel", "ForCausalLM")):
        blueprint.add("head", _masked_head(hidden) + blueprint.vocab)
    elif kind == "BertForPreTraining":
        blueprint.add("head", _masked_head(hidden) + blueprint.vocab + linear(hidden, 2) + linear(hidden, hidden))
    return blueprint


def distilbert(f: Fields) -> Blueprint:
    kind, hidden = _class(f), f.positive("dim")
    heads = f.positive("n_heads")
    mixer = Mixer("attention", heads, heads, hidden // heads, qkv_bias=True, out_bias=True)
    ff = FeedForward("dense", f.positive("hidden_dim"), gated=False, bias=True)
    blocks = [Block(mixer, ff, 4 * hidden)] * f.positive("n_layers")
    vocab = f.positive("vocab_size")
    f.expect("sinusoidal_pos_embds", False, None)
    f.ignore("activation", "qa_dropout", "seq_classif_dropout", "tie_weights_", "tie_word_embeddings")
    blueprint = Blueprint(hidden, vocab, blocks, True, f.positive("max_position_embeddings"), 2 * hidden, encoder=True)
    blueprint.add("position", f.positive("max_position_embeddings") * hidden)
    if kind.endswith("ForMaskedLM"):
        blueprint.add("head", _masked_head(hidden) + vocab)
    return blueprint


def modernbert(f: Fields) -> Blueprint:
    """ModernBERT and its decoder: gated feed-forward, windows in two of three layers, no norm before the first attention."""
    is_decoder = f.model_type == "modernbert-decoder"
    kind = "ForCausalLM" if is_decoder and not f.raw.get("architectures") else _class(f)
    hidden, layers = f.positive("hidden_size"), f.positive("num_hidden_layers")
    bias, norm = f.flag("attention_bias"), hidden * (2 if f.flag("norm_bias") else 1)
    every = f.optional("global_attn_every_n_layers") or 3
    kinds = layer_types(f, layers, lambda i: "sliding_attention" if i % every else "full_attention")
    base = attention(f, qkv_bias=bias, out_bias=bias, head_dim=hidden // f.positive("num_attention_heads"))
    f.ignore("num_key_value_heads")
    ff = dense(f, bias=f.flag("mlp_bias"))
    window = f.optional("local_attention")
    blocks = [
        Block(replace(base, window=window if "sliding" in kinds[i] else 0), ff, norm * (2 if i else 1))
        for i in range(layers)
    ]
    f.ignore(
        "classifier_activation",
        "classifier_bias",
        "classifier_pooling",
        "deterministic_flash_attn",
        "sparse_prediction",
        "sparse_pred_ignore_index",
        "embedding_dropout",
        "mlp_dropout",
        "reference_compile",
        "repad_logits_with_grad",
    )
    vocab = f.positive("vocab_size")
    headed = kind.endswith(("ForMaskedLM", "ForCausalLM"))
    tied = f.flag("tie_word_embeddings", True) or not headed
    blueprint = Blueprint(
        hidden, vocab, blocks, tied, f.optional("max_position_embeddings"), 2 * norm, encoder=not is_decoder
    )
    if headed:
        blueprint.add("head", hidden * hidden + (hidden if f.flag("classifier_bias") else 0) + norm)
        blueprint.add("head", vocab if f.flag("decoder_bias") else 0)
    else:
        f.ignore("decoder_bias")
    return blueprint


def t5(f: Fields) -> Blueprint:
    """T5, mT5, UMT5: the decoder is the stack; the encoder and the attention to it are counted, not turned into operators."""
    hidden, dim, heads, width = (f.positive(n) for n in ("d_model", "d_kv", "num_heads", "d_ff"))
    layers = f.positive("num_layers")
    decoder_layers = f.optional("num_decoder_layers") or layers
    given = str(f.get("feed_forward_proj"))
    gated = given.startswith("gated")
    own_bias = f.model_type == "umt5"  # every layer has its own table of relative positions
    buckets = f.positive("relative_attention_num_buckets") * heads
    f.ignore(
        "relative_attention_max_distance",
        "dense_act_fn",
        "is_gated_act",
        "classifier_dropout",
        "n_positions",
        "output_past",
    )
    mixer = Mixer("attention", heads, heads, dim)
    ff = FeedForward("dense", width, gated=gated)
    cross = 4 * hidden * heads * dim + hidden
    blocks = [
        Block(mixer, ff, 2 * hidden, other=cross + (buckets if own_bias or i == 0 else 0))
        for i in range(decoder_layers)
    ]
    vocab = f.positive("vocab_size")
    # Versions of the classes differ in whether an untied head of T5 1.1 is built.
    f.expect("tie_word_embeddings", True, None)
    blueprint = Blueprint(hidden, vocab, blocks, True, 0, hidden)
    one = 4 * hidden * heads * dim + hidden * width * (3 if gated else 2) + 2 * hidden
    blueprint.add("encoder", layers * (one + (buckets if own_bias else 0)) + (0 if own_bias else buckets) + hidden)
    blueprint.notes.append("operators of the decoder without its attention to the encoder")
    return blueprint


def whisper(f: Fields) -> Blueprint:
    hidden, heads, width = f.positive("d_model"), f.positive("decoder_attention_heads"), f.positive("decoder_ffn_dim")
    encoder = whisper_encoder(f)
    mixer = Mixer("attention", heads, heads, hidden // heads, qkv_bias=True, out_bias=True)
    ff = FeedForward("dense", width, gated=False, bias=True)
    cross = 3 * linear(hidden, hidden) + hidden * hidden + 2 * hidden
    blocks = [Block(mixer, ff, 4 * hidden, -hidden, other=cross)] * f.positive("decoder_layers")  # keys have no bias
    blueprint = Blueprint(
        hidden,
        f.positive("vocab_size"),
        blocks,
        f.flag("tie_word_embeddings", True),
        f.positive("max_target_positions"),
        2 * hidden,
    )
    blueprint.add("position", f.positive("max_target_positions") * hidden)
    blueprint.add("audio", encoder)
    blueprint.notes.append("operators of the decoder without its attention to the audio")
    return blueprint


# For each encoder-decoder: rows added to the position tables (None: no parameters), a norm after the embedding, a last norm.
_BART_LIKE: dict[str, tuple[int | None, bool, bool]] = {
    "bart": (2, True, False),
    "mbart": (2, True, True),
    "plbart": (2, True, False),
    "pegasus": (0, False, True),
    "marian": (0, False, False),
    "blenderbot": (0, False, True),
    "blenderbot-small": (0, True, False),
    "m2m_100": (None, False, True),
}


def bart(f: Fields) -> Blueprint:
    """BART and relatives: the decoder is the stack; the encoder and the attention to it are counted."""
    kind = _class(f)
    if not kind.endswith(("ForConditionalGeneration", "MTModel")):
        raise Unsupported(
            f"{kind} is not understood", field=f.name("architectures"), allowed="the class for generation"
        )
    offset, embedding_norm, last_norm = _BART_LIKE[f.model_type]
    hidden, heads = f.positive("d_model"), f.positive("decoder_attention_heads")
    mixer = Mixer("attention", heads, heads, hidden // heads, qkv_bias=True, out_bias=True)
    ff = FeedForward("dense", f.positive("decoder_ffn_dim"), gated=False, bias=True)
    cross = 4 * linear(hidden, hidden) + 2 * hidden
    blocks = [Block(mixer, ff, 4 * hidden, other=cross)] * f.positive("decoder_layers")
    f.expect("share_encoder_decoder_embeddings", True)
    if f.model_type == "marian":
        f.expect("tie_word_embeddings", True)
    f.ignore(
        "encoder_attention_heads",
        "decoder_vocab_size",
        "classifier_dropout",
        "forced_eos_token_id",
        "normalize_embedding",
    )
    f.expect("is_encoder_decoder", True)
    norms = 2 * hidden * (embedding_norm + last_norm)
    blueprint = Blueprint(
        hidden,
        f.positive("vocab_size"),
        blocks,
        f.flag("tie_word_embeddings", True),
        f.positive("max_position_embeddings"),
        norms,
    )
    if not blueprint.tied:  # shared table, encoder's, decoder's and head are then four
        blueprint.add("embedding", 2 * blueprint.vocab * hidden)
    positions = 0 if offset is None else (f.positive("max_position_embeddings") + offset) * hidden
    blueprint.add("position", positions)
    encoder = f.positive("encoder_layers") * encoder_block(hidden, f.positive("encoder_ffn_dim"))
    blueprint.add("encoder", encoder + norms + positions)
    blueprint.notes.append("operators of the decoder without its attention to the encoder")
    return blueprint


FAMILIES: dict[str, Reader] = {
    "bert": bert,
    "roberta": bert,
    "xlm-roberta": bert,
    "camembert": bert,
    "distilbert": distilbert,
    "modernbert": modernbert,
    "modernbert-decoder": modernbert,
    "t5": t5,
    "mt5": t5,
    "umt5": t5,
    "whisper": whisper,
    **dict.fromkeys(_BART_LIKE, bart),
}
