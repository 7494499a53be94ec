"""A codesign study from a request to the content of ``summary.json``."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from trivet.chip.catalogue import chip as catalogue_chip
from trivet.chip.catalogue import unknown_fields
from trivet.errors import TrivetError, Unsupported
from trivet.loop.codesign import METRICS, Progress, Sensitivity, Study, sensitivities, used
from trivet.loop.codesign_check import Check, check, place
from trivet.loop.codesign_demand import Metrics, Workload, demand
from trivet.loop.codesign_search import Best, best
from trivet.model.architecture import Architecture


@dataclass(frozen=True, slots=True)
class CodesignRequest:
    """What a user asks for. ``demand`` and ``check_demand`` are parsed scenario files."""

    chip: str
    demand: Mapping[str, Any]
    check_demand: Mapping[str, Any] | None = None  # None: the method is not checked
    step: float = 0.10
    basis: str = "tco_hyperscaler"
    site: str = ""
    budget: Mapping[str, float] | None = None
    place: tuple[str, ...] = ()
    replica_chips: int = 16


def run_codesign(
    request: CodesignRequest, read_model: Callable[[str], Architecture], progress: Progress = lambda *_: None
) -> dict[str, Any]:
    """Sensitivities, the best chip within the budget, chips placed beside, the check of the method.

    Raises:
        TrivetError: a step outside (0, 1], an unknown chip, model, budget or a chip that cannot run the demand.
    """
    if not 0 < request.step <= 1:
        raise TrivetError(f"{request.step}", field="step", allowed="above 0, at most 1")
    chip = catalogue_chip(request.chip)
    if chip.role != "accelerator":
        raise Unsupported(f"{chip.name} is a {chip.role}", field="chip", allowed="an accelerator")
    others = [catalogue_chip(name) for name in request.place]
    workloads = demand(request.demand, read_model)
    study = Study(chip, workloads, basis=request.basis, site=request.site, limit=request.replica_chips)
    found, silicon = sensitivities(study, step=request.step, progress=progress)
    searched = best(study, request.budget, progress=progress)
    placed = [place(study, other, request.replica_chips) for other in others]
    checked = None
    if request.check_demand is not None:
        checked = check(demand(request.check_demand, read_model), progress=progress)
    return {
        "chip": chip.name,
        "title": chip.title,
        "demand": str(request.demand.get("title", "")),
        "basis": request.basis,
        "step_percent": 100.0 * request.step,
        "usd_per_chip_hour": study.price.hour.to_dict(),
        "unknown_fields": list(unknown_fields(chip)),
        "workloads": [_workload(w, study.base[w.name]) for w in study.workloads],
        "silicon_base": used(chip),
        "silicon": [asdict(s) for s in silicon],
        "sensitivities": [asdict(s) for s in found],
        "ranking": _ranking(found),
        "best": _best(searched),
        "placed": [asdict(p) for p in placed],
        "check": None if checked is None else _check(checked),
    }


def _workload(workload: Workload, found: Metrics) -> dict[str, Any]:
    return {
        "name": workload.name, "kind": workload.kind, "share": workload.share, "numbers": dict(workload.numbers),
        "model": workload.architecture.name if workload.architecture else "",
        "usd_per_million_tokens": found.usd.to_dict(), "joules_per_token": found.joules.to_dict(),
        "chips_per_million_tokens_per_s": found.chips.to_dict(), "run_as": found.choice,
    }  # fmt: skip


def _ranking(found: Sequence[Sensitivity]) -> dict[str, list[str]]:
    """Parameters by what they save, best first, for each metric over the whole demand."""
    return {
        metric: [
            s.parameter for s in sorted(found, key=lambda s: s.percent) if (s.workload, s.metric) == ("all", metric)
        ]
        for metric in METRICS
    }


def _best(found: Best) -> dict[str, Any]:
    fields = (
        "peak_flops_bf16", "memory_bandwidth_bytes_per_s", "memory_bytes", "memory_stacks", "link_bandwidth_bytes_per_s", "tdp_w",
    )  # fmt: skip
    return {
        "factors": dict(found.factors),
        "budget": dict(found.budget),
        "used": dict(found.used),
        "binding": list(found.binding),
        "fields": {name: found.chip.facts[name].to_dict() for name in fields if name in found.chip.facts},
        "changes": [asdict(c) for c in found.changes],
        "evaluations": found.evaluations,
    }


def _check(found: Check) -> dict[str, Any]:
    return {
        "base": found.base, "steps": [asdict(s) for s in found.steps], "rank_correlation": found.rank_correlation,
        "same_direction": found.same_direction, "compared": found.compared,
    }  # fmt: skip
