"""An arrival rate in closed form: TTFT and TPOT of continuous batching, for many settings and rates at once.

A replica in steady state is a fixed point. Decode-only steps last ``d(B)``; each prompt adds ``w`` seconds of extra step
time, so a second holds ``(1 - rate w) / d`` steps, a token takes ``TPOT = d / (1 - rate w)`` and Little's law gives
``B = rate (output - 1) TPOT`` decode sequences. Prompts queue for the token budget like customers of an M/G/1 server
whose arrivals have dispersion ``arrival_dispersion`` (Kingman's formula). Percentiles are those of a gamma with the
mean and variance so found. Every array broadcasts; one call evaluates a whole grid.

The search reads this; the request-level simulator judges what it finds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trivet.cloud.deployment import StepTable
from trivet.errors import TrivetError

Floats = NDArray[np.float64]
PEAK_WINDOW_S = 60.0
PEAK_SHARE = 0.9
QUANTILES = 9  # nodes of the input-length distribution in the waiting-time integrals


@dataclass(frozen=True, slots=True, eq=False)
class Load:
    """What a traffic does to a replica, as moments. Lengths are tokens; ``input_quantiles`` are equally likely prompts."""

    rate_per_s: float  # mean, for cost and energy
    peak_rate_per_s: float  # what must be carried: nine requests in ten arrive in minutes no busier
    input_quantiles: Floats  # [QUANTILES]
    output_mean: float
    output_square_mean: float
    output_inverse_mean: float
    arrival_dispersion: float  # variance over mean of counts in windows of 2 s; 1 = Poisson

    @property
    def input_mean(self) -> float:
        return float(self.input_quantiles.mean())

    @property
    def tokens(self) -> float:
        """Input and output tokens of a mean request."""
        return self.input_mean + self.output_mean

    @property
    def context_mean(self) -> float:
        """Mean cached tokens of a sequence seen at a random decode step (longer outputs are seen more often)."""
        return self.input_mean + self.output_square_mean / (2.0 * self.output_mean)


def load(arrival_s: Floats, input_tokens: Floats, output_tokens: Floats, window_s: float = 2.0) -> Load:
    """Moments of a trace. Raises TrivetError when it has fewer than two requests or lasts no time."""
    if len(arrival_s) < 2 or arrival_s[-1] <= arrival_s[0]:
        raise TrivetError("a rate needs at least two requests at different times", field="traffic")
    span = float(arrival_s[-1] - arrival_s[0])
    rate = (len(arrival_s) - 1) / span
    peak, dispersion = _peak(arrival_s, rate), _dispersion(arrival_s, window_s)
    grid = (np.arange(QUANTILES) + 0.5) / QUANTILES
    quantiles = np.quantile(input_tokens, grid)
    quantiles = quantiles * (float(np.mean(input_tokens)) / quantiles.mean())
    out = np.maximum(np.asarray(output_tokens, float), 1.0)
    return Load(
        rate,
        peak,
        quantiles,
        float(out.mean()),
        float((out**2).mean()),
        float((1 / np.maximum(out - 1, 1)).mean()),
        dispersion,
    )


def _counts(arrival_s: Floats, window_s: float) -> NDArray[np.int64]:
    """Requests in each whole window."""
    window = ((arrival_s - arrival_s[0]) / window_s).astype(np.int64)
    return np.bincount(window)[:-1] if window[-1] > 0 else np.bincount(window)


def _peak(arrival_s: Floats, rate: float, window_s: float = PEAK_WINDOW_S) -> float:
    """Rate in the minute such that nine requests in ten arrive in minutes no busier, beyond what chance makes.

    Windows of Poisson counts scatter too; their scatter is taken off, since the queue's own formula holds it.
    """
    counts = _counts(arrival_s, window_s)
    if len(counts) < 5 or counts.sum() == 0:
        return rate
    drift = max(float(counts.var()) - float(counts.mean()), 0.0)
    shrink = np.sqrt(drift / max(float(counts.var()), 1e-12))
    ordered = np.sort(counts)
    busy = ordered[np.searchsorted(np.cumsum(ordered), PEAK_SHARE * ordered.sum())]
    return max(rate, float(counts.mean() + shrink * (busy - counts.mean())) / window_s)


def _dispersion(arrival_s: Floats, window_s: float) -> float:
    """Variance over mean of the counts, each against the mean of the windows around it, so that slow drift stays out."""
    counts = _counts(arrival_s, window_s).astype(float)
    if len(counts) < 20:
        return 1.0
    around = max(int(PEAK_WINDOW_S / window_s), 3)
    local = np.convolve(counts, np.ones(around) / around, mode="valid")
    middle = counts[around // 2 : around // 2 + len(local)]
    return max(float(((middle - local) ** 2).mean() / max(local.mean(), 1e-12)) * around / (around - 1), 1.0)


@dataclass(frozen=True, slots=True, eq=False)
class RatePoint:
    """Means and percentiles per setting; ``limit`` says what, if anything, is exceeded: 0 stable, 1 prefill or decode
    time, 2 sequences, 3 KV blocks."""

    ttft_mean_s: Floats
    ttft_s: Floats  # at the percentile asked for
    tpot_mean_s: Floats
    tpot_s: Floats
    batch: Floats  # decode sequences in flight
    busy: Floats  # share of time that the device computes
    limit: NDArray[np.int8]


def bilinear(x: Floats, y: Floats, table: Floats, at_x: Floats, at_y: Floats) -> Floats:
    """``table[x, y]`` between its knots, extrapolated by the last segment; a single knot is constant."""

    def place(knots: Floats, at: Floats) -> tuple[NDArray[np.int64], Floats]:
        if len(knots) == 1:
            return np.zeros(np.shape(at), np.int64), np.zeros(np.shape(at))
        i = np.clip(np.searchsorted(knots, at, side="right") - 1, 0, len(knots) - 2)
        return i, (at - knots[i]) / (knots[i + 1] - knots[i])

    at_x, at_y = np.broadcast_arrays(np.asarray(at_x, float), np.asarray(at_y, float))
    i, u = place(x, at_x)
    j, v = place(y, at_y)
    i1, j1 = np.minimum(i + 1, len(x) - 1), np.minimum(j + 1, len(y) - 1)
    low = table[i, j] * (1 - v) + table[i, j1] * v
    high = table[i1, j] * (1 - v) + table[i1, j1] * v
    return np.maximum(low * (1 - u) + high * u, 0.0)


def linear(knots: Floats, values: Floats, at: Floats) -> Floats:
    """Piecewise linear, extrapolated by the last segment."""
    at = np.asarray(at, float)
    inside = np.interp(at, knots, values)
    if len(knots) < 2:
        return inside
    slope = (values[-1] - values[-2]) / (knots[-1] - knots[-2])
    return inside + np.maximum(at - knots[-1], 0.0) * max(slope, 0.0)


def _arrays(table: StepTable, load: Load) -> tuple[Any, ...]:
    """The table as the compiled loop takes it; decode attention at the load's mean context."""
    attention = bilinear(
        table.sequences,
        table.context,
        table.decode_attention_s,
        table.sequences,
        np.full(len(table.sequences), load.context_mean),
    )
    host = np.array([table.host_decode_s, table.host_mixed_s, table.host_per_sequence_s])
    return (
        table.tokens,
        table.mixed_s,
        table.sequences,
        table.graph_s,
        attention,
        table.chunk,
        table.past,
        table.prefill_attention_s,
        host,
        table.overlap,
        load.input_quantiles,
    )


def open_loop(
    table: StepTable,
    load: Load,
    rate_per_s: Floats,
    token_budget: Floats,
    max_num_seqs: Floats,
    percentile: float = 0.9,
) -> RatePoint:
    """Steady state of one aggregated rank at ``rate_per_s`` requests a second; arrays broadcast.

    Args:
        percentile: 0-1 of the requests, or 0 for the mean.
    """
    from trivet.cloud.serving._loop_rate import solve

    rate, budget, limit = np.broadcast_arrays(*(np.asarray(a, float) for a in (rate_per_s, token_budget, max_num_seqs)))
    result = np.empty((rate.size, 7))
    output = np.array([load.output_mean, load.output_square_mean, load.output_inverse_mean])
    solve(
        _arrays(table, load),
        output,
        load.arrival_dispersion,
        table.first_token_overhead_s,
        float(table.kv_blocks * table.block_size),
        load.context_mean,
        np.ravel(rate),
        np.ravel(budget),
        np.ravel(limit),
        result,
    )
    ttft, ttft_var, tpot, tpot_var, batch, busy, over = (column.reshape(rate.shape) for column in result.T)
    return RatePoint(
        ttft,
        _quantile(ttft, ttft_var, percentile),
        tpot,
        _quantile(tpot, tpot_var, percentile),
        batch,
        busy,
        over.astype(np.int8),
    )


def _quantile(mean: Floats, variance: Floats, percentile: float) -> Floats:
    """Quantile of a gamma with this mean and variance (Wilson and Hilferty, 1931); the mean itself for 0."""
    if percentile <= 0:
        return mean
    from scipy.special import ndtri

    inverse_shape = variance / np.maximum(mean, 1e-12) ** 2
    cube = 1.0 - inverse_shape / 9.0 + float(ndtri(percentile)) * np.sqrt(inverse_shape) / 3.0
    return np.where(inverse_shape < 20.0, mean * np.maximum(cube, 0.0) ** 3, mean * inverse_shape)


def prefill_pool(
    table: StepTable, load: Load, rate_per_s: Floats, token_budget: float, percentile: float = 0.9
) -> tuple[Floats, Floats, Floats]:
    """(mean TTFT, TTFT at the percentile, utilisation) of one prefill worker of a disaggregated deployment."""
    from trivet.cloud.serving._loop_rate import prompts

    rate = np.asarray(rate_per_s, float)
    occupied, service, extra = (np.empty(len(load.input_quantiles)) for _ in range(3))
    arrays = _arrays(table, load)
    prompts(arrays, token_budget, 0.0, 0.0, occupied, extra)
    prompts(arrays, token_budget, 0.0, token_budget, service, extra)
    service *= np.minimum(1.0, load.input_quantiles / np.maximum(token_budget, load.input_quantiles))
    mean, square = service.mean(), (service**2).mean()
    busy = rate * mean
    variance = max(square / max(mean, 1e-12) ** 2 - 1.0, 0.0)
    queue = busy / np.maximum(1.0 - busy, 1e-3) * mean * (load.arrival_dispersion + variance) / 2.0
    pending = np.minimum(rate * occupied.mean(), 1.0) * (occupied**2).mean() / (2.0 * occupied.mean())
    ttft = occupied.mean() + np.maximum(queue, pending) + table.first_token_overhead_s
    return ttft, _quantile(ttft, occupied.var() + queue * (queue + mean), percentile), busy


def decode_pool(table: StepTable, load: Load, rate_per_s: Floats, iterations: int = 12) -> tuple[Floats, Floats]:
    """(TPOT, decode sequences in flight) of one decode worker of a disaggregated deployment."""
    rate = np.asarray(rate_per_s, float)
    batch = np.ones_like(rate)
    tpot = np.zeros_like(rate)
    for _ in range(iterations):
        device = linear(table.sequences, table.graph_s, batch) + bilinear(
            table.sequences, table.context, table.decode_attention_s, batch, np.full_like(batch, load.context_mean)
        )
        host = table.host_decode_s + table.host_per_sequence_s * batch
        tpot = np.maximum(device, host) if table.overlap else device + host
        batch = 0.5 * (batch + np.minimum(rate * max(load.output_mean - 1.0, 0.0) * tpot, 1e6))
    return tpot, batch
