"""The prefix cache in the hot loop: blocks by hash, least recently used first out, in tiers below HBM.

One entry stands for one hash block (``block_tokens`` tokens). A hash table (open addressing, linear probing) finds
the entry of a hash on a replica; the lowest tier is a pool that all replicas share. Entries in use have a reference
count; those without are in the list of their tier, the head the least recently used.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from trivet.cloud.serving._loop_jit import jit, seldom
from trivet.cloud.serving._loop_state import (
    G_HASH_BLOCK,
    R_CHANNEL,
    R_EVICTABLE,
    R_FREE,
    R_PREFILL_PS,
    S_GEN,
    S_HASH,
    S_HASHES,
    S_IN,
    S_NREF,
)  # fmt: skip

E_KEY, E_REF, E_TIER, E_PREV, E_NEXT, E_OWNER = range(6)
M_FREE, M_USED, M_WEIGHT, M_EVICTED = range(4)
HBM, HOST, NVME, REMOTE = range(4)
TIERS = 4
HASH_BITS = 44


class Cache(NamedTuple):
    """Everything cached on all replicas. The last owner (index R) is the shared pool."""

    key: Any  # [table] int64, -1 = empty
    value: Any  # [table] int64
    entry: Any  # [entries, 6]
    lru: Any  # [R + 1, TIERS, 2] head, tail
    count: Any  # [R + 1, TIERS] entries held (HBM: without references)
    capacity: Any  # [R + 1, TIERS]
    load_ps: Any  # [R + 1, TIERS] one block's way up to HBM
    latency_ps: Any  # [R + 1, TIERS]
    meta: Any  # [4] free list, used entries, engine blocks an entry takes, evictions
    hash_ids: Any  # int64
    owner: Any  # [hashes] last replica that computed the block, -1 = none


@jit
def _spot(cache: Any, key: int) -> int:
    """Where the key is, or the empty place where it would go."""
    mask = cache.key.size - 1
    x = key * 0x9E3779B97F4A7C1 & 0x7FFFFFFFFFFFFFFF
    at = (x ^ (x >> 29)) & mask
    while cache.key[at] != -1 and cache.key[at] != key:
        at = (at + 1) & mask
    return at


@jit
def find(cache: Any, owner: int, block: int) -> int:
    at = _spot(cache, (owner << HASH_BITS) | block)
    return cache.value[at] if cache.key[at] != -1 else -1


@jit
def _home(cache: Any, key: int) -> int:
    x = key * 0x9E3779B97F4A7C1 & 0x7FFFFFFFFFFFFFFF
    return (x ^ (x >> 29)) & (cache.key.size - 1)


@seldom
def _unmap(cache: Any, key: int) -> None:
    """Remove a key, moving later ones of its run back so that no tombstone is needed."""
    mask = cache.key.size - 1
    hole = _spot(cache, key)
    if cache.key[hole] == -1:
        return
    at = hole
    while True:
        at = (at + 1) & mask
        if cache.key[at] == -1:
            break
        home = _home(cache, cache.key[at])
        if ((at - home) & mask) >= ((at - hole) & mask):
            cache.key[hole], cache.value[hole] = cache.key[at], cache.value[at]
            hole = at
    cache.key[hole] = -1


@jit
def _map(cache: Any, key: int, entry: int) -> None:
    at = _spot(cache, key)
    cache.key[at], cache.value[at] = key, entry


@jit
def _push(cache: Any, entry: int, tier: int) -> None:
    """To the most recently used end of its owner's list."""
    e = cache.entry[entry]
    ends = cache.lru[e[E_OWNER], tier]
    e[E_TIER], e[E_PREV], e[E_NEXT] = tier, ends[1], -1
    if ends[1] >= 0:
        cache.entry[ends[1], E_NEXT] = entry
    else:
        ends[0] = entry
    ends[1] = entry
    cache.count[e[E_OWNER], tier] += 1


@jit
def _unlink(cache: Any, entry: int) -> None:
    e = cache.entry[entry]
    ends = cache.lru[e[E_OWNER], e[E_TIER]]
    if e[E_PREV] >= 0:
        cache.entry[e[E_PREV], E_NEXT] = e[E_NEXT]
    else:
        ends[0] = e[E_NEXT]
    if e[E_NEXT] >= 0:
        cache.entry[e[E_NEXT], E_PREV] = e[E_PREV]
    else:
        ends[1] = e[E_PREV]
    cache.count[e[E_OWNER], e[E_TIER]] -= 1


@jit
def _drop(cache: Any, entry: int) -> None:
    """Forget an unlinked entry."""
    _unmap(cache, cache.entry[entry, E_KEY])
    cache.entry[entry, E_NEXT] = cache.meta[M_FREE]
    cache.meta[M_FREE] = entry


@seldom
def _new(cache: Any, owner: int, block: int) -> int:
    entry = cache.meta[M_FREE]
    if entry >= 0:
        cache.meta[M_FREE] = cache.entry[entry, E_NEXT]
    else:
        entry = cache.meta[M_USED]
        cache.meta[M_USED] += 1
    e = cache.entry[entry]
    e[E_KEY], e[E_REF], e[E_OWNER], e[E_TIER] = (owner << HASH_BITS) | block, 0, owner, HBM
    _map(cache, e[E_KEY], entry)
    return int(entry)


@seldom
def _demote(cache: Any, entry: int) -> None:
    """An unlinked entry goes to the next tier that has room for anything at all, pushing that tier's oldest down."""
    while True:
        e = cache.entry[entry]
        owner, tier = e[E_OWNER], e[E_TIER] + 1
        while tier < REMOTE and cache.capacity[owner, tier] == 0:
            tier += 1
        pool = cache.capacity.shape[0] - 1
        if tier == REMOTE:
            block = e[E_KEY] & ((1 << HASH_BITS) - 1)
            if owner == pool or cache.capacity[pool, REMOTE] == 0:
                _drop(cache, entry)
                return
            there = find(cache, pool, block)
            if there >= 0:  # already in the pool: only freshen it
                _unlink(cache, there)
                _push(cache, there, REMOTE)
                _drop(cache, entry)
                return
            _unmap(cache, e[E_KEY])
            e[E_OWNER], e[E_KEY] = pool, (pool << HASH_BITS) | block
            _map(cache, e[E_KEY], entry)
            owner = pool
        elif tier > REMOTE:
            _drop(cache, entry)
            return
        _push(cache, entry, tier)
        if cache.count[owner, tier] <= cache.capacity[owner, tier]:
            return
        entry = cache.lru[owner, tier, 0]
        _unlink(cache, entry)


@seldom
def cache_evict(row: Any, replica: int, cache: Any) -> None:
    """Free one entry's blocks in HBM: the least recently used one moves down a tier or is forgotten."""
    entry = cache.lru[replica, HBM, 0]
    _unlink(cache, entry)
    row[R_EVICTABLE] -= cache.meta[M_WEIGHT]
    row[R_FREE] += cache.meta[M_WEIGHT]
    cache.meta[M_EVICTED] += 1
    _demote(cache, entry)


@seldom
def cache_match(state: Any, row: Any, replica: int, cache: Any, slot: int, time: int) -> Any:
    """The cached prefix that is worth having: blocks in all, of which in HBM, of which idle, time to load the others;
    and how many lie in HBM before the first that must be loaded, of which idle.

    A longer prefix is taken as long as it saves more prefill than its loading takes, the queue of the channel included.
    """
    s = state.slots[slot]
    block = state.run[G_HASH_BLOCK]
    limit = min((s[S_IN] + s[S_GEN] - 1) // block, s[S_IN] // block, s[S_HASHES])
    pool = cache.capacity.shape[0] - 1
    wait = max(0, row[R_CHANNEL] - time)
    total, hbm, idle, load, front, front_idle = 0, 0, 0, 0, 0, 0
    most, best, best_hbm, best_idle, best_load = 0, 0, 0, 0, 0
    while total < limit:
        block_hash = cache.hash_ids[s[S_HASH] + total]
        entry = find(cache, replica, block_hash)
        if entry < 0 and cache.capacity[pool, REMOTE] > 0:
            entry = find(cache, pool, block_hash)
        if entry < 0:
            break
        e = cache.entry[entry]
        total += 1
        if e[E_TIER] == HBM:
            hbm += 1
            if e[E_REF] == 0:
                idle += 1
        else:
            if load == 0:
                load += cache.latency_ps[e[E_OWNER], e[E_TIER]] + 1
            load += cache.load_ps[e[E_OWNER], e[E_TIER]]
        if load == 0:
            front, front_idle = hbm, idle
            best, best_hbm, best_idle = total, hbm, idle
        else:
            gain = row[R_PREFILL_PS] * (total - front) * block - load - wait
            if gain > most:
                most, best, best_hbm, best_idle, best_load = gain, total, hbm, idle, load
    return best, best_hbm, best_idle, best_load, front, front_idle


@seldom
def cache_take(state: Any, row: Any, replica: int, cache: Any, slot: int, hits: int) -> int:
    """Reference every full block of the prompt, the first ``hits`` from the cache; return HBM blocks now to be paid."""
    s = state.slots[slot]
    full = min(s[S_IN] // state.run[G_HASH_BLOCK], s[S_HASHES])
    weight = cache.meta[M_WEIGHT]
    cost = 0
    for i in range(full):
        block_hash = cache.hash_ids[s[S_HASH] + i]
        entry = find(cache, replica, block_hash)
        if entry < 0:
            entry = _new(cache, replica, block_hash)
            cost += weight
        elif cache.entry[entry, E_TIER] != HBM:
            _unlink(cache, entry)
            cache.entry[entry, E_TIER] = HBM
            cost += weight
        elif cache.entry[entry, E_REF] == 0:
            _unlink(cache, entry)
            row[R_EVICTABLE] -= weight
        cache.entry[entry, E_REF] += 1
        cache.owner[block_hash] = replica
    s[S_NREF] = full
    return cost


@seldom
def cache_release(state: Any, row: Any, replica: int, cache: Any, slot: int, blocks: int) -> None:
    """Drop a request's references, the deepest block first; what nobody else uses may now be evicted."""
    s = state.slots[slot]
    weight = cache.meta[M_WEIGHT]
    for i in range(s[S_NREF] - 1, -1, -1):
        entry = find(cache, replica, cache.hash_ids[s[S_HASH] + i])
        cache.entry[entry, E_REF] -= 1
        if cache.entry[entry, E_REF] == 0:
            _push(cache, entry, HBM)
            row[R_EVICTABLE] += weight
    row[R_FREE] += blocks - weight * s[S_NREF]
    s[S_NREF] = 0


@seldom
def cache_clear(row: Any, replica: int, cache: Any) -> None:
    """A replica went down: what its tiers held is gone (nothing is referenced any more)."""
    for tier in range(REMOTE):
        while cache.lru[replica, tier, 0] >= 0:
            entry = cache.lru[replica, tier, 0]
            _unlink(cache, entry)
            if tier == HBM:
                row[R_EVICTABLE] -= cache.meta[M_WEIGHT]
                row[R_FREE] += cache.meta[M_WEIGHT]
            _drop(cache, entry)
