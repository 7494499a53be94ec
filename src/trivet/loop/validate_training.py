"""Predicted against measured training runs, each row predicted by constants fitted without its model or its chip."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trivet.cloud.training.profile import shipped
from trivet.cloud.training.step import finish
from trivet.errors import TrivetError
from trivet.loop.calibrate_training import Sample, leave_out, log_errors, samples
from trivet.units import Z80

Floats = NDArray[np.float64]
HELD_OUT = ("model", "chip", "nothing")


@dataclass(frozen=True, slots=True)
class Checked:
    """One row: measured, predicted and its 80% interval, tokens per second and chip; and whether its memory fits."""

    id: str
    model: str
    chip: str
    source: str
    measured: float
    predicted: float
    lo: float
    hi: float
    memory_bytes: float
    fits: bool

    @property
    def log_error(self) -> float:
        return math.log(self.predicted / self.measured)

    @property
    def covered(self) -> bool:
        return self.lo <= self.measured <= self.hi


def check(
    rows: Sequence[Mapping[str, str | None]],
    hold_out: str = "model",
    report: Callable[[str, int, int], None] | None = None,
) -> tuple[list[Checked], dict[str, str]]:
    """Every measured row and its prediction; and the reasons of rows that cannot be predicted.

    Args:
        rows: with the columns of ``training_measured.csv``.
        hold_out: "model" or "chip": constants are fitted without the row's model or chip; "nothing": the shipped ones.
            A file with fewer than 30 rows or a single group is always judged with the shipped constants.
        report: called with (what, done, total).

    Raises:
        TrivetError: an unknown ``hold_out``, or no row can be predicted.
    """
    if hold_out not in HELD_OUT:
        raise TrivetError(f"unknown choice {hold_out!r}", field="hold_out", allowed=HELD_OUT)
    found, failed = samples(rows)
    if not found:
        raise TrivetError("no row can be predicted: " + "; ".join(list(failed.values())[:3]), field="FILE")
    constants = shipped()
    key: Callable[[Sample], str] = (lambda s: s.chip) if hold_out == "chip" else (lambda s: s.model.lower())
    groups = {key(s) for s in found}
    if hold_out == "nothing" or len(found) < 30 or len(groups) < 2:
        errors = log_errors(found, constants)
    else:
        if report:
            report("fit without each " + hold_out, 0, 1)
        errors = leave_out(found, key, constants)
    checked = []
    for s, error in zip(found, errors, strict=True):
        result = finish(s.prepared, constants)
        sigma = dict(result.spread)
        if hold_out == "chip":
            sigma["chip left out"] = constants.sigma.get("chip", 0.0)
        width = math.exp(Z80 * math.sqrt(sum(v * v for v in sigma.values())))
        predicted = s.measured * math.exp(float(error))
        checked.append(
            Checked(
                s.id,
                s.model,
                s.chip,
                s.source,
                s.measured,
                predicted,
                predicted / width,
                predicted * width,
                result.peak.total,
                result.fits,
            )
        )
    return checked, failed


def _stats(rows: Sequence[Checked]) -> dict[str, Any]:
    size = np.abs(np.expm1([r.log_error for r in rows]))
    return {
        "rows": len(rows),
        "median_error": float(np.median(size)),
        "p90_error": float(np.quantile(size, 0.9)),
        "bias": float(np.expm1(np.mean([r.log_error for r in rows]))),
        "coverage_80": float(np.mean([r.covered for r in rows])),
        "fit_in_memory": float(np.mean([r.fits for r in rows])),
    }


def summarise(checked: Sequence[Checked]) -> dict[str, Any]:
    """Errors, bias, coverage of the 80% interval and share that fits: in all, by chip, by model, by source."""
    out: dict[str, Any] = {"all": _stats(checked)}
    for name in ("chip", "model", "source"):
        groups: dict[str, list[Checked]] = {}
        for row in checked:
            groups.setdefault(getattr(row, name), []).append(row)
        out[f"by_{name}"] = {k: _stats(v) for k, v in groups.items()}
    return out
