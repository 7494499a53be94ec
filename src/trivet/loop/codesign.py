"""Which change to a chip lowers the cost of a demand most: the sensitivities.

A sensitivity is the change of a workload's cost, energy or cards when one parameter of the chip grows by a tenth (a
latency shrinks by as much), everything that follows included: die area, yield, bill of materials, price, power limit.
Its interval comes from the chip's unpublished fields, from how far kernels reach the peaks, and from the cost inputs:
each is moved by one standard deviation in turn and the answer recomputed; the widest is the driver.

The search for the best chip within a budget is ``codesign_search.py``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from trivet.chip.silicon import bill_of_materials, die_area_mm2
from trivet.chip.spec import Chip
from trivet.chip.variant import PARAMETERS, compose, scaled
from trivet.errors import DoesNotFit
from trivet.loop.codesign_demand import Choice, Metrics, Price, Workload, choices, metrics, rate
from trivet.units import Z80

BUDGETS = ("area_mm2", "power_w", "bill_usd")
METRICS = ("cost", "energy", "cards")
# What a tornado shows. Latencies shrink; the rest grows.
TORNADO = (
    "matrix", "clock", "vector", "memory_bandwidth", "memory_capacity", "memory_stacks", "cache", "links", "power_limit",
)  # fmt: skip
LATENCIES = ("launch", "host_launch")
# How far kernels of a chip nobody has measured lie from the model's sustained share (one standard deviation of log).
_KERNEL_DOUBT = {"kernels: compute": ("matrix", 0.15), "kernels: memory": ("memory_bandwidth", 0.10)}
# Share of a change that kernels may fail to follow, or exceed (one sigma): over the chips measured, families differ by
# about 10-15% in how much of a twice or three times larger peak or bandwidth their kernels turn into speed.
FOLLOWED = 0.15
# Unpublished fields that are one doubt each.
_DOUBTED = (
    ("peak_flops_bf16", "peak_flops_fp16", "peak_flops_tf32"), ("peak_flops_int8",), ("peak_flops_fp8",), ("peak_flops_fp4",),
    ("peak_flops_fp32",), ("memory_bandwidth_bytes_per_s",), ("memory_bytes",), ("l2_bytes",),
    ("link_bandwidth_bytes_per_s",), ("launch_s",), ("host_launch_s",), ("tdp_w",),
)  # fmt: skip

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class Sensitivity:
    """Per cent that ``metric`` of ``workload`` changes with a tenth more of ``parameter``; 80% interval and its driver.

    ``less_percent``: with as much less of it, for the picture.
    """

    workload: str
    parameter: str
    metric: str
    percent: float
    lo: float
    hi: float
    driver: str
    less_percent: float = 0.0


@dataclass(frozen=True, slots=True)
class Silicon:
    """What the change does to the chip itself, per cent."""

    parameter: str
    area: float
    power: float
    bill: float


class Study:
    """A chip under a demand: how each workload runs on it, what it costs, and the same for variants of it."""

    def __init__(
        self,
        chip: Chip,
        workloads: Sequence[Workload],
        *,
        basis: str = "tco_hyperscaler",
        site: str = "",
        limit: int = 16,
    ):
        self.chip = chip
        self.workloads = tuple(workloads)
        self.basis, self.site, self.limit = basis, site, limit
        self.price = Price.of(chip, basis, site)
        self.choices: dict[str, Choice] = {}
        for part in self._parts():
            self.choices[part.name] = self._choice(part)
        self.base = {w.name: metrics(chip, w, self.choices, self.price) for w in self.workloads}

    def _parts(self) -> list[Workload]:
        return [part for w in self.workloads for part in ([p for p, _ in w.services] or [w])]

    def _choice(self, part: Workload, chip: Chip | None = None) -> Choice:
        try:
            return choices(chip or self.chip, part, self.limit)[0]
        except DoesNotFit:
            # A model too large for a replica of the usual size gets one of four times the chips before it is refused.
            return choices(chip or self.chip, part, self.limit * 4)[0]

    def run(
        self,
        factors: Mapping[str, float],
        world: Chip | None = None,
        price: Price | None = None,
        *,
        relayout: bool = True,
    ) -> dict[str, Metrics]:
        """Metrics of every workload on ``world`` (default: the base) with ``factors`` applied, run as on the base; what no
        longer fits is laid out anew.

        Raises:
            DoesNotFit: a workload cannot run (with ``relayout`` off: not in the base's layout).
        """
        origin = world or self.chip
        variant = compose(origin, factors) if factors else origin
        seen = timed(origin, variant, factors)
        found = {}
        for workload in self.workloads:
            try:
                found[workload.name] = metrics(variant, workload, self.choices, price or self.price, seen)
            except DoesNotFit:
                if not relayout:
                    raise
                parts = [part for part, _ in workload.services] or [workload]
                anew = {part.name: self._fitting(seen, part) for part in parts}
                found[workload.name] = metrics(variant, workload, anew, price or self.price, seen)
        return found

    def _fitting(self, variant: Chip, part: Workload) -> Choice:
        """The base's way to run ``part`` where it still fits, else the best on ``variant``."""
        try:
            rate(variant, part, self.choices[part.name])
        except DoesNotFit:
            return self._choice(part, variant)
        return self.choices[part.name]

    def mean_log(self, found: Mapping[str, Metrics], base: Mapping[str, Metrics], metric: str = "cost") -> float:
        """Share-weighted mean log change of a metric over the workloads."""
        return sum(
            w.share * math.log(value_of(found[w.name], metric) / value_of(base[w.name], metric)) for w in self.workloads
        )


def timed(origin: Chip, variant: Chip, factors: Mapping[str, float]) -> Chip:
    """``variant`` as the timing model is to see it: its own physics under ``origin``'s kernel corrections.

    What the model learned of kernels moves with peak, bandwidth and peak per watt over chips that differ in everything
    else; a variant's kernels are the origin's. A factor on the power limit alone is what the model says of peak per watt.
    """
    limit = origin.facts.get("tdp_w")
    field = "peak_flops_bf16" if origin.get("peak_flops_bf16") else "peak_flops_fp16"
    before, after = origin.get(field), variant.get(field)
    if variant is origin:
        return origin
    if limit is None or not before or not after:
        return replace(variant, like=origin)
    watts = scaled(limit, after / before * factors.get("power_limit", 1.0), "the origin's peak per watt")
    like = None if "power_limit" in factors else origin
    return replace(variant, facts={**variant.facts, "tdp_w": watts}, like=like)


def sensitivities(
    study: Study, *, step: float = 0.10, parameters: Sequence[str] = TORNADO, progress: Progress = lambda *_: None
) -> tuple[tuple[Sensitivity, ...], tuple[Silicon, ...]]:
    """Every parameter's effect on every workload and metric, and on the chip itself; ``all`` weighs the workloads."""
    chip = study.chip
    listed = [p for p in parameters if any(name in chip.facts for name in PARAMETERS[p])]
    worlds = [("", chip), *doubts(chip)]
    changes: dict[str, dict[tuple[str, str, str], float]] = {}
    for at, (name, world) in enumerate(worlds):
        progress("sensitivities", at, len(worlds))
        changes[name] = _changes(study, world, listed, step)
    less = _changes(study, chip, listed, 1.0 / (1.0 + step) - 1.0)
    silicon = tuple(_silicon(chip, p, _factor(p, step)) for p in listed)
    found = []
    for key, value in changes[""].items():
        parts = {name: changes[name][key] - value for name in changes if name}
        if key[2] == "cost":
            parts |= _cost_parts(study, key[1], step, value)
        found.append(replace(with_spread(key, value, parts), less_percent=less[key]))
    return tuple(found), silicon


def doubts(chip: Chip) -> list[tuple[str, Chip]]:
    """The chip as it would be if one of its unpublished fields, or its kernels' reach, were one sigma higher."""
    worlds = []
    for fields in _DOUBTED:
        present = [name for name in fields if name in chip.facts]
        sigma = max((chip.facts[name].log_sigma for name in present), default=0.0)
        if sigma > 0:
            worlds.append((f"{chip.name} {present[0]}", _shifted(chip, present, math.exp(sigma))))
    for name, (parameter, sigma) in _KERNEL_DOUBT.items():
        present = [field for field in PARAMETERS[parameter] if field in chip.facts]
        worlds.append((name, _shifted(chip, present, math.exp(sigma))))
    return worlds


def used(chip: Chip) -> dict[str, float]:
    """What a chip takes of each budget."""
    return {
        "area_mm2": die_area_mm2(chip).value, "power_w": chip.get("tdp_w") or 0.0,
        "bill_usd": bill_of_materials(chip).total.value,
    }  # fmt: skip


def _changes(study: Study, world: Chip, parameters: Sequence[str], step: float) -> dict[tuple[str, str, str], float]:
    """(workload, parameter, metric) -> per cent, in one world."""
    price = Price.of(world, study.basis, study.site)
    base = study.run({}, world, price) if world is not study.chip else study.base
    found: dict[tuple[str, str, str], float] = {}
    for parameter in parameters:
        after = study.run({parameter: _factor(parameter, step)}, world, price)
        for metric in METRICS:
            for w in study.workloads:
                ratio = value_of(after[w.name], metric) / value_of(base[w.name], metric)
                found[w.name, parameter, metric] = 100.0 * (ratio - 1.0)
            found["all", parameter, metric] = 100.0 * (math.exp(study.mean_log(after, base, metric)) - 1.0)
    return found


def _cost_parts(study: Study, parameter: str, step: float, percent: float) -> dict[str, float]:
    """What one sigma of each cost input moves a cost change by, per cent; inputs common to both chips cancel."""
    variant = compose(study.chip, {parameter: _factor(parameter, step)})
    ratio = study.price.usd_per_hour(variant) / study.price.hour
    return {name: (100.0 + percent) * sigma for name, sigma in ratio.spread.items() if abs(sigma) > 1e-6}


def with_spread(key: tuple[str, str, str], value: float, parts: Mapping[str, float]) -> Sensitivity:
    parts = {**parts, "kernels following the change": FOLLOWED * value}
    sigma = math.sqrt(sum(p * p for p in parts.values()))
    driver = max(parts, key=lambda name: abs(parts[name]), default="")
    half = Z80 * sigma
    return Sensitivity(*key, value, value - half, value + half, driver if sigma > 1e-9 else "")


def _silicon(chip: Chip, parameter: str, factor: float) -> Silicon:
    before, after = used(chip), used(compose(chip, {parameter: factor}))
    return Silicon(parameter, *(100.0 * (after[n] / before[n] - 1.0) for n in BUDGETS))


def _factor(parameter: str, step: float) -> float:
    return 1.0 / (1.0 + step) if parameter in LATENCIES else 1.0 + step


def value_of(found: Metrics, metric: str) -> float:
    return {"cost": found.usd, "energy": found.joules, "cards": found.chips}[metric].value


def _shifted(chip: Chip, fields: Sequence[str], factor: float) -> Chip:
    facts = dict(chip.facts)
    for name in fields:
        facts[name] = scaled(facts[name], factor, "one standard deviation higher")
    return replace(chip, facts=facts)
