"""``trivet validate training``: predicted against measured training runs."""

from __future__ import annotations

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
    from trivet.apps.cli.options import calibration_file
    from trivet.apps.cli.output import deliver
    from trivet.apps.cli.screen import progress
    from trivet.loop import predict_training, validate_training
    from trivet.report import training_validation

    measured = predict_training.read_rows(rows or calibration_file("training_measured.csv"))
    with progress(enabled=not as_json) as report:
        checked, failed = validate_training.check(measured, hold_out, report)
    summary = {**validate_training.summarise(checked), "hold_out": hold_out, "failed": failed}
    pages = {
        "rows.csv": lambda: training_validation.rows_csv(checked),
        "report.html": lambda: training_validation.html(checked, summary),
    }
    deliver(summary, out, as_json, lambda folder: training_validation.terminal(summary, folder), pages)
