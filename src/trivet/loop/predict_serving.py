"""TTFT and TPOT of serving configurations with 80% intervals: physics first, then what calibration learned of its errors."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from trivet.cloud.deployment import Deployment
from trivet.cloud.engine.ported import behind
from trivet.cloud.serving.steady import Steady
from trivet.errors import TrivetError
from trivet.loop.serving_features import NAMED, features
from trivet.loop.serving_model import Compiler, steady
from trivet.loop.serving_residual import Process, shipped
from trivet.loop.serving_rows import Case, Pool, Table, Unread, understand
from trivet.units import Z80

Floats = NDArray[np.float64]
# Engines were measured on this maker's chips. On others their ports, graphs and fused kernels differ: log spreads (without
# experts, with experts) that make 80% of published campaigns fall inside, one maker's weighing no more than its campaigns
# (docs/accuracy.md, "Chips of other makers"); clients of published first tokens differ most.
MEASURED_MAKER = "NVIDIA"
PORTED = {"tpot": (0.24, 0.25), "ttft": (0.60, 0.60)}
BEHIND_KNOWN = 0.5  # and of how far an engine is behind its maker's kernels (``engine/ported.py``) half is uncertain
COLUMNS = ("id", "ttft_ms", "ttft_ms_lo", "ttft_ms_hi", "tpot_ms", "tpot_ms_lo", "tpot_ms_hi", "error")


@dataclass(frozen=True, slots=True)
class Interval:
    """A value and its 80% interval, seconds (or 1/s)."""

    value: float
    lo: float
    hi: float


@dataclass(frozen=True, slots=True)
class Prediction:
    """One row's answer. ``ttft`` and ``tpot`` are None where it cannot be predicted; ``note`` says why, or what was assumed."""

    id: str
    ttft: Interval | None
    tpot: Interval | None
    note: str


def predict(
    table: Table,
    compiler: Compiler | None = None,
    processes: Mapping[str, Process] | None = None,
    report: Callable[[str, int, int], None] | None = None,
) -> list[Prediction]:
    """Predict every row; rows that cannot be predicted keep their reason. Same case, same work: it is done once."""
    read = _read(table)
    distinct: dict[Any, int] = {}
    for case in read:
        if isinstance(case, Case):
            distinct.setdefault(_key(case), len(distinct))
    first: dict[int, Case] = {}
    for case in read:
        if isinstance(case, Case):
            first.setdefault(distinct[_key(case)], case)
    answers = predict_cases([first[i] for i in range(len(distinct))], compiler, processes, report)
    out = []
    for case in read:
        if isinstance(case, Unread):
            out.append(Prediction(case.id, None, None, case.reason))
        else:
            found = answers[distinct[_key(case)]]
            out.append(Prediction(case.id, found.ttft, found.tpot, found.note))
    return out


def _read(table: Table) -> list[Case | Unread]:
    """Rows as cases; rows that differ only in their names and measurements are understood once."""
    known: dict[tuple[tuple[str, str], ...], Case | Unread] = {}
    out: list[Case | Unread] = []
    for number, row in enumerate(table.rows):
        key = tuple((k, v) for k, v in row.items() if k not in ("id", "ttft_ms", "tpot_ms"))
        found = known.get(key)
        if found is None:
            found = known[key] = understand(row, number)
        name = row.get("id", "") or str(number)
        if isinstance(found, Unread):
            out.append(Unread(name, found.reason))
        else:
            out.append(
                Case(
                    name,
                    found.pools,
                    found.isl,
                    found.osl,
                    found.concurrency,
                    found.measured_on,
                    found.group,
                    found.notes,
                    found.shortest,
                )
            )
    return out


def _key(case: Case) -> Any:
    return (id(case.pools), case.isl, case.osl, case.concurrency, case.measured_on, case.shortest)


def predict_cases(
    cases: Sequence[Case],
    compiler: Compiler | None = None,
    processes: Mapping[str, Process] | None = None,
    report: Callable[[str, int, int], None] | None = None,
) -> list[Prediction]:
    """Predictions of understood cases, in order."""
    compiler = compiler or Compiler()
    processes = processes or shipped()
    physics: list[Steady | None] = []
    reasons: list[str] = []
    for number, case in enumerate(cases):
        try:
            physics.append(steady(case, compiler))
            reasons.append("")
        except TrivetError as error:
            physics.append(None)
            reasons.append(" ".join(str(error).split()))
        if report is not None and number % 64 == 0:
            report("serving", number, len(cases))
    good = [i for i, found in enumerate(physics) if found is not None]
    own = [_own(cases[i], compiler) for i in good]
    kept = [cases[i] for i in good]
    intervals, tiers = _intervals(kept, [s for s in physics if s is not None], processes, own, compiler)
    remarks = _remarks(kept, tiers, own, processes["tpot"])
    out: list[Prediction] = []
    answered = {i: (*pair, remark) for i, pair, remark in zip(good, intervals, remarks, strict=True)}
    for i, case in enumerate(cases):
        if i not in answered:
            out.append(Prediction(case.id, None, None, reasons[i]))
            continue
        ttft, tpot, remark = answered[i]
        notes = [*case.notes, *remark, *(compiler.kv_tokens(pool.deployment)[1] for pool in case.pools)]
        out.append(Prediction(case.id, ttft, tpot, "; ".join(n for n in notes if n)))
    return out


def _intervals(
    cases: list[Case],
    physics: list[Steady],
    processes: Mapping[str, Process],
    own: list[dict[str, float]],
    compiler: Compiler,
) -> tuple[list[tuple[Interval, Interval]], NDArray[np.int64]]:
    """((TTFT, TPOT) of each case, its tier: see ``Process.tier``)."""
    if not cases:
        return [], np.zeros(0, dtype=np.int64)
    found = features(cases, physics, compiler)
    sheet = np.array([_chip_sigma(case)[0] for case in cases])
    sides, tiers = [], np.zeros(0, dtype=np.int64)
    for name in ("ttft", "tpot"):
        part = processes[name].correct(found)
        raw = np.array([float(getattr(s, f"{name}_s")) for s in physics])
        sigma = np.array([spread[name] for spread in own])
        ported = np.array([_ported(case, name) for case in cases])
        half = Z80 * np.where(sigma > 0, sigma, np.hypot(np.hypot(part.deviation, sheet), ported))
        middle, shift = np.where(sigma > 0, 0.0, part.middle), np.where(sigma > 0, 0.0, part.value)
        columns = (raw * np.exp(shift), raw * np.exp(middle - half), raw * np.exp(middle + half))
        sides.append([Interval(*row) for row in zip(*(column.tolist() for column in columns), strict=True)])
        tiers = part.tier
    return list(zip(sides[0], sides[1], strict=True)), tiers


def _ported(case: Case, quantity: str) -> float:
    """Log spread of an engine on a maker's chips that it was not measured on."""
    deployment = case.pools[-1].deployment
    if deployment.chip.maker == MEASURED_MAKER:
        return 0.0
    routed = deployment.architecture.routed
    further = BEHIND_KNOWN * math.log(behind(deployment)) if quantity == "tpot" else 0.0
    return math.hypot(PORTED[quantity][1 if routed else 0], further)


def _remarks(
    cases: Sequence[Case], tiers: NDArray[np.int64], own: Sequence[Mapping[str, float]], process: Process
) -> list[list[str]]:
    """What was fallen back on, and what makes an interval wide."""
    versions = {setup.rpartition(" ")[0] for setup in process.vocabulary[NAMED.index("setup")]}
    out = []
    for case, tier, spread in zip(cases, tiers.tolist(), own, strict=True):
        notes, engine, version = [], case.group["engine"], case.group["version"]
        if version and f"{engine} {version}" not in versions:
            notes.append(f"{engine} {version} has no profile: what its other versions have in common is used")
        if not spread["tpot"]:
            sigma, unknown = _chip_sigma(case)
            if tier == 2:
                notes.append(f"the interval is wide: no serving measurement of the family {case.group['family']}")
            if sigma > 0.1:
                notes.append(f"the interval is wide: {unknown} of {case.group['chip']} is not published")
        out.append(notes)
    return out


def _own(case: Case, compiler: Compiler) -> dict[str, float]:
    """Log spreads where a user's own results calibrated the engine on this chip: what others measured then corrects nothing
    more. 0 where they did not."""
    constants = [compiler.constants(pool.deployment) for pool in case.pools]
    return {name: min(getattr(c, f"{name}_sigma") for c in constants) for name in ("ttft", "tpot")}


def _chip_sigma(case: Case) -> tuple[float, str]:
    """(log spread that unpublished fields of the chip bring, 0 for chips whose sheet is complete; the field)."""
    chip = case.pools[-1].deployment.chip
    names = ("memory_bandwidth_bytes_per_s", "peak_flops_bf16")
    return max(
        ((fact.log_sigma, name) for name in names if (fact := chip.facts.get(name)) is not None), default=(0.0, "")
    )


def csv_text(predictions: Sequence[Prediction]) -> str:
    """The answer file: milliseconds, six significant digits, empty where there is no answer."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(COLUMNS)
    for found in predictions:
        numbers: list[str] = []
        for interval in (found.ttft, found.tpot):
            numbers += (
                ["", "", ""]
                if interval is None
                else [f"{1e3 * v:.6g}" for v in (interval.value, interval.lo, interval.hi)]
            )
        writer.writerow([found.id, *numbers, found.note])
    return buffer.getvalue()


@dataclass(frozen=True, slots=True)
class Point:
    """One load of one deployment."""

    ttft: Interval
    tpot: Interval
    output_tokens_per_s: Interval  # of the whole deployment


def serving_point(
    deployment: Deployment,
    isl: float,
    osl: float,
    concurrency: ArrayLike,
    *,
    measured_on: str = "",
    compiler: Compiler | None = None,
) -> list[Point]:
    """TTFT, TPOT and throughput with 80% intervals of ``deployment`` under each of ``concurrency`` closed-loop clients.

    ``measured_on`` (``YYYY-MM-DD``): when the software was current; it shifts to the habits of that time where calibration
    knows them. Lengths are drawn from 0.8 to 1.0 of the nominal ones.
    """
    loads = np.atleast_1d(np.asarray(concurrency, float))
    date = measured_on or "recent"
    settings = deployment.settings
    group = {
        "model": deployment.architecture.name,
        "chip": deployment.chip.name,
        "family": deployment.chip.family,
        "engine": settings.engine,
        "mode": "agg",
        "version": settings.version,
        "precision": settings.weight_dtype or deployment.architecture.quantisation.experts,
        "measured_on": date,
    }
    pool = Pool(deployment, 1, 0.0)
    cases = [Case(str(i), (pool,), isl, osl, float(c), date, group) for i, c in enumerate(loads)]
    out = []
    for answer, case in zip(predict_cases(cases, compiler), cases, strict=True):
        if answer.ttft is None or answer.tpot is None:
            raise TrivetError(answer.note)
        per = case.osl * 0.9
        rates = [case.concurrency * per / (t + per * p) for t, p in (
            (answer.ttft.value, answer.tpot.value), (answer.ttft.hi, answer.tpot.hi),
            (answer.ttft.lo, answer.tpot.lo))]  # fmt: skip
        out.append(Point(answer.ttft, answer.tpot, Interval(*rates)))
    return out
