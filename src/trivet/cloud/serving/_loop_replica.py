"""One replica in the hot loop: what the scheduler does at a step's end, and what the step then brings.

``schedule`` decides the next step (or the next run of equal decode steps), ``commit`` applies it once its time has
come. The rules are those of the engines: running sequences first, one token each; then the prompt that is half
done; then waiting requests in order while tokens, sequences and blocks last.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from trivet.cloud.serving._loop_admit import admit, chunk_of, start_decoding
from trivet.cloud.serving._loop_blocks import decode_blocks, leave_ghost, release, steps_that_fit, take_blocks
from trivet.cloud.serving._loop_group import mixed_ps
from trivet.cloud.serving._loop_jit import jit, seldom
from trivet.cloud.serving._loop_links import arrival_ps
from trivet.cloud.serving._loop_lora import adapters_ps, add_to_decode, begin_step, count_decoding, give_adapter
from trivet.cloud.serving._loop_queue import (
    SLOT_BITS,
    SLOT_MASK,
    finish_pop,
    finish_remove,
    pending_push,
    run_remove,
    wait_push,
)
from trivet.cloud.serving._loop_state import *
from trivet.cloud.serving._loop_time import plan_decode_ps, steps_ps


@seldom
def record(state: Any, slot: int, last: int, status: int) -> None:
    """Write the line of a request that ends; its slot is freed by the caller."""
    s, run = state.slots[slot], state.run
    out = state.out[run[G_OUT]]
    run[G_OUT] += 1
    out[O_ID], out[O_ARRIVAL], out[O_SCHEDULED] = s[S_ID], s[S_ARR], s[S_SCHED]
    out[O_FIRST], out[O_LAST], out[O_INPUT], out[O_OUTPUT] = s[S_FIRST], last, s[S_IN], s[S_OUT]
    out[O_HIT], out[O_PREEMPTIONS], out[O_REPLICA], out[O_STATUS] = s[S_HIT], s[S_PREEMPT], s[S_REP], status
    out[O_TRIES], out[O_PREFILL_REPLICA] = s[S_TRIES], s[S_PREFILL_REP]
    run[G_IN_FLIGHT] -= 1
    if state.end.size > 0:
        request = s[S_ID]
        state.end[request] = last
        child = state.child[request, 0]
        while child >= 0:
            pending_push(state, last, P_RELEASE, child)
            child = state.child[child, 1]


@jit
def free_slot(state: Any, slot: int) -> None:
    state.slots[slot, S_NEXT] = state.run[G_SLOT_FREE]
    state.run[G_SLOT_FREE] = slot
    state.run[G_FREE_SLOTS] += 1


@jit
def take_slot(state: Any) -> int:
    """A free slot; the caller has made sure that there is one."""
    slot = state.run[G_SLOT_FREE]
    state.run[G_SLOT_FREE] = state.slots[slot, S_NEXT]
    state.run[G_FREE_SLOTS] -= 1
    return int(slot)


@seldom
def bucket_of(state: Any, time: int) -> int:
    """Index of the time bucket; when time outgrows the table, buckets double and merge in pairs."""
    width = state.run[G_BUCKET]
    index = time // width
    while index >= state.series.shape[0]:
        half = state.series.shape[0] // 2
        for i in range(half):
            for c in range(SERIES_COLUMNS):
                state.series[i, c] = state.series[2 * i, c] + state.series[2 * i + 1, c]
        state.series[half:] = 0
        width *= 2
        state.run[G_BUCKET] = width
        index = time // width
    return index


@jit
def count_gap(state: Any, gap: int, times: int) -> None:
    """``times`` inter-token gaps of ``gap`` picoseconds into the log-binned histogram."""
    # The bits of a float64 are its octave and, below it, its place in the octave: a logarithm for free.
    bits = np.float64(max(gap, 1000000)).view(np.int64)
    index = (bits >> ITL_SHIFT) - ITL_OFFSET
    state.itl[min(index, ITL_BINS - 1)] += times


@jit
def leave_batch(state: Any, row: Any, replica: int, slot: int) -> int:
    """Take a decoding sequence out of the sums; return the context units that it holds."""
    s = state.slots[slot]
    units = s[S_CTX] * row[R_UNIT] + row[R_GAIN] * (row[R_STEP] - s[S_STEP0])
    s[S_DECODING] = 0
    state.phases[replica, s[S_PHASE]] -= 1
    row[R_BATCH] -= 1
    row[R_CONTEXT] -= units
    count_decoding(state.lora, replica, s, -1)
    return units


@jit
def vacate(state: Any, row: Any, replica: int, cache: Any, slot: int, blocks: int) -> None:
    """A request's seat is free; its blocks too, unless its KV is still on the way to the decode pool."""
    if row[R_ROLE] == ROLE_PREFILL and state.slots[slot, S_FLAG] == SENDING:
        state.slots[slot, S_FLAG], state.slots[slot, S_BLOCKS] = PARKED, blocks
        return
    release(state, row, replica, cache, slot, blocks)
    free_slot(state, slot)


@jit
def let_go(state: Any, row: Any, replica: int, cache: Any, slot: int, blocks: int) -> None:
    """A request has ended here: with asynchronous scheduling its blocks and seat come free one step later."""
    run_remove(state.slots, row, slot)
    row[R_OUTSTANDING] -= 1
    row[R_LOAD_TOKENS] -= state.slots[slot, S_IN]
    if row[R_ASYNC]:
        row[R_RUNNING] += 1
        state.slots[slot, S_BLOCKS] = blocks
        state.slots[slot, S_NEXT] = -1
        if row[R_HELD_RUNS] == 0:
            row[R_HELD_RUNS] = slot + 1
        else:
            state.slots[row[R_HELD_TAIL], S_NEXT] = slot
        row[R_HELD_TAIL] = slot
    else:
        give_adapter(state.lora, replica, state.slots[slot])
        vacate(state, row, replica, cache, slot, blocks)


@seldom
def release_held(state: Any, row: Any, replica: int, cache: Any) -> None:
    slot = row[R_HELD_RUNS] - 1
    row[R_HELD_RUNS] = 0
    while slot >= 0:
        after = state.slots[slot, S_NEXT]
        row[R_RUNNING] -= 1
        give_adapter(state.lora, replica, state.slots[slot])
        vacate(state, row, replica, cache, slot, state.slots[slot, S_BLOCKS])
        slot = after


@jit
def finish(state: Any, row: Any, replica: int, cache: Any, slot: int, time: int, blocks: int) -> None:
    record(state, slot, time, DONE)
    row[R_FINISHED] += 1
    let_go(state, row, replica, cache, slot, blocks)


@seldom
def hand_over(state: Any, row: Any, replica: int, cache: Any, slot: int, time: int, blocks: int) -> None:
    """Prefill pool: the prompt is done; its KV travels to the decode pool as a new arrival there.

    The request gets a new slot; the old one is held until its seat is free and its KV has arrived.
    """
    run = state.run
    fresh = take_slot(state)
    for column in range(state.slots.shape[1]):
        state.slots[fresh, column] = state.slots[slot, column]
    f = state.slots[fresh]
    f[S_FLAG], f[S_GEN], f[S_PREFILL_REP], f[S_GHOST_BLOCKS] = PREFILLED, f[S_GEN] + 1, replica, 0
    f[S_NREF], f[S_CTX], f[S_SOURCE] = 0, f[S_IN] + f[S_GEN] - 1, slot
    state.slots[slot, S_FLAG] = SENDING
    run[G_TRANSFERS] += 1
    row[R_FINISHED] += 1
    took = run[G_TRANSFER_BASE] + run[G_TRANSFER_TOKEN] * f[S_CTX]
    pending_push(state, arrival_ps(state.links, replica, time, took), P_LANDED, fresh)
    let_go(state, row, replica, cache, slot, blocks)


@jit
def finish_prompts(state: Any, row: Any, replica: int, cache: Any, time: int) -> None:
    """After a step with prefill: chunks are computed, whole prompts give their first token."""
    slot = row[R_NEW_HEAD]
    row[R_NEW_HEAD] = -1
    while slot >= 0:
        s = state.slots[slot]
        after = s[S_NEXT]
        if s[S_DECODING]:  # came with its prompt done, behind one that did not
            slot = after
            continue
        s[S_CTX] += s[S_CHUNK]
        row[R_PREFILLED] += s[S_CHUNK]
        row[R_BACKLOG] -= s[S_CHUNK]
        s[S_CHUNK] = 0
        tokens = s[S_IN] + s[S_GEN]
        if s[S_CTX] < tokens:
            row[R_NEW_HEAD] = slot
        else:
            if s[S_FIRST] < 0:
                s[S_FIRST] = time
            remaining = s[S_OUT] - s[S_GEN] - 1
            blocks = (tokens + row[R_BLOCK] - 1) // row[R_BLOCK]
            if remaining <= 0:
                finish(state, row, replica, cache, slot, time, blocks)
            elif row[R_ROLE] == ROLE_PREFILL:
                hand_over(state, row, replica, cache, slot, time, blocks)
            else:
                start_decoding(state, row, replica, slot, tokens, remaining)
        slot = after


@jit
def finish_decodes(state: Any, row: Any, replica: int, cache: Any, time: int) -> None:
    """Requests whose last token came with this step end, in the order of their numbers."""
    heap, slots = state.heap[replica], state.slots
    block = row[R_BLOCK] * row[R_UNIT]
    first = -1
    while row[R_HEAP] > 0 and heap[0] >> SLOT_BITS <= row[R_STEP]:
        slot = heap[0] & SLOT_MASK
        finish_pop(heap, row)
        before, after = -1, first
        while after >= 0 and slots[after, S_ID] < slots[slot, S_ID]:
            before, after = after, slots[after, S_CHUNK]
        slots[slot, S_CHUNK] = after
        if before < 0:
            first = slot
        else:
            slots[before, S_CHUNK] = slot
    while first >= 0:
        slot, first = first, slots[first, S_CHUNK]
        slots[slot, S_CHUNK] = 0
        units = leave_batch(state, row, replica, slot)
        finish(state, row, replica, cache, slot, time, (units + block - 1) // block)


@jit
def commit(state: Any, row: Any, replica: int, cache: Any) -> bool:
    """Apply the steps whose time has come; tell whether a request ended."""
    time = row[R_END]
    if row[R_HELD_RUNS] > 0:
        release_held(state, row, replica, cache)
    took = time - row[R_START]
    steps, batch = row[R_STEPS], row[R_BATCH]
    bucket = state.series[bucket_of(state, time)]
    used = row[R_BLOCKS] - row[R_FREE] - row[R_EVICTABLE]
    row[R_BUSY] += took
    row[R_DONE_STEPS] += steps
    row[R_KV_TIME] += used * (took // 1000000)
    bucket[T_STEPS] += steps
    bucket[T_BUSY] += took
    bucket[T_BATCH_TIME] += row[R_RUNNING] * (took // 1000000)
    bucket[T_KV_TIME] += used * (took // 1000000)
    bucket[T_QUEUE_TIME] += row[R_WAITING] * (took // 1000000)
    if batch > 0 and not row[R_STALL]:
        new = decode_blocks(row, state.phases[replica], steps) - row[R_TAKEN]
        row[R_TAKEN] = 0
        if new > 0:
            take_blocks(state, row, replica, cache, new)
        row[R_CONTEXT] += steps * batch * row[R_GAIN]
        row[R_ADVANCE] = (row[R_ADVANCE] + steps * row[R_GAIN]) % (row[R_BLOCK] * row[R_UNIT])
        row[R_STEP] += steps
        row[R_DECODED] += steps * batch
        bucket[T_DECODED] += steps * batch
        count_gap(state, took // steps, steps * batch)
    ended = row[R_FINISHED]
    if row[R_STATE] == MIXED:
        row[R_MIXED_BUSY] += took
        bucket[T_PREFILLED] += row[R_PREFILL_TOKENS]
        finish_prompts(state, row, replica, cache, time)
    finish_decodes(state, row, replica, cache, time)
    ended = row[R_FINISHED] - ended
    bucket[T_FINISHED] += ended
    return ended > 0


@jit
def victim(state: Any, row: Any) -> int:
    """Whom to preempt: the last admitted; with priorities the last of the least urgent."""
    slot = row[R_RUN_TAIL]
    if state.run[G_PRIORITIES] > 1:
        best = slot
        while slot >= 0:
            if state.slots[slot, S_PRIO] > state.slots[best, S_PRIO]:
                best = slot
            slot = state.slots[slot, S_PREV]
        return best
    return slot


@seldom
def preempt(state: Any, row: Any, replica: int, cache: Any, time: int) -> int:
    """Send a running request back to the front of the queue; return the time that swapping it out costs."""
    slot = victim(state, row)
    s = state.slots[slot]
    state.run[G_PREEMPTIONS] += 1
    s[S_PREEMPT] += 1
    swap = 0
    if slot == row[R_NEW_HEAD]:  # half a prompt: all its blocks were reserved
        row[R_NEW_HEAD] = -1
        row[R_BACKLOG] -= s[S_IN] + s[S_GEN] - s[S_CTX]
        blocks = (s[S_IN] + s[S_GEN] + row[R_BLOCK] - 1) // row[R_BLOCK]
        full = s[S_CTX] // row[R_BLOCK]
    else:
        finish_remove(state.heap[replica], row, slot)
        units = leave_batch(state, row, replica, slot)
        block = row[R_BLOCK] * row[R_UNIT]
        blocks = (units + block - 1) // block
        full = units // block
        emitted = (row[R_GAIN] * (row[R_STEP] - s[S_STEP0])) // row[R_UNIT]
        s[S_GEN] = min(s[S_GEN] + 1 + emitted, s[S_OUT] - 1)
        if row[R_SWAP] > 0:
            s[S_FLAG] = PREFILLED
            s[S_CTX] = s[S_IN] + s[S_GEN] - 1
            swap = blocks * row[R_SWAP]
    run_remove(state.slots, row, slot)
    give_adapter(state.lora, replica, s)
    if cache is not None:
        release(state, row, replica, cache, slot, blocks)
    else:
        row[R_RESERVED] -= s[S_RESERVED]
        leave_ghost(state, row, slot, blocks, full)
    s[S_READY] = time
    row[R_BACKLOG] += s[S_IN] + s[S_GEN]
    wait_push(state, row, replica, slot, True)
    return swap


@jit
def make_room(state: Any, row: Any, replica: int, cache: Any, time: int) -> int:
    """Take the blocks that the next decode step needs, preempting until there are enough; return the swap time."""
    swap = 0
    while row[R_BATCH] > 0:
        need = decode_blocks(row, state.phases[replica], 1)
        if need <= row[R_FREE] + row[R_EVICTABLE]:
            row[R_TAKEN] = need
            if need > 0:
                take_blocks(state, row, replica, cache, need)
            break
        swap += preempt(state, row, replica, cache, time)
    return swap


@jit
def schedule(state: Any, row: Any, replica: int, tables: Any, cache: Any, time: int) -> None:
    """Decide what runs from ``time`` on. Sets state, start, end; does not touch the event tree."""
    # With asynchronous scheduling the step that starts now was decided when the last one started.
    cutoff = time
    if row[R_ASYNC] and row[R_STATE] != WAKE:
        last = row[R_STEPS]
        cutoff = row[R_START] + (steps_ps(row, last - 1) if last > 1 else 0)
    row[R_STALL] = 0
    row[R_PREFILL_TOKENS] = 0
    begin_step(state.lora, replica)
    extra = 0  # swap traffic, adapters that are loaded, images that are encoded
    before = row[R_WAITING]
    row[R_TAKEN] = 0
    prefill_first = row[R_MODE] == MODE_PREFILL_FIRST
    budget = row[R_BUDGET]
    if not prefill_first:
        extra += make_room(state, row, replica, cache, time)
        budget -= row[R_BATCH] * row[R_DECODE_TOKENS]
    preempted = row[R_WAITING] > before
    tokens, chunks, attention = 0, 0, 0
    if row[R_NEW_HEAD] >= 0 and budget > 0:
        tokens, attention = chunk_of(state, row, replica, tables, row[R_NEW_HEAD], budget)
        budget -= tokens
        chunks = 1
    blocked = preempted
    if row[R_WAITING] > 0 and not preempted:
        blocked, tokens, chunks, attention, swap = admit(
            state, row, replica, tables, cache, time, cutoff, budget, tokens, chunks, attention
        )
        extra += swap
    if prefill_first and tokens == 0:
        before = row[R_WAITING]
        extra += make_room(state, row, replica, cache, time)
        preempted = row[R_WAITING] > before
        blocked = blocked or preempted
    row[R_START] = time
    row[R_PREFILL_TOKENS] = tokens
    batch = row[R_BATCH]
    if tokens > 0:
        row[R_STATE], row[R_STEPS] = MIXED, 1
        if prefill_first:
            row[R_STALL], batch = 1, 0
        context = 0 if prefill_first else row[R_CONTEXT]
        total = tokens + batch * row[R_DECODE_TOKENS]
        attention += adapters_ps(state.lora, row, replica, not prefill_first)
        took = mixed_ps(state.group, tables, row, batch, context, total, chunks, attention)
        row[R_END] = time + extra + took
    elif batch > 0:
        limit = (state.heap[replica, 0] >> SLOT_BITS) - row[R_STEP]
        limit = min(limit, plan_decode_ps(tables, row))
        limit = add_to_decode(state.lora, state.group, tables, row, replica, limit)
        if extra > 0 or row[R_HELD_RUNS] > 0 or (blocked and row[R_WAITING] > 0):
            limit = 1
        steps = steps_that_fit(row, state.phases[replica], limit, state.run[G_WATCHED] == 0)
        row[R_STATE], row[R_STEPS] = (MIXED if extra > 0 else DECODE), steps
        row[R_END] = time + steps_ps(row, steps) + extra
    else:
        row[R_STATE], row[R_STEPS], row[R_END] = IDLE, 0, INF
        again = preempted and row[R_WAITING] > 0
        if row[R_HELD_RUNS] > 0:
            release_held(state, row, replica, cache)
            again = row[R_WAITING] > 0
        if again:  # nothing runs any more: what was preempted or held back may run now
            row[R_STATE], row[R_END] = WAKE, time
