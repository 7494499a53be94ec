"""``trivet plan``: deployments for a model, a traffic and an SLO."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import typer

from trivet.apps.cli.options import csv_list, duration_s
from trivet.errors import TrivetError

app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.command()
def plan(
    model: Annotated[str, typer.Argument(help="A model (name, folder, config.json) or a scenario (.yaml).")],
    traffic: Annotated[str, typer.Option(help="A sample (azure2023-conv ...) or a trace file.")] = "",
    rate: Annotated[float, typer.Option(help="Requests a second, instead of a trace (Poisson).")] = 0.0,
    isl: Annotated[int, typer.Option(help="Input tokens, with --rate.")] = 1024,
    osl: Annotated[int, typer.Option(help="Output tokens, with --rate.")] = 256,
    rate_scale: Annotated[float, typer.Option(help="Speed the trace up by this factor.")] = 1.0,
    chips: Annotated[str, typer.Option(help="Chips to consider, comma-separated.")] = "zhenwu-810e,h20,a800,h100",
    engines: Annotated[str, typer.Option(help="vllm, sglang, trtllm; comma-separated.")] = "vllm",
    precisions: Annotated[
        str, typer.Option(help="Weight formats (bf16, fp8, int8, ...); default: checkpoint and 8-bit.")
    ] = "",
    slo: Annotated[str, typer.Option(help="Limits, e.g. ttft=1s,tpot=50ms.")] = "ttft=1s,tpot=50ms",
    percentile: Annotated[float, typer.Option(help="Share of requests that must keep the SLO; 0 = the mean.")] = 0.9,
    modes: Annotated[str, typer.Option(help="aggregated, disaggregated")] = "aggregated,disaggregated",
    price_basis: Annotated[
        str, typer.Option(help="tco_hyperscaler, tco_neocloud, rent_3_years, on_demand, owner.")
    ] = "tco_hyperscaler",
    max_chips: Annotated[int, typer.Option(help="Most chips of one replica.")] = 16,
    verify: Annotated[bool, typer.Option(help="Simulate the cheapest plans request by request.")] = True,
    out: Annotated[Path | None, typer.Option("-o", "--out", help="Folder for summary.json and report.html.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print summary.json instead of a table.")] = False,
) -> None:
    """Which chip, how many, which layout, precision and settings serve this traffic within this SLO at the least cost."""
    from trivet.loop.plan_run import PlanRequest, run_plan

    request: dict[str, Any] = {
        "model": model,
        "traffic": traffic,
        "rate_per_s": rate,
        "isl": isl,
        "osl": osl,
        "rate_scale": rate_scale,
        "chips": csv_list(chips),
        "engines": csv_list(engines),
        "precisions": csv_list(precisions),
        "percentile": percentile,
        "modes": csv_list(modes),
        "price_basis": price_basis,
        "max_chips_per_replica": max_chips,
        "verify": verify,
        **_slo(slo),
    }
    if model.endswith((".yaml", ".yml")):
        request = _from_scenario(Path(model))
    from trivet.apps.cli.output import deliver
    from trivet.apps.cli.screen import progress
    from trivet.interop.flags import launch_command
    from trivet.interop.traces import read as read_trace
    from trivet.model.config import read as read_model
    from trivet.report import plan_report

    started = time.perf_counter()
    goal_request = PlanRequest.create(request, read_model=read_model, read_trace=read_trace)
    with progress(enabled=not as_json) as report:
        result = run_plan(goal_request, lambda deployment, role: launch_command(deployment, role=role), report)
    result["wall_s"] = round(time.perf_counter() - started, 3)
    pages = {"report.html": lambda: plan_report.html(result)}
    deliver(result, out, as_json, lambda folder: plan_report.terminal(result, folder), pages)


def _slo(text: str) -> dict[str, float]:
    limits: dict[str, float] = {}
    for part in csv_list(text):
        key, _, value = part.partition("=")
        if key.strip() not in ("ttft", "tpot"):
            raise TrivetError(f"unknown limit {key!r}", field="--slo", allowed="ttft=TIME, tpot=TIME")
        limits[f"{key.strip()}_s"] = duration_s(value, f"--slo {key}")
    return {"ttft_s": limits.get("ttft_s", 1.0), "tpot_s": limits.get("tpot_s", 0.05)}


def _from_scenario(path: Path) -> dict[str, Any]:
    from trivet.interop.yaml_files import read_yaml

    content = read_yaml(path)
    slo = content.pop("slo", {})
    if isinstance(slo, str):
        content.update(_slo(slo))
    elif isinstance(slo, dict):
        content.update(_slo(",".join(f"{k}={v}" for k, v in slo.items())))
    else:
        raise TrivetError("is neither text nor a mapping", field="slo", allowed="ttft: 1s, tpot: 50ms")
    return content
