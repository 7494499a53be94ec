"""Sketches: the error that they promise, merging in any order, and a streamed run against the whole one."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from serving_cases import fleet, poisson, replicas

from trivet.cloud.serving import metrics
from trivet.cloud.serving import sketches as sk
from trivet.cloud.serving.fleet import simulate
from trivet.cloud.serving.stream import blocks_of, simulate_stream
from trivet.errors import TrivetError

SECONDS = st.floats(1e-6, 1e6)
SOME = st.lists(SECONDS, min_size=1, max_size=60)


def counts_of(values: list[float]) -> np.ndarray:
    return np.bincount(sk.bin_of(values), minlength=sk.BINS)


@given(SOME, st.floats(0, 1))
@settings(max_examples=200, deadline=None)
def test_quantiles_are_within_the_error(values: list[float], share: float) -> None:
    exact = float(np.sort(values)[min(max(int(np.ceil(share * len(values))), 1), len(values)) - 1])
    assert abs(sk.quantile(counts_of(values), share) / exact - 1) <= sk.RELATIVE_ERROR * (1 + 1e-9) < 0.01


def test_bins_tile_the_line() -> None:
    edge, value = sk.edges_s(), sk.values_s()
    assert (np.diff(edge) > 0).all()
    assert sk.bin_of(edge[1:-1] * (1 + 1e-12)).tolist() == list(range(1, sk.BINS))
    assert sk.bin_of([0.0, 1e-7, 1e9]).tolist() == [0, 0, sk.BINS - 1]
    assert (value[1:] / edge[1:-1] - 1).max() <= sk.RELATIVE_ERROR * (1 + 1e-9)
    assert (edge[2:] / value[1:] - 1).max() <= 1 / 127


def filled(hours: list[tuple[int, float]]) -> sk.Sketches:
    out = sk.Sketches(("a", "b"), "s")
    for number, (hour, value) in enumerate(hours):
        cell = out.cell(hour)
        cell.counts[number % 2, sk.TTFT, sk.bin_of(value)] += 1
        cell.sums_us[number % 2, sk.TTFT, sk.bin_of(value)] += round(value * 1e6)
        cell.counters[number % 2, 0] += 1
    return out


PIECE = st.lists(st.tuples(st.integers(0, 3), SECONDS), max_size=6)


def same(a: sk.Sketches, b: sk.Sketches) -> bool:
    left, right = a.table(), b.table()
    return all(left[c].tolist() == right[c].tolist() for c in sk.COLUMNS) and a.hours() == b.hours()


@given(PIECE, PIECE, PIECE)
@settings(max_examples=40, deadline=None)
def test_merging_is_associative_and_commutative(a: list, b: list, c: list) -> None:
    one, two, three = filled(a), filled(b), filled(c)
    assert same(one.merge(two).merge(three), one.merge(two.merge(three)))
    assert same(one.merge(two), two.merge(one))
    if a or b or c:
        tables = [one.table(), two.table(), three.table()]
        whole = sk.merged([one.merge(two).merge(three).table()], by=["hour"])
        parts = sk.merged(
            [sk.merged(tables[:2], by=["group", "hour"]), sk.merged(tables[2:], by=["group", "hour"])], by=["hour"]
        )
        assert {n: v.tolist() for n, v in parts.items()} == {n: v.tolist() for n, v in whole.items()}


@given(PIECE, PIECE)
@settings(max_examples=30, deadline=None)
def test_packing_changes_nothing(a: list, b: list) -> None:
    plain, packed = filled(a), filled(a)
    packed.pack(10)
    assert same(plain, packed)
    assert same(plain.merge(filled(b)), packed.merge(filled(b)))
    for hour, value in b:
        for one in (plain, packed):
            one.cell(hour).counts[0, sk.E2E, sk.bin_of(value)] += 1
    assert same(plain, packed)


def test_hours_that_are_over_are_small() -> None:
    load = poisson(6000, 0.05, 400, 80, seed=3)  # 33 hours
    found = simulate_stream(blocks_of(load, 400), fleet(replicas(1))).sketches
    assert len(found.cells) > 30
    sizes = [found.cells[hour].nbytes for hour in sorted(found.cells)]
    assert max(sizes[:-3]) < sizes[-1] / 5
    assert found.counters()["done"] == 6000


def test_refusals() -> None:
    with pytest.raises(TrivetError, match="groups"):
        sk.Sketches(("a",)).merge(sk.Sketches(("b",)))
    with pytest.raises(TrivetError, match="by: unknown 'day'"):
        sk.merged([filled([]).table()], by=["day"])


def test_a_streamed_run_tells_what_the_whole_one_does() -> None:
    load = poisson(6000, 40, 400, 80, seed=3)
    whole = metrics.summary(simulate(load, fleet(replicas(2), replicas(1))), 0.15, 0.02)
    found = simulate_stream(
        blocks_of(load, 900), fleet(replicas(2), replicas(1)), every=10, ttft_slo_s=0.15, tpot_slo_s=0.02
    )
    told = metrics.summary_streamed(found)
    for part in ("requests", "slo", "use", "prefix_cache"):
        assert told[part] == whole[part], part
    for part in ("ttft_s", "tpot_s", "itl_s", "e2e_s", "queue_s"):
        assert told[part]["mean"] == pytest.approx(whole[part]["mean"], rel=1e-4 if part != "itl_s" else 0.01, abs=1e-6)
        for mark in ("p50", "p90", "p95", "p99", "max"):
            assert told[part][mark] == pytest.approx(whole[part][mark], rel=0.01, abs=2e-6), (part, mark)
    assert told["duration_s"] == pytest.approx(whole["duration_s"])
    assert told["throughput"]["output_tokens_per_s_per_user"] == pytest.approx(
        whole["throughput"]["output_tokens_per_s_per_user"], rel=0.01
    )
    assert told["percentiles"]["from"] == "sketches"
    assert sum(h["done"] for h in told["hours"]) == 6000
    every = simulate(load, fleet(replicas(2), replicas(1)))
    assert found.ids.tolist() == list(range(0, 6000, 10))
    np.testing.assert_array_equal(found.sample.last_token_s, every.last_token_s[::10])


def test_memory_does_not_grow_with_blocks() -> None:
    """An hour's cell is all that a longer run adds."""
    load = poisson(4000, 40, 400, 80)
    found = simulate_stream(blocks_of(load, 500), fleet(replicas(3)), every=1000)
    assert len(found.sketches.cells) == 1
    assert found.ids.size == 4
