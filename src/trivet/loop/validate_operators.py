"""Predicted against measured kernels: error and interval coverage by operator, precision, chip and engine."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trivet.loop.calibrate import Fit
from trivet.units import Z80

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Compared:
    """Measured and predicted seconds with 80% intervals, and what each row is."""

    measured_s: Floats
    predicted_s: Floats
    lo_s: Floats
    hi_s: Floats
    labels: Mapping[str, NDArray[Any]]  # op, dtype, chip, family, engine


@dataclass(frozen=True, slots=True)
class Score:
    """One line of the table."""

    group: tuple[str, ...]
    rows: int
    median_error: float
    p90_error: float
    bias: float  # median of predicted over measured, less one
    coverage: float  # share of rows inside the 80% interval
    log_width: float  # mean of log(hi / lo)


def from_fits(fits: Iterable[Fit]) -> Compared:
    """Every calibration row predicted with its chip's family left out."""
    found = list(fits)
    parts: dict[str, list[Any]] = {name: [] for name in ("op", "dtype", "chip", "family", "engine")}
    for fit in found:
        parts["op"].append(np.full(len(fit.data.seconds), fit.data.kind.removesuffix("_narrow"), "U16"))
        for name, column in (("dtype", "precision"), ("chip", "chip"), ("family", "family"), ("engine", "library")):
            parts[name].append(getattr(fit.data, column))
    measured = np.concatenate([f.data.seconds for f in found])
    predicted = np.concatenate([f.outside_s for f in found])
    sigma = np.concatenate([f.outside_sigma for f in found])
    labels = {name: np.concatenate(columns) for name, columns in parts.items()}
    return Compared(measured, predicted, predicted * np.exp(-Z80 * sigma), predicted * np.exp(Z80 * sigma), labels)


def from_rows(rows: list[dict[str, str]], answers: list[Any]) -> Compared:
    """Rows of a file with a measured latency (``latency_us`` or, as in the tables, ``latency`` in ms) beside their answers."""
    from trivet.errors import TrivetError

    keep = []
    for row, answer in zip(rows, answers, strict=True):
        text, scale = (row["latency_us"], 1e-6) if row.get("latency_us") else (row.get("latency", ""), 1e-3)
        try:
            measured = float(text) * scale
        except ValueError:
            continue
        if measured > 0 and answer.value_s is not None:
            keep.append((measured, answer.value_s, answer.lo_s, answer.hi_s, row))
    if not keep:
        raise TrivetError("no row has both a measured latency and a prediction", field="latency_us")
    numbers = np.array([k[:4] for k in keep], dtype=np.float64)
    labels = {
        name: np.array([next((k[4][c] for c in columns if k[4].get(c)), "") for k in keep])
        for name, columns in (
            ("op", ("op", "op_name")), ("dtype", ("dtype", "gemm_dtype", "moe_dtype", "attn_dtype", "mla_dtype", "nccl_dtype")),
            ("chip", ("chip",)), ("engine", ("engine",)),
        )
    }  # fmt: skip
    return Compared(numbers[:, 0], numbers[:, 1], numbers[:, 2], numbers[:, 3], {**labels, "family": labels["chip"]})


def score(data: Compared, rows: NDArray[Any], group: tuple[str, ...] = ()) -> Score:
    """Scores of the rows of an index or mask."""
    measured, predicted = data.measured_s[rows], data.predicted_s[rows]
    error = np.abs(predicted / measured - 1.0)
    inside = (measured >= data.lo_s[rows]) & (measured <= data.hi_s[rows])
    return Score(
        group, len(measured), float(np.median(error)), float(np.quantile(error, 0.9)),
        float(np.median(predicted / measured) - 1.0),
        float(inside.mean()), float(np.log(data.hi_s[rows] / data.lo_s[rows]).mean()),
    )  # fmt: skip


def scores(data: Compared, by: tuple[str, ...]) -> list[Score]:
    """One score for each combination of the labels ``by``, in their order."""
    stacked = np.array(["\x1f".join(values) for values in zip(*(data.labels[name] for name in by), strict=True)])
    names, inverse = np.unique(stacked, return_inverse=True)
    return [score(data, np.flatnonzero(inverse == i), tuple(str(n).split("\x1f"))) for i, n in enumerate(names)]


def pooled(data: Compared, by: tuple[str, ...] = ("op", "dtype")) -> list[Score]:
    """Like ``scores``, but every (chip, engine) inside a group counts alike, whatever its number of rows: medians of medians
    for the errors, means for coverage and width."""
    fine = scores(data, (*by, "chip", "engine"))
    names = sorted({s.group[: len(by)] for s in fine})
    found = []
    for name in names:
        inside = [s for s in fine if s.group[: len(by)] == name]

        def mean(part: str, over: list[Score] = inside) -> float:
            return float(np.mean([getattr(s, part) for s in over]))

        middle = float(np.median([s.median_error for s in inside]))
        found.append(
            Score(
                name,
                sum(s.rows for s in inside),
                middle,
                mean("p90_error"),
                mean("bias"),
                mean("coverage"),
                mean("log_width"),
            )
        )
    return found
