"""Small charts as SVG text: lines, stacked areas, bars. No library, the same bytes every time, readable in any browser."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

PALETTE = ("#0b6e99", "#d9730d", "#448361", "#9f6b53", "#9065b0", "#c14c8a", "#787774", "#cb912f", "#337ea9", "#d44c47")
_LEFT, _RIGHT, _TOP, _BOTTOM = 62, 14, 48, 42


def _ticks(lo: float, hi: float, count: int = 5) -> list[float]:
    """Round numbers that cover ``lo`` to ``hi``."""
    if not hi > lo:
        hi = lo + (abs(lo) or 1.0)
    raw = (hi - lo) / count
    unit = 10.0 ** math.floor(math.log10(raw))
    step = next(m * unit for m in (1, 2, 2.5, 5, 10) if m * unit >= raw * 0.999)
    first = math.floor(lo / step + 1e-9)
    last = math.ceil(hi / step - 1e-9)
    return [k * step for k in range(first, last + 1)]


def _number(value: float) -> str:
    if value == 0:
        return "0"
    if abs(value) >= 1e5 or abs(value) < 1e-3:
        return f"{value:.3g}"
    return f"{value:,.4g}" if abs(value) < 1e4 else f"{value:,.0f}"


class _Frame:
    """Axes of a chart and the map from data to pixels."""

    def __init__(
        self, title: str, x: tuple[float, float], y: tuple[float, float], labels: tuple[str, str], size: tuple[int, int]
    ) -> None:
        self.width, self.height = size
        self.x_ticks = [t for t in _ticks(*x, 8) if x[0] - 1e-9 <= t <= x[1] + 1e-9] or [x[0]]
        self.y_ticks = _ticks(*y)
        self.x0, self.x1 = x[0], max(x[1], x[0] + 1e-12)
        self.y0, self.y1 = self.y_ticks[0], self.y_ticks[-1]
        self.parts = [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {self.width} {self.height}" '
            f'font-family="system-ui,sans-serif" font-size="12" role="img" aria-label="{escape(title)}">',
            f'<text x="{_LEFT}" y="18" font-weight="600" font-size="13">{escape(title)}</text>',
        ]
        for t in self.y_ticks:
            y_px = self.py(t)
            self.parts.append(
                f'<line x1="{_LEFT}" x2="{self.width - _RIGHT}" y1="{y_px:.1f}" y2="{y_px:.1f}" stroke="#e3e2e0"/>'
            )
            self.parts.append(
                f'<text x="{_LEFT - 6}" y="{y_px + 4:.1f}" text-anchor="end" fill="#555">{_number(t)}</text>'
            )
        for t in self.x_ticks:
            self.parts.append(
                f'<text x="{self.px(t):.1f}" y="{self.height - _BOTTOM + 16}" text-anchor="middle" fill="#555">'
                f"{_number(t)}</text>"
            )
        middle = (_LEFT + self.width - _RIGHT) / 2
        self.parts.append(
            f'<text x="{middle:.0f}" y="{self.height - 8}" text-anchor="middle">{escape(labels[0])}</text>'
        )
        centre = (_TOP + self.height - _BOTTOM) / 2
        self.parts.append(
            f'<text x="14" y="{centre:.0f}" text-anchor="middle" transform="rotate(-90 14 {centre:.0f})">'
            f"{escape(labels[1])}</text>"
        )

    def px(self, x: float) -> float:
        return _LEFT + (x - self.x0) / (self.x1 - self.x0) * (self.width - _LEFT - _RIGHT)

    def py(self, y: float) -> float:
        return self.height - _BOTTOM - (y - self.y0) / (self.y1 - self.y0) * (self.height - _TOP - _BOTTOM)

    def legend(self, names: Sequence[str]) -> None:
        x, y = float(_LEFT), 36.0
        for k, name in enumerate(names):
            width = 22 + 7 * len(name)
            if x + width > self.width - _RIGHT:
                x, y = _LEFT + 8.0, y + 14
            self.parts.append(
                f'<rect x="{x:.0f}" y="{y - 9:.0f}" width="10" height="10" fill="{PALETTE[k % len(PALETTE)]}"/>'
            )
            self.parts.append(f'<text x="{x + 14:.0f}" y="{y:.0f}">{escape(name)}</text>')
            x += width

    def text(self) -> str:
        return "".join(self.parts) + "</svg>"


def lines(
    title: str,
    series: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    x_label: str,
    y_label: str,
    *,
    y_range: tuple[float, float] | None = None,
    size: tuple[int, int] = (820, 340),
    bands: Mapping[str, tuple[Sequence[float], Sequence[float]]] | None = None,
) -> str:
    """A line a series, name -> (x, y); a band (lo, hi) behind it where ``bands`` has one. Gaps are NaN."""
    xs = [x for a, _ in series.values() for x in a]
    ys = [y for _, b in series.values() for y in b if math.isfinite(y)]
    ys += [y for pair in (bands or {}).values() for side in pair for y in side if math.isfinite(y)]
    if not xs or not ys:
        return f"<p>{escape(title)}: no data</p>"
    frame = _Frame(title, (min(xs), max(xs)), y_range or (min(0.0, min(ys)), max(ys)), (x_label, y_label), size)
    for k, (name, (x, y)) in enumerate(series.items()):
        colour = PALETTE[k % len(PALETTE)]
        if bands and name in bands:
            low, high = bands[name]
            upper = [f"{frame.px(a):.1f},{frame.py(b):.1f}" for a, b in zip(x, high, strict=True)]
            lower = [f"{frame.px(a):.1f},{frame.py(b):.1f}" for a, b in zip(x, low, strict=True)]
            frame.parts.append(f'<polygon points="{" ".join(upper + lower[::-1])}" fill="{colour}" opacity="0.18"/>')
        path, pen = [], "M"
        for a, b in zip(x, y, strict=True):
            if not math.isfinite(b):
                pen = "M"
                continue
            path.append(f"{pen}{frame.px(a):.1f} {frame.py(b):.1f}")
            pen = "L"
        frame.parts.append(f'<path d="{"".join(path)}" fill="none" stroke="{colour}" stroke-width="1.6"/>')
    if len(series) > 1:
        frame.legend(list(series))
    return frame.text()


def stacked(
    title: str,
    x: Sequence[float],
    series: Mapping[str, Sequence[float]],
    x_label: str,
    y_label: str,
    *,
    limit: float | None = None,
    size: tuple[int, int] = (820, 340),
) -> str:
    """Areas on top of each other; ``limit`` draws a dashed line (a capacity)."""
    base = [0.0] * len(x)
    tops: list[list[float]] = []
    for values in series.values():
        base = [a + b for a, b in zip(base, values, strict=True)]
        tops.append(base)
    if not tops or not x:
        return f"<p>{escape(title)}: no data</p>"
    frame = _Frame(title, (min(x), max(x)), (0.0, max(*tops[-1], limit or 0.0)), (x_label, y_label), size)
    under = [0.0] * len(x)
    for k, top in enumerate(tops):
        upper = [f"{frame.px(a):.1f},{frame.py(b):.1f}" for a, b in zip(x, top, strict=True)]
        lower = [f"{frame.px(a):.1f},{frame.py(b):.1f}" for a, b in zip(x, under, strict=True)]
        colour = PALETTE[k % len(PALETTE)]
        frame.parts.append(f'<polygon points="{" ".join(upper + lower[::-1])}" fill="{colour}" opacity="0.85"/>')
        under = top
    if limit is not None:
        y = frame.py(limit)
        frame.parts.append(
            f'<line x1="{_LEFT}" x2="{frame.width - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}" stroke="#333" stroke-dasharray="5 4"/>'
        )
    frame.legend(list(series))
    return frame.text()


def bars(
    title: str,
    values: Mapping[str, float],
    x_label: str,
    *,
    spread: Mapping[str, tuple[float, float]] | None = None,
    width: int = 820,
    colours: Mapping[str, int] | None = None,
) -> str:
    """Horizontal bars, one a name, with whiskers where ``spread`` has (lo, hi)."""
    if not values:
        return f"<p>{escape(title)}: no data</p>"
    spread = spread or {}
    ends = [*values.values(), *(v for pair in spread.values() for v in pair), 0.0]
    lo, hi = min(ends), max(ends)
    ticks = _ticks(lo, hi)
    left = 20 + 7 * max(len(n) for n in values)
    height = _TOP + 22 * len(values) + _BOTTOM

    def px(v: float) -> float:
        return left + (v - ticks[0]) / (ticks[-1] - ticks[0]) * (width - left - 90)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="system-ui,sans-serif" '
        f'font-size="12" role="img" aria-label="{escape(title)}">',
        f'<text x="10" y="18" font-weight="600" font-size="13">{escape(title)}</text>',
    ]
    for t in ticks:
        parts.append(f'<line x1="{px(t):.1f}" x2="{px(t):.1f}" y1="{_TOP}" y2="{height - _BOTTOM}" stroke="#e3e2e0"/>')
        parts.append(
            f'<text x="{px(t):.1f}" y="{height - _BOTTOM + 16}" text-anchor="middle" fill="#555">{_number(t)}</text>'
        )
    for k, (name, value) in enumerate(values.items()):
        y = _TOP + 22 * k
        colour = PALETTE[(colours or {}).get(name, 0) % len(PALETTE)]
        a, b = sorted((px(0.0), px(value)))
        parts.append(f'<text x="{left - 6}" y="{y + 15}" text-anchor="end">{escape(name)}</text>')
        parts.append(f'<rect x="{a:.1f}" y="{y + 4}" width="{max(b - a, 0.5):.1f}" height="14" fill="{colour}"/>')
        end = px(value)
        if name in spread:
            low, high = (px(v) for v in spread[name])
            parts.append(f'<line x1="{low:.1f}" x2="{high:.1f}" y1="{y + 11}" y2="{y + 11}" stroke="#222"/>')
            parts += [f'<line x1="{w:.1f}" x2="{w:.1f}" y1="{y + 7}" y2="{y + 15}" stroke="#222"/>' for w in (low, high)]
            end = max(end, high)
        parts.append(f'<text x="{end + 5:.1f}" y="{y + 15}" fill="#333">{_number(value)}</text>')
    parts.append(
        f'<text x="{(left + width - 90) / 2:.0f}" y="{height - 8}" text-anchor="middle">{escape(x_label)}</text>'
    )
    return "".join(parts) + "</svg>"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """An HTML table; every column but the first is right-aligned by the page's style."""
    head = "".join(f"<th>{escape(c)}</th>" for c in header)
    body = "".join("<tr>" + "".join(f"<td>{escape(c)}</td>" for c in row) + "</tr>" for row in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def page(title: str, parts: Sequence[str]) -> str:
    """A self-contained HTML page."""
    style = (
        "body{font:15px/1.5 system-ui,sans-serif;max-width:880px;margin:2em auto;padding:0 1em;color:#222}"
        "table{border-collapse:collapse;margin:1em 0;font-size:13px}td,th{padding:.25em .7em;border-bottom:1px solid #ddd;"
        "text-align:right}td:first-child,th:first-child{text-align:left}h1{font-size:1.5em}h2{font-size:1.15em;margin-top:2em}"
        "svg{width:100%;height:auto;margin:.6em 0}"
    )
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title><style>{style}</style></head>'
        f"<body><h1>{escape(title)}</h1>{''.join(parts)}</body></html>\n"
    )
