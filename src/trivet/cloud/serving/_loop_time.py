"""Step times in the hot loop: integer rows, their closed-form sums, and the inverse of such a sum."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from trivet.cloud.serving._loop_jit import jit, seldom
from trivet.cloud.serving._loop_state import (
    R_BATCH,
    R_CONTEXT,
    R_D0,
    R_DS,
    R_GAIN,
    R_START,
    R_TABLE,
)  # fmt: skip


class Tables(NamedTuple):
    """Step times of every kind of replica in a run; see ``steptime.compile_tables``. All picoseconds."""

    decode_bound: Any  # [tables, batch, segments] context units where a segment ends (exclusive)
    decode_base: Any  # [tables, batch, segments] time = base + slope * context units
    decode_slope: Any
    attention_bound: Any  # the same for decode attention alone, used in mixed steps
    attention_base: Any
    attention_slope: Any
    mixed: Any  # [tables, tokens]
    host_decode: Any  # [tables] 0 where it is in the rows of decode already
    host_mixed: Any  # [tables]
    host_sequence: Any  # [tables]
    overlap: Any  # [tables]
    chunk: Any  # [tables, knots] tokens
    past: Any  # [tables, knots] tokens
    prefill: Any  # [tables, chunk knots, past knots] seconds
    knots: Any  # [tables, 2] how many of the knots are in use


@jit
def lerp_index(knots: Any, count: int, x: float) -> int:
    """Index of the segment that holds ``x``; the first below the range, the last above it."""
    i = 0
    while i < count - 2 and x >= knots[i + 1]:
        i += 1
    return i


@seldom
def prefill_attention_ps(tables: Any, table: int, tokens: int, past: int) -> int:
    """Attention of one chunk of ``tokens`` after ``past`` cached ones, bilinear between knots, not below zero."""
    chunk, pasts, grid = tables.chunk[table], tables.past[table], tables.prefill[table]
    nq, np_ = tables.knots[table, 0], tables.knots[table, 1]
    i, j = lerp_index(chunk, nq, float(tokens)), lerp_index(pasts, np_, float(past))
    if nq > 1:
        u = (tokens - chunk[i]) / (chunk[i + 1] - chunk[i])
        i2 = i + 1
    else:
        u, i2 = 0.0, i
    if np_ > 1:
        v = (past - pasts[j]) / (pasts[j + 1] - pasts[j])
        j2 = j + 1
    else:
        v, j2 = 0.0, j
    low = grid[i, j] * (1.0 - v) + grid[i, j2] * v
    high = grid[i2, j] * (1.0 - v) + grid[i2, j2] * v
    seconds = low * (1.0 - u) + high * u
    return int(seconds * 1e12 + 0.5) if seconds > 0.0 else 0


@jit
def mixed_device_ps(tables: Any, table: int, batch: int, context: int, tokens: int, attention: int) -> int:
    """The device's part of a step with prefill: ``tokens`` in all, the chunks' attention takes ``attention``."""
    device = tables.mixed[table, min(tokens, tables.mixed.shape[1] - 1)] + attention
    if batch > 0:
        j = 0
        while context >= tables.attention_bound[table, batch, j]:
            j += 1
        device += tables.attention_base[table, batch, j] + tables.attention_slope[table, batch, j] * context
    return device


@jit
def mixed_host_ps(tables: Any, table: int, batch: int, chunks: int) -> int:
    """The host's part, for ``batch`` decode and ``chunks`` prefill sequences."""
    return tables.host_mixed[table] + tables.host_sequence[table] * (batch + chunks)


@jit
def plan_decode_ps(tables: Any, row: Any) -> int:
    """Set the first step's time and its growth in ``row``; return the steps left in this segment."""
    batch, context = row[R_BATCH], row[R_CONTEXT]
    bound = tables.decode_bound[row[R_TABLE], batch]
    j = 0
    while context >= bound[j]:
        j += 1
    slope = tables.decode_slope[row[R_TABLE], batch, j]
    growth = batch * row[R_GAIN]
    row[R_D0] = tables.decode_base[row[R_TABLE], batch, j] + slope * context
    row[R_DS] = slope * growth
    return (bound[j] - context + growth - 1) // growth


@jit
def steps_ps(row: Any, steps: int) -> int:
    """Time of the next ``steps`` decode steps: an arithmetic series, exact in integers."""
    return steps * row[R_D0] + row[R_DS] * (steps * (steps - 1) // 2)


@jit
def steps_until(row: Any, time: int, limit: int) -> int:
    """Fewest steps (at least 1, at most ``limit``) after which the clock stands at or past ``time``."""
    wanted = time - row[R_START]
    if wanted <= row[R_D0]:
        return 1
    if row[R_DS] == 0:
        steps = int(wanted // row[R_D0])
    else:
        half = 0.5 * row[R_DS]
        b = row[R_D0] - half
        steps = int((math.sqrt(b * b + 4.0 * half * wanted) - b) / (2.0 * half))
    steps = min(max(steps, 1), limit)
    while steps < limit and steps_ps(row, steps) < wanted:
        steps += 1
    while steps > 1 and steps_ps(row, steps - 1) >= wanted:
        steps -= 1
    return steps
