"""``trivet simulate`` for scenarios that pool many models: files and a table."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any


def simulate(raw: dict[str, Any], out: Path | None, as_json: bool, read_clients: Callable[[str], Any]) -> None:
    """Run it, write ``summary.json``, ``report.html`` and ``requests.parquet`` or ``draws.parquet``, print."""
    from trivet.apps.cli.output import deliver
    from trivet.apps.cli.screen import progress
    from trivet.loop import pool_scenario
    from trivet.report import pool_report

    with progress(enabled=not as_json) as report:
        done = pool_scenario.run(raw, read_clients, report)

    def write(folder: Path) -> None:
        import polars as pl

        for name, columns in (("requests", done.requests), ("draws", done.draws)):
            if columns is not None:
                pl.DataFrame(columns).write_parquet(folder / f"{name}.parquet")

    def show(folder: str) -> None:
        from trivet.report.tables import print_table

        print_table(pool_report.rows(done.summary), title=done.summary["title"])
        for line in done.summary["notes"]:
            sys.stdout.write(line + "\n")
        if folder:
            sys.stdout.write(f"written to {folder}\n")

    pages = {"report.html": lambda: pool_report.html(done.summary, done.requests)}
    deliver(done.summary, out, as_json, show, pages, write)
