"""``trivet calibrate --bench``: an engine on a chip from results of load generators."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from trivet.errors import TrivetError
from trivet.units import Z80

if TYPE_CHECKING:
    from trivet.cloud.deployment import Deployment
    from trivet.interop.bench_core import BenchResult
    from trivet.loop.calibrate_user import Observation, Run, UserFit


@dataclass(frozen=True, slots=True)
class Launched:
    """What was measured: the chip, and either the launch command or engine, model and layout."""

    chip: str
    command: str
    engine: str
    model: str
    layout: str


def run(paths: Sequence[Path], launched: Launched, out: Path | None, as_json: bool) -> None:
    """Fit, write the profile, and print what changed."""
    from trivet.apps.cli.output import tell, write_file
    from trivet.interop.bench_results import read
    from trivet.loop import calibrate_user as loop
    from trivet.loop.serving_model import Compiler

    results = [result for path in paths for result in read(path)]
    deployment = _deployment(launched, next((r.model for r in results if r.model), ""))
    runs = [_run(result) for result in results]
    observed = [loop.observation(one, deployment) for one in runs]
    engine, compiler = deployment.settings.engine, Compiler()
    found = loop.fit(observed, engine, compiler)
    write_file(out, loop.profile_text(found, engine, deployment.chip.name))
    rows = _rows(runs, observed, found, engine, compiler)
    width = {
        name: {"before": 2 * Z80 * float(found.before[i]), "after": 2 * Z80 * float(found.after[i])}
        for i, name in enumerate(("tpot", "ttft"))
    }
    factors = {name: math.exp(v) for name, v in zip(loop.FACTORS, found.logs, strict=True)}

    def show() -> None:
        from trivet.report.tables import print_table

        shown = [
            {k: f"{v * 1e3:,.3g} ms" if k.startswith("t") else f"{v:,.4g}" for k, v in row.items()} for row in rows
        ]
        print_table(shown, title=f"{engine} on {deployment.chip.name}: measured, as shipped, calibrated")
        typer.echo("Times the shipped constants: " + ", ".join(f"{k} {v:.2f}" for k, v in factors.items()))
        for name, ends in width.items():
            typer.echo(
                f"Log width of the 80% interval, {name.upper()}: {ends['before']:.2f} before, {ends['after']:.2f} now"
            )
        if out is not None:
            typer.echo(f"Profile: {out} (used wherever TRIVET_CATALOGUE names the folder that holds engines/)")

    outcome = {"engine": engine, "chip": deployment.chip.name, "factors": factors, "log_width": width, "runs": rows}
    tell(outcome, out, as_json, show)


def _deployment(launched: Launched, served: str) -> Deployment:
    from trivet.chip.catalogue import chip
    from trivet.cloud.deployment import ENGINES, Deployment, EngineSettings
    from trivet.interop.flags_parse import parse
    from trivet.model.config import read
    from trivet.model.parallel import Layout

    if not launched.chip:
        raise TrivetError("missing", field="--chip", allowed="the chip that was measured")
    if launched.command:
        parsed = parse(launched.command)
        architecture = read(launched.model or parsed.model or served)
        experts = architecture.routed
        parsed = parse(launched.command, moe=experts)
        return Deployment(architecture, chip(launched.chip), parsed.layout, parsed.settings)
    if launched.engine not in ENGINES:
        raise TrivetError(f"unknown engine {launched.engine!r}", field="--engine", allowed=ENGINES)
    if not (launched.model or served):
        raise TrivetError("missing", field="--model", allowed="the result does not name it")
    settings = replace(EngineSettings(engine=launched.engine), max_num_seqs=1024)
    ways = Layout(**_ways(launched.layout))
    return Deployment(read(launched.model or served), chip(launched.chip), ways, settings)


def _ways(text: str) -> dict[str, Any]:
    allowed = ("tp", "pp", "attention_dp", "moe_tp", "moe_ep", "cp", "dcp")
    ways: dict[str, Any] = {}
    for part in (p.strip() for p in text.split(",") if p.strip()):
        name, _, value = part.partition("=")
        if name not in allowed or not value.isdigit():
            raise TrivetError(f"{part!r} is not understood", field="--layout", allowed=[f"{n}=N" for n in allowed])
        ways[name] = int(value)
    return ways


def _run(result: BenchResult) -> Run:
    from trivet.loop.calibrate_user import run_of

    if not result.completed:
        raise TrivetError("no request completed", field=f"{result.tool} result")
    latency = [getattr(result.latencies.get(name), "mean", math.nan) for name in ("ttft", "tpot")]
    variation = math.nan
    if result.requests is not None and result.requests.output_tokens.size > 1:
        outputs = result.requests.output_tokens
        variation = float(outputs.std() / max(outputs.mean(), 1e-9))
    mean = (result.input_tokens / result.completed, result.output_tokens / result.completed)
    load = (float(result.max_concurrency), result.request_rate_per_s)
    return run_of((*mean, variation), load, (latency[0], latency[1]), result.completed)


def _rows(
    runs: Sequence[Run], observed: Sequence[Observation], found: UserFit, engine: str, compiler: Any
) -> list[dict[str, float]]:
    from trivet.cloud.engine.profiles import from_mapping
    from trivet.loop.serving_model import Compiler

    after = Compiler({engine: from_mapping(engine, found.constants)}, compiler.parts, compiler.rooms)
    rows = []
    for one, seen in zip(runs, observed, strict=True):
        old, new = seen.physics(compiler), seen.physics(after)
        rows.append({
            "isl": one.isl, "osl": one.osl, "concurrency": one.concurrency, "rate": one.rate_per_s,
            "tpot measured": seen.tpot_s, "tpot shipped": float(old.tpot_s), "tpot now": float(new.tpot_s),
            "ttft measured": seen.ttft_s, "ttft shipped": float(old.ttft_s), "ttft now": float(new.ttft_s),
        })  # fmt: skip
    return rows
