"""Many models on one fleet: how many chips each way of sharing needs.

Four policies over the same demand, each a function of ``POLICIES``:

- ``dedicated``: every model has instances of its own, enough for its own peak, at least one.
- ``multiplexed``: models stay resident together as long as their weights and KV fit one chip's memory (in the manner of
  MuxServe, ICML 2024); the rest as dedicated.
- ``scale_to_zero``: an instance exists while its model has a request (and a while longer); a request that finds none
  pays the cold start (in the manner of ServerlessLLM, OSDI 2024).
- ``token_level``: chips take turns between models between two tokens, weights come from host memory over the host link,
  prefetched in part (in the manner of Aegaeon, SOSP 2025, doi 10.1145/3731569.3764815).

**Equations.** A model with n requests in service needs a share of an instance's time so that each of them gets one token
every ``tpot_slo_s`` (d): its decode step takes tau(n), so n requests take ``tau(n) / d`` of an instance; prompts take
``rate * prefill_s``; in turns of ``round_s`` (R) an active model also takes ``switch_s / R``. The number in service, n, is
negative-binomial of mean ``rate * latency`` (Little) and variance CV^2 times the mean (a renewal process's index of
dispersion), Poisson at CV <= 1. What a fleet must hold is the ``confidence`` quantile: of each model alone where models do
not share, of the sum (normal, independent models) where they do. That difference is what pooling saves.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from trivet.cloud.deployment import Deployment, StepTable
from trivet.cloud.serving.rate import bilinear, linear
from trivet.errors import DoesNotFit, TrivetError

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class PooledModel:
    """One model of a marketplace.

    Args:
        table: step times of one instance.
        chips: of one instance.
        weight_bytes, kv_bytes_per_token: on one chip of an instance.
        input_tokens, output_tokens: means of a request.
    """

    name: str
    table: StepTable
    chips: int
    weight_bytes: float
    kv_bytes_per_token: float
    input_tokens: float
    output_tokens: float

    @property
    def context(self) -> float:
        """Mean tokens in cache of a request in service."""
        return self.input_tokens + 0.5 * self.output_tokens

    def decode_s(self, sequences: Floats) -> Floats:
        """A decode step of so many sequences."""
        n = np.asarray(sequences, float)
        t = self.table
        device = linear(t.sequences, t.graph_s, n) + bilinear(
            t.sequences, t.context, t.decode_attention_s, n, np.full_like(n, self.context)
        )
        host = t.host_decode_s + t.host_per_sequence_s * n
        return np.maximum(device, host) if t.overlap else device + host

    @property
    def prefill_s(self) -> float:
        """A prompt alone."""
        t, q = self.table, np.array([max(self.input_tokens, 1.0)])
        attention = bilinear(t.chunk, t.past, t.prefill_attention_s, q, np.zeros(1))
        return float((linear(t.tokens, t.mixed_s, q) + attention)[0]) + t.host_mixed_s


def from_deployment(deployment: Deployment, input_tokens: float, output_tokens: float) -> PooledModel:
    """A model of the marketplace from a deployment of one instance."""
    from trivet.cloud.engine import step_table
    from trivet.model import memory

    architecture, layout, settings = deployment.architecture, deployment.layout, deployment.settings
    context = input_tokens + 0.5 * output_tokens
    weights = memory.weight_bytes(
        architecture, layout, weight_dtype=settings.weight_dtype, moe_dtype=settings.moe_dtype
    )
    cache = memory.kv_bytes_per_sequence(architecture, context, layout, kv_dtype=settings.kv_dtype) / context
    table = step_table(deployment)
    return PooledModel(
        architecture.name, table, layout.chips, float(weights), float(cache), input_tokens, output_tokens
    )


@dataclass(frozen=True, slots=True)
class Pool:
    """Chips, service level and what switching costs. Times in seconds.

    Args:
        memory_bytes: of one chip, usable.
        link_bytes_per_s: host memory to chip, achieved.
        switch_base_s: fixed part of a switch between two models that are both in host memory.
        prefetched: share of the weights that is already there when the turn comes.
        cold_start_s: starting an instance from nothing (process, weights, graphs).
        keep_alive_s: how long ``scale_to_zero`` keeps an idle instance.
        round_s: one turn over all models of a chip.
        ttft_slo_s, tpot_slo_s: the service level.
        busy: highest planned share of a chip's time.
        headroom: instances of ``dedicated`` over what its peak needs (growth, a spare, another zone).
        confidence: share of the time in which the fleet must suffice.
    """

    memory_bytes: float
    link_bytes_per_s: float
    switch_base_s: float = 0.1
    prefetched: float = 0.5
    cold_start_s: float = 30.0
    keep_alive_s: float = 60.0
    round_s: float = 4.0
    ttft_slo_s: float = 10.0
    tpot_slo_s: float = 0.1
    busy: float = 0.9
    headroom: float = 1.0
    confidence: float = 0.99

    def __post_init__(self) -> None:
        for name in ("memory_bytes", "link_bytes_per_s", "round_s", "ttft_slo_s", "tpot_slo_s"):
            if not getattr(self, name) > 0:
                raise TrivetError(f"{getattr(self, name)} is not positive", field=name)
        for name in ("prefetched", "busy", "confidence"):
            if not 0 <= getattr(self, name) <= 1:
                raise TrivetError(f"{getattr(self, name)} is no share", field=name, allowed="0 to 1")

    def switch_s(self, model: PooledModel) -> float:
        """To bring a model onto its chips."""
        return self.switch_base_s + (1 - self.prefetched) * model.weight_bytes / self.link_bytes_per_s


@dataclass(frozen=True, slots=True, eq=False)
class Demand:
    """``rate_per_s`` and ``cv`` (of the times between arrivals): arrays [models, windows]."""

    rate_per_s: Floats
    cv: Floats

    def __post_init__(self) -> None:
        if self.rate_per_s.shape != self.cv.shape or self.rate_per_s.ndim != 2:
            raise TrivetError(
                f"shapes {self.rate_per_s.shape} and {self.cv.shape}",
                field="rate_per_s, cv",
                allowed="[models, windows]",
            )
        if not (np.isfinite(self.rate_per_s).all() and (self.rate_per_s >= 0).all()):
            raise TrivetError("not finite rates >= 0", field="rate_per_s")


@dataclass(frozen=True, slots=True, eq=False)
class Need:
    """Chips that a policy needs; by model where models do not share."""

    policy: str
    chips: float
    by_model: Floats | None = None
    meets_ttft: bool = True


def capacity(model: PooledModel, pool: Pool) -> float:
    """Requests that one instance serves at once: within the token SLO, the step's own limit and the KV cache."""
    most = float(model.table.sequences[-1])
    grid = np.unique(np.round(np.geomspace(1, most, 128)))
    within = grid[model.decode_s(grid) <= pool.tpot_slo_s]
    if not within.size:
        raise DoesNotFit(
            f"{model.name}: one request alone is slower than {pool.tpot_slo_s} s a token", field="tpot_slo_s"
        )
    kv = (pool.memory_bytes - model.weight_bytes) / (model.kv_bytes_per_token * model.context)
    if kv < 1:
        raise DoesNotFit(f"{model.name}: no room for one request", field="memory_bytes")
    return min(float(within[-1]), kv)


def latency_s(model: PooledModel, pace_s: float) -> float:
    """Time in service at ``pace_s`` a token."""
    return model.prefill_s + model.output_tokens * pace_s


@lru_cache(maxsize=4096)
def _distribution(mean: float, dispersion: float) -> tuple[Floats, Floats]:
    """(n, probability) of the number in service, negative-binomial; far tails are cut, large means are gamma."""
    from scipy.special import gammaincinv, gammaln

    if mean <= 0:
        return np.zeros(1), np.ones(1)
    dispersion = max(dispersion, 1.0 + 1e-6)  # the negative binomial's limit at 1 is Poisson
    if mean > 300.0:
        share = (np.arange(256) + 0.5) / 256
        return np.round(dispersion * gammaincinv(mean / dispersion, share)), np.full(256, 1 / 256)
    top = int(mean + 8.0 * math.sqrt(mean * dispersion) + 8.0 * dispersion) + 8
    n = np.unique(np.round(np.geomspace(1, top + 1, 3000))) - 1 if top > 6000 else np.arange(top + 1.0)
    size = mean / (dispersion - 1.0)
    log_p = gammaln(n + size) - gammaln(size) - gammaln(n + 1) - size * math.log(dispersion)
    log_p += n * (math.log(dispersion - 1.0) - math.log(dispersion))
    p = np.exp(log_p) * np.diff(n, append=n[-1] + 1)  # where n is thinned a point stands for those up to the next
    return n, p / p.sum()


def _rounded(value: float) -> float:
    """Three digits: what is drawn from a distribution need not be told apart further, and equal loads are met again."""
    return float(f"{value:.3g}") if value > 0 else 0.0


def _moments(mean: float, cv: float, cost: Callable[[Floats], Floats]) -> tuple[float, float]:
    n, p = _distribution(_rounded(mean), _rounded(max(cv * cv, 1.0)))
    value = cost(n)
    first = float(value @ p)
    return first, float((value - first) ** 2 @ p)


def _quantile(mean: float, cv: float, share: float) -> float:
    n, p = _distribution(_rounded(mean), _rounded(max(cv * cv, 1.0)))
    return float(n[min(int(np.searchsorted(np.cumsum(p), share)), n.size - 1)])


def service_s(model: PooledModel, pool: Pool) -> float:
    """Time in service on an instance that is as full as it may be: every other request's prompt stalls it once."""
    limit = capacity(model, pool)
    return limit * model.prefill_s + model.output_tokens * float(model.decode_s(np.array([limit]))[0])


def _peaks(models: Sequence[PooledModel], demand: Demand, pool: Pool) -> Floats:
    """For each model the ``confidence`` quantile of its requests in service, in its worst window."""
    found = np.zeros(len(models))
    for m, model in enumerate(models):
        means = demand.rate_per_s[m] * service_s(model, pool)
        # The worst window by mean plus two deviations; only a few need the exact quantile.
        score = means + 2.3 * np.sqrt(means * np.maximum(demand.cv[m] ** 2, 1.0))
        for w in np.argsort(score)[-2:]:
            found[m] = max(found[m], _quantile(float(means[w]), float(demand.cv[m, w]), pool.confidence))
    return found


def dedicated(models: Sequence[PooledModel], demand: Demand, pool: Pool) -> Need:
    """Own instances, for the own peak."""
    peaks = _peaks(models, demand, pool)
    instances = [max(1, math.ceil(pool.headroom * p / capacity(m, pool))) for m, p in zip(models, peaks, strict=True)]
    chips = np.array([i * m.chips for i, m in zip(instances, models, strict=True)], float)
    return Need("dedicated", float(chips.sum()), chips)


@dataclass(slots=True)
class Bin:
    """An instance that several models share: its size, what of its memory and time is taken, and whose."""

    chips: int
    memory: float
    time: float
    models: list[int]


def resident_together(models: Sequence[PooledModel], demand: Demand, pool: Pool) -> tuple[list[int], list[Bin]]:
    """First fit, largest first, by memory and by time: whole instances of each model, and who shares one for the rest."""
    whole: list[int] = []
    bins: list[Bin] = []
    items = []
    for at, (model, peak) in enumerate(zip(models, _peaks(models, demand, pool), strict=True)):
        limit = capacity(model, pool)
        full = int(peak // limit) if peak >= limit else 0
        rest = peak - full * limit
        whole.append(full)
        if full and rest <= 0:
            continue
        rest = max(rest, 1.0)
        memory = (model.weight_bytes + rest * model.context * model.kv_bytes_per_token) / pool.memory_bytes
        time = float(model.decode_s(np.array([rest]))[0]) / pool.tpot_slo_s / pool.busy
        items.append((max(memory, time), memory, time, model.chips, at))
    for _, memory, time, chips, at in sorted(items, reverse=True):
        place = next((b for b in bins if b.chips == chips and b.memory + memory <= 1 and b.time + time <= 1), None)
        if place is None:
            bins.append(Bin(chips, memory, time, [at]))
        else:
            place.memory += memory
            place.time += time
            place.models.append(at)
    return whole, bins


def multiplexed(models: Sequence[PooledModel], demand: Demand, pool: Pool) -> Need:
    """Resident together by memory and by time; whole instances stay dedicated."""
    whole, bins = resident_together(models, demand, pool)
    own = sum(n * m.chips for n, m in zip(whole, models, strict=True))
    return Need("multiplexed", float(own + sum(b.chips for b in bins)))


Share = Callable[[int, int], tuple[float, float]]  # (model, window) -> mean and variance of the instances it takes
CANDIDATES = 12  # windows that are looked at exactly: the heaviest by mean and two deviations


def _heaviest(models: Sequence[PooledModel], demand: Demand, pool: Pool) -> NDArray[np.int64]:
    """Windows in which the sum of all models may be largest, by a rough measure."""
    limits = np.array([capacity(m, pool) for m in models])
    weight = np.array([m.chips * service_s(m, pool) for m in models]) / limits
    load = weight @ demand.rate_per_s
    square = weight * np.array([m.chips for m in models]) / limits
    noise = np.sqrt(square @ (demand.rate_per_s * np.maximum(demand.cv**2, 1.0)))
    return np.argsort(load + 2.3 * noise)[::-1][:CANDIDATES]


def chips_by_size(models: Sequence[PooledModel], pool: Pool, share: Share, window: int) -> dict[int, float]:
    """Chips for one window, for each instance size: mean plus z deviations of the sum, in whole instances."""
    from scipy.special import ndtri

    z = float(ndtri(pool.confidence))
    sizes = np.array([m.chips for m in models])
    loads = np.array([share(i, window) for i in range(len(models))])
    found = {}
    for chips in np.unique(sizes).tolist():
        mean, variance = loads[sizes == chips].sum(axis=0)
        found[chips] = float(chips) * math.ceil(mean + z * math.sqrt(variance) - 1e-9)
    return found


def _sum_quantile(models: Sequence[PooledModel], demand: Demand, pool: Pool, share: Share) -> float:
    """Chips for the worst window."""
    return max(sum(chips_by_size(models, pool, share, int(w)).values()) for w in _heaviest(models, demand, pool))


def scale_to_zero(models: Sequence[PooledModel], demand: Demand, pool: Pool) -> Need:
    """Instances that exist while their model is in use."""
    capacities = [capacity(m, pool) for m in models]
    services = [service_s(m, pool) for m in models]

    def share(i: int, w: int) -> tuple[float, float]:
        rate, cv, limit = float(demand.rate_per_s[i, w]), float(demand.cv[i, w]), capacities[i]
        # An instance is up from the cold start to the end of the keep-alive, so those count as time in service.
        held = services[i] + pool.cold_start_s + pool.keep_alive_s
        alone = services[i] / held

        def instances(n: Floats) -> Floats:
            return np.where(n > 0, np.maximum(1.0, np.ceil(n * alone / limit)), 0.0)

        return _moments(rate * held, cv, instances)

    chips = _sum_quantile(models, demand, pool, share)
    return Need("scale_to_zero", chips, meets_ttft=pool.cold_start_s <= pool.ttft_slo_s)


def turns_share(models: Sequence[PooledModel], demand: Demand, pool: Pool) -> Share:
    """Mean and variance of the instances that a model takes in turns; one with load for whole chips keeps those."""
    capacities = [capacity(m, pool) for m in models]
    services = [service_s(m, pool) for m in models]
    switches = [pool.switch_s(m) / pool.round_s for m in models]

    def share(i: int, w: int) -> tuple[float, float]:
        model, rate, cv, limit = models[i], float(demand.rate_per_s[i, w]), float(demand.cv[i, w]), capacities[i]
        if rate * services[i] >= limit:  # whole chips at their own pace; only what is left takes turns
            mean, variance = _moments(rate * services[i], cv, lambda n: n / limit)
            return mean / pool.busy + switches[i], variance / pool.busy**2

        def time(n: Floats) -> Floats:
            batches = np.ceil(n / limit)
            each = n / np.maximum(batches, 1.0)
            decode = batches * np.where(n > 0, model.decode_s(np.maximum(each, 1.0)), 0.0)
            return decode / pool.tpot_slo_s + np.where(n > 0, switches[i], 0.0)

        # In turns a request streams at the SLO's pace: that is how long it is in service.
        mean, variance = _moments(rate * latency_s(model, pool.tpot_slo_s), cv, time)
        return (mean + rate * model.prefill_s) / pool.busy, variance / pool.busy**2

    return share


def token_level(models: Sequence[PooledModel], demand: Demand, pool: Pool) -> Need:
    """Turns between models at token boundaries; a model with load for whole chips keeps those to itself."""
    return Need("token_level", _sum_quantile(models, demand, pool, turns_share(models, demand, pool)))


POLICIES: dict[str, Callable[[Sequence[PooledModel], Demand, Pool], Need]] = {
    "dedicated": dedicated,
    "multiplexed": multiplexed,
    "scale_to_zero": scale_to_zero,
    "token_level": token_level,
}


def compare(
    models: Sequence[PooledModel], demand: Demand, pool: Pool, policies: Sequence[str] = tuple(POLICIES)
) -> dict[str, Need]:
    """Every policy on the same demand. Raises TrivetError when models and demand differ in number or a name is unknown."""
    if demand.rate_per_s.shape[0] != len(models):
        raise TrivetError(f"{demand.rate_per_s.shape[0]} rows for {len(models)} models", field="demand")
    unknown = [p for p in policies if p not in POLICIES]
    if unknown:
        raise TrivetError(f"unknown {unknown[0]!r}", field="policies", allowed=POLICIES)
    return {p: POLICIES[p](models, demand, pool) for p in policies}
