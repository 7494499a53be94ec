"""``trivet predict serving``: TTFT and TPOT of a file of configurations."""

from __future__ import annotations

from pathlib import Path

import typer

app = typer.Typer(add_completion=False)


@app.command()
def serving(
    rows: Path = typer.Argument(
        ..., metavar="IN.csv", help="Columns as in serving_measured.csv; measured ones may be absent."
    ),
    out: Path = typer.Option(..., "-o", "--out", metavar="OUT.csv", help="Where the predictions go."),
    as_json: bool = typer.Option(False, "--json", help="Print a summary for machines."),
) -> None:
    """Predict mean TTFT and TPOT of each row, with 80% intervals.

    A row that cannot be predicted has its reason in ``error``; what was assumed for others is noted there too.
    """
    from trivet.apps.cli.output import write_file
    from trivet.apps.cli.predict.summary import tell_rows
    from trivet.apps.cli.screen import progress
    from trivet.loop import predict_serving as loop
    from trivet.loop.serving_rows import read_csv

    table = read_csv(rows)
    with progress() as report:
        answers = loop.predict(table, report=report)
    write_file(out, loop.csv_text(answers))
    tell_rows([(a.tpot is not None, a.note) for a in answers], out, as_json)
