"""The rate limit: monotone in the rate, right at no load, and close to a step-by-step replay in between."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trivet.cloud.deployment import StepTable
from trivet.cloud.serving.rate import bilinear, decode_pool, linear, load, open_loop, prefill_pool
from trivet.errors import TrivetError

TOKENS = np.array([1.0, 64, 256, 1024, 4096, 16384])
SEQS = np.array([1.0, 8, 64, 256, 1024])
CONTEXT = np.array([1.0, 1024, 8192])


def table(scale: float = 1.0) -> StepTable:
    """About an 8B model on a fast card: 6 ms to read the weights, 40 us a prompt token, 0.2 us a cached thousand."""
    mixed = scale * (6e-3 + 0.5e-6 * TOKENS + 35e-6 * np.maximum(TOKENS - 256, 0))
    return StepTable(
        TOKENS,
        mixed,
        SEQS,
        scale * (6e-3 + 2e-6 * SEQS),
        CONTEXT,
        scale * 2e-10 * np.outer(SEQS, CONTEXT) * 200,
        np.array([1.0, 1024, 8192]),
        np.array([0.0, 8192]),
        scale * np.outer([1e-5, 1e-3, 2e-2], [1.0, 3.0]),
        1e-3,
        2e-3,
        1e-6,
        True,
        kv_blocks=30000,
        block_size=16,
    )


def poisson(rate: float, count: int = 4000, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return (
        np.cumsum(rng.exponential(1 / rate, count)),
        rng.integers(200, 2000, count).astype(float),
        rng.integers(20, 300, count).astype(float),
    )


def replay(
    step: StepTable, arrival: np.ndarray, isl: np.ndarray, osl: np.ndarray, budget: int, seqs: int
) -> tuple[float, float]:
    """Continuous batching with chunked prefill, one step at a time; mean TTFT and TPOT of the middle half."""
    now, nxt, n = 0.0, 0, len(arrival)
    waiting: list[int] = []
    left, past, first, last, made = isl.copy(), np.zeros(n), np.zeros(n), np.zeros(n), np.zeros(n)
    running: list[int] = []
    while nxt < n or waiting or running:
        while nxt < n and arrival[nxt] <= now:
            waiting.append(nxt)
            nxt += 1
        if not waiting and not running:
            now = arrival[nxt]
            continue
        decodes = [r for r in running if left[r] == 0]
        room, chunks = budget - len(decodes), []
        for r in [r for r in running if left[r] > 0] + waiting[: max(seqs - len(running), 0)]:
            if room <= 0:
                break
            chunks.append((r, min(room, left[r])))
            room -= chunks[-1][1]
        for r, _ in chunks:
            if r in waiting:
                waiting.remove(r)
                running.append(r)
        b = len(decodes)
        context = np.mean([isl[r] + made[r] for r in decodes]) if decodes else 0.0
        device = (
            bilinear(step.sequences, step.context, step.decode_attention_s, np.array(b), np.array(context))
            if b
            else 0.0
        )
        if chunks:
            device += linear(step.tokens, step.mixed_s, np.array(b + sum(q for _, q in chunks)))
            device += sum(
                float(bilinear(step.chunk, step.past, step.prefill_attention_s, np.array(q), np.array(past[r])))
                for r, q in chunks
            )
        else:
            device += linear(step.sequences, step.graph_s, np.array(b))
        host = (step.host_mixed_s if chunks else step.host_decode_s) + step.host_per_sequence_s * (b + len(chunks))
        now += max(float(device), host)
        for r, q in chunks:
            left[r] -= q
            past[r] += q
            if left[r] == 0:
                first[r] = last[r] = now
                made[r] = 1
        for r in decodes:
            made[r] += 1
            last[r] = now
        running = [r for r in running if not (left[r] == 0 and made[r] >= osl[r])]
    middle = slice(n // 4, 3 * n // 4)
    ttft = (first - arrival)[middle].mean()
    many = osl > 1
    tpot = ((last - first) / np.maximum(osl - 1, 1))[middle][many[middle]].mean()
    return float(ttft), float(tpot)


@pytest.mark.parametrize("rate", [1.0, 6.0, 12.0])
@pytest.mark.parametrize("budget", [512, 2048, 8192])
def test_against_replay(rate: float, budget: int) -> None:
    arrival, isl, osl = poisson(rate, 1500)
    ttft, tpot = replay(table(), arrival, isl, osl, budget, 256)
    point = open_loop(table(), load(arrival, isl, osl), np.array(rate), np.array(float(budget)), np.array(256.0), 0)
    assert float(point.tpot_mean_s) == pytest.approx(tpot, rel=0.15)
    assert float(point.ttft_mean_s) == pytest.approx(ttft, rel=0.15)
    assert int(point.limit) == 0


@settings(max_examples=25, deadline=None)
@given(st.floats(0.05, 8.0), st.sampled_from([512, 2048, 8192]), st.floats(1.05, 2.0))
def test_more_load_is_never_faster(rate: float, budget: int, more: float) -> None:
    demand = load(*poisson(1.0, 500))
    both = open_loop(table(), demand, np.array([rate, rate * more]), np.array(float(budget)), np.array(256.0))
    assert both.tpot_mean_s[1] >= both.tpot_mean_s[0] * 0.999
    assert both.ttft_mean_s[1] >= both.ttft_mean_s[0] * 0.98
    slow = open_loop(table(1.2), demand, np.array([rate]), np.array(float(budget)), np.array(256.0))
    assert slow.ttft_mean_s[0] >= both.ttft_mean_s[0]
    assert slow.tpot_mean_s[0] >= both.tpot_mean_s[0]


def test_overload_is_named() -> None:
    demand = load(*poisson(1.0, 500))
    point = open_loop(table(), demand, np.array([0.1, 1000.0]), np.array(2048.0), np.array(256.0))
    assert list(point.limit) == [0, 1]
    few = open_loop(table(), demand, np.array([8.0]), np.array(2048.0), np.array(1.0))
    assert few.limit[0] == 2


def test_pools_split_the_work() -> None:
    demand = load(*poisson(1.0, 500))
    mean, high, busy = prefill_pool(table(), demand, np.array([0.1, 5.0]), 8192.0)
    assert mean[1] > mean[0] > 0
    assert (high >= mean).all()
    assert 0 < busy[0] < busy[1] < 1
    tpot, batch = decode_pool(table(), demand, np.array([0.1, 5.0]))
    assert 6e-3 < tpot[0] < tpot[1]
    assert batch[0] < batch[1]


def test_a_trace_needs_a_rate() -> None:
    with pytest.raises(TrivetError, match="traffic"):
        load(np.array([0.0]), np.array([10.0]), np.array([10.0]))
