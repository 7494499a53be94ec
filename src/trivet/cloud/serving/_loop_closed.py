"""Compiled replay of one replica under clients that always have one request open, or under given arrivals.

It is the limit that ``steady.py`` offers to batch prediction: one replica, first come first served, no prefix cache.
Between two events (an arrival, a finished prompt, a finished answer) decode steps are not walked one by one: ``n`` steps of
``B`` sequences whose mean context is ``c`` at the middle of the run take ``n step(B, c)``.
"""

from __future__ import annotations

import numpy as np
from numba import njit

CHUNKED, PREFILL_FIRST, WHOLE_PROMPT = 0, 1, 2  # how an engine mixes prompts with decode steps


@njit(cache=True, inline="always")
def _segment(knots, x):
    """Index of the segment of sorted ``knots`` that holds ``x`` (the last one beyond the end)."""
    lo, hi = 0, len(knots) - 1
    while hi - lo > 1:
        mid = (lo + hi) // 2
        if knots[mid] <= x:
            lo = mid
        else:
            hi = mid
    return lo


@njit(cache=True)
def line(knots, values, x):
    """Piecewise linear, extrapolated by the end segments above and held at the first knot below."""
    if len(knots) == 1:
        return values[0]
    if x <= knots[0]:
        return values[0]
    i = _segment(knots, x)
    return values[i] + (values[i + 1] - values[i]) * (x - knots[i]) / (knots[i + 1] - knots[i])


@njit(cache=True)
def plane(xs, ys, values, x, y):
    """Bilinear on a grid, extrapolated by the end segments above and held at the first knot below."""
    i, j = _segment(xs, x), _segment(ys, y)
    u = max(0.0, (x - xs[i]) / (xs[i + 1] - xs[i]))
    v = max(0.0, (y - ys[j]) / (ys[j + 1] - ys[j]))
    low = values[i, j] * (1.0 - v) + values[i, j + 1] * v
    high = values[i + 1, j] * (1.0 - v) + values[i + 1, j + 1] * v
    return low * (1.0 - u) + high * u


@njit(cache=True)
def push(heap, size, key):
    """Insert ``key`` into the binary heap ``heap[:size]``; returns the new size."""
    i = size
    heap[i] = key
    while i > 0:
        parent = (i - 1) // 2
        if heap[parent] <= heap[i]:
            break
        heap[parent], heap[i] = heap[i], heap[parent]
        i = parent
    return size + 1


@njit(cache=True)
def pop(heap, size):
    """Remove the least key of ``heap[:size]``; returns (key, new size)."""
    top = heap[0]
    size -= 1
    heap[0] = heap[size]
    i = 0
    while True:
        left = 2 * i + 1
        if left >= size:
            break
        child = left
        if left + 1 < size and heap[left + 1] < heap[left]:
            child = left + 1
        if heap[i] <= heap[child]:
            break
        heap[i], heap[child] = heap[child], heap[i]
        i = child
    return top, size


@njit(cache=True)
def finish(heap, size, scale, t, first, outputs, tpot, finished):
    """The request whose last token comes next ends at ``t``; returns (request, new size of the heap)."""
    key, size = pop(heap, size)
    r = int(key - np.floor(key / scale) * scale)
    tpot[r] = (t - first[r]) / max(outputs[r] - 1.0, 1.0)
    finished[r] = t
    return r, size


@njit(cache=True)
def ask_again(issued, total, at, arrivals, queue, tail):
    """A client sends its next request, if any is left, at ``at``; returns (issued, tail of the queue)."""
    if issued < total:
        arrivals[issued] = at
        queue[tail] = issued
        return issued + 1, tail + 1
    return issued, tail


@njit(cache=True)
def drop(heap, size, request, scale):
    """Remove the entry of ``request`` from the heap of (finishing step, request) keys; returns the new size."""
    for i in range(size):
        if heap[i] - np.floor(heap[i] / scale) * scale == request:
            left = heap[i + 1 : size].copy()
            size = i
            for key in left:
                size = push(heap, size, key)
            return size
    return size


@njit(cache=True)
def compact(stack, top, finished):
    """Take those that have finished out of ``stack[:top]``; returns the new top."""
    kept = 0
    for i in range(top):
        if finished[stack[i]] == 0.0:
            stack[kept] = stack[i]
            kept += 1
    return kept


@njit(cache=True)
def replay(
    tokens, mixed_s, sequences, graph_s, context, decode_s, chunk, past, prefill_s, host, overlap, preempts,
    policy, budget, max_sequences, kv_tokens, ranks, tokens_a_step, decode_tokens, look_steps, wait_steps,
    gather_steps, gather_tokens, cold_s, inputs, outputs, arrivals, clients, client_s, gap_s, ttft, tpot, finished,
):  # fmt: skip
    """Serve ``len(inputs)`` requests; fills ``ttft``, ``tpot`` (seconds) and ``finished`` (clock) per request.

    Closed loop when ``clients > 0``: that many are sent at time 0, each end sends the next after ``client_s``
    (``arrivals`` is then written); the first burst passes the front end one request each ``gap_s``. Open otherwise, at
    ``arrivals``. ``host``: decode, mixed, per sequence seconds. With ``preempts`` a prompt enters when its own KV fits; where
    the growing answers fit no more, the youngest sequence leaves, waits in front of the others and computes its tokens anew.
    Without, a request enters when the KV of its whole answer fits.

    Sequence, token and KV limits are those of the whole deployment of ``ranks`` attention-DP ranks; the slowest rank
    sets the step. New requests are looked at every ``look_steps`` decode steps, and after a step of prompts alone. Every
    ``wait_steps`` steps prompts enter though not every rank has one; without, they wait for that. Prompts wait up to
    ``gather_steps`` steps until they and the running sequences make ``gather_tokens``. The first step that the token budget
    cuts takes ``cold_s`` longer. Returns the clock at the end.
    """
    total = len(inputs)
    heap = np.empty(total + 1)  # finishing step count x 2^20 + request
    scale = 1048576.0
    heap_size = 0
    waiting = np.empty(total, np.int64)
    again, begun, stack, top = np.zeros(total), np.zeros(total), np.empty(total + 1, np.int64), 0
    head, tail, issued = 0, 0, 0
    first = np.zeros(total)
    if clients > 0:
        for _ in range(min(clients, total)):
            arrivals[issued] = issued * gap_s
            waiting[tail] = issued
            tail += 1
            issued += 1
    else:
        for i in range(total):
            waiting[i] = i
        tail = total
        issued = total
    t, steps, running, sum_context, reserved = 0.0, 0.0, 0, 0.0, 0.0
    partial, partial_done = -1, 0.0  # prompt cut by the token budget, and how much of it is done
    done, seen, turn, next_look, held = 0, 0, 0.0, 0.0, 0.0
    batch = np.empty(total, np.int64)
    while done < total:
        if running == 0 and partial < 0 and head == seen:
            t = max(t, arrivals[waiting[head]])
            next_look = turn
        if turn >= next_look:
            while seen < tail and arrivals[waiting[seen]] <= t:
                seen += 1
            next_look = turn + look_steps
        while preempts and running > 1 and sum_context + running * tokens_a_step > kv_tokens:
            r = stack[top - 1]
            top -= 1
            if finished[r] > 0.0:
                continue
            heap_size = drop(heap, heap_size, r, scale)
            done_steps = steps - begun[r]
            again[r] = 1.0 + done_steps * tokens_a_step
            sum_context -= inputs[r] + again[r]
            running -= 1
            head -= 1
            waiting[head] = r
        limit = 0.0  # steps that prompts are held back at most, from the start of the wait
        if running > 0 and wait_steps > 0 and seen - head < ranks:
            limit = wait_steps  # counts whether a prompt waits or not
        elif running > 0 and gather_steps > 0 and head < seen:
            gathered = running * decode_tokens
            for i in range(head, seen):
                gathered += inputs[waiting[i]] + again[waiting[i]]
                if gathered >= gather_tokens:
                    break
            if gathered < gather_tokens:
                limit = gather_steps
        hold = held < limit
        if not hold:
            held = 0.0
        # --- which prompts enter this step
        left = budget * ranks - (running * decode_tokens if policy != PREFILL_FIRST else 0.0)
        prompt_tokens, attention, prompts, ended, largest = 0.0, 0.0, 0, 0, 0.0
        if partial >= 0 and left > 0:
            whole = inputs[partial] + again[partial]
            size = min(whole - partial_done, left)
            attention += plane(chunk, past, prefill_s, size, partial_done)
            prompt_tokens += size
            largest = size
            left -= size
            prompts += 1
            if partial_done + size >= whole:
                batch[ended] = partial
                ended += 1
                partial = -1
            else:
                partial_done += size
        while partial < 0 and head < seen and left > 0 and not hold:
            r = waiting[head]
            if running + prompts >= max_sequences:
                break
            size = inputs[r] + again[r]
            asked = sum_context + prompt_tokens + size if preempts else reserved + inputs[r] + outputs[r]
            if asked > kv_tokens and running + prompts > 0:
                break
            if size > left:
                if policy == WHOLE_PROMPT and prompts > 0:
                    break
                if policy != WHOLE_PROMPT:
                    size = left
            head += 1
            reserved += inputs[r] + outputs[r]
            attention += plane(chunk, past, prefill_s, size, 0.0)
            prompt_tokens += size
            largest = max(largest, size)
            left -= size
            prompts += 1
            if size >= inputs[r] + again[r]:
                batch[ended] = r
                ended += 1
            else:
                partial = r
                partial_done = size
                t += cold_s
                cold_s = 0.0
        mean_context = sum_context / running if running > 0 else 0.0
        a_rank = running / ranks
        if prompts == 0:
            # --- a run of decode steps up to the next event
            n = np.floor(heap[0] / scale) - steps
            middle = mean_context + 0.5 * (n - 1.0) * tokens_a_step
            device = line(sequences, graph_s, a_rank) + plane(sequences, context, decode_s, a_rank, middle)
            cpu = host[0] + host[2] * a_rank
            step = max(device, cpu) if overlap else device + cpu
            if seen < tail and running < max_sequences:
                r = waiting[seen]
                asked = sum_context + inputs[r] if preempts else reserved + inputs[r] + outputs[r]
                if asked <= kv_tokens:
                    n = min(n, max(np.ceil((arrivals[r] - t) / step), next_look - turn))
            if limit > 0:
                n = min(n, limit - held)
            if preempts and running > 1:
                n = min(n, np.floor((kv_tokens - sum_context) / (running * tokens_a_step)))
            n = max(n, 1.0)
            if limit > 0:
                held += n
            turn += n
            t += n * step
            steps += n
            sum_context += running * n * tokens_a_step
        else:
            held = 0.0
            turn += 1.0
            if policy == PREFILL_FIRST:
                next_look = turn
            share = np.ceil(prompts / ranks) / prompts if ranks > 1 else 1.0
            prompt_rank = max(prompt_tokens * share, largest) if ranks > 1 else prompt_tokens
            with_decode = policy != PREFILL_FIRST and running > 0
            device = (
                line(tokens, mixed_s, prompt_rank + (a_rank * decode_tokens if with_decode else 0.0))
                + attention * share
            )
            cpu = host[1] + host[2] * np.ceil(prompts / ranks)
            if with_decode:
                device += plane(sequences, context, decode_s, a_rank, mean_context)
                cpu += host[2] * a_rank
                steps += 1.0
                sum_context += running * tokens_a_step
            t += max(device, cpu) if overlap else device + cpu
        for k in range(ended):
            r = batch[k]
            if again[r] == 0.0:
                ttft[r] = t - arrivals[r]
                first[r] = t
            begun[r] = steps - max(again[r] - 1.0, 0.0) / tokens_a_step
            length = np.ceil(max(outputs[r] - 1.0, 0.0) / tokens_a_step)
            heap_size = push(heap, heap_size, (begun[r] + length) * scale + r)
            running += 1
            sum_context += inputs[r] + max(again[r], 1.0)
            if preempts:
                while top > 0 and finished[stack[top - 1]] > 0.0:
                    top -= 1
                if top == len(stack):
                    top = compact(stack, top, finished)
                stack[top] = r
                top += 1
        while heap_size > 0 and np.floor(heap[0] / scale) <= steps:
            r, heap_size = finish(heap, heap_size, scale, t, first, outputs, tpot, finished)
            done += 1
            running -= 1
            sum_context -= inputs[r] + 1.0 + np.ceil(max(outputs[r] - 1.0, 0.0) / tokens_a_step) * tokens_a_step
            reserved -= inputs[r] + outputs[r]
            if clients > 0:
                issued, tail = ask_again(issued, total, t + client_s, arrivals, waiting, tail)
        if running == 0:
            sum_context = 0.0
    return t
