"""Load generators' results: names, units, round trips, one clear error."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from trivet.errors import TrivetError
from trivet.interop.bench_results import BenchResult, from_requests, read, to_aiperf, to_guidellm, to_vllm, write


@pytest.fixture
def result() -> BenchResult:
    rng = np.random.default_rng(0)
    start = np.cumsum(rng.exponential(0.1, 200))
    first = start + rng.lognormal(-1, 0.5, 200)
    outs = rng.integers(1, 400, 200)
    last = first + (outs - 1) * rng.uniform(0.01, 0.03, 200)
    first[7] = np.nan
    return from_requests(start, first, last, rng.integers(1, 900, 200), outs, model="m", max_concurrency=16)


def test_from_requests_counts_and_means(result: BenchResult) -> None:
    assert (result.completed, result.failed) == (199, 1)
    assert result.requests is not None
    assert result.latencies["ttft"].mean == pytest.approx(result.requests.ttft_s.mean())
    assert 0.01 < result.latencies["tpot"].median < 0.03
    assert result.output_throughput == pytest.approx(result.output_tokens / result.duration_s)


@pytest.mark.parametrize("form", ["vllm", "guidellm", "aiperf"])
def test_round_trip(result: BenchResult, tmp_path: Path, form: str) -> None:
    path = tmp_path / "r.json"
    write(result, path, form, detailed=True)
    (back,) = read(path)
    assert back.tool == form
    assert (back.model, back.completed, back.failed, back.max_concurrency) == ("m", 199, 1, 16)
    assert back.duration_s == pytest.approx(result.duration_s)
    assert (back.input_tokens, back.output_tokens) == (result.input_tokens, result.output_tokens)
    for metric in ("ttft", "tpot", "e2el"):
        was, now = result.latencies[metric], back.latencies[metric]
        assert now.mean == pytest.approx(was.mean)
        assert now.median == pytest.approx(was.median)
        assert now.percentiles[99.0] == pytest.approx(was.percentiles[99.0])


def test_detailed_vllm_is_a_traffic_again(result: BenchResult, tmp_path: Path) -> None:
    write(result, tmp_path / "r.json", detailed=True)
    (back,) = read(tmp_path / "r.json")
    assert back.requests is not None
    assert result.requests is not None
    np.testing.assert_allclose(back.requests.e2el_s, result.requests.e2el_s)
    traffic = back.requests.traffic()
    assert len(traffic) == 199
    assert traffic.arrival_s[0] == 0


def test_names_as_the_tools_write_them(result: BenchResult) -> None:
    vllm = to_vllm(result)
    for name in ("date", "backend", "model_id", "tokenizer_id", "num_prompts", "request_rate", "burstiness", "max_concurrency",
                 "duration", "completed", "failed", "total_input_tokens", "total_output_tokens", "request_throughput",
                 "request_goodput", "output_throughput", "total_token_throughput"):  # fmt: skip
        assert name in vllm
    for metric in ("ttft", "tpot", "itl", "e2el"):
        assert {f"{m}_{metric}_ms" for m in ("mean", "median", "std", "p99")} <= set(vllm)
    assert vllm["mean_ttft_ms"] == pytest.approx(result.latencies["ttft"].mean * 1e3)
    metrics = to_guidellm([result])["benchmarks"][0]["metrics"]
    assert metrics["request_latency"]["successful"]["mean"] == pytest.approx(result.latencies["e2el"].mean)
    assert metrics["time_to_first_token_ms"]["successful"]["percentiles"]["p99"] > 100
    aiperf = to_aiperf(result)
    assert aiperf["time_to_first_token"]["unit"] == "ms"
    assert {"avg", "p1", "p99", "min", "max", "std"} <= set(aiperf["request_latency"])
    for document in (vllm, to_guidellm([result]), aiperf):
        json.dumps(document, allow_nan=False)


def test_aiperf_records(tmp_path: Path) -> None:
    path = tmp_path / "profile_export.jsonl"
    row: dict[str, Any] = {
        "metadata": {"request_start_ns": 5_000_000_000},
        "metrics": {
            "time_to_first_token": {"value": 120.0, "unit": "ms"}, "request_latency": {"value": 1120.0, "unit": "ms"},
            "input_sequence_length": {"value": 50, "unit": "tokens"}, "output_sequence_length": {"value": 101, "unit": "tokens"},
        },
    }  # fmt: skip
    path.write_text(json.dumps(row) + "\n" + json.dumps(row | {"error": {"code": 500}}) + "\n")
    (back,) = read(path)
    assert (back.completed, back.failed) == (1, 1)
    assert back.latencies["tpot"].mean == pytest.approx(0.01)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("{", "torn or not JSON"),
        ("[]", "not a JSON object"),
        ("{}", "of no known tool"),
        ('{"num_prompts": 3, "duration": "long"}', "duration: r.json: 'long' is not a number"),
        ('{"num_prompts": 3, "completed": -1}', "completed: r.json: -1.0 is not a count"),
        ('{"num_prompts": 1, "input_lens": [1], "output_lens": [], "ttfts": [], "itls": []}', "different length"),
        ('{"benchmarks": [{}]}', "benchmarks: r.json: a benchmark without metrics"),
        ('{"request_throughput": {}, "request_latency": {"unit": "parsec"}}', "unknown unit 'parsec'"),
    ],
)
def test_one_clear_error(tmp_path: Path, body: str, message: str) -> None:
    (tmp_path / "r.json").write_text(body)
    with pytest.raises(TrivetError, match=message):
        read(tmp_path / "r.json")


def test_request_rate_inf_as_text(tmp_path: Path) -> None:
    (tmp_path / "r.json").write_text('{"num_prompts": 3, "request_rate": "inf", "mean_ttft_ms": 5}')
    (back,) = read(tmp_path / "r.json")
    assert math.isinf(back.request_rate_per_s)
    assert back.latencies["ttft"].mean == 0.005
