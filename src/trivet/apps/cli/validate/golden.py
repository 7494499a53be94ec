"""``trivet validate golden``: small samples of every kind against the accuracy recorded for them."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import typer

app = typer.Typer(add_completion=False)


@app.command()
def golden(
    folder: Path = typer.Argument(
        ..., metavar="FOLDER", help="serving.csv, training.csv, kernels/, requests/ (what there is) and levels.json."
    ),
    record: bool = typer.Option(False, "--record", help="Write levels.json anew instead of comparing with it."),
    as_json: bool = typer.Option(False, "--json", help="Print the figures for machines."),
) -> None:
    """Predict the samples, most of them by what did not see their kind; exit 1 where a figure is worse than recorded."""
    from trivet.apps.cli.screen import progress
    from trivet.interop.results import result_file
    from trivet.loop import golden as loop

    with progress(enabled=not as_json) as report:
        measured = loop.measure(folder, report)
    if record:
        with result_file(folder / loop.LEVELS) as place:
            loop.record(measured, place)
    figures = loop.compare(measured, folder)
    worse = [figure for figure in figures if not figure.ok]
    if as_json:
        typer.echo(json.dumps({"figures": [{**asdict(f), "ok": f.ok} for f in figures], "worse": len(worse)}))
    else:
        from trivet.report.tables import print_table

        rows = [
            {
                "": f.section, "figure": f.name, "now": f"{f.value:.4f}",
                "recorded": "-" if f.level is None else f"{f.level:.4f}", "ok": "yes" if f.ok else "NO",
            }
            for f in figures
        ]  # fmt: skip
        print_table(rows, title="Golden accuracy")
    for figure in worse:
        typer.echo(f"worse than recorded: {figure.line()}", err=True)
    if worse:
        raise typer.Exit(1)
