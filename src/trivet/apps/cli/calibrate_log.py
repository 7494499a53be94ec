"""``trivet calibrate --requests``: an engine on a chip from logs of its requests."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import typer

from trivet.errors import TrivetError


def run(paths: Sequence[Path], chip: str, out: Path | None, as_json: bool) -> None:
    """Fit, write the profile, and print what changed."""
    from trivet.apps.cli.output import tell, write_file
    from trivet.loop.calibrate_log import fit
    from trivet.loop.predict_requests import meta_path, read_log, read_meta

    if not chip:
        raise TrivetError("missing", field="--chip", allowed="the chip that was measured")
    found = fit([read_log(path) for path in paths], [read_meta(meta_path(path)) for path in paths], chip)
    write_file(out, found.text())
    rows = [
        {"log": path.name, "TPOT error as shipped": before, "TPOT error calibrated": after}
        for path, before, after in zip(paths, found.before, found.after, strict=True)
    ]

    def show() -> None:
        from trivet.report.tables import print_table

        shown = [{k: f"{math.expm1(v):+.1%}" if isinstance(v, float) else v for k, v in row.items()} for row in rows]
        print_table(shown, title=f"{found.engine} on {found.chip}")
        times = ", ".join(f"{name.replace('_', ' ')} {v:.3f}" for name, v in found.factors.items() if name[-2:] != "_s")
        seconds = f"{found.factors['step_s'] * 1e3:.2f} ms a step between them, {found.factors['cold_s']:.2f} s before the first"
        typer.echo(f"Times its kernels as measured: {times}; {seconds}")
        if out is not None:
            typer.echo(f"Profile: {out} (used wherever TRIVET_CATALOGUE names the folder that holds engines/)")

    tell({"engine": found.engine, "chip": found.chip, "factors": found.factors, "logs": rows}, out, as_json, show)
