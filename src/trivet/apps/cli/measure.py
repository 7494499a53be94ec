"""``trivet measure chip``: the local device in three microbenchmarks, as a catalogue entry."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import typer

app = typer.Typer(add_completion=False)


@app.command()
def measure(
    what: str = typer.Argument("chip", metavar="chip", help="What to measure: the chip of this machine."),
    out: Path | None = typer.Option(None, "-o", "--out", metavar="NAME.yaml", help="Write a catalogue entry there."),
    backend: str = typer.Option("", "--backend", help="numpy, torch or cuda; the best there is when empty."),
    seconds: float = typer.Option(10.0, "--seconds", help="Time to spend, roughly."),
    as_json: bool = typer.Option(False, "--json", help="Print the measurements for machines."),
) -> None:
    """Time a 4096^3 product, a 1 x 128256 x 4096 product and a 384^3 product on the local device.

    The entry holds the three times and the rates that they bound; give its path wherever a chip is named.
    """
    from trivet.apps.cli.screen import progress
    from trivet.errors import TrivetError
    from trivet.interop.results import result_file
    from trivet.loop.measure import SHAPES, catalogue_entry
    from trivet.loop.measure import measure as run
    from trivet.units import seconds_text

    if what != "chip":
        raise TrivetError(f"cannot measure {what!r}", field="what", allowed="chip")
    with progress() as report:
        found = run(backend, seconds, report)
    if out is not None:
        with result_file(out) as place:
            place.write_text(catalogue_entry(found), encoding="utf-8")
    if as_json:
        typer.echo(json.dumps(asdict(found)))
        return
    typer.echo(f"{found.device}: {found.backend}, {found.dtype}, {found.threads} threads")
    for name, (m, n, k) in SHAPES.items():
        rate = 2.0 * m * n * k / found.seconds[name]
        typer.echo(f"  {m} x {n} x {k}: {seconds_text(found.seconds[name])}, {rate / 1e9:,.1f} GFLOP/s")
    if out is not None:
        typer.echo(f"Catalogue entry: {out}")
