"""``trivet validate training``: predicted against measured training runs."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.command()
def training(
    rows: Annotated[
        Path | None,
        typer.Argument(metavar="FILE", help="Columns as in training_measured.csv; default: the calibration data."),
    ] = None,
    hold_out: Annotated[
        str, typer.Option(help="model, chip: fitted without it; nothing: the shipped constants.")
    ] = "model",
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="Folder for summary.json, rows.csv, report.html.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary for machines.")] = False,
) -> None:
    """Error by chip, model and source, coverage of the 80% intervals, and whether every row that ran fits in memory."""
    from trivet.apps.cli.screen import progress
    from trivet.errors import TrivetError
    from trivet.loop import predict_training, validate_training

    if rows is None:
        folder = Path(os.environ.get("TRIVET_SHARED_DATA", "../shared/data"))
        rows = folder / "training_measured.csv"
        if not rows.is_file():
            raise TrivetError(
                "no file given and no calibration data",
                field="FILE",
                allowed="a CSV, or TRIVET_SHARED_DATA set to its folder",
            )
    with progress(enabled=not as_json) as report:
        checked, failed = validate_training.check(predict_training.read_rows(rows), hold_out, report)
    summary = {**validate_training.summarise(checked), "hold_out": hold_out, "failed": failed}
    if out is not None:
        from trivet.interop.results import result_folder
        from trivet.report.training_validation import html, rows_csv

        with result_folder(out) as folder:
            (folder / "summary.json").write_text(
                json.dumps(summary, indent=1, allow_nan=False) + "\n", encoding="utf-8"
            )
            (folder / "rows.csv").write_text(rows_csv(checked), encoding="utf-8")
            (folder / "report.html").write_text(html(checked, summary), encoding="utf-8")
    if as_json:
        sys.stdout.write(json.dumps(summary, indent=1, allow_nan=False) + "\n")
    else:
        from trivet.report.training_validation import terminal

        terminal(summary, str(out) if out else "")
