"""``trivet predict training``: tokens per second and chip, with an interval, and memory of a file of jobs."""

from __future__ import annotations

from pathlib import Path

import typer

app = typer.Typer(add_completion=False)


@app.command()
def training(
    rows: Path = typer.Argument(..., metavar="IN.csv", help="Columns as in training_measured.csv."),
    out: Path = typer.Option(..., "-o", "--out", metavar="OUT.csv", help="Where the predictions go."),
    as_json: bool = typer.Option(False, "--json", help="Print a summary for machines."),
) -> None:
    """Predict each row's tokens per second and chip (with an 80% interval) and the memory of its fullest chip.

    A row that cannot be predicted has its reason in ``error``; assumptions are noted there too.
    """
    from trivet.apps.cli.output import write_file
    from trivet.apps.cli.predict.summary import tell_rows
    from trivet.loop import predict_training as loop

    read = loop.read_rows(rows)
    answers = loop.predict(read)
    write_file(out, loop.csv_text(answers))
    tell_rows([(a.result is not None, a.error) for a in answers], out, as_json)
