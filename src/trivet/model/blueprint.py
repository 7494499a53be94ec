"""A model while its config is being read: blocks in order, and parameters by component."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from trivet.errors import TrivetError
from trivet.model.architecture import Architecture, FeedForward, Layer, Mixer, Quantisation
from trivet.model.fields import Fields
from trivet.model.parameters import feed_forward_parameters, idle_parameters, mixer_parameters

T = TypeVar("T")
NONE = FeedForward("none")
NO_MIXER = Mixer("none")


@dataclass(frozen=True, slots=True)
class Block:
    """One layer: what mixes tokens, what mixes channels, and the parameters that neither describes."""

    mixer: Mixer = NO_MIXER
    feed_forward: FeedForward = NONE
    norms: int = 0
    mixer_extra: int = 0
    feed_forward_extra: int = 0
    router_extra: int = 0
    other: int = 0
    shared: bool = False  # its weights are those of an earlier block: computed, not counted


@dataclass
class Blueprint:
    """What a family's reader fills in. ``extra`` holds components outside the stack (``vision``, ``audio``, ``position``...)."""

    hidden: int
    vocab: int
    blocks: list[Block]
    tied: bool
    max_context: int = 0
    final_norm: int = 0
    head_bias: int = 0
    embedding: int = -1  # parameters of the token table; -1 = vocab x hidden
    head: int = -1  # parameters of an untied head; -1 = vocab x hidden
    extra: dict[str, int] = field(default_factory=dict)
    mtp_layers: int = 0
    encoder: bool = False
    notes: list[str] = field(default_factory=list)

    @property
    def has_vision(self) -> bool:
        return bool(self.extra.get("vision"))

    @property
    def has_audio(self) -> bool:
        return bool(self.extra.get("audio"))

    def add(self, component: str, amount: int) -> None:
        self.extra[component] = self.extra.get(component, 0) + amount

    def components(self) -> dict[str, int]:
        """Parameters by component; zero components are left out."""
        table = self.vocab * self.hidden
        found = {
            "embedding": table if self.embedding < 0 else self.embedding,
            "head": (0 if self.tied else (table if self.head < 0 else self.head)) + self.head_bias,
            "norms": self.final_norm,
        }

        def add(component: str, amount: int) -> None:
            found[component] = found.get(component, 0) + amount

        for block in self.blocks:
            if block.shared:
                add("other", block.other)
                continue
            name = "linear_attention" if block.mixer.kind == "scan" else "attention"
            add(name, mixer_parameters(self.hidden, block.mixer) + block.mixer_extra)
            for component, amount in feed_forward_parameters(self.hidden, block.feed_forward).items():
                add(component, amount)
            add("experts" if block.feed_forward.kind == "moe" else "dense", block.feed_forward_extra)
            add("router", block.router_extra)
            add("norms", block.norms)
            add("other", block.other)
        for component, amount in self.extra.items():
            add(component, amount)
        return {name: amount for name, amount in found.items() if amount}

    def architecture(self, name: str, model_type: str, quantisation: Quantisation) -> Architecture:
        """Freeze: identical layers become one entry with a count."""
        kinds: dict[tuple[Mixer, FeedForward], int] = {}
        counts: list[int] = []
        order: list[int] = []
        for block in self.blocks:
            index = kinds.setdefault((block.mixer, block.feed_forward), len(kinds))
            if index == len(counts):
                counts.append(0)
            counts[index] += 1
            order.append(index)
        components = self.components()
        below = [name for name, amount in components.items() if amount < 0]
        if below:
            raise TrivetError(
                f"sizes that contradict each other: {below[0]} would be negative", field=f"config of {model_type}"
            )
        total = sum(components.values())
        idle = sum(idle_parameters(self.hidden, block.feed_forward) for block in self.blocks if not block.shared)
        towers = sum(self.extra.get(tower, 0) for tower in ("vision", "audio", "projector"))
        layers = tuple(Layer(m, ff, count) for (m, ff), count in zip(kinds, counts, strict=True))
        return Architecture(
            name,
            model_type,
            self.hidden,
            self.vocab,
            layers,
            self.tied,
            self.max_context,
            quantisation,
            total,
            total - idle - towers,
            components,
            self.mtp_layers,
            self.has_vision,
            self.has_audio,
            tuple(self.notes),
            tuple(order),
            self.encoder,
        )


# --- what most decoders share ---------------------------------------------------------------------------------------


def each(value: T | Callable[[int], T], index: int) -> T:
    return value(index) if callable(value) else value


def attention(f: Fields, **changes: object) -> Mixer:
    """Grouped-query attention from the usual fields; ``changes`` override fields of ``Mixer``."""
    heads = f.positive("num_attention_heads")
    values: dict[str, object] = {"kind": "attention", "heads": heads}
    if "kv_heads" not in changes:
        values["kv_heads"] = f.optional("num_key_value_heads") or heads
    if "head_dim" not in changes:
        values["head_dim"] = f.optional("head_dim") or f.positive("hidden_size") // heads
    mixer = Mixer(**{**values, **changes})  # type: ignore[arg-type]
    if mixer.kv_heads and mixer.heads % mixer.kv_heads:
        raise TrivetError(
            f"{mixer.kv_heads} does not divide {mixer.heads} attention heads",
            field=f.name("num_key_value_heads"),
        )
    return mixer


def layer_types(f: Fields, layers: int, default: Callable[[int], str] | None = None) -> list[str]:
    """The kind of each layer as the config lists it, else by the family's rule."""
    given = [str(kind) for kind in f.many("layer_types")]
    if not given:
        return [default(i) if default else "full_attention" for i in range(layers)]
    if len(given) < layers:
        raise TrivetError(f"{len(given)} entries for {layers} layers", field=f.name("layer_types"))
    return given[:layers]


def windows(
    f: Fields, layers: int, default: Callable[[int], str] | None = None, size: str = "sliding_window"
) -> list[int]:
    """Sliding window of each layer, 0 where it sees everything."""
    width = f.optional(size)
    kinds = layer_types(f, layers, default)
    return [width if "sliding" in kind or "chunked" in kind else 0 for kind in kinds]


def norm_size(hidden: int, kind: str) -> int:
    """Parameters of one norm: "rms" (scale), "layer" (scale and shift), "none"."""
    return {"rms": hidden, "layer": 2 * hidden, "none": 0}[kind]


def decoder(
    f: Fields,
    *,
    mixer: Mixer | Callable[[int], Mixer],
    feed_forward: FeedForward | Callable[[int], FeedForward],
    norm: str = "rms",
    norms: int = 2,
    mixer_extra: int | Callable[[int], int] = 0,
    feed_forward_extra: int | Callable[[int], int] = 0,
    router_extra: int | Callable[[int], int] = 0,
    tied: bool | None = None,
    final_norm: bool = True,
    head_bias: bool = False,
    other: int | Callable[[int], int] = 0,
) -> Blueprint:
    """A stack of ``num_hidden_layers`` blocks between a token table and a head.

    Args:
        norms: norms of ``hidden`` size in each block.
        *_extra: parameters of a block that its description does not imply.
        tied: head shares the token table; default the field ``tie_word_embeddings``.
    """
    hidden, layers = f.positive("hidden_size"), f.positive("num_hidden_layers")
    vocab = f.positive("vocab_size")
    blocks = [
        Block(
            each(mixer, i),
            each(feed_forward, i),
            norms * norm_size(hidden, norm),
            each(mixer_extra, i),
            each(feed_forward_extra, i),
            each(router_extra, i),
            each(other, i),
        )
        for i in range(layers)
    ]
    return Blueprint(
        hidden,
        vocab,
        blocks,
        f.flag("tie_word_embeddings", True) if tied is None else tied,
        f.optional("max_position_embeddings"),
        norm_size(hidden, norm) if final_norm else 0,
        vocab if head_bias else 0,
    )


def stack(f: Fields, hidden: int, blocks: list[Block], *, tied: bool, notes: Sequence[str] = ()) -> Blueprint:
    """Blocks of any kind between a token table and a head; ``tied``: what it is where the config does not say."""
    return Blueprint(
        hidden,
        f.positive("vocab_size"),
        blocks,
        f.flag("tie_word_embeddings", tied),
        f.optional("max_position_embeddings"),
        hidden,
        notes=list(notes),
    )


def dense(f: Fields, **changes: object) -> FeedForward:
    """A gated feed-forward from the usual field; ``changes`` override fields of ``FeedForward``."""
    values: dict[str, object] = {"kind": "dense"}
    if "intermediate" not in changes:
        values["intermediate"] = f.positive("intermediate_size")
    return FeedForward(**{**values, **changes})  # type: ignore[arg-type]
