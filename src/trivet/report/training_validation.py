"""Training runs, predicted against measured: tables and a picture."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

from trivet.report.validation import document, scatter


def table_rows(groups: Mapping[str, Mapping[str, Any]], name: str) -> list[dict[str, Any]]:
    """One row a group, largest error first."""
    order = sorted(groups, key=lambda k: -groups[k]["median_error"])
    return [
        {
            name: k,
            "rows": groups[k]["rows"],
            "median error": f"{100 * groups[k]['median_error']:.1f}%",
            "p90": f"{100 * groups[k]['p90_error']:.1f}%",
            "bias": f"{100 * groups[k]['bias']:+.1f}%",
            "in the 80% interval": f"{100 * groups[k]['coverage_80']:.0f}%",
            "fits": f"{100 * groups[k]['fit_in_memory']:.0f}%",
        }
        for k in order
    ]


def rows_csv(checked: Sequence[Any]) -> str:
    """The checked rows as CSV."""
    out = io.StringIO()
    names = ("id", "model", "chip", "source", "measured", "predicted", "lo", "hi", "memory_bytes", "fits")
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(names)
    writer.writerows([[getattr(row, n) for n in names] for row in checked])
    return out.getvalue()


def html(checked: Sequence[Any], summary: Mapping[str, Any]) -> str:
    """A page: predicted over measured, and the tables."""
    columns = [[getattr(row, name) for row in checked] for name in ("measured", "predicted", "lo", "hi", "chip")]
    picture = scatter(*columns, title="Tokens per second and chip", unit="1/s")
    tables = {f"By {name}": table_rows(summary[f"by_{name}"], name) for name in ("chip", "model", "source")}
    return document("Training: predicted against measured", [picture], tables, _headline(summary))


def _headline(summary: Mapping[str, Any]) -> str:
    a = summary["all"]
    held = {"nothing": "shipped constants"}.get(
        summary["hold_out"], f"each {summary['hold_out']} predicted by constants fitted without it"
    )
    return (
        f"{a['rows']} rows, {held}: median error {100 * a['median_error']:.1f}%, p90 {100 * a['p90_error']:.1f}%, "
        f"{100 * a['coverage_80']:.0f}% inside the 80% interval, {100 * a['fit_in_memory']:.0f}% fit in memory."
    )


def terminal(summary: Mapping[str, Any], folder: str) -> None:
    """Print the tables."""
    from trivet.report.tables import print_table

    for name in ("chip", "model", "source"):
        print_table(table_rows(summary[f"by_{name}"], name), title=f"By {name}")
    print(_headline(summary))
    for row, reason in summary["failed"].items():
        print(f"  {row}: {reason}")
    if folder:
        print(f"  {folder}: summary.json, rows.csv, report.html")
