"""Engines and residual of serving predictions from a file of measurements: what ``trivet calibrate`` runs for serving.

The order: constants of each engine on the physics (``calibrate_engine``), then the residual process on what they leave
(``calibrate_residual``), then the widths of the intervals on what is left out.
"""

from __future__ import annotations

import io
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trivet.cloud.deployment import ENGINES
from trivet.cloud.engine import EngineProfile
from trivet.cloud.engine.profiles import from_mapping, stored
from trivet.errors import TrivetError
from trivet.loop.calibrate_engine import EngineFit, Measured, fit_engine
from trivet.loop.calibrate_residual import Fitted, LeftOut, fit_scales, folds, joined, owners, ship, widths_of
from trivet.loop.serving_features import Features, features
from trivet.loop.serving_model import Compiler, steady
from trivet.loop.serving_residual import FORMS, fit_process, group_names, shipped
from trivet.loop.serving_rows import Case, read_csv, understand

Floats = NDArray[np.float64]
# What a row can hold: milliseconds to the first and between further tokens, seconds a request, output tokens a second.
MEASURES = ("ttft_ms", "tpot_ms", "latency_s", "output_tokens_per_s")


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
        np.savez_compressed(buffer, **self.residual)  # type: ignore[arg-type]  # no array is its flag
        (folder / "serving_residual.npz").write_bytes(buffer.getvalue())


def measured_rows(path: Path, whole: bool = True) -> list[Measured]:
    """Rows that can be predicted and have both measurements; where not ``whole``, rows with any of ``MEASURES``."""
    table = read_csv(path)
    out = []
    for number, row in enumerate(table.rows):
        case = understand(row, number)
        if not isinstance(case, Case):
            continue
        found = _measured(case, *(table.number(number, name) for name in MEASURES))
        both = found.ttft_s > 0 and found.tpot_s > 0
        if both or (not whole and (found.ttft_s > 0 or found.tpot_s > 0 or found.latency_s > 0)):
            out.append(found)
    if not out:
        needs = "ttft_ms and tpot_ms" if whole else f"any of {', '.join(MEASURES)}"
        raise TrivetError(f"no row has a known layout and {needs}", field=str(path))
    return out


def _measured(case: Case, ttft_ms: float, tpot_ms: float, latency_s: float, rate: float) -> Measured:
    """``rate``: output tokens a second of all clients; a request of the closed loop lasts clients x answer / rate."""
    lasted = latency_s if latency_s > 0 else case.concurrency * case.osl / rate if rate > 0 else math.nan
    return Measured(case, ttft_ms / 1e3, tpot_ms / 1e3, lasted)


def fit_engines(rows: Sequence[Measured], compiler: Compiler, evaluations: int = 12) -> dict[str, EngineFit]:
    """The fit of every engine that has rows, from the shipped constants."""
    raw = stored()
    out = {}
    for engine in ENGINES:
        own = [row for row in rows if row.case.group["engine"] == engine]
        if own:
            out[engine] = fit_engine(own, engine, raw[engine], compiler, evaluations)
    return out


def refitted(
    fits: Mapping[str, EngineFit], rows: Sequence[Measured], gone: NDArray[np.bool_]
) -> dict[str, EngineProfile]:
    """Profiles as if the rows ``gone`` had not been there."""
    engines = np.array([row.case.group["engine"] for row in rows])
    return profiles_of({
        e: fit.without(gone[engines == e]) if gone[engines == e].any() else fit.raw for e, fit in fits.items()
    })  # fmt: skip


def profiles_of(engines: Mapping[str, Any]) -> dict[str, EngineProfile]:
    return {engine: from_mapping(engine, raw) for engine, raw in engines.items()}


def residuals(rows: Sequence[Measured], compiler: Compiler) -> tuple[Features, dict[str, Floats]]:
    """Features and log(measured / physics) of TTFT and TPOT."""
    physics = [steady(row.case, compiler) for row in rows]
    found = features([row.case for row in rows], physics, compiler)
    return found, {
        "tpot": np.log([row.tpot_s / float(s.tpot_s) for row, s in zip(rows, physics, strict=True)]),
        "ttft": np.log([row.ttft_s / float(s.ttft_s) for row, s in zip(rows, physics, strict=True)]),
    }


def left_out_errors(
    rows: Sequence[Measured], fits: Mapping[str, EngineFit], compiler: Compiler,
    scales: Mapping[str, tuple[Floats, Floats, Floats]], masks: Sequence[NDArray[np.bool_]],
    report: Callable[[int], None] | None = None,
) -> dict[str, list[LeftOut]]:  # fmt: skip
    """For TPOT and TTFT what each fold leaves out, constants and process refitted without it, the scales kept."""
    out: dict[str, list[LeftOut]] = {name: [] for name in scales}
    for number, mask in enumerate(masks):
        if report is not None:
            report(number)
        found, targets = residuals(rows, Compiler(refitted(fits, rows, mask), compiler.parts, compiler.rooms))
        owner, part = owners(found)[mask], found.rows(mask)
        for name, (logs, noise, odd) in scales.items():
            process = fit_process(found.rows(~mask), targets[name][~mask], FORMS[name], logs, noise[~mask], odd[~mask])
            mean, deviation = process.predict(part)
            groups = np.array(group_names(part))
            out[name].append(LeftOut(targets[name][mask], mean, deviation, process.tier(part), groups, owner))
    return out


def masks_of(rows: Sequence[Measured], by: str) -> list[NDArray[np.bool_]]:
    """Rows that each fold leaves out: by "model" (checkpoints of one shape together), "family", "chip"."""
    values = np.array([shape(row) if by == "model" else row.case.group[by] for row in rows])
    return [mask for value in sorted(set(values.tolist())) if not (mask := values == value).all()]


def shape(row: Measured) -> str:
    """Checkpoints of one architecture share it."""
    a = row.case.pools[-1].deployment.architecture
    return f"{a.model_type} {a.hidden} {a.num_layers}"


def rebased(path: Path) -> Calibration:
    """The shipped calibration on today's kernels: constants and scales stay, what the residual corrects is counted anew. For a
    change of the operators' timing that is too small to fit the engines again."""
    rows = measured_rows(path)
    found, targets = residuals(rows, Compiler())
    held = shipped()
    fitted: dict[str, Fitted] = {}
    for name, process in held.items():
        if len(process.noise) != len(rows):
            raise TrivetError("not the rows of the shipped calibration", field=str(path))
        fitted[name] = (process.logs, process.noise, process.odd, process.widths)
    return Calibration(stored(), ship(found, targets, fitted))


def calibrate(path: Path, report: Callable[[str, int, int], None] | None = None, evaluations: int = 12) -> Calibration:
    """Fit everything to the measurements at ``path`` (columns of ``serving_measured.csv``)."""
    tell = report or (lambda what, done, total: None)
    rows = measured_rows(path)
    compiler = Compiler()
    tell("engines", 0, 5)
    fits = fit_engines(rows, compiler, evaluations)
    engines = {**stored(), **{e: fit.raw for e, fit in fits.items()}}
    found, targets = residuals(rows, Compiler(profiles_of(engines), compiler.parts, compiler.rooms))
    scales = {}
    for step, (name, target) in enumerate(targets.items()):
        tell(f"residual of {name}", 1 + step, 5)
        scales[name] = fit_scales(found, target, FORMS[name])
    masks = [*folds(found, "quarter"), *folds(found, "campaign")]
    masks += [mask for by in ("model", "chip", "family") for mask in masks_of(rows, by)]
    left = left_out_errors(
        rows, fits, compiler, scales, masks, lambda n: tell("intervals", 300 + 200 * n // len(masks), 500)
    )
    fitted = {name: (*scales[name], widths_of(joined(left[name]))) for name in scales}
    tell("done", 5, 5)
    return Calibration(engines, ship(found, targets, fitted))
