"""Prefix cache and tiers: hit rates by an independent count, and what each tier gives."""

from __future__ import annotations

from collections import OrderedDict

import numpy as np
import pytest
from serving_cases import fleet, replicas, table, traffic

from trivet.cloud.deployment import EngineSettings
from trivet.cloud.serving.fleet import ReplicaKind, simulate
from trivet.cloud.serving.kvcache import Tier, dense_ids
from trivet.cloud.serving.metrics import latencies
from trivet.cloud.serving.traffic import Traffic
from trivet.errors import TrivetError

BLOCK = 64


def families(count: int, kinds: int, spacing: float, seed: int = 0, shared: int = 30) -> Traffic:
    """Prompts of one of ``kinds`` long prefixes and an ending of their own."""
    rng = np.random.default_rng(seed)
    which = rng.integers(0, kinds, count)
    ids = [np.concatenate([1000 * f + np.arange(shared), 10**6 + i * 2 + np.arange(2)]) for i, f in enumerate(which)]
    flat = np.unique(np.concatenate(ids), return_inverse=True)[1]
    return traffic(
        np.arange(count) * spacing,
        (shared + 2) * BLOCK,
        4,
        hash_ids=flat,
        hash_offsets=np.arange(count + 1) * (shared + 2),
        block_tokens=BLOCK,
    )


def kind(kv_blocks: int, tiers: tuple[Tier, ...] = (), **settings: object) -> ReplicaKind:
    return ReplicaKind(table(kv_blocks), EngineSettings(max_num_batched_tokens=2048, **settings), tiers=tiers)  # type: ignore[arg-type]


def count_hits(load: Traffic, entries: int) -> int:
    """Tokens that a least-recently-used cache of ``entries`` blocks hits when requests come one after the other."""
    cache: OrderedDict[int, None] = OrderedDict()
    hits = 0
    for i in range(len(load)):
        ids = load.hash_ids[load.hash_offsets[i] : load.hash_offsets[i + 1]].tolist()  # type: ignore[index]
        found = 0
        while found < min(len(ids), (int(load.input_tokens[i]) - 1) // BLOCK) and ids[found] in cache:
            found += 1
        hits += found * BLOCK
        for block in reversed(ids):  # the deepest block is released first
            cache.pop(block, None)
            cache[block] = None
        while len(cache) > entries:
            cache.popitem(last=False)
    return hits


@pytest.mark.parametrize("kinds", [2, 5, 20])
def test_hits_of_lonely_requests(kinds: int) -> None:
    load = families(200, kinds, 5.0)
    result = simulate(load, fleet(kind(4 * 200)))
    # While a request runs, one engine block of output counts against the cache: a quarter of a hash block.
    assert count_hits(load, 197) <= result.cached_tokens.sum() <= count_hits(load, 203)
    assert result.cached_tokens.sum() > 0 or kinds > 5


def test_off_means_no_hits_and_slower_first_tokens() -> None:
    load = families(100, 3, 0.05)
    on = simulate(load, fleet(kind(4000)))
    off = simulate(load, fleet(kind(4000, prefix_caching=False)))
    assert off.cached_tokens.sum() == 0 < on.cached_tokens.sum()
    assert latencies(on)["ttft"].mean() < 0.5 * latencies(off)["ttft"].mean()


def test_each_tier_adds_hits() -> None:
    load = families(300, 30, 0.5)
    host, nvme, remote = Tier("host", 10_000, 1e-8), Tier("nvme", 20_000, 1e-7, 1e-4), Tier("remote", 1e6, 1e-6, 1e-3)
    hits = [
        simulate(load, fleet(kind(800, tiers))).cached_tokens.sum()
        for tiers in ((), (host,), (host, nvme), (host, nvme, remote))
    ]
    assert hits[0] < hits[1] < hits[2] < hits[3]


def test_a_tier_slower_than_prefill_is_not_used() -> None:
    load = families(200, 30, 0.5)
    slow = simulate(load, fleet(kind(800, (Tier("remote", 1e6, 1e-3),))))
    none = simulate(load, fleet(kind(800)))
    np.testing.assert_array_equal(slow.last_token_s, none.last_token_s)


def test_loading_takes_its_time() -> None:
    """One prefix of 1,920 tokens, pushed out to the host and brought back at 1 us a token."""
    load = families(3, 1, 10.0)
    ids = np.concatenate([load.hash_ids[:32], 500 + np.arange(32), load.hash_ids[:32]])  # type: ignore[index]
    load = traffic([0.0, 10.0, 20.0], 32 * BLOCK, 2, hash_ids=ids, hash_offsets=np.arange(4) * 32, block_tokens=BLOCK)
    result = simulate(load, fleet(kind(4 * 33, (Tier("host", 1e6, 1e-6),))))
    assert result.cached_tokens.tolist() == [0, 0, 31 * BLOCK]
    wait = 31 * BLOCK * 1e-6
    assert result.first_token_s[2] - result.arrival_s[2] == pytest.approx(wait + 0.010, rel=0.05)


def test_sparse_ids_are_made_dense() -> None:
    ids = np.array([10**15, 3, 10**15, 7])
    assert dense_ids(ids).tolist() == [2, 0, 2, 1]


def test_refusals() -> None:
    with pytest.raises(TrivetError, match="tiers"):
        Tier("tape", 1, 1)
    with pytest.raises(TrivetError, match="block_size"):
        simulate(families(3, 1, 1.0), fleet(ReplicaKind(table(100, 48), EngineSettings(block_size=48))))
    with pytest.raises(TrivetError, match="below 0"):
        Tier("host", 1, -1)
    assert replicas().tiers == ()
