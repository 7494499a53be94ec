"""Fit the constants of the engines to serving measurements.

Each engine has some twenty constants with a physical meaning (``cloud/engine/profiles.py``). They are fitted in log space,
pulled towards their priors, to log TPOT and log TTFT at once. A campaign (one chip, model, precision, build and date) has a
mean error of its own, which unrecorded settings may cause; its mean and the shape of its rows around it are fitted as two
things, both with a robust loss, so that no campaign decides by its size or its oddity. Deployments are compiled once: a
trial re-weighs their components.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trivet.cloud.engine.profiles import from_mapping
from trivet.loop.serving_model import Compiler, steady
from trivet.loop.serving_rows import Case
from trivet.loop.serving_speculation import unstated

Floats = NDArray[np.float64]
# Where the loss turns from square to linear, log units of TPOT and TTFT: within a campaign, and for its mean.
WITHIN, BETWEEN = np.array([0.04, 0.15]), np.array([0.09, 0.25])


@dataclass(frozen=True, slots=True)
class Measured:
    """A case and what was measured, seconds: first token, each further token, or the whole request (NaN: not measured)."""

    case: Case
    ttft_s: float
    tpot_s: float
    latency_s: float = math.nan

    @property
    def campaign(self) -> tuple[str, ...]:
        g = self.case.group
        return (g["engine"], g["mode"], g["chip"], g["model"], g["precision"], g["measured_on"], g["version"])


# name in the profile ("group.kind" or a scalar) -> (prior, log sigma of the prior). The medians are the geometric means
# over the three engines of a first fit under wide priors: an engine that lacks a kind of model leans on the others.
PRIORS: dict[str, tuple[float, float]] = {
    "weights.gemm": (0.97, 0.12), "weights.block_gemm": (0.95, 0.15), "prefill_weights.block_gemm": (0.9, 0.2),
    "floors.block_gemm": (0.45, 0.4), "weights.head": (0.97, 0.12), "weights.experts": (1.1, 0.15),
    "weights.attention": (1.4, 0.2), "weights.latent": (1.65, 0.25), "prefill_weights.latent": (0.6, 0.3),
    "floors.latent": (0.8, 0.3),
    "weights.stream": (0.45, 0.3), "weights.scan": (1.0, 0.2), "weights.all_reduce": (1.7, 0.3), "weights.exchange": (0.97, 0.3),
    "prefill_weights.gemm": (0.9, 0.2), "prefill_weights.experts": (1.1, 0.2), "prefill_weights.attention": (1.3, 0.3),
    "prefill_weights.stream": (0.85, 0.3), "prefill_weights.scan": (1.0, 0.2), "prefill_weights.all_reduce": (1.4, 0.3),
    "prefill_weights.exchange": (1.0, 0.3), "floors.gemm": (0.4, 0.3), "floors.head": (1.0, 0.2), "floors.experts": (1.0, 0.2),
    "floors.attention": (0.8, 0.3), "floors.stream": (0.35, 0.3), "floors.scan": (0.8, 0.2), "floors.all_reduce": (0.7, 0.3),
    "floors.exchange": (1.8, 0.3), "eager_floor_weight": (1.3, 0.5), "graph_s": (1.2e-4, 0.6), "layer_s": (2.5e-6, 0.6),
    "host_decode_s": (8e-4, 0.4), "host_mixed_s": (2.5e-3, 0.5), "host_per_sequence_s": (8e-6, 0.5), "first_token_s": (0.04, 0.5),
    "frontend_s": (4.7e-4, 0.5), "first_token_steps": (1.0, 0.3), "routed_layer_s": (4e-4, 0.5),
    "latent_layer_s": (1e-3, 0.6),
}  # fmt: skip
# Habits of one engine: vLLM's host prepares a step longest (it waits for the step before, where it is not asynchronous);
# SGLang's scheduler works on every request of a batch in Python, and a request passes three processes; TensorRT-LLM launches
# attention over latents slowest.
OWN_PRIORS = {
    "vllm": {"host_decode_s": (1.6e-3, 0.5)},
    "sglang": {"first_token_s": (0.1, 0.3), "host_per_sequence_s": (3e-5, 0.5)},
    "trtllm": {"latent_layer_s": (1.5e-3, 0.4)},
}
SPECULATIVE = -0.25  # log(measured / predicted TPOT), against peers, below which a model with MTP heads has speculated


def priors(engine: str) -> tuple[Floats, Floats]:
    """Logs of the medians and their spreads, in the order of ``PRIORS``."""
    table = {**PRIORS, **OWN_PRIORS.get(engine, {})}
    return np.log([table[name][0] for name in PRIORS]), np.array([table[name][1] for name in PRIORS])


def logs_of(raw: Mapping[str, Any], engine: str) -> Floats:
    """The point that ``raw`` stands for; constants that it lacks are at their priors."""
    medians, _ = priors(engine)
    out = []
    for name, median in zip(PRIORS, medians, strict=True):
        group, _, kind = name.partition(".")
        value = raw.get(group, {}).get(kind) if kind else raw.get(group)
        out.append(math.log(value) if value else float(median))
    return np.array(out)


def mapping(logs: Floats, base: Mapping[str, Any], digits: int = 4) -> dict[str, Any]:
    """Constants as the data file holds them: ``base`` with the fitted ones replaced."""
    out: dict[str, Any] = {**base, "weights": {}, "prefill_weights": {}, "floors": {}}
    for name, value in zip(PRIORS, np.exp(logs), strict=True):
        group, _, kind = name.partition(".")
        rounded = float(f"{value:.{digits}g}")
        if kind:
            out[group][kind] = rounded
        else:
            out[name] = rounded
    out["prefill_weights"]["head"] = out["weights"]["head"]
    return out


@dataclass(frozen=True, slots=True, eq=False)
class EngineFit:
    """A fit and its linearisation, from which a fit without some rows follows at once."""

    engine: str
    raw: dict[str, Any]
    logs: Floats
    owner: NDArray[np.int64]  # campaign of each row
    residual: Floats  # [rows + campaigns, 2] weighted TPOT and TTFT
    jacobian: Floats  # [rows + campaigns, 2, constants]
    prior_residual: Floats
    prior_jacobian: Floats

    def without(self, rows: NDArray[np.bool_]) -> dict[str, Any]:
        """Constants refitted without ``rows`` (one Gauss-Newton step, halved steps are not needed this near)."""
        campaigns = np.array([rows[self.owner == c].mean() < 0.5 for c in range(len(self.residual) - len(rows))])
        keep = np.concatenate([~rows, campaigns])
        left = np.concatenate([self.jacobian[keep].reshape(-1, len(self.logs)), self.prior_jacobian])
        right = np.concatenate([self.residual[keep].ravel(), self.prior_residual])
        step = np.linalg.lstsq(left, -right, rcond=None)[0]
        return mapping(self.logs + np.clip(step, -0.7, 0.7), self.raw, 8)


def fit_engine(
    rows: Sequence[Measured], engine: str, raw: Mapping[str, Any], compiler: Compiler, evaluations: int = 12
) -> EngineFit:
    """Constants of the engine of ``rows``, searched from the priors, and the linearisation there (``raw`` holds what is not
    fitted). ``compiler`` keeps the
    compiled deployments. With no ``evaluations`` the constants of ``raw`` stay.

    Rows of a model with MTP heads that are a quarter faster than the same model beside them are taken to have speculated without
    saying so, and do not count. At most ``MOST`` rows of a campaign, evenly spaced, steer the search.
    """
    names = sorted({row.campaign for row in rows})
    owner = np.array([names.index(row.campaign) for row in rows])
    x = priors(engine)[0] if evaluations else logs_of(raw, engine)
    thin = np.concatenate([members[np.unique(np.linspace(0, len(members) - 1, MOST).astype(int))] for members in (
        np.flatnonzero(owner == c) for c in range(len(names)))])  # fmt: skip
    for _ in range(2 if evaluations else 0):
        found = _search(
            [rows[i] for i in thin], owner[thin], len(names), engine, raw, compiler, x, max(1, evaluations // 2)
        )
        x = found.x
    found = _search(rows, owner, len(names), engine, raw, compiler, x, 1)
    size = 2 * (len(rows) + len(names))
    return EngineFit(
        engine, mapping(x, raw), x, owner, found.fun[:size].reshape(-1, 2), found.jac[:size].reshape(-1, 2, len(x)),
        found.fun[size:], found.jac[size:],
    )  # fmt: skip


MOST = 10


def _search(
    rows: Sequence[Measured], owner: NDArray[np.int64], campaigns: int, engine: str, raw: Mapping[str, Any], compiler: Compiler,
    x: Floats, evaluations: int,
) -> Any:  # fmt: skip
    """Least squares from ``x``; with one evaluation only the residuals and their derivative there."""
    from scipy.optimize import least_squares

    weight = np.bincount(owner, minlength=campaigns)[owner] ** -0.25
    heads = np.array([row.case.pools[-1].deployment.architecture.mtp_layers > 0 for row in rows])
    measured = np.log([[row.tpot_s, row.ttft_s] for row in rows])
    prior, sigma = priors(engine)
    strength = STRENGTH * math.sqrt(campaigns / len(prior)) / sigma

    def errors(logs: Floats) -> Floats:
        profiles = {engine: from_mapping(engine, mapping(logs, raw, 12))}
        trial = Compiler(profiles, compiler.parts, compiler.rooms, speculation=False)
        return np.log([_pair(row.case, trial) for row in rows]) - measured

    known = np.array([unstated(row.case).share == 1.0 for row in rows])
    counted = ~(known | (heads & (above_peers(rows, errors(x)[:, 0]) > -SPECULATIVE)))
    number = np.maximum(np.bincount(owner, counted, campaigns), 1e-9)

    def residuals(logs: Floats) -> Floats:
        error = np.clip(errors(logs), -2.0, 2.0) * counted[:, None]
        mean = np.stack([np.bincount(owner, error[:, k], campaigns) for k in range(2)], axis=1) / number[:, None]
        inside = _soft((error - mean[owner]) / WITHIN) * (weight * counted)[:, None]
        between = _redescending(mean / BETWEEN) * (2.0 * number / (number + 6.0))[:, None]
        return np.concatenate([inside.ravel(), between.ravel(), strength * (logs - prior)])

    # A finite difference's step is a share of the variable: around 1, all constants are tried STEP away, also those near log 1.
    offset = prior - 1.0
    found = least_squares(
        lambda y: residuals(y + offset), x - offset, diff_step=STEP, max_nfev=evaluations, xtol=1e-4, ftol=1e-4, method="trf"
    )
    found.x = found.x + offset
    return found


STRENGTH = 1.0  # of the priors
STEP = 0.03  # of finite differences, log: the followed queues answer smaller ones with jumps


def above_peers(rows: Sequence[Measured], error: Floats) -> Floats:
    """How far log(predicted / measured) of each row lies above the lower quartile of the same architecture, precision and chip:
    whichever of them speculated, the quartile did not, and what the physics misses of this model there is taken out."""
    peers = [(a.model_type, a.hidden, a.num_layers, g["precision"], g["chip"]) for a, g in (
        (row.case.pools[-1].deployment.architecture, row.case.group) for row in rows)]  # fmt: skip
    index = {name: number for number, name in enumerate(dict.fromkeys(peers))}
    owner = np.array([index[name] for name in peers])
    quartiles = np.array([np.quantile(error[owner == number], 0.25) for number in range(len(index))])
    return np.asarray(error - quartiles[owner], float)


def _soft(error: Floats) -> Floats:
    """Square near zero, linear far out: as residuals whose square is the loss."""
    return np.asarray(np.sign(error) * np.sqrt(2.0 * (np.sqrt(1.0 + error**2) - 1.0)))


def _redescending(error: Floats) -> Floats:
    """Square near zero, logarithmic far out (Cauchy): an odd campaign has no pull."""
    return np.asarray(np.sign(error) * np.sqrt(np.log1p(error**2)))


def _pair(case: Case, compiler: Compiler) -> tuple[float, float]:
    found = steady(case, compiler)
    return float(found.tpot_s), float(found.ttft_s)
