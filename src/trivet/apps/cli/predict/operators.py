"""``trivet predict operators``: latencies of a file of kernels and collectives."""

from __future__ import annotations

from pathlib import Path

import typer

app = typer.Typer(add_completion=False)


@app.command()
def operators(
    rows: Path = typer.Argument(
        ..., metavar="IN.csv", help="id, chip, engine, op, dtype and shape columns as in the kernel tables."
    ),
    out: Path = typer.Option(..., "-o", "--out", metavar="OUT.csv", help="Where the predictions go."),
    as_json: bool = typer.Option(False, "--json", help="Print a summary for machines."),
) -> None:
    """Predict the latency of each row with an 80% interval, as a kernel benchmark would measure it.

    A row that cannot be predicted has its reason in ``error``; what was assumed for others is noted there too.
    """
    from trivet.apps.cli.output import write_file
    from trivet.apps.cli.predict.summary import tell_rows
    from trivet.apps.cli.screen import progress
    from trivet.loop import predict_operators as loop

    table = loop.read_csv(rows)
    with progress() as report:
        answers = loop.predict(table, report)
    write_file(out, loop.csv_text(answers))
    tell_rows([(a.value_s is not None, a.note) for a in answers], out, as_json)
