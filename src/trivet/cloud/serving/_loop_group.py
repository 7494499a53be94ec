"""Ranks in lock-step: the attention-DP ranks of one engine share every step, since the experts' exchange waits for all.

Each rank has a row of its own: queue, batch, blocks. A step of the group takes the longest of the ranks' own parts plus the
part that all do together (experts and exchange, for the tokens of all ranks), and not less than the slowest host. Over a run
of decode steps each rank's own part is a line; the largest of them holds until another one crosses it.

Every function takes ``group`` first; where it is None the compiler drops the body.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from trivet.cloud.serving._loop_jit import jit, seldom
from trivet.cloud.serving._loop_queue import set_event
from trivet.cloud.serving._loop_state import (
    IDLE,
    INF,
    MIXED,
    R_BATCH,
    R_D0,
    R_DECODE_TOKENS,
    R_DS,
    R_END,
    R_HOST,
    R_PREFILL_TOKENS,
    R_STALL,
    R_START,
    R_STATE,
    R_STEPS,
    R_TABLE,
)  # fmt: skip
from trivet.cloud.serving._loop_time import mixed_device_ps, mixed_host_ps, steps_ps


class Group(NamedTuple):
    """Which ranks belong together and what they do together. Picoseconds."""

    first: Any  # [R] first rank of a replica's group
    ranks: Any  # [R] ranks of a replica's group
    under_way: Any  # [R] at the first rank: whether a step runs
    decode: Any  # [tables, sequences of all ranks]
    mixed: Any  # [tables, tokens of all ranks]
    idle: Any  # [tables] own part of a rank that runs an empty step


@jit
def mixed_ps(
    group: Any, tables: Any, row: Any, batch: int, context: int, tokens: int, chunks: int, attention: int
) -> int:
    """A step with prefill: all of it, or a rank's own part, its host's being kept for ``join``."""
    device = mixed_device_ps(tables, row[R_TABLE], batch, context, tokens, attention)
    host = mixed_host_ps(tables, row[R_TABLE], batch, chunks)
    if group is None:
        return max(device, host) if tables.overlap[row[R_TABLE]] else device + host
    row[R_HOST] = host
    return device


@seldom
def _lines(group: Any, state: Any, tables: Any, first: int, time: int) -> Any:
    """Highest line of the ranks' own parts, (picoseconds, growth a step), the slowest host, and the steps that it holds."""
    top, rise, floor, limit = -1, 0, 0, INF
    for turn in range(2):
        for rank in range(first, first + group.ranks[first]):
            row = state.replicas[rank]
            own, growth = group.idle[row[R_TABLE]], 0
            if row[R_STATE] == MIXED:
                own, growth = row[R_END] - time, 0
                limit = 1
            elif row[R_STATE] != IDLE:
                own, growth = row[R_D0], row[R_DS]
                limit = min(limit, row[R_STEPS])
            if row[R_STATE] != IDLE:
                if tables.overlap[row[R_TABLE]]:
                    floor = max(floor, row[R_HOST])
                else:
                    own += row[R_HOST]
            if turn == 0:
                if own > top or (own == top and growth > rise):
                    top, rise = own, growth
            elif growth > rise:
                limit = min(limit, (top - own) // (growth - rise) + 1)
    return top, rise, floor, limit


@seldom
def _together(group: Any, state: Any, first: int) -> int:
    """The part of a step that all ranks do together; a rank without work brings one empty token."""
    sequences, tokens, prompts = 0, 0, 0
    for rank in range(first, first + group.ranks[first]):
        row = state.replicas[rank]
        if row[R_STATE] == IDLE:
            sequences += 1
            tokens += 1
            continue
        batch = 0 if row[R_STALL] else row[R_BATCH]
        sequences += batch
        tokens += row[R_PREFILL_TOKENS] + batch * row[R_DECODE_TOKENS]
        prompts += row[R_PREFILL_TOKENS]
    table = state.replicas[first, R_TABLE]
    if prompts > 0:
        return int(group.mixed[table, min(tokens, group.mixed.shape[1] - 1)])
    return int(group.decode[table, min(sequences, group.decode.shape[1] - 1)])


@seldom
def join(group: Any, state: Any, tables: Any, first: int, time: int) -> None:
    """All ranks have decided what they run from ``time`` on: plan their common steps."""
    busy = False
    for rank in range(first, first + group.ranks[first]):
        busy = busy or state.replicas[rank, R_STATE] != IDLE
    group.under_way[first] = int(busy)
    if not busy:
        set_event(state, first, INF)
        return
    top, rise, floor, limit = _lines(group, state, tables, first, time)
    start = top + _together(group, state, first)
    if start < floor:
        if rise > 0:
            limit = min(limit, (floor - start + rise - 1) // rise)
        start, rise = floor, 0
    for rank in range(first, first + group.ranks[first]):
        row = state.replicas[rank]
        row[R_START], row[R_D0], row[R_DS], row[R_STEPS] = time, start, rise, limit
        row[R_END] = time + steps_ps(row, limit)
    set_event(state, first, state.replicas[first, R_END])


@seldom
def cut_short(group: Any, state: Any, first: int, steps: int) -> None:
    """The ranks' common run ends after ``steps``."""
    for rank in range(first, first + group.ranks[first]):
        row = state.replicas[rank]
        row[R_STEPS] = steps
        row[R_END] = row[R_START] + steps_ps(row, steps)
    set_event(state, first, state.replicas[first, R_END])
