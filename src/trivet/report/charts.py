"""Charts as self-contained figures, and the page that holds them.

Every chart function returns an HTML ``<figure>`` with an inline SVG that follows the reader's light or dark
scheme; ``page`` puts figures, tables and text into one file without any outside resource. Numbers that are
not finite leave a gap. Hovering over a mark shows its value.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from trivet.errors import TrivetError
from trivet.report import svg
from trivet.report.bars import bar_chart, heatmap, tornado_chart
from trivet.report.page import Section, html_table, kpis, page
from trivet.report.svg import (
    BOTTOM,
    COLOURS,
    HEIGHT,
    RIGHT,
    TOP,
    WIDTH,
    Format,
    escape,
    number,
    percent,
    seconds,
)

__all__ = [
    "Section",
    "Series",
    "bar_chart",
    "cdf_chart",
    "heatmap",
    "html_table",
    "kpis",
    "line_chart",
    "number",
    "page",
    "percent",
    "scatter_chart",
    "seconds",
    "tornado_chart",
]

MOST_POINTS = 1500  # of one drawn series; more only costs the reader's browser


@dataclass(frozen=True, slots=True)
class Series:
    """One line or cloud of points.

    Args:
        x, y: equally long sequences of numbers.
        lo, hi: bounds of y: a band around a line, error bars on points.
        labels: what hovering over each point says (the numbers by default).
        dashed: drawn dashed (a limit, a forecast, a peer).
        colour: slot 0-7 of the palette; by position where None.
    """

    name: str
    x: Any
    y: Any
    lo: Any = None
    hi: Any = None
    labels: Sequence[str] | None = None
    dashed: bool = False
    colour: int | None = None

    def __post_init__(self) -> None:
        for field in ("x", "y", "lo", "hi"):
            raw = getattr(self, field)
            if raw is not None:
                object.__setattr__(self, field, np.asarray(raw, float))
        sizes = {len(v) for v in (self.x, self.y, self.lo, self.hi, self.labels) if v is not None}
        if len(sizes) > 1:
            raise TrivetError(f"columns of {sorted(sizes)} entries", field=f"series {self.name!r}")
        if (self.lo is None) != (self.hi is None):
            raise TrivetError("lo and hi come together", field=f"series {self.name!r}")


def _colour(series: Series, at: int) -> str:
    return f"c{(at if series.colour is None else series.colour) % COLOURS}"


def _everything(series: Iterable[Series], more: Iterable[float] = ()) -> list[float]:
    values = [float(v) for v in more]
    for s in series:
        values += s.y.tolist()
        if s.lo is not None and s.hi is not None:
            values += s.lo.tolist() + s.hi.tolist()
    return values


def _thin(x: Any, y: Any) -> tuple[Any, Any]:
    """At most MOST_POINTS points that keep every bucket's extremes, so that no spike is lost."""
    if len(x) <= MOST_POINTS:
        return x, y
    bounds = np.linspace(0, len(x), MOST_POINTS // 2 + 1).astype(int)
    keep = []
    filled = np.where(np.isfinite(y), y, -np.inf)
    for a, b in pairwise(bounds):
        keep += sorted({a + int(filled[a:b].argmin()), a + int(filled[a:b].argmax())})
    return x[keep], y[keep]


def _path(points: Iterable[tuple[float, float]]) -> str:
    return "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points)


def _runs(x: svg.Scale, y: svg.Scale, xs: Any, ys: Any) -> list[list[tuple[float, float]]]:
    """Pixel points, broken where a value cannot be drawn."""
    runs: list[list[tuple[float, float]]] = [[]]
    for a, b in zip(xs, ys, strict=True):
        if x.inside(a) and y.inside(b):
            runs[-1].append((x(a), y(b)))
        elif runs[-1]:
            runs.append([])
    return [run for run in runs if run]


def _axes(
    series: Sequence[Series],
    *,
    x_log: bool,
    y_log: bool,
    y_zero: bool,
    y_label: str,
    x_format: Format,
    y_format: Format,
    y_more: Iterable[float] = (),
    x_more: Iterable[float] = (),
    tight: bool = True,
) -> tuple[svg.Scale, svg.Scale]:
    y = svg.scale(_everything(series, y_more), HEIGHT - BOTTOM, TOP, log=y_log, zero=y_zero and not y_log, most=5)
    left = svg.left_margin([y_format(t) for t in y.ticks], bool(y_label), 44.0)
    xs = [v for s in series for v in s.x.tolist()] + list(x_more)
    x = svg.scale(xs, left, WIDTH - RIGHT, log=x_log, time=x_format is seconds, tight=tight, most=8)
    return x, y


def _references(x: svg.Scale, y: svg.Scale, h_lines: Mapping[str, float], v_lines: Mapping[str, float]) -> str:
    parts = []
    for name, value in h_lines.items():
        parts.append(svg.line(x.start, y(value), x.end, y(value), "ref"))
        parts.append(svg.text(x.end - 4, y(value) - 5, name, "n", "end"))
    for name, value in v_lines.items():
        parts.append(svg.line(x(value), y.start, x(value), y.end, "ref"))
        right = x(value) > (x.start + x.end) / 2
        parts.append(svg.text(x(value) + (-5 if right else 5), y.start - 6, name, "n", "end" if right else "start"))
    return "".join(parts)


def line_chart(
    series: Sequence[Series],
    *,
    title: str = "",
    x_label: str = "",
    y_label: str = "",
    x_log: bool = False,
    y_log: bool = False,
    x_format: Format = number,
    y_format: Format = number,
    y_zero: bool = True,
    step: bool = False,
    stacked: bool = False,
    h_lines: Mapping[str, float] | None = None,
    v_lines: Mapping[str, float] | None = None,
    note: str = "",
) -> str:
    """Lines, with a band where a series has ``lo``/``hi``; ``stacked`` areas need equal x and no gaps.

    ``h_lines``/``v_lines``: reference lines by name (an SLO, a limit). ``x_format=seconds`` puts ticks on
    minutes, hours, days.
    """
    if stacked:
        series = _stack(series)
    h_lines, v_lines = h_lines or {}, v_lines or {}
    x, y = _axes(
        series,
        x_log=x_log,
        y_log=y_log,
        y_zero=y_zero or stacked,
        y_label=y_label,
        x_format=x_format,
        y_format=y_format,
        y_more=h_lines.values(),
        x_more=v_lines.values(),
    )
    parts = [svg.frame(x, y, x_label, y_label, x_format, y_format)]
    for at, s in enumerate(series):
        colour = _colour(s, at)
        if s.lo is not None and s.hi is not None:
            ok = np.array(
                [x.inside(a) and y.inside(b) and y.inside(c) for a, b, c in zip(s.x, s.lo, s.hi, strict=True)],
                bool,
            )
            top = [(x(a), y(b)) for a, b in zip(s.x[ok], s.hi[ok], strict=True)]
            low = [(x(a), y(b)) for a, b in zip(s.x[ok], s.lo[ok], strict=True)]
            if top:
                css = "area" if stacked else "band"
                tip = f"<title>{escape(s.name)}</title>"
                parts.append(f'<path class="{css} {colour}" d="{_path(top + low[::-1])}Z">{tip}</path>')
        if not stacked:
            for run in _runs(x, y, *_thin(s.x, s.y)):
                points = run if not step else _steps(run)
                parts.append(f'<path class="s {colour}{" dashed" if s.dashed else ""}" d="{_path(points)}"/>')
            parts.append(
                _dots(x, y, s, colour, x_format, y_format) if len(s.x) <= 40 and not (step or s.dashed) else ""
            )
    parts.append(_references(x, y, h_lines, v_lines))
    kinds = [_colour(s, i) + (" box" if stacked else " dashed" if s.dashed else "") for i, s in enumerate(series)]
    return svg.figure(title, "".join(parts), legend=svg.legend([s.name for s in series], kinds), note=note)


def _stack(series: Sequence[Series]) -> list[Series]:
    base: Any = 0.0
    stacked = []
    for s in series:
        thin_x, thin_y = s.x, s.y
        stacked.append(Series(s.name, thin_x, base + thin_y, base + 0.0 * thin_y, base + thin_y, colour=s.colour))
        base = base + thin_y
    return stacked


def _steps(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    path = [points[0]]
    for (_, y0), (x1, y1) in pairwise(points):
        path += [(x1, y0), (x1, y1)]
    return path


def _dots(
    x: svg.Scale,
    y: svg.Scale,
    s: Series,
    colour: str,
    x_format: Format,
    y_format: Format,
    radius: float = 3.4,
) -> str:
    parts = []
    for i, (a, b) in enumerate(zip(s.x, s.y, strict=True)):
        if not (x.inside(a) and y.inside(b)):
            continue
        if s.lo is not None and s.hi is not None and y.inside(s.lo[i]) and y.inside(s.hi[i]):
            parts.append(svg.line(x(a), y(s.lo[i]), x(a), y(s.hi[i]), f"e {colour}"))
        tip = s.labels[i] if s.labels is not None else f"{s.name}: {x_format(a)}, {y_format(b)}".lstrip(": ")
        place = f'cx="{x(a):.1f}" cy="{y(b):.1f}" r="{radius}"'
        parts.append(f'<circle class="p {colour}" {place}><title>{escape(tip)}</title></circle>')
    return "".join(parts)


def scatter_chart(
    series: Sequence[Series],
    *,
    title: str = "",
    x_label: str = "",
    y_label: str = "",
    x_log: bool = False,
    y_log: bool = False,
    x_format: Format = number,
    y_format: Format = number,
    y_zero: bool = False,
    frontier: Sequence[tuple[float, float]] | None = None,
    diagonal: bool = False,
    names: Mapping[str, tuple[float, float]] | None = None,
    note: str = "",
) -> str:
    """Points with error bars.

    Args:
        frontier: points of a Pareto frontier, joined by a line in order of x.
        diagonal: y = x and its +-20% (predicted against measured).
        names: short texts put next to points.
    """
    ends = [float(v) for s in series for v in (*s.x, *s.y)] if diagonal else []
    x, y = _axes(
        series,
        x_log=x_log,
        y_log=y_log,
        y_zero=y_zero,
        y_label=y_label,
        x_format=x_format,
        y_format=y_format,
        y_more=ends,
        x_more=ends,
        tight=False,
    )
    parts = [svg.frame(x, y, x_label, y_label, x_format, y_format)]
    if diagonal:
        lo, hi = max(x.lo, y.lo), min(x.hi, y.hi)
        grid = np.geomspace(lo, hi, 40) if x_log and y_log else np.linspace(lo, hi, 40)
        parts.append(f'<path class="ref" fill="none" d="{_path((x(v), y(v)) for v in grid)}"/>')
        edge = [(x(v), min(max(y(1.2 * v), y.end), y.start)) for v in grid if v > 0]
        edge += [(x(v), min(max(y(0.8 * v), y.end), y.start)) for v in grid[::-1] if v > 0]
        parts.append(f'<path class="band c7" d="{_path(edge)}Z"/>' if edge else "")
    if frontier:
        points = [(x(a), y(b)) for a, b in sorted(frontier) if x.inside(a) and y.inside(b)]
        parts.append(f'<path class="s c7 dashed" d="{_path(points)}"/>' if points else "")
    dropped = 0
    for at, s in enumerate(series):
        shown = _sample(s)
        dropped += len(s.x) - len(shown.x)
        parts.append(_dots(x, y, shown, _colour(s, at), x_format, y_format, 4.2 if len(shown.x) < 200 else 2.6))
    for name, (a, b) in (names or {}).items():
        right = x(a) > x.end - 7.0 * len(name) - 12
        parts.append(svg.text(x(a) + (-8 if right else 8), y(b) - 7, name, "n", "end" if right else "start"))
    kinds = [f"{_colour(s, i)} dot" for i, s in enumerate(series)]
    labels = [s.name for s in series]
    if frontier:
        labels, kinds = [*labels, "frontier"], [*kinds, "c7 dashed"]
    if dropped:
        note = f"{note} {dropped:,} further points are not drawn.".strip()
    return svg.figure(title, "".join(parts), legend=svg.legend(labels, kinds), note=note)


def _sample(s: Series) -> Series:
    """Evenly spaced points of a cloud too large to draw."""
    if len(s.x) <= 2 * MOST_POINTS:
        return s
    keep = np.linspace(0, len(s.x) - 1, 2 * MOST_POINTS).astype(int)
    part = [None if v is None else v[keep] for v in (s.lo, s.hi)]
    labels = None if s.labels is None else [s.labels[i] for i in keep]
    return Series(s.name, s.x[keep], s.y[keep], part[0], part[1], labels, s.dashed, s.colour)


def cdf_chart(
    samples: Mapping[str, Sequence[float] | Any],
    *,
    title: str = "",
    x_label: str = "",
    x_log: bool = False,
    x_format: Format = number,
    limit: float | None = None,
    limit_name: str = "SLO",
    tail: bool = False,
    note: str = "",
) -> str:
    """Share of samples at or below x; ``limit`` draws a line; ``tail``: share above x, logarithmic."""
    series = []
    for name, raw in samples.items():
        values = np.sort(np.asarray(raw, float))
        values = values[np.isfinite(values)]
        if values.size == 0:
            continue
        share = np.arange(1, values.size + 1) / values.size
        if values.size > MOST_POINTS:  # evenly in the body, every one of the far tail
            keep = np.unique(
                np.concatenate(
                    (
                        np.linspace(0, values.size - 1, MOST_POINTS - 200).astype(int),
                        np.arange(values.size - 200, values.size),
                    )
                )
            )
            values, share = values[keep], share[keep]
        if tail:
            values, share = values[:-1], 1.0 - share[:-1]
        series.append(Series(name, values, share))
    if not series:
        raise TrivetError("no finite sample", field="samples")
    return line_chart(
        series,
        title=title,
        x_label=x_label,
        y_label="share above" if tail else "share at or below",
        x_log=x_log,
        y_log=tail,
        x_format=x_format,
        y_format=percent,
        step=True,
        v_lines={} if limit is None else {limit_name: limit},
        note=note,
    )
