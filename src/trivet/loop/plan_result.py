"""From candidates to plans: 80% intervals, how sure the SLO is, and which unknown drives the spread."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from trivet.chip.spec import Chip
from trivet.cloud.engine import step_table
from trivet.cloud.serving.rate import Load, bilinear, decode_pool, linear, open_loop, prefill_pool
from trivet.errors import TrivetError
from trivet.facts import Fact
from trivet.loop.economics import kv_transfer_s
from trivet.loop.plan import Candidate, Compiled, Goal, Interval, Search, scaled
from trivet.units import Z80

# Facts of a chip that a step's time depends on; those known only as an interval may drive an answer's spread.
TIMING_FACTS = ("peak_flops_", "memory_bandwidth", "link_bandwidth", "l2_bytes", "compute_units", "clock_hz")


@dataclass(frozen=True, slots=True)
class Plan:
    """One way to deploy, with its spread. Times are at the SLO's percentile."""

    id: str
    candidate: Candidate
    ttft_s: Interval
    tpot_s: Interval
    usd_per_million_tokens: Interval
    joules_per_token: Interval
    chips: Interval  # the number recommended; lo and hi: what would be needed at the ends of the timing's spread
    confidence: float  # probability that this many chips keep the SLO
    drivers: tuple[tuple[str, float], ...]  # (unknown, share of the variance of cost), largest first


def finalists(search: Search, limit: int = 40) -> list[int]:
    """Indices of the frontier (cheapest first, at most ``limit``) and every chip's own ladder."""
    front = sorted(search.frontier, key=lambda i: search.candidates[i].usd_per_million_tokens)
    step = max(1, math.ceil(len(front) / limit))
    chosen = dict.fromkeys(front[::step])
    chosen.update(dict.fromkeys(i for rows in search.by_chip.values() for i in rows))
    return sorted(chosen, key=lambda i: search.candidates[i].usd_per_million_tokens)


def plans(search: Search, goal: Goal, progress: Callable[[str, int, int], None] = lambda *_: None) -> list[Plan]:
    """The finalists with their spreads, cheapest first."""
    shares: dict[str, tuple[tuple[str, float], ...]] = {}
    result = []
    chosen = finalists(search)
    for done, i in enumerate(chosen):
        candidate = search.candidates[i]
        name = candidate.compiled.deployment.chip.name
        progress(f"spread of {name}", done, len(chosen))
        if name not in shares:
            shares[name] = drivers(search.candidates[search.by_chip[name][0]], search.load)
        result.append(_plan(f"p{i:05d}", candidate, search.load, goal, shares[name]))
    return result


def _times(
    candidate: Candidate, demand: Load, goal: Goal, factor: float, replicas: float | None = None
) -> tuple[float, float]:
    """(TTFT, TPOT) at the SLO's percentile with every step ``factor`` as long; inf where it is not stable."""
    item, count = candidate.compiled, float(replicas or candidate.replicas)
    ranks = item.deployment.layout.attention_dp
    if candidate.decode is None:
        point = open_loop(
            scaled(item.table, factor),
            demand,
            np.array(demand.peak_rate_per_s / (count * ranks)),
            np.array(float(candidate.token_budget)),
            np.array(float(candidate.max_num_seqs)),
            goal.slo.percentile,
        )
        return (math.inf, math.inf) if int(point.limit) else (float(point.ttft_s), float(point.tpot_s))
    scale = count / candidate.replicas
    rate = np.array(demand.peak_rate_per_s / (candidate.replicas * scale * ranks))
    _, ttft, busy = prefill_pool(
        scaled(item.table, factor), demand, rate, float(candidate.token_budget), goal.slo.percentile
    )
    side = candidate.decode
    d_rate = np.array(
        demand.peak_rate_per_s / (candidate.decode_replicas * scale * side.deployment.layout.attention_dp)
    )
    tpot, batch = decode_pool(scaled(side.table, factor), demand, d_rate)
    transfer = kv_transfer_s(item.deployment, demand.input_mean)
    full = float(batch) * demand.context_mean > side.table.kv_blocks * side.table.block_size
    return (math.inf, math.inf) if float(busy) >= 0.98 or full else (float(ttft) + transfer, float(tpot))


def _holds(candidate: Candidate, demand: Load, goal: Goal, factor: float, replicas: float | None = None) -> bool:
    ttft, tpot = _times(candidate, demand, goal, factor, replicas)
    return ttft <= goal.slo.ttft_s and tpot <= goal.slo.tpot_s


def _needed(candidate: Candidate, demand: Load, goal: Goal, factor: float) -> float:
    """Chips needed with every step ``factor`` as long; inf when no number of replicas helps."""
    low, high = 0, candidate.replicas
    while not _holds(candidate, demand, goal, factor, high):
        low, high = high, high * 2
        if high > 64 * candidate.replicas:
            return math.inf
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if _holds(candidate, demand, goal, factor, middle) else (middle, high)
    return high / candidate.replicas * candidate.chips


def _plan(name: str, candidate: Candidate, demand: Load, goal: Goal, shares: tuple[tuple[str, float], ...]) -> Plan:
    sigma = candidate.compiled.table.log_sigma
    fast, slow = math.exp(-Z80 * sigma), math.exp(Z80 * sigma)
    ttft_lo, tpot_lo = _times(candidate, demand, goal, fast)
    ttft_hi, tpot_hi = _times(candidate, demand, goal, slow)
    few, many = _needed(candidate, demand, goal, fast), _needed(candidate, demand, goal, slow)
    money = candidate.compiled.economics
    usd, joules = candidate.usd_per_million_tokens, candidate.joules_per_token

    def spread(price_sigma: float, count: float, sign: float) -> float:
        """Price and number of chips vary independently: their log distances add in quadrature."""
        if not math.isfinite(count):
            return math.inf
        return math.exp(sign * math.hypot(Z80 * price_sigma, math.log(max(count / candidate.chips, 1e-9))))

    return Plan(
        name,
        candidate,
        Interval(candidate.ttft_s, min(ttft_lo, candidate.ttft_s), max(ttft_hi, candidate.ttft_s)),
        Interval(candidate.tpot_s, min(tpot_lo, candidate.tpot_s), max(tpot_hi, candidate.tpot_s)),
        Interval(usd, usd * spread(money.price_log_sigma, few, -1), usd * spread(money.price_log_sigma, many, 1)),
        Interval(
            joules, joules * spread(money.power_log_sigma, few, -1), joules * spread(money.power_log_sigma, many, 1)
        ),
        Interval(candidate.chips, few, many),
        _confidence(candidate, demand, goal, sigma),
        shares,
    )


def _confidence(candidate: Candidate, demand: Load, goal: Goal, sigma: float) -> float:
    """P(the SLO holds): the step-time factor at which it breaks, against its log-normal spread."""
    if sigma <= 0:
        return 1.0
    low, high = -4.0 * sigma, 4.0 * sigma
    if _holds(candidate, demand, goal, math.exp(high)):
        return 1.0
    for _ in range(20):
        middle = (low + high) / 2
        low, high = (middle, high) if _holds(candidate, demand, goal, math.exp(middle)) else (low, middle)
    return 0.5 * (1.0 + math.erf(low / sigma / math.sqrt(2.0)))


def drivers(candidate: Candidate, demand: Load) -> tuple[tuple[str, float], ...]:
    """Share of the variance of log cost that each unknown causes: the chip's interval facts, the timing model, the price.

    A fact's part is the change of the time that a token takes between its lo and its hi, others fixed.
    """
    item = candidate.compiled
    parts: dict[str, float] = {}
    chip = item.deployment.chip
    for name, fact in chip.facts.items():
        if fact.log_sigma > 0 and name.startswith(TIMING_FACTS):
            ends = [_seconds_per_request(item, _with_fact(chip, name, end), demand) for end in (fact.lo, fact.hi)]
            if all(ends):
                parts[name] = (math.log(ends[0] / ends[1]) / (2 * Z80)) ** 2
    known = sum(parts.values())
    parts["timing model"] = max(item.table.log_sigma**2 - known, 0.0)
    parts["price"] = item.economics.price_log_sigma**2
    total = sum(parts.values())
    if total <= 0:
        return ()
    return tuple(sorted(((k, v / total) for k, v in parts.items() if v / total >= 0.005), key=lambda kv: -kv[1]))


def _with_fact(chip: Chip, name: str, value: float | None) -> Chip:
    fact = chip.facts[name]
    return replace(chip, facts={**chip.facts, name: Fact(value, fact.unit, fact.status, fact.source, fact.date)})


def _seconds_per_request(item: Compiled, chip: Chip, demand: Load) -> float:
    """Device seconds of one mean request at a batch of 64: a scale for sensitivities; 0 where it does not fit."""
    try:
        table = step_table(replace(item.deployment, chip=chip))
    except TrivetError:
        return 0.0
    batch = np.array(64.0)
    decode = linear(table.sequences, table.graph_s, batch) + bilinear(
        table.sequences, table.context, table.decode_attention_s, batch, np.array(demand.context_mean)
    )
    prompt = linear(table.tokens, table.mixed_s, np.array(demand.input_mean))
    return float(decode * demand.output_mean / 64.0 + prompt)


def to_dict(plan: Plan, launch: str) -> dict[str, Any]:
    """The plan as ``summary.json`` holds it."""
    c = plan.candidate
    deployment = c.compiled.deployment
    layout = deployment.layout
    result: dict[str, Any] = {
        "id": plan.id,
        "chip": deployment.chip.name,
        "mode": c.mode,
        "engine": deployment.settings.engine,
        "precision": {
            "weights": c.compiled.precision.weight or deployment.architecture.quantisation.default,
            "kv_cache": c.compiled.precision.kv or deployment.architecture.quantisation.kv_cache,
        },
        "layout": {
            "tp": layout.tp,
            "pp": layout.pp,
            "attention_dp": layout.attention_dp,
            "moe_tp": layout.moe_tp,
            "moe_ep": layout.moe_ep,
        },
        "max_num_batched_tokens": c.token_budget,
        "max_num_seqs": c.max_num_seqs,
        "replicas": c.replicas,
        "chips": c.chips,
        "chips_needed": plan.chips.to_dict(),
        "ttft_s": plan.ttft_s.to_dict(),
        "tpot_s": plan.tpot_s.to_dict(),
        "ttft_mean_s": c.ttft_mean_s,
        "tpot_mean_s": c.tpot_mean_s,
        "usd_per_million_tokens": plan.usd_per_million_tokens.to_dict(),
        "joules_per_token": plan.joules_per_token.to_dict(),
        "utilisation": c.busy,
        "slo_confidence": plan.confidence,
        "spread_drivers": [{"unknown": k, "share": v} for k, v in plan.drivers],
        "launch": launch,
    }
    if c.decode is not None:
        d = c.decode.deployment.layout
        result["decode"] = {
            "layout": {"tp": d.tp, "pp": d.pp, "attention_dp": d.attention_dp, "moe_tp": d.moe_tp, "moe_ep": d.moe_ep},
            "replicas": c.decode_replicas,
            "weights": c.decode.precision.weight or "checkpoint",
        }
    return result
