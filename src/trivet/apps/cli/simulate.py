"""``trivet simulate``: a fleet under a trace, request by request."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from trivet.errors import TrivetError

app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.command()
def simulate(
    scenario: Annotated[
        Path, typer.Argument(help="A scenario (.yaml; examples/ has some), or a shipped one: marketplace.")
    ],
    out: Annotated[
        Path | None,
        typer.Option("-o", "--out", help="Folder for requests.parquet, summary.json, timeline.json, report.html."),
    ] = None,
    changes: Annotated[
        list[str], typer.Option("--set", help="Change a field: traffic.rate_scale=2, engine.kv_scale=0.5.")
    ] = [],  # noqa: B006  (typer reads it, nothing changes it)
    fail: Annotated[
        list[str],
        typer.Option("--fail", help="Take something down: rack:600s, server#1:5m@1h, replica:60s, link#0:5s@40s."),
    ] = [],  # noqa: B006  (typer reads it, nothing changes it)
    sweep: Annotated[
        list[str], typer.Option("--sweep", help="Try values: traffic.rate_scale=1,2,4; more options, all combinations.")
    ] = [],  # noqa: B006  (typer reads it, nothing changes it)
    expect: Annotated[
        bool,
        typer.Option("--expect", help="Run the scenario's expectations: what each change does, and what it should."),
    ] = False,
    engine: Annotated[str, typer.Option(help="Where a sweep runs: processes or ray.")] = "processes",
    workers: Annotated[int, typer.Option(help="Processes of a sweep; 0 = all cores.")] = 0,
    most_rows: Annotated[
        int, typer.Option(help="Above so many requests: sketches.parquet and every thousandth request.", min=1)
    ] = 10_000_000,
    as_json: Annotated[bool, typer.Option("--json", help="Print summary.json instead of a table.")] = False,
) -> None:
    """Run traffic through routers, replicas, batches and KV caches; latency, goodput, use, energy and cost."""
    from trivet.interop.yaml_files import read_yaml
    from trivet.loop.scenario_schema import changed

    raw = changed(read_yaml(_place(scenario)), changes)
    if "pooling" in raw:
        for name, given in (("--fail", fail), ("--sweep", sweep), ("--expect", expect)):
            if given:
                raise TrivetError("not for scenarios of the pooling kind", field=name)
        from trivet.apps.cli import pool

        pool.simulate(raw, out, as_json, read_clients)
        return
    if fail:
        raw = _with_outages(raw, fail)
    if sweep:
        _sweep(raw, sweep, out, engine, workers, as_json)
        return
    if expect:
        _expect(raw, as_json)
        return
    from trivet.apps.cli.screen import progress
    from trivet.loop import simulate as loop

    with progress(enabled=not as_json) as report:
        done = loop.run(
            raw, read_trace, told=lambda line: typer.echo(line, err=True), read_clients=read_clients, most_rows=most_rows,
            report=report,
        )  # fmt: skip
    if out is not None:
        write(done, out)
    if as_json:
        sys.stdout.write(json.dumps(done.summary, indent=1, allow_nan=False) + "\n")
    else:
        _print(done.summary, out)


def _place(scenario: Path) -> Path:
    """The file itself, or the shipped scenario of that name."""
    if scenario.suffix or scenario.exists():
        return scenario
    from importlib.resources import files

    shipped = Path(str(files("trivet.data"))) / "scenarios" / f"{scenario}.yaml"
    return shipped if shipped.is_file() else scenario


def read_trace(source: str, limit: int | None) -> Any:
    from trivet.interop.traces import read

    return read(source, limit=limit)


def read_clients(source: str) -> Any:
    from trivet.interop.clients import read_clients as read

    return read(source)


def _with_outages(raw: dict[str, Any], fail: list[str]) -> dict[str, Any]:
    from trivet.loop.scenario import traffic_of
    from trivet.loop.scenario_schema import outage_text, parse

    scenario = parse(raw)
    customers = scenario.traffic.customers
    duration = customers.hours * 3600.0 if customers else traffic_of(scenario, read_trace).duration_s
    return {**raw, "outages": [*(raw.get("outages") or []), *(outage_text(text, duration) for text in fail)]}


def write(done: Any, out: Path) -> None:
    """All result files of one simulation, whole or not at all."""
    import polars as pl

    from trivet.cloud.serving import metrics
    from trivet.interop import timeline
    from trivet.interop.results import result_folder
    from trivet.report import serving_report

    streamed, slo = done.streamed, done.scenario.slo
    columns = metrics.columns(done.result, streamed.ids if streamed else None)
    with result_folder(out) as folder:
        pl.DataFrame(columns).write_parquet(folder / "requests.parquet")
        if streamed:
            pl.DataFrame(streamed.sketches.table()).write_parquet(folder / "sketches.parquet")
        (folder / "summary.json").write_text(
            json.dumps(done.summary, indent=1, allow_nan=False) + "\n", encoding="utf-8"
        )
        (folder / "timeline.json").write_text(timeline.text(done.result), encoding="utf-8")
        codes = {**columns, "status": done.result.status}
        page = serving_report.html(
            codes, done.summary, metrics.over_time(done.result, 160), title=done.scenario.title or "Serving simulation",
            subtitle=f"{done.summary['model']} · {done.summary['traffic']}", ttft_slo_s=slo.ttft_s,
            tpot_slo_s=slo.tpot_s, notes=done.notes, one_in=streamed.every if streamed else 1,
        )  # fmt: skip
        (folder / "report.html").write_text(page, encoding="utf-8")


def _sweep(raw: dict[str, Any], axes: list[str], out: Path | None, engine: str, workers: int, as_json: bool) -> None:
    from trivet.apps.cli.screen import progress
    from trivet.loop import sweep

    if out is None:
        raise TrivetError("a sweep keeps its points in a folder", field="-o", allowed="-o DIR")
    with progress(enabled=not as_json) as report:
        rows = sweep.run(
            raw, axes, out, read_trace, read_clients=read_clients, engine=engine, workers=workers, report=report
        )
    content = json.dumps({"sweep": rows}, indent=1, allow_nan=False, sort_keys=True) + "\n"
    from trivet.interop.results import result_file

    with result_file(out / "summary.json") as place:
        place.write_text(content, encoding="utf-8")
    if as_json:
        sys.stdout.write(content)
        return
    from trivet.report.tables import print_table

    print_table([{**row["set"], **_short(row["summary"])} for row in rows], title="Sweep")


def _expect(raw: dict[str, Any], as_json: bool) -> None:
    from trivet.apps.cli.screen import progress
    from trivet.loop.expect import check

    with progress(enabled=not as_json) as report:
        rows = check(raw, read_trace, read_clients, report)
    if not rows:
        raise TrivetError("the scenario has none", field="expect")
    if as_json:
        sys.stdout.write(json.dumps({"expect": _finite(rows)}, indent=1, allow_nan=False) + "\n")
    else:
        from trivet.report.tables import print_table

        shown = [
            {
                "feature": r["feature"], "change": r["change"], "metric": r["metric"], "without": r["without"],
                "with": r["with"], "ratio": r["ratio"], "expected": "{:g} to {:g}".format(*r["expected"]),
                "holds": "yes" if r["holds"] else "NO",
            }
            for r in rows
        ]  # fmt: skip
        print_table(shown, title=str(raw.get("title", "")))
    if not all(r["holds"] for r in rows):
        raise typer.Exit(1)


def _finite(value: Any) -> Any:
    """The same with null for what JSON cannot say."""
    if isinstance(value, dict):
        return {key: _finite(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _short(summary: dict[str, Any]) -> dict[str, Any]:
    if "error" in summary:
        return {"error": summary["error"]}
    return {
        "TTFT mean s": summary["ttft_s"]["mean"], "TTFT p99 s": summary["ttft_s"]["p99"],
        "TPOT mean s": summary["tpot_s"]["mean"],
        "SLO kept": summary["slo"]["attainment"], "tokens/s/chip": summary["throughput"]["output_tokens_per_s_per_chip"],
        "USD/M": summary["cost"]["usd_per_million_output_tokens"],
    }  # fmt: skip


def _print(summary: dict[str, Any], out: Path | None) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()
    head = ", ".join(
        f"{r['replicas']} x {r['chip']}" + (f" ({r['role']})" if r["role"] != "both" else "")
        for r in summary["replicas"]
    )
    console.print(
        f"[bold]{summary['title'] or 'Serving simulation'}[/bold]  {summary['model']} on {head}; "
        f"{summary['traffic']}, {summary['router']}"
    )
    table = Table("", "mean", "p50", "p90", "p99", "max")
    for name, key in (
        ("TTFT", "ttft_s"),
        ("TPOT", "tpot_s"),
        ("between tokens", "itl_s"),
        ("latency", "e2e_s"),
        ("queue", "queue_s"),
    ):
        table.add_row(name, *(_time(summary[key][mark]) for mark in ("mean", "p50", "p90", "p99", "max")))
    console.print(table)
    r, t, u, s = summary["requests"], summary["throughput"], summary["use"], summary["slo"]
    lines = [
        f"{r['done']:,} of {r['total']:,} requests done, {r['refused']:,} refused, {r['failed']:,} failed, "
        f"{r['retries']:,} retries, {r['preemptions']:,} preemptions",
        f"{t['output_tokens_per_s']:,.0f} output tokens/s, {t['output_tokens_per_s_per_chip']:,.0f} a chip; "
        f"{t['requests_per_s']:,.2f} requests/s over {summary['duration_s']:,.0f} s",
    ]
    if s["ttft_s"] or s["tpot_s"]:
        lines.append(
            f"SLO kept by {s['attainment']:.1%} of requests; goodput {s['goodput_requests_per_s']:,.2f} requests/s"
        )
    busy, kv = u["busy_share"], u["kv_share_while_busy"]
    lines.append(
        f"replicas busy {busy or 0:.0%}, KV {kv or 0:.0%} in use while busy, {u['batch_mean']:.1f} sequences a step"
    )
    if summary["prefix_cache"]["hit_rate"] is not None:
        lines.append(f"prefix cache: {summary['prefix_cache']['hit_rate']:.1%} of prompt tokens")
    if summary["cost"]["usd_per_million_output_tokens"] is not None:
        lines.append(
            f"{summary['cost']['usd_per_million_output_tokens']:.3g} USD and "
            f"{summary['energy']['joules_per_output_token'] * 1e6 / 3.6e6:.3g} kWh "
            f"per million output tokens ({summary['cost']['basis']})"
        )
    if summary["percentiles"]["from"] == "sketches":
        lines.append("percentiles from sketches, within 1/129; requests.parquet has every thousandth request")
    for line in [*lines, *summary["notes"]]:
        console.print(line, highlight=False, soft_wrap=True)
    if out is not None:
        console.print(f"written to {out}", highlight=False, soft_wrap=True)


def _time(value: float | None) -> str:
    from trivet.units import seconds_text

    return "-" if value is None else seconds_text(value)
