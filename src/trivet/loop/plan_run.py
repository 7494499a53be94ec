"""A plan from a request (flags or a scenario) to the content of ``summary.json``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np

from trivet.cloud.deployment import Deployment
from trivet.cloud.serving.traffic import Traffic
from trivet.errors import TrivetError
from trivet.loop.plan import Candidate, Goal, Search, Slo, search
from trivet.loop.plan_result import Plan, plans, to_dict
from trivet.loop.plan_verify import verify_finalists
from trivet.loop.space import SEQUENCE_LIMITS, TOKEN_BUDGETS, Space
from trivet.model.architecture import Architecture

LaunchWriter = Callable[[Deployment, str], str]  # (deployment, role "" | "prefill" | "decode") -> shell text
SYNTHETIC_REQUESTS = 20_000
SAFE = 0.9  # probability of keeping the SLO that the plan called safe has


@dataclass(frozen=True, slots=True)
class PlanRequest:
    """What a user asks for; one field a scenario key."""

    model: str
    chips: tuple[str, ...]
    traffic: str = ""
    rate_per_s: float = 0.0
    isl: int = 1024
    osl: int = 256
    rate_scale: float = 1.0
    engines: tuple[str, ...] = ("vllm",)
    precisions: tuple[str, ...] = ()
    kv_precisions: tuple[str, ...] = ()
    ttft_s: float = 1.0
    tpot_s: float = 0.05
    percentile: float = 0.9
    modes: tuple[str, ...] = ("aggregated", "disaggregated")
    max_chips_per_replica: int = 16
    token_budgets: tuple[int, ...] = TOKEN_BUDGETS
    sequence_limits: tuple[int, ...] = SEQUENCE_LIMITS
    price_basis: str = "tco_hyperscaler"
    verify: bool = True
    seed: int = 0

    @classmethod
    def create(
        cls, raw: Mapping[str, Any], *, read_model: Callable[[str], Architecture], read_trace: Callable[[str], Traffic]
    ) -> tuple[PlanRequest, Goal, Space]:
        """Check a request and read what it names. Raises TrivetError naming the field and what is allowed."""
        known = {f.name: f for f in fields(cls)}
        for key in raw:
            if key not in known:
                raise TrivetError("unknown key", field=str(key), allowed=sorted(known))
        for key in ("model", "chips"):
            if not raw.get(key):
                raise TrivetError("is missing", field=key)
        values = {key: _typed(key, value, str(known[key].type)) for key, value in raw.items()}
        request = cls(**values)
        if not 0 < request.rate_scale < 1e6:
            raise TrivetError(f"{request.rate_scale} is out of range", field="rate_scale", allowed="above 0")
        if bool(request.traffic) == (request.rate_per_s > 0):
            raise TrivetError("needs either a trace or a rate", field="traffic", allowed="--traffic NAME or --rate N")
        traffic = read_trace(request.traffic) if request.traffic else _poisson(request)
        if request.rate_scale != 1.0:
            traffic = replace(traffic, arrival_s=traffic.arrival_s / request.rate_scale)
        goal = Goal(read_model(request.model), traffic, Slo(request.ttft_s, request.tpot_s, request.percentile))
        space = Space(
            request.chips,
            request.engines,
            request.precisions,
            request.kv_precisions,
            request.max_chips_per_replica,
            request.token_budgets,
            request.sequence_limits,
            request.modes,
            request.price_basis,
        )
        return request, goal, space


def _typed(key: str, value: Any, kind: str) -> Any:
    if kind.startswith("tuple"):
        items = [part.strip() for part in value.split(",")] if isinstance(value, str) else value
        if not isinstance(items, (list, tuple)):
            raise TrivetError(f"{value!r} is not a list", field=key)
        want: type = int if "int" in kind else str
        if not all(isinstance(item, want) and not isinstance(item, bool) for item in items):
            raise TrivetError(f"{value!r} holds something else", field=key, allowed=f"a list of {want.__name__}")
        return tuple(items)
    types: dict[str, tuple[type, ...]] = {"str": (str,), "float": (int, float), "int": (int,), "bool": (bool,)}
    number: Any = value
    if not isinstance(value, types[kind]) or (isinstance(value, bool) and kind != "bool"):
        raise TrivetError(f"{value!r} is not understood", field=key, allowed=kind)
    if kind in ("float", "int") and not (np.isfinite(number) and number >= 0):
        raise TrivetError(f"{value!r} is not a finite number >= 0", field=key)
    return float(number) if kind == "float" else value


def _poisson(request: PlanRequest) -> Traffic:
    """Poisson arrivals with fixed lengths."""
    if request.isl < 1 or request.osl < 1:
        raise TrivetError("lengths must be at least 1 token", field="isl/osl")
    return synthetic_traffic(request.rate_per_s, request.isl, request.osl, request.seed)


def synthetic_traffic(rate_per_s: float, isl: int, osl: int, seed: int = 0, count: int = SYNTHETIC_REQUESTS) -> Traffic:
    """``count`` Poisson arrivals of one length."""
    gaps = np.random.default_rng(seed).exponential(1.0 / rate_per_s, count)
    return Traffic(
        arrival_s=np.cumsum(gaps),
        input_tokens=np.full(count, isl, np.int32),
        output_tokens=np.full(count, osl, np.int32),
        name=f"poisson {rate_per_s:g}/s",
    )


def run_plan(
    prepared: tuple[PlanRequest, Goal, Space],
    launch: LaunchWriter,
    progress: Callable[[str, int, int], None] = lambda *_: None,
) -> dict[str, Any]:
    """Search, spread, verify; returns what ``summary.json`` holds."""
    request, goal, space = prepared
    found = search(goal, space, progress)
    ranked = plans(found, goal, progress)
    checks = verify_finalists(ranked, goal, progress) if request.verify else {}
    entries = []
    for plan in ranked:
        entry = to_dict(plan, _launch(plan.candidate, goal, launch))
        if plan.id in checks:
            entry["simulated"] = checks[plan.id]
        entries.append(entry)
    front = {f"p{i:05d}" for i in found.frontier}
    winner = _winner(ranked, checks, 0.0)
    return {
        "model": goal.architecture.name,
        "traffic": _traffic(goal, found),
        "slo": {"ttft_s": goal.slo.ttft_s, "tpot_s": goal.slo.tpot_s, "percentile": goal.slo.percentile},
        "per_token": "output tokens",
        "winner": winner,
        "safe": _winner(ranked, checks, SAFE),
        "plans": entries,
        "frontier": [plan.id for plan in ranked if plan.id in front],
        "rejected": found.rejected,
        "cheapest_by_chip": {
            chip: _winner([p for p in ranked if p.candidate.compiled.deployment.chip.name == chip], checks, 0.0)
            for chip in found.by_chip
        },
        "configurations": found.evaluated,
        "compile_s": round(found.compile_s, 4),
        "evaluate_s": round(found.evaluate_s, 4),
    }


def _launch(candidate: Candidate, goal: Goal, launch: LaunchWriter) -> str:
    if candidate.decode is None:
        return launch(launched(candidate.compiled.deployment, candidate, goal), "")
    sides = ((candidate.compiled, "prefill"), (candidate.decode, "decode"))
    return "\n\n".join(launch(launched(side.deployment, candidate, goal), role) for side, role in sides)


def launched(deployment: Deployment, candidate: Candidate, goal: Goal) -> Deployment:
    """The deployment with the settings that the plan chose, ready to be written as a launch command."""
    longest = int(goal.traffic.input_tokens.max()) + int(goal.traffic.output_tokens.max())
    settings = replace(
        deployment.settings,
        max_num_batched_tokens=candidate.token_budget,
        max_num_seqs=candidate.max_num_seqs,
        max_model_len=longest,
    )
    return replace(deployment, settings=settings)


def _winner(ranked: list[Plan], checks: Mapping[str, Mapping[str, Any]], confidence: float) -> str | None:
    """The cheapest plan at least so sure that its simulation did not refute; None when there is none."""
    for plan in ranked:
        if plan.confidence >= confidence and checks.get(plan.id, {}).get("holds", True):
            return plan.id
    return None


def _traffic(goal: Goal, found: Search) -> dict[str, Any]:
    demand = found.load
    return {
        "name": goal.traffic.name,
        "requests": len(goal.traffic.arrival_s),
        "rate_per_s": demand.rate_per_s,
        "peak_rate_per_s": demand.peak_rate_per_s,
        "input_tokens_mean": demand.input_mean,
        "output_tokens_mean": demand.output_mean,
        "arrival_dispersion": demand.arrival_dispersion,
    }
