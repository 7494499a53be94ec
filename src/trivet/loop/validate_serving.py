"""Serving predictions against measurements: errors, coverage and width of intervals, each row predicted without its kind.

On calibration data every row is predicted by constants and a residual that did not see its model (all checkpoints of one
shape together), its chip family, its chip, or a quarter of the configurations. Constants without a fold follow from the
linearised fit (``calibrate_engine.EngineFit``); the scales of the residual process, some twenty numbers, stay.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trivet.errors import TrivetError
from trivet.loop.calibrate_engine import EngineFit, Measured
from trivet.loop.calibrate_residual import folds
from trivet.loop.calibrate_serving import fit_engines, masks_of, refitted, residuals
from trivet.loop.predict_serving import predict_cases
from trivet.loop.serving_features import Features, features
from trivet.loop.serving_model import Compiler, steady
from trivet.loop.serving_residual import FORMS, Process, campaigns_of, fit_process, shipped
from trivet.units import Z80

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]
HOLD_OUT = ("model", "family", "chip", "campaign", "quarter", "nothing")


@dataclass(frozen=True, slots=True)
class Checked:
    """One row's TTFT or TPOT, or how long a request lasts, seconds."""

    id: str
    quantity: str
    split: str
    mode: str
    chip: str
    engine: str
    model: str
    measured: float
    predicted: float
    lo: float
    hi: float
    maker: str = ""


@dataclass(frozen=True, slots=True)
class Score:
    """Errors of a group: of |predicted / measured - 1|; ``bias`` of log(predicted / measured)."""

    group: tuple[str, ...]
    rows: int
    median_error: float
    p90_error: float
    bias: float
    coverage: float
    log_width: float

    def to_dict(self) -> dict[str, Any]:
        return {
            "rows": self.rows, "median_error": self.median_error, "p90_error": self.p90_error, "bias": self.bias,
            "coverage_80": self.coverage, "mean_log_width": self.log_width,
        }  # fmt: skip


def check(
    rows: Sequence[Measured], hold_out: Sequence[str], report: Callable[[str, int, int], None] | None = None
) -> list[Checked]:
    """Predict every row under each of ``hold_out`` and put it beside what was measured."""
    for split in hold_out:
        if split not in HOLD_OUT:
            raise TrivetError(f"{split!r} is no split", field="hold-out", allowed=HOLD_OUT)
    out: list[Checked] = []
    if "nothing" in hold_out:
        out += _as_shipped(rows)
    splits = [split for split in hold_out if split != "nothing"]
    if splits:
        compiler = Compiler()
        fits = fit_engines(rows, compiler, evaluations=0)
        for split in splits:
            out += _left_out(rows, split, fits, compiler, report)
    return out


def _masks(rows: Sequence[Measured], split: str, compiler: Compiler) -> list[Mask]:
    if split in ("quarter", "campaign"):
        physics = [steady(row.case, compiler) for row in rows]
        return list(folds(features([row.case for row in rows], physics, compiler), split))
    return masks_of(rows, split)


def _left_out(
    rows: Sequence[Measured],
    split: str,
    fits: dict[str, EngineFit],
    compiler: Compiler,
    report: Callable[[str, int, int], None] | None,
) -> list[Checked]:
    processes = shipped()
    out: list[Checked] = []
    every = _masks(rows, split, compiler)
    for number, mask in enumerate(every):
        if report is not None:
            report(f"without a {split}", number, len(every))
        found, targets = residuals(rows, Compiler(refitted(fits, rows, mask), compiler.parts, compiler.rooms))
        left = [row for row, gone in zip(rows, mask, strict=True) if gone]
        for name in ("ttft", "tpot"):
            held = processes[name]
            noise, odd = tails(held, found)
            process = fit_process(
                found.rows(~mask), targets[name][~mask], FORMS[name], held.logs, noise[~mask], odd[~mask], held.widths
            )
            part = process.correct(found.rows(mask))
            physics = np.array([getattr(row, f"{name}_s") for row in left]) * np.exp(-targets[name][mask])
            half = Z80 * part.deviation
            values = (physics * np.exp(shift) for shift in (part.value, part.middle - half, part.middle + half))
            out += [
                _checked(row, name, split, *(float(v) for v in found_row))
                for row, *found_row in zip(left, *values, strict=True)
            ]
    return out


def tails(held: Process, found: Features) -> tuple[Floats, Floats]:
    """(noise of each row, factor of its campaign): of the shipped fit where the rows are its own, else the common noise and
    the factors of the campaigns that it knows."""
    if len(held.noise) == len(found.x):
        return held.noise, held.odd
    factors = dict(zip(held.campaigns, held.odd.tolist(), strict=True))
    noise = np.full(len(found.x), float(np.exp(2.0 * held.logs[held.form.noise])))
    return noise, np.array([factors.get(campaign, 1.0) for campaign in campaigns_of(found)])


def _as_shipped(rows: Sequence[Measured]) -> list[Checked]:
    out: list[Checked] = []
    for row, found in zip(rows, predict_cases([row.case for row in rows]), strict=True):
        if found.ttft is None or found.tpot is None:
            continue
        first, further = found.ttft, found.tpot
        after = row.case.osl - 1.0
        for name, values in (
            ("ttft", (first.value, first.lo, first.hi)),
            ("tpot", (further.value, further.lo, further.hi)),
            ("latency", tuple(getattr(first, k) + after * getattr(further, k) for k in ("value", "lo", "hi"))),
        ):
            if getattr(row, f"{name}_s") > 0:
                out.append(_checked(row, name, "nothing", *values))
    return out


def _checked(row: Measured, quantity: str, split: str, predicted: float, lo: float, hi: float) -> Checked:
    g = row.case.group
    return Checked(
        row.case.id, quantity, split, g["mode"], g["chip"], g["engine"], g["model"], getattr(row, f"{quantity}_s"), predicted,
        lo, hi, row.case.pools[-1].deployment.chip.maker,
    )  # fmt: skip


def scores(checked: Sequence[Checked], *names: str) -> list[Score]:
    """One score a combination of the fields ``names``, largest group first."""
    groups: dict[tuple[str, ...], list[Checked]] = {}
    for row in checked:
        groups.setdefault(tuple(getattr(row, name) for name in names), []).append(row)
    return [score(key, rows) for key, rows in sorted(groups.items(), key=lambda item: (item[0][:2], -len(item[1])))]


def score(group: tuple[str, ...], rows: Sequence[Checked]) -> Score:
    measured, predicted = (np.array([getattr(row, name) for row in rows]) for name in ("measured", "predicted"))
    lo, hi = (np.array([getattr(row, name) for row in rows]) for name in ("lo", "hi"))
    error = np.abs(predicted / measured - 1.0)
    return Score(
        group, len(rows), float(np.median(error)), float(np.quantile(error, 0.9)), float(np.median(np.log(predicted / measured))),
        float(np.mean((measured >= lo) & (measured <= hi))), float(np.mean(np.log(hi / lo))),
    )  # fmt: skip


def noise_floor(rows: Sequence[Measured]) -> dict[str, Any]:
    """How far the same configuration measured twice differs: pairs of the same build and date, of the same build, of any."""
    out: dict[str, Any] = {}
    for name, extra in (
        ("same build and date", ("version", "measured_on")),
        ("same build", ("version",)),
        ("any build", ()),
    ):
        groups: dict[Any, list[Measured]] = {}
        for row in rows:
            c, g = row.case, row.case.group
            key = (tuple((p.deployment.layout, p.workers, p.max_sequences) for p in c.pools), c.isl, c.osl, c.concurrency,
                   g["model"], g["chip"], g["engine"], g["precision"], *(g[e] for e in extra))  # fmt: skip
            groups.setdefault(key, []).append(row)
        pairs = [(a, b) for same in groups.values() for i, a in enumerate(same) for b in same[i + 1 :]]
        out[name] = {"pairs": len(pairs)}
        for quantity in ("ttft_s", "tpot_s"):
            gap = np.array([abs(np.log(getattr(a, quantity) / getattr(b, quantity))) for a, b in pairs])
            gap = gap[np.isfinite(gap)] if np.isfinite(gap).any() else np.zeros(1)
            out[name][quantity] = {
                "median": float(np.expm1(np.median(gap))),
                "p90": float(np.expm1(np.quantile(gap, 0.9))),
            }
    return out


def summarise(rows: Sequence[Measured], checked: Sequence[Checked]) -> dict[str, Any]:
    """Scores by split and quantity, in all and by mode, engine, maker, chip and model, and the noise floor."""
    out: dict[str, Any] = {"rows": len(rows), "noise_floor": noise_floor(rows), "splits": {}}
    for whole in scores(checked, "split", "quantity"):
        split, quantity = whole.group
        part = [row for row in checked if row.split == split and row.quantity == quantity]
        entry = {"all": whole.to_dict()}
        for name in ("mode", "engine", "maker", "chip", "model"):
            entry[f"by_{name}"] = {s.group[0]: s.to_dict() for s in scores(part, name)}
        out["splits"].setdefault(split, {})[quantity] = entry
    return out
