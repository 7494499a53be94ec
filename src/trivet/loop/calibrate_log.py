"""An engine on one card, calibrated by logs of its requests.

A log says more than a mean TTFT and TPOT: every request's time per output token is that of the batches it went through. On one
chip of its own an engine's step is its kernels, about as a benchmark has them, and a fixed time between them; four numbers
say how far from that a card is: the time of decode products and of prompt products, that of attention, and the fixed time.
They have a prior (the kernels as measured), requests scatter around them; since neighbours share their steps, a log counts
as ``INDEPENDENT`` requests, however many it holds.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trivet.cloud.engine.process import FACTORS, STEP_S, process
from trivet.cloud.engine.profiles import EngineProfile
from trivet.errors import TrivetError
from trivet.loop.leaps import least_squares
from trivet.loop.predict_requests import Log, Replay

Floats = NDArray[np.float64]
# Log spread of the factors; spread of the fixed time of a step, seconds.
PRIOR, STEP_SIGMA_S = 0.10, 0.5e-3
INDEPENDENT = 10.0
LEAST_SCATTER = 0.03  # of a request's TPOT, in the logarithm
# Of a run like those measured, TPOT and TTFT in the logarithm: as far as two runs of one card were off each other's settings.
RUN = (0.06, 0.20)

@dataclass(frozen=True, slots=True, eq=False)
class LogFit:
    """Log factors, the fixed time of a step, what the first one took longer, and the log error of mean TPOT of each log before
    and after."""

    chip: str
    engine: str
    logs: Floats
    step_s: float
    cold_s: float
    before: tuple[float, ...]
    after: tuple[float, ...]

    @property
    def factors(self) -> dict[str, float]:
        """Times the kernels as measured, and the seconds of a step and of the first, rounded to what a profile holds."""
        seconds = {"step_s": round(self.step_s, 6), "cold_s": round(self.cold_s, 3)}
        return dict(zip(FACTORS, np.exp(self.logs).round(3).tolist(), strict=True)) | seconds

    def text(self) -> str:
        """What a file in ``engines/`` of a catalogue folder holds."""
        factors = self.factors
        logs = np.log([factors[name] for name in FACTORS])
        constants = asdict(process(self.engine, "", logs, factors["step_s"], factors["cold_s"]))
        del constants["engine"]
        held = constants | {"tpot_sigma": RUN[0], "ttft_sigma": RUN[1]}
        document = {
            "engine": self.engine,
            "chip": self.chip,
            "runs": len(self.after),
            "factors": factors,
            "constants": held,
        }
        return json.dumps(document, indent=1, allow_nan=False) + "\n"


def fit(logs: Sequence[Log], metas: Sequence[Mapping[str, Any]], chip: str) -> LogFit:
    """The most probable factors of the engine on ``chip``.

    Raises TrivetError for no log, a log without measured times, and what ``predict`` raises.
    """
    if not logs:
        raise TrivetError("no log", field="--requests", allowed="one and more")
    replays = [Replay(log, meta, chip) for log, meta in zip(logs, metas, strict=True)]
    measured = [_log_tpot(log) for log in logs]
    engine = replays[0].deployment.settings.engine
    version = replays[0].deployment.settings.version

    cold_s = float(np.median([_cold_s(one) for one in replays]))

    def errors(x: Floats) -> list[Floats]:
        trial = process(engine, version, PRIOR * x[:3], STEP_S + STEP_SIGMA_S * x[3], cold_s)
        return [_predicted(one, trial) - seen for one, seen in zip(replays, measured, strict=True)]

    start = errors(np.zeros(4))
    scatter = [max(LEAST_SCATTER, 1.48 * float(np.median(np.abs(e - np.median(e))))) for e in start]

    def residuals(x: Floats) -> Floats:
        found = [x]
        for error, scale in zip(errors(x), scatter, strict=True):
            z = error / scale
            trust = np.sqrt(5.0 / (4.0 + z**2))  # Student's t with four degrees of freedom
            found.append(z * trust * np.sqrt(INDEPENDENT / len(z)))
        return np.concatenate(found)

    lowest = np.array([-np.inf, -np.inf, -np.inf, -STEP_S / STEP_SIGMA_S])  # no step takes back time
    best = least_squares(residuals, np.zeros(4), lowest)
    end = errors(best)
    return LogFit(
        replays[0].deployment.chip.name, engine, PRIOR * best[:3], float(STEP_S + STEP_SIGMA_S * best[3]), cold_s,
        tuple(float(np.mean(e)) for e in start), tuple(float(np.mean(e)) for e in end),
    )  # fmt: skip


def _cold_s(one: Replay) -> float:
    """What the first step took longer, from the first request's first token alone; 0 where the engine had run before. By
    bisection: who comes meanwhile shares the first steps."""
    settings = one.deployment.settings
    seen = float(one.log.first_token_s[0]) if one.log.first_token_s is not None else 0.0

    def late(cold_s: float) -> float:
        return seen - float(one.run(process(settings.engine, settings.version, cold_s=cold_s)).first_token_s[0])

    low, high = 0.0, max(0.0, late(0.0))
    while high - low > 1e-3:
        middle = 0.5 * (low + high)
        low, high = (middle, high) if late(middle) > 0.0 else (low, middle)
    return low


_FEW = 10  # requests with fewer output tokens say little of a step


def _log_tpot(log: Log) -> Floats:
    if log.first_token_s is None or log.last_token_s is None:
        raise TrivetError("the log has no first_token_ts, last_token_ts", field=log.traffic.name)
    many = log.traffic.output_tokens > _FEW
    if not many.any():
        raise TrivetError(f"no request with more than {_FEW} output tokens", field=log.traffic.name)
    return np.asarray(np.log((log.last_token_s - log.first_token_s)[many] / (log.traffic.output_tokens[many] - 1)))


def _predicted(one: Replay, trial: EngineProfile) -> Floats:
    found, tokens = one.run(trial), one.log.traffic.output_tokens
    many = tokens > _FEW
    return np.asarray(np.log((found.last_token_s - found.first_token_s)[many] / (tokens[many] - 1)))
