"""``trivet validate serving``: predicted against measured serving runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.command()
def serving(
    rows: Annotated[
        Path | None,
        typer.Argument(
            metavar="FILE",
            help="Columns as in serving_measured.csv, instead of ttft_ms and tpot_ms also latency_s or output_tokens_per_s; "
            "range_ratio: shortest length over the nominal one. Default: the calibration data.",
        ),
    ] = None,
    hold_out: Annotated[
        str,
        typer.Option(
            help="model, family, chip, quarter (fitted without it) or nothing. Default: model,family; for a FILE nothing."
        ),
    ] = "",
    out: Annotated[Path | None, typer.Option("-o", "--out", help="Folder for summary.json and report.html.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary for machines.")] = False,
    limit_tpot: Annotated[
        float, typer.Option(help="Exit with 1 when the median TPOT error of a split is above it (0 = never).")
    ] = 0.0,
    limit_ttft: Annotated[float, typer.Option(help="The same for TTFT.")] = 0.0,
) -> None:
    """Median and p90 error of TPOT and TTFT by mode, maker, chip, engine and model; coverage and width of the 80% intervals.

    Rows that publish only how long a request lasts, or only a throughput of a closed loop, are compared by that.
    """
    from trivet.apps.cli.options import calibration_file, csv_list
    from trivet.apps.cli.output import deliver
    from trivet.apps.cli.screen import progress
    from trivet.loop import validate_serving as loop
    from trivet.loop.calibrate_serving import measured_rows
    from trivet.report import serving_validation

    splits = csv_list(hold_out) or (["model", "family"] if rows is None else ["nothing"])
    measured = measured_rows(rows or calibration_file("serving_measured.csv"), whole=splits != ["nothing"])
    with progress(enabled=not as_json) as report:
        checked = loop.check(measured, splits, report)
    summary = loop.summarise(measured, checked)
    pages = {"report.html": lambda: serving_validation.html(checked)}
    deliver(summary, out, as_json, lambda folder: serving_validation.terminal(checked, summary, folder), pages)
    limits = {"tpot": limit_tpot, "ttft": limit_ttft}
    worse = [
        s.group for s in loop.scores(checked, "split", "quantity") if 0 < limits.get(s.group[1], 0.0) < s.median_error
    ]
    if worse:
        typer.echo(f"above the limit: {', '.join(' '.join(group) for group in worse)}", err=True)
        raise typer.Exit(1)
