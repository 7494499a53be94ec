"""``trivet claims``: the article's claims, computed."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.command()
def claims(
    only: Annotated[list[str] | None, typer.Argument(help="Claims to compute (ids); default all.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of drawn inputs.")] = 0,
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="Folder for summary.json, claims.md and report.html.")
    ] = None,
    markdown: Annotated[Path | None, typer.Option(help="Also write the document to this file.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print summary.json instead of a table.")] = False,
) -> None:
    """Each claim of the article that can be checked: how, the verdict with its probability, what would change it."""
    from trivet.apps.cli.output import deliver, write_file
    from trivet.apps.cli.screen import progress
    from trivet.interop.clients import read_clients
    from trivet.loop.claim import Bench
    from trivet.loop.claims import compute
    from trivet.report import claims_report as report

    with progress(enabled=not as_json) as show:
        found = [claim.to_dict() for claim in compute(Bench(seed, read_clients, show), only or ())]
    write_file(markdown, report.markdown(found) if markdown else "")
    pages = {"claims.md": lambda: report.markdown(found), "report.html": lambda: report.html(found)}
    deliver({"claims": found}, out, as_json, lambda _: report.terminal(found), pages)
