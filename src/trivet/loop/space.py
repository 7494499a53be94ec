"""The space of deployments that a plan searches: chips, engines, precisions and layouts of one replica."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from trivet.chip.spec import Chip
from trivet.cloud.deployment import ENGINES
from trivet.errors import DoesNotFit, TrivetError
from trivet.model.architecture import Architecture
from trivet.model.parallel import Layout

TOKEN_BUDGETS = (512, 1024, 2048, 4096, 8192, 16384)
SEQUENCE_LIMITS = (16, 32, 64, 128, 256, 512, 1024)


@dataclass(frozen=True, slots=True)
class Space:
    """What may be chosen. Empty tuples stand for "what fits the model and the chip"."""

    chips: tuple[str, ...]
    engines: tuple[str, ...] = ("vllm",)
    precisions: tuple[str, ...] = ()  # weight labels; "" in it = the checkpoint's own
    kv_precisions: tuple[str, ...] = ()
    max_chips_per_replica: int = 16
    token_budgets: tuple[int, ...] = TOKEN_BUDGETS
    sequence_limits: tuple[int, ...] = SEQUENCE_LIMITS
    modes: tuple[str, ...] = ("aggregated", "disaggregated")
    price_basis: str = "tco_hyperscaler"

    def __post_init__(self) -> None:
        for engine in self.engines:
            if engine not in ENGINES:
                raise TrivetError(f"unknown engine {engine!r}", field="engines", allowed=ENGINES)
        for mode in self.modes:
            if mode not in ("aggregated", "disaggregated"):
                raise TrivetError(f"unknown mode {mode!r}", field="modes", allowed=("aggregated", "disaggregated"))
        for field, values in (("token_budgets", self.token_budgets), ("sequence_limits", self.sequence_limits)):
            if not values or min(values) < 1:
                raise TrivetError("needs positive numbers", field=field)
        if not self.chips:
            raise TrivetError("no chip given", field="chips")


@dataclass(frozen=True, slots=True)
class Precision:
    """One choice of number formats; "" = the checkpoint's own."""

    weight: str = ""
    kv: str = ""

    @property
    def label(self) -> str:
        return f"{self.weight or 'checkpoint'}/{self.kv or 'checkpoint'} KV"


def precisions(chip: Chip, space: Space) -> tuple[Precision, ...]:
    """Formats worth trying on a chip: the checkpoint's own, and the 8-bit format that the chip's matrix units run.

    A chip without FP8 units gains nothing in arithmetic from FP8 weights and dequantises an FP8 cache, so neither is
    searched there unless asked for.
    """
    eight_bit = "fp8" if chip.supports("fp8") else "int8" if chip.supports("int8") else ""
    weights = space.precisions or (("", eight_bit) if eight_bit else ("",))
    caches = space.kv_precisions or (("", "fp8") if chip.supports("fp8") else ("",))
    return tuple(Precision(w, k) for w in dict.fromkeys(weights) for k in dict.fromkeys(caches))


def layouts(architecture: Architecture, scale_up_chips: int, limit: int) -> Iterator[Layout]:
    """Layouts of one replica that divide the model, smallest first.

    Tensor parallelism stays inside a scale-up domain; pipeline stages may cross it. A model with experts also tries
    attention data parallelism with expert parallelism, which is how wide MoE replicas run.
    """
    moe = architecture.routed
    for chips in _powers(limit):
        for pp in _powers(min(4, chips, architecture.num_layers)):
            stage = chips // pp
            for tp in _powers(min(stage, scale_up_chips)):
                dp = stage // tp
                if dp > 1 and not moe:
                    continue  # attention-DP of a dense model is only more replicas
                splits = {(stage, 1), (1, stage)} if moe else {(1, 1)}
                for moe_tp, moe_ep in sorted(splits):
                    if divides(architecture, tp, moe_tp, moe_ep):
                        yield Layout(tp=tp, pp=pp, attention_dp=dp, moe_tp=moe_tp, moe_ep=moe_ep)


def _powers(limit: int) -> Sequence[int]:
    return [2**i for i in range(limit.bit_length()) if 2**i <= limit]


def divides(architecture: Architecture, tp: int, moe_tp: int, moe_ep: int) -> bool:
    """Whether heads, dense columns, experts and expert columns divide evenly."""
    for layer in architecture.layers:
        mixer, ffn = layer.mixer, layer.feed_forward
        heads = mixer.heads or mixer.value_heads
        if heads and heads % tp:
            return False
        if mixer.kv_heads and mixer.kv_heads % tp and tp % mixer.kv_heads:
            return False
        if ffn.intermediate and ffn.kind == "dense" and ffn.intermediate % tp:
            return False
        if ffn.kind == "moe" and (ffn.experts % moe_ep or ffn.expert_intermediate % moe_tp):
            return False
    return True


def check(architecture: Architecture, layout: Layout) -> None:
    """Raise DoesNotFit with the reason when a layout that the user asked for does not divide the model."""
    if not divides(architecture, layout.tp, layout.moe_tp, layout.moe_ep):
        allowed = [str(tp) for tp in range(1, 65) if divides(architecture, tp, 1, 1)]
        raise DoesNotFit(
            f"{layout} does not divide {architecture.name}", field="layout", allowed="tp " + ", ".join(allowed)
        )
