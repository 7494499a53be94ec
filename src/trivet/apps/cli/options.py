"""Reading option texts: lists, durations, counts with a suffix."""

from __future__ import annotations

import math
import os
import re
from pathlib import Path

from trivet.errors import TrivetError

_TIME = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0}
_COUNT = {"": 1.0, "k": 1e3, "M": 1e6, "B": 1e9, "G": 1e9, "T": 1e12}
_NUMBER = re.compile(r"\s*([-+]?[0-9]*\.?[0-9]+(?:[eE][-+]?[0-9]+)?)\s*([a-zA-Z]*)\s*")


def csv_list(text: str) -> list[str]:
    """``"a, b"`` -> ``["a", "b"]``."""
    return [part.strip() for part in text.split(",") if part.strip()]


def _number(text: str, units: dict[str, float], default: str, field: str) -> float:
    match = _NUMBER.fullmatch(text)
    unit = (match.group(2) or default) if match else ""
    if not match or unit not in units:
        raise TrivetError(
            f"{text!r} is not understood",
            field=field,
            allowed="a number with one of " + ", ".join(u for u in units if u),
        )
    value = float(match.group(1)) * units[unit]
    if not math.isfinite(value) or value < 0:
        raise TrivetError(f"{text!r} is not a finite number >= 0", field=field)
    return value


def duration_s(text: str, field: str) -> float:
    """``"50ms"`` -> 0.05; a bare number is seconds."""
    return _number(text, _TIME, "s", field)


def count(text: str, field: str) -> float:
    """``"36T"`` -> 3.6e13."""
    return _number(text, _COUNT, "", field)


def calibration_file(name: str) -> Path:
    """A table of the calibration data, for a command that was given no file."""
    path = Path(os.environ.get("TRIVET_SHARED_DATA", "../shared/data")) / name
    if not path.is_file():
        raise TrivetError(
            "no file given and no calibration data",
            field="FILE",
            allowed="a CSV, or TRIVET_SHARED_DATA set to its folder",
        )
    return path
