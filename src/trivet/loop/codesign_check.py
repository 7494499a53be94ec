"""Two looks from outside: where a successor stands on the sensitivities, and whether the method would have found one.

The check starts from A100 with the demand of its time and gives the search what each successor had: its node, its area,
power and bill, and for H20 the export rule that held its arithmetic down. Where the factors that the search picks
point the way that the successor went, the method agrees.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from trivet.chip import estimate
from trivet.chip.catalogue import chip as catalogue_chip
from trivet.chip.spec import Chip
from trivet.chip.variant import ported
from trivet.errors import DoesNotFit
from trivet.loop.codesign import Study, used
from trivet.loop.codesign_demand import Workload
from trivet.loop.codesign_search import best

# What a data sheet shows of a step from one chip to the next.
SHOWN = {
    "matrix": "peak_flops_bf16", "memory bandwidth": "memory_bandwidth_bytes_per_s", "memory capacity": "memory_bytes",
    "links": "link_bandwidth_bytes_per_s", "power": "tdp_w", "cache": "l2_bytes",
}  # fmt: skip
SUCCESSORS = ("h100", "h20", "b200")
# An export rule capped H20's total processing performance: its arithmetic is 0.47 of A100's.
_CAPS = {"h20": {"matrix": (0.4, 148.0 / 312.0)}}


@dataclass(frozen=True, slots=True)
class Placed:
    """A chip beside the base: factor per parameter with its interval, and cost, energy, cards per workload."""

    chip: str
    factors: dict[str, dict[str, float]]
    ratios: dict[str, dict[str, dict[str, float | str]]]
    refused: dict[str, str]


@dataclass(frozen=True, slots=True)
class Step:
    """One successor: the factors it took over the base and those that the search takes with its node and budgets."""

    successor: str
    actual: dict[str, float]
    found: dict[str, float]
    budget: dict[str, float]
    cost_percent: float


@dataclass(frozen=True, slots=True)
class Check:
    """All steps; ``rank_correlation`` of log factors over steps and parameters, ``same_direction`` the share of parameters
    that the search moves the way the successor went (up, down, or within 10% of no change)."""

    base: str
    steps: tuple[Step, ...]
    rank_correlation: float
    same_direction: float
    compared: int


def place(study: Study, other: Chip, limit: int = 16) -> Placed:
    """``other`` under the study's demand, each workload run as suits it, over the study's chip."""
    factors: dict[str, dict[str, float]] = {}
    for shown, field in SHOWN.items():
        mine, theirs = study.chip.facts.get(field), other.facts.get(field)
        if mine is not None and theirs is not None and mine.value and theirs.value:
            ratio = estimate.of(theirs, f"{other.name} {field}") / estimate.of(mine, f"{study.chip.name} {field}")
            factors[shown] = {"value": ratio.value, "lo": ratio.lo, "hi": ratio.hi}
    ratios: dict[str, dict[str, dict[str, float | str]]] = {}
    refused: dict[str, str] = {}
    for workload in study.workloads:
        try:
            found = Study(other, [workload], basis=study.basis, site=study.site, limit=limit).base[workload.name]
        except DoesNotFit as error:
            refused[workload.name] = str(error)
            continue
        base = study.base[workload.name]
        pairs = {
            "cost": (found.usd, base.usd),
            "energy": (found.joules, base.joules),
            "cards": (found.chips, base.chips),
        }
        ratios[workload.name] = {metric: (a / b).to_dict() for metric, (a, b) in pairs.items()}
    return Placed(other.name, factors, ratios, refused)


def check(
    workloads: Sequence[Workload],
    *,
    base: str = "a100-80gb",
    successors: Sequence[str] = SUCCESSORS,
    progress: Callable[[str, int, int], None] = lambda *_: None,
) -> Check:
    """The method's directions from ``base`` against what its successors became."""
    start = catalogue_chip(base)
    steps = []
    for at, name in enumerate(successors):
        progress("check of method", at, len(successors))
        real = catalogue_chip(name)
        origin = ported(start, real.get("process_nm") or 7.0)
        study = Study(origin, workloads)
        taken = used(real)
        found = best(study, taken, bounds=_CAPS.get(name))
        actual = {
            shown: _ratio(real, start, field) for shown, field in SHOWN.items() if shown not in ("power", "cache")
        }
        ours = {shown: _ratio(found.chip, origin, SHOWN[shown]) for shown in actual}
        cost = next(c.percent for c in found.changes if (c.workload, c.metric) == ("all", "cost"))
        steps.append(Step(name, actual, ours, taken, cost))
    pairs = [(s.actual[k], s.found[k]) for s in steps for k in s.actual]
    same = sum(_direction(a) == _direction(b) for a, b in pairs)
    correlation = _rank_correlation([math.log(a) for a, _ in pairs], [math.log(b) for _, b in pairs])
    return Check(base, tuple(steps), correlation, same / len(pairs), len(pairs))


def _ratio(new: Chip, old: Chip, field: str) -> float:
    return (new.get(field) or 0.0) / (old.get(field) or 1.0)


def _direction(factor: float) -> int:
    return 0 if 1 / 1.1 < factor < 1.1 else 1 if factor > 1 else -1


def _rank_correlation(a: Sequence[float], b: Sequence[float]) -> float:
    from scipy.stats import spearmanr

    return float(spearmanr(a, b).statistic)
