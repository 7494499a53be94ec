"""Traffic in blocks: wherever it is cut, the same run, and memory that does not grow with time."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from serving_cases import fleet, poisson, replicas, traffic

from trivet.cloud.engine.vision import EncodeTable
from trivet.cloud.serving import _loop_state as k
from trivet.cloud.serving.adapters import Adapters, adapters_of
from trivet.cloud.serving.autoscale import Autoscale
from trivet.cloud.serving.faults import Outage
from trivet.cloud.serving.fleet import Fleet, FleetRun, ReplicaKind
from trivet.cloud.serving.stream import Streamed, blocks_of, on_clock, simulate_stream
from trivet.cloud.serving.traffic import Traffic
from trivet.errors import TrivetError

LOAD = poisson(900, 45, 400, 80, seed=5)
FLEETS = {
    "plain": lambda: fleet(replicas(3)),
    "blind": lambda: fleet(replicas(3), router="power_of_two", seed=2),
    "preempting": lambda: fleet(replicas(2, kv_blocks=260)),
    "failing": lambda: fleet(replicas(3), outages=(Outage(4.0, 5.0, (0, 2)),)),
    "scaled": lambda: fleet(replicas(4, max_num_seqs=16), autoscale=Autoscale(10, 2.0, 3.0, 1)),
}


def fed(one: Fleet, cuts: list[int]) -> tuple[FleetRun, np.ndarray]:
    run, rows = FleetRun(one), []
    bounds = [0, *sorted(cuts), len(LOAD)]
    for at in range(len(bounds) - 1):
        part = LOAD.take(np.arange(bounds[at], bounds[at + 1]))
        rows.append(run.feed(part, final=at == len(bounds) - 2).rows)
    return run, np.concatenate(rows)


@pytest.mark.parametrize("name", FLEETS)
@given(cuts=st.lists(st.integers(0, 900), max_size=6))
@settings(max_examples=15, deadline=None)
def test_any_cut_gives_the_same_run(name: str, cuts: list[int]) -> None:
    whole, rows = fed(FLEETS[name](), [])
    run, parts = fed(FLEETS[name](), cuts)
    np.testing.assert_array_equal(parts, rows)
    np.testing.assert_array_equal(run.state.series, whole.state.series)
    np.testing.assert_array_equal(run.state.itl, whole.state.itl)
    busy = [k.R_BUSY, k.R_DECODED, k.R_PREFILLED, k.R_DONE_STEPS, k.R_FINISHED, k.R_KV_TIME]
    np.testing.assert_array_equal(run.state.replicas[:, busy], whole.state.replicas[:, busy])


def blocks_and_whole(load: Traffic, kind: ReplicaKind, cuts: list[int]) -> tuple[Streamed, Streamed]:
    """Cut at ``cuts``, and whole; the run is told how many adapters there are."""
    adapters = adapters_of(load)
    bounds = [0, *sorted(cuts), len(load)]
    blocks = [load.take(np.arange(a, b)) for a, b in pairwise(bounds)]
    parts, whole = (simulate_stream(part, fleet(kind), every=1, adapters=adapters) for part in (blocks, [load]))
    np.testing.assert_array_equal(parts.sample.last_token_s, whole.sample.last_token_s)
    return parts, whole


@given(cuts=st.lists(st.integers(0, 900), max_size=6))
@settings(max_examples=10, deadline=None)
def test_adapters_in_blocks(cuts: list[int]) -> None:
    load = replace(LOAD, adapter=np.random.default_rng(3).integers(-1, 6, len(LOAD)))
    kind = replace(replicas(3), adapters=Adapters(2, load_s=1e-3, step_s=1e-3))
    parts, whole = blocks_and_whole(load, kind, cuts)
    np.testing.assert_array_equal(parts.sample.adapters, whole.sample.adapters)
    with pytest.raises(TrivetError, match="numbers below 0"):
        simulate_stream([load], fleet(kind))


@given(cuts=st.lists(st.integers(0, 900), max_size=6))
@settings(max_examples=10, deadline=None)
def test_images_in_blocks(cuts: list[int]) -> None:
    """A block may hold larger images than those before it."""
    rng = np.random.default_rng(3)
    images = rng.integers(0, 300, len(LOAD)) * (rng.random(len(LOAD)) < 0.3)
    load = replace(LOAD, image_tokens=np.minimum(images, LOAD.input_tokens))
    kind = replace(replicas(3), encode=EncodeTable(np.array([1.0, 200.0]), np.array([1e-3, 2e-2])))
    parts, whole = blocks_and_whole(load, kind, cuts)
    np.testing.assert_array_equal(parts.sample.images, whole.sample.images)


def test_arrays_do_not_grow_with_time() -> None:
    """Ten times the requests at the same rate: the same sizes of what a run carries."""
    sizes = []
    for count in (2000, 20_000):
        load = poisson(count, 20, 300, 60, seed=1)
        run = FleetRun(fleet(replicas(3)))
        blocks = list(blocks_of(load, 500))
        for at, block in enumerate(blocks):
            run.feed(block, final=at == len(blocks) - 1)
        sizes.append([array.nbytes for array in (run.state.slots, run.state.pending, run.state.out, run.state.series)])
    assert sizes[0] == sizes[1]


def test_what_hangs_together_is_not_cut() -> None:
    """Sessions and prefixes need their requests in one block: ``blocks_of`` leaves them whole, ``feed`` says so."""
    linked = traffic([0.0, 1.0, 2.0, 3.0], 100, 20, previous=np.array([-1, 0, -1, 2]))
    assert [len(b) for b in blocks_of(linked, 2)] == [4]
    hashed = traffic([0.0, 1.0], 64, 20, hash_ids=np.array([0, 0]), hash_offsets=np.array([0, 1, 2]), block_tokens=64)
    assert [len(b) for b in blocks_of(hashed, 1)] == [2]
    run = FleetRun(fleet(replicas()), sessions=4)
    run.feed(linked.head(2), final=False)
    with pytest.raises(TrivetError, match="sessions and prefix hashes need one block"):
        run.feed(linked.take(np.arange(2, 4)))
    found = simulate_stream(blocks_of(linked, 2), fleet(replicas()), every=1)
    assert found.sample.arrival_s[1] >= found.sample.last_token_s[0]


def test_the_clock_can_start_late() -> None:
    late = traffic([100.0, 101.0], 100, 20)
    assert [b.arrival_s.tolist() for b in on_clock([late], 100.0)] == [[0.0, 1.0]]
    with pytest.raises(TrivetError, match="no traffic"):
        simulate_stream(iter([]), fleet(replicas()))
