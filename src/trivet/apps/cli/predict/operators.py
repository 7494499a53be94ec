"""``trivet predict operators``: latencies of a file of kernels and collectives."""

from __future__ import annotations

import json
from collections import Counter
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
    from trivet.apps.cli.screen import progress
    from trivet.interop.results import result_file
    from trivet.loop import predict_operators as loop

    table = loop.read_csv(rows)
    with progress() as report:
        answers = loop.predict(table, report)
    with result_file(out) as place:
        place.write_text(loop.csv_text(answers), encoding="utf-8")
    good = [a for a in answers if a.value_s is not None]
    failed = Counter(a.note for a in answers if a.value_s is None)
    summary = {
        "rows": len(answers), "predicted": len(good), "failed": len(answers) - len(good),
        "with_notes": sum(1 for a in good if a.note), "reasons": dict(failed.most_common(20)), "out": str(out),
    }  # fmt: skip
    if as_json:
        typer.echo(json.dumps(summary))
        return
    typer.echo(f"{summary['predicted']} of {summary['rows']} rows predicted, {summary['with_notes']} with notes: {out}")
    for reason, count in failed.most_common(8):
        typer.echo(f"  {count} not predicted: {reason}")
