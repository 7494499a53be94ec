"""Compiled replay of TensorRT-LLM's attention data parallelism under clients that always have one request open.

Each rank has a queue of its own: a new request goes to the rank with the fewest, which under steady clients is the one whose
answer just ended. A step's prompts are held back until every rank has one (``PyExecutor._balance_adp_requests``) or the count of
``wait_steps`` is over, and a rank takes whole prompts up to its own token budget; the slowest rank sets the step.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from trivet.cloud.serving._loop_closed import ask_again, finish, line, plane, push


@njit(cache=True)
def replay_ranks(
    tokens, mixed_s, sequences, graph_s, context, decode_s, chunk, past, prefill_s, host, overlap,
    budget, max_sequences, kv_tokens, ranks, tokens_a_step, decode_tokens, wait_steps,
    inputs, outputs, arrivals, clients, client_s, gap_s, ttft, tpot, finished,
):  # fmt: skip
    """Serve ``len(inputs)`` requests; fills ``ttft``, ``tpot`` and ``finished``. Arguments as in ``_loop_closed.replay``, limits
    of one rank. Returns the clock at the end."""
    total, scale = len(inputs), 1048576.0
    heap, heap_size = np.empty(total + 1), 0
    arriving = np.empty(total, np.int64)
    seen, tail, issued = 0, 0, 0
    first, home = np.zeros(total), np.zeros(total, np.int64)
    queue = np.empty((ranks, total), np.int64)
    head, end = np.zeros(ranks, np.int64), np.zeros(ranks, np.int64)
    load, running, reserved = np.zeros(ranks, np.int64), np.zeros(ranks, np.int64), np.zeros(ranks)
    for i in range(min(clients, total) if clients > 0 else total):
        if clients > 0:
            arrivals[i] = i * gap_s
        arriving[tail] = i
        tail += 1
        issued += 1
    t, steps, count, sum_context, done, active = 0.0, 0.0, 0.0, 0.0, 0, 0
    batch = np.empty(total, np.int64)
    while done < total:
        waiting = (end - head).sum()
        if active == 0 and waiting == 0:
            t = max(t, arrivals[arriving[seen]])
        while seen < tail and arrivals[arriving[seen]] <= t:
            r = arriving[seen]
            k = np.argmin(load)
            home[r] = k
            queue[k, end[k]] = r
            end[k] += 1
            load[k] += 1
            waiting += 1
            seen += 1
        every, decoding = True, True
        for k in range(ranks):
            every = every and end[k] > head[k]
            decoding = decoding and running[k] > 0
        ended, largest, attention = 0, 0.0, 0.0
        if waiting > 0 and (wait_steps <= 0 or every or not decoding or count >= wait_steps):
            for k in range(ranks):
                left, mine, own = budget - running[k] * decode_tokens, 0.0, 0.0
                while head[k] < end[k]:
                    r = queue[k, head[k]]
                    if running[k] >= max_sequences or (inputs[r] > left and mine > 0):
                        break
                    if reserved[k] + inputs[r] + outputs[r] > kv_tokens and running[k] > 0:
                        break
                    head[k] += 1
                    running[k] += 1
                    reserved[k] += inputs[r] + outputs[r]
                    left -= inputs[r]
                    mine += inputs[r]
                    own += plane(chunk, past, prefill_s, inputs[r], 0.0)
                    batch[ended] = r
                    ended += 1
                largest, attention = max(largest, mine), max(attention, own)
        a_rank = active / ranks
        mean_context = sum_context / active if active > 0 else 0.0
        if ended == 0 and active > 0:
            n = np.floor(heap[0] / scale) - steps
            middle = mean_context + 0.5 * (n - 1.0) * tokens_a_step
            device = line(sequences, graph_s, a_rank) + plane(sequences, context, decode_s, a_rank, middle)
            cpu = host[0] + host[2] * a_rank
            step = max(device, cpu) if overlap else device + cpu
            if seen < tail:
                n = min(n, np.ceil((arrivals[arriving[seen]] - t) / step))
            if waiting > 0 and wait_steps > count:
                n = min(n, wait_steps - count)
            n = max(n, 1.0)
            count += n
            if wait_steps > 0 and waiting == 0:
                count = count % wait_steps
            t += n * step
            steps += n
            sum_context += active * n * tokens_a_step
        else:
            count = 0.0
            device = line(tokens, mixed_s, largest + a_rank * decode_tokens) + attention
            cpu = host[1] + host[2] * (np.ceil(ended / ranks) + a_rank)
            if active > 0:
                device += plane(sequences, context, decode_s, a_rank, mean_context)
                steps += 1.0
                sum_context += active * tokens_a_step
            t += max(device, cpu) if overlap else device + cpu
        for i in range(ended):
            r = batch[i]
            ttft[r] = t - arrivals[r]
            first[r] = t
            length = np.ceil(max(outputs[r] - 1.0, 0.0) / tokens_a_step)
            heap_size = push(heap, heap_size, (steps + length) * scale + r)
            active += 1
            sum_context += inputs[r] + 1.0
        while heap_size > 0 and np.floor(heap[0] / scale) <= steps:
            r, heap_size = finish(heap, heap_size, scale, t, first, outputs, tpot, finished)
            done += 1
            active -= 1
            k = home[r]
            load[k] -= 1
            running[k] -= 1
            reserved[k] -= inputs[r] + outputs[r]
            sum_context -= inputs[r] + 1.0 + np.ceil(max(outputs[r] - 1.0, 0.0) / tokens_a_step) * tokens_a_step
            if clients > 0:
                issued, tail = ask_again(issued, total, t + client_s, arrivals, arriving, tail)
        if active == 0:
            sum_context = 0.0
    return t
