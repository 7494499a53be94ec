"""Engines and residual of serving predictions from a file of measurements: what ``trivet calibrate`` runs for serving.

The order: constants of each engine on the physics (``calibrate_engine``), then the residual process on what they leave
(``calibrate_residual``), then the widths of the intervals on what is left out.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trivet.cloud.deployment import ENGINES
from trivet.cloud.engine import EngineProfile, profile
from trivet.cloud.engine.profiles import from_mapping, stored
from trivet.errors import TrivetError
from trivet.loop.calibrate_engine import Measured, fit_engine
from trivet.loop.calibrate_residual import fit_scales, folds, left_out, ship, spread_of
from trivet.loop.serving_features import Features, features
from trivet.loop.serving_model import Compiler, steady
from trivet.loop.serving_rows import Case, read_csv, understand

Floats = NDArray[np.float64]
LEFT_OUT = ("model", "family", "chip")  # what a case of no known campaign may lack


@dataclass(frozen=True, slots=True, eq=False)
class Calibration:
    """Constants by engine and the arrays of the residual, as the data files hold them."""

    engines: dict[str, Any]
    residual: dict[str, NDArray[np.generic]]

    def write(self, folder: Path) -> None:
        """``engines.json`` and ``serving_residual.npz``."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "engines.json").write_text(json.dumps({"engines": self.engines}, indent=1) + "\n", encoding="utf-8")
        buffer = io.BytesIO()
        np.savez_compressed(buffer, **self.residual)  # type: ignore[arg-type]
        (folder / "serving_residual.npz").write_bytes(buffer.getvalue())


def measured_rows(path: Path) -> list[Measured]:
    """Rows that can be predicted and have both measurements."""
    table = read_csv(path)
    out = []
    for number, row in enumerate(table.rows):
        case = understand(row, number)
        ttft, tpot = table.number(number, "ttft_ms") / 1e3, table.number(number, "tpot_ms") / 1e3
        if isinstance(case, Case) and ttft > 0 and tpot > 0:
            out.append(Measured(case, ttft, tpot))
    if not out:
        raise TrivetError("no row has a known layout, ttft_ms and tpot_ms", field=str(path))
    return out


def fit_engines(rows: Sequence[Measured], compiler: Compiler, evaluations: int = 25) -> dict[str, Any]:
    """Constants of every engine that has rows; the others keep what is shipped."""
    raw = stored()
    for engine in ENGINES:
        own = [row for row in rows if row.case.group["engine"] == engine]
        if own:
            raw = {**raw, engine: fit_engine(own, profile(engine), raw[engine], compiler, evaluations)}
    return raw


def profiles_of(engines: Mapping[str, Any]) -> dict[str, EngineProfile]:
    return {engine: from_mapping(engine, raw) for engine, raw in engines.items()}


def residuals(rows: Sequence[Measured], compiler: Compiler) -> tuple[Features, dict[str, Floats]]:
    """Features and log(measured / physics) of TTFT and TPOT."""
    physics = [steady(row.case, compiler) for row in rows]
    found = features([row.case for row in rows], physics)
    return found, {
        "tpot": np.log([row.tpot_s / float(s.tpot_s) for row, s in zip(rows, physics, strict=True)]),
        "ttft": np.log([row.ttft_s / float(s.ttft_s) for row, s in zip(rows, physics, strict=True)]),
    }


def calibrate(path: Path, report: Callable[[str, int, int], None] | None = None, evaluations: int = 25) -> Calibration:
    """Fit everything to the measurements at ``path`` (columns of ``serving_measured.csv``)."""
    tell = report or (lambda what, done, total: None)
    rows = measured_rows(path)
    compiler = Compiler()
    tell("engines", 0, 4)
    engines = fit_engines(rows, compiler, evaluations)
    found, targets = residuals(rows, Compiler(profiles_of(engines), compiler.parts))
    fitted = {}
    for step, (name, target) in enumerate(targets.items()):
        tell(f"residual of {name}", 1 + step, 4)
        logs, noise = fit_scales(found, target)
        spreads = []
        for kinds in (("quarter",), LEFT_OUT):
            errors = []
            for by in kinds:
                mean, deviation = left_out(found, target, logs, noise, list(folds(found, by)))
                errors.append(spread_of(target, mean, deviation))
            spreads.append(float(np.mean(errors)))
        fitted[name] = (logs, noise, (spreads[0], spreads[1]))
    tell("done", 4, 4)
    return Calibration(engines, ship(found, targets, fitted))
