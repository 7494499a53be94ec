"""How a model is split over chips, and the batch that one step carries."""

from __future__ import annotations

from dataclasses import dataclass, replace

from trivet.errors import DoesNotFit
from trivet.model.architecture import Architecture, Mixer
from trivet.operators import Number


@dataclass(frozen=True, slots=True)
class Layout:
    """Parallelism of one replica. ``chips = pp * cp * attention_dp * tp``; experts are split ``moe_tp * moe_ep`` over
    the ``tp * attention_dp * cp`` chips of a stage. ``dcp`` (decode-context parallel) reuses the chips of ``tp``.
    """

    tp: int = 1
    pp: int = 1
    attention_dp: int = 1
    moe_tp: int = 1
    moe_ep: int = 1
    cp: int = 1
    dcp: int = 1
    sequence_parallel: bool = False
    expert_skew: float = 1.0  # hottest chip's expert load over the mean
    expert_zipf: float | None = None  # instead: popularity of experts, from which the skew by tokens (``expert_load``)
    redundant_experts: int = 0  # further copies of popular experts, of every layer

    def __post_init__(self) -> None:
        for name in ("tp", "pp", "attention_dp", "moe_tp", "moe_ep", "cp", "dcp"):
            value = getattr(self, name)
            if value < 1 or value != int(value):
                raise DoesNotFit(f"{value} is not a positive whole number", field=name)
        if self.expert_skew < 1.0:
            raise DoesNotFit(f"{self.expert_skew} is below 1", field="expert_skew")
        if self.expert_zipf is not None and not self.expert_zipf >= 0.0:
            raise DoesNotFit(f"{self.expert_zipf} is below 0", field="expert_zipf")
        if self.redundant_experts < 0:
            raise DoesNotFit(f"{self.redundant_experts} is below 0", field="redundant_experts")

    @property
    def chips(self) -> int:
        return self.tp * self.pp * self.attention_dp * self.cp

    @property
    def chips_per_stage(self) -> int:
        return self.tp * self.attention_dp * self.cp


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """One step of one attention-DP rank; every field may be an array (a grid of batches).

    Prefill: ``prefill_sequences`` chunks of ``prefill_tokens`` new tokens each, after ``prefill_past`` cached tokens.
    Decode: ``decode_sequences`` with a mean of ``decode_context`` cached tokens, ``decode_tokens`` new ones each
    (1, or 1 + draft length when speculating). ``logits``: rows that go through the head (default: one per sequence).
    """

    prefill_sequences: Number = 0.0
    prefill_tokens: Number = 0.0
    prefill_past: Number = 0.0
    decode_sequences: Number = 0.0
    decode_context: Number = 0.0
    decode_tokens: Number = 1.0
    logits: Number | None = None

    @property
    def tokens(self) -> Number:
        return self.prefill_sequences * self.prefill_tokens + self.decode_sequences * self.decode_tokens

    @property
    def head_rows(self) -> Number:
        return (
            self.prefill_sequences + self.decode_sequences * self.decode_tokens if self.logits is None else self.logits
        )


def _divides(field: str, ways: int, amount: int, what: str) -> None:
    if amount % ways:
        allowed = [str(d) for d in range(1, amount + 1) if amount % d == 0]
        shown = allowed if len(allowed) <= 12 else [*allowed[:11], "..."]
        raise DoesNotFit(f"{ways} does not divide {amount} {what}", field=field, allowed=shown)


def _check_mixer(mixer: Mixer, layout: Layout) -> None:
    if mixer.kind in ("attention", "mla", "compressed"):
        _divides("tp", layout.tp, mixer.heads, "attention heads")
        kv, tp = mixer.kv_heads, layout.tp
        if mixer.kind == "attention" and kv % tp and tp % kv:
            good = [str(d) for d in range(1, mixer.heads + 1) if mixer.heads % d == 0 and (kv % d == 0 or d % kv == 0)]
            raise DoesNotFit(
                f"{tp} neither divides nor is a multiple of {kv} key-value heads", field="tp", allowed=good
            )
        copies = tp if mixer.kind in ("mla", "compressed") else max(1, tp // kv)
        if layout.dcp > 1:
            _divides("dcp", layout.dcp, copies, "copies of the KV cache that tp keeps")
    elif mixer.kind == "scan":
        _divides("tp", layout.tp, mixer.value_heads, f"{mixer.scan_kind} heads")


def resolve(architecture: Architecture, layout: Layout) -> Layout:
    """The layout with ``moe_tp`` filled in, checked against the model.

    A mixture of experts whose layout names neither ``moe_tp`` nor ``moe_ep`` is cut by tensor parallelism over all chips
    of the stage, as engines do without expert parallelism. Raises DoesNotFit naming the field and what is allowed.
    """
    moe = [layer.feed_forward for layer in architecture.layers if layer.feed_forward.kind == "moe"]
    if moe and layout.moe_tp * layout.moe_ep == 1 and layout.chips_per_stage > 1:
        layout = replace(layout, moe_tp=layout.chips_per_stage)
    if moe and layout.moe_tp * layout.moe_ep != layout.chips_per_stage:
        raise DoesNotFit(
            f"moe_tp {layout.moe_tp} x moe_ep {layout.moe_ep} is not tp x attention_dp x cp",
            field="moe_tp",
            allowed=f"a product of {layout.chips_per_stage}",
        )
    if layout.pp > architecture.num_layers:
        raise DoesNotFit(
            f"{layout.pp} stages, {architecture.num_layers} layers",
            field="pp",
            allowed=f"1 to {architecture.num_layers}",
        )
    for layer in architecture.layers:
        _check_mixer(layer.mixer, layout)
        feed_forward = layer.feed_forward
        if feed_forward.kind == "dense":
            _divides("tp", layout.tp, feed_forward.intermediate, "feed-forward columns")
        if feed_forward.kind == "moe":
            _divides(
                "moe_ep",
                layout.moe_ep,
                feed_forward.experts + layout.redundant_experts,
                "experts, redundant ones included",
            )
            _divides("moe_tp", layout.moe_tp, feed_forward.expert_intermediate, "expert columns")
            if feed_forward.shared_intermediate:
                _divides("tp", layout.tp, feed_forward.shared_intermediate, "shared-expert columns")
    return layout


def stage_layers(num_layers: int, pp: int) -> tuple[range, ...]:
    """Layers of each pipeline stage: equal parts, what is left over goes one each to the last stages but the very last
    (it has the head), as vLLM cuts."""
    sizes = [num_layers // pp] * pp
    for i in range(2, num_layers % pp + 2):
        sizes[-i] += 1
    starts = [sum(sizes[:i]) for i in range(pp)]
    return tuple(range(start, start + size) for start, size in zip(starts, sizes, strict=True))
