"""SI floats and their text. Inside Trivet a quantity is a float in SI units with the unit in its name."""

from __future__ import annotations

import math

KIB, MIB, GIB, TIB = 2.0**10, 2.0**20, 2.0**30, 2.0**40
KILO, MEGA, GIGA, TERA, PETA = 1e3, 1e6, 1e9, 1e12, 1e15
MICRO, MILLI, NANO, PICO = 1e-6, 1e-3, 1e-9, 1e-12
MINUTE_S, HOUR_S, DAY_S, WEEK_S = 60.0, 3600.0, 86400.0, 604800.0
Z80 = 1.2815515655446004  # half-width of a central 80% interval of the normal distribution, in standard deviations

_PREFIXES = (
    (1e15, "P"),
    (1e12, "T"),
    (1e9, "G"),
    (1e6, "M"),
    (1e3, "k"),
    (1.0, ""),
    (1e-3, "m"),
    (1e-6, "u"),
    (1e-9, "n"),
    (1e-12, "p"),
)


def text(value: float, unit: str, digits: int = 3) -> str:
    """``value`` with an SI prefix, e.g. ``text(3.35e12, "B/s") == "3.35 TB/s"``."""
    if not math.isfinite(value):
        return f"{value} {unit}"
    if value == 0:
        return f"0 {unit}"
    for scale, prefix in _PREFIXES:
        if abs(value) >= scale:
            return f"{value / scale:.{digits}g} {prefix}{unit}"
    return f"{value:.{digits}g} {unit}"


def seconds_text(value_s: float) -> str:
    """A duration as a person reads it: microseconds to days."""
    if not math.isfinite(value_s):
        return str(value_s)
    if abs(value_s) >= 2 * DAY_S:
        return f"{value_s / DAY_S:.3g} days"
    if abs(value_s) >= 2 * HOUR_S:
        return f"{value_s / HOUR_S:.3g} h"
    if abs(value_s) >= 2 * MINUTE_S:
        return f"{value_s / MINUTE_S:.3g} min"
    return text(value_s, "s")
