"""Failures of replicas, servers, racks: who is down from when to when; and how clients retry."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from trivet.cloud.serving._loop_state import PS
from trivet.errors import TrivetError


@dataclass(frozen=True, slots=True)
class Outage:
    """``replicas`` (their numbers) are down from ``start_s`` for ``duration_s`` (inf = for good)."""

    start_s: float
    duration_s: float
    replicas: tuple[int, ...]

    def __post_init__(self) -> None:
        if not self.start_s >= 0:
            raise TrivetError(f"{self.start_s}", field="outage.start_s", allowed="0 or more")
        if not self.duration_s > 0:
            raise TrivetError(f"{self.duration_s}", field="outage.duration_s", allowed="above 0")


@dataclass(frozen=True, slots=True)
class Retries:
    """A request whose replica died is sent again after ``delay_s`` (detection and back-off), at most ``limit`` times."""

    limit: int = 3
    delay_s: float = 1.0


def outage_events(outages: Sequence[Outage], replicas: int) -> NDArray[np.int64]:
    """Rows of (picoseconds, replica, 0 down | 1 up), by time; overlapping outages of a replica are merged."""
    spans: dict[int, list[tuple[float, float]]] = {}
    for outage in outages:
        for replica in outage.replicas:
            if not 0 <= replica < replicas:
                raise TrivetError(f"no replica {replica}", field="outage.replicas", allowed=f"0 to {replicas - 1}")
            spans.setdefault(replica, []).append((outage.start_s, outage.start_s + outage.duration_s))
    rows: list[tuple[int, int, int]] = []
    for replica, pieces in spans.items():
        merged: list[list[float]] = []
        for start, end in sorted(pieces):
            if merged and start <= merged[-1][1]:
                merged[-1][1] = max(merged[-1][1], end)
            else:
                merged.append([start, end])
        for start, end in merged:
            rows.append((round(start * PS), replica, 0))
            if np.isfinite(end):
                rows.append((round(end * PS), replica, 1))
    return np.array(sorted(rows), np.int64).reshape(-1, 3)
