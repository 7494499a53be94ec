"""KV blocks in the hot loop: free, held and cached blocks of one replica, and how decoding eats them.

Without a hash cache the free queue of the engine is first in, first out: each block freed goes to its tail, each
block taken comes from its head, and a preempted request finds again those of its blocks that nobody took meanwhile.
Positions in that queue are counted from the start of the run, so one comparison tells how many are left.
"""

from __future__ import annotations

from typing import Any

from trivet.cloud.serving._loop_cache import cache_evict, cache_release
from trivet.cloud.serving._loop_jit import jit, seldom
from trivet.cloud.serving._loop_state import (
    MAX_HOLES,
    R_ADVANCE,
    R_BATCH,
    R_BLOCK,
    R_EVICTABLE,
    R_FREE,
    R_GAIN,
    R_HOLES,
    R_PREFIX,
    R_QUEUE_HEAD,
    R_QUEUE_TAIL,
    R_RESERVED,
    R_TAKEN,
    R_UNIT,
    S_GEN,
    S_GHOST,
    S_GHOST_BLOCKS,
    S_GHOST_FULL,
    S_IN,
    S_RESERVED,
)  # fmt: skip


@jit
def decode_blocks(row: Any, phases: Any, steps: int) -> int:
    """New blocks that ``steps`` more decode steps of the present batch take."""
    block = row[R_BLOCK] * row[R_UNIT]
    moved = steps * row[R_GAIN]
    rest = moved % block
    count = row[R_BATCH] * (moved // block)
    at = (2 * block - row[R_ADVANCE] + 1 - rest) % block
    for _ in range(rest):
        count += phases[at]
        at += 1
        if at == block:
            at = 0
    return count


@jit
def steps_that_fit(row: Any, phases: Any, limit: int, evict: bool) -> int:
    """How many decode steps (at most ``limit``) the blocks at hand allow, those of idle cache entries too if ``evict``."""
    room = row[R_FREE] + row[R_TAKEN]
    if evict:
        room += row[R_EVICTABLE]
    block = row[R_BLOCK] * row[R_UNIT]
    if row[R_BATCH] * ((limit * row[R_GAIN] + block - 1) // block) <= room:
        return limit
    low, high = 0, limit
    while low < high:
        middle = (low + high + 1) >> 1
        if decode_blocks(row, phases, middle) <= room:
            low = middle
        else:
            high = middle - 1
    return low


@jit
def take_blocks(state: Any, row: Any, replica: int, cache: Any, count: int) -> None:
    """Take ``count`` blocks that are known to be there."""
    row[R_FREE] -= count
    if cache is not None:
        while row[R_FREE] < 0:
            cache_evict(row, replica, cache)
    elif row[R_PREFIX]:
        holes = state.holes[replica]
        while row[R_HOLES] > 0 and row[R_QUEUE_HEAD] + count >= holes[0, 0]:
            count -= holes[0, 0] - row[R_QUEUE_HEAD]
            row[R_QUEUE_HEAD] = holes[0, 0] + holes[0, 1]
            row[R_HOLES] -= 1
            for i in range(row[R_HOLES]):
                holes[i, 0], holes[i, 1] = holes[i + 1, 0], holes[i + 1, 1]
        row[R_QUEUE_HEAD] += count


@jit
def give_blocks(row: Any, count: int) -> None:
    row[R_FREE] += count
    row[R_QUEUE_TAIL] += count


@seldom
def leave_ghost(state: Any, row: Any, slot: int, blocks: int, full: int) -> None:
    """A preempted request's blocks go to the tail of the free queue, the last one first."""
    s = state.slots[slot]
    s[S_GHOST], s[S_GHOST_BLOCKS], s[S_GHOST_FULL] = row[R_QUEUE_TAIL], blocks, full
    give_blocks(row, blocks)


@seldom
def reclaim_ghost(state: Any, row: Any, replica: int, slot: int) -> int:
    """Blocks of the request's own prefix that are still in the free queue; taken out of it."""
    s = state.slots[slot]
    if s[S_GHOST_BLOCKS] == 0 or not row[R_PREFIX] or row[R_HOLES] >= MAX_HOLES:
        return 0
    start, blocks = s[S_GHOST], s[S_GHOST_BLOCKS]
    hits = blocks - max(0, row[R_QUEUE_HEAD] - start)
    hits = min(hits, s[S_GHOST_FULL], (s[S_IN] + s[S_GEN] - 1) // row[R_BLOCK])
    if hits <= 0:
        return 0
    holes = state.holes[replica]
    at = row[R_HOLES]
    first = start + blocks - hits
    while at > 0 and holes[at - 1, 0] > first:
        holes[at, 0], holes[at, 1] = holes[at - 1, 0], holes[at - 1, 1]
        at -= 1
    holes[at, 0], holes[at, 1] = first, hits
    row[R_HOLES] += 1
    row[R_FREE] -= hits
    return hits


@jit
def release(state: Any, row: Any, replica: int, cache: Any, slot: int, blocks: int) -> None:
    """Give back all of a request's blocks."""
    row[R_RESERVED] -= state.slots[slot, S_RESERVED]
    state.slots[slot, S_RESERVED] = 0
    if cache is not None:
        cache_release(state, row, replica, cache, slot, blocks)
    else:
        give_blocks(row, blocks)
