"""The clock of the fleet: arrivals, pending events, faults and scaling, and the steps of every replica, in order.

At one instant the order is: faults, scaling, pending events, arrivals, then replicas by number. So a scheduler that
looks at its queue at time t sees everything that arrived up to and at t.
"""

from __future__ import annotations

from typing import Any

from trivet.cloud.serving._loop_blocks import release
from trivet.cloud.serving._loop_group import cut_short, join
from trivet.cloud.serving._loop_images import set_image
from trivet.cloud.serving._loop_jit import entry, jit, seldom
from trivet.cloud.serving._loop_lora import adapter_fits, set_adapter
from trivet.cloud.serving._loop_queue import pending_pop, pending_push, set_event, wait_push
from trivet.cloud.serving._loop_replica import bucket_of, commit, free_slot, schedule, take_slot
from trivet.cloud.serving._loop_route import choose, update_load
from trivet.cloud.serving._loop_state import *
from trivet.cloud.serving._loop_time import steps_ps, steps_until
from trivet.cloud.serving._loop_updown import fail, refuse, scale, turn_off_if_drained, turn_on


@jit
def enqueue(state: Any, row: Any, replica: int, slot: int, time: int, front: bool) -> None:
    """Put a request in a replica's queue and cut a planned run of decode steps short where it may now be admitted."""
    was = row[R_WAITING]
    state.slots[slot, S_READY] = time
    wait_push(state, row, replica, slot, front)
    replan(state.group, state, row, replica, slot, time, front, was)


@jit
def replan(group: Any, state: Any, row: Any, replica: int, slot: int, time: int, front: bool, was: int) -> None:
    """After an arrival: wake who sleeps, cut short who runs."""
    if group is not None:
        replan_group(group, state, row, replica, slot, time, front, was)
    elif row[R_STATE] == IDLE:
        row[R_STATE], row[R_END] = WAKE, time
        set_event(state, replica, time)
    elif row[R_STATE] == DECODE and row[R_STEPS] > 1 and not row[R_PAUSE]:
        may = row[R_RUNNING] < row[R_MAX_SEQS] and row[R_BATCH] * row[R_DECODE_TOKENS] < row[R_BUDGET]
        first = was == 0 or front or state.run[G_PRIORITIES] > 1
        if may and (first or adapter_fits(state.lora, replica, state.slots[slot])):
            steps = steps_seen(state, row, replica, time)
            if steps < row[R_STEPS]:
                row[R_STEPS] = steps
                row[R_END] = row[R_START] + steps_ps(row, steps)
                set_event(state, replica, row[R_END])


@jit
def steps_seen(state: Any, row: Any, number: int, time: int) -> int:
    """Steps of the planned run after which the scheduler sees what arrives at ``time``.

    A step that ends at this very time sees it too, unless it has been had already: replicas step in order of number.
    """
    if row[R_ASYNC]:
        return steps_until(row, time, row[R_STEPS]) + 1
    had = state.run[G_STEP_TIME] == time and number < state.run[G_STEP_TOP]
    return steps_until(row, time + 1 if had else time, row[R_STEPS])


@seldom
def replan_group(group: Any, state: Any, row: Any, replica: int, slot: int, time: int, front: bool, was: int) -> None:
    first = group.first[replica]
    if not group.under_way[first]:
        row[R_STATE] = WAKE
        if state.event_key[first] >= INF:
            set_event(state, first, time)
        return
    if row[R_STEPS] == 1 or state.replicas[first, R_PAUSE]:
        return
    if row[R_STATE] == IDLE:
        had = state.run[G_STEP_TIME] == time and first < state.run[G_STEP_TOP]
        steps = steps_until(row, time + 1 if had else time, row[R_STEPS])
    else:
        may = row[R_RUNNING] < row[R_MAX_SEQS] and row[R_BATCH] * row[R_DECODE_TOKENS] < row[R_BUDGET]
        before = was == 0 or front or state.run[G_PRIORITIES] > 1
        if not (may and (before or adapter_fits(state.lora, replica, state.slots[slot]))):
            return
        steps = steps_seen(state, row, first, time)
    if steps < row[R_STEPS]:
        cut_short(group, state, first, steps)


@seldom
def hope(state: Any, faults: Any) -> bool:
    """Whether a replica may still come up."""
    if state.run[G_FAULT] < faults.shape[0] or state.run[G_SCALE_EVERY] > 0:
        return True
    for i in range(state.run[G_PENDING]):  # noqa: SIM110  (no generators in compiled code)
        if state.pending[i, 1] == P_UP:
            return True
    return False


@seldom
def route(state: Any, cache: Any, faults: Any, slot: int, time: int, target: int) -> None:
    """Send a request to a replica, or refuse it, or try again later where none is up."""
    run, s = state.run, state.slots[slot]
    replica = target if target >= 0 and state.replicas[target, R_UP] == ON else choose(state, cache, slot)
    if replica < 0:
        if hope(state, faults):
            pending_push(state, time + max(run[G_RETRY_DELAY], 1000000000), P_RETRY, slot)
        else:
            refuse(state, slot, time, FAILED)
        return
    row = state.replicas[replica]
    s[S_REP] = replica
    if s[S_FLAG] == BOUNCED:
        s[S_FLAG] = FRESH
    needed = (s[S_IN] + s[S_OUT] + row[R_DECODE_TOKENS] - 1 + row[R_BLOCK] - 1) // row[R_BLOCK]
    full = run[G_MAX_QUEUE] > 0 and row[R_WAITING] >= run[G_MAX_QUEUE]
    late = run[G_SLO_TTFT] > 0 and (row[R_BACKLOG] + s[S_IN]) * row[R_PREFILL_PS] > run[G_SLO_TTFT]
    if needed > row[R_BLOCKS] or ((full or late) and s[S_FLAG] != PREFILLED):
        refuse(state, slot, time, REJECTED)
        return
    row[R_OUTSTANDING] += 1
    row[R_LOAD_TOKENS] += s[S_IN]
    row[R_BACKLOG] += s[S_IN] + s[S_GEN]
    enqueue(state, row, replica, slot, time, False)
    update_load(state, row, replica)


@jit
def send(state: Any, arrivals: Any, cache: Any, faults: Any, request: int, time: int) -> None:
    """A request enters the system."""
    run = state.run
    slot = take_slot(state)
    s = state.slots[slot]
    s[:] = 0
    s[S_IN], s[S_OUT] = arrivals.inputs[request], arrivals.outputs[request]
    s[S_ID], s[S_ARR] = arrivals.first_id + request, time
    s[S_SCHED], s[S_FIRST], s[S_PREFILL_REP], s[S_REP] = -1, -1, -1, -1
    set_adapter(state.lora, s, arrivals.adapter, request)
    set_image(state.images, s, arrivals.images, request)
    if arrivals.priority.size > 0:
        s[S_PRIO] = arrivals.priority[request]
    if arrivals.hash_offsets.size > 0:
        s[S_HASH] = arrivals.hash_offsets[request]
        s[S_HASHES] = arrivals.hash_offsets[request + 1] - s[S_HASH]
    run[G_IN_FLIGHT] += 1
    run[G_ARRIVED] += 1
    state.series[bucket_of(state, time), T_ARRIVED] += 1
    target = arrivals.target[request] if arrivals.target.size > 0 else -1
    route(state, cache, faults, slot, time, target)


@seldom
def release_follower(state: Any, arrivals: Any, request: int, ended: int, time: int) -> int:
    """When a request of a session may be sent: after its own time, and its predecessor's end plus thinking."""
    think = arrivals.think[request] if arrivals.think.size > 0 else 0
    return max(arrivals.time[request], ended + think, time)


@jit
def arrive(state: Any, arrivals: Any, cache: Any, faults: Any, request: int, time: int) -> None:
    """The next request of the traffic is due; within a session it may have to wait for its predecessor."""
    if arrivals.previous.size > 0 and arrivals.previous[request] >= 0:
        before = arrivals.previous[request]
        if state.end[before] < 0:
            state.child[request, 1] = state.child[before, 0]
            state.child[before, 0] = request
            return
        due = release_follower(state, arrivals, request, state.end[before], time)
        if due > time:
            pending_push(state, due, P_SEND, request)
            return
    send(state, arrivals, cache, faults, request, time)


@jit
def wake(group: Any, state: Any, row: Any, replica: int, time: int) -> None:
    """Blocks have come free for a replica that had none; a rank of a group looks again before its next step anyway."""
    if group is None:
        row[R_STATE], row[R_END] = WAKE, time
        set_event(state, replica, time)
    elif state.event_key[group.first[replica]] >= INF:
        row[R_STATE] = WAKE
        set_event(state, group.first[replica], time)


@seldom
def land(state: Any, cache: Any, faults: Any, slot: int, time: int) -> None:
    """A prompt's KV has reached the decode pool: the prefill replica may use its blocks again."""
    source = state.slots[slot, S_SOURCE]
    held = state.slots[source]
    if held[S_FLAG] == SENDING:
        held[S_FLAG] = LANDED
    else:
        replica = held[S_REP]
        row = state.replicas[replica]
        release(state, row, replica, cache, source, held[S_BLOCKS])
        free_slot(state, source)
        if row[R_STATE] == IDLE and row[R_WAITING] > 0:
            wake(state.group, state, row, replica, time)
    route(state, cache, faults, slot, time, -1)


@seldom
def handle_pending(state: Any, arrivals: Any, cache: Any, faults: Any) -> None:
    time, kind, subject = state.pending[0, 0], state.pending[0, 1], state.pending[0, 2]
    pending_pop(state, 0)
    if kind == P_RELEASE or kind == P_SEND:
        due = release_follower(state, arrivals, subject, time, time) if kind == P_RELEASE else time
        if due > time:
            pending_push(state, due, P_SEND, subject)
        else:
            send(state, arrivals, cache, faults, subject, time)
    elif kind == P_RETRY:
        route(state, cache, faults, subject, time, -1)
    elif kind == P_LANDED:
        land(state, cache, faults, subject, time)
    elif kind == P_READY:
        state.slots[subject, S_FLAG] = LOADED
        replica = state.slots[subject, S_REP]
        enqueue(state, state.replicas[replica], replica, subject, time, True)
    elif state.replicas[subject, R_UP] == STARTING:
        state.run[G_STARTING] -= 1
        turn_on(state, subject, time, ON)


@jit
def step(state: Any, replica: int, tables: Any, cache: Any) -> None:
    """A replica's planned end has come: apply it and plan the next."""
    row = state.replicas[replica]
    time = row[R_END]
    ended = False
    paused = row[R_PAUSE]
    row[R_PAUSE] = 0
    if row[R_STATE] != WAKE and not paused:
        ended = commit(state, row, replica, cache)
        if row[R_UP] == DRAINING:
            turn_off_if_drained(state, replica, time)
    if ended and (state.run[G_MAX_CONCURRENCY] > 0 or state.end.size > 0):
        # Clients answer at once: let their next requests in before the scheduler looks.
        row[R_PAUSE] = 1
        set_event(state, replica, time)
        update_load(state, row, replica)
        return
    schedule(state, row, replica, tables, cache, time)
    set_event(state, replica, row[R_END])
    update_load(state, row, replica)


@seldom
def step_together(group: Any, state: Any, first: int, tables: Any, cache: Any) -> None:
    """The same for the ranks of a group: all apply the step that ended, then all plan the next."""
    time = state.event_key[first]
    lead = state.replicas[first]
    paused = lead[R_PAUSE]
    lead[R_PAUSE] = 0
    ranks = range(first, first + group.ranks[first])
    ended = False
    if group.under_way[first] and not paused:
        for rank in ranks:
            row = state.replicas[rank]
            if row[R_STATE] == DECODE or row[R_STATE] == MIXED:
                ended = commit(state, row, rank, cache) or ended
    if ended and (state.run[G_MAX_CONCURRENCY] > 0 or state.end.size > 0):
        lead[R_PAUSE] = 1
        set_event(state, first, time)
    else:
        for rank in ranks:
            row = state.replicas[rank]
            if row[R_STATE] == IDLE:
                if row[R_WAITING] == 0:
                    continue
                row[R_STATE] = WAKE
            again = True
            while again:  # once in the source: what is inlined twice is compiled twice
                schedule(state, row, rank, tables, cache, time)
                again = row[R_STATE] == WAKE
        join(group, state, tables, first, time)
    for rank in ranks:
        update_load(state, state.replicas[rank], rank)


@jit
def step_of(group: Any, alone: Any, state: Any, replica: int, tables: Any, cache: Any) -> None:
    # A branch is dropped before it is compiled only where what it asks for is None; so each form has a None of its own.
    if alone is None:
        if group is not None:
            step_together(group, state, replica, tables, cache)
    else:
        step(state, replica, tables, cache)


@entry
def advance(state: Any, arrivals: Any, tables: Any, cache: Any, faults: Any, final: bool, until: int) -> int:
    """Run until the block of traffic is consumed (or, if it is the last, until all is done). Returns why it stopped.

    ``until``: no event after this time is handled.
    """
    run = state.run
    count = arrivals.time.size
    reserve = 2 + state.heap.shape[1] if run[G_POOLS] > 0 else 2
    room = state.heap.shape[1] + 2
    while True:
        if run[G_FREE_SLOTS] < reserve:
            return NEED_SLOTS
        if run[G_OUT] + room + (run[G_IN_FLIGHT] if run[G_FAULT] < faults.shape[0] else 0) > state.out.shape[0]:
            return NEED_OUTPUT
        replica = state.event_tree[1] if run[G_LEAVES] > 1 else 0
        time_step = state.event_key[replica]
        time_pending = state.pending[0, 0] if run[G_PENDING] > 0 else INF
        time_arrival = INF
        if run[G_NEXT] < count:
            if run[G_MAX_CONCURRENCY] == 0:
                time_arrival = arrivals.time[run[G_NEXT]]
            elif run[G_IN_FLIGHT] < run[G_MAX_CONCURRENCY]:
                time_arrival = max(arrivals.time[run[G_NEXT]], run[G_NOW])
        elif not final:
            return LOOP_DONE
        time_fault = faults[run[G_FAULT], 0] if run[G_FAULT] < faults.shape[0] else INF
        time = min(time_step, time_pending, time_arrival)
        if time >= INF and run[G_IN_FLIGHT] == 0 and run[G_NEXT] >= count:
            return LOOP_DONE
        time_scale = run[G_SCALE_NEXT] if run[G_SCALE_EVERY] > 0 else INF
        time = min(time, time_fault, time_scale)
        if time > until or time >= INF:
            return LOOP_DONE
        run[G_NOW] = time
        run[G_EVENTS] += 1
        if time_fault <= time:
            fault = faults[run[G_FAULT]]
            run[G_FAULT] += 1
            if fault[2] == 0:
                fail(state, fault[1], cache, time)
            elif state.replicas[fault[1], R_UP] == DOWN:
                turn_on(state, fault[1], time, ON)
        elif time_scale <= time:
            scale(state, time)
        elif time_pending <= time:
            handle_pending(state, arrivals, cache, faults)
        elif time_arrival <= time:
            run[G_NEXT] += 1
            arrive(state, arrivals, cache, faults, run[G_NEXT] - 1, time)
        else:
            run[G_STEP_TOP] = replica if run[G_STEP_TIME] != time else max(run[G_STEP_TOP], replica)
            run[G_STEP_TIME] = time
            step_of(state.group, state.alone, state, replica, tables, cache)
