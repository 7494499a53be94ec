"""Fit the constants of the engines to serving measurements.

Each engine has some twenty constants with a physical meaning (``cloud/engine/profiles.py``). They are fitted in log space,
pulled towards their priors, to log TPOT and log TTFT at once; the loss is robust, and a campaign (one chip, model,
precision and date) counts by the square root of its rows, so that no single one decides. Deployments are compiled once:
a trial re-weighs their components.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trivet.cloud.engine import EngineProfile
from trivet.cloud.engine.profiles import from_mapping
from trivet.loop.serving_model import Compiler, steady
from trivet.loop.serving_rows import Case

Floats = NDArray[np.float64]
TPOT_SCALE, TTFT_SCALE = 0.08, 0.20  # where the loss turns from square to linear, log units


@dataclass(frozen=True, slots=True)
class Measured:
    """A case and what was measured, seconds."""

    case: Case
    ttft_s: float
    tpot_s: float

    @property
    def campaign(self) -> tuple[str, ...]:
        g = self.case.group
        return (g["engine"], g["mode"], g["chip"], g["model"], g["precision"], g["measured_on"], g["version"])


# name in the profile (group, kind) -> (prior, log sigma of the prior)
PRIORS: dict[str, tuple[float, float]] = {
    "weights.gemm": (1.1, 0.2), "weights.head": (1.0, 0.2), "weights.experts": (1.1, 0.25), "weights.attention": (1.1, 0.25),
    "weights.stream": (0.8, 0.4), "weights.scan": (1.1, 0.2), "weights.all_reduce": (1.0, 0.3), "weights.exchange": (1.0, 0.4),
    "prefill_weights.gemm": (1.1, 0.2), "prefill_weights.experts": (1.1, 0.3), "prefill_weights.attention": (1.1, 0.3),
    "prefill_weights.stream": (1.0, 0.4), "prefill_weights.scan": (1.1, 0.2), "prefill_weights.all_reduce": (1.0, 0.4),
    "prefill_weights.exchange": (1.0, 0.4), "floor_weight": (0.7, 0.5), "eager_floor_weight": (1.0, 0.6),
    "collective_floor_weight": (1.0, 0.4), "graph_s": (3e-4, 1.0), "layer_s": (5e-6, 1.0), "host_decode_s": (1.5e-3, 0.7),
    "host_mixed_s": (5e-3, 0.8), "host_per_sequence_s": (1e-5, 1.0), "first_token_s": (0.03, 0.8), "frontend_s": (5e-4, 1.0),
    "first_token_steps": (3.0, 0.8),
}  # fmt: skip


def start() -> Floats:
    """The priors' medians, as logs."""
    return np.log([prior for prior, _ in PRIORS.values()])


def mapping(logs: Floats, base: Mapping[str, Any]) -> dict[str, Any]:
    """Constants as the data file holds them: ``base`` with the fitted ones replaced."""
    out: dict[str, Any] = {**base, "weights": {}, "prefill_weights": {}}
    for name, value in zip(PRIORS, np.exp(logs), strict=True):
        group, _, kind = name.partition(".")
        rounded = float(f"{value:.4g}")
        if kind:
            out[group][kind] = rounded
        else:
            out[name] = rounded
    out["prefill_weights"]["head"] = out["weights"]["head"]
    return out


def fit_engine(rows: Sequence[Measured], base: EngineProfile, raw: Mapping[str, Any], compiler: Compiler, evaluations: int = 25) -> dict[str, Any]:
    """Constants of the engine of ``rows``. ``compiler`` keeps the compiled deployments between fits."""
    from scipy.optimize import least_squares

    counts = Counter(row.campaign for row in rows)
    weight = np.array([counts[row.campaign] ** -0.25 for row in rows])
    measured = np.log([[row.tpot_s, row.ttft_s] for row in rows])
    prior, sigma = start(), np.array([s for _, s in PRIORS.values()])
    strength = math.sqrt(len(rows)) * 0.15

    def residuals(logs: Floats) -> Floats:
        trial = Compiler({base.engine: from_mapping(base.engine, mapping_exact(logs, raw))}, compiler.parts)
        predicted = np.log([_pair(row.case, trial) for row in rows])
        error = (predicted - measured) / np.array([TPOT_SCALE, TTFT_SCALE])
        # Square near zero, linear far out: as residuals whose square is the loss.
        soft = np.sign(error) * np.sqrt(2.0 * (np.sqrt(1.0 + error**2) - 1.0)) * weight[:, None]
        return np.concatenate([soft.ravel(), strength * (logs - prior) / sigma / math.sqrt(len(prior))])

    found = least_squares(residuals, prior, diff_step=1e-2, max_nfev=evaluations, xtol=1e-4, ftol=1e-4, method="trf")
    return mapping(found.x, raw)


def mapping_exact(logs: Floats, base: Mapping[str, Any]) -> dict[str, Any]:
    """``mapping`` without rounding, so that the derivative is smooth."""
    out: dict[str, Any] = {**base, "weights": {}, "prefill_weights": {}}
    for name, value in zip(PRIORS, np.exp(logs), strict=True):
        group, _, kind = name.partition(".")
        if kind:
            out[group][kind] = value
        else:
            out[name] = value
    out["prefill_weights"]["head"] = out["weights"]["head"]
    return out


def _pair(case: Case, compiler: Compiler) -> tuple[float, float]:
    found = steady(case, compiler)
    return float(found.tpot_s), float(found.ttft_s)
