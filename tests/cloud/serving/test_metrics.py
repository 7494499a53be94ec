"""Numbers of a run against plain arithmetic on its requests."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest
from serving_cases import fleet, poisson, replicas, traffic

from trivet.cloud.serving import _loop_state as k
from trivet.cloud.serving import metrics
from trivet.cloud.serving.fleet import Admission, simulate
from trivet.interop.timeline import events, text


def test_summary_by_hand() -> None:
    result = simulate(poisson(500, 30, 300, 60), fleet(replicas(2)))
    found = metrics.summary(result, 0.1, 0.02)
    ttft = result.first_token_s - result.arrival_s
    assert found["ttft_s"]["mean"] == pytest.approx(ttft.mean())
    assert found["ttft_s"]["p99"] == pytest.approx(np.percentile(ttft, 99))
    span = result.last_token_s.max() - result.arrival_s.min()
    assert found["throughput"]["output_tokens_per_s"] == pytest.approx(result.output_tokens.sum() / span)
    tpot = (result.last_token_s - result.first_token_s) / (result.output_tokens - 1)
    assert found["slo"]["attainment"] == pytest.approx(((ttft <= 0.1) & (tpot <= 0.02)).mean())
    assert 0 < found["use"]["busy_share"] <= 1
    assert 0 < found["use"]["kv_share_while_busy"] < 1
    json.dumps(found, allow_nan=False)


def test_gaps_between_tokens() -> None:
    """As many gaps as tokens after the first, with the mean of TPOT weighted by them."""
    result = simulate(poisson(500, 30, 300, 60), fleet(replicas(2)))
    gaps = int((result.output_tokens - 1).sum())
    assert result.itl_counts.sum() == gaps
    mean = (result.last_token_s - result.first_token_s).sum() / gaps
    assert metrics.spread_of_gaps(result.itl_counts)["mean"] == pytest.approx(mean, rel=0.02)


def test_tokens_over_time_add_up() -> None:
    result = simulate(poisson(500, 30, 300, 60), fleet(replicas(2)))
    series = metrics.over_time(result)
    width = series["time_s"][1]
    assert series["finished_per_s"].sum() * width == pytest.approx(500)
    assert series["arrived_per_s"].sum() * width == pytest.approx(500)
    assert series["decode_tokens_per_s"].sum() * width == pytest.approx((result.output_tokens - 1).sum())
    assert series["prefill_tokens_per_s"].sum() * width == pytest.approx(result.input_tokens.sum())


def test_buckets_double_without_loss() -> None:
    result = simulate(traffic(np.arange(50) * 100.0, 100, 20), fleet(replicas()))
    assert result.bucket_s > 1.0
    assert result.series[:, k.T_FINISHED].sum() == 50


def test_refused_requests_have_no_times() -> None:
    result = simulate(poisson(800, 100, 1500, 60), fleet(replicas(), admission=Admission(max_queue=3)))
    found = metrics.summary(result, 1.0, None)
    assert found["requests"]["refused"] == np.isnan(result.first_token_s).sum() > 0
    assert found["requests"]["done"] + found["requests"]["refused"] == 800
    assert found["slo"]["attainment"] <= found["requests"]["done"] / 800


def test_nothing_done_is_said_not_divided() -> None:
    result = simulate(traffic([0.0], 10**6, 10), fleet(replicas()))
    found = metrics.summary(result)
    assert found["ttft_s"]["mean"] is None
    assert found["throughput"]["requests_per_s"] == 0
    json.dumps(found, allow_nan=False)


def test_timeline_slices_nest() -> None:
    result = simulate(poisson(200, 60, 300, 60), fleet(replicas(2)))
    slices = [e for e in events(result) if e["ph"] == "X"]
    assert sum(e["name"].startswith("request") for e in slices) == 200
    tracks: dict[tuple[int, int], list[tuple[float, float, str]]] = {}
    for e in slices:
        tracks.setdefault((e["pid"], e["tid"]), []).append((e["ts"], e["ts"] + e["dur"], e["name"]))
    for track in tracks.values():
        whole = sorted(s for s in track if s[2].startswith("request"))
        assert all(a[1] <= b[0] + 1e-2 for a, b in itertools.pairwise(whole))
    assert json.loads(text(result))["traceEvents"]
