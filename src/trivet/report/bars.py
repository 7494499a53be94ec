"""Bars, tornados and heat maps; see ``charts`` for lines, points and the page."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from trivet.errors import TrivetError
from trivet.report import svg
from trivet.report.svg import BOTTOM, COLOURS, RIGHT, TOP, WIDTH, Format, escape, number


def bar_chart(
    categories: Sequence[str],
    values: Mapping[str, Sequence[float]],
    *,
    title: str = "",
    value_label: str = "",
    stacked: bool = False,
    errors: Mapping[str, tuple[Sequence[float], Sequence[float]]] | None = None,
    value_format: Format = number,
    note: str = "",
) -> str:
    """Horizontal bars: readable names however long. ``values``: series name -> one number a category.

    ``errors``: series name -> (lo, hi) of each bar, not for stacked bars.
    """
    for name, row in values.items():
        if len(row) != len(categories):
            raise TrivetError(f"{len(row)} values for {len(categories)} categories", field=f"series {name!r}")
    rows = {n: np.nan_to_num(np.asarray(v, float)) for n, v in values.items()}
    totals = sum(rows.values()) if stacked else np.concatenate(list(rows.values()))
    bounds = [float(v) for lo, hi in (errors or {}).values() for v in (*lo, *hi)]
    left = min(300.0, svg.left_margin(categories, False, 60.0))
    lanes = 1 if stacked else len(rows)
    pitch = max(24.0, 14.0 * lanes + 10.0)
    height = TOP + BOTTOM + pitch * len(categories)
    x = svg.scale([*np.asarray(totals).tolist(), *bounds], left, WIDTH - 64, zero=True, most=6)
    parts = [_upright(x, TOP, height - BOTTOM, value_label, value_format, height)]
    thick = (pitch - 8.0) / lanes
    for i, category in enumerate(categories):
        middle = TOP + pitch * (i + 0.5)
        parts.append(svg.text(left - 8, middle + 4, _short(category, left), "n", "end"))
        base, y = 0.0, TOP + pitch * i + 4.0
        for at, (name, row) in enumerate(rows.items()):
            value = float(row[i])
            start, end = (x(base), x(base + value)) if stacked else (x(0.0), x(value))
            tip = f"{category} · {name}: {value_format(value)}" if name else f"{category}: {value_format(value)}"
            parts.append(
                _bar(
                    min(start, end),
                    y,
                    abs(end - start),
                    thick - (0 if stacked else 1.5),
                    f"c{at % COLOURS}",
                    tip,
                )
            )
            if errors and name in errors and not stacked:
                lo, hi = errors[name][0][i], errors[name][1][i]
                middle_y = y + thick / 2
                parts.append(svg.line(x(lo), middle_y, x(hi), middle_y, "w"))
                parts += [svg.line(x(v), middle_y - 3, x(v), middle_y + 3, "w") for v in (lo, hi)]
                end = max(end, x(hi))
            if not stacked:
                parts.append(svg.text(max(end, start) + 6, y + thick / 2 + 4, value_format(value), anchor="start"))
                y += thick
            base += value
        if stacked:
            parts.append(svg.text(x(base) + 6, middle + 4, value_format(base), anchor="start"))
    kinds = [f"c{i % COLOURS} box" for i in range(len(rows))]
    return svg.figure(title, "".join(parts), legend=svg.legend(list(rows), kinds), note=note, height=height)


def tornado_chart(
    labels: Sequence[str],
    low: Sequence[float],
    high: Sequence[float],
    base: float,
    *,
    title: str = "",
    value_label: str = "",
    value_format: Format = number,
    low_name: str = "at the low end",
    high_name: str = "at the high end",
    note: str = "",
) -> str:
    """What each unknown does: the answer at its low and high end around ``base``, widest on top."""
    order = sorted(range(len(labels)), key=lambda i: -(max(low[i], high[i], base) - min(low[i], high[i], base)))
    left, pitch = min(300.0, svg.left_margin(labels, False, 60.0)), 28.0
    height = TOP + BOTTOM + pitch * len(labels)
    x = svg.scale([base, *low, *high], left + 46, WIDTH - 64, most=6)
    parts = [_upright(x, TOP, height - BOTTOM, value_label, value_format, height)]
    for row, i in enumerate(order):
        y = TOP + pitch * row
        parts.append(svg.text(left - 8, y + pitch / 2 + 4, _short(labels[i], left), "n", "end"))
        for value, colour, name in ((low[i], "c0", low_name), (high[i], "c1", high_name)):
            start, end = sorted((x(base), x(value)))
            parts.append(
                _bar(
                    start,
                    y + 5,
                    end - start,
                    pitch - 10,
                    colour,
                    f"{labels[i]} {name}: {value_format(value)}",
                )
            )
        ends = sorted((low[i], high[i]))
        parts.append(svg.text(x(min(ends[0], base)) - 6, y + pitch / 2 + 4, value_format(ends[0]), anchor="end"))
        parts.append(svg.text(x(max(ends[1], base)) + 6, y + pitch / 2 + 4, value_format(ends[1]), anchor="start"))
    parts.append(svg.line(x(base), TOP - 4, x(base), height - BOTTOM, "a"))
    return svg.figure(
        title,
        "".join(parts),
        legend=svg.legend([low_name, high_name], ["c0 box", "c1 box"]),
        note=note,
        height=height,
    )


def _bar(x: float, y: float, width: float, height: float, colour: str, tip: str, more: str = "") -> str:
    box = f'x="{x:.1f}" y="{y:.1f}" width="{max(width, 0.0):.1f}" height="{height:.1f}" rx="2"'
    return f'<rect class="b {colour}" {box}{more}><title>{escape(tip)}</title></rect>'


def _short(label: str, room: float) -> str:
    most = int((room - 14) / 7.0)
    return label if len(label) <= most else label[: most - 1] + "…"


def _upright(x: svg.Scale, top: float, bottom: float, label: str, value_format: Format, height: float) -> str:
    """Vertical grid of a chart with horizontal bars."""
    parts = []
    for tick in x.ticks:
        parts += [
            svg.line(x(tick), top, x(tick), bottom, "g"),
            svg.text(x(tick), bottom + 18, value_format(tick)),
        ]
    if label:
        parts.append(svg.text((x.start + x.end) / 2, height - 6, label, "l"))
    return "".join(parts)


def heatmap(
    values: Sequence[Sequence[float]] | Any,
    x_labels: Sequence[str],
    y_labels: Sequence[str],
    *,
    title: str = "",
    x_label: str = "",
    y_label: str = "",
    value_format: Format = number,
    log: bool = False,
    note: str = "",
) -> str:
    """Cells, stronger for more; ``values[row][column]``, rows from the top; numbers are written where they fit."""
    grid = np.asarray(values, float)
    if grid.shape != (len(y_labels), len(x_labels)):
        raise TrivetError(f"shape {grid.shape} for {len(y_labels)} x {len(x_labels)} labels", field="values")
    good = grid[np.isfinite(grid) & ((grid > 0) | (not log))]
    lo, hi = (float(good.min()), float(good.max())) if good.size else (0.0, 1.0)
    left = min(220.0, svg.left_margin(y_labels, bool(y_label), 50.0))
    row_height = min(34.0, max(14.0, 420.0 / max(1, len(y_labels))))
    height = TOP + BOTTOM + row_height * len(y_labels)
    cell = (WIDTH - RIGHT - left) / max(1, len(x_labels))
    parts = []
    for i, name in enumerate(y_labels):
        parts.append(svg.text(left - 8, TOP + row_height * (i + 0.5) + 4, _short(name, left), "n", "end"))
        for j in range(len(x_labels)):
            value = float(grid[i, j])
            share = _share(value, lo, hi, log)
            if share is None:
                continue
            x, y = left + cell * j, TOP + row_height * i
            tip = f"{name}, {x_labels[j]}: {value_format(value)}"
            depth = f' style="fill-opacity:{0.05 + 0.95 * share:.3f}"'
            parts.append(_bar(x + 0.75, y + 0.75, cell - 1.5, row_height - 1.5, "c0", tip, depth))
            if 7.0 * len(value_format(value)) < cell - 6 and row_height >= 16:
                css = "on" if share > 0.55 else "n"
                parts.append(svg.text(x + cell / 2, y + row_height / 2 + 4, value_format(value), css))
    every = max(1, math.ceil(max((len(n) for n in x_labels), default=1) * 7.0 / cell))
    shown = range(0, len(x_labels), every)
    parts += [svg.text(left + cell * (j + 0.5), height - BOTTOM + 18, x_labels[j]) for j in shown]
    if x_label:
        parts.append(svg.text((left + WIDTH - RIGHT) / 2, height - 6, x_label, "l"))
    if y_label:
        middle = (TOP + height - BOTTOM) / 2
        parts.append(svg.text(12, middle, y_label, "l", more=f' transform="rotate(-90 12 {middle:.1f})"'))
    return svg.figure(title, "".join(parts), note=note, height=height)


def _share(value: float, lo: float, hi: float, log: bool) -> float | None:
    if not math.isfinite(value) or (log and value <= 0):
        return None
    if hi <= lo:
        return 0.5
    return math.log(value / lo) / math.log(hi / lo) if log else (value - lo) / (hi - lo)
