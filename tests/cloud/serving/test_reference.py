"""The event-skipping loop against the step-by-step one: equal to the picosecond, on random scenarios."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from reference import Reference

from trivet.cloud.deployment import EngineSettings, StepTable
from trivet.cloud.engine.vision import EncodeTable
from trivet.cloud.serving.adapters import Adapters
from trivet.cloud.serving.batching import Batching
from trivet.cloud.serving.faults import LinkOutage, Outage, Retries
from trivet.cloud.serving.fleet import Admission, Fleet, ReplicaKind, Transfer, simulate
from trivet.cloud.serving.kvcache import Tier
from trivet.cloud.serving.traffic import Traffic


def random_rising(rng: np.random.Generator, *shape: int, scale: float) -> np.ndarray:
    grid = rng.uniform(0.1, 1.0, shape) * scale
    for axis in range(len(shape)):
        grid = np.cumsum(grid, axis=axis)
    return grid


def step_table(rng: np.random.Generator, overlap: bool, kv_blocks: int, block_size: int) -> StepTable:
    """A random monotone table with few knots, so that segments, knees and the host's floor are all met."""
    rising = partial(random_rising, rng)
    tokens = np.array([1.0, 16, 64, 256])
    sequences = np.array([1.0, 4, 8])
    context = np.array([1.0, 20, 70, 300])
    chunk, past = np.array([1.0, 32, 256]), np.array([0.0, 64, 512])
    return StepTable(
        tokens, rising(4, scale=2e-3), sequences, rising(3, scale=2e-3), context, rising(3, 4, scale=1e-3),
        chunk, past, rising(3, 3, scale=1e-4), float(rng.uniform(0, 8e-3)), float(rng.uniform(0, 4e-3)), 1e-5,
        overlap, 0.0, 0.0, kv_blocks, block_size,
    )  # fmt: skip


@st.composite
def scenarios(
    draw: st.DrawFn,
    lora: bool = False,
    ranks: bool = False,
    images: bool = False,
    links: bool = False,
    cache: bool = False,
    sure: bool = False,
) -> tuple[Traffic, Fleet]:
    """Random traffic and fleet. Each of the five is a form of the loop that takes 20 s to compile, so a test fixes them.

    ``sure``: some request names an adapter and some holds an image; without it a drawn traffic may have none.
    """
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    count = draw(st.integers(1, 40))
    block = draw(st.sampled_from([1, 4, 16]))
    cached = cache
    size = block * draw(st.sampled_from([1, 2]))
    inputs = rng.integers(1, draw(st.sampled_from([8, 60, 200])), count)
    outputs = rng.integers(1, draw(st.sampled_from([2, 30, 90])), count)
    needed = int((inputs + outputs).max()) // block + 3
    arrival = np.sort(
        np.round(rng.uniform(0, draw(st.sampled_from([1e-6, 0.1, 1.0])), count), draw(st.sampled_from([2, 6])))
    )
    hashes = {}
    if cached:
        blocks = -(-inputs // size)
        ids = [
            np.arange(n) + 1000 * int(rng.integers(0, 3)) if rng.random() < 0.7 else 5000 + 1000 * i + np.arange(n)
            for i, n in enumerate(blocks)
        ]
        flat = np.unique(np.concatenate(ids), return_inverse=True)[1]
        hashes = {"hash_offsets": np.concatenate([[0], np.cumsum(blocks)]), "hash_ids": flat, "block_tokens": size}
    loop = draw(st.sampled_from(["open", "open", "closed", "sessions"]))
    extra = {}
    if loop == "closed":
        extra["max_concurrency"] = draw(st.integers(1, 8))
        arrival = np.zeros(count)
    if loop == "sessions":
        extra["previous"] = np.array([int(rng.integers(-1, i)) if i else -1 for i in range(count)])
        extra["think_s"] = np.round(rng.uniform(0, 0.05, count), 3)
    if draw(st.booleans()):
        extra["priority"] = rng.integers(0, 3, count)
    adapters = None
    if lora:
        extra["adapter"] = rng.integers(-1, draw(st.sampled_from([1, 3, 8])), count)
        if sure:
            extra["adapter"][-1] = max(extra["adapter"][-1], 0)
        slots = draw(st.sampled_from([1, 2, 4]))
        adapters = Adapters(
            slots, draw(st.sampled_from([0, slots, slots + 1])), draw(st.sampled_from([0.0, 5e-3])), 2e-2,
            draw(st.sampled_from([0.0, 1e-3])), 3e-4, draw(st.sampled_from([0.0, 2e-5])),
        )  # fmt: skip
    if images:
        extra["image_tokens"] = np.rint(inputs * rng.choice([0.0, 0.5, 1.0], count)).astype(int)
        if sure:
            extra["image_tokens"][0] = inputs[0]
    traffic = Traffic(arrival, inputs, outputs, **hashes, **extra)
    spec = draw(st.sampled_from([0, 0, 2]))
    rules = Batching(
        prefill_first=draw(st.booleans()),
        reserve_output=draw(st.sampled_from([0.0, 0.0, 0.3, 1.0])),
        asynchronous=draw(st.booleans()),
        swap_block_s=draw(st.sampled_from([0.0, 0.0, 1e-4])),
    )
    tiers = ()
    if cached:
        tiers = tuple(
            Tier(name, float(draw(st.integers(1, 20)) * size), draw(st.sampled_from([1e-7, 1e-5])), 1e-5)
            for name in ("host", "nvme", "remote")
            if draw(st.booleans())
        )

    def kind(role: str, number: int) -> ReplicaKind:
        table = step_table(rng, draw(st.booleans()), needed + draw(st.sampled_from([0, 2, 20, 400])), block)
        size = draw(st.integers(1 if role == "decode" else 2, 3)) if ranks else 1
        if size > 1:
            share = draw(st.sampled_from([0.0, 0.1, 0.7]))
            table = replace(table, shared_graph_s=share * table.graph_s, shared_mixed_s=share * table.mixed_s)
        return ReplicaKind(
            table,
            EngineSettings(
                max_num_seqs=draw(st.sampled_from([1, 3, 8])),
                max_num_batched_tokens=draw(st.sampled_from([16, 64, 256])) + 8 * (1 + spec),
                block_size=block, prefix_caching=cached or draw(st.booleans()),
                speculative_tokens=spec, acceptance=0.7 if spec else 0.0,
            ),
            count=number * size, ranks=size, role=role, rules=rules, tiers=tiers, adapters=adapters,
            encode=EncodeTable(np.array([1.0, 50.0]), random_rising(rng, 2, scale=8e-3)) if images else None,
        )  # fmt: skip

    if links or draw(st.integers(0, 3)) == 0:
        kinds = (kind("prefill", draw(st.integers(1, 2))), kind("decode", draw(st.integers(1, 2))))
    else:
        kinds = tuple(kind("both", draw(st.integers(1, 3))) for _ in range(draw(st.integers(1, 2))))
    replicas = sum(k.count for k in kinds)
    down: tuple[LinkOutage, ...] = ()
    if links:
        down = tuple(
            LinkOutage(
                round(float(rng.uniform(0, 0.5)), 3), draw(st.sampled_from([0.01, 0.3])),
                tuple(range(int(rng.integers(1, kinds[0].count + 1)))), draw(st.sampled_from([0.0, 0.1, 0.5])),
            )
            for _ in range(draw(st.sampled_from([1, 3])))
        )  # fmt: skip
    outages = tuple(
        Outage(
            round(float(rng.uniform(0, 0.5)), 3),
            draw(st.sampled_from([0.05, 0.5, float("inf")])),
            (int(rng.integers(0, replicas)),),
        )
        for _ in range(draw(st.sampled_from([0, 0, 1, 3])))
    )
    return traffic, Fleet(
        kinds,
        router=draw(
            st.sampled_from(
                ["round_robin", "least_outstanding", "power_of_two", "kv_load", "prefix_aware", "slo_aware"]
            )
        ),
        transfer=draw(st.sampled_from([Transfer(1e-3, 1e-6), Transfer(), Transfer(0.2, 1e-3)])),
        admission=Admission(draw(st.sampled_from([0, 0, 3])), draw(st.sampled_from([0.0, 0.0, 0.2]))),
        retries=Retries(draw(st.integers(0, 3)), draw(st.sampled_from([0.0, 0.01]))),
        outages=outages,
        link_outages=down,
        seed=draw(st.integers(0, 5)),
    )


def compare(traffic: Traffic, fleet: Fleet) -> None:
    reference = Reference(traffic, fleet)
    expected = reference.run()
    got = simulate(traffic, fleet)
    assert len(expected) == traffic.arrival_s.size == got.arrival_s.size, "a request was lost or counted twice"
    assert [r.status for r in expected] == got.status.tolist()
    for name, column in (("arrival", got.arrival_s), ("scheduled", got.scheduled_s), ("first", got.first_token_s)):
        times = np.array([getattr(r, name) for r in expected])
        np.testing.assert_array_equal(np.where(times < 0, -1, times), np.rint(np.nan_to_num(column, nan=-1e-12) * 1e12))
    done = got.status == 0
    np.testing.assert_array_equal(np.array([r.last for r in expected])[done], np.rint(got.last_token_s[done] * 1e12))
    for name, column in (
        ("hits", got.cached_tokens), ("preemptions", got.preemptions), ("tries", got.tries), ("replica", got.replica),
        ("prefill_replica", got.prefill_replica),
    ):  # fmt: skip
        assert [getattr(r, name) for r in expected] == column.tolist(), name
    assert reference.encodes == (0 if got.images is None else got.images[:, 0].sum())


def quickly(examples: int) -> settings:
    return settings(max_examples=examples, deadline=None, suppress_health_check=list(HealthCheck))


@quickly(120)
@given(scenarios())
def test_event_skipping_equals_step_by_step(case: tuple[Traffic, Fleet]) -> None:
    compare(*case)


@quickly(120)
@given(scenarios(cache=True))
def test_with_a_prefix_cache_and_tiers(case: tuple[Traffic, Fleet]) -> None:
    compare(*case)


@quickly(80)
@given(scenarios(lora=True))
def test_adapters_equal_step_by_step(case: tuple[Traffic, Fleet]) -> None:
    compare(*case)


@quickly(80)
@given(scenarios(ranks=True))
def test_ranks_in_lock_step_equal_step_by_step(case: tuple[Traffic, Fleet]) -> None:
    compare(*case)


@quickly(60)
@given(scenarios(links=True, images=True))
def test_links_that_fail_and_images(case: tuple[Traffic, Fleet]) -> None:
    compare(*case)


@quickly(80)
@given(scenarios(lora=True, ranks=True, images=True, links=True, cache=True, sure=True))
def test_everything_at_once(case: tuple[Traffic, Fleet]) -> None:
    compare(*case)
