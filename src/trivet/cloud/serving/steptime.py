"""Step tables in seconds -> the integer rows that the event loop adds up.

For each whole batch size ``B`` a decode step's time is piecewise linear in the context ``S`` summed over the batch:
``base + slope * S`` with whole picoseconds, so ``k`` steps that each add ``B`` to ``S`` take
``k (base + slope S) + slope B k (k - 1) / 2``, exactly. Rounding a slope to a picosecond a token moves a step by at
most half a picosecond a token of context.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trivet.cloud.deployment import StepTable
from trivet.cloud.serving._loop_state import INF, PS
from trivet.cloud.serving._loop_time import Tables
from trivet.errors import TrivetError

Floats = NDArray[np.float64]
MAX_TOKENS_ROWS = 1 << 18


def interpolate(x: Floats, knots: Floats, values: Floats) -> Floats:
    """Linear between knots, extended by the first and the last segment; ``values`` may have more trailing axes."""
    knots, values = np.asarray(knots, float), np.asarray(values, float)
    if knots.size == 1:
        return np.broadcast_to(values[0], (*np.shape(x), *values.shape[1:])).astype(float)
    i = np.clip(np.searchsorted(knots, x, side="right") - 1, 0, knots.size - 2)
    u = (x - knots[i]) / (knots[i + 1] - knots[i])
    u = u.reshape(u.shape + (1,) * (values.ndim - 1))
    return np.asarray(values[i] * (1 - u) + values[i + 1] * u)


def _rows(context: Floats, seconds: Floats, floor: Floats, unit: int) -> tuple[Any, Any, Any]:
    """Integer segments of ``max(floor, seconds)`` over summed context, one row a batch size from 0 on.

    Args:
        context: [C] knots, mean context.
        seconds: [B + 1, C] at those knots; the row of batch 0 is not used.
        floor: [B + 1] seconds below which no step goes.
        unit: context units a token.

    Returns (bound, base, slope), each [B + 1, C]: a segment holds below its bound. Unused ones have bound -1.
    """
    mean = np.rint(np.asarray(context, float) * unit).astype(np.int64)
    keep = np.concatenate([[True], np.diff(mean) > 0])
    mean, seconds = mean[keep], seconds[:, keep]
    if mean.size == 1:
        mean, seconds = np.array([mean[0], mean[0] + 1]), np.repeat(seconds, 2, axis=1)
    rows, count = seconds.shape[0], mean.size - 1
    x = np.maximum(np.arange(rows), 1)[:, None] * mean
    y = np.maximum.accumulate(np.rint(np.maximum(seconds, 0.0) * PS).astype(np.int64), axis=1)
    width = np.diff(x, axis=1)
    rise = (np.diff(y, axis=1) + width // 2) // width
    start = x[:, :-1].copy()
    start[:, 0] = 0
    offset = y[:, :-1] - rise * x[:, :-1]
    offset = np.maximum(offset, -rise * start)  # extended below the first knot, a step takes no negative time
    end = np.concatenate([x[:, 1:-1], np.full((rows, 1), INF)], axis=1)
    low = np.rint(floor * PS).astype(np.int64)
    # Segment ``at`` is the first whose line ends above the floor: flat until the two cross, the line from there on.
    above = offset + rise * np.minimum(end, INF // np.maximum(rise, 1) // 2) > low[:, None]
    at = np.where(above.any(axis=1), above.argmax(axis=1), count - 1)
    row = np.arange(rows)
    line, step = offset[row, at], rise[row, at]
    cross = np.where(step > 0, -((line - low) // np.maximum(step, 1)), np.where(line >= low, 0, INF))
    bound = np.full((rows, count + 1), -1, np.int64)
    base, slope = np.zeros_like(bound), np.zeros_like(bound)
    j = np.arange(count)
    later = j[None, :] >= at[:, None]
    bound[:, 1:][later], base[:, 1:][later], slope[:, 1:][later] = end[later], offset[later], rise[later]
    bound[row, at], base[row, at] = np.minimum(cross, end[row, at]), low
    return bound, base, slope


def _one(table: StepTable, max_seqs: int, budget: int, unit: int, with_host: bool) -> dict[str, Any]:
    batches = np.arange(max_seqs + 1, dtype=float)
    graph = np.maximum.accumulate(np.maximum(interpolate(batches, table.sequences, table.graph_s), 0.0))
    attention = np.maximum(interpolate(batches, table.sequences, table.decode_attention_s), 0.0)
    host = table.host_decode_s + table.host_per_sequence_s * batches
    device = graph[:, None] + attention
    none = np.zeros(max_seqs + 1)
    if not with_host:
        decode = _rows(table.context, device, none, unit)
    elif table.overlap:
        decode = _rows(table.context, device, host, unit)
    else:
        decode = _rows(table.context, device + host[:, None], none, unit)
    tokens = np.arange(budget + max_seqs + 1, dtype=float)
    mixed = np.maximum(interpolate(tokens, table.tokens, table.mixed_s), 0.0)
    return {
        "decode": decode,
        "attention": _rows(table.context, attention, none, unit),
        "mixed": np.rint(np.maximum.accumulate(mixed) * PS).astype(np.int64),
        "host_decode": 0 if with_host else round(table.host_decode_s * PS),
        "host_mixed": round(table.host_mixed_s * PS),
        "host_sequence": round(table.host_per_sequence_s * PS),
        "overlap": int(table.overlap),
        "chunk": np.asarray(table.chunk, float),
        "past": np.asarray(table.past, float),
        "prefill": np.asarray(table.prefill_attention_s, float),
    }


_COMPILED: dict[tuple[int, int, int, int, bool], tuple[StepTable, dict[str, Any]]] = {}


def _compiled(table: StepTable, max_seqs: int, budget: int, unit: int, with_host: bool) -> dict[str, Any]:
    """``_one``, remembered for the last tables: a sweep asks for the same ones again and again."""
    key = (id(table), max_seqs, budget, unit, with_host)
    if key not in _COMPILED:
        while len(_COMPILED) >= 64:
            _COMPILED.pop(next(iter(_COMPILED)))
        _COMPILED[key] = (table, _one(table, max_seqs, budget, unit, with_host))  # the table is kept, so its id stays its own
    return _COMPILED[key][1]


def compile_tables(
    tables: Sequence[StepTable],
    max_seqs: Sequence[int],
    budgets: Sequence[int],
    units: Sequence[int],
    *,
    with_host: bool = True,
) -> Tables:
    """The loop's integer rows of several step tables.

    Args:
        tables: step times of each kind of replica.
        max_seqs: sequences a step may hold, each.
        budgets: tokens a step may hold, each.
        units: context units a token (1; 16 when a step may bring a fraction of a token).
        with_host: the rows of decode hold the host's time; else they are the device's alone, for runs in which the loop
            adds to them before it looks at the host.

    Raises:
        TrivetError: a token budget beyond what a table of whole tokens can hold.
    """
    for budget in budgets:
        if budget + max(max_seqs) > MAX_TOKENS_ROWS:
            raise TrivetError(
                f"{budget} tokens a step", field="max_num_batched_tokens", allowed=f"up to {MAX_TOKENS_ROWS}"
            )
    parts = [_compiled(*one, with_host) for one in zip(tables, max_seqs, budgets, units, strict=True)]
    batch = max(max_seqs) + 1
    out: dict[str, Any] = {}
    for name in ("decode", "attention"):
        width = max(part[name][0].shape[1] for part in parts)
        for i, (suffix, filler) in enumerate((("bound", INF), ("base", 0), ("slope", 0))):
            grid = np.full((len(parts), batch, width), filler, np.int64)
            for number, part in enumerate(parts):
                grid[number, : part[name][i].shape[0], : part[name][i].shape[1]] = part[name][i]
            out[f"{name}_{suffix}"] = grid
    length = max(part["mixed"].size for part in parts)
    out["mixed"] = np.stack([np.pad(part["mixed"], (0, length - part["mixed"].size), mode="edge") for part in parts])
    for name in ("host_decode", "host_mixed", "host_sequence", "overlap"):
        out[name] = np.array([part[name] for part in parts], np.int64)
    nq, np_ = max(part["chunk"].size for part in parts), max(part["past"].size for part in parts)
    out["chunk"], out["past"] = np.zeros((len(parts), nq)), np.zeros((len(parts), np_))
    out["prefill"] = np.zeros((len(parts), nq, np_))
    out["knots"] = np.array([[part["chunk"].size, part["past"].size] for part in parts], np.int64)
    for i, part in enumerate(parts):
        out["chunk"][i, : part["chunk"].size] = part["chunk"]
        out["past"][i, : part["past"].size] = part["past"]
        out["prefill"][i, : part["chunk"].size, : part["past"].size] = part["prefill"]
    return Tables(**out)
