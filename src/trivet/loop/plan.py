"""The plan: which chip, how many, which layout, precision and settings serve a traffic within an SLO, at what cost.

For each chip, engine, precision and layout one ``StepTable`` is compiled; token budgets, sequence limits and replica
counts are then evaluated as arrays over it (``cloud/serving/rate.py``). What survives goes to a Pareto frontier of
cost, TTFT, TPOT and energy; its members get 80% intervals and the unknown that drives each.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from trivet.chip.catalogue import chip as chip_by_name
from trivet.chip.spec import Chip
from trivet.cloud.deployment import Deployment, EngineSettings, StepTable
from trivet.cloud.engine import step_table
from trivet.cloud.fabric import server_of
from trivet.cloud.serving.rate import Load, RatePoint, decode_pool, load, open_loop, prefill_pool
from trivet.cloud.serving.traffic import Traffic
from trivet.errors import DoesNotFit, TrivetError, Unsupported
from trivet.loop.economics import Economics, Work, economics, kv_transfer_s, work
from trivet.loop.frontier import pareto
from trivet.loop.space import Precision, Space, layouts, precisions
from trivet.model.architecture import Architecture

Floats = NDArray[np.float64]
RATE_NODES = 24
POOL_NODES = 64
PLANS_PER_CHIP = 6
SPARE = np.array([1.0, 1.25, 1.6, 2.0, 3.0])  # replica counts tried, over the fewest that hold


@dataclass(frozen=True, slots=True)
class Slo:
    """Limits that ``percentile`` of the requests must keep (0 = the means)."""

    ttft_s: float
    tpot_s: float
    percentile: float = 0.9

    def __post_init__(self) -> None:
        for name in ("ttft_s", "tpot_s"):
            if not getattr(self, name) > 0:
                raise TrivetError(f"{getattr(self, name)} is not above 0", field=f"slo.{name}")
        if not 0 <= self.percentile < 1:
            raise TrivetError(f"{self.percentile} is out of range", field="slo.percentile", allowed="0 (mean) to 0.999")


@dataclass(frozen=True, slots=True)
class Interval:
    """A value and its 80% interval."""

    value: float
    lo: float
    hi: float

    def to_dict(self) -> dict[str, float | None]:
        """Infinite ends (nothing keeps up there) become None: JSON knows no infinity."""
        return {
            k: v if math.isfinite(v) else None for k, v in (("value", self.value), ("lo", self.lo), ("hi", self.hi))
        }


@dataclass(frozen=True, slots=True)
class Goal:
    """What is to be served."""

    architecture: Architecture
    traffic: Traffic
    slo: Slo


@dataclass(frozen=True, slots=True, eq=False)
class Compiled:
    """One (chip, engine, precision, layout) with its table."""

    deployment: Deployment
    table: StepTable
    precision: Precision
    economics: Economics
    work: Work


@dataclass(frozen=True, slots=True, eq=False)
class Candidate:
    """One evaluated way to serve the traffic that keeps the SLO. Disaggregated ones hold a decode side too."""

    compiled: Compiled
    token_budget: int
    max_num_seqs: int
    replicas: int
    ttft_s: float
    ttft_mean_s: float
    tpot_s: float
    tpot_mean_s: float
    busy: float
    usd_per_million_tokens: float
    joules_per_token: float
    decode: Compiled | None = None
    decode_replicas: int = 0

    @property
    def chips(self) -> int:
        own = self.replicas * self.compiled.deployment.layout.chips
        return own + (self.decode_replicas * self.decode.deployment.layout.chips if self.decode else 0)

    @property
    def mode(self) -> str:
        return "disaggregated" if self.decode else "aggregated"


@dataclass(frozen=True, slots=True, eq=False)
class Search:
    """What a search found: candidates that keep the SLO, which of them are on the frontier, why the others lost."""

    load: Load
    candidates: tuple[Candidate, ...]
    frontier: tuple[int, ...]
    rejected: dict[str, int]
    evaluated: int
    compile_s: float
    evaluate_s: float
    by_chip: dict[str, tuple[int, ...]] = field(default_factory=dict)


def search(goal: Goal, space: Space, progress: Callable[[str, int, int], None] = lambda *_: None) -> Search:
    """Search the space; raises TrivetError for an unknown chip, never for a chip on which nothing fits."""
    demand = load(
        goal.traffic.arrival_s, goal.traffic.input_tokens.astype(float), goal.traffic.output_tokens.astype(float)
    )
    rejected: Counter[str] = Counter()
    started = time.perf_counter()
    compiled = list(_compile_all(goal, space, rejected, progress))
    compile_s = time.perf_counter() - started
    started = time.perf_counter()
    found: list[Candidate] = []
    evaluated = 0
    for item in compiled:
        if "aggregated" in space.modes:
            evaluated += _aggregated(item, demand, goal.slo, space, found, rejected)
    if "disaggregated" in space.modes:
        evaluated += _disaggregated(compiled, demand, goal.slo, found, rejected)
    objectives = np.array([(c.usd_per_million_tokens, c.ttft_s, c.tpot_s, c.joules_per_token) for c in found]).reshape(
        -1, 4
    )
    front = pareto(objectives, tolerance=0.05)
    rejected["dominated"] += len(found) - len(front)
    by_chip: dict[str, list[int]] = {}
    for i, candidate in enumerate(found):
        by_chip.setdefault(candidate.compiled.deployment.chip.name, []).append(i)
    best = {name: _ladder(np.array(rows), objectives) for name, rows in by_chip.items()}
    return Search(
        demand,
        tuple(found),
        tuple(int(i) for i in front),
        {k: v for k, v in rejected.items() if v},
        evaluated,
        compile_s,
        time.perf_counter() - started,
        best,
    )


def _ladder(rows: NDArray[np.int64], objectives: Floats) -> tuple[int, ...]:
    """A chip's own coarse frontier of cost, TTFT and TPOT, cheapest first: what is tried when its cheapest plan fails."""
    front = rows[pareto(objectives[rows][:, :3], tolerance=0.15)]
    return tuple(int(i) for i in front[np.argsort(objectives[front, 0], kind="stable")][:PLANS_PER_CHIP])


def _compile_all(
    goal: Goal, space: Space, rejected: Counter[str], progress: Callable[[str, int, int], None]
) -> Iterator[Compiled]:
    todo = [
        (chip, engine, precision, layout)
        for chip in [chip_by_name(name) for name in dict.fromkeys(space.chips)]
        for engine in space.engines
        for precision in precisions(chip, space)
        for layout in layouts(goal.architecture, scale_up_chips(chip), space.max_chips_per_replica)
    ]
    grid = len(space.token_budgets) * len(space.sequence_limits)
    for done, (chip, engine, precision, layout) in enumerate(todo):
        progress(f"{chip.name} {engine}", done, len(todo))
        settings = EngineSettings(
            engine=engine,
            max_num_seqs=max(space.sequence_limits),
            max_num_batched_tokens=max(space.token_budgets),
            weight_dtype=precision.weight,
            moe_dtype=precision.weight,
            kv_dtype=precision.kv,
        )
        deployment = Deployment(goal.architecture, chip, layout, settings)
        try:
            yield Compiled(
                deployment, step_table(deployment), precision, economics(chip, space.price_basis), work(deployment)
            )
        except DoesNotFit:
            rejected["does not fit in memory"] += grid
        except Unsupported:
            rejected["format not supported by the chip"] += grid


def scale_up_chips(chip: Chip) -> int:
    """Chips of one scale-up domain of the chip's default server."""
    return min(server_of(chip).domain_chips, 64)


def _reject(point: RatePoint, slo: Slo, rejected: Counter[str]) -> NDArray[np.bool_]:
    """Mask of the settings that keep the SLO; counts why each other one lost, by its first reason."""
    left = np.ones(point.limit.shape, bool)
    for reason, bad in (
        ("cannot carry the rate", point.limit == 1),
        ("needs more sequences than its limit", point.limit == 2),
        ("KV cache too small", point.limit == 3),
        ("misses TTFT", ~(point.ttft_s <= slo.ttft_s)),
        ("misses TPOT", ~(point.tpot_s <= slo.tpot_s)),
    ):
        rejected[reason] += int((left & bad).sum())
        left &= ~bad
    return left


def _aggregated(
    item: Compiled, demand: Load, slo: Slo, space: Space, found: list[Candidate], rejected: Counter[str]
) -> int:
    """Evaluate budgets x limits x rates, then the replica counts that the best rates imply. Returns how many."""
    ranks = item.deployment.layout.attention_dp
    budget = np.array(space.token_budgets, float)[:, None, None]
    # The highest limit first: of settings that do equally well, the one with room for a burst stands.
    limit = np.array(sorted(space.sequence_limits, reverse=True), float)[None, :, None]
    # Each replica count from the fewest thinkable up: the rate that a rank sees falls geometrically.
    counts = np.unique(np.ceil(np.geomspace(1, max(2.0, 4.0 * demand.peak_rate_per_s), RATE_NODES)))
    point = open_loop(item.table, demand, demand.peak_rate_per_s / (counts * ranks), budget, limit, slo.percentile)
    good = _reject(point, slo, rejected)
    evaluated = good.size
    if not good.any():
        return evaluated
    first = np.where(good.any(axis=2), good.argmax(axis=2), -1)
    b, s = np.nonzero(first >= 0)
    low = np.where(first[b, s] > 0, counts[np.maximum(first[b, s] - 1, 0)] + 1, counts[first[b, s]])
    high = counts[first[b, s]]
    # Between the last count that failed and the first that held, try every eighth; then room to spare.
    between = np.ceil(low[:, None] + (high - low)[:, None] * np.linspace(0, 1, 8))
    tries = np.concatenate([between, np.ceil(high[:, None] * SPARE)], axis=1)
    budgets, limits = budget[b, 0, 0][:, None], limit[0, s, 0][:, None]
    point = open_loop(item.table, demand, demand.peak_rate_per_s / (tries * ranks), budgets, limits, slo.percentile)
    good = _reject(point, slo, rejected)
    evaluated += good.size
    tokens_per_s = demand.rate_per_s * demand.output_mean
    chips = tries * item.deployment.layout.chips
    usd = item.economics.usd_per_chip_s * chips / tokens_per_s * 1e6
    per_rank = demand.rate_per_s / (tries * ranks)
    watts = _watts(item, demand, point.busy, per_rank * demand.tokens, point.batch, point.tpot_mean_s)
    joules = watts * chips / tokens_per_s
    for i, j in zip(*np.nonzero(good), strict=True):
        found.append(
            Candidate(
                item,
                int(budgets[i, 0]),
                int(limits[i, 0]),
                int(tries[i, j]),
                float(point.ttft_s[i, j]),
                float(point.ttft_mean_s[i, j]),
                float(point.tpot_s[i, j]),
                float(point.tpot_mean_s[i, j]),
                float(point.busy[i, j]),
                float(usd[i, j]),
                float(joules[i, j]),
            )
        )
    return evaluated


def _disaggregated(
    compiled: list[Compiled], demand: Load, slo: Slo, found: list[Candidate], rejected: Counter[str]
) -> int:
    """Pairs of a prefill pool and a decode pool on the same kind of chip and engine."""
    counts = np.unique(np.ceil(np.geomspace(1, max(2.0, 4.0 * demand.peak_rate_per_s), POOL_NODES)))
    evaluated = 0
    groups: dict[tuple[str, str], list[Compiled]] = {}
    for item in compiled:
        groups.setdefault((item.deployment.chip.name, item.deployment.settings.engine), []).append(item)
    for members in groups.values():
        prefills = [
            (
                m,
                prefill_pool(
                    m.table,
                    demand,
                    demand.peak_rate_per_s / (counts * m.deployment.layout.attention_dp),
                    8192.0,
                    slo.percentile,
                ),
            )
            for m in members
        ]
        decodes = [
            (m, decode_pool(m.table, demand, demand.peak_rate_per_s / (counts * m.deployment.layout.attention_dp)))
            for m in members
        ]
        for p, (mean, ttft, busy) in prefills:
            for d, (tpot, batch) in decodes:
                evaluated += ttft.size + tpot.size  # the two pools are judged apart
                if p.precision.kv != d.precision.kv:
                    continue
                transfer = kv_transfer_s(p.deployment, demand.input_mean)
                good_p = (busy < 0.98) & (ttft + transfer <= slo.ttft_s)
                kv = batch * demand.context_mean <= d.table.kv_blocks * d.table.block_size
                limit = d.deployment.settings.max_num_seqs
                good_d = (tpot <= slo.tpot_s) & (batch <= limit) & kv
                good = np.outer(good_p, good_d)
                rejected["misses TTFT"] += int((~good_p).sum())
                rejected["misses TPOT"] += int((~good_d).sum())
                if not good.any():
                    continue
                i, j = int(np.argmax(good_p)), int(np.argmax(good_d))
                found.append(
                    _pair(
                        p,
                        d,
                        int(counts[i]),
                        int(counts[j]),
                        float(mean[i] + transfer),
                        float(ttft[i] + transfer),
                        float(tpot[j]),
                        float(busy[i]),
                        demand,
                    )
                )
    return evaluated


def _pair(
    p: Compiled,
    d: Compiled,
    prefills: int,
    decodes: int,
    ttft_mean_s: float,
    ttft_s: float,
    tpot_s: float,
    busy: float,
    demand: Load,
) -> Candidate:
    tokens_per_s = demand.rate_per_s * demand.output_mean
    p_chips, d_chips = prefills * p.deployment.layout.chips, decodes * d.deployment.layout.chips
    usd = (p.economics.usd_per_chip_s * p_chips + d.economics.usd_per_chip_s * d_chips) / tokens_per_s * 1e6
    p_rate = demand.rate_per_s / (prefills * p.deployment.layout.attention_dp)
    d_rate = demand.rate_per_s / (decodes * d.deployment.layout.attention_dp)
    batch = np.array(d_rate * demand.output_mean * tpot_s)
    watts = (
        float(_watts(p, demand, np.array(busy), np.array(p_rate * demand.input_mean), np.array(0.0), np.array(1.0)))
        * p_chips
    )
    watts += (
        float(_watts(d, demand, np.minimum(batch, 1.0), np.array(d_rate * demand.output_mean), batch, np.array(tpot_s)))
        * d_chips
    )
    settings = p.deployment.settings
    return Candidate(
        p,
        8192,
        settings.max_num_seqs,
        prefills,
        ttft_s,
        ttft_mean_s,
        tpot_s,
        tpot_s,
        busy,
        usd,
        watts / tokens_per_s,
        d,
        decodes,
    )


def _watts(item: Compiled, demand: Load, busy: Floats, tokens_per_s: Floats, batch: Floats, step_s: Floats) -> Floats:
    """Site watts a chip: its tokens' arithmetic, and the weights and caches that each step reads while busy."""
    flops = item.work.flops_per_token * tokens_per_s
    read = item.work.weight_bytes + batch * demand.context_mean * item.work.kv_bytes_per_token
    return item.economics.watts(busy, flops, busy * read / np.maximum(step_s, 1e-6))


def scaled(table: StepTable, factor: float) -> StepTable:
    """The same table with every device and host time ``factor`` as long."""
    return replace(
        table,
        mixed_s=table.mixed_s * factor,
        graph_s=table.graph_s * factor,
        decode_attention_s=table.decode_attention_s * factor,
        prefill_attention_s=table.prefill_attention_s * factor,
        host_decode_s=table.host_decode_s * factor,
        host_mixed_s=table.host_mixed_s * factor,
        host_per_sequence_s=table.host_per_sequence_s * factor,
    )
