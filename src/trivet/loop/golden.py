"""Golden accuracy: small samples of measurements, how well they are predicted today, and the level recorded for them.

A folder of samples holds what it has of ``serving.csv``, ``training.csv``, ``kernels/*.parquet`` and ``requests/*.jsonl``
(each with a ``.meta.json`` that names the ``chip``), and ``levels.json``. Serving and training rows are predicted without
their model or chip, by constants fitted to the rest of the sample; kernels three times: as calibrated, with their chip and
family forgotten, and by a network trained on the other families of the sample. A figure that is worse than its recorded
level by more than the tolerance is a failure.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from trivet.errors import TrivetError

Report = Callable[[str, int, int], None]
LEVELS = "levels.json"
COVERAGE = "coverage off 80%"
COVERAGE_MORE = 0.015  # three rows of two hundred
# How much worse a figure may be: a share of its level, and on top of that (COVERAGE_MORE for coverage).
TOLERANCE = {"serving": (0.05, 0.004), "training": (0.05, 0.004), "operators": (0.08, 0.004), "requests": (0.05, 0.004)}
SERVING_SPLITS, TRAINING_SPLIT = ("model", "chip", "nothing"), "chip"
SAMPLE_BATCH = 64  # rows a step of training a network on a sample


@dataclass(frozen=True, slots=True)
class Figure:
    """A figure of accuracy, the smaller the better (of coverage: the distance from 80%), beside its recorded level."""

    section: str
    name: str
    value: float
    level: float | None
    allowed: float | None

    @property
    def ok(self) -> bool:
        return self.allowed is not None and self.value <= self.allowed

    def line(self) -> str:
        """What is wrong, in one line."""
        if self.level is None or self.allowed is None:
            return f"{self.section} {self.name}: {self.value:.4f}, no level recorded"
        return f"{self.section} {self.name}: {self.value:.4f}, recorded {self.level:.4f}, allowed {self.allowed:.4f}"


def measure(folder: Path, report: Report | None = None) -> dict[str, dict[str, float]]:
    """Section -> figure -> value of every sample in ``folder``. Raises TrivetError when it holds none."""
    found: dict[str, dict[str, float]] = {}
    for section, (place, function) in SECTIONS.items():
        if (folder / place).exists():
            found[section] = {name: float(f"{value:.6g}") for name, value in function(folder / place, report)}
    if not found:
        raise TrivetError("no samples", field=str(folder), allowed=[place for place, _ in SECTIONS.values()])
    return found


def compare(measured: dict[str, dict[str, float]], folder: Path) -> list[Figure]:
    """Every figure beside its level. Raises TrivetError for no levels, or a level that is not measured any more."""
    levels = _read(folder / LEVELS)
    gone = [f"{s} {n}" for s, figures in levels.items() for n in figures if n not in measured.get(s, {})]
    if gone:
        raise TrivetError(f"{gone[0]} has a level but is not measured", field=LEVELS, allowed="record the levels anew")
    found = []
    for section, figures in measured.items():
        share, more = TOLERANCE[section]
        for name, value in figures.items():
            level = levels.get(section, {}).get(name)
            extra = COVERAGE_MORE if name.endswith(COVERAGE) else more
            allowed = None if level is None else level * (1.0 + share) + extra
            found.append(Figure(section, name, value, level, allowed))
    return found


def record(measured: dict[str, dict[str, float]], path: Path) -> None:
    """Write the levels file."""
    path.write_text(json.dumps(measured, indent=1) + "\n", encoding="utf-8")


def _read(path: Path) -> dict[str, dict[str, float]]:
    try:
        levels = json.loads(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise TrivetError(f"cannot be read: {error}", field=str(path), allowed="record the levels first") from error
    if not isinstance(levels, dict) or not all(isinstance(figures, dict) for figures in levels.values()):
        raise TrivetError("holds no mapping of figures", field=str(path))
    for section, figures in levels.items():
        for name, value in figures.items():
            if not (isinstance(value, int | float) and math.isfinite(value)):
                raise TrivetError(f"{section} {name} is not a number", field=str(path))
    return levels


def _serving(path: Path, report: Report | None) -> Iterator[tuple[str, float]]:
    from trivet.loop.calibrate_serving import measured_rows
    from trivet.loop.validate_serving import check, scores

    for score in scores(check(measured_rows(path), SERVING_SPLITS, report), "split", "quantity"):
        split, quantity = score.group
        name = f"{quantity}, {'as shipped' if split == 'nothing' else split + ' left out'}"
        yield f"{name}: median error", score.median_error
        yield f"{name}: p90 error", score.p90_error
        if split != "nothing":  # rows of the fit lie inside their intervals as a matter of course
            yield f"{name}: {COVERAGE}", abs(score.coverage - 0.8)
            yield f"{name}: log width", score.log_width


def _training(path: Path, report: Report | None) -> Iterator[tuple[str, float]]:
    from trivet.loop.predict_training import read_rows
    from trivet.loop.validate_training import check, summarise

    checked, failed = check(read_rows(path), TRAINING_SPLIT, report)
    whole = summarise(checked)["all"]
    name = f"tokens/s, {TRAINING_SPLIT} left out"
    yield f"{name}: median error", whole["median_error"]
    yield f"{name}: p90 error", whole["p90_error"]
    yield f"{name}: {COVERAGE}", abs(whole["coverage_80"] - 0.8)
    yield "runs that do not fit", 1.0 - whole["fit_in_memory"]
    yield "runs without an answer", float(len(failed))


def _operators(folder: Path, report: Report | None) -> Iterator[tuple[str, float]]:
    from trivet.chip import residual
    from trivet.loop.calibrate import ALL_KINDS, RECIPES, fit_kind, predict
    from trivet.loop.collective_tables import load_collectives
    from trivet.loop.fit_kernels import as_fitted, with_expert_kernels, with_kernels
    from trivet.loop.operator_tables import load

    shipped = residual.shipped()
    for number, kind in enumerate(ALL_KINDS):
        if report is not None:
            report("kernels", number, len(ALL_KINDS))
        data = load_collectives(folder) if kind == "collective" else load(folder, kind, 1 << 30)
        if data.precisions != shipped[kind].precisions:
            raise TrivetError(f"{kind}: precisions are not those of the coefficients", field=str(folder))
        close = shipped.get(kind + residual.KNOWN, shipped[kind])
        if kind == "moe":  # one fit, which knows the kernels
            seen = named = with_expert_kernels(data, close.kernels)[0]
        else:
            seen, named = as_fitted(data, RECIPES[kind])[0], with_kernels(data, close.kernels)[0] if close.kernels else data
        forgotten = predict(shipped[kind], seen, hide=True)[0]
        known = predict(close, named)[0]
        yield f"{kind}, as calibrated: median error", _median_error(known, data.seconds)
        yield f"{kind}, chip and family forgotten: median error", _median_error(forgotten, data.seconds)
        left_out = fit_kind(data, replace(RECIPES[kind], batch=SAMPLE_BATCH)).outside_s
        yield f"{kind}, trained on the other families: median error", _median_error(left_out, data.seconds)


def _median_error(predicted: Any, measured: Any) -> float:
    return float(np.median(np.abs(predicted / measured - 1.0)))


def _requests(folder: Path, report: Report | None) -> Iterator[tuple[str, float]]:
    from trivet.loop import predict_requests as loop

    logs = sorted(folder.glob("*.jsonl"))
    for number, path in enumerate(logs):
        if report is not None:
            report("request logs", number, len(logs))
        meta = loop.read_meta(loop.meta_path(path))
        if not meta.get("chip"):
            raise TrivetError("missing", field=f"{path.name}: meta: chip")
        log = loop.read_log(path)
        for row in loop.compare(log, loop.predict(log, meta, str(meta["chip"]))[0]):
            yield f"{path.stem}: {row['figure']}", abs(float(row["error"]))


SECTIONS: dict[str, tuple[str, Callable[[Path, Report | None], Iterator[tuple[str, float]]]]] = {
    "serving": ("serving.csv", _serving),
    "training": ("training.csv", _training),
    "operators": ("kernels", _operators),
    "requests": ("requests", _requests),
}
