"""Attention-DP ranks that share every step: the split of a step table, and the loop's arrays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from trivet.cloud.deployment import StepTable
from trivet.cloud.serving import _loop_group as g
from trivet.cloud.serving._loop_state import PS
from trivet.cloud.serving._loop_time import Tables
from trivet.cloud.serving.faults import Outage

Floats = NDArray[np.float64]
MOST_ROWS = 1 << 23  # entries of a table over the tokens of all ranks


@lru_cache(maxsize=64)
def own_table(table: StepTable) -> StepTable:
    """The part of a step that a rank does alone: all but experts and their exchange."""
    if table.shared_graph_s is None or table.shared_mixed_s is None:
        return table
    return replace(table, graph_s=table.graph_s - table.shared_graph_s, mixed_s=table.mixed_s - table.shared_mixed_s)


def _over_total(knots: Floats, seconds: Floats | None, most: int, ranks: int) -> NDArray[np.int64]:
    """Picoseconds for 0 to ``most`` units over all ranks, from seconds at a mean a rank; coarser above ``MOST_ROWS``."""
    if seconds is None:
        return np.zeros(1, np.int64)
    from trivet.cloud.serving.steptime import interpolate

    mean = np.arange(min(most, MOST_ROWS) + 1) / ranks
    found = np.maximum(interpolate(mean, knots, seconds), 0.0)
    return np.asarray(np.rint(np.maximum.accumulate(found) * PS), np.int64)


def new_group(
    tables: Tables,
    kinds: Sequence[StepTable],
    counts: Sequence[int],
    ranks: Sequence[int],
    most: Sequence[tuple[int, int]],
) -> g.Group:
    """The groups of a fleet.

    Args:
        tables: compiled from ``own_table`` of each kind, without the host.
        kinds: the whole step tables.
        counts: ranks of each kind in all, a multiple of ``ranks``.
        ranks: ranks that share a step, of each kind.
        most: sequences and tokens that one rank's step may hold, of each kind.
    """
    decode = [
        _over_total(t.sequences, t.shared_graph_s, m[0] * r, r) for t, r, m in zip(kinds, ranks, most, strict=True)
    ]
    mixed = [_over_total(t.tokens, t.shared_mixed_s, m[1] * r, r) for t, r, m in zip(kinds, ranks, most, strict=True)]
    sizes = np.repeat(ranks, counts)
    starts = np.concatenate([[0], np.cumsum(counts)])
    first = np.concatenate(
        [start + np.arange(count) // size * size for start, count, size in zip(starts, counts, ranks, strict=False)]
    )
    idle = []
    for at in range(len(kinds)):
        row = min(1, tables.decode_bound.shape[1] - 1)
        segment = int(np.argmax(tables.decode_bound[at, row] > 0))
        idle.append(tables.decode_base[at, row, segment])
    return g.Group(
        first.astype(np.int64), sizes.astype(np.int64), np.zeros(sizes.size, np.int64), _padded(decode), _padded(mixed),
        np.array(idle, np.int64),
    )  # fmt: skip


def _padded(rows: Sequence[NDArray[np.int64]]) -> NDArray[np.int64]:
    width = max(row.size for row in rows)
    return np.stack([np.pad(row, (0, width - row.size), mode="edge") for row in rows])


def whole_groups(outages: Sequence[Outage], first: Sequence[int], ranks: Sequence[int]) -> tuple[Outage, ...]:
    """Outages widened: a rank that is down stops its engine."""
    out = []
    for outage in outages:
        down = {
            member
            for one in outage.replicas
            for member in (range(first[one], first[one] + ranks[one]) if 0 <= one < len(first) else (one,))
        }
        out.append(replace(outage, replicas=tuple(sorted(down))))
    return tuple(out)
