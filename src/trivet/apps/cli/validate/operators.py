"""``trivet validate operators``: kernels predicted against measured, families left out."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import typer

app = typer.Typer(add_completion=False)


@app.command()
def operators(
    source: Path = typer.Argument(
        ..., metavar="FILE|FOLDER", help="A CSV with latency_us (or latency in ms), or a folder of kernel tables."
    ),
    out: Path | None = typer.Option(
        None, "-o", "--out", metavar="DIR", help="Write report.html and summary.json there."
    ),
    kinds: str = typer.Option(
        "", "--kinds", help="Of a folder: which of gemm,moe,prefill,decode,mla_prefill,mla_decode,scan."
    ),
    rows: int = typer.Option(200, "--rows", help="Of a folder: rows for each chip, engine, precision and kernel."),
    detail: bool = typer.Option(False, "--detail", help="One line a chip and engine too."),
    as_json: bool = typer.Option(False, "--json", help="Print the scores for machines."),
) -> None:
    """Error, bias, interval coverage and width by operator, precision, chip and engine.

    Rows of a folder are calibration data: each chip's family is left out of the fit that predicts it. Rows of a file are
    predicted with the shipped calibration.
    """
    from trivet.apps.cli.screen import progress
    from trivet.loop import predict_operators, validate_operators
    from trivet.loop.calibrate import calibrate_operators
    from trivet.loop.calibrate import chosen_kinds as chosen

    with progress() as report:
        if source.is_dir():
            fits = calibrate_operators(
                source, chosen(kinds), rows, progress=lambda kind, done: report(kind, int(100 * done), 100)
            )
            compared = validate_operators.from_fits(fits.values())
        else:
            table = predict_operators.read_csv(source)
            compared = validate_operators.from_rows(table, predict_operators.predict(table, report))
    by = ("op", "dtype")
    main, fine = (
        validate_operators.pooled(compared, by),
        validate_operators.scores(compared, (*by, "family", "chip", "engine")),
    )
    summary = {"by_op_dtype": [asdict(s) for s in main], "by_chip_engine": [asdict(s) for s in fine]}
    _write(out, compared, summary, main, fine)
    if as_json:
        typer.echo(json.dumps(summary))
        return
    from trivet.report.tables import print_table
    from trivet.report.validation import table_rows

    print_table(
        table_rows(main, by),
        title="Every chip and engine counts alike; families left out" if source.is_dir() else "By operator",
    )
    if detail:
        print_table(table_rows(fine, (*by, "family", "chip", "engine")))


def _write(out: Path | None, compared: Any, summary: dict[str, Any], main: list[Any], fine: list[Any]) -> None:
    if out is None:
        return
    from trivet.interop.results import result_folder
    from trivet.report.validation import document, scatter, table_rows

    figures = []
    for op in sorted(set(compared.labels["op"].tolist())):
        mine = compared.labels["op"] == op
        figures.append(
            scatter(
                compared.measured_s[mine] * 1e6, compared.predicted_s[mine] * 1e6, compared.lo_s[mine] * 1e6,
                compared.hi_s[mine] * 1e6, compared.labels["family"][mine], title=op, unit="us", points=150,
            )
        )  # fmt: skip
    tables = {
        "By operator and precision": table_rows(main, ("op", "dtype")),
        "By chip and engine": table_rows(fine, ("op", "dtype", "family", "chip", "engine")),
    }
    with result_folder(out) as folder:
        (folder / "summary.json").write_text(json.dumps(summary, indent=1), encoding="utf-8")
        (folder / "report.html").write_text(
            document("Operators: predicted against measured", figures, tables), encoding="utf-8"
        )
