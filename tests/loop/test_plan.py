"""The plan: its own promises on real chips and a small space."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest

from trivet.cloud.serving.traffic import Traffic
from trivet.errors import TrivetError
from trivet.interop.flags import launch_command
from trivet.interop.traces import read as read_trace
from trivet.loop.plan import Goal, Slo, search
from trivet.loop.plan_run import PlanRequest, run_plan
from trivet.loop.space import Space
from trivet.model.config import read as read_model

SMALL = {
    "model": "Qwen/Qwen3-8B", "rate_per_s": 6.0, "isl": 900, "osl": 150, "chips": ["h100", "a800"], "max_chips_per_replica": 2,
}  # fmt: skip


def request(**changes: Any) -> tuple[PlanRequest, Goal, Space]:
    raw = {**SMALL, **changes}
    return PlanRequest.create({k: v for k, v in raw.items() if v is not None}, read_model=read_model, read_trace=read_trace)


@pytest.fixture(scope="module")
def result() -> dict[str, Any]:
    return run_plan(request(), lambda deployment, role: launch_command(deployment, role=role))


def test_summary_has_the_promised_form(result: dict[str, Any]) -> None:
    json.dumps(result, allow_nan=False)
    ids = {plan["id"] for plan in result["plans"]}
    assert ids
    assert set(result["frontier"]) <= ids
    assert result["winner"] in ids
    assert set(result["cheapest_by_chip"]) == {"h100", "a800"}
    for plan in result["plans"]:
        assert {"id", "chip", "layout", "replicas", "chips", "launch"} <= set(plan)
        for key in ("ttft_s", "tpot_s", "usd_per_million_tokens", "joules_per_token"):
            low, value, high = plan[key]["lo"], plan[key]["value"], plan[key]["hi"]
            assert 0 < low <= value <= (math.inf if high is None else high)
        assert plan["ttft_s"]["value"] <= 1.0
        assert plan["tpot_s"]["value"] <= 0.05
        assert plan["launch"].count("vllm serve") == (2 if plan["mode"] == "disaggregated" else 1)


def test_winner_is_the_cheapest_not_refuted(result: dict[str, Any]) -> None:
    holding = [p for p in result["plans"] if p.get("simulated", {}).get("holds", True)]
    cheapest = min(p["usd_per_million_tokens"]["value"] for p in holding)
    winner = next(p for p in result["plans"] if p["id"] == result["winner"])
    assert winner["usd_per_million_tokens"]["value"] == cheapest
    assert winner["simulated"]["holds"]


def test_simulation_falls_into_the_winners_interval(result: dict[str, Any]) -> None:
    winner = next(p for p in result["plans"] if p["id"] == result["winner"])
    for key in ("ttft_s", "tpot_s"):
        high = winner[key]["hi"] or math.inf
        assert winner[key]["lo"] <= winner["simulated"][key] <= high, key


def test_same_request_same_bytes(result: dict[str, Any]) -> None:
    again = run_plan(request(), lambda deployment, role: launch_command(deployment, role=role))
    timing = {"compile_s", "evaluate_s"}
    assert json.dumps({k: v for k, v in again.items() if k not in timing}) == json.dumps(
        {k: v for k, v in result.items() if k not in timing}
    )


def test_more_traffic_needs_no_fewer_chips() -> None:
    def chips(rate: float) -> int:
        _, goal, space = request(rate_per_s=rate, chips=["h100"])
        found = search(goal, space)
        best = min(found.candidates, key=lambda c: c.usd_per_million_tokens * rate)
        return best.chips

    counts = [chips(rate) for rate in (2.0, 20.0, 80.0)]
    assert counts == sorted(counts)
    assert counts[-1] > counts[0]


def test_impossible_slo_says_why() -> None:
    _, goal, space = request()
    found = search(Goal(goal.architecture, goal.traffic, Slo(1e-4, 1e-5)), space)
    assert not found.candidates
    assert found.rejected["misses TTFT"] > 0


def test_model_too_large_is_counted() -> None:
    result = run_plan(request(model="deepseek-ai/DeepSeek-V3", max_chips_per_replica=1), lambda d, r: "")
    assert result["winner"] is None
    assert result["rejected"]["does not fit in memory"] > 0


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"chips": ["h1000"]}, "chip"),
        ({"chips": []}, "chips"),
        ({"rate_per_s": -1.0}, "rate_per_s"),
        ({"rate_per_s": float("nan")}, "rate_per_s"),
        ({"rate_per_s": None}, "traffic"),
        ({"engines": ["llamacpp"]}, "engines"),
        ({"ttft_s": 0.0}, "ttft_s"),
        ({"percentile": 1.5}, "percentile"),
        ({"modes": ["both"]}, "modes"),
        ({"isl": 0}, "isl"),
        ({"wibble": 1}, "wibble"),
        ({"model": "no/such-model"}, "no/such-model"),
    ],
)
def test_bad_requests_name_the_field(changes: dict[str, Any], field: str) -> None:
    with pytest.raises(TrivetError, match=field):
        run_plan(request(**changes), lambda d, r: "")


def test_a_trace_that_goes_back_in_time_is_refused() -> None:
    with pytest.raises(TrivetError, match="arrival_s"):
        Traffic(np.array([1.0, 0.5]), np.array([1, 1]), np.array([1, 1]))
