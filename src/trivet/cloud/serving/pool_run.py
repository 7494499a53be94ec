"""The policies of ``pooling`` request by request: instances of one model are fleets, shared ones take turns.

- ``dedicated``: each model is a fleet of its own, of as many instances as the closed form says.
- ``multiplexed``: the same for whole instances; the rest shares instances on which all weights stay, in turns of one token.
- ``scale_to_zero``: a model's fleet is there from a cold start until it has been idle for the keep-alive; what arrives during
  the start waits.
- ``token_level``: whole instances for what fills them, turns with switches for the rest, balanced over the shared instances.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from trivet.cloud.deployment import EngineSettings
from trivet.cloud.serving.fleet import Fleet, ReplicaKind, simulate
from trivet.cloud.serving.pool_turns import simulate_turns
from trivet.cloud.serving.pooling import (
    Demand,
    Pool,
    PooledModel,
    capacity,
    chips_by_size,
    dedicated,
    resident_together,
    service_s,
    turns_share,
)
from trivet.cloud.serving.traffic import Traffic
from trivet.errors import TrivetError

Floats = NDArray[np.float64]
Longs = NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class PoolRun:
    """One policy on one traffic, in the order of the traffic.

    Args:
        chips: that it holds (at its peak, where they come and go).
        mean_chips: over the time.
        instance: number of the fleet or shared instance that served the request.
        cold: whether it waited for an instance to start.
        switching: share of the shared instances' time that goes into switches.
    """

    policy: str
    chips: float
    mean_chips: float
    first_token_s: Floats
    last_token_s: Floats
    instance: Longs
    cold: NDArray[np.bool_]
    switching: float = 0.0


@dataclass(slots=True, eq=False)
class _Work:
    """What is filled request by request."""

    traffic: Traffic
    models: Sequence[PooledModel]
    pool: Pool
    first: Floats
    last: Floats
    instance: Longs
    cold: NDArray[np.bool_]
    instances: int = 0

    def alone(self, model: int, requests: Longs, count: int, arrival_s: Floats | None = None) -> None:
        """``requests`` on a fleet of ``count`` instances of their model."""
        if not requests.size:
            return
        one = self.models[model]
        settings = EngineSettings(block_size=one.table.block_size)
        part = self.traffic.take(requests)
        part = replace(part, model=None, model_names=(), arrival_s=part.arrival_s if arrival_s is None else arrival_s)
        result = simulate(part, Fleet((ReplicaKind(one.table, settings, count, chips=one.chips),)))
        self.first[requests], self.last[requests] = result.first_token_s, result.last_token_s
        self.instance[requests] = self.instances
        self.instances += 1

    def turns(self, models: Sequence[int], requests: Longs, pool: Pool) -> tuple[float, float]:
        """``requests`` of ``models`` on one shared instance: its time in switches, and in all."""
        if not requests.size:
            return 0.0, 0.0
        place = np.full(len(self.models), -1)
        place[list(models)] = np.arange(len(models))
        part = self.traffic.take(requests)
        assert part.model is not None
        part = replace(part, model=place[part.model], model_names=())
        result = simulate_turns(part, [self.models[m] for m in models], pool)
        self.first[requests], self.last[requests] = result.first_token_s, result.last_token_s
        self.instance[requests] = self.instances
        self.instances += 1
        end = float(np.nanmax(result.last_token_s))
        return result.switching * end, end


def _requests(traffic: Traffic, model: int) -> Longs:
    assert traffic.model is not None
    return np.flatnonzero(traffic.model == model)


def _dedicated(work: _Work, demand: Demand, rng: np.random.Generator) -> tuple[float, float, float]:
    own = dedicated(work.models, demand, work.pool).by_model
    assert own is not None
    for at, (model, chips) in enumerate(zip(work.models, own.tolist(), strict=True)):
        work.alone(at, _requests(work.traffic, at), round(chips / model.chips))
    return float(own.sum()), float(own.sum()), 0.0


def _multiplexed(work: _Work, demand: Demand, rng: np.random.Generator) -> tuple[float, float, float]:
    whole, bins = resident_together(work.models, demand, work.pool)
    shared = np.zeros(len(work.traffic), bool)
    place = {m: b for b, one in enumerate(bins) for m in one.models}
    for at, full in enumerate(whole):
        mine = _requests(work.traffic, at)
        peak = max(demand.rate_per_s[at]) * service_s(work.models[at], work.pool) / capacity(work.models[at], work.pool)
        keeps = 1.0 if at not in place else min(full / max(peak, 1e-12), 1.0) if full else 0.0
        own = rng.random(mine.size) < keeps
        if full:
            work.alone(at, mine[own], full)
        shared[mine[~own]] = True
    # All weights are there, and nobody runs ahead: turns of a token.
    together = replace(work.pool, switch_base_s=0.0, prefetched=1.0, round_s=work.pool.tpot_slo_s)
    owner = work.traffic.model
    assert owner is not None
    for one in bins:
        work.turns(one.models, np.flatnonzero(shared & np.isin(owner, one.models)), together)
    chips = sum(n * m.chips for n, m in zip(whole, work.models, strict=True)) + sum(b.chips for b in bins)
    return float(chips), float(chips), 0.0


def _cold_starts(arrival: Floats, last: Floats, pool: Pool) -> Longs:
    """Which requests find their model gone: idle for longer than the keep-alive, or never there."""
    before = np.concatenate(([-math.inf], np.maximum.accumulate(np.nan_to_num(last, nan=-math.inf))[:-1]))
    return np.flatnonzero(arrival - before > pool.keep_alive_s)


def _scale_to_zero(work: _Work, demand: Demand, rng: np.random.Generator) -> tuple[float, float, float]:
    events: list[tuple[float, float]] = []
    used = 0.0
    for at, model in enumerate(work.models):
        mine = _requests(work.traffic, at)
        if not mine.size:
            continue
        busy = float(max(demand.rate_per_s[at])) * service_s(model, work.pool)
        count = max(1, math.ceil(work.pool.headroom * busy / capacity(model, work.pool) / work.pool.busy))
        arrival = work.traffic.arrival_s[mine]
        colds, number = np.zeros(1, np.int64), work.instances
        for _ in range(30):  # delays only grow, so the starts settle
            ready = np.full(arrival.size, -math.inf)
            ready[colds] = arrival[colds] + work.pool.cold_start_s
            delayed = np.maximum(arrival, np.maximum.accumulate(ready))
            work.instances = number
            work.alone(at, mine, count, delayed)
            found = _cold_starts(arrival, work.last[mine], work.pool)
            if np.array_equal(found, colds):
                break
            colds = found
        work.cold[mine] = delayed > arrival
        ends = np.append(colds[1:], arrival.size)
        for begin, end in zip(colds.tolist(), ends.tolist(), strict=True):
            gone = float(np.nanmax(work.last[mine[begin:end]])) + work.pool.keep_alive_s
            events += [(float(arrival[begin]), float(count * model.chips)), (gone, -float(count * model.chips))]
            used += (gone - float(arrival[begin])) * count * model.chips
    events.sort()
    level = np.cumsum([change for _, change in events]) if events else np.zeros(1)
    end = max((time for time, _ in events), default=1.0)
    return float(level.max()), used / end, 0.0


def _token_level(work: _Work, demand: Demand, rng: np.random.Generator) -> tuple[float, float, float]:
    share = turns_share(work.models, demand, work.pool)
    held = chips_by_size(work.models, work.pool, share, 0)
    switching = total = 0.0
    for size, chips in held.items():
        members = [i for i, m in enumerate(work.models) if m.chips == size]
        load = {i: share(i, 0)[0] for i in members}
        full = {i: math.floor(load[i]) for i in members}
        left: dict[int, float] = {}
        rest: dict[int, Longs] = {}
        for i in members:
            mine = _requests(work.traffic, i)
            own = rng.random(mine.size) < (full[i] / load[i] if full[i] else 0.0)
            if full[i]:
                work.alone(i, mine[own], full[i])
            rest[i], left[i] = mine[~own], load[i] - full[i]
        bins: list[list[int]] = [[] for _ in range(max(1, round(chips / size) - sum(full.values())))]
        weight = np.zeros(len(bins))
        for i in sorted(members, key=lambda m: -left[m]):  # longest first onto the least loaded
            at = int(weight.argmin())
            bins[at].append(i)
            weight[at] += left[i]
        for one in bins:
            requests = np.sort(np.concatenate([rest[i] for i in one])) if one else np.zeros(0, np.int64)
            spent, time = work.turns(one, requests, work.pool)
            switching, total = switching + spent, total + time
    chips_held = float(sum(held.values()))
    return chips_held, chips_held, switching / total if total else 0.0


Run = Callable[[_Work, Demand, np.random.Generator], tuple[float, float, float]]
RUNS: dict[str, Run] = {
    "dedicated": _dedicated,
    "multiplexed": _multiplexed,
    "scale_to_zero": _scale_to_zero,
    "token_level": _token_level,
}


def simulate_pool(
    policy: str, traffic: Traffic, models: Sequence[PooledModel], demand: Demand, pool: Pool, seed: int = 0
) -> PoolRun:
    """Follow ``traffic`` (``model`` = index into ``models``) under a policy that is sized for ``demand``'s only window.

    Raises:
        TrivetError: an unknown policy, more than one window, or requests without a model.
    """
    if policy not in RUNS:
        raise TrivetError(f"unknown {policy!r}", field="policy", allowed=RUNS)
    if demand.rate_per_s.shape != (len(models), 1):
        raise TrivetError(f"{demand.rate_per_s.shape}", field="demand", allowed="[models, 1]")
    if traffic.model is None or (len(traffic) and int(traffic.model.max()) >= len(models)):
        raise TrivetError("every request needs the index of its model", field="traffic.model")
    count = len(traffic)
    work = _Work(
        traffic, models, pool, np.full(count, np.nan), np.full(count, np.nan), np.full(count, -1), np.zeros(count, bool)
    )
    chips, mean, switching = RUNS[policy](work, demand, np.random.default_rng([seed, 11]))
    return PoolRun(policy, chips, mean, work.first, work.last, work.instance, work.cold, switching)
