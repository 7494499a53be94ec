"""Fit the training constants to measured runs, and judge them by leaving out whole models and whole chips."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from trivet.cloud.training.prepare import Prepared, prepare
from trivet.cloud.training.profile import Constants
from trivet.cloud.training.step import finish
from trivet.errors import TrivetError
from trivet.loop.predict_training import parse, text

Floats = NDArray[np.float64]

# Constants that are fitted, with the spread of the prior around the default, in log. "a.b" is entry b of dict a.
FITTED: dict[str, float] = {
    "gemm.bf16": 0.3, "gemm.fp8": 0.3, "gemm.fp4": 0.3, "grouped": 0.4, "family.hopper": 0.3, "family.blackwell": 0.3,
    "attention_forward": 0.4, "attention_family.hopper": 0.5, "attention_family.blackwell": 0.5, "attention_framework.fsdp": 0.5,
    "scan": 0.6, "stream": 0.15, "stream_factor.fsdp": 0.5, "stream_factor.megatron": 0.4,
    "cast_factor.fp8": 0.4, "cast_factor.mxfp8": 0.4, "cast_factor.nvfp4": 0.4,
    "host_dense_s": 0.7, "host_expert_s": 0.7, "host_captured": 0.7,
    "exposed_tp": 0.6, "exposed_fsdp": 0.6, "exposed_pp": 0.6, "exposed_dp": 0.6, "exposed_ep": 0.4, "step_s": 0.7,
}
BOUNDED = {"gemm", "grouped", "stream", "exposed_tp", "exposed_fsdp", "exposed_pp", "exposed_dp", "exposed_ep", "host_captured"}


@dataclass(frozen=True, slots=True)
class Sample:
    """A measured row, ready to be predicted under any constants."""

    id: str
    model: str
    chip: str
    source: str
    measured: float
    prepared: Prepared


def samples(rows: Sequence[Mapping[str, str | None]]) -> tuple[list[Sample], dict[str, str]]:
    """Measured rows that can be predicted, and the reasons of those that cannot."""
    found, failed = [], {}
    known: dict[object, Prepared] = {}
    for row in rows:
        try:
            parsed = parse(row)
            measured = text(row, "tokens_per_s_per_chip")
            if not measured:
                raise TrivetError("no measured tokens_per_s_per_chip", field="tokens_per_s_per_chip")
            key = tuple(text(row, c) for c in ("chip", "num_chips", "model", "seq_len", "precision", "global_batch", "micro_batch",
                                               "tp", "pp", "cp", "vp", "ep", "sharding", "recompute", "task", "source", "params"))
            if key not in known:
                known[key] = prepare(parsed.job)
            found.append(Sample(parsed.id, text(row, "model"), parsed.job.chip.name, text(row, "source"), float(measured), known[key]))
        except TrivetError as error:
            failed[text(row, "id")] = str(error)
    return found, failed


def get(c: Constants, name: str) -> float:
    head, _, key = name.partition(".")
    value = getattr(c, head)
    return float(value.get(key, 1.0) if key else value)


def put(c: Constants, values: Mapping[str, float]) -> Constants:
    """The constants with entries replaced."""
    changes: dict[str, object] = {}
    for name, value in values.items():
        head, _, key = name.partition(".")
        if head not in {f.name for f in fields(Constants)}:
            raise TrivetError(f"unknown constant {name!r}", field="constants")
        if key:
            changes[head] = {**(changes.get(head) or getattr(c, head)), key: value}  # type: ignore[dict-item]
        else:
            changes[head] = value
    return c.with_(**changes)


def log_errors(found: Sequence[Sample], c: Constants) -> Floats:
    """log(predicted / measured) tokens per second and chip."""
    cache: dict[int, float] = {}
    out = []
    for s in found:
        key = id(s.prepared)
        if key not in cache:
            cache[key] = math.log(finish(s.prepared, c).tokens_per_s_per_chip)
        out.append(cache[key] - math.log(s.measured))
    return np.array(out)


def _weights(found: Sequence[Sample]) -> Floats:
    """Each model and chip counts as the square root of its rows, so that a long table does not drown a short one."""
    groups: dict[tuple[str, str], int] = {}
    for s in found:
        groups[s.model, s.chip] = groups.get((s.model, s.chip), 0) + 1
    raw = np.array([groups[s.model, s.chip] ** -0.25 for s in found])
    return np.asarray(raw / np.sqrt(np.mean(raw**2)))


def fit(found: Sequence[Sample], start: Constants | None = None, *, evaluations: int = 40) -> Constants:
    """Constants that minimise the weighted robust log error, pulled to the defaults by ``FITTED``'s priors."""
    from scipy.optimize import least_squares

    base = Constants()
    begin = start or base
    names = list(FITTED)
    prior = np.log([get(base, n) for n in names])
    width = np.array([FITTED[n] for n in names])
    x0 = np.log([get(begin, n) for n in names])
    top = np.array([math.log(0.98) if n.partition(".")[0] in BOUNDED else 6.0 for n in names])
    weights = _weights(found)

    def residual(x: Floats) -> Floats:
        c = put(base, dict(zip(names, np.exp(x), strict=True)))
        e = log_errors(found, c) * weights / 0.05
        # Student-like: an outlier (another software state) counts as a few sigmas, not as many
        robust = np.sign(e) * np.sqrt(2.0 * (np.sqrt(1.0 + e**2) - 1.0))
        return np.concatenate([robust, (x - prior) / width])

    done = least_squares(residual, np.minimum(x0, top - 1e-3), bounds=(-20.0, top), diff_step=1e-3, max_nfev=evaluations, x_scale=0.1)
    c = put(base, dict(zip(names, (float(v) for v in np.exp(done.x)), strict=True)))
    return c


def leave_out(found: Sequence[Sample], by: Callable[[Sample], str], start: Constants, *, evaluations: int = 6) -> Floats:
    """Log errors of every row, predicted by constants fitted without its group."""
    errors = np.full(len(found), np.nan)
    for group in dict.fromkeys(by(s) for s in found):
        inside = [i for i, s in enumerate(found) if by(s) == group]
        rest = [s for s in found if by(s) != group]
        c = fit(rest, start, evaluations=evaluations)
        errors[inside] = log_errors([found[i] for i in inside], c)
    return errors
