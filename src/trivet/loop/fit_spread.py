"""The spread of a fitted kind: how far a chip or a family that was left out lies from what the others foretell, and what is
left of each row, calibrated until 80% of the errors of what was left out lie inside."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from trivet.chip import residual
from trivet.loop.fit_operators import Recipe, Trained, take_apart
from trivet.loop.operator_tables import Samples
from trivet.units import Z80

Floats = NDArray[np.float64]


def spread_between(trained: Trained, data: Samples, recipe: Recipe) -> tuple[Floats, Floats]:
    """Log spread of the offsets of a left-out family, and of a left-out chip whose family is known, [3] each."""
    names, _, first = data.groups
    rows = dict(zip(names, first, strict=True))
    family_of = {k: str(data.family[row]) for k, row in rows.items()}
    chip_of = {k: k.split("|")[0] for k in names}
    missed: dict[str, list[Floats]] = {"family": [], "chip": []}
    for level, label_of in (("family", family_of), ("chip", chip_of)):
        for label in sorted(set(label_of.values())):
            out = frozenset(k for k in names if label_of[k] == label)
            family = family_of[min(out)]
            alone = len({chip_of[k] for k in names if family_of[k] == family}) == 1
            if family == "battlemage" or (level == "chip" and alone) or len(out) == len(names):
                continue
            parts = take_apart(trained, data, recipe, without=out)
            for key in sorted(out):
                pair = key.split("|", 1)[1]
                if pair in parts.group:
                    believed = parts.group[pair] + (data.covariate[rows[key]] - parts.centre) @ parts.covariate
                    believed = believed + parts.family.get(family_of[key], 0.0) * (level == "chip")
                    missed[level].append(trained.offsets[key] - believed)
    return np.clip(_scale(missed["family"]), 0.03, 0.6), np.clip(_scale(missed["chip"]), 0.03, 0.6)


def _scale(missed: list[Floats]) -> Floats:
    if not missed:
        return np.full(3, 0.15)
    return np.asarray(np.quantile(np.abs(np.array(missed)), 0.8, axis=0) / Z80)


def own_spread(error: Floats, shares: Floats, size: Floats, weight: Floats, factors: Floats) -> Floats:
    """Coefficients of ``own_sigma``: an 80% quantile regression of the error, less what the factors explain."""
    if len(error) > 20000:  # every so many rows: the form has five numbers
        pick = np.linspace(0, len(error) - 1, 20000).astype(int)
        error, shares, size, weight = error[pick], shares[pick], size[pick], weight[pick]
        factors = factors[pick] if factors.ndim == 2 else factors
    columns = residual.spread_columns(shares, size)
    coefficients = np.zeros(columns.shape[1])
    coefficients[0] = np.log(np.quantile(error, 0.8) + 1e-4)
    rate = 0.02
    for step in range(1500):  # pinball loss in log space by subgradient, on a fixed schedule
        over = np.log(error + 1e-4) > columns @ coefficients
        slope = columns.T @ (weight * (0.2 - over)) / weight.sum()
        coefficients -= rate * (1.0 - step / 1600.0) * slope * 5.0
    total = np.exp(columns @ coefficients) / Z80
    own = np.sqrt(np.maximum(total**2 - ((shares * factors) ** 2).sum(1), (0.35 * total) ** 2))
    design = columns * np.sqrt(weight)[:, None]
    fitted = np.linalg.solve(
        design.T @ design + 1e-6 * np.eye(design.shape[1]), design.T @ (np.log(own) * np.sqrt(weight))
    )
    return _conformal(fitted, columns, error, shares, weight, factors)


def _conformal(
    fitted: Floats, columns: Floats, error: Floats, shares: Floats, weight: Floats, factors: Floats
) -> Floats:
    """Shift the own spread until exactly 80% of the (weighted) errors lie inside the interval."""
    common = ((shares * factors) ** 2).sum(1)
    low, high = -3.0, 3.0
    for _ in range(50):
        middle = 0.5 * (low + high)
        own = np.exp(np.clip(columns @ fitted + middle, -4.5, 0.5))
        inside = np.average(error <= Z80 * np.sqrt(own**2 + common), weights=weight)
        low, high = (middle, high) if inside < 0.8 else (low, middle)
    fitted = fitted.copy()
    fitted[0] += 0.5 * (low + high)
    return fitted


def spread_labels(data: Samples) -> NDArray[Any]:
    """Whose spread each row has: its precision's, products timed with their host one of their own."""
    return np.where(data.library == "vllm_host", residual.HOST, data.precision)


def by_precision(
    kind: residual.Kind, row: int, precision: NDArray[Any], error: Floats, shares: Floats, size: Floats, factors: Floats, use: Any
) -> dict[str, float]:
    """Shift of the log spread for each precision: the quantile that its own errors ask for, at most a factor of 2.5 (but
    where the host's cost is in it)."""
    found = {}
    for label in np.unique(precision):
        rows = np.flatnonzero((precision == label) & use)
        if len(rows) < 200:
            continue
        spread = factors[rows] if factors.ndim == 2 else factors
        columns = residual.spread_columns(shares[rows], size[rows])
        shifted = _conformal(kind.spread[row], columns, error[rows], shares[rows], np.ones(len(rows)), spread)
        found[f"{row}|{label}"] = float(np.clip(shifted[0] - kind.spread[row][0], -0.9, 3.0 if label == residual.HOST else 0.9))
    return found


ENGINE_SHARE = 0.7  # of what an engine's left-out errors ask beyond those of its precision


def by_engine(
    kind: residual.Kind,
    data: Samples,
    engine: NDArray[Any],
    error: Floats,
    shares: Floats,
    size: Floats,
    factors: Floats,
    use: Any,
) -> dict[str, float]:
    """Shifts of a new chip's log spread for each precision and engine that two families and more were measured with: one
    engine runs a kernel or two, another picks among four by shape, and is foretold less well."""
    found = {}
    for library in np.unique(engine):
        mine = use & (engine == library)
        for key, shift in by_precision(kind, 1, data.precision, error, shares, size, factors, mine).items():
            label = key.partition("|")[2]
            if len(np.unique(data.family[mine & (data.precision == label)])) > 1:
                usual = kind.adjust.get(key, 0.0)
                found[f"{key}|{library}"] = usual + ENGINE_SHARE * (shift - usual)
    return found
