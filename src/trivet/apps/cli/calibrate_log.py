"""``trivet calibrate --requests``: an engine on a chip from logs of its requests."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path

import typer

from trivet.errors import TrivetError


def run(paths: Sequence[Path], chip: str, out: Path | None, as_json: bool) -> None:
    """Fit, write the profile, and print what changed."""
    from trivet.interop.results import result_file
    from trivet.loop.calibrate_log import fit
    from trivet.loop.predict_requests import meta_path, read_log, read_meta

    if not chip:
        raise TrivetError("missing", field="--chip", allowed="the chip that was measured")
    found = fit([read_log(path) for path in paths], [read_meta(meta_path(path)) for path in paths], chip)
    if out is not None:
        with result_file(out) as place:
            place.write_text(found.text(), encoding="utf-8")
    factors = json.loads(found.text())["factors"]
    rows = [
        {"log": path.name, "TPOT error as shipped": before, "TPOT error calibrated": after}
        for path, before, after in zip(paths, found.before, found.after, strict=True)
    ]
    if as_json:
        document = {"engine": found.engine, "chip": found.chip, "factors": factors, "logs": rows}
        typer.echo(json.dumps({**document, "out": str(out or "")}))
        return
    from trivet.report.tables import print_table

    shown = [{k: f"{math.expm1(v):+.1%}" if isinstance(v, float) else v for k, v in row.items()} for row in rows]
    print_table(shown, title=f"{found.engine} on {found.chip}")
    typer.echo(
        "Times its kernels as measured: "
        + ", ".join(f"{name.replace('_', ' ')} {value:.3f}" for name, value in factors.items() if name != "step_s")
        + f"; {factors['step_s'] * 1e3:.2f} ms a step between them"
    )
    if out is not None:
        typer.echo(f"Profile: {out} (used wherever TRIVET_CATALOGUE names the folder that holds engines/)")
