# mypy: disallow-untyped-decorators=False, disallow-untyped-calls=False
"""Hot loops of the many-client generator: gaps, lengths, and putting clients on one clock.

Random numbers are splitmix64, one stream for each (seed, service, client, window), so that any window can
be made alone and in any order. A window's gaps are drawn from the client's family and scaled to fill the
window exactly, so the number of requests is the source's own; the shape is chosen so that the *scaled* gaps
have the source's CV.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import njit

U64 = np.uint64
_GOLDEN, _MIX1, _MIX2 = U64(0x9E3779B97F4A7C15), U64(0xBF58476D1CE4E5B9), U64(0x94D049BB133111EB)
_S30, _S27, _S31, _S11, _S32 = U64(30), U64(27), U64(31), U64(11), U64(32)
_LOW = U64(0xFFFFFFFF)
_TO_UNIT = 2.0**-53
LEAST_SHAPE = 1e-4  # below it all requests of a window come at once anyway


@njit(cache=True, inline="always")
def bits(state: Any) -> Any:
    """64 random bits; ``state`` is a uint64 array of one entry."""
    state[0] += _GOLDEN
    z = state[0]
    z = (z ^ (z >> _S30)) * _MIX1
    z = (z ^ (z >> _S27)) * _MIX2
    return z ^ (z >> _S31)


@njit(cache=True, inline="always")
def uniform(state: Any) -> float:
    """In (0, 1), never an end."""
    return float(((bits(state) >> _S11) + 0.5) * _TO_UNIT)


@njit(cache=True)
def start(state: Any, seed: int, a: int, b: int, c: int) -> None:
    """Set ``state`` to the beginning of stream (seed, a, b, c)."""
    state[0] = U64(seed)
    state[0] = bits(state) ^ (U64(a) * _MIX1)
    state[0] = bits(state) ^ (U64(b) * _MIX1)
    state[0] = bits(state) ^ (U64(c) * _MIX1)
    bits(state)


@njit(cache=True)
def gamma(state: Any, shape: float) -> float:
    """Gamma of unit scale (Marsaglia and Tsang 2000; below 1 boosted by U^(1/shape))."""
    boosted = shape + 1.0 if shape < 1.0 else shape
    d = boosted - 1.0 / 3.0
    c = 1.0 / math.sqrt(9.0 * d)
    while True:
        while True:  # a normal by the polar method
            u = 2.0 * uniform(state) - 1.0
            v = 2.0 * uniform(state) - 1.0
            s = u * u + v * v
            if 0.0 < s < 1.0:
                break
        x = u * math.sqrt(-2.0 * math.log(s) / s)
        t = 1.0 + c * x
        if t <= 0.0:
            continue
        cube = t * t * t
        w = uniform(state)
        x2 = x * x
        if w < 1.0 - 0.0331 * x2 * x2 or math.log(w) < 0.5 * x2 + d * (1.0 - cube + math.log(cube)):
            value = d * cube
            break
    if shape < 1.0:
        value *= math.exp(math.log(uniform(state)) / shape)
    return value


@njit(cache=True)
def log_lower_gamma(a: float, x: float) -> float:
    """log of the lower incomplete gamma function, by its series."""
    term = 1.0 / a
    total = term
    for n in range(1, 500):
        term *= x / (a + n)
        total += term
        if term < 1e-12 * total:
            break
    return a * math.log(x) - x + math.log(total)


@njit(cache=True)
def weibull_shape(count: float, cv: float) -> float:
    """Shape k for which ``count`` Weibull gaps typically show this CV, by bisection (CV falls as k rises).

    A gap is E^(1/k) with E exponential. Where CV is large the distribution's own CV rests on gaps that a
    finite sample does not hold; so the moments end near the largest of n exponentials:
    CV^2 = g(1 + 2/k) / g(1 + 1/k)^2 - 1, g the lower incomplete gamma function at log n + 1.2 (the mean of
    the largest is log n + 0.58; with 1.2 the median window shows the CV asked for, see tests).
    """
    goal = math.log1p(cv * cv)
    end = math.log(max(count, 2.0)) + 1.2
    whole = math.log(-math.expm1(-end))  # mass below the end
    lo, hi = math.log(0.02), math.log(500.0)
    for _ in range(40):
        middle = 0.5 * (lo + hi)
        inverse = math.exp(-middle)
        second = log_lower_gamma(1.0 + 2.0 * inverse, end)
        if second - 2.0 * log_lower_gamma(1.0 + inverse, end) + whole > goal:
            lo = middle
        else:
            hi = middle
    return math.exp(0.5 * (lo + hi))


@njit(cache=True)
def gap_shape(count: float, cv: float) -> float:
    """Gamma shape for which ``count`` gaps, scaled to a fixed sum, have this CV.

    The scaled gaps are Dirichlet: E[CV^2] = (n - 1) / (n a + 1), solved for a.
    """
    if count <= 1.0:
        return 1.0
    shape = ((count - 1.0) / max(cv * cv, 1e-12) - 1.0) / count
    return max(shape, LEAST_SHAPE)


@njit(cache=True)
def build_alias(offsets: Any, probability: Any, threshold: Any, other: Any) -> None:
    """Walker's alias tables, Vose's method, for each CSR row; ``other`` is local to its row."""
    longest = 0
    for row in range(offsets.size - 1):
        longest = max(longest, offsets[row + 1] - offsets[row])
    small, large, scaled = np.empty(longest, np.int64), np.empty(longest, np.int64), np.empty(longest, np.float64)
    for row in range(offsets.size - 1):
        first, size = offsets[row], offsets[row + 1] - offsets[row]
        total = 0.0
        for i in range(size):
            total += probability[first + i]
        few, many = 0, 0
        for i in range(size):
            scaled[i] = probability[first + i] * size / total
            threshold[first + i] = np.uint32(0xFFFFFFFF)
            other[first + i] = i
            if scaled[i] < 1.0:
                small[few] = i
                few += 1
            else:
                large[many] = i
                many += 1
        while few > 0 and many > 0:
            few -= 1
            low, high = small[few], large[many - 1]
            threshold[first + low] = np.uint32(min(4294967295.0, scaled[low] * 4294967296.0))
            other[first + low] = high
            scaled[high] -= 1.0 - scaled[low]
            if scaled[high] < 1.0:
                many -= 1
                small[few] = high
                few += 1


@njit(cache=True, inline="always")
def draw(state: Any, first: int, size: int, tokens: Any, threshold: Any, other: Any) -> Any:
    """One value of a row, from one 64-bit number: its high half picks the column, its low half the side."""
    r = bits(state)
    i = np.int64(((r >> _S32) * U64(size)) >> _S32)
    if np.uint32(r & _LOW) > threshold[first + i]:
        i = other[first + i]
    return tokens[first + i]


@njit(cache=True)
def client_window(
    state: Any, count: int, cv: float, weibull: bool, source_count: float, begin: float, span: float, time: Any, at: int
) -> None:
    """Arrival times of one client in one window, ascending, into ``time[at:at+count]``."""
    shape = gap_shape(source_count, cv)
    inverse = 1.0 / weibull_shape(source_count, cv) if weibull else 0.0
    total = 0.0
    for i in range(count):
        gap = math.exp(math.log(-math.log(uniform(state))) * inverse) if weibull else gamma(state, shape)
        total += gap
        time[at + i] = total
    if not total > 0.0:  # every gap underflowed: one burst somewhere in the window
        moment = begin + uniform(state) * span
        for i in range(count):
            time[at + i] = moment
        return
    phase = uniform(state) * time[at]  # the window begins somewhere inside the first gap
    scale = span / total
    last = np.nextafter(begin + span, begin)
    for i in range(count):
        time[at + i] = min(begin + (time[at + i] - phase) * scale, last)


@njit(cache=True)
def fill_window(
    seed: int,
    service: int,
    window: int,
    begin: float,
    span: float,
    rate: float,
    ids: Any,
    requests: Any,
    cv: Any,
    weibull: Any,
    in_rows: Any,
    out_rows: Any,
    in_table: Any,
    out_table: Any,
    counts: Any,
    time: Any,
    inputs: Any,
    outputs: Any,
    client: Any,
) -> int:
    """All clients of one service in one window, client after client. Returns the number of requests.

    ``in_table``/``out_table``: (offsets, tokens, threshold, other). ``counts`` are set by
    :func:`window_counts`.
    """
    in_offsets, in_tokens, in_threshold, in_other = in_table
    out_offsets, out_tokens, out_threshold, out_other = out_table
    state = np.zeros(1, np.uint64)
    at = 0
    for c in range(requests.size):
        count = counts[c]
        if count == 0:
            continue
        start(state, seed, service, ids[c], window)
        client_window(state, count, cv[c], weibull[c], float(requests[c]), begin, span, time, at)
        first_in, first_out = in_offsets[in_rows[c]], out_offsets[out_rows[c]]
        size_in, size_out = in_offsets[in_rows[c] + 1] - first_in, out_offsets[out_rows[c] + 1] - first_out
        for i in range(at, at + count):
            inputs[i] = draw(state, first_in, size_in, in_tokens, in_threshold, in_other)
            outputs[i] = draw(state, first_out, size_out, out_tokens, out_threshold, out_other)
            client[i] = c
        at += count
    return at


@njit(cache=True)
def window_counts(seed: int, service: int, window: int, rate: float, ids: Any, requests: Any, counts: Any) -> int:
    """Requests of each client in the window at ``rate`` times the source (rounded at random). Returns their sum."""
    state = np.zeros(1, np.uint64)
    total = 0
    for c in range(requests.size):
        exact = requests[c] * rate
        whole = int(exact)
        if exact > whole:
            start(state, seed, service, ids[c], -1 - window)
            whole += int(uniform(state) < exact - whole)
        counts[c] = whole
        total += whole
    return total


@njit(cache=True)
def sort_window(
    begin: float,
    span: float,
    time: Any,
    inputs: Any,
    outputs: Any,
    client: Any,
    place: Any,
    time_out: Any,
    inputs_out: Any,
    outputs_out: Any,
    client_out: Any,
) -> None:
    """Put requests in order of time: one bucket a request, then order inside the bucket; ties keep the clients' order."""
    n = time.size
    scale = n / span
    place[: n + 1] = 0
    for i in range(n):
        place[min(n - 1, int((time[i] - begin) * scale)) + 1] += 1
    for b in range(n):
        place[b + 1] += place[b]
    for i in range(n):
        b = min(n - 1, int((time[i] - begin) * scale))
        k = place[b]
        place[b] = k + 1
        time_out[k], inputs_out[k], outputs_out[k], client_out[k] = time[i], inputs[i], outputs[i], client[i]
    first = 0
    for b in range(n):  # place[b] is now the end of bucket b
        end = place[b]
        if end - first > 48:
            order = np.argsort(time_out[first:end], kind="mergesort") + first
            time_out[first:end] = time_out[order]
            inputs_out[first:end] = inputs_out[order]
            outputs_out[first:end] = outputs_out[order]
            client_out[first:end] = client_out[order]
        else:
            for i in range(first + 1, end):
                t, a, o, c = time_out[i], inputs_out[i], outputs_out[i], client_out[i]
                j = i - 1
                while j >= first and time_out[j] > t:
                    time_out[j + 1], inputs_out[j + 1] = time_out[j], inputs_out[j]
                    outputs_out[j + 1], client_out[j + 1] = outputs_out[j], client_out[j]
                    j -= 1
                time_out[j + 1], inputs_out[j + 1], outputs_out[j + 1], client_out[j + 1] = t, a, o, c
        first = end
