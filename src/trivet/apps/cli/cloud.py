"""``trivet cloud``: a week of a whole cloud, and the same week on other cards."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from trivet.errors import TrivetError

app = typer.Typer(add_completion=False, rich_markup_mode=None)


def _told(report: Callable[[str, int, int], None], name: str, what: str, done: int, total: int) -> None:
    report(f"{name}: {what}", done, total)


@app.command()
def cloud(
    scenarios: Annotated[list[Path], typer.Argument(help="Scenario (.yaml); several are compared with the first.")],
    seed: Annotated[int | None, typer.Option(help="Instead of the scenario's own.")] = None,
    out: Annotated[Path | None, typer.Option("-o", "--out", help="Folder for summary.json, report.html, hourly.parquet, "
                                                                     "customers.parquet.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print summary.json instead of tables.")] = False,
) -> None:  # fmt: skip
    """Services, training and other jobs of hundreds of customers on one cluster for a week, with failures, power and bills."""
    from trivet.apps.cli.output import deliver
    from trivet.apps.cli.screen import progress
    from trivet.interop.clients import read_clients
    from trivet.interop.yaml_files import read_yaml
    from trivet.loop.cloud_compare import compare
    from trivet.loop.cloud_scenario import parse
    from trivet.loop.cloud_week import run_cloud
    from trivet.model.config import read as read_model
    from trivet.report import cloud_report

    raws = [read_yaml(path) for path in scenarios]
    parsed = [parse({**raw, **({} if seed is None else {"seed": seed})}) for raw in raws]
    names = [s.name for s in parsed]
    if len(set(names)) != len(names):
        raise TrivetError("two scenarios have one name", field="name", allowed="a name each")
    with progress(enabled=not as_json) as report:
        weeks = [run_cloud(s, read_clients(s.customers), read_model, partial(_told, report, s.name)) for s in parsed]
    comparison = compare([w.summary for w in weeks]) if len(weeks) > 1 else []
    content: dict[str, Any] = weeks[0].summary
    if len(weeks) > 1:
        content = {"weeks": [w.summary for w in weeks], "comparison": comparison}

    def write(folder: Path) -> None:
        if len(weeks) == 1:
            cloud_report.write(weeks[0], folder)
            return
        (folder / "report.html").write_text(cloud_report.comparison_html(comparison))
        for w in weeks:
            part = folder / "".join(c if c.isalnum() else "-" for c in w.summary["name"].lower())
            part.mkdir()
            cloud_report.write(w, part)

    deliver(content, out, as_json, lambda folder: cloud_report.terminal(weeks, comparison, folder), also=write)
