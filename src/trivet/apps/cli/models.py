"""``trivet models``: the catalogue of models, or parameters, bytes and FLOPs of configs."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import typer

from trivet.apps.cli.screen import progress
from trivet.errors import TrivetError
from trivet.model import catalogue
from trivet.model.config import families, read
from trivet.model.summary import summary
from trivet.units import text

if TYPE_CHECKING:
    from rich.table import Table

app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.command()
def models(
    model_names: list[str] = typer.Argument(
        None, metavar="[PATH_OR_NAME...]", help="config.json files, folders, names; none lists the catalogue."
    ),
    as_json: bool = typer.Option(False, "--json", help="A list of {name, parameters, ...} or {name, error}."),
    list_families: bool = typer.Option(False, "--families", help="List the model types that are understood."),
) -> None:
    """Parameters in total and active, bytes of weights, KV cache and state, FLOPs per token of any model."""
    if list_families:
        known = sorted(families())
        typer.echo(json.dumps(known) if as_json else "\n".join(known))
        return
    found = _answers(model_names or list(catalogue.names()))
    if as_json:
        typer.echo(json.dumps(found, indent=1))
    else:
        _print(found, detailed=bool(model_names))
    if model_names and any("error" in one for one in found):
        raise typer.Exit(2)


def _answers(names: list[str]) -> list[dict[str, Any]]:
    """One summary, or one error in a line, for each name; a model that fails does not stop the others."""
    found: list[dict[str, Any]] = []
    with progress() as report:
        for done, name in enumerate(names):
            report(name, done, len(names))
            try:
                found.append({**summary(read(name)), "input": name})
            except TrivetError as error:
                found.append({"name": name, "error": " ".join(str(error).split()), "input": name})
    return found


def _print(found: list[dict[str, Any]], *, detailed: bool) -> None:
    from rich.console import Console

    console = Console()
    good = [one for one in found if "error" not in one]
    if good:
        console.print(_table(good))
    if detailed:
        for one in good:
            _details(console, one)
    errors = Console(stderr=True) if detailed else console
    for one in found:
        if "error" in one:
            errors.print(f"{one['name']}: {one['error']}", highlight=False, markup=False, soft_wrap=True)


def _table(found: list[dict[str, Any]]) -> Table:
    from rich.table import Table

    table = Table(
        title="models (KV cache a token, state a sequence; FLOPs of a token after 4096 others)",
        header_style="bold",
        padding=(0, 0),
    )
    table.add_column("name", overflow="fold", min_width=22)
    for column in ("params", "active", "weights", "as", "KV/tok", "state", "FLOP/tok"):
        table.add_column(column, justify="right", no_wrap=True)
    for one in found:
        stored = one["quantisation"]
        flops = one["flops_per_token"]
        at = flops.get("4096", flops["0"])
        main = stored["experts"] if "experts" in one["components"] else stored["dense"]
        table.add_row(
            one["name"],
            text(one["parameters"], ""),
            text(one["active_parameters"], ""),
            text(one["weight_bytes"], "B"),
            main,
            text(one["kv_bytes_per_token"], "B"),
            text(one["state_bytes_per_sequence"], "B"),
            text(at, ""),
        )
    return table


def _details(console: Any, one: dict[str, Any]) -> None:
    from rich.table import Table

    kinds = ", ".join(f"{count} x {kind}" for kind, count in one["layer_kinds"].items())
    table = Table(title=f"{one['name']} ({one['model_type']})", header_style="bold")
    table.add_column("component")
    table.add_column("parameters", justify="right")
    table.add_column("share", justify="right")
    for component, amount in one["components"].items():
        table.add_row(component, f"{amount:,}", f"{amount / one['parameters']:.1%}")
    table.add_row("total", f"{one['parameters']:,}", "")
    table.add_row("active per token", f"{one['active_parameters']:,}", "")
    console.print(table)
    console.print(f"layers: {kinds}; hidden {one['hidden']}, vocabulary {one['vocab']}", highlight=False)
    by_context = ", ".join(f"{text(flops, '')} at {context}" for context, flops in one["flops_per_token"].items())
    console.print(f"FLOPs per token by context: {by_context}", highlight=False)
    cache = ", ".join(f"{text(size, 'B')} at {context}" for context, size in one["kv_bytes_per_sequence"].items())
    console.print(f"KV cache of a sequence: {cache}", highlight=False)
    for note in one["notes"]:
        console.print(f"note: {note}", highlight=False, markup=False)
