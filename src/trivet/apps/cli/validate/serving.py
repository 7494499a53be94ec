"""``trivet validate serving``: predicted against measured serving runs."""

from __future__ import annotations

import json
import os
import sys
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
            "default: the calibration data.",
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
    from trivet.apps.cli.options import csv_list
    from trivet.apps.cli.screen import progress
    from trivet.errors import TrivetError
    from trivet.loop import validate_serving as loop
    from trivet.loop.calibrate_serving import measured_rows

    splits = csv_list(hold_out) or (["model", "family"] if rows is None else ["nothing"])
    if rows is None:
        rows = Path(os.environ.get("TRIVET_SHARED_DATA", "../shared/data")) / "serving_measured.csv"
        if not rows.is_file():
            raise TrivetError(
                "no file given and no calibration data",
                field="FILE",
                allowed="a CSV, or TRIVET_SHARED_DATA set to its folder",
            )
    measured = measured_rows(rows, whole=splits != ["nothing"])
    with progress(enabled=not as_json) as report:
        checked = loop.check(measured, splits, report)
    summary = loop.summarise(measured, checked)
    if out is not None:
        from trivet.interop.results import result_folder
        from trivet.report.serving_validation import html

        with result_folder(out) as folder:
            (folder / "summary.json").write_text(
                json.dumps(summary, indent=1, allow_nan=False) + "\n", encoding="utf-8"
            )
            (folder / "report.html").write_text(html(checked), encoding="utf-8")
    if as_json:
        sys.stdout.write(json.dumps(summary, indent=1, allow_nan=False) + "\n")
    else:
        from trivet.report.serving_validation import terminal

        terminal(checked, summary, str(out) if out else "")
    limits = {"tpot": limit_tpot, "ttft": limit_ttft}
    worse = [
        s.group for s in loop.scores(checked, "split", "quantity") if 0 < limits.get(s.group[1], 0.0) < s.median_error
    ]
    if worse:
        typer.echo(f"above the limit: {', '.join(' '.join(group) for group in worse)}", err=True)
        raise typer.Exit(1)
