"""Admission in the hot loop: which waiting requests get blocks, a seat and a share of the next step's tokens."""

from __future__ import annotations

from typing import Any

from trivet.cloud.serving._loop_blocks import decode_blocks, reclaim_ghost, take_blocks
from trivet.cloud.serving._loop_cache import cache_match, cache_take
from trivet.cloud.serving._loop_images import encode_ps
from trivet.cloud.serving._loop_jit import jit
from trivet.cloud.serving._loop_lora import count_chunk, count_decoding, next_waiting, take_adapter, take_waiting
from trivet.cloud.serving._loop_queue import SLOT_BITS, heap_push, pending_push, run_append
from trivet.cloud.serving._loop_state import *
from trivet.cloud.serving._loop_time import prefill_attention_ps


@jit
def start_decoding(state: Any, row: Any, replica: int, slot: int, context: int, remaining: int) -> None:
    """A sequence whose prompt is done joins the decode batch."""
    s = state.slots[slot]
    block = row[R_BLOCK] * row[R_UNIT]
    units = context * row[R_UNIT]
    s[S_CTX], s[S_STEP0], s[S_DECODING] = context, row[R_STEP], 1
    s[S_PHASE] = (units - row[R_ADVANCE]) % block
    state.phases[replica, s[S_PHASE]] += 1
    row[R_BATCH] += 1
    row[R_CONTEXT] += units
    count_decoding(state.lora, replica, s, 1)
    finish = row[R_STEP] + (remaining * row[R_UNIT] + row[R_GAIN] - 1) // row[R_GAIN]
    heap_push(state.heap[replica], row[R_HEAP], (finish << SLOT_BITS) | slot)
    row[R_HEAP] += 1


@jit
def reserved_blocks(row: Any, slot_row: Any) -> int:
    """Blocks that the engine plans for a request, prompt and its share of the output; 0 for engines that do not."""
    if row[R_RESERVE] == 0 or row[R_ROLE] == ROLE_PREFILL:
        return 0
    tokens = slot_row[S_IN] + (row[R_RESERVE] * slot_row[S_OUT]) // 1024
    return int((tokens + row[R_BLOCK] - 1) // row[R_BLOCK])


@jit
def admit_blocks(state: Any, row: Any, replica: int, cache: Any, slot: int, time: int) -> int:
    """Give the head of the queue its blocks. -1: not enough; 0: admitted; > 0: admitted, loading until that time."""
    s = state.slots[slot]
    if s[S_FLAG] == LOADED:
        return 0
    tokens = s[S_IN] + s[S_GEN]
    if s[S_FLAG] == PREFILLED:
        tokens -= 1
    total = (tokens + row[R_BLOCK] - 1) // row[R_BLOCK]
    plan = reserved_blocks(row, s)
    if plan > 0 and row[R_RESERVED] + plan > row[R_BLOCKS]:
        return -1
    keep = 0
    ready = 0
    if s[S_FLAG] == PREFILLED:
        unit = row[R_BLOCK] * row[R_UNIT]
        keep += (row[R_GAIN] + unit - 1) // unit  # it decodes at once
        if row[R_MODE] != MODE_MIXED:
            keep += decode_blocks(row, state.phases[replica], 1)
    if cache is None:
        if total + keep > row[R_FREE]:
            return -1
        hits = 0
        if s[S_FLAG] == FRESH:
            hits = reclaim_ghost(state, row, replica, slot)
        take_blocks(state, row, replica, cache, total - hits)
        row[R_RESERVED] += plan
        s[S_RESERVED] = plan
        if s[S_FLAG] == FRESH:
            s[S_CTX] = hits * row[R_BLOCK]
            s[S_HIT] += s[S_CTX]
        return 0
    hits, hbm, idle, load, front, front_idle = cache_match(state, row, replica, cache, slot, time)
    block = state.run[G_HASH_BLOCK]
    if s[S_FLAG] == PREFILLED:
        hits, load = front, 0
        hbm, idle = front, front_idle
    weight = cache.meta[2]
    if total + keep - hbm * weight > row[R_FREE] + row[R_EVICTABLE] - idle * weight:
        return -1
    row[R_RESERVED] += plan
    s[S_RESERVED] = plan
    cost = cache_take(state, row, replica, cache, slot, hits)
    take_blocks(state, row, replica, cache, cost + total - s[S_NREF] * weight)
    if s[S_FLAG] == FRESH:
        s[S_CTX] = hits * block
        s[S_HIT] += s[S_CTX]
        state.run[G_HIT_TOKENS] += s[S_CTX]
        state.run[G_PROMPT_TOKENS] += s[S_IN]
    if load > 0:
        row[R_CHANNEL] = max(row[R_CHANNEL], time) + load
        state.run[G_LOADED_TOKENS] += (hits - hbm) * block
        ready = row[R_CHANNEL]
    return ready


@jit
def chunk_of(state: Any, row: Any, replica: int, tables: Any, slot: int, budget: int) -> Any:
    """The next chunk of a prompt within ``budget`` tokens: (tokens, picoseconds of its attention)."""
    s = state.slots[slot]
    tokens = min(s[S_IN] + s[S_GEN] - s[S_CTX], budget)
    s[S_CHUNK] = tokens
    count_chunk(state.lora, replica, s, tokens)
    return tokens, prefill_attention_ps(tables, row[R_TABLE], tokens, s[S_CTX])


@jit
def admit(
    state: Any, row: Any, replica: int, tables: Any, cache: Any, time: int, cutoff: int, budget: int, tokens: int,
    chunks: int, attention: int,
) -> Any:  # fmt: skip
    """Take waiting requests while budget, seats and blocks last.

    Returns (head must be looked at again after one step, tokens, chunks, attention time, time of swapping, loading and
    encoding).
    """
    swap = 0
    while row[R_WAITING] > 0 and budget > 0 and row[R_RUNNING] < row[R_MAX_SEQS]:
        slot = next_waiting(state.lora, state, row, replica, cutoff)
        if slot < 0:
            return False, tokens, chunks, attention, swap
        s = state.slots[slot]
        if s[S_READY] > cutoff:
            return True, tokens, chunks, attention, swap
        ready = admit_blocks(state, row, replica, cache, slot, time)
        if ready < 0:
            return False, tokens, chunks, attention, swap
        take_waiting(state.lora, state, row, replica, slot)
        if s[S_SCHED] < 0:
            s[S_SCHED] = time
        if ready > 0:
            pending_push(state, ready, P_READY, slot)
            continue
        run_append(state.slots, row, slot)
        swap += take_adapter(state.lora, replica, s)
        if s[S_FLAG] == PREFILLED:
            s[S_FLAG] = FRESH
            if row[R_SWAP] > 0 and s[S_PREEMPT] > 0:
                swap += row[R_SWAP] * ((s[S_CTX] + row[R_BLOCK] - 1) // row[R_BLOCK])
            row[R_BACKLOG] -= s[S_IN] + s[S_GEN]
            s[S_GEN] -= 1
            start_decoding(state, row, replica, slot, s[S_IN] + s[S_GEN], s[S_OUT] - s[S_GEN] - 1)
            if row[R_MODE] == MODE_MIXED:
                new = decode_blocks(row, state.phases[replica], 1) - row[R_TAKEN]
                row[R_TAKEN] += new
                if new > 0:
                    take_blocks(state, row, replica, cache, new)
            budget -= row[R_DECODE_TOKENS] if row[R_MODE] == MODE_MIXED else 0
            continue
        s[S_FLAG] = FRESH
        row[R_BACKLOG] -= s[S_CTX]
        swap += encode_ps(state.images, row, replica, s)
        if row[R_NEW_HEAD] < 0:
            row[R_NEW_HEAD] = slot
        taken, more = chunk_of(state, row, replica, tables, slot, budget)
        tokens += taken
        attention += more
        budget -= taken
        chunks += 1
    return False, tokens, chunks, attention, swap
