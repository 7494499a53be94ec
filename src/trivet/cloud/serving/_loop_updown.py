"""Replicas that come and go: failures, scaling, and what becomes of the requests they had."""

from __future__ import annotations

from typing import Any

from trivet.cloud.serving._loop_blocks import release
from trivet.cloud.serving._loop_cache import cache_clear
from trivet.cloud.serving._loop_jit import jit, seldom
from trivet.cloud.serving._loop_lora import start_adapters
from trivet.cloud.serving._loop_queue import pending_pop, pending_push, run_remove, set_event, wait_pop
from trivet.cloud.serving._loop_replica import free_slot, record, release_held
from trivet.cloud.serving._loop_route import update_load
from trivet.cloud.serving._loop_state import *


@seldom
def refuse(state: Any, slot: int, time: int, status: int) -> None:
    record(state, slot, time, status)
    state.run[G_REJECTED if status == REJECTED else G_FAILED] += 1
    free_slot(state, slot)


@seldom
def bounce(state: Any, slot: int, time: int) -> None:
    """A request lost its replica: its client sends it again, at most so many times; it starts from the beginning."""
    s, run = state.slots[slot], state.run
    s[S_TRIES] += 1
    s[S_GEN], s[S_CTX], s[S_CHUNK], s[S_FIRST], s[S_SCHED], s[S_DECODING] = 0, 0, 0, -1, -1, 0
    s[S_GHOST_BLOCKS], s[S_NREF], s[S_RESERVED], s[S_FLAG] = 0, 0, 0, BOUNCED
    if s[S_TRIES] > run[G_MAX_RETRIES]:
        refuse(state, slot, time, FAILED)
    else:
        run[G_RETRIES] += 1
        pending_push(state, time + run[G_RETRY_DELAY], P_RETRY, slot)


@jit
def stop(group: Any, state: Any, replica: int) -> None:
    """Nothing runs any more; the other ranks of a group go down with it."""
    if group is None:
        set_event(state, replica, INF)
    else:
        group.under_way[group.first[replica]] = 0
        set_event(state, group.first[replica], INF)


@seldom
def lose_loading(state: Any, row: Any, replica: int, cache: Any, time: int) -> None:
    """KV on its way from a replica that has gone down, or up to its HBM, is lost: the first to have left first."""
    while True:
        found = -1
        for i in range(state.run[G_PENDING]):
            kind = state.pending[i, 1]
            here = (kind == P_READY or kind == P_LANDED) and state.slots[state.pending[i, 2], S_REP] == replica
            if here and (found < 0 or state.pending[i, 3] < state.pending[found, 3]):
                found = i
        if found < 0:
            return
        kind, slot = state.pending[found, 1], state.pending[found, 2]
        pending_pop(state, found)
        held = state.slots[slot, S_SOURCE] if kind == P_LANDED else slot
        if cache is not None:
            release(state, row, replica, cache, held, 0)
        if kind == P_LANDED:
            free_slot(state, held)
        bounce(state, slot, time)


@seldom
def fail(state: Any, replica: int, cache: Any, time: int) -> None:
    """A replica goes down: what it ran, queued or loaded goes back to the clients; its caches are gone."""
    row = state.replicas[replica]
    if row[R_UP] == DOWN:
        return
    if row[R_UP] == ON or row[R_UP] == DRAINING or row[R_UP] == STARTING:
        row[R_UP_TIME] += time - row[R_SINCE]
        state.run[G_ACTIVE] -= 1 if row[R_UP] == ON else 0
    row[R_UP] = DOWN
    if row[R_HELD_RUNS] > 0:
        release_held(state, row, replica, cache)
    while row[R_RUN_HEAD] >= 0:
        slot = row[R_RUN_HEAD]
        run_remove(state.slots, row, slot)
        if cache is not None:
            release(state, row, replica, cache, slot, 0)
        bounce(state, slot, time)
    while row[R_WAITING] > 0:
        slot = wait_pop(state, row, replica)
        if cache is not None:
            release(state, row, replica, cache, slot, 0)
        bounce(state, slot, time)
    lose_loading(state, row, replica, cache, time)
    if cache is not None:
        cache_clear(row, replica, cache)
    start_adapters(state.lora, replica)
    for column in (
        R_BATCH, R_CONTEXT, R_HEAP, R_BACKLOG, R_OUTSTANDING, R_LOAD_TOKENS, R_HOLES, R_TAKEN, R_EVICTABLE,
        R_STEPS, R_QUEUE_HEAD, R_CHANNEL, R_PREFILL_TOKENS, R_PAUSE, R_RESERVED,
    ):  # fmt: skip
        row[column] = 0
    row[R_FREE] = row[R_QUEUE_TAIL] = row[R_BLOCKS]
    row[R_NEW_HEAD] = -1
    row[R_STATE], row[R_END] = IDLE, INF
    state.phases[replica] = 0
    stop(state.group, state, replica)
    update_load(state, row, replica)


@seldom
def turn_on(state: Any, replica: int, time: int, up: int) -> None:
    row = state.replicas[replica]
    if row[R_UP] == OFF or row[R_UP] == DOWN:
        row[R_SINCE] = time
    if up == ON and row[R_UP] != ON:
        state.run[G_ACTIVE] += 1
    row[R_UP] = up
    update_load(state, row, replica)


@seldom
def turn_off_if_drained(state: Any, replica: int, time: int) -> None:
    row = state.replicas[replica]
    if row[R_UP] == DRAINING and row[R_OUTSTANDING] == 0:
        row[R_UP] = OFF
        row[R_UP_TIME] += time - row[R_SINCE]


@seldom
def scale(state: Any, time: int) -> None:
    """Start or drain replicas so that each would have the target number of requests in flight."""
    run = state.run
    run[G_SCALE_NEXT] = time + run[G_SCALE_EVERY]
    wanted = (run[G_IN_FLIGHT] + run[G_SCALE_TARGET] - 1) // run[G_SCALE_TARGET]
    wanted = min(max(wanted, run[G_SCALE_MIN]), run[G_SCALE_MAX])
    have = run[G_ACTIVE] + run[G_STARTING]
    for replica in range(state.replicas.shape[0]):  # draining ones first: they are warm
        if have < wanted and state.replicas[replica, R_UP] == DRAINING:
            turn_on(state, replica, time, ON)
            have += 1
    for replica in range(state.replicas.shape[0]):
        if have < wanted and state.replicas[replica, R_UP] == OFF:
            turn_on(state, replica, time, STARTING)
            run[G_STARTING] += 1
            pending_push(state, time + run[G_COLD_START], P_UP, replica)
            have += 1
    for replica in range(state.replicas.shape[0] - 1, -1, -1):
        if run[G_ACTIVE] > wanted and state.replicas[replica, R_UP] == ON:
            state.replicas[replica, R_UP] = DRAINING
            run[G_ACTIVE] -= 1
            update_load(state, state.replicas[replica], replica)
            turn_off_if_drained(state, replica, time)
