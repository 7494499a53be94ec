"""The judge of a plan: its finalists simulated request by request on the traffic they were planned for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trivet.cloud.deployment import Deployment, StepTable
from trivet.cloud.engine.vision import encode_table
from trivet.cloud.serving.fleet import Fleet, ReplicaKind, Transfer, simulate
from trivet.cloud.serving.traffic import Traffic
from trivet.loop.economics import kv_transfer_s
from trivet.loop.plan import Candidate, Goal, Slo
from trivet.loop.plan_result import Plan

MOST_REQUESTS = 200_000  # a longer trace is judged by its busiest stretch of this many requests
FINALISTS = 10
TRIES_PER_CHIP = 8


def fleet_of(candidate: Candidate, demand_input_mean: float, images: bool = False) -> Fleet:
    """The fleet that a candidate describes. An attention-DP rank batches on its own, so it counts as a replica; where the model
    has experts, the ranks of an engine share their steps. ``images``: some prompts hold one."""
    item, side = candidate.compiled, candidate.decode

    def kind(table: StepTable, deployment: Deployment, count: int, role: str) -> ReplicaKind:
        ranks = deployment.layout.attention_dp
        settings = replace(
            deployment.settings, max_num_batched_tokens=candidate.token_budget, max_num_seqs=candidate.max_num_seqs
        )
        return ReplicaKind(
            table,
            settings,
            count * ranks,
            role,
            chips=max(deployment.layout.chips // ranks, 1),
            name=deployment.chip.name,
            ranks=ranks if deployment.architecture.routed else 1,
            encode=encode_table(deployment) if images else None,
        )

    if side is None:
        return Fleet((kind(item.table, item.deployment, candidate.replicas, "both"),))
    per_token_s = kv_transfer_s(item.deployment, demand_input_mean) / max(demand_input_mean, 1.0)
    return Fleet(
        (
            kind(item.table, item.deployment, candidate.replicas, "prefill"),
            kind(side.table, side.deployment, candidate.decode_replicas, "decode"),
        ),
        transfer=Transfer(per_token_s=per_token_s),
    )


def busiest(traffic: Traffic, most: int = MOST_REQUESTS) -> Traffic:
    """The densest stretch of ``most`` consecutive requests, or the whole traffic when it is no longer."""
    count = len(traffic.arrival_s)
    if count <= most:
        return traffic
    spans = traffic.arrival_s[most - 1 :] - traffic.arrival_s[: count - most + 1]
    first = int(np.argmin(spans))
    part = slice(first, first + most)
    return Traffic(
        traffic.arrival_s[part] - traffic.arrival_s[first],
        traffic.input_tokens[part],
        traffic.output_tokens[part],
        image_tokens=None if traffic.image_tokens is None else traffic.image_tokens[part],
        name=traffic.name,
    )


def statistic(values: NDArray[np.float64], percentile: float) -> float:
    """The SLO's statistic; infinite when a request never got there."""
    if np.isnan(values).any():
        return float("inf")
    return float(values.mean() if percentile <= 0 else np.quantile(values, percentile))


def judge(candidate: Candidate, traffic: Traffic, slo: Slo) -> dict[str, Any]:
    """Simulate one candidate: ``{"holds", "ttft_s", "tpot_s", "attainment", "requests"}``."""
    plain = replace(traffic, hash_offsets=None, hash_ids=None, block_tokens=0)
    images = traffic.image_tokens is not None and bool(traffic.image_tokens.any())
    result = simulate(plain, fleet_of(candidate, float(traffic.input_tokens.mean()), images))
    ttft = result.first_token_s - result.arrival_s
    many = result.output_tokens > 1
    tpot = (result.last_token_s - result.first_token_s)[many] / (result.output_tokens[many] - 1)
    kept = (ttft <= slo.ttft_s).astype(bool)
    kept[many] &= tpot <= slo.tpot_s
    ttft_s, tpot_s = statistic(ttft, slo.percentile), statistic(tpot, slo.percentile) if many.any() else 0.0
    return {
        "holds": bool(ttft_s <= slo.ttft_s and tpot_s <= slo.tpot_s),
        "ttft_s": ttft_s if np.isfinite(ttft_s) else None,
        "tpot_s": tpot_s if np.isfinite(tpot_s) else None,
        "ttft_mean_s": _mean(ttft),
        "tpot_mean_s": _mean(tpot),
        "attainment": float(kept.mean()),
        "requests": len(ttft),
    }


def _mean(values: NDArray[np.float64]) -> float | None:
    good = values[np.isfinite(values)]
    return float(good.mean()) if good.size else None


def verify_finalists(
    ranked: Sequence[Plan], goal: Goal, progress: Callable[[str, int, int], None] = lambda *_: None
) -> dict[str, dict[str, Any]]:
    """Judge each chip's plans from its cheapest up until one holds, then the cheapest of all up to ``FINALISTS``."""
    traffic = busiest(goal.traffic)
    checks: dict[str, dict[str, Any]] = {}

    def check(plan: Plan) -> bool:
        if plan.id not in checks:
            progress(f"simulating {plan.id}", len(checks), max(FINALISTS, len(checks) + 1))
            checks[plan.id] = judge(plan.candidate, traffic, goal.slo)
        return bool(checks[plan.id]["holds"])

    by_chip: dict[str, list[Plan]] = {}
    for plan in ranked:
        by_chip.setdefault(plan.candidate.compiled.deployment.chip.name, []).append(plan)
    for own in by_chip.values():
        for plan in own[:TRIES_PER_CHIP]:
            if check(plan):
                break
    for plan in ranked[: FINALISTS // 2]:
        check(plan)
    return checks
