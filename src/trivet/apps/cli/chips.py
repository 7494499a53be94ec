"""``trivet chips``: the catalogue as a list, or chips side by side with source and status of every field."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from trivet.chip.catalogue import chip, names, unknown_fields
from trivet.chip.fields import FIELDS
from trivet.chip.spec import Chip
from trivet.errors import TrivetError
from trivet.facts import Fact
from trivet.units import text

if TYPE_CHECKING:
    from rich.table import Table

app = typer.Typer(add_completion=False, rich_markup_mode=None)

_ROLES = {
    "accelerator": "accelerators",
    "sram_accelerator": "SRAM accelerators",
    "cpu": "CPUs",
    "ssd_controller": "drives",
}
_MARK = {"published": "", "measured": "m", "reported": "r", "derived": "d", "unpublished": "?"}


@app.command()
def chips(
    chip_names: list[str] = typer.Argument(
        None, metavar="[NAME...]", help="Names, aliases or YAML files; none lists all."
    ),
    as_json: bool = typer.Option(False, "--json", help="All fields as JSON."),
    role: str = typer.Option(
        "", "--role", help="Only this role in the list: accelerator, sram_accelerator, cpu, ssd_controller."
    ),
    compare: bool = typer.Option(
        False, "--compare", help="Times of GEMM, attention and all-reduce on the first against each other chip."
    ),
    library: str = typer.Option("vllm", "--library", help="Whose kernels --compare times: vllm, sglang, trtllm."),
    out: Path | None = typer.Option(
        None, "-o", "--out", metavar="DIR", help="summary.json and report.html of --compare."
    ),
) -> None:
    """The chips of the catalogue, side by side, with status and source of each field and what is unknown."""
    if compare:
        _compare(chip_names or [], library, out, as_json)
        return
    if role and role not in _ROLES:
        raise TrivetError(f"{role!r}", field="--role", allowed=_ROLES)
    found = [chip(name) for name in (chip_names or names())]
    if role:
        found = [one for one in found if one.role == role]
    if as_json:
        typer.echo(json.dumps([to_dict(one) for one in found], indent=1))
        return
    from rich.console import Console

    console = Console()
    if not chip_names:
        for key, title in _ROLES.items():
            listed = [one for one in found if one.role == key]
            if listed:
                console.print(_listing(listed, title))
        console.print(
            "r reported, d derived, m measured, ? an interval; dense peaks; links per direction; "
            "not known: needed fields without a "
            "plain value.\nSources, intervals, conflicts: trivet chips NAME...",
            highlight=False,
        )
        return
    console.print(_side_by_side(found))
    for one in found:
        _notes(console, one)


def _compare(chip_names: list[str], library: str, out: Path | None, as_json: bool) -> None:
    from trivet.apps.cli.output import deliver
    from trivet.loop.compare import compare
    from trivet.report import comparison

    if len(chip_names) < 2:
        raise TrivetError("a comparison needs two chips", field="NAME", allowed="two or more names")
    first = chip(chip_names[0])
    found = {other.name: compare(first, other, library=library) for other in map(chip, chip_names[1:])}

    def show(folder: str) -> None:
        from trivet.report.tables import print_table

        for other, leads in found.items():
            print_table(comparison.table(first.name, other, leads), title=f"{first.name} against {other}")

    pages = {"report.html": lambda: comparison.html(first.name, found)}
    deliver(comparison.to_dict(first.name, found), out, as_json, show, pages)


def to_dict(one: Chip) -> dict[str, object]:
    """A chip as JSON: identity, every field with value or interval, unit, status, source, and what is unknown."""
    return {
        "name": one.name,
        "title": one.title,
        "maker": one.maker,
        "family": one.family,
        "role": one.role,
        "dtypes": list(one.dtypes),
        "server": one.server,
        "aliases": list(one.aliases),
        "fields": {name: fact.to_dict() for name, fact in one.facts.items()},
        "unknown": list(unknown_fields(one)),
    }


# Heading, unit of the figures, scale, fields (the first that is known).
_Column = tuple[str, float, tuple[str, ...]]
_CHIP_COLUMNS: tuple[_Column, ...] = (
    ("16-bit\nTF/s", 1e12, ("peak_flops_bf16", "peak_flops_fp16")),
    ("8-bit\nTF/s", 1e12, ("peak_flops_fp8", "peak_flops_int8")),
    ("FP4\nTF/s", 1e12, ("peak_flops_fp4",)),
    ("memory\nGB", 1e9, ("memory_bytes", "sram_bytes")),
    ("bandw.\nTB/s", 1e12, ("memory_bandwidth_bytes_per_s", "sram_bandwidth_bytes_per_s")),
    ("links\nGB/s", 1e9, ("link_bandwidth_bytes_per_s",)),
    ("power\nW", 1.0, ("tdp_w",)),
)
_DRIVE_COLUMNS: tuple[_Column, ...] = (
    ("read\nGB/s", 1e9, ("read_bytes_per_s",)),
    ("write\nGB/s", 1e9, ("write_bytes_per_s",)),
    ("4K reads\nM/s", 1e6, ("read_iops",)),
    ("latency\nus", 1e-6, ("read_latency_s",)),
    ("size\nTB", 1e12, ("memory_bytes",)),
)


def _listing(found: list[Chip], title: str) -> Table:
    from rich.table import Table

    table = Table(title=f"{len(found)} {title}", title_justify="left", title_style="bold", box=None, pad_edge=False)
    columns = _DRIVE_COLUMNS if found[0].role == "ssd_controller" else _CHIP_COLUMNS
    table.add_column("chip", no_wrap=True)
    for heading, _, _ in columns:
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("not\nknown", justify="right")
    for one in found:
        table.add_row(
            one.name,
            *(_short(one, scale, fields) for _, scale, fields in columns),
            str(len(unknown_fields(one)) or "-"),
        )
    return table


def _short(one: Chip, scale: float, fields: tuple[str, ...]) -> str:
    fact = next((one.facts[name] for name in fields if one.get(name)), None)
    if fact is None or fact.value is None:
        return "-"
    mark = "?" if fact.lo is not None and fact.status in ("derived", "unpublished") else _MARK[fact.status]
    return f"{fact.value / scale:.4g}{mark or ' '}"


def _side_by_side(found: list[Chip]) -> Table:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold", show_lines=False)
    table.add_column("field", no_wrap=True)
    for one in found:
        table.add_column(one.name, overflow="fold")
    table.add_row("what", *(one.title for one in found))
    table.add_row("family, role", *(f"{one.family}, {one.role}" for one in found))
    table.add_row("matrix dtypes", *(" ".join(one.dtypes) or "-" for one in found))
    table.add_row("server", *(one.server or "-" for one in found))
    order = [name for name in FIELDS if any(name in one.facts for one in found)]
    order += sorted({name for one in found for name in one.facts} - set(FIELDS))
    for name in order:
        table.add_row(name, *(cell(one.facts.get(name)) for one in found))
    table.add_row("", *("" for _ in found))
    table.add_row("no plain value", *("\n".join(unknown_fields(one)) or "-" for one in found))
    return table


def cell(fact: Fact | None) -> str:
    """``165 TFLOP/s [138 to 195] derived``: value, 80% interval and status as one line."""
    if fact is None:
        return "[dim]-[/]"
    value = "unknown" if fact.value is None else quantity(fact.value, fact.unit)
    if fact.lo is not None and fact.hi is not None:
        value += f" [cyan]({interval(fact.lo, fact.hi, fact.value, fact.unit)})[/]"
    colour = {
        "published": "green",
        "measured": "green",
        "reported": "yellow",
        "derived": "magenta",
        "unpublished": "red",
    }
    conflict = " [red]conflict[/]" if fact.conflicts else ""
    return f"{value} [{colour[fact.status]}]{fact.status}[/]{conflict}"


def interval(lo: float, hi: float, value: float | None, unit: str) -> str:
    """``138-195``: the ends in the unit and prefix that ``quantity`` gives the value."""
    if not value:
        return f"{quantity(lo, unit)} to {quantity(hi, unit)}"
    shown = quantity(value, unit)
    scale = value / float(shown.split()[0].replace(",", ""))
    return f"{lo / scale:.3g}-{hi / scale:.3g}" if hi / scale < 1e4 else f"{lo / scale:,.0f}-{hi / scale:,.0f}"


def quantity(value: float, unit: str) -> str:
    """A value in the unit that people use for it: mm2 for areas, MiB for caches, plain numbers for counts and rates."""
    if unit == "m2":
        return f"{value * 1e6:.4g} mm2"
    if unit in ("F", "FLOP/s", "B/s", "B", "W", "s", "Hz"):
        return text(value, unit, 4)
    plain = f"{value:,.4g}" if value < 1e4 else f"{value:,.0f}" if value < 1e7 else text(value, "")
    return f"{plain} {unit}".strip()


def _notes(console: object, one: Chip) -> None:
    from rich.console import Console
    from rich.markup import escape

    assert isinstance(console, Console)
    console.print(f"\n[bold]{one.name}[/]: sources")
    by_source: dict[tuple[str, str, str], list[str]] = {}
    for name, fact in one.facts.items():
        by_source.setdefault((fact.status, fact.source, fact.date), []).append(name)
    for (status, source, date), fields in by_source.items():
        console.print(f"  {status}: {escape(source)}{f' ({date})' if date else ''}: [dim]{', '.join(fields)}[/]")
    for name, fact in one.facts.items():
        if fact.note:
            console.print(f"  [dim]{name}[/]: {escape(fact.note)}")
        for other in fact.conflicts:
            console.print(
                f"  [red]conflict[/] [dim]{name}[/]: {escape(other.source)} prints {quantity(other.value, fact.unit)}; "
                f"not used: {escape(other.reason)}"
            )
    _role(console, one)


def _role(console: object, one: Chip) -> None:
    from rich.console import Console

    from trivet.chip.roles import answers

    assert isinstance(console, Console)
    found = answers(one)
    if found:
        console.print("  in its role:")
    for answer in found:
        ends = interval(answer.estimate.lo, answer.estimate.hi, answer.estimate.value, answer.unit)
        beside = (
            ""
            if answer.error is None
            else f"; published {quantity(answer.published or 0, answer.unit)}, error {answer.error:+.0%}"
        )
        driver = f", driven by {answer.estimate.driver}" if answer.estimate.driver else ""
        width = f" [cyan]({ends})[/]" if answer.estimate.spread else ""
        console.print(f"    {answer.what}: {quantity(answer.estimate.value, answer.unit)}{width}{driver}{beside}")
