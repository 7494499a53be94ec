"""Routing in the hot loop: a winner tree over what the router compares, and the choice of a replica."""

from __future__ import annotations

from typing import Any

from trivet.cloud.serving._loop_cache import find
from trivet.cloud.serving._loop_jit import jit, seldom
from trivet.cloud.serving._loop_queue import tree_update
from trivet.cloud.serving._loop_state import *


@jit
def load_of(state: Any, row: Any) -> int:
    """What routers compare; it changes only at events that a step-by-step loop has too."""
    router = state.run[G_ROUTER]
    if router == KV_LOAD:
        return row[R_LOAD_TOKENS]
    if router == PREFIX_AWARE:
        return row[R_BACKLOG] + row[R_LOAD_TOKENS]
    if router == SLO_AWARE:
        return row[R_BACKLOG] * row[R_PREFILL_PS] + row[R_OUTSTANDING]
    return row[R_OUTSTANDING]


@jit
def update_load(state: Any, row: Any, replica: int) -> None:
    leaves = state.run[G_LEAVES]
    if leaves == 1 and state.run[G_POOLS] == 0:
        state.load_key[0] = 0 if row[R_UP] == ON else INF
        return
    key = load_of(state, row) if row[R_UP] == ON else INF
    if row[R_ROLE] == ROLE_DECODE:
        if state.load2_key[replica] != key:
            state.load2_key[replica] = key
            tree_update(state.load2_tree, state.load2_key, leaves, replica)
    elif state.load_key[replica] != key:
        state.load_key[replica] = key
        tree_update(state.load_tree, state.load_key, leaves, replica)


@seldom
def random_below(state: Any, n: int) -> int:
    """xorshift64: the same draws on every machine."""
    x = state.run[G_RANDOM]
    x ^= (x << 13) & 0x7FFFFFFFFFFFFFFF
    x ^= x >> 7
    x ^= (x << 17) & 0x7FFFFFFFFFFFFFFF
    state.run[G_RANDOM] = x
    return int((x >> 11) % n)


@seldom
def cached_blocks(state: Any, cache: Any, replica: int, slot: int) -> int:
    s = state.slots[slot]
    count = 0
    while count < s[S_HASHES] and find(cache, replica, cache.hash_ids[s[S_HASH] + count]) >= 0:
        count += 1
    return count


@seldom
def choose_by_prefix(state: Any, cache: Any, slot: int, least: int) -> int:
    """The replica that computed the deepest known block of the prompt, or the least loaded one, whichever has less
    prompt left to compute and context to hold."""
    s = state.slots[slot]
    best = -1
    for i in range(s[S_HASHES]):
        owner = cache.owner[cache.hash_ids[s[S_HASH] + i]]
        if owner < 0:
            break
        best = owner
    if best < 0 or best == least or state.load_key[best] >= INF:
        return least
    block = state.run[G_HASH_BLOCK]
    saved = cached_blocks(state, cache, best, slot) * block
    saved_least = cached_blocks(state, cache, least, slot) * block
    return best if state.load_key[best] - saved <= state.load_key[least] - saved_least else least


@jit
def choose(state: Any, cache: Any, slot: int) -> int:
    """The replica that takes the request; -1 when none is up."""
    run = state.run
    second = state.slots[slot, S_FLAG] == PREFILLED and run[G_POOLS] > 0
    key = state.load2_key if second else state.load_key
    tree = state.load2_tree if second else state.load_tree
    least = tree[1] if run[G_LEAVES] > 1 else 0
    if key[least] >= INF:
        return -1
    replicas = state.replicas.shape[0]
    router = run[G_ROUTER]
    if replicas == 1:
        return least
    if router == ROUND_ROBIN:
        column = G_TURN2 if second else G_TURN
        for _ in range(replicas):
            at = run[column]
            run[column] = at + 1 if at + 1 < replicas else 0
            if key[at] < INF:
                return at
    elif router == POWER_OF_TWO:
        picked = -1
        for _ in range(64):
            at = random_below(state, replicas)
            if key[at] >= INF:
                continue
            if picked < 0:
                picked = at
            else:
                return at if key[at] < key[picked] else picked
        return picked if picked >= 0 else least
    elif router == PREFIX_AWARE and cache is not None and not second:
        return choose_by_prefix(state, cache, slot, least)
    return least
