"""Rows as a table on a terminal. rich is imported when a table is drawn, not before."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import IO, Any

from trivet.report.svg import number


def cell_text(value: Any) -> str:
    """A cell as a person reads it: thousands separated, four digits, a dash for nothing, bounds in brackets."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}" if abs(value) < 1e9 else number(float(value))
    if isinstance(value, float):
        return number(value)
    if isinstance(value, Mapping) and "value" in value:
        middle = cell_text(value["value"])
        ends = value.get("lo"), value.get("hi")
        return middle if None in ends else f"{middle} [{cell_text(ends[0])}, {cell_text(ends[1])}]"
    if isinstance(value, list | tuple):
        return ", ".join(cell_text(v) for v in value)
    return str(value)


def table(
    rows: Sequence[Mapping[str, Any]],
    columns: Sequence[str] | Mapping[str, str] | None = None,
    *,
    title: str = "",
    caption: str = "",
) -> Any:
    """A rich table. ``columns``: which keys, in which order (a mapping gives headings); numbers at the right."""
    from rich import box
    from rich.table import Table

    keys = list(columns) if columns is not None else list(dict.fromkeys(k for row in rows for k in row))
    heads = dict(columns) if isinstance(columns, Mapping) else {k: k.replace("_", " ") for k in keys}
    drawn = Table(
        title=title or None,
        caption=caption or None,
        box=box.SIMPLE_HEAD,
        title_justify="left",
        caption_justify="left",
    )
    for key in keys:
        right = any(
            isinstance(row.get(key), int | float | Mapping) and not isinstance(row.get(key), bool) for row in rows
        )
        drawn.add_column(heads[key], justify="right" if right else "left", overflow="fold")
    for row in rows:
        drawn.add_row(*(_escaped(cell_text(row.get(k))) for k in keys))
    return drawn


def _escaped(text: str) -> str:
    from rich.markup import escape

    return escape(text)


def print_table(
    rows: Sequence[Mapping[str, Any]],
    columns: Sequence[str] | Mapping[str, str] | None = None,
    *,
    title: str = "",
    caption: str = "",
    file: IO[str] | None = None,
) -> None:
    """Draw rows on a terminal (or ``file``)."""
    from rich.console import Console

    out = file or sys.stdout
    console = Console(file=out, width=None if out.isatty() else 160, highlight=False)
    console.print(table(rows, columns, title=title, caption=caption))


def pairs(values: Mapping[str, Any], *, title: str = "") -> Any:
    """Names and values, one a line, as a rich table without a head."""
    from rich.table import Table

    drawn = Table(title=title or None, box=None, show_header=False, title_justify="left", padding=(0, 2, 0, 0))
    drawn.add_column(style="bold")
    drawn.add_column()
    for key, value in values.items():
        drawn.add_row(_escaped(str(key)), _escaped(cell_text(value)))
    return drawn
