"""Fit the residual process of serving predictions by how well it predicts what it did not see.

The scales are chosen by the predictive score of what is left out: each model shape, chip and chip family, random quarters of
the campaigns and of the configurations. All folds' predictions follow from one inverse of the covariance, so the score
has an analytic gradient. It is a Student-t score, rows of large campaigns weighing less: a campaign whose settings are not
recorded decides nothing. (Marginal likelihood fits the seen better and carries over worse: it trusts names.)

Between rounds the rows far out get noise of their own, and odd campaigns a larger variance.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from trivet.loop.serving_features import Features
from trivet.loop.serving_residual import (
    KERNELS,
    Codes,
    Form,
    Widths,
    campaigns_of,
    covariance,
    encode,
    square,
    vocabulary_of,
)  # fmt: skip
from trivet.units import Z80

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]
SCORE_DEGREES = 4.0  # of freedom of the score
ROW_DEGREES, CAMPAIGN_DEGREES = 4.0, 2.0  # of the rows' noise and the campaigns' terms
PRIOR_WIDTH = 1.2  # of the logs around ``Form.start``
MOST = 12  # rows of a campaign that steer the fit
SPLITS = ("shape", "chip", "family", "campaign", "quarter")  # whose folds are scored


def owners(found: Features) -> NDArray[np.int64]:
    """Number of each row's campaign."""
    texts = [" ".join(names) for names in campaigns_of(found)]
    return np.unique(texts, return_inverse=True)[1].astype(np.int64)


def thinned(found: Features, most: int = MOST) -> NDArray[np.int64]:
    """At most ``most`` rows of each campaign, evenly spaced: enough to tell the scales apart."""
    owner = owners(found)
    members = [np.flatnonzero(owner == c) for c in range(owner.max() + 1)]
    return np.sort(np.concatenate([m[np.unique(np.linspace(0, len(m) - 1, most).astype(int))] for m in members]))


def folds(found: Features, by: str, seed: int = 0) -> Iterator[Mask]:
    """Masks of what is left out: each value of a name, or four random quarters of the configurations ("quarter"; a
    configuration measured more than once is left out whole) or of the campaigns ("campaign")."""
    if by in ("quarter", "campaign"):
        if by == "quarter":
            load = np.round(found.x[:, :6], 6).astype(str)
            texts = [" ".join(row) for row in np.concatenate([load, found.names[:, :7]], axis=1)]
        else:
            texts = [" ".join(names) for names in campaigns_of(found)]
        _, group = np.unique(texts, return_inverse=True)
        draw = np.random.default_rng(seed).permutation(group.max() + 1) % 4
        for k in range(4):
            yield draw[group] == k
        return
    column = found.named(by)
    for value in sorted(set(column.tolist())):
        mask = np.asarray(column == value, dtype=bool)
        if not mask.all():
            yield mask


@dataclass(frozen=True, slots=True, eq=False)
class Task:
    """What the score needs of the training rows. ``extra``: a row's noise variance beyond the common one; ``weight``: its
    weight in the score; ``odd``: the factor of its campaign."""

    form: Form
    codes: Codes
    target: Floats
    extra: Floats
    odd: Floats
    weight: Floats
    masks: Sequence[Mask]


def score_and_gradient(logs: Floats, task: Task) -> tuple[float, Floats]:
    """Negative log score of all folds with a weak prior on the logs, and its gradient.

    With ``P`` the inverse of the noisy covariance and ``A`` that of its block of a fold, the fold's errors are
    ``A (P y)_fold`` and the variances those of ``A``'s diagonal.
    """
    form, target = task.form, task.target
    parts, distances = _parts(logs, task)
    matrix = parts[0].copy()
    for part in parts[1:]:
        matrix += part
    noise = float(np.exp(2.0 * logs[form.noise]))
    matrix[np.diag_indices_from(matrix)] += noise + task.extra + 1e-8
    inverse = np.linalg.inv(matrix)
    alpha = inverse @ target
    outer = np.zeros_like(inverse)  # derivative by ``inverse``
    value = 0.0
    for mask in task.masks:
        fold = np.flatnonzero(mask)
        block = np.linalg.inv(inverse[np.ix_(fold, fold)])
        error, variance = block @ alpha[fold], np.maximum(np.diag(block) - task.extra[fold], 1e-8)
        weight, ratio = task.weight[fold], error**2 / variance
        value += float(
            weight @ (0.5 * (SCORE_DEGREES + 1.0) * np.log1p(ratio / SCORE_DEGREES) + 0.5 * np.log(variance))
        )
        slope = 0.5 * (SCORE_DEGREES + 1.0) / (SCORE_DEGREES + ratio)
        by_error = block @ (weight * slope * 2.0 * error / variance)
        by_variance = weight * (0.5 - slope * ratio) / variance
        outer[np.ix_(fold, fold)] -= np.outer(by_error, error) + (block * by_variance) @ block
        outer[fold] += np.outer(by_error, target)
    by_matrix = -(inverse @ (0.5 * (outer + outer.T)) @ inverse)
    gradient = np.zeros_like(logs)
    for j, part in enumerate(parts):
        gradient[j] = 2.0 * np.vdot(by_matrix, part)
    gradient[form.noise] = 2.0 * noise * np.trace(by_matrix)
    for kernel in KERNELS:
        own = by_matrix * sum(p for p, (_, k) in zip(parts, form.terms, strict=True) if k == kernel)
        x = distances[kernel]
        rows, cross = own.sum(axis=1), own @ x
        gradient[form.lengths(kernel)] = 2.0 * (rows @ x**2 - (x * cross).sum(axis=0))
    deviation = (logs - form.start()) / PRIOR_WIDTH
    return value + 0.5 * float(np.sum(deviation**2)), gradient + deviation / PRIOR_WIDTH


def _parts(logs: Floats, task: Task) -> tuple[list[Floats], dict[str, Floats]]:
    """([n, n] of each term, features over lengths of each kernel)."""
    form, codes = task.form, task.codes
    scaled = {k: codes.x[:, form.columns(k)] / np.exp(logs[form.lengths(k)]) for k in KERNELS}
    smooth = {k: np.exp(-0.5 * square(x, x)) for k, x in scaled.items()}
    widened = form.odd()
    parts = []
    for j, (_, kernel) in enumerate(form.terms):
        same = codes.joint[:, j][:, None] == codes.joint[:, j][None, :]
        part = np.where(same, smooth[kernel], 0.0) if kernel else same.astype(np.float64)
        part *= np.exp(2.0 * logs[j]) * (task.odd[:, None] if widened[j] else 1.0)
        parts.append(part)
    return parts, scaled


def fit_scales(
    found: Features, target: Floats, form: Form, rounds: int = 3, steps: int = 12
) -> tuple[Floats, Floats, Floats]:
    """(logs, noise variance of each row, factor of each row's campaign)."""
    from scipy.optimize import minimize

    rows = thinned(found)
    part = found.rows(rows)
    codes = encode(part, vocabulary_of(part), form)
    owner = owners(found)
    weight = np.minimum(np.bincount(owner)[owner], MOST)[rows] ** -0.5
    masks = [mask[rows] for by in SPLITS for mask in folds(found, by) if mask[rows].any()]
    logs, extra, odd = form.start(), np.zeros(len(target)), np.ones(len(target))
    for number in range(rounds):
        result = minimize(
            score_and_gradient,
            logs,
            args=(Task(form, codes, target[rows], extra[rows], odd[rows], weight, masks),),
            jac=True,
            method="L-BFGS-B",
            options={"maxiter": steps},
            bounds=[(v - 3.5, v + 3.5) for v in form.start()],
        )
        logs = result.x
        if number < rounds - 1:
            extra, odd = heavy_tails(found, target, form, logs, extra, odd)
    return logs, np.exp(2.0 * logs[form.noise]) + extra, odd


def heavy_tails(
    found: Features, target: Floats, form: Form, logs: Floats, extra: Floats, odd: Floats
) -> tuple[Floats, Floats]:
    """(noise of each row beyond the common one, factor of each row's campaign), from the errors of rows and of whole
    campaigns left out: tails as a scale mixture."""
    codes = encode(found, vocabulary_of(found), form)
    base = float(np.exp(2.0 * logs[form.noise]))

    def inverse_with(extra: Floats) -> Floats:
        matrix = covariance(codes, codes, form, logs, odd)
        matrix[np.diag_indices_from(matrix)] += base + extra + 1e-8
        return np.asarray(np.linalg.inv(matrix))

    inverse = inverse_with(extra)
    diagonal = np.diag(inverse)
    error = (inverse @ target) / diagonal
    variance = np.maximum(1.0 / diagonal - extra, base)
    extra = base * np.maximum((ROW_DEGREES + error**2 / variance) / (ROW_DEGREES + 1.0), 1.0) - base
    inverse = inverse_with(extra)
    alpha, owner = inverse @ target, owners(found)
    own = float(np.exp(2.0 * logs[: len(form.terms)])[form.odd()].sum())
    factor = np.ones(len(target))
    for campaign in range(owner.max() + 1):
        rows = np.flatnonzero(owner == campaign)
        block = np.linalg.inv(inverse[np.ix_(rows, rows)])
        mean = float((block @ alpha[rows]).mean())
        spread = max(float(block.mean()) - 0.8 * own * (odd[rows[0]] - 1.0), 1e-4)
        far = (CAMPAIGN_DEGREES + mean**2 / spread) / (CAMPAIGN_DEGREES + 1.0)
        factor[rows] = max(1.0, 1.0 + (far - 1.0) * spread / own)
    return extra, factor


# At most 0.6 of the mean: the scales have seen these folds. With scales fitted without the model as well, 0.4 to 0.6 was best of
# both quantities.
SHARES, LEANS = np.linspace(0.0, 0.6, 7), np.linspace(0.0, 1.0, 5)
P90_WEIGHT = 1.0 / 3.0  # of the p90 of the relative error beside its median


def share_and_lean(target: Floats, mean: Floats, deviation: Floats, shares: Floats = SHARES) -> tuple[float, float]:
    """(share of the mean, variances below the middle) with the least relative error of cases left out: its median and a third
    of its p90. The variance is that of an interval that covers 80% of them."""

    def loss(share: float, lean: float) -> float:
        spread = deviation * np.quantile(np.abs(target - share * mean) / deviation, 0.8) / Z80
        return _loss(target, share * mean, spread, lean)

    found = min((loss(share, lean), share, lean) for share in shares.tolist() for lean in LEANS.tolist())
    return found[1], found[2]


def lean_of(target: Floats, middle: Floats, spread: Floats) -> float:
    """Variances below the middle with the least relative error, under the deviations that the intervals are given."""
    return float(min((_loss(target, middle, spread, lean), lean) for lean in LEANS.tolist())[1])


def _loss(target: Floats, middle: Floats, spread: Floats, lean: float) -> float:
    """Median of the relative error and a share of its p90, the value ``lean`` variances below the middle."""
    error = np.abs(np.expm1(middle - np.minimum(lean * spread**2, spread) - target))
    return float(np.median(error) + P90_WEIGHT * np.quantile(error, 0.9))


@dataclass(frozen=True, slots=True, eq=False)
class LeftOut:
    """Rows that some fold left out: what was measured, what was predicted; their tier, group and campaign."""

    target: Floats
    mean: Floats
    deviation: Floats
    tier: NDArray[np.int64]
    group: NDArray[np.str_]
    campaign: NDArray[np.int64]

    def rows(self, index: Mask) -> LeftOut:
        return LeftOut(
            self.target[index], self.mean[index], self.deviation[index], self.tier[index], self.group[index],
            self.campaign[index],
        )  # fmt: skip


def joined(parts: Sequence[LeftOut]) -> LeftOut:
    return LeftOut(*(np.concatenate([getattr(p, name) for p in parts]) for name in LeftOut.__dataclass_fields__))


TRUST = 5.0  # campaigns after which a group's own width counts half


def widths_of(left: LeftOut) -> Widths:
    """Shares and factors from what was left out. A group's factor is its own 80% quantile drawn towards that of all, the
    more so the fewer campaigns it has; a last common factor sets the coverage of each tier. Its lean is drawn likewise."""
    groups = sorted(set(left.group.tolist()))
    share, lean, factor = np.ones(3), np.zeros((3, len(groups) + 1)), np.ones((3, len(groups) + 1))
    for tier in range(3):
        part = left.rows(left.tier == tier)
        if not len(part.target):
            continue
        shares = SHARES if tier else np.ones(1)  # a campaign's own rows speak for it
        share[tier], _ = share_and_lean(part.target, part.mean, part.deviation, shares)
        ratio = np.abs(part.target - share[tier] * part.mean) / part.deviation / Z80
        whole = float(np.quantile(ratio, 0.8))
        logs, trust = np.zeros(len(groups) + 1), np.zeros(len(groups) + 1)
        for number, group in enumerate(groups):
            own = part.group == group
            if own.any():
                campaigns = len(set(part.campaign[own].tolist()))
                trust[number] = campaigns / (campaigns + TRUST)
                logs[number] = np.log(np.quantile(ratio[own], 0.8) / whole) * trust[number]
        index = np.array([groups.index(group) for group in part.group.tolist()])
        rest = float(np.quantile(ratio / np.exp(logs[index]), 0.8))
        factor[tier] = rest * np.exp(logs)
        middle, spread = share[tier] * part.mean, part.deviation * factor[tier][index]
        lean[tier] = lean_of(part.target, middle, spread)
        for number in range(len(groups)):
            own = index == number
            if own.any():
                lean[tier, number] += trust[number] * (lean_of(part.target[own], middle[own], spread[own]) - lean[tier, number])
    return Widths(share, lean, tuple(groups), factor)


Fitted = tuple[Floats, Floats, Floats, Widths]  # logs, noise, odd, widths


def ship(found: Features, targets: dict[str, Floats], fitted: dict[str, Fitted]) -> dict[str, NDArray[np.generic]]:
    """Arrays of the data file."""
    out: dict[str, NDArray[np.generic]] = {"x": found.x.astype(np.float32), "names": found.names}
    for name, target in targets.items():
        logs, noise, odd, widths = fitted[name]
        out[f"{name}_target"] = target.astype(np.float32)
        out[f"{name}_logs"] = logs
        out[f"{name}_noise"] = noise.astype(np.float32)
        out[f"{name}_odd"] = odd.astype(np.float32)
        out[f"{name}_share"] = widths.share
        out[f"{name}_lean"] = widths.lean
        out[f"{name}_factor"] = widths.factor
        out[f"{name}_groups"] = np.array(widths.groups)
    return out
