"""The inner loop of ``rate.py``: one fixed point a setting, compiled. Scalars only; see there for the equations."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

ITERATIONS = 14


@njit(cache=True, inline="always")
def _line(knots: Any, values: Any, at: float) -> float:
    """Piecewise linear; constant below the first knot, extrapolated by the last segment."""
    last = len(knots) - 1
    if last == 0 or at <= knots[0]:
        return values[0]
    i = min(np.searchsorted(knots, at, side="right") - 1, last - 1)
    return values[i] + (values[i + 1] - values[i]) * (at - knots[i]) / (knots[i + 1] - knots[i])


@njit(cache=True, inline="always")
def _plane(x: Any, y: Any, table: Any, at_x: float, at_y: float) -> float:
    i, u, j, v = 0, 0.0, 0, 0.0
    if len(x) > 1:
        i = min(max(np.searchsorted(x, at_x, side="right") - 1, 0), len(x) - 2)
        u = (at_x - x[i]) / (x[i + 1] - x[i])
    if len(y) > 1:
        j = min(max(np.searchsorted(y, at_y, side="right") - 1, 0), len(y) - 2)
        v = (at_y - y[j]) / (y[j + 1] - y[j])
    i1, j1 = min(i + 1, len(x) - 1), min(j + 1, len(y) - 1)
    low = table[i, j] * (1 - v) + table[i, j1] * v
    high = table[i1, j] * (1 - v) + table[i1, j1] * v
    return max(low * (1 - u) + high * u, 0.0)


@njit(cache=True, inline="always")
def _step(device: float, host: float, overlap: bool) -> float:
    return max(device, host) if overlap else device + host


@njit(cache=True)
def prompts(table: Any, budget: float, batch: float, companions: float, whole: Any, extra: Any) -> float:
    """Fill ``whole`` (seconds of the steps that hold a prompt) and ``extra`` (its part of what they last longer).

    One entry an input quantile; returns the duration of a decode-only step. ``table``: see ``rate._arrays``.
    """
    tokens, mixed, seqs, graph, decode, chunk_knots, past, prefill, host, overlap, quantiles = table
    free = max(budget - batch, 1.0)
    attention = _line(seqs, decode, batch) * min(batch, 1.0)
    plain = _step(_line(seqs, graph, batch) + attention, host[0] + host[2] * batch, overlap)
    base = plain * min(batch * 2.0, 1.0)
    for k in range(len(quantiles)):
        prompt = quantiles[k]
        size = min(free, prompt + companions)
        own = min(size, prompt)
        count = prompt / own
        device = _line(tokens, mixed, batch + size) + attention
        device += _plane(chunk_knots, past, prefill, own, max(prompt - own, 0.0) / 2.0)
        one = _step(device, host[1] + host[2] * (batch + 1.0), overlap)
        whole[k] = one * count
        extra[k] = max(one - base, 0.0) * own / size * count
    return plain


@njit(cache=True)
def solve(
    table: Any, output: Any, dispersion: float, first_token_s: float, kv_tokens: float, context_mean: float,
    rates: Any, budgets: Any, limits: Any, result: Any,
) -> None:  # fmt: skip
    """``result[i] = ttft mean, variance, tpot mean, variance, batch, busy, limit`` for each setting ``i``."""
    quantiles = table[10]
    n = len(quantiles)
    input_mean = quantiles.mean()
    whole, extra, alone, shared = np.empty(n), np.empty(n), np.empty(n), np.empty(n)
    tokens_out = max(output[0] - 1.0, 0.0)
    for i in range(len(rates)):
        rate, budget, limit = rates[i], budgets[i], limits[i]
        batch, companions = 0.0, 0.0
        ceiling = 4.0 * limit + 16.0
        for step in range(ITERATIONS):
            held = min(batch, budget - 1.0)
            plain = prompts(table, budget, held, companions, whole, extra)
            tpot = plain / max(1.0 - rate * extra.mean(), 1e-3)
            target = min(rate * tokens_out * tpot, ceiling)
            batch = 0.5 * (batch + target) if step < ITERATIONS - 2 else target
            companions = min(rate * whole.mean(), 8.0) * input_mean
        held = min(batch, budget - 1.0)
        plain = prompts(table, budget, held, companions, whole, extra)
        extra_mean = extra.mean()
        room = 1.0 - rate * extra_mean
        tpot = plain / max(room, 1e-3)
        tpot_var = rate * tpot * (extra**2).mean() * output[2] * dispersion
        # A prompt first waits for the step in progress to end: one with a prompt in it, or a decode step.
        prompts(table, budget, held, 0.0, alone, extra)
        pending = 0.0
        for k in range(n):
            pending += alone[k] ** 2 / np.ceil(quantiles[k] / max(budget - batch, 1.0))
        pending /= 2.0 * alone.sum()
        mixed_share = min(rate * alone.mean(), 1.0)
        residual = mixed_share * pending + (1.0 - mixed_share) * min(batch * 2.0, 1.0) * plain / 2.0
        # Then the prompts before it share the token budget: at full chunks they are customers of an M/G/1 server.
        full = max(budget - held, 1.0)
        prompts(table, budget, held, full, shared, extra)
        for k in range(n):
            shared[k] *= min(1.0, quantiles[k] / max(full, quantiles[k]))
        mean, square = shared.mean(), (shared**2).mean()
        load = rate * mean
        spread = max(square / max(mean, 1e-12) ** 2 - 1.0, 0.0)
        queue = load / max(1.0 - load, 1e-3) * mean * (dispersion + spread) / 2.0
        # Those that came during the wait ride in the same steps.
        prompts(table, budget, held, min(rate * residual, 4.0) * input_mean, whole, extra)
        ttft = whole.mean() + max(queue, residual) + first_token_s
        limit_hit = 0.0
        if room <= 0.02 or load >= 0.98:
            limit_hit = 1.0
        elif batch > limit:
            limit_hit = 2.0
        elif (batch + rate * ttft) * context_mean > kv_tokens:
            limit_hit = 3.0
        result[i, 0] = ttft
        result[i, 1] = whole.var() + queue * (queue + mean) + residual**2 / 3.0
        result[i, 2] = tpot
        result[i, 3] = tpot_var
        result[i, 4] = batch
        result[i, 5] = min((1.0 if batch >= 1.0 else batch) + rate * extra_mean, 1.0)
        result[i, 6] = limit_hit
