"""Axes, ticks and marks of the charts: hand-made SVG, so that a report is one small file on its own."""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

Format = Callable[[float], str]

WIDTH, HEIGHT = 640.0, 310.0
LEFT, RIGHT, TOP, BOTTOM = 62.0, 18.0, 12.0, 46.0
COLOURS = 8
TINY = 1e-100  # what an axis counts as zero


def escape(text: object) -> str:
    return html.escape(str(text), quote=True)


def number(value: float) -> str:
    """A number as a tick or a cell shows it: 1,250 or 3.4M or 0.02 or 5e-07."""
    if not math.isfinite(value):
        return "–"
    size = abs(value)
    if size >= 1e15 or 0 < size < 1e-4:
        return f"{value:.3g}"
    for scale, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e4, "k")):
        if size >= scale:
            unit = 1e3 if letter == "k" else scale
            return f"{value / unit:.4g}{letter}"
    return f"{value:,.0f}" if size >= 1000 else f"{value:.4g}"


def percent(value: float) -> str:
    return f"{100 * value:.4g}%" if math.isfinite(value) else "–"


def seconds(value: float) -> str:
    """Seconds with a fitting unit, up to days."""
    if not math.isfinite(value):
        return "–"
    size = abs(value)
    for scale, unit in ((86400.0, "d"), (3600.0, "h"), (60.0, "min"), (1.0, "s"), (1e-3, "ms"), (1e-6, "µs")):
        if size >= scale * (2 if unit in ("d", "min", "h") else 1):
            return f"{value / scale:.4g} {unit}"
    return "0" if value == 0 else f"{value * 1e9:.3g} ns"


@dataclass(frozen=True, slots=True)
class Scale:
    """Maps data to pixels. ``ticks`` are data values; ``minor`` log subdivisions without text."""

    lo: float
    hi: float
    start: float
    end: float
    log: bool
    ticks: tuple[float, ...]

    def __call__(self, value: float) -> float:
        if self.log:
            share = (math.log(max(value, TINY)) - math.log(self.lo)) / (math.log(self.hi) - math.log(self.lo))
        else:
            share = (value - self.lo) / (self.hi - self.lo)
        return self.start + share * (self.end - self.start)

    def inside(self, value: float) -> bool:
        """Whether a value can be drawn: finite, and above zero on a logarithmic axis."""
        return math.isfinite(value) and (value > TINY or not self.log)


def _linear_ticks(lo: float, hi: float, most: int, step_base: Sequence[float]) -> list[float]:
    raw = (hi - lo) / max(most, 1)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next((m * power for m in step_base if m * power >= raw * (1 - 1e-9)), 10 * power)
    first, last = math.floor(lo / step + 1e-9), math.ceil(hi / step - 1e-9)
    return [round(i * step, 12 - math.floor(math.log10(step))) for i in range(first, last + 1)]


def _time_step(span: float, most: int) -> float:
    ladder = (
        1,
        2,
        5,
        10,
        15,
        30,
        60,
        120,
        300,
        600,
        900,
        1800,
        3600,
        7200,
        10800,
        14400,
        21600,
        43200,
        86400,
        172800,
    )
    return next((float(s) for s in ladder if span / s <= most), 86400.0 * math.ceil(span / most / 86400.0))


def scale(
    values: Iterable[float],
    start: float,
    end: float,
    *,
    log: bool = False,
    zero: bool = False,
    most: int = 6,
    time: bool = False,
    tight: bool = False,
) -> Scale:
    """A scale that holds all finite ``values``.

    Args:
        zero: the axis starts at 0 (linear only).
        most: about how many ticks.
        time: values are seconds; ticks fall on minutes, hours, days.
        tight: the axis ends at the data, not at a tick.
    """
    good = [v for v in values if math.isfinite(v) and (v > TINY or not log)]
    lo, hi = (min(good), max(good)) if good else (1.0, 10.0)
    if log:
        if hi / lo < 1.5:
            lo, hi = lo / 1.3, hi * 1.3
        first, last = math.floor(math.log10(lo) + 1e-9), math.ceil(math.log10(hi) - 1e-9)
        every = max(1, math.ceil((last - first) / most))
        marks = (1.0,) if last - first > 2 else (1.0, 2.0, 5.0)
        ticks = [m * 10.0**p for p in range(first, last + 1, every) for m in marks]
        pad = (hi / lo) ** 0.03
        lo, hi = lo / pad, hi * pad
        return Scale(lo, hi, start, end, True, tuple(t for t in ticks if lo <= t <= hi))
    if zero:
        lo, hi = min(lo, 0.0), max(hi, 0.0)
    if hi - lo <= max(1e-12 * max(abs(lo), abs(hi)), TINY):
        lo, hi = (0.0, 2 * hi) if hi > TINY else (lo - 1.0, hi + 1.0)
    if time and hi - lo > 1:
        step = _time_step(hi - lo, most)
        ticks = [i * step for i in range(math.floor(lo / step), math.ceil(hi / step - 1e-9) + 1)]
    else:
        ticks = _linear_ticks(lo, hi, most, (1, 2, 2.5, 5, 10))
    if not tight:
        lo, hi = min(lo, ticks[0]), max(hi, ticks[-1])
    return Scale(lo, hi, start, end, False, tuple(t for t in ticks if lo - 1e-12 <= t <= hi + 1e-12 * abs(hi)))


def line(x1: float, y1: float, x2: float, y2: float, css: str, style: str = "") -> str:
    extra = f' style="{style}"' if style else ""
    return f'<line class="{css}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"{extra}/>'


def text(x: float, y: float, content: str, css: str = "t", anchor: str = "middle", more: str = "") -> str:
    return f'<text class="{css}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{more}>{escape(content)}</text>'


def frame(
    x: Scale,
    y: Scale,
    x_label: str,
    y_label: str,
    x_format: Format,
    y_format: Format,
    *,
    height: float = HEIGHT,
) -> str:
    """Grid, ticks and axis titles."""
    left, right, bottom, top = x.start, x.end, y.start, y.end
    parts = []
    for tick in y.ticks:
        at = y(tick)
        parts += [line(left, at, right, at, "g"), text(left - 8, at + 4, y_format(tick), anchor="end")]
    for tick in x.ticks:
        at = x(tick)
        parts += [line(at, bottom, at, bottom + 4, "a"), text(at, bottom + 18, x_format(tick))]
    parts.append(line(left, bottom, right, bottom, "a"))
    if x_label:
        parts.append(text((left + right) / 2, height - 8, x_label, "l"))
    if y_label:
        middle = (top + bottom) / 2
        parts.append(text(14, middle, y_label, "l", more=f' transform="rotate(-90 14 {middle:.1f})"'))
    return "".join(parts)


def left_margin(labels: Iterable[str], title: bool, least: float = LEFT) -> float:
    """Room for the longest tick label, and the axis title where there is one."""
    longest = max((len(label) for label in labels), default=0)
    return max(least, 14.0 + 7.0 * longest + (20.0 if title else 0.0))


def figure(title: str, body: str, *, legend: str = "", note: str = "", height: float = HEIGHT) -> str:
    """An SVG with its caption and legend as an HTML figure."""
    head = f"<figcaption>{escape(title)}</figcaption>" if title else ""
    foot = f'<p class="note">{escape(note)}</p>' if note else ""
    label = escape(title or "chart")
    return (
        f'<figure class="chart">{head}{legend}<svg viewBox="0 0 {WIDTH:.0f} {height:.0f}" role="img" '
        f'aria-label="{label}">{body}</svg>{foot}</figure>'
    )


def legend(names: Sequence[str], kinds: Sequence[str]) -> str:
    """Swatches with names; nothing for a single series. ``kinds``: "cN", "cN dashed", "cN dot" or "cN box"."""
    shown = [(n, k) for n, k in zip(names, kinds, strict=True) if n]
    if len(shown) < 2:
        return ""
    return '<div class="legend">' + "".join(f'<span><i class="{k}"></i>{escape(n)}</span>' for n, k in shown) + "</div>"


CSS = """
:root{--bg:#fbfbf9;--card:#fff;--fg:#1d2129;--muted:#626a76;--grid:#e6e7e4;--axis:#a9adb3;
--c0:#2f6fd0;--c1:#d9762b;--c2:#12907f;--c3:#b8438c;--c4:#7357cf;--c5:#94800f;--c6:#cb4138;--c7:#557089}
@media (prefers-color-scheme:dark){:root{
--bg:#14161a;--card:#1b1e24;--fg:#e7e9ec;--muted:#9aa3ae;--grid:#2c3038;
--axis:#5b626d;--c0:#6ea3f2;--c1:#f0a060;--c2:#4cc4b2;--c3:#e583bd;--c4:#a892f2;--c5:#cdb848;--c6:#f0817a;--c7:#93abc1}}
*{box-sizing:border-box}
body{margin:0;background:var(--bg);color:var(--fg);font:15px/1.55 system-ui,-apple-system,
"Segoe UI",Roboto,"Noto Sans","Helvetica Neue",Arial,"Liberation Sans","DejaVu Sans",sans-serif}
main{max-width:1160px;margin:0 auto;padding:36px 24px 64px}
h1{font-size:28px;line-height:1.2;letter-spacing:-.01em;margin:0 0 6px}
h2{font-size:19px;margin:40px 0 12px;letter-spacing:-.005em}
.sub{color:var(--muted);margin:0 0 8px}
.grid{display:grid;grid-template-columns:repeat(auto-fill,minmax(440px,1fr));gap:16px}
.chart{margin:0 0 16px;padding:16px 18px 10px;background:var(--card);border:1px solid
var(--grid);border-radius:10px} .chart{max-width:780px}
.grid .chart{margin:0;max-width:none}
figcaption{font-weight:600;font-size:15px;margin-bottom:4px}
.chart svg{display:block;width:100%;height:auto;overflow:visible}
.note,.foot{color:var(--muted);font-size:13px;margin:4px 0 6px}
.foot{margin-top:40px;border-top:1px solid var(--grid);padding-top:12px}
.legend{display:flex;flex-wrap:wrap;gap:4px 16px;font-size:13px;color:var(--muted);margin:2px 0 6px}
.legend i{display:inline-block;width:14px;height:3px;border-radius:2px;vertical-align:middle;margin-right:6px;
background:currentColor}
.legend i.dot{width:9px;height:9px;border-radius:50%}
.legend i.box{width:11px;height:11px;border-radius:2px}
.legend i.dashed{background:repeating-linear-gradient(90deg,currentColor 0 4px,transparent 4px 7px)}
svg text{font-family:inherit;fill:var(--muted);font-size:12.5px}
svg text.l{font-size:13px;fill:var(--muted)}
svg text.n{fill:var(--fg)}
svg text.on{fill:#fff}
svg .g{stroke:var(--grid);stroke-width:1}
svg .a{stroke:var(--axis);stroke-width:1}
svg .ref{stroke:var(--muted);stroke-width:1.2;stroke-dasharray:5 4}
svg .s{fill:none;stroke:currentColor;stroke-width:1.9;stroke-linejoin:round;stroke-linecap:round}
svg .s.dashed{stroke-dasharray:5 4}
svg .band{fill:currentColor;fill-opacity:.16;stroke:none}
svg .area{fill:currentColor;fill-opacity:.82;stroke:var(--card);stroke-width:.6}
svg .p{fill:currentColor;stroke:var(--card);stroke-width:1}
svg .e{stroke:currentColor;stroke-width:1.3;stroke-opacity:.65}
svg .b{fill:currentColor}
svg .w{stroke:var(--fg);stroke-opacity:.75;stroke-width:1.3}
svg .b:hover,svg .p:hover{fill-opacity:.7}
.kpis{display:grid;grid-template-columns:repeat(auto-fit,minmax(124px,1fr));gap:12px;margin:18px 0}
.kpi{background:var(--card);border:1px solid var(--grid);border-radius:10px;padding:12px 14px}
.kpi b{display:block;white-space:nowrap;font-size:18px;font-weight:650;letter-spacing:-.01em}
.kpi span{color:var(--muted);font-size:13px}
.tablewrap{overflow-x:auto;margin:0 0 16px}
table{border-collapse:collapse;width:100%;font-size:14px;font-variant-numeric:tabular-nums}
th{font-weight:600;text-align:left;color:var(--muted);border-bottom:1px solid var(--axis);padding:6px 12px
6px 0;white-space:nowrap} td{border-bottom:1px solid var(--grid);padding:6px 12px 6px 0;vertical-align:top}
th.r,td.r{text-align:right}
""" + "".join(f".c{i}{{color:var(--c{i})}}" for i in range(COLOURS))
