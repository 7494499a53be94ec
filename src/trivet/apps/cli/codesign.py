"""``trivet codesign``: which change to a chip lowers the cost of a demand most."""

from __future__ import annotations

from pathlib import Path

import typer

from trivet.apps.cli.options import csv_list
from trivet.errors import TrivetError

app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.command()
def codesign(
    chip: str = typer.Argument("zhenwu-810e", help="Chip of the catalogue, alias or YAML file."),
    demand: Path = typer.Option(
        None, "--demand", help="Scenario file of workloads; default: a model cloud's demand in 2026."
    ),
    step: float = typer.Option(0.10, "--step", help="How much more of each parameter."),
    budget: str = typer.Option(
        "", "--budget", help="area_mm2=N,power_w=N,bill_usd=N of the best chip; default 1.25 x the chip's own."
    ),
    place: str = typer.Option("", "--place", help="Chips to set beside it; default zhenwu-m890 for zhenwu-810e."),
    basis: str = typer.Option(
        "tco_hyperscaler", "--basis", help="tco_hyperscaler, tco_neocloud, rent_3_years, on_demand, owner."
    ),
    site: str = typer.Option("", "--site", help="Operator whose PUE counts (alibaba, google, meta, aws, microsoft)."),
    replica_chips: int = typer.Option(16, "--replica-chips", help="Chips that a serving replica may have."),
    check: bool = typer.Option(True, "--check/--no-check", help="Check the method from A100 to its successors."),
    out: Path = typer.Option(None, "-o", "--out", help="Folder for summary.json and report.html."),
    as_json: bool = typer.Option(False, "--json", help="The summary as JSON."),
) -> None:
    """What a tenth more of each parameter of a chip does to cost, energy and cards; the best chip within a budget."""
    from trivet.apps.cli.output import deliver
    from trivet.apps.cli.screen import progress
    from trivet.chip.catalogue import chip as catalogue_chip
    from trivet.chip.reading import data_folder, read_yaml
    from trivet.loop.codesign_result import CodesignRequest, run_codesign
    from trivet.model.config import read as read_model
    from trivet.report import codesign_report

    if replica_chips < 1:
        raise TrivetError(f"{replica_chips}", field="--replica-chips", allowed="at least 1")
    scenarios = data_folder() / "scenarios"
    name = catalogue_chip(chip).name
    placed = csv_list(place) or (["zhenwu-m890"] if name == "zhenwu-810e" else [])
    request = CodesignRequest(
        chip,
        read_yaml(demand or scenarios / "codesign.yaml"),
        read_yaml(scenarios / "codesign_2020.yaml") if check else None,
        step, basis, site, _budget(budget), tuple(placed), replica_chips,
    )  # fmt: skip
    with progress(enabled=not as_json) as report:
        result = run_codesign(request, read_model, report)
    pages = {"report.html": lambda: codesign_report.html(result)}
    deliver(result, out, as_json, lambda folder: codesign_report.terminal(result, folder), pages)


def _budget(text: str) -> dict[str, float]:
    found: dict[str, float] = {}
    for part in csv_list(text):
        key, _, value = part.partition("=")
        try:
            found[key.strip()] = float(value)
        except ValueError as error:
            raise TrivetError(f"{value!r} is not a number", field=f"--budget {key}") from error
    return found
