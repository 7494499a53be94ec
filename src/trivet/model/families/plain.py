"""Decoders that differ from Llama only in biases, norms, gates and position tables: one line of description each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from trivet.model.architecture import FeedForward, Mixer
from trivet.model.blueprint import Blueprint, attention, decoder, dense, layer_types
from trivet.model.fields import Fields

Switch = bool | str  # a constant, or the field that decides


@dataclass(frozen=True, slots=True)
class Style:
    """How a family's block looks.

    ``qk_norm``: "" none, "head" one scale per head channel, "full" one over all heads, "head_layer" layer norm (scale and
    shift) per head channel, "each" a scale for every head. ``window``: rule for layers without ``layer_types``.
    """

    qkv_bias: Switch = False
    out_bias: Switch = False
    mlp_bias: Switch = False
    gated: bool = True
    norm: str = "rms"
    norms: int = 2
    qk_norm: str = ""
    qk_norm_field: str = ""  # the field that switches qk_norm on
    positions: str = ""  # field with the length of a learned position table
    position_offset: int = 0
    head_bias: Switch = False
    intermediate: str = "intermediate_size"
    intermediate_times: int = 0  # feed-forward width when its field is absent or null, in hiddens
    kv_heads: int = 0  # 0 = read it
    head_dim_from_hidden: bool = False
    tied: bool | None = None
    extra: int = 0  # further parameters of a block
    ignored: tuple[str, ...] = ()  # fields of the class that change no shape
    window: Callable[[Fields, int], str] | None = None


def _on(f: Fields, switch: Switch) -> bool:
    return f.flag(switch) if isinstance(switch, str) else switch


def qk_norm_size(kind: str, m: Mixer) -> int:
    """Parameters of the norms on queries and keys."""
    both = m.heads + m.kv_heads
    return {
        "": 0,
        "head": 2 * m.head_dim,
        "head_layer": 4 * m.head_dim,
        "full": both * m.head_dim,
        "each": both * m.head_dim,
    }[kind]


def plain_feed_forward(f: Fields, style: Style) -> FeedForward:
    """The dense feed-forward of a style."""
    width = f.optional(style.intermediate) or style.intermediate_times * f.positive("hidden_size")
    return dense(
        f, intermediate=width or f.positive(style.intermediate), gated=style.gated, bias=_on(f, style.mlp_bias)
    )


def read_style(
    f: Fields,
    style: Style,
    feed_forward: FeedForward | Callable[[int], FeedForward] | None = None,
    *,
    feed_forward_extra: int | Callable[[int], int] = 0,
    router_extra: int | Callable[[int], int] = 0,
    mixer_extra: int = 0,
) -> Blueprint:
    """Read a family of the given style; ``feed_forward`` replaces the dense one that the style describes."""
    changes: dict[str, object] = {"qkv_bias": _on(f, style.qkv_bias), "out_bias": _on(f, style.out_bias)}
    hidden = f.positive("hidden_size")
    if style.kv_heads < 0:
        changes["kv_heads"] = f.positive("num_attention_heads")
    elif style.kv_heads:
        changes["kv_heads"] = style.kv_heads
    if style.head_dim_from_hidden:
        changes["head_dim"] = hidden // f.positive("num_attention_heads")
    base = attention(f, **changes)
    kind = style.qk_norm if not style.qk_norm_field or f.flag(style.qk_norm_field, False) else ""
    if kind == "head":
        base = replace(base, qk_norm=True)
    extra = 0 if kind == "head" else qk_norm_size(kind, base)
    f.ignore(*style.ignored, "sliding_window_pattern")
    layers = f.positive("num_hidden_layers")
    width = f.optional("sliding_window")
    rule = style.window
    kinds = layer_types(f, layers, (lambda i: rule(f, i)) if rule else None)
    blueprint = decoder(
        f,
        mixer=lambda i: replace(base, window=width) if "sliding" in kinds[i] else base,
        feed_forward=plain_feed_forward(f, style) if feed_forward is None else feed_forward,
        norm=style.norm,
        norms=style.norms,
        mixer_extra=extra + mixer_extra,
        feed_forward_extra=feed_forward_extra,
        router_extra=router_extra,
        tied=style.tied,
        head_bias=_on(f, style.head_bias),
        other=style.extra,
    )
    if style.positions:
        table = (f.positive(style.positions) + style.position_offset) * hidden
        blueprint.add("position", table)
        blueprint.max_context = f.positive(style.positions)
    return blueprint


def _every(field: str, default: int, wide_last: bool = True) -> Callable[[Fields, int], str]:
    """Every n-th layer sees everything, the others a window."""

    def rule(f: Fields, i: int) -> str:
        pattern = f.get(field, None)
        if isinstance(pattern, str):  # "LLLG": local and global in turn
            return "full_attention" if pattern[i % len(pattern)] == "G" else "sliding_attention"
        return "full_attention" if (i + 1) % (f.optional(field) or default) == 0 else "sliding_attention"

    return rule


def _always(f: Fields, i: int) -> str:
    return "sliding_attention"


_LLAMA = Style("attention_bias", "attention_bias", "mlp_bias")
_GPT = Style(
    True,
    True,
    True,
    gated=False,
    norm="layer",
    positions="max_position_embeddings",
    intermediate_times=4,
    kv_heads=-1,
    head_dim_from_hidden=True,
)
_GPTJ = Style(
    False,
    False,
    True,
    gated=False,
    norm="layer",
    norms=1,
    head_bias=True,
    intermediate="n_inner",
    intermediate_times=4,
    kv_heads=-1,
    head_dim_from_hidden=True,
)
STYLES: dict[str, Style] = {
    "ministral": Style(window=_always),
    "ministral3": Style(),
    "gemma": Style("attention_bias", "attention_bias"),
    "gemma2": Style("attention_bias", "attention_bias", norms=4, window=_every("sliding_window_pattern", 2)),
    "gemma3_text": Style(
        "attention_bias", "attention_bias", norms=4, qk_norm="head", window=_every("sliding_window_pattern", 6)
    ),
    "vaultgemma": Style("attention_bias", "attention_bias", window=_every("sliding_window_pattern", 2)),
    "phi": Style(
        True,
        True,
        True,
        gated=False,
        norm="layer",
        norms=1,
        qk_norm="head_layer",
        qk_norm_field="qk_layernorm",
        head_bias=True,
    ),
    "phi3": Style(),
    "gpt2": replace(_GPT, intermediate="n_inner"),
    "gpt-sw3": replace(_GPT, intermediate="n_inner"),
    "gpt_neo": replace(_GPT, qkv_bias=False),
    "gpt_neox": Style(
        "attention_bias",
        "attention_bias",
        True,
        gated=False,
        norm="layer",
        ignored=("use_parallel_residual",),
        kv_heads=-1,
        head_dim_from_hidden=True,
    ),
    "gptj": _GPTJ,
    "codegen": _GPTJ,
    "stablelm": Style("use_qkv_bias", norm="layer"),
    "starcoder2": Style("use_bias", "use_bias", "use_bias", gated=False, norm="layer"),
    "cohere": Style("attention_bias", "attention_bias", norms=1, qk_norm="each", qk_norm_field="use_qk_norm"),
    "cohere2": Style("attention_bias", "attention_bias", norms=1, window=_every("sliding_window_pattern", 4)),
    "olmo": Style("attention_bias", "attention_bias", norm="none"),
    "olmo2": Style("attention_bias", "attention_bias", qk_norm="full"),
    "olmo3": Style("attention_bias", "attention_bias", qk_norm="full", window=_every("sliding_window_pattern", 4)),
    "exaone4": Style(qk_norm="head", window=_every("sliding_window_pattern", 4)),
    "glm": Style("attention_bias"),
    "glm4": Style("attention_bias", norms=4),
    "smollm3": replace(_LLAMA, ignored=("no_rope_layer_interval", "use_sliding_window")),
    "granite": _LLAMA,
    "nemotron": Style("attention_bias", "attention_bias", "mlp_bias", gated=False, norm="layer"),
    "persimmon": Style(
        True,
        True,
        True,
        gated=False,
        norm="layer",
        qk_norm="head_layer",
        qk_norm_field="qk_layernorm",
        kv_heads=-1,
        head_dim_from_hidden=True,
    ),
    "seed_oss": Style("attention_bias", "attention_out_bias", "mlp_bias"),
    "apertus": Style("attention_bias", "attention_bias", gated=False, qk_norm="head", extra=2),
    "arcee": Style("attention_bias", "attention_bias", "mlp_bias", gated=False),
    "hunyuan_v1_dense": Style("attention_bias", "attention_bias", qk_norm="head"),
    "ernie4_5": Style("use_bias", "use_bias", "use_bias"),
    "cwm": Style(),
    "jais2": Style("attention_bias", "attention_bias", "mlp_bias", gated=False, norm="layer"),
    "hyperclovax": _LLAMA,
    "xglm": replace(_GPT, positions="", intermediate="ffn_dim", intermediate_times=0),
    "biogpt": replace(_GPT, position_offset=2, intermediate_times=0),
    "internlm3": Style("qkv_bias", "bias", "bias"),
    "iquestcoder": _LLAMA,
    "nanochat": Style("attention_bias", "attention_bias", gated=False, norm="none"),
    "granite_swa": _LLAMA,
    "bitnet": Style("attention_bias", "attention_bias"),
    "diffllama": Style("attention_bias", "attention_bias"),
}


def _reader(style: Style) -> Callable[[Fields], Blueprint]:
    return lambda f: read_style(f, style)


FAMILIES = {name: _reader(style) for name, style in STYLES.items()}
