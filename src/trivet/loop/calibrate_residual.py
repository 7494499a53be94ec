"""Fit the residual process of serving predictions, and check it on what was left out.

The scales are fitted by marginal likelihood with an analytic gradient. Rows far out get noise of their own (Student-t
weights, nu = 4), so that an unrecorded setting of one campaign does not bend the rest. Interval widths are then scaled so
that 80% of the cases of left-out models, chip families and quarters of the known campaigns fall inside.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from trivet.loop.serving_features import NAMED, Features
from trivet.loop.serving_residual import (
    BROAD,
    CAMPAIGN,
    LENGTHS,
    NOISE,
    SHORT,
    TERMS,
    Codes,
    Process,
    encode,
    fit_process,
    starting_point,
    vocabulary_of,
)  # fmt: skip

Floats = NDArray[np.float64]
Z80 = 1.2815515655446004
DEGREES = 4.0  # of freedom of the rows' noise


def likelihood_and_gradient(logs: Floats, codes: Codes, target: Floats, extra: Floats) -> tuple[float, Floats]:
    """Negative log marginal likelihood with a weak prior on the logs, and its gradient."""
    from scipy.linalg import cho_solve

    scales, lengths = np.exp(2.0 * logs[: len(TERMS)]), np.exp(logs[LENGTHS:SHORT])
    x = codes.x / lengths
    square = np.maximum((x**2).sum(1)[:, None] + (x**2).sum(1)[None, :] - 2.0 * x @ x.T, 0.0)
    ratio = float(np.exp(-2.0 * logs[SHORT]))
    wide = codes.x / BROAD
    broad = np.exp(-0.5 * np.maximum((wide**2).sum(1)[:, None] + (wide**2).sum(1)[None, :] - 2.0 * wide @ wide.T, 0.0))
    long, short = np.exp(-0.5 * square), np.exp(-0.5 * square * ratio)
    same = [codes.names[:, i][:, None] == codes.names[:, i][None, :] for i in range(len(NAMED))]
    parts = []
    for (names, length), scale in zip(TERMS, scales, strict=True):
        smooth = {"long": long, "short": short, "broad": broad}.get(length, np.ones_like(long))
        for name in names:
            smooth = smooth * same[NAMED.index(name)]
        parts.append(scale * smooth)
    matrix = np.sum(parts, axis=0)
    noise = np.exp(2.0 * logs[NOISE])
    matrix[np.diag_indices_from(matrix)] += noise + extra + 1e-8
    factor = np.linalg.cholesky(matrix)
    inverse = cho_solve((factor, True), np.eye(len(target)), check_finite=False)
    alpha = inverse @ target
    core = inverse - np.outer(alpha, alpha)
    gradient = np.zeros_like(logs)
    long_sum = sum(p for p, (_, length) in zip(parts, TERMS, strict=True) if length == "long")
    short_sum = sum(p for p, (_, length) in zip(parts, TERMS, strict=True) if length == "short")
    for j, part in enumerate(parts):
        gradient[j] = np.sum(core * part)
    gradient[NOISE] = np.trace(core) * noise
    weighted = core * (long_sum + ratio * short_sum)
    for d in range(len(lengths)):
        difference = (x[:, d][:, None] - x[:, d][None, :]) ** 2
        gradient[LENGTHS + d] = 0.5 * np.sum(weighted * difference)
    gradient[SHORT] = 0.5 * np.sum(core * short_sum * square) * ratio
    deviation = (logs - starting_point()) / PRIOR_WIDTH
    value = 0.5 * target @ alpha + np.log(np.diag(factor)).sum() + 0.5 * np.sum(deviation**2)
    return float(value), gradient + deviation / PRIOR_WIDTH


PRIOR_WIDTH = 1.2


def thinned(found: Features, most: int = 12) -> NDArray[np.int64]:
    """At most ``most`` rows of each campaign, evenly spaced: enough to tell the scales apart."""
    columns = [NAMED.index(name) for name in CAMPAIGN]
    _, owner = np.unique([" ".join(row) for row in found.names[:, columns]], return_inverse=True)
    members = [np.flatnonzero(owner == c) for c in range(owner.max() + 1)]
    return np.sort(np.concatenate([m[np.unique(np.linspace(0, len(m) - 1, most).astype(int))] for m in members]))


def fit_scales(found: Features, target: Floats, rounds: int = 3, steps: int = 15) -> tuple[Floats, Floats]:
    """(logs, noise variance per row)."""
    from scipy.optimize import minimize

    rows = thinned(found)
    part = found.rows(rows)
    codes = encode(part, vocabulary_of(part))
    logs, extra = starting_point(), np.zeros(len(target))
    for _ in range(rounds):
        result = minimize(
            likelihood_and_gradient,
            logs,
            args=(codes, target[rows], extra[rows]),
            jac=True,
            method="L-BFGS-B",
            options={"maxiter": steps},
            bounds=[(v - 3.5, v + 3.5) for v in starting_point()],
        )
        logs = result.x
        extra = row_noise(found, target, logs, extra) - np.exp(2.0 * logs[NOISE])
    return logs, np.exp(2.0 * logs[NOISE]) + extra


def row_noise(found: Features, target: Floats, logs: Floats, extra: Floats) -> Floats:
    """Noise variance of each row from its leave-one-out error: heavy tails as a scale mixture."""
    from scipy.linalg import cho_solve

    base = np.exp(2.0 * logs[NOISE])
    process = fit_process(found, target, logs, base + extra)
    inverse = cho_solve((process.factor, True), np.eye(len(target)), check_finite=False)
    error = process.alpha / np.diag(inverse)
    variance = np.maximum(1.0 / np.diag(inverse) - extra, base)
    return base * np.maximum((DEGREES + error**2 / variance) / (DEGREES + 1.0), 1.0) + 0.0


def folds(found: Features, by: str, seed: int = 0) -> Iterator[NDArray[np.bool_]]:
    """Masks of what is left out: each value of a name, or four random quarters of the configurations ("quarter"; a
    configuration measured more than once is left out whole) or of the campaigns ("campaign")."""
    if by in ("quarter", "campaign"):
        names = found.names[:, :7] if by == "quarter" else found.names[:, [NAMED.index(name) for name in CAMPAIGN]]
        load = np.round(found.x[:, :6], 6).astype(str) if by == "quarter" else np.empty((len(found.x), 0), dtype=str)
        texts = [" ".join(row) for row in np.concatenate([load, names], axis=1)]
        _, group = np.unique(texts, return_inverse=True)
        draw = np.random.default_rng(seed).permutation(group.max() + 1) % 4
        for k in range(4):
            yield draw[group] == k
        return
    column = found.names[:, NAMED.index(by)]
    for value in sorted(set(column.tolist())):
        yield column == value


def left_out(
    found: Features, target: Floats, logs: Floats, noise: Floats, masks: Sequence[NDArray[np.bool_]]
) -> tuple[Floats, Floats]:
    """(mean, deviation) of every row, each from a process that did not see its fold. NaN where no fold holds it."""
    mean, deviation = np.full(len(target), np.nan), np.full(len(target), np.nan)
    for mask in masks:
        if mask.all():
            continue
        process = fit_process(found.rows(~mask), target[~mask], logs, noise[~mask])
        mean[mask], deviation[mask] = process.predict(found.rows(mask))
    return mean, deviation


def spread_of(target: Floats, mean: Floats, deviation: Floats) -> float:
    """Factor on the deviation so that 80% lie inside the 80% interval."""
    good = np.isfinite(mean)
    return float(np.quantile(np.abs(target - mean)[good] / deviation[good], 0.8) / Z80)


def shrink_of(target: Floats, mean: Floats) -> float:
    """Share of the mean that helps a case left out most: the least mean absolute error over 0, 0.1 ... 1."""
    good = np.isfinite(mean)
    shares = np.linspace(0.0, 1.0, 11)
    return float(shares[np.argmin([np.abs(target[good] - share * mean[good]).mean() for share in shares])])


Fitted = tuple[Floats, Floats, tuple[float, ...], tuple[float, ...]]  # logs, noise, spread and shrink by tier


def ship(found: Features, targets: dict[str, Floats], fitted: dict[str, Fitted]) -> dict[str, NDArray[np.generic]]:
    """Arrays of the data file."""
    out: dict[str, NDArray[np.generic]] = {"x": found.x.astype(np.float32), "names": found.names}
    for name, target in targets.items():
        logs, noise, spread, shrink = fitted[name]
        out[f"{name}_target"] = target.astype(np.float32)
        out[f"{name}_logs"] = logs
        out[f"{name}_noise"] = noise.astype(np.float32)
        out[f"{name}_spread"] = np.array(spread)
        out[f"{name}_shrink"] = np.array(shrink)
    return out


__all__ = ["Fitted", "Process", "fit_scales", "folds", "left_out", "ship", "shrink_of", "spread_of"]
