"""Generators: rates, CV and lengths as asked for; conversations that grow; one clear error."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trivet.cloud.serving.generate import (
    ARRIVALS,
    arrivals,
    closed_loop,
    conversations,
    lengths,
    open_loop,
    with_reasoning,
)
from trivet.errors import TrivetError


@pytest.mark.parametrize(
    ("process", "cv"), [("constant", 0), ("poisson", 1), ("gamma", 0.5), ("gamma", 3), ("weibull", 0.5), ("weibull", 3)]
)
def test_arrivals_have_rate_and_cv(process: str, cv: float) -> None:
    times = arrivals(process, 200_000, 20.0, cv=cv or 1.0, seed=3)
    gaps = np.diff(times)
    assert len(times) / times[-1] == pytest.approx(20.0, rel=0.03)
    assert gaps.std() / gaps.mean() == pytest.approx(cv, rel=0.06, abs=1e-9)
    assert (gaps >= 0).all()


@pytest.mark.parametrize(
    ("spec", "mean", "p50", "p99"),
    [
        (128, 128, 128, 128),
        ({"kind": "uniform", "low": 10, "high": 20}, 15, 15, 20),
        ({"kind": "around", "tokens": 1000}, 900, 900, 998),
        ({"kind": "vllm_random", "tokens": 1000, "range_ratio": 0.5}, 1000, 1000, 1490),
        ({"kind": "exponential", "mean": 200}, 200, 200 * np.log(2), 200 * np.log(100)),
        ({"kind": "lognormal", "median": 500, "sigma": 0.8}, 500 * np.exp(0.32), 500, 500 * np.exp(0.8 * 2.3263)),
        ({"kind": "empirical", "tokens": [10, 1000], "weights": [3, 1]}, 257.5, 10, 1000),
        ({"kind": "fixed", "tokens": 5000, "max": 4096}, 4096, 4096, 4096),
    ],
)
def test_lengths_have_their_moments(spec: Any, mean: float, p50: float, p99: float) -> None:
    drawn = lengths(spec, 200_000, seed=1)
    assert drawn.mean() == pytest.approx(mean, rel=0.02)
    assert np.quantile(drawn, 0.5) == pytest.approx(p50, rel=0.02)
    assert np.quantile(drawn, 0.99) == pytest.approx(p99, rel=0.03)


def test_pareto_tail_has_its_index() -> None:
    spec = {"kind": "lognormal_pareto", "median": 500, "sigma": 1.0, "tail_share": 0.05, "tail_index": 1.5}
    drawn = lengths(spec, 400_000, seed=1)
    assert np.quantile(drawn, 0.5) == pytest.approx(500, rel=0.02)
    far, near = np.quantile(drawn, [0.9995, 0.995])  # ten times rarer: 10^(1/1.5) times longer
    assert far / near == pytest.approx(10 ** (1 / 1.5), rel=0.1)


def test_seeds() -> None:
    outputs = {"kind": "exponential", "mean": 50}
    one, same, other = (open_loop(500, rate_per_s=5, inputs=9, outputs=outputs, seed=s) for s in (1, 1, 2))
    np.testing.assert_array_equal(one.arrival_s, same.arrival_s)
    np.testing.assert_array_equal(one.output_tokens, same.output_tokens)
    assert (one.output_tokens != other.output_tokens).any()
    faster = open_loop(500, rate_per_s=10, inputs=9, outputs=outputs, seed=1)
    np.testing.assert_array_equal(one.output_tokens, faster.output_tokens)


def test_closed_loop() -> None:
    traffic = closed_loop(100, concurrency=8, inputs={"kind": "around", "tokens": 1024}, outputs=128)
    assert traffic.max_concurrency == 8
    assert traffic.duration_s == 0
    assert traffic.input_tokens.min() >= 819


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 30), st.integers(1, 6), st.integers(0, 100), st.sampled_from([1, 16, 64]), st.integers(0, 5))
def test_conversations_grow_and_share(sessions: int, turns: int, system: int, block: int, seed: int) -> None:
    traffic = conversations(
        sessions, rate_per_s=1, turns={"kind": "uniform", "low": 1, "high": turns}, inputs={"kind": "exponential", "mean": 30},
        outputs={"kind": "exponential", "mean": 40}, system_tokens=system, block_tokens=block, seed=seed, max_input_tokens=400,
    )  # fmt: skip
    assert traffic.previous is not None
    assert traffic.hash_offsets is not None
    assert traffic.hash_ids is not None
    assert traffic.client is not None
    rows = [
        traffic.hash_ids[a:b].tolist() for a, b in zip(traffic.hash_offsets[:-1], traffic.hash_offsets[1:], strict=True)
    ]
    owner: dict[int, int] = {}
    for i, row in enumerate(rows):
        assert len(row) == traffic.input_tokens[i] // block
        assert traffic.input_tokens[i] <= 400
        before = int(traffic.previous[i])
        if before >= 0:
            assert traffic.client[before] == traffic.client[i]
            assert traffic.input_tokens[i] > traffic.input_tokens[before] + traffic.output_tokens[before]
            assert row[: len(rows[before])] == rows[before]
        for at, identity in enumerate(row):
            assert (identity < system // block) == (at < system // block)
            if at >= system // block:
                assert owner.setdefault(identity, int(traffic.client[i])) == traffic.client[i]


def test_reasoning() -> None:
    base = open_loop(2000, rate_per_s=5, inputs=100, outputs=50)
    traffic = with_reasoning(base, {"kind": "exponential", "mean": 800}, share=0.6)
    assert traffic.reasoning_tokens is not None
    np.testing.assert_array_equal(traffic.output_tokens - traffic.reasoning_tokens, 50)
    assert (traffic.reasoning_tokens > 0).mean() == pytest.approx(0.6, abs=0.04)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: arrivals("bursty", 10, 1.0), "process: unknown 'bursty'.*gamma"),
        (lambda: arrivals("gamma", 10, -1.0), "rate_per_s: -1.0 is not a positive"),
        (lambda: arrivals("gamma", 10, 1.0, cv=float("nan")), "cv: nan"),
        (lambda: arrivals("weibull", 10, 1.0, cv=1e9), "cv: .*out of range"),
        (lambda: lengths({"kind": "zipf"}, 3, field="inputs"), "inputs: unknown kind 'zipf'"),
        (
            lambda: lengths({"kind": "uniform", "low": 9, "high": 2}, 3, field="inputs"),
            "inputs: uniform: high: 2 is below low",
        ),
        (lambda: lengths({"kind": "exponential", "median": 2}, 3, field="inputs"), "inputs: exponential: .*median"),
        (lambda: lengths({"kind": "empirical", "tokens": [1, 2], "weights": [1]}, 3), "weights"),
        (lambda: lengths("long", 3), "neither a number nor a mapping"),
        (lambda: lengths({"kind": "fixed", "tokens": "x"}, 3), "'x' is not a number"),
        (lambda: closed_loop(3, concurrency=0, inputs=1, outputs=1), "concurrency: 0"),
        (lambda: open_loop(-3, rate_per_s=1, inputs=1, outputs=1), "requests: -3"),
    ],
)
def test_one_clear_error(call: Any, message: str) -> None:
    with pytest.raises(TrivetError, match=message):
        call()


def test_table_of_processes_is_open() -> None:
    ARRIVALS["pairs"] = lambda rng, count, cv: np.tile([0.0, 2.0], count)[:count]
    try:
        assert arrivals("pairs", 4, 1.0).tolist() == [0, 2, 2, 4]
    finally:
        del ARRIVALS["pairs"]
