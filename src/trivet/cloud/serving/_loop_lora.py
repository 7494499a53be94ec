"""Adapters (LoRA) in the hot loop: which are on the device, which may join the batch, what they add to a step.

Every function takes ``lora`` first; where it is None the compiler drops the body, so that a run without adapters pays
nothing. An adapter in use is in no list; those that are not wait in order of last use, on the device or in host memory.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from trivet.cloud.serving._loop_jit import jit, seldom
from trivet.cloud.serving._loop_queue import refresh_head, wait_pop
from trivet.cloud.serving._loop_state import (
    G_PRIORITIES,
    LEVELS,
    R_BATCH,
    R_D0,
    R_DECODE_TOKENS,
    R_DS,
    R_HOST,
    R_TABLE,
    R_WAIT_HEAD,
    R_WAITING,
    S_ADAPTER,
    S_NEXT,
    S_READY,
)  # fmt: skip

A_USERS, A_PLACE, A_PREV, A_NEXT = range(4)
NOWHERE, DEVICE, HOST = range(3)
L_SLOTS, L_HOST_SLOTS, L_LOAD_PS, L_DISK_PS, L_STEP_PS, L_TOKEN_PS, L_ADAPTER_PS = range(7)
LIMIT_COLUMNS = 8
C_RESIDENT, C_REGISTERED, C_DISTINCT, C_DECODING, C_CHUNK, C_LOADS, C_DISK_LOADS, C_LOAD_TIME, C_LEVEL, C_BEFORE = (
    range(10)
)
COUNT_COLUMNS = 10


class Lora(NamedTuple):
    """The adapters of all replicas."""

    of: Any  # [R, adapters, 4] users, place, neighbours in the list of its place
    ends: Any  # [R, 3, 2] head (least recently used) and tail of the idle ones at each place
    limits: Any  # [R, LIMIT_COLUMNS]
    counts: Any  # [R, COUNT_COLUMNS]


@seldom
def _push(lora: Any, replica: int, adapter: int, place: int) -> None:
    e, ends = lora.of[replica, adapter], lora.ends[replica, place]
    e[A_PLACE], e[A_PREV], e[A_NEXT] = place, ends[1], -1
    if ends[1] >= 0:
        lora.of[replica, ends[1], A_NEXT] = adapter
    else:
        ends[0] = adapter
    ends[1] = adapter


@seldom
def _unlink(lora: Any, replica: int, adapter: int) -> None:
    e = lora.of[replica, adapter]
    ends = lora.ends[replica, e[A_PLACE]]
    if e[A_PREV] >= 0:
        lora.of[replica, e[A_PREV], A_NEXT] = e[A_NEXT]
    else:
        ends[0] = e[A_NEXT]
    if e[A_NEXT] >= 0:
        lora.of[replica, e[A_NEXT], A_PREV] = e[A_PREV]
    else:
        ends[1] = e[A_PREV]


@seldom
def _bring(lora: Any, replica: int, adapter: int) -> int:
    """Put an adapter on the device, where the least recently used one makes room; return how long that takes."""
    e, c, limits = lora.of[replica, adapter], lora.counts[replica], lora.limits[replica]
    took = limits[L_LOAD_PS]
    c[C_LOADS] += 1
    if e[A_PLACE] == HOST:
        _unlink(lora, replica, adapter)
    else:
        took += limits[L_DISK_PS]
        c[C_DISK_LOADS] += 1
        if c[C_REGISTERED] < limits[L_HOST_SLOTS]:
            c[C_REGISTERED] += 1
        else:
            oldest = lora.ends[replica, HOST, 0]
            if oldest < 0:
                oldest = lora.ends[replica, DEVICE, 0]
                c[C_RESIDENT] -= 1
            _unlink(lora, replica, oldest)
            lora.of[replica, oldest, A_PLACE] = NOWHERE
    if c[C_RESIDENT] < limits[L_SLOTS]:
        c[C_RESIDENT] += 1
    else:
        oldest = lora.ends[replica, DEVICE, 0]
        _unlink(lora, replica, oldest)
        _push(lora, replica, oldest, HOST)
    e[A_PLACE] = DEVICE
    c[C_LOAD_TIME] += took
    return int(took)


@jit
def take_adapter(lora: Any, replica: int, s: Any) -> int:
    """A request takes its seat; return the time that loading its adapter holds up the step."""
    if lora is None:
        return 0
    adapter = s[S_ADAPTER]
    if adapter < 0:
        return 0
    e = lora.of[replica, adapter]
    e[A_USERS] += 1
    if e[A_USERS] > 1:
        return 0
    lora.counts[replica, C_DISTINCT] += 1
    if e[A_PLACE] == DEVICE:
        _unlink(lora, replica, adapter)
        return 0
    return int(_bring(lora, replica, adapter))


@jit
def give_adapter(lora: Any, replica: int, s: Any) -> None:
    """A request leaves its seat."""
    if lora is not None and s[S_ADAPTER] >= 0:
        adapter = s[S_ADAPTER]
        lora.of[replica, adapter, A_USERS] -= 1
        if lora.of[replica, adapter, A_USERS] == 0:
            lora.counts[replica, C_DISTINCT] -= 1
            _push(lora, replica, adapter, DEVICE)


@jit
def adapter_fits(lora: Any, replica: int, s: Any) -> bool:
    """Whether the batch may hold the request's adapter: it does already, or has fewer than ``max_loras``."""
    if lora is None:
        return False
    adapter = s[S_ADAPTER]
    if adapter < 0 or lora.of[replica, adapter, A_USERS] > 0:
        return True
    return bool(lora.counts[replica, C_DISTINCT] < lora.limits[replica, L_SLOTS])


@jit
def count_decoding(lora: Any, replica: int, s: Any, change: int) -> None:
    if lora is not None and s[S_ADAPTER] >= 0:
        lora.counts[replica, C_DECODING] += change


@jit
def count_chunk(lora: Any, replica: int, s: Any, tokens: int) -> None:
    if lora is not None and s[S_ADAPTER] >= 0:
        lora.counts[replica, C_CHUNK] += tokens


@jit
def begin_step(lora: Any, replica: int) -> None:
    """Before a schedule: no chunk yet, the look through the queue starts at its head."""
    if lora is not None:
        c = lora.counts[replica]
        c[C_CHUNK], c[C_LEVEL], c[C_BEFORE] = 0, 0, -1


@jit
def adapters_ps(lora: Any, row: Any, replica: int, decoding: bool) -> int:
    """What the adapters' products add to a step."""
    if lora is None:
        return 0
    c, limits = lora.counts[replica], lora.limits[replica]
    tokens = c[C_CHUNK]
    if decoding:
        tokens += c[C_DECODING] * row[R_DECODE_TOKENS]
    if tokens == 0:
        return 0
    return int(limits[L_STEP_PS] + c[C_DISTINCT] * limits[L_ADAPTER_PS] + tokens * limits[L_TOKEN_PS])


@jit
def add_to_decode(lora: Any, group: Any, tables: Any, row: Any, replica: int, limit: int) -> int:
    """Adapters and host on top of a planned run of the device's decode steps; return the steps left in its segment."""
    row[R_D0] += adapters_ps(lora, row, replica, True)
    if lora is None and group is None:
        return limit
    host = tables.host_decode[row[R_TABLE]] + tables.host_sequence[row[R_TABLE]] * row[R_BATCH]
    if group is not None:
        row[R_HOST] = host
    elif not tables.overlap[row[R_TABLE]]:
        row[R_D0] += host
    elif row[R_D0] < host:
        if row[R_DS] > 0:
            limit = min(limit, (host - row[R_D0] + row[R_DS] - 1) // row[R_DS])
        row[R_D0], row[R_DS] = host, 0
    return limit


@seldom
def _look(lora: Any, state: Any, replica: int, cutoff: int) -> int:
    c = lora.counts[replica]
    while c[C_LEVEL] < LEVELS:
        slot = state.waiting[replica, c[C_LEVEL], 0] if c[C_BEFORE] < 0 else state.slots[c[C_BEFORE], S_NEXT]
        while slot >= 0:
            if state.slots[slot, S_READY] > cutoff or adapter_fits(lora, replica, state.slots[slot]):
                return int(slot)
            c[C_BEFORE] = slot
            slot = state.slots[slot, S_NEXT]
        c[C_LEVEL] += 1
        c[C_BEFORE] = -1
    return -1


@jit
def next_waiting(lora: Any, state: Any, row: Any, replica: int, cutoff: int) -> int:
    """The next request that may enter, passing over those whose adapter finds no slot; -1 = none."""
    if lora is None:
        return int(row[R_WAIT_HEAD])
    return int(_look(lora, state, replica, cutoff))


@seldom
def _take_out(lora: Any, state: Any, row: Any, replica: int, slot: int) -> None:
    c = lora.counts[replica]
    queue = state.waiting[replica, c[C_LEVEL]]
    after = state.slots[slot, S_NEXT]
    if c[C_BEFORE] < 0:
        queue[0] = after
    else:
        state.slots[c[C_BEFORE], S_NEXT] = after
    if queue[1] == slot:
        queue[1] = c[C_BEFORE]
    row[R_WAITING] -= 1
    if state.run[G_PRIORITIES] > 1:
        refresh_head(state, row, replica)
    else:
        row[R_WAIT_HEAD] = queue[0]


@jit
def take_waiting(lora: Any, state: Any, row: Any, replica: int, slot: int) -> None:
    """Take out of the queue what ``next_waiting`` found."""
    if lora is None:
        wait_pop(state, row, replica)
    else:
        _take_out(lora, state, row, replica, slot)


@seldom
def start_adapters(lora: Any, replica: int) -> None:
    """A replica that comes up holds nothing on the device and the first adapters (the most used) in host memory."""
    if lora is not None:
        e, c = lora.of[replica], lora.counts[replica]
        e[:, A_USERS], e[:, A_PLACE] = 0, NOWHERE
        lora.ends[replica] = -1
        for column in (C_RESIDENT, C_DISTINCT, C_DECODING, C_CHUNK):
            c[column] = 0
        c[C_REGISTERED] = min(e.shape[0], lora.limits[replica, L_HOST_SLOTS])
        for adapter in range(c[C_REGISTERED] - 1, -1, -1):
            _push(lora, replica, adapter, HOST)


@jit
def set_adapter(lora: Any, s: Any, adapters: Any, request: int) -> None:
    if lora is not None:
        s[S_ADAPTER] = adapters[request] if adapters.size > 0 else -1
