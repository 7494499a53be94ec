"""Failures of replicas, servers, racks: who is down from when to when; and how clients retry."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from trivet.cloud.serving._loop_links import WHOLE, Links
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
class LinkOutage:
    """The links of ``replicas`` (prefill ones, their numbers) do ``factor`` of their rate from ``start_s`` for ``duration_s``.

    With 0 they are down: KV that is on its way waits. Where several outages overlap the lowest factor holds.
    """

    start_s: float
    duration_s: float
    replicas: tuple[int, ...]
    factor: float = 0.0

    def __post_init__(self) -> None:
        if not self.start_s >= 0:
            raise TrivetError(f"{self.start_s}", field="outage.start_s", allowed="0 or more")
        if not self.duration_s > 0:
            raise TrivetError(f"{self.duration_s}", field="outage.duration_s", allowed="above 0")
        if not 0 <= self.factor < 1:
            raise TrivetError(f"{self.factor}", field="outage.factor", allowed="0 to below 1")
        if not round(self.factor * WHOLE) and not np.isfinite(self.duration_s):
            raise TrivetError("KV would wait for ever", field="outage.duration_s", allowed="a finite time for links")


def link_rates(outages: Sequence[LinkOutage], replicas: int) -> Links:
    """The loop's arrays of ``outages``; rates are rounded to 1/1024."""
    offsets, times, rates = np.zeros(replicas + 1, np.int64), [], []
    for outage in outages:
        for replica in outage.replicas:
            if not 0 <= replica < replicas:
                raise TrivetError(f"no replica {replica}", field="outage.links", allowed=f"0 to {replicas - 1}")
    for replica in range(replicas):
        own = [o for o in outages if replica in o.replicas]
        ends = {round(t * PS) for o in own for t in (o.start_s, o.start_s + o.duration_s) if np.isfinite(t)}
        for time in sorted(ends):
            over = (o for o in own if round(o.start_s * PS) <= time < _end_ps(o))
            times.append(time)
            rates.append(min((round(o.factor * WHOLE) for o in over), default=WHOLE))
        offsets[replica + 1] = len(times)
    return Links(offsets, np.array(times, np.int64), np.array(rates, np.int64))


def _end_ps(outage: LinkOutage) -> float:
    end = outage.start_s + outage.duration_s
    return round(end * PS) if np.isfinite(end) else np.inf


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
