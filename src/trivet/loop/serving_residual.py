"""What the physics leaves, learned: a Gaussian process in log space over dimensionless features and names.

The covariance is a sum of terms, each the product of "same name" indicators and a smooth kernel over load and layout:

    k(a, b) = sum_j  s_j^2  [names_j(a) = names_j(b)]  exp(-|D_j (x_a - x_b)|^2 / 2)

from what holds for all (one engine's habits) to what holds for one campaign of measurements. A case of a known campaign is
corrected by its neighbours; a model or a chip never seen only by the terms that do not name it, and the variance of the
missing terms widens its interval. The scales ``s_j`` and lengths are fitted by marginal likelihood, so they say how far
each kind of knowledge carries. Rows far out (unrecorded settings) are given their own noise.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from importlib import resources
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trivet.loop.serving_features import CONTINUOUS, NAMED, Features

Floats = NDArray[np.float64]

# Names that must agree, and the smooth kernel: a constant (""), "broad" (what is shared between campaigns bends slowly:
# BROAD octaves a feature), or with fitted lengths "long" and "short" (one campaign's own shape).
BROAD = np.array([6.0, 6.0, 6.0, 5.0, 6.0, 6.0, 8.0, 12.0, 12.0])
TERMS: tuple[tuple[tuple[str, ...], str], ...] = (
    ((), ""),
    (("engine", "mode"), "broad"),
    (("engine", "kind"), "broad"),
    (("engine", "precision", "family"), "broad"),
    (("setup", "mode"), "broad"),
    (("setup", "mode", "family"), "broad"),
    (("model", "precision"), "broad"),
    (("engine", "model", "chip", "precision", "mode"), "broad"),
    (("setup", "model", "chip", "precision", "mode"), "long"),
    (("setup", "model", "chip", "precision", "mode"), "short"),
    (("setup", "model", "chip", "precision", "mode", "layout"), "short"),
)
NOISE = len(TERMS)  # position of the noise scale among the logs of the scales
LENGTHS = NOISE + 1  # from here one log length a feature
CAMPAIGN = ("setup", "model", "chip", "precision", "mode")
SHORT = LENGTHS + len(CONTINUOUS)  # ratio of the short length to the long one


def starting_point() -> Floats:
    """Logs of the scales, the noise, the lengths and the ratio, before a fit."""
    scales = np.log(np.full(len(TERMS), 0.08))
    lengths = np.log(np.array([3.0, 3.0, 3.0, 2.0, 3.0, 3.0, 4.0, 6.0, 6.0]))
    return np.concatenate([scales, [np.log(0.03)], lengths, [np.log(0.4)]])


@dataclass(frozen=True, slots=True, eq=False)
class Codes:
    """Features with names as integers (-1: not among the training names)."""

    x: Floats
    names: NDArray[np.int64]


def encode(found: Features, vocabulary: list[list[str]]) -> Codes:
    columns = []
    for position, known in enumerate(vocabulary):
        index = {name: i for i, name in enumerate(known)}
        columns.append([index.get(str(name), -1) for name in found.names[:, position]])
    return Codes(found.x, np.array(columns, dtype=np.int64).T.reshape(-1, len(vocabulary)))


def vocabulary_of(found: Features) -> list[list[str]]:
    return [sorted(set(found.names[:, i].tolist())) for i in range(len(NAMED))]


def covariance(a: Codes, b: Codes, logs: Floats) -> Floats:
    """[len(a), len(b)] without noise."""
    scales = np.exp(2.0 * logs[: len(TERMS)])
    lengths = np.exp(logs[LENGTHS:SHORT])
    xa, xb = a.x / lengths, b.x / lengths
    square = np.maximum((xa**2).sum(1)[:, None] + (xb**2).sum(1)[None, :] - 2.0 * xa @ xb.T, 0.0)
    wide_a, wide_b = a.x / BROAD, b.x / BROAD
    wide = np.maximum((wide_a**2).sum(1)[:, None] + (wide_b**2).sum(1)[None, :] - 2.0 * wide_a @ wide_b.T, 0.0)
    smooth = {
        "": 1.0,
        "broad": np.exp(-0.5 * wide),
        "long": np.exp(-0.5 * square),
        "short": np.exp(-0.5 * square * np.exp(-2.0 * logs[SHORT])),
    }
    same = [
        (a.names[:, i][:, None] == b.names[:, i][None, :]) & (a.names[:, i] >= 0)[:, None] for i in range(len(NAMED))
    ]
    total: Floats = np.zeros((len(a.x), len(b.x)))
    for (names, length), scale in zip(TERMS, scales, strict=True):
        part: Any = smooth[length]
        if names:
            mask = same[NAMED.index(names[0])]
            for name in names[1:]:
                mask = mask & same[NAMED.index(name)]
            part = part * mask
        total += scale * part
    return total


@dataclass(frozen=True, slots=True, eq=False)
class Process:
    """A fitted process for one target. ``noise`` is each training row's variance; ``spread`` scales the deviation so that
    80% of cases left out fall inside, ``shrink`` is the share of the mean that helps them; both by tier (see ``tier``)."""

    codes: Codes
    vocabulary: list[list[str]]
    logs: Floats
    target: Floats
    noise: Floats
    spread: tuple[float, ...]
    shrink: tuple[float, ...]
    factor: Floats
    alpha: Floats

    def predict(self, found: Features) -> tuple[Floats, Floats]:
        """(mean, standard deviation) of log(measured / physics)."""
        codes = encode(found, self.vocabulary)
        means, deviations = [], []
        for start in range(0, len(codes.x), 1024):
            part = Codes(codes.x[start : start + 1024], codes.names[start : start + 1024])
            mean, variance = condition(self, part)
            means.append(mean)
            deviations.append(np.sqrt(variance))
        return np.concatenate(means or [np.zeros(0)]), np.concatenate(deviations or [np.zeros(0)])

    def correct(self, found: Features) -> tuple[Floats, Floats]:
        """(shift, deviation) for use: each tier of ``tier`` takes its share of the mean and its factor on the deviation, as
        cases left out in that way asked for."""
        mean, deviation = self.predict(found)
        tier = self.tier(found)
        return np.array(self.shrink)[tier] * mean, np.array(self.spread)[tier] * deviation

    def tier(self, found: Features) -> NDArray[np.int64]:
        """0: of a campaign that was fitted (same set-up, model, chip, precision and mode); 1: its model under its engine was;
        2: neither."""
        return np.where(self._known(found, CAMPAIGN), 0, np.where(self._known(found, ("engine", "model")), 1, 2))

    def _known(self, found: Features, names: tuple[str, ...]) -> NDArray[np.bool_]:
        columns = [NAMED.index(name) for name in names]
        known = {
            tuple(self.vocabulary[c][code] for c, code in zip(columns, row, strict=True))
            for row in self.codes.names[:, columns]
        }
        return np.array([tuple(row[columns]) in known for row in found.names], dtype=bool)


def condition(process: Process, codes: Codes) -> tuple[Floats, Floats]:
    """Posterior mean and variance, noise included."""
    from scipy.linalg import solve_triangular

    cross = covariance(codes, process.codes, process.logs)
    solved = solve_triangular(process.factor, cross.T, lower=True, check_finite=False)
    prior = float(np.exp(2.0 * process.logs[: len(TERMS)]).sum())
    variance = np.maximum(prior - (solved**2).sum(0), 1e-8) + np.exp(2.0 * process.logs[NOISE])
    return cross @ process.alpha, variance


def fit_process(
    found: Features,
    target: Floats,
    logs: Floats,
    noise: Floats | None = None,
    spread: tuple[float, ...] = (1.0, 1.0, 1.0),
    shrink: tuple[float, ...] = (1.0, 1.0, 1.0),
) -> Process:
    """Condition on ``target`` under given scales; ``noise`` defaults to the common one."""
    from scipy.linalg import cho_solve

    vocabulary = vocabulary_of(found)
    codes = encode(found, vocabulary)
    base = np.exp(2.0 * logs[NOISE])
    noise = np.full(len(target), base) if noise is None else noise
    factor: Floats = np.linalg.cholesky(covariance(codes, codes, logs) + np.diag(noise + 1e-8)).astype(np.float64)
    alpha = cho_solve((factor, True), target, check_finite=False)
    return Process(codes, vocabulary, logs, target, noise, spread, shrink, factor, np.asarray(alpha, np.float64))


def negative_log_likelihood(logs: Floats, codes: Codes, target: Floats, extra: Floats) -> float:
    """Of the training rows, with a weak prior that keeps the scales from running away."""
    from scipy.linalg import solve_triangular

    matrix = covariance(codes, codes, logs)
    matrix[np.diag_indices_from(matrix)] += np.exp(2.0 * logs[NOISE]) + extra + 1e-8
    try:
        factor = np.linalg.cholesky(matrix)
    except np.linalg.LinAlgError:
        return 1e10
    solved = solve_triangular(factor, target, lower=True, check_finite=False)
    prior = 0.5 * np.sum(((logs - starting_point()) / 1.5) ** 2)
    return float(0.5 * solved @ solved + np.log(np.diag(factor)).sum() + prior)


@lru_cache(maxsize=1)
def shipped() -> dict[str, Process]:
    """The processes of ``tpot`` and ``ttft`` that ship with the package."""
    with resources.files("trivet.data.calibration").joinpath("serving_residual.npz").open("rb") as file:
        held = dict(np.load(file, allow_pickle=False))
    found = Features(held["x"].astype(np.float64), held["names"])
    out = {}
    for name in ("tpot", "ttft"):
        arrays = (held[f"{name}_{what}"] for what in ("target", "logs", "noise", "spread", "shrink"))
        target, logs, noise, spread, shrink = (array.astype(np.float64) for array in arrays)
        out[name] = fit_process(found, target, logs, noise, tuple(spread.tolist()), tuple(shrink.tolist()))
    return out
