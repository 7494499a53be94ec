"""Predicted against measured: one picture and one table, for any quantity."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from trivet.report.charts import Series, scatter_chart
from trivet.report.page import Section, html_table, page


def scatter(
    measured: Any, predicted: Any, lo: Any, hi: Any, groups: Any, *, title: str = "", unit: str = "", points: int = 400
) -> str:
    """A log-log figure of predicted over measured with its diagonal, one colour a group, as an HTML figure.

    Args:
        measured, predicted, lo, hi: equally long arrays of positive numbers; ``lo``/``hi`` may be None.
        groups: what colours a point (same length).
        points: at most so many of each group are drawn, evenly spaced in the order given.
    """
    x, y = np.asarray(measured, float), np.asarray(predicted, float)
    names = np.asarray(groups).astype(str)
    series = []
    for name in sorted(set(names.tolist())):
        rows = np.flatnonzero((names == name) & (x > 0) & (y > 0))
        rows = rows[np.linspace(0, len(rows) - 1, min(points, len(rows))).astype(int)] if len(rows) else rows
        low, high = (None if b is None else np.asarray(b, float)[rows].tolist() for b in (lo, hi))
        series.append(Series(name, x[rows].tolist(), y[rows].tolist(), low, high))
    label = f" ({unit})" if unit else ""
    return scatter_chart(
        series,
        title=title,
        x_label=f"measured{label}",
        y_label=f"predicted{label}",
        x_log=True,
        y_log=True,
        diagonal=True,
    )


def table_rows(scores: Sequence[Any], names: Sequence[str]) -> list[dict[str, str]]:
    """Rows of text for terminal or HTML from objects with ``group``, ``rows`` and the error fields."""
    return [
        {
            **dict(zip(names, s.group, strict=True)), "rows": f"{s.rows:,}", "median error": f"{100 * s.median_error:.1f}%",
            "p90 error": f"{100 * s.p90_error:.1f}%", "bias": f"{100 * s.bias:+.1f}%",
            "in 80% interval": f"{100 * s.coverage:.1f}%",
            "log width": f"{s.log_width:.2f}",
        }
        for s in scores
    ]  # fmt: skip


def document(title: str, figures: Sequence[str], tables: Mapping[str, list[dict[str, str]]], words: str = "") -> str:
    """A self-contained HTML page of pictures and tables."""
    sections = [Section("Predicted against measured", list(figures), words, columns=len(figures) > 1)]
    sections += [Section(name, html_table(rows)) for name, rows in tables.items()]
    return page(title, sections)
