"""Compiled replay of prefill and decode pools under clients that always have one request open.

Prompts wait in one queue for the first free prefill worker; their KV crosses the link; each decode worker runs its own
batch, and what finds no slot waits there. Decode steps between two events of a worker are summed as in ``_loop_closed``.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from trivet.cloud.serving._loop_closed import finish, line, plane, push

ROUND_ROBIN, LEAST_LOADED = 0, 1
SCALE = 1048576.0


@njit(cache=True)
def replay_split(
    p_tokens, p_mixed, p_chunk, p_past, p_attention, p_host, p_overlap, p_workers, p_ranks, p_budget,
    d_sequences, d_graph, d_context, d_attention, d_host, d_overlap, d_workers, d_ranks, d_slots, d_kv,
    routing, frontends, transfer_token_s, transfer_s, tokens_a_step, inputs, outputs, clients, client_s, gap_s,
    ttft, tpot, finished,
):  # fmt: skip
    """Serve ``len(inputs)`` requests; fills ``ttft``, ``tpot`` and ``finished`` (seconds). Slots and KV tokens are those of
    one decode worker, budget that of one prefill rank. The first token is out when the request holds a decode slot. With
    more than one of ``frontends``, requests reach them by chance, and each has turns of its own."""
    total = len(inputs)
    arrivals = np.zeros(total)
    issued = min(clients, total)
    for i in range(issued):
        arrivals[i] = i * gap_s
    head = 0  # next prompt of the central queue; prompts queue in the order of issue
    free = np.zeros(p_workers)
    ready = np.empty(total + 1)  # heap of arrival times at decode, and whose
    owner = np.empty(total + 1, np.int64)
    ready_size = 0
    clock, steps, dt, next_end = (
        np.zeros(d_workers),
        np.zeros(d_workers),
        np.zeros(d_workers),
        np.full(d_workers, np.inf),
    )
    running, load = np.zeros(d_workers, np.int64), np.zeros(d_workers, np.int64)
    context, reserved = np.zeros(d_workers), np.zeros(d_workers)
    heaps = np.empty((d_workers, total + 1))
    sizes = np.zeros(d_workers, np.int64)
    queue = np.empty((d_workers, total), np.int64)
    q_head, q_tail = np.zeros(d_workers, np.int64), np.zeros(d_workers, np.int64)
    first = np.zeros(total)
    turns = np.zeros(max(frontends, 1), np.int64)
    draw = np.uint32(1)
    done = 0
    while done < total:
        # --- the earliest event: a prompt starts, a request reaches decode, an answer ends
        worker = int(np.argmin(free))
        start = max(free[worker], arrivals[head]) if head < issued else np.inf
        reach = ready[0] if ready_size > 0 else np.inf
        w = int(np.argmin(next_end))
        end = next_end[w]
        if start <= reach and start <= end:
            left, size, attention, prompts, largest = p_budget * p_ranks, 0.0, 0.0, 0, 0.0
            begin = head
            while head < issued and arrivals[head] <= start and (left >= inputs[head] or prompts == 0):
                left -= inputs[head]
                size += inputs[head]
                largest = max(largest, inputs[head])
                attention += plane(p_chunk, p_past, p_attention, inputs[head], 0.0)
                prompts += 1
                head += 1
            share = np.ceil(prompts / p_ranks) / prompts
            device = line(p_tokens, p_mixed, max(size * share, largest)) + attention * share
            cpu = p_host[1] + p_host[2] * np.ceil(prompts * share)
            over = start + (max(device, cpu) if p_overlap else device + cpu)
            free[worker] = over
            for r in range(begin, head):
                at = over + transfer_s + transfer_token_s * inputs[r]
                # heap of times with their owners alongside
                i = ready_size
                ready_size += 1
                ready[i], owner[i] = at, r
                while i > 0 and ready[(i - 1) // 2] > ready[i]:
                    j = (i - 1) // 2
                    ready[i], ready[j] = ready[j], ready[i]
                    owner[i], owner[j] = owner[j], owner[i]
                    i = j
            continue
        if reach <= end:
            r = owner[0]
            ready_size -= 1
            ready[0], owner[0] = ready[ready_size], owner[ready_size]
            i = 0
            while True:
                j = 2 * i + 1
                if j >= ready_size:
                    break
                if j + 1 < ready_size and ready[j + 1] < ready[j]:
                    j += 1
                if ready[i] <= ready[j]:
                    break
                ready[i], ready[j] = ready[j], ready[i]
                owner[i], owner[j] = owner[j], owner[i]
                i = j
            if routing == ROUND_ROBIN:
                door = 0
                if frontends > 1:
                    draw = np.uint32(draw * np.uint32(1664525) + np.uint32(1013904223))
                    door = (draw >> np.uint32(8)) % frontends
                w = int(turns[door] % d_workers)
                turns[door] += 1
            else:
                w = int(np.argmin(load))
            load[w] += 1
            if running[w] > 0:
                k = min(np.ceil(max(reach - clock[w], 0.0) / dt[w]), np.floor(heaps[w, 0] / SCALE) - steps[w])
                clock[w] += k * dt[w]
                steps[w] += k
                context[w] += running[w] * k * tokens_a_step
            else:
                clock[w] = max(clock[w], reach)
            queue[w, q_tail[w]] = r
            q_tail[w] += 1
        else:
            clock[w] = end
            k = np.floor(heaps[w, 0] / SCALE) - steps[w]
            steps[w] += k
            context[w] += running[w] * k * tokens_a_step
        # --- the worker's answers that end, and the requests that take their slots
        while sizes[w] > 0 and np.floor(heaps[w, 0] / SCALE) <= steps[w]:
            r, sizes[w] = finish(heaps[w], sizes[w], SCALE, clock[w], first, outputs, tpot, finished)
            done += 1
            running[w] -= 1
            load[w] -= 1
            reserved[w] -= inputs[r] + outputs[r]
            context[w] -= inputs[r] + 1.0 + np.ceil(max(outputs[r] - 1.0, 0.0) / tokens_a_step) * tokens_a_step
            if issued < total:
                arrivals[issued] = clock[w] + client_s
                issued += 1
        while q_head[w] < q_tail[w] and running[w] < d_slots:
            r = queue[w, q_head[w]]
            if reserved[w] + inputs[r] + outputs[r] > d_kv and running[w] > 0:
                break
            q_head[w] += 1
            reserved[w] += inputs[r] + outputs[r]
            ttft[r] = clock[w] - arrivals[r]
            first[r] = clock[w]
            length = max(1.0, np.ceil(max(outputs[r] - 1.0, 0.0) / tokens_a_step))
            sizes[w] = push(heaps[w], sizes[w], (steps[w] + length) * SCALE + r)
            running[w] += 1
            context[w] += inputs[r] + 1.0
        if running[w] > 0:
            n = np.floor(heaps[w, 0] / SCALE) - steps[w]
            rank = running[w] / d_ranks
            middle = context[w] / running[w] + 0.5 * (n - 1.0) * tokens_a_step
            device = line(d_sequences, d_graph, rank) + plane(d_sequences, d_context, d_attention, rank, middle)
            cpu = d_host[0] + d_host[2] * rank
            dt[w] = max(device, cpu) if d_overlap else device + cpu
            next_end[w] = clock[w] + n * dt[w]
        else:
            next_end[w] = np.inf
            context[w] = 0.0
    return clock.max()
