"""An engine on a chip, calibrated by a user's own end-to-end results: a few constants under a prior.

Four factors scale the shipped constants: the device's decode steps, its steps with prompts, the host, and what a request costs
before its first token. Their logarithms have a normal prior (as far as campaigns of measurements differ from one another), the
logarithms of measured TTFT and TPOT scatter around the physics; the most probable factors follow by Gauss-Newton. One
result moves them partly, several move them further, and the spread of what is predicted next shrinks as they do.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trivet.cloud.deployment import Deployment
from trivet.cloud.engine import schedule
from trivet.cloud.engine.profiles import from_mapping, stored
from trivet.cloud.serving.steady import Policy, Steady, closed_loop, open_loop
from trivet.errors import TrivetError
from trivet.loop.serving_model import Compiler

Floats = NDArray[np.float64]
FACTORS = ("decode", "prompt", "host", "request")
# Log spreads: of the factors between campaigns, and of one row's TPOT and TTFT around its campaign.
PRIOR = np.array([0.20, 0.27, 0.50, 0.45])
DECODE_AND_PROMPT = 0.5  # correlation: the same kernels
ROW = np.array([0.087, 0.30])
_SCALED: dict[str, tuple[str, ...]] = {
    "decode": ("weights", "floors", "graph_s", "layer_s"),
    "prompt": ("prefill_weights",),
    "host": ("host_decode_s", "host_mixed_s", "host_per_sequence_s"),
    "request": ("first_token_s", "frontend_s"),
}


@dataclass(frozen=True, slots=True)
class Run:
    """One result of a load generator: nominal lengths, the load, and the mean TTFT and TPOT in seconds.

    ``low``: shortest length over the nominal one. ``rate_per_s`` > 0: an open loop; else ``concurrency`` clients.
    """

    isl: float
    osl: float
    concurrency: float
    ttft_s: float
    tpot_s: float
    requests: int = 0
    low: float = 1.0
    rate_per_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Observation:
    """What was measured, and the physics that a compiler (with its constants) gives for it."""

    tpot_s: float
    ttft_s: float
    physics: Callable[[Compiler], Steady]


@dataclass(frozen=True, slots=True, eq=False)
class UserFit:
    """Log factors in the order of ``FACTORS`` and their covariance; log spreads of (TPOT, TTFT) of a run like those
    measured, before and after; the constants."""

    logs: Floats
    covariance: Floats
    before: Floats
    after: Floats
    constants: dict[str, Any]
    runs: int

    def profile(self, engine: str, chip: str) -> dict[str, Any]:
        """What a file in ``engines/`` of a catalogue folder holds."""
        return {
            "engine": engine,
            "chip": chip,
            "runs": self.runs,
            "factors": {name: float(math.exp(v)) for name, v in zip(FACTORS, self.logs, strict=True)},
            "constants": {**self.constants, "tpot_sigma": float(self.after[0]), "ttft_sigma": float(self.after[1])},
        }


def scaled(raw: dict[str, Any], logs: Floats) -> dict[str, Any]:
    """Constants with each factor's share multiplied; kinds that ``raw`` leaves out weigh 1 and are scaled too."""
    from trivet.cloud.engine.components import KINDS

    out = dict(raw)
    for name, log in zip(FACTORS, logs, strict=True):
        factor = math.exp(log)
        for key in _SCALED[name]:
            held = raw.get(key, {}) if key in ("weights", "prefill_weights", "floors") else raw[key]
            out[key] = {k: held.get(k, 1.0) * factor for k in KINDS} if isinstance(held, dict) else held * factor
    return out


def prior() -> Floats:
    """Covariance of the log factors before any result."""
    covariance = np.diag(PRIOR**2)
    covariance[0, 1] = covariance[1, 0] = DECODE_AND_PROMPT * PRIOR[0] * PRIOR[1]
    return covariance


def fit(
    observations: Sequence[Observation], engine: str, compiler: Compiler, raw: dict[str, Any] | None = None
) -> UserFit:
    """The most probable factors of ``engine``. ``compiler`` keeps compiled deployments; ``raw``: instead of the shipped
    constants. Raises TrivetError without an observation."""
    if not observations:
        raise TrivetError("no result", field="bench", allowed="one result and more")
    base = raw or stored()[engine]
    measured = np.log([[o.tpot_s, o.ttft_s] for o in observations])

    def predicted(logs: Floats) -> Floats:
        trial = Compiler({engine: from_mapping(engine, scaled(base, logs))}, compiler.parts, compiler.rooms)
        found = [o.physics(trial) for o in observations]
        return np.log([[float(s.tpot_s), float(s.ttft_s)] for s in found])

    def slopes(logs: Floats, at: Floats) -> Floats:
        step = 0.1  # over the steps of a queue: a request more or less in a wave moves TTFT by leaps
        return np.stack([(predicted(logs + step * np.eye(4)[k]) - at) / step for k in range(4)], axis=-1)

    inverse, logs = np.linalg.inv(prior()), np.zeros(4)
    at = predicted(logs)
    jacobian = slopes(logs, at)
    for _ in range(4):
        error = measured - at
        # Far-off rows count less: Student's t with four degrees of freedom.
        trust = 5.0 / (4.0 + (error / ROW) ** 2) / ROW**2
        design = jacobian.reshape(-1, 4)
        precision = inverse + design.T @ (trust.reshape(-1, 1) * design)
        gradient = design.T @ (trust * error).ravel() - inverse @ logs
        logs = logs + np.clip(np.linalg.solve(precision, gradient), -0.5, 0.5)
        at = predicted(logs)
        jacobian = slopes(logs, at)
    design = jacobian.reshape(-1, 4)
    information = inverse + design.T @ (np.tile(ROW**-2.0, len(observations))[:, None] * design)
    covariance = np.asarray(np.linalg.inv(information), np.float64)
    return UserFit(
        logs, covariance, spread(jacobian, prior()), spread(jacobian, covariance), scaled(base, logs), len(observations)
    )


def run_of(
    lengths: tuple[float, float, float], load: tuple[float, float], latency: tuple[float, float], requests: int
) -> Run:
    """A run from what a load generator says of it.

    Args:
        lengths: mean input and output tokens, and the outputs' coefficient of variation (NaN: not told). The client's
            lengths are taken as uniform from ``low`` to 1 of a nominal one with these means and that variation.
        load: concurrency (0 = no limit) and requests a second (infinite or 0 = all at once).
        latency: mean TTFT and TPOT, seconds. requests: completed.
    """
    isl, osl, variation = lengths
    ratio = min(math.sqrt(3.0) * variation, 0.9) if math.isfinite(variation) else (1.0 - UNTOLD) / (1.0 + UNTOLD)
    low = (1.0 - ratio) / (1.0 + ratio)
    concurrency, rate = load
    open_rate = rate if math.isfinite(rate) and rate > 0 and not concurrency else 0.0
    clients = 0.0 if open_rate else float(concurrency or requests)
    grown = 2.0 / (1.0 + low)
    return Run(isl * grown, osl * grown, clients, latency[0], latency[1], requests, low, open_rate)


UNTOLD = (
    0.95  # shortest over nominal length where a result does not say: a client with fixed lengths, whose requests drift
)


def spread(jacobian: Floats, covariance: Floats) -> Floats:
    """Log spread of (TPOT, TTFT) of another run like these: the factors' and the row's own."""
    variance = np.einsum("rqi,ij,rqj->rq", jacobian, covariance, jacobian).mean(0)
    return np.asarray(np.sqrt(variance + ROW**2), np.float64)


def observation(run: Run, deployment: Deployment) -> Observation:
    """A result of a load generator against ``deployment``. Raises TrivetError for a load or a latency that is none."""
    for name in ("isl", "osl", "ttft_s", "tpot_s"):
        if not (math.isfinite(getattr(run, name)) and getattr(run, name) > 0):
            raise TrivetError(f"{getattr(run, name)} is not positive", field=name)
    if not (run.rate_per_s > 0 or run.concurrency >= 1):
        raise TrivetError("neither a rate nor a concurrency", field="bench", allowed="one of them")

    def physics(compiler: Compiler) -> Steady:
        table, constants = compiler.table(deployment), compiler.constants(deployment)
        settings, kv = deployment.settings, compiler.kv_tokens(deployment)[0]
        plan = schedule(deployment, run.isl, run.osl, run.concurrency or run.rate_per_s)
        policy = Policy(
            plan.mixing, plan.budget_tokens, min(plan.max_sequences, float(settings.max_num_seqs)), kv,
            deployment.layout.attention_dp, frontend_s=constants.frontend_s, look_steps=plan.look_steps,
            wait_steps=plan.wait_steps, first_token_steps=min(1.0, constants.first_token_steps), preempts=plan.preempts,
        )  # fmt: skip
        if run.rate_per_s > 0:
            return open_loop(
                table, run.rate_per_s, run.isl, run.osl, policy, requests=max(run.requests, 50), low=run.low
            )
        waves = run.requests / run.concurrency if run.requests else 10.0
        return closed_loop(table, run.isl, run.osl, run.concurrency, policy, waves=max(1.0, waves), low=run.low)

    return Observation(run.tpot_s, run.ttft_s, physics)


def profile_text(found: UserFit, engine: str, chip: str) -> str:
    """The profile as a file."""
    return json.dumps(found.profile(engine, chip), indent=1, allow_nan=False) + "\n"
