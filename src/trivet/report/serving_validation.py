"""Serving runs, predicted against measured: tables and pictures."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from trivet.report import validation

QUANTITIES = ("tpot", "ttft", "latency")
COLUMNS = ("measured", "predicted", "lo", "hi")
BY = ("mode", "engine", "maker", "chip", "model")


def html(checked: Sequence[Any]) -> str:
    """A page with a picture of each quantity and split, and the tables."""
    from trivet.loop.validate_serving import scores

    figures = []
    for split in _order(row.split for row in checked):
        for quantity in QUANTITIES:
            rows = [row for row in checked if row.split == split and row.quantity == quantity]
            if not rows:
                continue
            measured, predicted, lo, hi = ([1e3 * getattr(row, name) for row in rows] for name in COLUMNS)
            title = f"{quantity.upper()}, {_words(split)}"
            engines = [row.engine for row in rows]
            figures.append(validation.scatter(measured, predicted, lo, hi, engines, title=title, unit="ms"))
    tables = {"All": validation.table_rows(scores(checked, "split", "quantity"), ("split", "quantity"))}
    for name in BY:
        tables[f"By {name}"] = validation.table_rows(
            scores(checked, "split", "quantity", name), ("split", "quantity", name)
        )
    return validation.document("Serving: predicted against measured", figures, tables)


def terminal(checked: Sequence[Any], summary: Mapping[str, Any], folder: str) -> None:
    """Print the tables."""
    from trivet.loop.validate_serving import scores
    from trivet.report.tables import print_table

    for name in (*BY, ""):
        fields = ("split", "quantity", *((name,) if name else ()))
        print_table(validation.table_rows(scores(checked, *fields), fields), title=f"By {name}" if name else "All")
    for what, floor in summary["noise_floor"].items():
        if floor["pairs"]:
            gaps = ", ".join(
                f"{q[:4].upper()} {100 * floor[q]['median']:.1f}% (p90 {100 * floor[q]['p90']:.0f}%)"
                for q in ("tpot_s", "ttft_s")
            )
            print(f"  measured twice, {what}: {floor['pairs']} pairs differ by {gaps}")
    if folder:
        print(f"  {folder}: summary.json, report.html")


def _order(names: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(names))


def _words(split: str) -> str:
    return {"nothing": "as shipped", "quarter": "a quarter of the configurations left out"}.get(
        split, f"each {split} left out"
    )
