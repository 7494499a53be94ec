"""Scenarios of ``trivet simulate`` that pool many models on one fleet: their schema, and what they bring.

Two kinds. ``models`` names the models and their demand: every policy is sized in closed form and followed request by request.
``marketplace`` draws marketplaces of which only some totals are published, and tells chips by policy with their spread and
what drives it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from trivet.chip.catalogue import chip as find_chip
from trivet.chip.spec import Chip
from trivet.cloud.deployment import Deployment, EngineSettings
from trivet.cloud.serving import marketplace
from trivet.cloud.serving.generate import lengths, open_loop
from trivet.cloud.serving.metrics import spread
from trivet.cloud.serving.pool_run import PoolRun, simulate_pool
from trivet.cloud.serving.pooling import POLICIES, Demand, Pool, PooledModel, compare, from_deployment
from trivet.cloud.serving.tenants_traffic import Service
from trivet.cloud.serving.traffic import Traffic, merge
from trivet.errors import TrivetError
from trivet.loop.economics import economics
from trivet.loop.scenario_schema import Length
from trivet.model.config import read as read_model
from trivet.model.parallel import Layout

ReadClients = Callable[[str], Mapping[str, Service]]
Policy = Literal["dedicated", "multiplexed", "scale_to_zero", "token_level"]
MOST_REQUESTS = 2_000_000


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=False)


class PooledPart(_Strict):
    """``count`` models of one kind, each with demand of its own."""

    model: str
    count: int = Field(1, ge=1, le=10_000)
    tp: int = Field(1, ge=1)
    rate_per_s: float = Field(gt=0)
    cv: float = Field(1.0, gt=0)
    inputs: Length = 330
    outputs: Length = 250


class MarketplacePart(_Strict):
    """Marketplaces drawn around published totals; see ``cloud/serving/marketplace.py``."""

    small: list[str] = Field(min_length=1)
    large: list[str] = Field(min_length=1)
    large_tp: int = Field(4, ge=1)
    input_tokens: float = Field(330.0, gt=0)
    output_tokens: float = Field(250.0, gt=0)
    draws: int = Field(60, ge=2, le=10_000)
    dedicated_chips: float = Field(1192.0, gt=0)
    published: dict[str, float] = Field(default_factory=dict)
    cold_requests_share: float = Field(0.0135, gt=0, lt=1)
    customers: str = "bailian"
    unknowns: dict[str, tuple[float, float]] = Field(default_factory=dict)


class PoolingPart(_Strict):
    """Models, chips and how they are shared; what a switch or a start costs in seconds."""

    chip: str
    policy: list[Policy] | Policy | Literal["compare"] = "compare"
    models: list[PooledPart] = Field(default_factory=list)
    marketplace: MarketplacePart | None = None
    seconds: float = Field(1800.0, gt=0)
    memory_utilization: float = Field(0.9, gt=0, le=1)
    link_bytes_per_s: float | None = Field(None, gt=0)
    switch_base_s: float = Field(0.1, ge=0)
    prefetched: float = Field(0.5, ge=0, le=1)
    cold_start_s: float = Field(30.0, ge=0)
    keep_alive_s: float = Field(60.0, ge=0)
    round_s: float = Field(4.0, gt=0)
    busy: float = Field(0.9, gt=0, le=1)
    headroom: float = Field(1.0, ge=1)
    confidence: float = Field(0.99, gt=0.5, lt=1)


class PoolSlo(_Strict):
    ttft_s: float = Field(10.0, gt=0)
    tpot_s: float = Field(0.1, gt=0)


class PoolScenario(_Strict):
    """One file of the pooling kind."""

    title: str = ""
    pooling: PoolingPart
    slo: PoolSlo = Field(default_factory=lambda: PoolSlo())
    price_basis: str = "tco_hyperscaler"
    site: str = ""
    seed: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class Pooled:
    """What a run brings: ``requests`` columns (None for marketplaces) and ``draws`` columns (None for models)."""

    scenario: PoolScenario
    summary: dict[str, Any]
    requests: dict[str, Any] | None
    draws: dict[str, Any] | None
    notes: tuple[str, ...]


def parse_pooling(raw: Mapping[str, Any]) -> PoolScenario:
    """Check a scenario of the pooling kind; the first mistake is told in one line."""
    try:
        scenario = PoolScenario.model_validate(raw)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "scenario"
        raise TrivetError(str(first["msg"]), field=where) from None
    part = scenario.pooling
    if bool(part.models) == (part.marketplace is not None):
        raise TrivetError(
            "name models or a marketplace", field="pooling", allowed="models: [...], or marketplace: {...}"
        )
    return scenario


def run(
    raw: Mapping[str, Any], read_clients: ReadClients, report: Callable[[str, int, int], None] = lambda *_: None
) -> Pooled:
    """Simulate a scenario of the pooling kind. Raises TrivetError naming the field that is wrong."""
    scenario = parse_pooling(raw)
    card = find_chip(scenario.pooling.chip)
    pool = _pool(scenario, card)
    if scenario.pooling.marketplace is not None:
        return _marketplace(scenario, card, pool, read_clients, report)
    return _models(scenario, card, pool, report)


def _pool(scenario: PoolScenario, card: Chip) -> Pool:
    part = scenario.pooling
    memory = card.get("memory_bytes")
    link = part.link_bytes_per_s or card.get("host_bandwidth_bytes_per_s")
    if memory is None or link is None:
        raise TrivetError(f"{card.name}: memory or host link unknown", field="pooling.link_bytes_per_s")
    return Pool(
        part.memory_utilization * memory, link, part.switch_base_s, part.prefetched, part.cold_start_s, part.keep_alive_s,
        part.round_s, scenario.slo.ttft_s, scenario.slo.tpot_s, part.busy, part.headroom, part.confidence,
    )  # fmt: skip


def _policies(part: PoolingPart) -> list[str]:
    if part.policy == "compare":
        return list(POLICIES)
    return [part.policy] if isinstance(part.policy, str) else list(dict.fromkeys(part.policy))


def _model(name: str, card: Chip, tp: int, inputs: float, outputs: float) -> PooledModel:
    return from_deployment(Deployment(read_model(name), card, Layout(tp=tp), EngineSettings()), inputs, outputs)


def _models(scenario: PoolScenario, card: Chip, pool: Pool, report: Callable[[str, int, int], None]) -> Pooled:
    part = scenario.pooling
    expected = sum(p.rate_per_s * p.count for p in part.models) * part.seconds
    if expected > MOST_REQUESTS:
        raise TrivetError(f"some {expected:,.0f} requests", field="pooling.seconds", allowed=f"up to {MOST_REQUESTS:,}")
    models, parts, rates, cvs = [], [], [], []
    for number, kind in enumerate(part.models):
        means = [float(lengths(spec, 4096, seed=scenario.seed).mean()) for spec in (kind.inputs, kind.outputs)]  # type: ignore[arg-type]
        one = _model(kind.model, card, kind.tp, *means)
        for copy in range(kind.count):
            count = max(1, round(kind.rate_per_s * part.seconds))
            seed = scenario.seed * 1_000_003 + number * 10_007 + copy
            traffic = open_loop(
                count, rate_per_s=kind.rate_per_s, inputs=kind.inputs, outputs=kind.outputs,  # type: ignore[arg-type]
                process="poisson" if kind.cv == 1 else "gamma", cv=kind.cv, seed=seed,
            )  # fmt: skip
            parts.append(traffic.take(traffic.arrival_s <= part.seconds))
            models.append(one)
            rates.append(kind.rate_per_s)
            cvs.append(kind.cv)
    traffic = merge(parts)
    demand = Demand(np.array(rates)[:, None], np.array(cvs)[:, None])
    names = _policies(part)
    needs = compare(models, demand, pool, names)
    runs = []
    for done, name in enumerate(names):
        report(name, done, len(names))
        runs.append(simulate_pool(name, traffic, models, demand, pool, scenario.seed))
    price = economics(card, scenario.price_basis, scenario.site).usd_per_chip_s
    told = {r.policy: _told(r, traffic, needs[r.policy].chips, scenario.slo, price * part.seconds) for r in runs}
    notes = (
        "Instances of one model are simulated as fleets of the event loop, shared instances turn by turn.",
        "A request counts as kept with its first token and its mean time per output token within the SLO, its stream as on time "
        "when the first and the last token come by the arrival plus the SLO of the first and one token time for each after it.",
    )
    summary = {
        "title": scenario.title, "kind": "pooling", "chip": card.name, "models": len(models), "requests": len(traffic),
        "duration_s": part.seconds, "slo": scenario.slo.model_dump(), "policies": told, "notes": list(notes),
    }  # fmt: skip
    return Pooled(scenario, summary, _columns(runs, traffic), None, notes)


def _told(run: PoolRun, traffic: Traffic, planned: float, slo: PoolSlo, usd_per_chip: float) -> dict[str, Any]:
    ttft = run.first_token_s - traffic.arrival_s
    many = traffic.output_tokens > 1
    tpot = np.where(many, (run.last_token_s - run.first_token_s) / np.maximum(traffic.output_tokens - 1, 1), np.nan)
    fast, steady = ttft <= slo.ttft_s, ~(tpot > slo.tpot_s * (1 + 1e-9))
    done = np.isfinite(run.last_token_s)
    due = traffic.arrival_s + slo.ttft_s + (traffic.output_tokens - 1) * slo.tpot_s
    stream = run.last_token_s <= due + 1e-9
    tokens = float(traffic.output_tokens[done].sum())
    return {
        "chips": run.chips, "chips_in_closed_form": planned, "chips_mean": run.mean_chips,
        "requests": {"done": int(done.sum()), "refused": int((~done).sum()), "cold": int(run.cold.sum())},
        "ttft_s": spread(ttft), "tpot_s": spread(tpot), "e2e_s": spread(run.last_token_s - traffic.arrival_s),
        "slo": {"ttft": float((fast & done).mean()), "tpot": float((steady & done).mean()),
            "attainment": float((fast & steady & done).mean()), "stream": float((fast & stream).mean())},
        "switching_share": run.switching,
        "usd_per_million_output_tokens": run.mean_chips * usd_per_chip / tokens * 1e6 if tokens else None,
    }  # fmt: skip


def _columns(runs: list[PoolRun], traffic: Traffic) -> dict[str, Any]:
    """``requests.parquet``: every request once for each policy."""
    count = len(traffic)
    assert traffic.model is not None
    each: dict[str, Any] = {
        "request_id": np.arange(count), "model": traffic.model, "arrival_s": traffic.arrival_s,
        "input_tokens": traffic.input_tokens, "output_tokens": traffic.output_tokens,
    }  # fmt: skip
    return {
        "policy": np.repeat(np.array([r.policy for r in runs], dtype=object), count),
        **{name: np.tile(values, len(runs)) for name, values in each.items()},
        "first_token_s": np.concatenate([r.first_token_s for r in runs]),
        "last_token_s": np.concatenate([r.last_token_s for r in runs]),
        "instance": np.concatenate([r.instance for r in runs]),
        "cold": np.concatenate([r.cold for r in runs]),
    }


def _marketplace(
    scenario: PoolScenario, card: Chip, pool: Pool, read_clients: ReadClients, report: Callable[[str, int, int], None]
) -> Pooled:
    part = scenario.pooling.marketplace
    assert part is not None
    known = set(marketplace.Unknowns.__slots__)
    wrong = [name for name in part.unknowns if name not in known]
    if wrong:
        raise TrivetError(f"unknown {wrong[0]!r}", field="pooling.marketplace.unknowns", allowed=sorted(known))
    fixed = {n: tuple(map(int, v)) if n == "models" else v for n, v in part.unknowns.items()}
    published = marketplace.Published(
        dedicated_chips=part.dedicated_chips, cold_requests_share=part.cold_requests_share
    )
    size = (part.input_tokens, part.output_tokens)
    draws = marketplace.rebuild(
        [_model(n, card, 1, *size) for n in part.small], [_model(n, card, part.large_tp, *size) for n in part.large],
        marketplace.customer_series(read_clients(part.customers)), pool, draws=part.draws, seed=scenario.seed,
        unknowns=marketplace.Unknowns(**fixed), published=published,  # type: ignore[arg-type]
        progress=lambda done: report("drawing marketplaces", done, part.draws),
    )  # fmt: skip
    shares = np.array([d.cold_chips_share for d in draws])
    policies = {
        name: {"chips": marketplace.spread(draws, name), "published": part.published.get(name),
            "driven_by": marketplace.drivers(draws, name)}
        for name in POLICIES
    }  # fmt: skip
    cold = dict(zip(("lo", "value", "hi"), np.quantile(shares, [0.1, 0.5, 0.9]).tolist(), strict=True))
    notes = (
        f"Published totals: dedicated serving takes {part.dedicated_chips:g} chips. Traffic of each model: the rate and "
        "burstiness of one customer of the same platform, drawn.",
        "Not published, drawn uniformly: " + ", ".join(sorted(known)) + ".",
    )
    summary = {
        "title": scenario.title, "kind": "marketplace", "chip": card.name, "draws": part.draws,
        "slo": scenario.slo.model_dump(), "policies": policies,
        "cold_chips_share": {**cold, "published": part.published.get("cold_chips_share")}, "notes": list(notes),
    }  # fmt: skip
    columns: dict[str, Any] = {"models": [d.models for d in draws], "requests_per_s": [d.requests_per_s for d in draws]}
    columns |= {f"chips_{name}": [d.chips[name] for d in draws] for name in POLICIES}
    columns |= {"cold_chips_share": shares} | {n: [d.settings[n] for d in draws] for n in draws[0].settings}
    return Pooled(scenario, summary, None, columns, notes)
