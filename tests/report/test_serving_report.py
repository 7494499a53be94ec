"""The serving report: complete, also for odd inputs."""

from __future__ import annotations

import re

import numpy as np
import pytest

from trivet.errors import TrivetError
from trivet.report.serving_report import html, latencies

SERIES = (
    "arrived_per_s",
    "finished_per_s",
    "prefill_tokens_per_s",
    "decode_tokens_per_s",
    "batch",
    "queue",
    "kv_share",
)


def requests(count: int = 500) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    arrival = np.cumsum(rng.exponential(0.1, count))
    first = arrival + rng.lognormal(-1, 0.6, count)
    outputs = rng.integers(1, 300, count)
    return {
        "arrival_s": arrival,
        "first_token_s": first,
        "last_token_s": first + outputs * 0.02,
        "input_tokens": rng.integers(1, 5000, count),
        "output_tokens": outputs,
        "scheduled_s": arrival + 0.01,
        "replica": rng.integers(0, 4, count),
    }


def test_latencies() -> None:
    columns = {
        "arrival_s": [0.0, 0.0],
        "first_token_s": [1.0, np.nan],
        "last_token_s": [3.0, np.nan],
        "input_tokens": [5, 5],
        "output_tokens": [3, 1],
    }
    times = latencies(columns)
    assert times["ttft"].tolist() == [1.0]
    assert times["tpot"].tolist() == [1.0]
    assert times["e2e"].tolist() == [3.0]


def test_all_sections() -> None:
    columns = requests()
    columns["first_token_s"][3] = columns["last_token_s"][3] = np.nan
    time = np.linspace(0, 50, 100)
    series = {"time_s": time} | dict.fromkeys(
        (
            "arrived_per_s",
            "finished_per_s",
            "prefill_tokens_per_s",
            "decode_tokens_per_s",
            "batch",
            "queue",
            "kv_share",
        ),
        time,
    )
    text = html(
        columns,
        {"goodput": 0.9, "slo": {"ttft_s": 2.0}},
        series,
        ttft_slo_s=2.0,
        tpot_slo_s=0.05,
        notes=["Model <x> is assumed."],
    )
    for words in (
        "Latency",
        "Requests per second",
        "KV cache in use",
        "Requests by replica",
        "slo: ttft s",
        "Model &lt;x&gt; is assumed",
        "SLO",
    ):
        assert words in text
    assert text.count("<figure") >= 8
    assert "nan" not in re.sub(r"<title>.*?</title>", "", text)


def test_a_sample_is_told_by_the_summary() -> None:
    spread = {"mean": 0.5, "p50": 0.4, "p90": 0.9, "p95": 1.0, "p99": 1.25, "max": 3.0}
    summary = {
        "requests": {"total": 500_000, "done": 499_000},
        "throughput": {"requests_per_s": 77.0, "output_tokens_per_s": 1234.0},
        **{f"{name}_s": spread for name in ("ttft", "tpot", "e2e", "queue")},
    }
    text = html(requests(), summary, one_in=1000)
    assert "500k" in text
    assert "1.25 s" in text
    assert "one in 1,000" in text
    assert "Requests by replica" not in text


def test_one_request_and_none() -> None:
    html(requests(1), {})
    failed = requests(3)
    failed["first_token_s"][:] = failed["last_token_s"][:] = np.nan
    html(failed, {})
    with pytest.raises(TrivetError, match="no request"):
        html(requests(0), {})
    with pytest.raises(TrivetError, match="last_token_s: missing"):
        html({k: v for k, v in requests().items() if k != "last_token_s"}, {})
