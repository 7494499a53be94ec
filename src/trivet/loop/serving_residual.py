"""What the physics leaves, learned: a Gaussian process in log space over mechanisms, load and names.

The covariance is a sum of terms, each the product of "same name" indicators and a smooth kernel:

    k(a, b) = sum_j  s_j^2  [names_j(a) = names_j(b)]  exp(-|D_j (x_a - x_b)|^2 / 2)

Three kinds of knowledge: constants of what cases share by name; a "transfer" kernel over load and the mechanisms of the
step, which carries what one model taught about an engine to another whose steps are made of the same; and "long" and
"short" kernels of one campaign's own shape. A case of a known campaign is corrected by its neighbours, a model or chip never
seen by the first two alone, and the variance of what is missing widens its interval.

Odd campaigns (unrecorded settings) are taken for what they are: their own terms get a larger variance, so that they say
little about others. Rows far out get noise of their own.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from importlib import resources
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trivet.loop.serving_features import CONTINUOUS, LOAD, NAMED, Features

Floats = NDArray[np.float64]
Term = tuple[tuple[str, ...], str]  # names that must agree; the kernel: "" (constant), "transfer", "long", "short"
CAMPAIGN = ("setup", "model", "chip", "precision", "mode")
KERNELS = ("transfer", "long", "short")
SHARED: tuple[Term, ...] = (
    ((), ""), (("engine",), ""), (("engine", "client"), ""), (("engine", "kind"), ""), (("engine", "precision", "family"), ""),
    (("engine", "mode"), ""), (("setup",), ""), (("shape", "precision"), ""), (("chip",), ""),
)  # fmt: skip
OWN: tuple[Term, ...] = ((CAMPAIGN, ""), (CAMPAIGN, "long"), (CAMPAIGN, "short"), ((*CAMPAIGN, "layout"), "short"))
START = {"": 0.06, "transfer": 0.1, "long": 0.15, "short": 0.05}  # scales before a fit
# Lengths before a fit: octaves, or shares of a step.
LENGTHS = {
    "sequences": 4.0, "isl": 5.0, "osl": 5.0, "chips": 3.0, "expert_ranks": 4.0, "attention_ranks": 3.0, "experts": 0.5,
    "attention": 0.5, "exchange": 0.4, "launch": 0.5, "host": 0.5, "interference": 2.0, "waiting": 3.0,
}  # fmt: skip
LONG = (3.0, 3.0, 3.0, 2.0, 3.0, 3.0, 4.0, 6.0, 6.0)


@dataclass(frozen=True, slots=True)
class Form:
    """The covariance of one quantity: its terms, and the features of its transfer kernel. ``logs`` of a form: one log scale a
    term, the log of the noise, then log lengths of the kernels in the order of ``KERNELS``."""

    terms: tuple[Term, ...]
    transfer: tuple[str, ...]

    @property
    def noise(self) -> int:
        """Position of the noise among the logs."""
        return len(self.terms)

    def columns(self, kernel: str) -> list[int]:
        """Columns of ``Features.x`` that a kernel reads."""
        return [CONTINUOUS.index(name) for name in (self.transfer if kernel == "transfer" else LOAD)]

    def lengths(self, kernel: str) -> slice:
        """Positions of a kernel's lengths among the logs."""
        start = self.noise + 1 + sum(len(self.columns(k)) for k in KERNELS[: KERNELS.index(kernel)])
        return slice(start, start + len(self.columns(kernel)))

    def start(self) -> Floats:
        """The logs before a fit."""
        scales = [0.15 if names == CAMPAIGN and not kernel else START[kernel] for names, kernel in self.terms]
        lengths = [LENGTHS[name] for name in self.transfer] + [*LONG] + [0.4 * v for v in LONG]
        return np.asarray(np.log([*scales, 0.03, *lengths]), np.float64)

    def odd(self) -> NDArray[np.bool_]:
        """Terms whose variance an odd campaign raises."""
        return np.array([names == CAMPAIGN and kernel != "short" for names, kernel in self.terms])


FORMS = {
    "tpot": Form(
        (*SHARED, (("engine",), "transfer"), *OWN),
        ("sequences", "isl", "osl", "chips", "expert_ranks", "attention_ranks", "experts", "attention", "exchange", "launch",
         "host", "interference"),
    ),
    "ttft": Form(
        (*SHARED, (("engine", "client"), "transfer"), *OWN),
        ("sequences", "isl", "osl", "chips", "attention_ranks", "waiting"),
    ),
}  # fmt: skip


@dataclass(frozen=True, slots=True, eq=False)
class Codes:
    """Features with the names of each term as one number (-1: some name is not among the training names; 0 without names)."""

    x: Floats
    joint: NDArray[np.int64]  # [rows, terms]


def vocabulary_of(found: Features) -> list[list[str]]:
    return [sorted(set(found.names[:, i].tolist())) for i in range(len(NAMED))]


def encode(found: Features, vocabulary: list[list[str]], form: Form) -> Codes:
    single = []
    for position, known in enumerate(vocabulary):
        index = {name: i for i, name in enumerate(known)}
        single.append(np.array([index.get(name, -1) for name in found.names[:, position].tolist()], dtype=np.int64))
    columns = []
    for names, _ in form.terms:
        joint, unknown = np.zeros(len(found.x), dtype=np.int64), np.zeros(len(found.x), dtype=bool)
        for name in names:
            position = NAMED.index(name)
            joint = joint * len(vocabulary[position]) + single[position]
            unknown |= single[position] < 0
        columns.append(np.where(unknown, -1, joint))
    return Codes(found.x, np.stack(columns, axis=1))


def square(a: Any, b: Any) -> Any:
    """Squared distances [len(a), len(b)]."""
    return np.maximum((a * a).sum(1)[:, None] + (b * b).sum(1)[None, :] - 2.0 * (a @ b.T), 0.0)


def covariance(a: Codes, b: Codes, form: Form, logs: Floats, odd: Floats, dtype: Any = np.float64) -> Any:
    """[len(a), len(b)] without noise. ``odd``: factor of each row of ``a`` on the terms of ``Form.odd``.

    Rows of ``a`` with the same names share all but the smooth kernels, and most of these vanish for most of ``b``: each such
    group evaluates its kernels on the columns that it needs.
    """
    scales = np.exp(2.0 * logs[: len(form.terms)])
    scaled = {
        k: tuple((v.x[:, form.columns(k)] / np.exp(logs[form.lengths(k)])).astype(dtype) for v in (a, b))
        for k in KERNELS
    }
    seen, column = np.unique(b.joint, axis=0, return_inverse=True)
    groups, owner = np.unique(a.joint, axis=0, return_inverse=True)
    order, bounds = np.argsort(owner, kind="stable"), np.searchsorted(np.sort(owner), np.arange(len(groups) + 1))
    total = np.empty((len(a.x), len(b.x)), dtype=dtype)
    widened = form.odd()
    for number, names in enumerate(groups):
        rows = order[bounds[number] : bounds[number + 1]]
        weight = (seen == names) * np.where(widened, scales * odd[rows[0]], scales)
        weight[:, names < 0] = 0.0
        total[rows] = weight[:, [not k for _, k in form.terms]].sum(1).astype(dtype)[column]
        for kernel in KERNELS:
            part = weight[:, [k == kernel for _, k in form.terms]].sum(1).astype(dtype)[column]
            near = np.flatnonzero(part)
            if len(near):
                x, y = scaled[kernel]
                smooth = part[near] * np.exp(-0.5 * square(x[rows], y[near]))
                total[np.ix_(rows, near)] += smooth
    return total


@dataclass(frozen=True, slots=True, eq=False)
class Widths:
    """What cases left out asked for, by tier (see ``Process.tier``): the ``share`` of the mean that helps, and factors on the
    deviation [tiers, groups + 1] so that 80% fall inside; ``groups`` are "engine mode", the last column is any other.

    A relative error counts a value twice too high for more than one half too low, so the value with the least expected one
    lies ``lean`` variances below the middle (1 were the distribution log-normal; [tiers, groups + 1]).
    """

    share: Floats
    lean: Floats
    groups: tuple[str, ...]
    factor: Floats


def plain_widths() -> Widths:
    return Widths(np.ones(3), np.zeros((3, 1)), (), np.ones((3, 1)))


@dataclass(frozen=True, slots=True, eq=False)
class Corrected:
    """Logs of measured / physics per row: the middle of the interval, its standard deviation, the value to report; the tier."""

    middle: Floats
    deviation: Floats
    value: Floats
    tier: NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Process:
    """A fitted process for one target. ``noise`` is each training row's variance, ``odd`` its campaign's factor."""

    form: Form
    codes: Codes
    vocabulary: list[list[str]]
    logs: Floats
    target: Floats
    noise: Floats
    odd: Floats
    widths: Widths
    factor: NDArray[np.float32]
    alpha: Floats
    campaigns: tuple[tuple[str, ...], ...]  # of each training row
    families: frozenset[str]

    def predict(self, found: Features) -> tuple[Floats, Floats]:
        """(mean, standard deviation) of log(measured / physics), noise included."""
        from scipy.linalg.blas import strsm

        codes = encode(found, self.vocabulary, self.form)
        odd = self._odd(codes)
        scales = np.exp(2.0 * self.logs[: len(self.form.terms)])
        prior = scales.sum() + (odd - 1.0) * scales[self.form.odd()].sum()
        mean, explained = np.empty(len(codes.x)), np.empty(len(codes.x))
        order = np.lexsort(codes.joint.T)  # rows of the same names together
        alpha = self.alpha.astype(np.float32)
        for start in range(0, len(order), 1024):
            rows = order[start : start + 1024]
            part = Codes(codes.x[rows], codes.joint[rows])
            cross = covariance(part, self.codes, self.form, self.logs, odd[rows], np.float32)
            mean[rows] = cross @ alpha
            solved = strsm(1.0, self.factor, cross.T, lower=1)
            explained[rows] = np.einsum("ij,ij->j", solved, solved)
        noise = np.exp(2.0 * self.logs[self.form.noise])
        return mean, np.sqrt(np.maximum(prior - explained, 0.0) + noise)

    def _odd(self, codes: Codes) -> Floats:
        """Factor of each row's campaign; 1 where it is not known."""
        term = self.form.terms.index((CAMPAIGN, ""))
        known = dict(zip(self.codes.joint[:, term].tolist(), self.odd.tolist(), strict=True))
        return np.array([known.get(code, 1.0) for code in codes.joint[:, term].tolist()])

    def correct(self, found: Features) -> Corrected:
        """What to use: each tier takes its share of the mean and, by engine and mode, its factor on the deviation."""
        mean, deviation = self.predict(found)
        tier = self.tier(found)
        index = {name: i for i, name in enumerate(self.widths.groups)}
        group = [index.get(name, len(index)) for name in group_names(found)]
        middle, spread = self.widths.share[tier] * mean, self.widths.factor[tier, group] * deviation
        return Corrected(middle, spread, middle - np.minimum(self.widths.lean[tier, group] * spread**2, spread), tier)

    def tier(self, found: Features) -> NDArray[np.int64]:
        """0: of a campaign that was fitted (same set-up, model, chip, precision and mode); 1: of a chip family that was; 2:
        neither."""
        campaigns, families = frozenset(self.campaigns), self.families
        return np.array(
            [
                0 if campaign in campaigns else 1 if family in families else 2
                for campaign, family in zip(campaigns_of(found), found.named("family").tolist(), strict=True)
            ],
            dtype=np.int64,
        )


def condition_exactly(process: Process, found: Features) -> tuple[Floats, Floats]:
    """``Process.predict`` in double precision from the definition: what tests hold it to."""
    codes = encode(found, process.vocabulary, process.form)
    odd = process._odd(codes)
    matrix = covariance(process.codes, process.codes, process.form, process.logs, process.odd)
    matrix[np.diag_indices_from(matrix)] += process.noise + 1e-8
    cross = covariance(codes, process.codes, process.form, process.logs, odd)
    scales = np.exp(2.0 * process.logs[: len(process.form.terms)])
    prior = scales.sum() + (odd - 1.0) * scales[process.form.odd()].sum()
    variance = prior - np.einsum("ij,ij->i", cross, np.linalg.solve(matrix, cross.T).T)
    noise = np.exp(2.0 * process.logs[process.form.noise])
    return cross @ np.linalg.solve(matrix, process.target), np.sqrt(np.maximum(variance, 0.0) + noise)


def campaigns_of(found: Features) -> list[tuple[str, ...]]:
    return list(zip(*(found.named(name).tolist() for name in CAMPAIGN), strict=True))


def group_names(found: Features) -> list[str]:
    """Groups of ``Widths``."""
    return [f"{e} {m}" for e, m in zip(found.named("engine").tolist(), found.named("mode").tolist(), strict=True)]


def fit_process(
    found: Features, target: Floats, form: Form, logs: Floats, noise: Floats | None = None, odd: Floats | None = None,
    widths: Widths | None = None,
) -> Process:  # fmt: skip
    """Condition on ``target`` under given scales; ``noise`` defaults to the common one, ``odd`` to 1."""
    from scipy.linalg import cho_solve

    vocabulary = vocabulary_of(found)
    codes = encode(found, vocabulary, form)
    noise = np.full(len(target), np.exp(2.0 * logs[form.noise])) if noise is None else noise
    odd = np.ones(len(target)) if odd is None else odd
    matrix = covariance(codes, codes, form, logs, odd)
    matrix[np.diag_indices_from(matrix)] += noise + 1e-8
    factor = np.linalg.cholesky(matrix)
    alpha = np.asarray(cho_solve((factor, True), target, check_finite=False), np.float64)
    known = tuple(campaigns_of(found)), frozenset(found.named("family").tolist())
    single = np.asfortranarray(factor, dtype=np.float32)
    return Process(form, codes, vocabulary, logs, target, noise, odd, widths or plain_widths(), single, alpha, *known)


@lru_cache(maxsize=1)
def shipped() -> dict[str, Process]:
    """The processes of ``tpot`` and ``ttft`` that ship with the package."""
    with resources.files("trivet.data.calibration").joinpath("serving_residual.npz").open("rb") as file:
        held = dict(np.load(file, allow_pickle=False))
    found = Features(held["x"].astype(np.float64), held["names"])
    out = {}
    for name, form in FORMS.items():
        target, logs, noise, odd, share, lean, factor = (
            held[f"{name}_{what}"].astype(np.float64)
            for what in ("target", "logs", "noise", "odd", "share", "lean", "factor")
        )
        lean = lean if lean.ndim == 2 else np.repeat(lean[:, None], factor.shape[1], axis=1)
        widths = Widths(share, lean, tuple(held[f"{name}_groups"].tolist()), factor)
        out[name] = fit_process(found, target, form, logs, noise, odd, widths)
    return out
