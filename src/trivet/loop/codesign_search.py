"""The best chip within a budget of area, power and bill of materials: a search that only keeps what it evaluated.

It minimises the share-weighted mean log cost per token over log factors of the parameters, by sequential linear
programming in a trust region.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from trivet.chip.spec import Chip
from trivet.chip.variant import PARAMETERS, compose
from trivet.errors import DoesNotFit, TrivetError
from trivet.loop.codesign import (
    BUDGETS,
    METRICS,
    Progress,
    Sensitivity,
    Study,
    doubts,
    used,
    value_of,
    with_spread,
)  # fmt: skip
from trivet.loop.codesign_demand import Price

# What the search may change, and between which factors. Vector units and cache stay as they are: operator timing does not
# resolve what less of them would cost, so a search would only take them away.
SEARCHED: dict[str, tuple[float, float]] = {
    "matrix": (0.4, 8.0), "memory_bandwidth": (0.7, 2.5), "memory_stacks": (0.5, 2.0), "memory_capacity": (0.5, 2.0),
    "links": (0.4, 4.0),
}  # fmt: skip
HEADROOM = 1.25  # budgets of a search that names none, over what the base takes
_MEMORY = ("memory_capacity", "memory_stacks")
TOLERANCE = 2e-3  # relative excess over a budget that counts as inside
_MAX_HBM_STACK = 1.2e12  # bytes/s of one HBM3E stack at its fastest


@dataclass(frozen=True, slots=True)
class Best:
    """The best chip found: factors on the base, its silicon, its metrics, and the change per workload."""

    chip: Chip
    factors: Mapping[str, float]
    budget: Mapping[str, float]
    used: Mapping[str, float]
    binding: tuple[str, ...]
    changes: tuple[Sensitivity, ...]
    evaluations: int


def best(
    study: Study,
    budget: Mapping[str, float] | None = None,
    *,
    bounds: Mapping[str, tuple[float, float]] | None = None,
    rounds: int = 12,
    progress: Progress = lambda *_: None,
) -> Best:
    """The chip of least mean cost within ``budget`` (area_mm2, power_w, bill_usd; default: HEADROOM times the base's own).

    ``bounds`` narrows the factors of single parameters (an export rule, a memory that cannot be had).

    Raises:
        TrivetError: an unknown or non-positive budget.
        DoesNotFit: the base lies outside the budget and no step brings it inside.
    """
    limits = {name: HEADROOM * value for name, value in used(study.chip).items()}
    for name, value in (budget or {}).items():
        if name not in BUDGETS or value <= 0:
            raise TrivetError(f"budget {name} {value}", field="budget", allowed=BUDGETS)
        limits[name] = value
    names = [p for p in SEARCHED if any(field in study.chip.facts for field in PARAMETERS[p])]
    walk = _Walk(study, names, limits, [_bounds(study.chip, p, bounds or {}) for p in names])
    for at in range(rounds):
        progress("search", at, rounds)
        if not walk.step():
            break
    progress("search", rounds, rounds)
    chip = _at(study.chip, names, walk.point)
    taken = used(chip)
    if _excess(chip, limits) > TOLERANCE:
        raise DoesNotFit("no chip within the budget was found", field="budget", allowed=str(limits))
    binding = tuple(n for n in BUDGETS if taken[n] > 0.985 * limits[n])
    factors = _factors(names, walk.point)
    return Best(chip, factors, limits, taken, binding, _best_changes(study, factors), walk.evaluations)


class _Walk:
    """Sequential linear programming with a trust region; steps that run and pay are kept, others halve the region."""

    def __init__(
        self, study: Study, names: Sequence[str], limits: Mapping[str, float], bounds: Sequence[tuple[float, float]]
    ):
        self.study, self.names, self.limits, self.bounds = study, names, limits, list(bounds)
        self.point = [min(max(0.0, low), high) for low, high in bounds]
        self.radius, self.evaluations = 0.4, 1
        here = _try(study, names, self.point)
        # Where bounds keep the chip away from the base's own, the base's layouts may not run at all: then all are laid out anew.
        self.relayout = here is None
        if here is None:
            here = _try(study, names, self.point, relayout=True)
        if here is None:
            raise DoesNotFit("cannot run the demand where the search starts", field=study.chip.name)
        self.here = here

    def step(self) -> bool:
        """One accepted step; False when the trust region has shrunk to nothing."""
        now = _at(self.study.chip, self.names, self.point)
        taken, over = used(now), _excess(now, self.limits)
        slopes, costs = self._gradient(taken)
        while self.radius > 0.01:
            move = _linear_step(slopes, costs, self.point, self.bounds, self.radius, self.limits, taken)
            target = [x + d for x, d in zip(self.point, move, strict=True)]
            target = _pulled_in(self.study.chip, self.names, target, self.limits, costs)
            target = [min(max(x, low), high) for x, (low, high) in zip(target, self.bounds, strict=True)]
            there = _try(self.study, self.names, target, self.relayout)
            self.evaluations += 1
            over_there = _excess(_at(self.study.chip, self.names, target), self.limits)
            inwards = over > TOLERANCE and over_there < 0.9 * over
            if there is not None and (inwards or (over_there <= TOLERANCE and there < self.here - 1e-4)):
                self.point, self.here = target, there
                self.radius = min(0.8, self.radius * 1.5)
                return True
            if there is None and self._hold_memory(target):
                continue
            self.radius *= 0.5
        return False

    def _hold_memory(self, target: Sequence[float]) -> bool:
        """Less memory no longer holds the models: from here on it may only grow. False where that was not it."""
        shrunk = [i for i, n in enumerate(self.names) if n in _MEMORY and target[i] < self.point[i] - 1e-9]
        for i in shrunk:
            self.bounds[i] = (self.point[i], self.bounds[i][1])
        return bool(shrunk)

    def _gradient(self, now: Mapping[str, float]) -> tuple[list[float], list[list[float]]]:
        """Slopes of cost and of the log budgets over a tenth up and down: wide, because kernel tables have kinks."""
        slopes, costs = [], []
        for index in range(len(self.names)):
            ends: list[tuple[float, float]] = [(0.0, self.here)]
            for h in (0.1, -0.1):
                moved = [x + (h if i == index else 0.0) for i, x in enumerate(self.point)]
                there = _try(self.study, self.names, moved, self.relayout)
                self.evaluations += 1
                if there is not None:
                    ends.append((h, there))
            (h0, f0), (h1, f1) = min(ends), max(ends)
            slopes.append((f1 - f0) / (h1 - h0) if h1 > h0 else 0.0)
            up = [x + (0.05 if i == index else 0.0) for i, x in enumerate(self.point)]
            after = used(_at(self.study.chip, self.names, up))
            costs.append([math.log(after[n] / now[n]) / 0.05 for n in BUDGETS])
        return slopes, costs


def _best_changes(study: Study, factors: Mapping[str, float]) -> tuple[Sensitivity, ...]:
    """The best chip against the base, with the spread of both worlds' doubts."""
    found: dict[str, dict[tuple[str, str, str], float]] = {}
    for name, world in [("", study.chip), *doubts(study.chip)]:
        price = Price.of(world, study.basis, study.site)
        base = study.base if not name else study.run({}, world, price)
        after = study.run(factors, world, price)
        found[name] = {}
        for metric in METRICS:
            for w in study.workloads:
                ratio = value_of(after[w.name], metric) / value_of(base[w.name], metric)
                found[name][w.name, "best", metric] = 100.0 * (ratio - 1.0)
            found[name]["all", "best", metric] = 100.0 * (math.exp(study.mean_log(after, base, metric)) - 1.0)
    priced = study.price.usd_per_hour(compose(study.chip, factors)) / study.price.hour
    changes = []
    for key, value in found[""].items():
        parts = {name: found[name][key] - value for name in found if name}
        if key[2] == "cost":
            parts |= {name: (100.0 + value) * sigma for name, sigma in priced.spread.items()}
        changes.append(with_spread(key, value, parts))
    return tuple(changes)


def _bounds(chip: Chip, parameter: str, narrower: Mapping[str, tuple[float, float]]) -> tuple[float, float]:
    low, high = narrower.get(parameter, SEARCHED[parameter])
    stacks, bandwidth = chip.get("memory_stacks"), chip.get("memory_bandwidth_bytes_per_s")
    if parameter == "memory_bandwidth" and stacks and bandwidth:
        high = max(low, min(high, _MAX_HBM_STACK * stacks / bandwidth))
    return math.log(low), math.log(high)


def _at(chip: Chip, names: Sequence[str], point: Sequence[float]) -> Chip:
    return compose(chip, _factors(names, point))


def _factors(names: Sequence[str], point: Sequence[float]) -> dict[str, float]:
    return {name: math.exp(x) for name, x in zip(names, point, strict=True)}


def _try(study: Study, names: Sequence[str], point: Sequence[float], relayout: bool = False) -> float | None:
    """Mean log cost of the chip at ``point``; None where it cannot run the demand (in the base's layouts, unless
    ``relayout``)."""
    try:
        return study.mean_log(study.run(_factors(names, point), relayout=relayout), study.base)
    except DoesNotFit:
        return None


def _excess(chip: Chip, limits: Mapping[str, float]) -> float:
    """By how much (log) the worst budget is exceeded."""
    taken = used(chip)
    return max(0.0, *(math.log(taken[n] / limits[n]) for n in BUDGETS))


def _pulled_in(
    chip: Chip,
    names: Sequence[str],
    point: Sequence[float],
    limits: Mapping[str, float],
    costs: Sequence[Sequence[float]],
) -> list[float]:
    """``point`` moved down the most exceeded budget's own slope until it is met: what the linear step overlooked."""
    found = list(point)
    for _ in range(4):
        taken = used(_at(chip, names, found))
        over = [math.log(taken[n] / limits[n]) for n in BUDGETS]
        worst = max(range(len(BUDGETS)), key=lambda k: over[k])
        norm = sum(cost[worst] ** 2 for cost in costs)
        if over[worst] <= TOLERANCE or norm < 1e-9:
            break
        found = [x - over[worst] * cost[worst] / norm for x, cost in zip(found, costs, strict=True)]
    return found


def _linear_step(
    slopes: Sequence[float], costs: Sequence[Sequence[float]], point: Sequence[float], bounds: Sequence[tuple[float, float]],
    radius: float, limits: Mapping[str, float], taken: Mapping[str, float],
) -> list[float]:  # fmt: skip
    from scipy.optimize import linprog

    room = [math.log(limits[n] / taken[n]) for n in BUDGETS]
    box = [(max(-radius, low - x), min(radius, high - x)) for x, (low, high) in zip(point, bounds, strict=True)]
    box = [(min(a, 0.0), max(b, 0.0)) for a, b in box]
    matrix = [[cost[k] for cost in costs] for k in range(len(BUDGETS))]
    solved = linprog(slopes, A_ub=matrix, b_ub=room, bounds=box, method="highs")
    if solved.x is None:  # the budgets cannot be met within the trust region: go towards them
        worst = min(range(len(BUDGETS)), key=lambda k: room[k])
        return [a if matrix[worst][i] > 0 else 0.0 for i, (a, _) in enumerate(box)]
    return [float(x) for x in solved.x]
