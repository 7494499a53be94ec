"""Which change to a chip lowers the cost of a demand most: sensitivities, and the best chip within a budget.

A sensitivity is the change of a workload's cost, energy or cards when one parameter of the chip grows by a tenth (a
latency shrinks by as much), everything that follows included: die area, yield, bill of materials, price, power limit.
Its interval comes from the chip's unpublished fields, from how far kernels reach the peaks, and from the cost inputs:
each is moved by one standard deviation in turn and the answer recomputed; the widest is the driver.

The search minimises the share-weighted mean log cost per token over log factors of the parameters, subject to area,
power and bill of materials, by sequential linear programming in a trust region: every accepted point was evaluated.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from trivet.chip import estimate
from trivet.chip.silicon import bill_of_materials, die_area_mm2
from trivet.chip.spec import Chip
from trivet.chip.variant import PARAMETERS, compose, scaled
from trivet.errors import DoesNotFit, TrivetError
from trivet.loop.codesign_demand import Choice, Metrics, Price, Workload, choices, metrics, rate

METRICS = ("cost", "energy", "cards")
# What a tornado shows. Latencies shrink; the rest grows.
TORNADO = (
    "matrix", "clock", "vector", "memory_bandwidth", "memory_capacity", "memory_stacks", "cache", "links", "power_limit",
)  # fmt: skip
LATENCIES = ("launch", "host_launch")
# What the search may change, and between which factors. Vector units and cache stay as they are: operator timing does not
# resolve what less of them would cost, so a search would only take them away.
SEARCHED: dict[str, tuple[float, float]] = {
    "matrix": (0.4, 8.0), "memory_bandwidth": (0.7, 2.5), "memory_stacks": (0.5, 2.0), "memory_capacity": (0.5, 2.0),
    "links": (0.4, 4.0),
}  # fmt: skip
HEADROOM = 1.25  # budgets of a search that names none, over what the base takes
_MEMORY = ("memory_capacity", "memory_stacks")
TOLERANCE = 2e-3  # relative excess over a budget that counts as inside
BUDGETS = ("area_mm2", "power_w", "bill_usd")
# How far kernels of a chip nobody has measured lie from the model's sustained share (one standard deviation of log).
_KERNEL_DOUBT = {"kernels: compute": ("matrix", 0.15), "kernels: memory": ("memory_bandwidth", 0.10)}
# Unpublished fields that are one doubt each.
_DOUBTED = (
    ("peak_flops_bf16", "peak_flops_fp16", "peak_flops_tf32"), ("peak_flops_int8",), ("peak_flops_fp8",), ("peak_flops_fp4",),
    ("peak_flops_fp32",), ("memory_bandwidth_bytes_per_s",), ("memory_bytes",), ("l2_bytes",),
    ("link_bandwidth_bytes_per_s",), ("launch_s",), ("host_launch_s",), ("tdp_w",),
)  # fmt: skip
_MAX_HBM_STACK = 1.2e12  # bytes/s of one HBM3E stack at its fastest

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

    def run(self, variant: Chip, price: Price | None = None, *, relayout: bool = True) -> dict[str, Metrics]:
        """Metrics of every workload on a variant, run as on the base; what no longer fits is laid out anew.

        Raises:
            DoesNotFit: a workload cannot run (with ``relayout`` off: not in the base's layout).
        """
        found = {}
        for workload in self.workloads:
            try:
                found[workload.name] = metrics(variant, workload, self.choices, price or self.price)
            except DoesNotFit:
                if not relayout:
                    raise
                parts = [part for part, _ in workload.services] or [workload]
                anew = {part.name: self._fitting(variant, part) for part in parts}
                found[workload.name] = metrics(variant, workload, anew, price or self.price)
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
            w.share * math.log(_value(found[w.name], metric) / _value(base[w.name], metric)) for w in self.workloads
        )


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
        found.append(replace(_with_spread(key, value, parts), less_percent=less[key]))
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
    factors = {name: math.exp(x) for name, x in zip(names, walk.point, strict=True)}
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
            there = _try(self.study, self.names, target)
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
                there = _try(self.study, self.names, moved)
                self.evaluations += 1
                if there is not None:
                    ends.append((h, there))
            (h0, f0), (h1, f1) = min(ends), max(ends)
            slopes.append((f1 - f0) / (h1 - h0) if h1 > h0 else 0.0)
            up = [x + (0.05 if i == index else 0.0) for i, x in enumerate(self.point)]
            after = used(_at(self.study.chip, self.names, up))
            costs.append([math.log(after[n] / now[n]) / 0.05 for n in BUDGETS])
        return slopes, costs


def used(chip: Chip) -> dict[str, float]:
    """What a chip takes of each budget."""
    return {
        "area_mm2": die_area_mm2(chip).value, "power_w": chip.get("tdp_w") or 0.0,
        "bill_usd": bill_of_materials(chip).total.value,
    }  # fmt: skip


def _changes(study: Study, world: Chip, parameters: Sequence[str], step: float) -> dict[tuple[str, str, str], float]:
    """(workload, parameter, metric) -> per cent, in one world."""
    price = Price.of(world, study.basis, study.site)
    base = study.run(world, price) if world is not study.chip else study.base
    found: dict[tuple[str, str, str], float] = {}
    for parameter in parameters:
        variant = compose(world, {parameter: _factor(parameter, step)})
        after = study.run(variant, price)
        for metric in METRICS:
            for w in study.workloads:
                ratio = _value(after[w.name], metric) / _value(base[w.name], metric)
                found[w.name, parameter, metric] = 100.0 * (ratio - 1.0)
            found["all", parameter, metric] = 100.0 * (math.exp(study.mean_log(after, base, metric)) - 1.0)
    return found


def _cost_parts(study: Study, parameter: str, step: float, percent: float) -> dict[str, float]:
    """What one sigma of each cost input moves a cost change by, per cent; inputs common to both chips cancel."""
    variant = compose(study.chip, {parameter: _factor(parameter, step)})
    ratio = study.price.usd_per_hour(variant) / study.price.hour
    return {name: (100.0 + percent) * sigma for name, sigma in ratio.spread.items() if abs(sigma) > 1e-6}


def _best_changes(study: Study, factors: Mapping[str, float]) -> tuple[Sensitivity, ...]:
    """The best chip against the base, with the spread of both worlds' doubts."""
    found: dict[str, dict[tuple[str, str, str], float]] = {}
    for name, world in [("", study.chip), *doubts(study.chip)]:
        price = Price.of(world, study.basis, study.site)
        base = study.base if not name else study.run(world, price)
        after = study.run(compose(world, factors), price)
        found[name] = {}
        for metric in METRICS:
            for w in study.workloads:
                ratio = _value(after[w.name], metric) / _value(base[w.name], metric)
                found[name][w.name, "best", metric] = 100.0 * (ratio - 1.0)
            found[name]["all", "best", metric] = 100.0 * (math.exp(study.mean_log(after, base, metric)) - 1.0)
    priced = study.price.usd_per_hour(compose(study.chip, factors)) / study.price.hour
    changes = []
    for key, value in found[""].items():
        parts = {name: found[name][key] - value for name in found if name}
        if key[2] == "cost":
            parts |= {name: (100.0 + value) * sigma for name, sigma in priced.spread.items()}
        changes.append(_with_spread(key, value, parts))
    return tuple(changes)


def _with_spread(key: tuple[str, str, str], value: float, parts: Mapping[str, float]) -> Sensitivity:
    sigma = math.sqrt(sum(p * p for p in parts.values()))
    driver = max(parts, key=lambda name: abs(parts[name]), default="")
    half = estimate.Z80 * sigma
    return Sensitivity(*key, value, value - half, value + half, driver if sigma > 1e-9 else "")


def _silicon(chip: Chip, parameter: str, factor: float) -> Silicon:
    before, after = used(chip), used(compose(chip, {parameter: factor}))
    return Silicon(parameter, *(100.0 * (after[n] / before[n] - 1.0) for n in BUDGETS))


def _factor(parameter: str, step: float) -> float:
    return 1.0 / (1.0 + step) if parameter in LATENCIES else 1.0 + step


def _value(found: Metrics, metric: str) -> float:
    return {"cost": found.usd, "energy": found.joules, "cards": found.chips}[metric].value


def _shifted(chip: Chip, fields: Sequence[str], factor: float) -> Chip:
    facts = dict(chip.facts)
    for name in fields:
        facts[name] = scaled(facts[name], factor, "one standard deviation higher")
    return replace(chip, facts=facts)


def _bounds(chip: Chip, parameter: str, narrower: Mapping[str, tuple[float, float]]) -> tuple[float, float]:
    low, high = narrower.get(parameter, SEARCHED[parameter])
    stacks, bandwidth = chip.get("memory_stacks"), chip.get("memory_bandwidth_bytes_per_s")
    if parameter == "memory_bandwidth" and stacks and bandwidth:
        high = max(low, min(high, _MAX_HBM_STACK * stacks / bandwidth))
    return math.log(low), math.log(high)


def _at(chip: Chip, names: Sequence[str], point: Sequence[float]) -> Chip:
    return compose(chip, {name: math.exp(x) for name, x in zip(names, point, strict=True)})


def _try(study: Study, names: Sequence[str], point: Sequence[float]) -> float | None:
    """Mean log cost of the chip at ``point``; None where it cannot run the demand."""
    try:
        return study.mean_log(study.run(_at(study.chip, names, point), relayout=False), study.base)
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
