"""Constants of dispatch and combine from the measured tables ``deepep_low_latency`` and ``moe_all_to_all`` (microseconds)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trivet.chip.catalogue import chip as catalogue_chip
from trivet.cloud.collectives import levels_of
from trivet.cloud.dispatch import PHASES, Constants, Exchange, terms, width
from trivet.errors import TrivetError
from trivet.units import Z80

Floats = NDArray[np.float64]
ROBUST = 0.3  # log error beyond which a row counts ever less
# Logs of floor, per expert, per token, inefficiency: a launch and two flags, little, little, two thirds of the link.
PRIOR, PRIOR_SIGMA = np.log([3e-5, 3e-8, 2e-8, 1.5]), np.array([1.5, 2.0, 2.5, 1.0])
STARTS = (PRIOR, np.log([3e-5, 3e-8, 3e-7, 0.1]))  # bound by the link, or by the kernel's work on each token
UNSEEN = 0.6  # log spread where one family alone was measured


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """One back end and phase: terms of ``dispatch.terms``, seconds, chip and family of each row."""

    experts: Floats
    tokens: Floats
    link: Floats
    seconds: Floats
    chip: NDArray[np.str_]
    family: NDArray[np.str_]

    def take(self, rows: NDArray[np.bool_]) -> Rows:
        return Rows(*(getattr(self, name)[rows] for name in self.__dataclass_fields__))


@dataclass(frozen=True, slots=True, eq=False)
class Fit:
    """Constants and log(predicted / measured) of each row with its chip left out (NaN where no other chip was measured)."""

    constants: Constants
    rows: Rows
    left_out: Floats


def load(folder: Path) -> dict[str, Rows]:
    """``backend|phase`` -> rows. Raises TrivetError when a table is missing."""
    import polars as pl

    parts: dict[str, list[Rows]] = {}
    for name in ("deepep_low_latency", "moe_all_to_all"):
        path = folder / f"{name}.parquet"
        if not path.is_file():
            raise TrivetError(f"{path} is not there", field="data folder")
        frame = pl.read_parquet(path)
        if name == "deepep_low_latency":
            frame = pl.concat([
                frame.rename({"num_token": "num_tokens", "num_topk": "topk", f"{phase}_avg_t_us": "us"}).with_columns(
                    pl.lit(name).alias("comm_backend"), pl.lit(phase).alias("phase"), pl.lit("").alias("comm_dtype"),
                    pl.lit(8).cast(pl.Int64).alias("ep_size")).select(_COLUMNS) for phase in PHASES])  # fmt: skip
        else:
            frame = frame.rename({"latency": "us"}).with_columns(pl.col("ep_size").cast(pl.Int64)).select(_COLUMNS)
        keys = ["chip", "comm_backend", "phase", "comm_dtype", "ep_size"]
        for values, part in frame.group_by(keys, maintain_order=True):
            chip, backend, phase, dtype, ranks = values
            parts.setdefault(f"{backend}|{phase}", []).append(
                _rows(str(chip), str(backend), str(phase), str(dtype), ranks, part)
            )
    return {
        key: Rows(*(np.concatenate([getattr(p, name) for p in parts[key]]) for name in Rows.__dataclass_fields__))
        for key in sorted(parts)
    }


_COLUMNS = [
    "chip",
    "comm_backend",
    "phase",
    "comm_dtype",
    "ep_size",
    "num_tokens",
    "hidden_size",
    "topk",
    "num_experts",
    "us",
]


def _rows(name: str, backend: str, phase: str, dtype: str, ranks: Any, part: Any) -> Rows:
    chip = catalogue_chip(name)
    tokens, hidden, k, experts = (
        part[c].cast(float).to_numpy() for c in ("num_tokens", "hidden_size", "topk", "num_experts")
    )
    load = Exchange(tokens, hidden, k, experts, float(ranks), width(dtype, backend, phase))
    found = terms(load, backend, levels_of(chip, int(ranks))[0].bandwidth_bytes_per_s)
    count = len(part)
    return Rows(
        *found,
        part["us"].cast(float).to_numpy() * 1e-6,
        np.full(count, chip.name, "U32"),
        np.full(count, chip.family, "U24"),
    )


def _seconds(logs: Floats, rows: Rows) -> Floats:
    floor, expert, token, inefficiency = np.exp(logs)
    return np.asarray(floor + expert * rows.experts + token * rows.tokens + inefficiency * rows.link)


def fit_rows(rows: Rows) -> Floats:
    """Logs of the four constants; every chip counts alike."""
    from scipy.optimize import least_squares

    names, inverse, count = np.unique(rows.chip, return_inverse=True, return_counts=True)
    weight = np.sqrt(len(rows.seconds) / len(names) / count[inverse])

    def residuals(logs: Floats) -> Floats:
        error = np.log(_seconds(logs, rows) / rows.seconds)
        return np.concatenate([weight * ROBUST * np.arctan(error / ROBUST), 0.3 * (logs - PRIOR) / PRIOR_SIGMA])

    found = [least_squares(residuals, start, xtol=1e-10, ftol=1e-10) for start in STARTS]
    return np.asarray(min(found, key=lambda one: one.cost).x)


def fit(rows: Rows) -> Fit:
    """Constants, and each chip predicted by those of the other chips."""
    left = np.full(len(rows.seconds), np.nan)
    names = sorted(set(rows.chip.tolist()))
    if len(names) > 1:
        for name in names:
            out = rows.chip == name
            left[out] = np.log(_seconds(fit_rows(rows.take(~out)), rows) / rows.seconds)[out]
    known = left[np.isfinite(left)]
    sigma = float(np.quantile(np.abs(known), 0.8)) / Z80 if known.size else UNSEEN
    floor, expert, token, inefficiency = (float(f"{v:.5g}") for v in np.exp(fit_rows(rows)))
    return Fit(Constants(floor, expert, token, inefficiency, float(f"{sigma:.4g}"), len(names)), rows, left)


def calibrate(folder: Path) -> dict[str, Fit]:
    """Every back end and phase of the tables in ``folder``."""
    return {key: fit(rows) for key, rows in load(folder).items()}


def to_json(fits: Mapping[str, Fit]) -> dict[str, Any]:
    """What ``data/calibration/dispatch.json`` holds."""
    return {
        "source": "fitted to deepep_low_latency and moe_all_to_all of NVIDIA aiconfigurator-core 0.12.0 (Apache-2.0)",
        "constants": {key: asdict(found.constants) for key, found in fits.items()},
    }


def scores(fits: Mapping[str, Fit]) -> list[dict[str, Any]]:
    """Errors with chips left out: rows, chips, median and p90 of |predicted / measured - 1|, coverage of the 80% interval
    (None where one chip alone was measured)."""
    out = []
    for key, found in fits.items():
        known = found.left_out[np.isfinite(found.left_out)]
        error = np.abs(np.expm1(known))
        out.append({
            "backend": key.split("|")[0], "phase": key.split("|")[1], "rows": len(found.rows.seconds),
            "chips": found.constants.chips, "median_error": float(np.median(error)) if known.size else None,
            "p90_error": float(np.quantile(error, 0.9)) if known.size else None,
            "coverage_80": float(np.mean(np.abs(known) <= Z80 * found.constants.log_sigma)) if known.size else None,
            "log_width": 2 * Z80 * found.constants.log_sigma,
        })  # fmt: skip
    return out
