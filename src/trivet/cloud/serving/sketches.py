"""Mergeable sketches of latencies: counts in logarithmic bins, whose sums are the sketch of the union.

In the manner of DDSketch (Masson et al., VLDB 2019, arXiv 1908.10693) with its bit-shift mapping: an octave holds 64 equal
bins, so a value v in [l, u) told as ``2 l u / (l + u)`` is off by at most ``(u - l) / (u + l) <= 1 / 129`` = 0.78% of itself.
Bin 0 holds what is below 1 us (told as 0), the last one what is above 12 days. Counts and sums (whole microseconds, so that
adding them in any order gives the same) are kept for each hour of arrival and each group of replicas: sketches of hours, days,
customers and fleets merge by addition.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trivet.cloud.serving import _loop_state as k
from trivet.errors import TrivetError

Longs = NDArray[np.int64]
METRICS = ("ttft", "tpot", "e2e", "queue", "itl")
TTFT, TPOT, E2E, QUEUE, ITL = range(5)
COUNTERS = ("requests", "done", "refused", "failed", "within_slo", "input_tokens", "output_tokens", "cached_tokens",
    "preemptions", "retries")  # fmt: skip
OCTAVES = 40
BINS = 64 * OCTAVES + 1
RELATIVE_ERROR = 1 / 129
HOUR_S = 3600.0
COLUMNS = ("service", "group", "hour", "metric", "bin", "lower_s", "upper_s", "count", "sum_us")


def edges_s() -> NDArray[np.float64]:
    """Edges [BINS + 1] of the bins, seconds; the first is 0."""
    bits = (np.arange(BINS, dtype=np.int64) + k.ITL_OFFSET) << k.ITL_SHIFT
    return np.concatenate(([0.0], bits.view(np.float64) / k.PS))


def values_s() -> NDArray[np.float64]:
    """What each bin tells: the value within 1/129 of all that are in it; 0 for the first."""
    edge = edges_s()
    lower, upper = edge[:-1], edge[1:]
    return 2.0 * lower * upper / (lower + upper)


def bin_of(seconds: Any) -> Longs:
    """The bin of each latency."""
    ps = np.maximum(np.asarray(seconds, np.float64) * k.PS, 1.0)
    index = (ps.view(np.int64) >> k.ITL_SHIFT) - k.ITL_OFFSET + 1
    return np.clip(index, 0, BINS - 1)


class Cell:
    """One hour: ``counts`` and ``sums_us`` [groups, metrics, bins], ``counters`` [groups, COUNTERS].

    An hour that is over is packed: of its bins only those that hold something are kept, until something is added.
    """

    __slots__ = ("_counts", "_index", "_shape", "_sums", "counters")

    def __init__(self, counts: Longs, sums_us: Longs, counters: Longs) -> None:
        self._shape = counts.shape
        self._counts, self._sums, self.counters = counts, sums_us, counters
        self._index: Longs | None = None

    @classmethod
    def empty(cls, groups: int) -> Cell:
        shape = (groups, len(METRICS), BINS)
        return cls(np.zeros(shape, np.int64), np.zeros(shape, np.int64), np.zeros((groups, len(COUNTERS)), np.int64))

    @property
    def counts(self) -> Longs:
        return self._whole(self._counts)

    @property
    def sums_us(self) -> Longs:
        return self._whole(self._sums)

    def _whole(self, values: Longs) -> Longs:
        if self._index is None:
            return values
        out = np.zeros(int(np.prod(self._shape)), np.int64)
        out[self._index] = values
        return out.reshape(self._shape)

    def pack(self) -> None:
        """Keep only the bins that hold something."""
        if self._index is None:
            index = np.flatnonzero(self._counts)
            self._counts, self._sums, self._index = self._counts.ravel()[index], self._sums.ravel()[index], index

    def open(self) -> None:
        """All bins again, to be added to."""
        if self._index is not None:
            self._counts, self._sums, self._index = self.counts, self.sums_us, None

    def add(self, other: Cell) -> None:
        self.open()
        self._counts += other.counts
        self._sums += other.sums_us
        self.counters += other.counters

    @property
    def nbytes(self) -> int:
        return int(
            self._counts.nbytes
            + self._sums.nbytes
            + self.counters.nbytes
            + (self._index.nbytes if self._index is not None else 0)
        )


@dataclass(slots=True, eq=False)
class Sketches:
    """Sketches by hour of arrival and group of replicas, and the counters beside them.

    Args:
        groups: names; requests that no replica ever took count in the first.
        service: a name for whose requests they are.
        cells: by hour.
    """

    groups: tuple[str, ...] = ("",)
    service: str = ""
    cells: dict[int, Cell] = field(default_factory=dict)

    def cell(self, hour: int) -> Cell:
        """The cell of an hour, ready to be added to."""
        if hour not in self.cells:
            self.cells[hour] = Cell.empty(len(self.groups))
        self.cells[hour].open()
        return self.cells[hour]

    def pack(self, before: int) -> None:
        """Pack the hours before one."""
        for hour, cell in self.cells.items():
            if hour < before:
                cell.pack()

    def add_rows(
        self,
        rows: Longs,
        group: Longs,
        late_ps: Longs,
        ttft_slo_s: float | None = None,
        tpot_slo_s: float | None = None,
    ) -> None:
        """Count finished requests.

        Args:
            rows: the loop's, columns ``O_*``.
            group: index of its group, for each replica.
            late_ps: what a first token takes outside the scheduler, for each replica.
            ttft_slo_s, tpot_slo_s: the limits of ``within_slo``.
        """
        if not rows.shape[0]:
            return
        from trivet.cloud.serving._loop_sketch import fill

        width = round(HOUR_S * k.PS)
        first = int(rows[:, k.O_ARRIVAL].min()) // width
        count = int(rows[:, k.O_ARRIVAL].max()) // width - first + 1
        parts = [Cell.empty(len(self.groups)) for _ in range(count)]
        counts = np.stack([p.counts for p in parts])
        sums, counters = np.stack([p.sums_us for p in parts]), np.stack([p.counters for p in parts])
        limits = [k.INF if v is None else round(v * k.PS) for v in (ttft_slo_s, tpot_slo_s)]
        fill(rows, group, late_ps, first, width, limits[0], limits[1], counts, sums, counters)
        for at in range(count):
            if counters[at].any():
                self.cell(first + at).add(Cell(counts[at], sums[at], counters[at]))
        self.pack(first + count - 2)

    def add_gaps(self, hour: int, gaps: Longs, group: int = 0) -> None:
        """Inter-token gaps of the loop's own histogram, which has the same bins from 1 us on."""
        cell = self.cell(hour)  # open, so these are its own arrays
        cell.counts[group, ITL, 1 : 1 + gaps.size] += gaps
        # The loop keeps no sum of the gaps; the bins' own values are within 1/129 of it.
        cell.sums_us[group, ITL, 1 : 1 + gaps.size] += np.rint(gaps * values_s()[1 : 1 + gaps.size] * 1e6).astype(
            np.int64
        )

    def total(self, metric: int) -> tuple[Longs, Longs]:
        """Counts and sums [bins] over all hours and groups."""
        counts, sums = np.zeros(BINS, np.int64), np.zeros(BINS, np.int64)
        for cell in self.cells.values():
            counts += cell.counts[:, metric].sum(axis=0)
            sums += cell.sums_us[:, metric].sum(axis=0)
        return counts, sums

    def counters(self) -> dict[str, int]:
        """Totals of ``COUNTERS``."""
        whole = sum((cell.counters.sum(axis=0) for cell in self.cells.values()), np.zeros(len(COUNTERS), np.int64))
        return {name: int(v) for name, v in zip(COUNTERS, whole, strict=True)}

    def merge(self, other: Sketches) -> Sketches:
        """The sketches of both; raises TrivetError when their groups differ."""
        if self.groups != other.groups:
            raise TrivetError(f"{self.groups} and {other.groups} differ", field="groups")
        out = Sketches(self.groups, self.service)
        for part in (self, other):
            for hour, cell in part.cells.items():
                out.cell(hour).add(cell)
        return out

    def table(self) -> dict[str, NDArray[Any]]:
        """Columns ``COLUMNS`` of ``sketches.parquet``: one row a bin that holds something."""
        edge = edges_s()
        parts: list[tuple[NDArray[Any], ...]] = []
        for hour in sorted(self.cells):
            counts, sums = self.cells[hour].counts, self.cells[hour].sums_us
            g, m, b = np.nonzero(counts)
            parts.append((g, np.full(g.size, hour), m, b, counts[g, m, b], sums[g, m, b]))
        if not parts:
            parts.append((np.zeros(0, np.int64),) * 6)
        g, at, m, b, count, total = (np.concatenate(column) for column in zip(*parts, strict=True))
        return {
            "service": np.full(g.size, self.service, dtype=object), "group": np.array(self.groups, dtype=object)[g],
            "hour": at, "metric": np.array(METRICS, dtype=object)[m], "bin": b, "lower_s": edge[b],
            "upper_s": edge[b + 1], "count": count, "sum_us": total,
        }  # fmt: skip

    def hours(self) -> list[dict[str, Any]]:
        """Counters by hour, for ``summary.json``."""
        return [
            {"hour": hour, **{n: int(v) for n, v in zip(COUNTERS, self.cells[hour].counters.sum(axis=0), strict=True)}}
            for hour in sorted(self.cells)
        ]


def merged(tables: Iterable[Mapping[str, NDArray[Any]]], by: Iterable[str] = ()) -> dict[str, NDArray[Any]]:
    """Tables of sketches added up: one row for each value of the ``by`` columns, metric and bin.

    ``by`` may name service, group and hour; what it leaves out is added over. Raises TrivetError on other names.
    """
    kept = list(by)
    unknown = [name for name in kept if name not in COLUMNS[:3]]
    if unknown:
        raise TrivetError(f"unknown {unknown[0]!r}", field="by", allowed=COLUMNS[:3])
    parts = list(tables)
    if not parts:
        raise TrivetError("nothing to merge", field="tables")
    keys = [*kept, "metric", "bin"]
    columns = {name: np.concatenate([np.asarray(t[name]) for t in parts]) for name in (*keys, "count", "sum_us")}
    code = np.zeros(columns["bin"].size, np.int64)
    uniques = {}
    for name in keys:
        uniques[name], inverse = np.unique(columns[name], return_inverse=True)
        code = code * max(uniques[name].size, 1) + inverse
    every, inverse = np.unique(code, return_inverse=True)
    out: dict[str, NDArray[Any]] = {}
    rest = every
    for name in reversed(keys):
        rest, at = np.divmod(rest, max(uniques[name].size, 1))
        out[name] = uniques[name][at]
    edge = edges_s()
    out = {name: out[name] for name in keys}
    out |= {"lower_s": edge[out["bin"]], "upper_s": edge[out["bin"] + 1]}
    for name in ("count", "sum_us"):
        out[name] = np.zeros(every.size, np.int64)
        np.add.at(out[name], inverse, columns[name])
    return out


def quantile(counts: Longs, share: float) -> float:
    """The value below which ``share`` of the counts lie, within 1/129 of the true one. NaN of nothing."""
    total = int(counts.sum())
    if not total:
        return float("nan")
    rank = min(max(int(np.ceil(share * total)), 1), total)
    return float(values_s()[int(np.searchsorted(np.cumsum(counts), rank))])


def spread(counts: Longs, sums_us: Longs, percentiles: Iterable[int]) -> dict[str, float | None]:
    """Mean (of the sums), percentiles and maximum (within 1/129)."""
    total = int(counts.sum())
    if not total:
        return {"mean": None, **{f"p{p}": None for p in percentiles}, "max": None}
    top = int(np.flatnonzero(counts)[-1])
    return {
        "mean": float(sums_us.sum() / 1e6 / total),
        **{f"p{p}": quantile(counts, p / 100) for p in percentiles},
        "max": float(values_s()[top]),
    }
