"""A marketplace of models rebuilt from the published facts of Aegaeon (SOSP 2025), with spread.

Published: tens of models of 1.8B to 72B that had 1,192 H20 of their own were served by 213 after pooling; before, 17.7% of
the GPUs served 1.35% of the requests. Not published: the models' traffic, and how generously each was provisioned. So a
marketplace is drawn many times. Each model takes the rate and burstiness of one real customer series of the same platform
(``tenants_traffic``), all rates are scaled together until dedicated serving needs the published 1,192 chips, and the pooled
policies are asked what they need for the same demand. 213, and the share of chips under cold models, are left for comparison.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from trivet.cloud.serving.pooling import Demand, Pool, PooledModel, compare, dedicated
from trivet.cloud.serving.tenants_traffic import WINDOW_S, Service
from trivet.errors import TrivetError

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Published:
    """What is known of the marketplace."""

    dedicated_chips: float = 1192.0
    pooled_chips: float = 213.0
    cold_chips_share: float = 0.177
    cold_requests_share: float = 0.0135


@dataclass(frozen=True, slots=True)
class Unknowns:
    """Intervals (uniform) of what is not published."""

    models: tuple[int, int] = (40, 60)  # "tens of models"
    small_share: tuple[float, float] = (0.45, 0.75)  # of models that fit one chip
    switch_base_s: tuple[float, float] = (0.05, 0.4)
    prefetched: tuple[float, float] = (0.2, 0.9)
    link_share: tuple[float, float] = (0.5, 0.9)  # of the host link's data-sheet rate
    round_s: tuple[float, float] = (2.0, 6.0)
    busy: tuple[float, float] = (0.75, 0.95)
    headroom: tuple[float, float] = (1.0, 2.0)  # of dedicated instances over the measured peak
    confidence: tuple[float, float] = (0.99, 0.999)


@dataclass(frozen=True, slots=True, eq=False)
class Draw:
    """One marketplace: chips by policy, and the share of dedicated chips under its cold models."""

    models: int
    chips: dict[str, float]
    cold_chips_share: float
    requests_per_s: float
    settings: dict[str, float]


def customer_series(
    services: Mapping[str, Service], *, every: int = 7, least_requests: int = 1000
) -> tuple[Floats, Floats]:
    """(rate per second, CV): arrays [customers, windows] of all services' clients with two weeks of record.

    ``every``: take each so-many-th 10-minute window. Clients with fewer requests in all are left out.
    """
    rates, spreads = [], []
    for service in services.values():
        if service.windows < 2016:
            continue
        chosen = np.flatnonzero(service.requests.sum(axis=1) >= least_requests)
        rates.append(service.requests[chosen, ::every] / WINDOW_S)
        spreads.append(service.cv[chosen, ::every].astype(float))
    if not rates:
        raise TrivetError("no service with two weeks of record", field="services")
    return np.concatenate(rates), np.concatenate(spreads)


def rebuild(
    small: Sequence[PooledModel],
    large: Sequence[PooledModel],
    series: tuple[Floats, Floats],
    pool: Pool,
    *,
    draws: int = 40,
    seed: int = 0,
    unknowns: Unknowns | None = None,
    published: Published | None = None,
    progress: Callable[[int], None] | None = None,
) -> list[Draw]:
    """Draw marketplaces.

    Args:
        small, large: models that fit one chip, and larger ones, to draw from.
        series: see :func:`customer_series`.
        pool: chips and service level; ``link_bytes_per_s`` is the data sheet's.
        progress: called with the number of finished draws.
    """
    unknowns, published = unknowns or Unknowns(), published or Published()
    rng = np.random.default_rng(seed)
    found = []
    for at in range(draws):
        found.append(_draw(small, large, series, pool, unknowns, published, rng))
        if progress is not None:
            progress(at + 1)
    return found


def _draw(
    small: Sequence[PooledModel],
    large: Sequence[PooledModel],
    series: tuple[Floats, Floats],
    pool: Pool,
    unknowns: Unknowns,
    published: Published,
    rng: np.random.Generator,
) -> Draw:
    count = int(rng.integers(unknowns.models[0], unknowns.models[1] + 1))
    smalls = round(count * float(rng.uniform(*unknowns.small_share)))
    models = [small[i] for i in rng.integers(len(small), size=smalls)]
    models += [large[i] for i in rng.integers(len(large), size=count - smalls)]
    drawn = {
        k: float(rng.uniform(*getattr(unknowns, k)))
        for k in ("switch_base_s", "prefetched", "round_s", "busy", "headroom", "confidence")
    }
    link = float(rng.uniform(*unknowns.link_share))
    here = replace(pool, **drawn, link_bytes_per_s=pool.link_bytes_per_s * link)
    chosen = rng.choice(series[0].shape[0], count, replace=False)
    rates, spreads = series[0][chosen], series[1][chosen]
    scale = _scale(models, rates, spreads, here, published.dedicated_chips)
    demand = Demand(rates * scale, spreads)
    needs = compare(models, demand, here)
    own = needs["dedicated"].by_model
    assert own is not None
    requests = demand.rate_per_s.mean(axis=1)
    order = np.argsort(requests)
    cold = np.cumsum(requests[order]) <= published.cold_requests_share * requests.sum()
    share = float(own[order][cold].sum() / own.sum())
    chips = {name: need.chips for name, need in needs.items()}
    return Draw(count, chips, share, float(requests.sum()), drawn | {"link_share": link, "small_share": smalls / count})


def _scale(models: Sequence[PooledModel], rates: Floats, spreads: Floats, pool: Pool, chips: float) -> float:
    """Factor on all rates at which dedicated serving needs ``chips`` (bisection in the logarithm)."""
    lo, hi = -9.0, 9.0
    for _ in range(14):
        middle = 0.5 * (lo + hi)
        if dedicated(models, Demand(rates * np.exp(middle), spreads), pool).chips < chips:
            lo = middle
        else:
            hi = middle
    return float(np.exp(hi))


def spread(draws: Sequence[Draw], policy: str) -> dict[str, float]:
    """Median and 80% interval of the chips of a policy."""
    lo, middle, hi = np.quantile([d.chips[policy] for d in draws], [0.1, 0.5, 0.9])
    return {"value": float(middle), "lo": float(lo), "hi": float(hi)}


def drivers(draws: Sequence[Draw], policy: str, most: int = 5) -> list[dict[str, float | str]]:
    """What the chips of a policy follow: the settings by rank correlation (Spearman), largest first.

    Those below ``2 / sqrt(draws)``, which may be chance, are left out.
    """
    chips = _ranks(np.array([d.chips[policy] for d in draws]))
    columns = {name: np.array([d.settings[name] for d in draws]) for name in draws[0].settings}
    columns["models"] = np.array([float(d.models) for d in draws])
    columns["requests_per_s"] = np.array([d.requests_per_s for d in draws])
    found = []
    for name, values in columns.items():
        ranks = _ranks(values)
        if chips.std() > 0 and ranks.std() > 0:
            value = float(np.corrcoef(ranks, chips)[0, 1])
            if abs(value) > 2.0 / math.sqrt(len(draws)):
                found.append((name, value))
    found.sort(key=lambda pair: -abs(pair[1]))
    return [{"name": name, "rank_correlation": value} for name, value in found[:most]]


def _ranks(values: Floats) -> Floats:
    """Ranks with ties at their mean."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - 0.5 * (counts - 1))[inverse].astype(float)
