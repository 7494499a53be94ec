"""A chip against others, operator by operator: rows for a terminal, JSON, and a page with a picture."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from trivet.loop.compare import Lead, Overall, Timed, by_kind
from trivet.units import Z80, seconds_text


def to_dict(first: str, found: Mapping[str, Sequence[Lead]]) -> dict[str, Any]:
    """``{"chip", "comparisons": [{"against", "operators": [...], "kinds": [...]}]}``, 80% intervals throughout."""
    return {
        "chip": first,
        "comparisons": [
            {
                "against": other,
                "operators": [
                    {
                        "kind": lead.kind, "operator": lead.operator, "first_s": _interval(lead.first),
                        "second_s": _interval(lead.second), **_ratio(lead),
                    }
                    for lead in leads
                ],
                "kinds": [{"kind": line.kind, **_ratio(line)} for line in by_kind(leads)],
            }
            for other, leads in found.items()
        ],
    }  # fmt: skip


def _interval(one: Timed) -> dict[str, float]:
    half = math.exp(Z80 * one.log_sigma)
    return {"value": one.value_s, "lo": one.value_s / half, "hi": one.value_s * half}


def _ratio(line: Lead | Overall) -> dict[str, Any]:
    half = math.exp(Z80 * line.log_sigma)
    speed = {"value": line.ratio, "lo": line.ratio / half, "hi": line.ratio * half}
    return {"speed_over": speed, "probability_first_leads": line.probability}


def table(first: str, other: str, leads: Sequence[Lead]) -> list[dict[str, str]]:
    """Rows of text, the operators and then each kind taken together."""
    rows = [
        {
            "": lead.kind, "operator": lead.operator, first: _times(lead.first), other: _times(lead.second),
            f"speed over {other}": _times_over(lead), f"P({first} leads)": f"{100 * lead.probability:.0f}%",
        }
        for lead in leads
    ]  # fmt: skip
    rows += [
        {
            "": line.kind, "operator": "taken together", first: "", other: "", f"speed over {other}": _times_over(line),
            f"P({first} leads)": f"{100 * line.probability:.0f}%",
        }
        for line in by_kind(leads)
    ]  # fmt: skip
    return rows


def _times(one: Timed) -> str:
    ends = _interval(one)
    return f"{seconds_text(one.value_s)} [{seconds_text(ends['lo'])} - {seconds_text(ends['hi'])}]"


def _times_over(line: Lead | Overall) -> str:
    ends = _ratio(line)["speed_over"]
    return f"{line.ratio:.2f} [{ends['lo']:.2f} - {ends['hi']:.2f}]"


def html(first: str, found: Mapping[str, Sequence[Lead]]) -> str:
    """A self-contained page: speed over each other chip with its interval, and the tables."""
    from trivet.report.charts import Section, bar_chart, html_table, page

    names = [f"{lead.kind}: {lead.operator}" for lead in next(iter(found.values()))]
    speeds = {f"over {other}": [_ratio(lead)["speed_over"] for lead in leads] for other, leads in found.items()}
    chart = bar_chart(
        names,
        {name: [s["value"] for s in row] for name, row in speeds.items()},
        errors={name: ([s["lo"] for s in row], [s["hi"] for s in row]) for name, row in speeds.items()},
        title=f"Speed of {first} over the others",
        value_label="times as fast; 80% intervals",
    )
    sections = [Section("Speed", chart, "Above 1 it leads. Times are predicted; what is not published is an interval.")]
    sections += [Section(f"Against {other}", html_table(table(first, other, leads))) for other, leads in found.items()]
    return page(f"{first} against {', '.join(found)}", sections)
