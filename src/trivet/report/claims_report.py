"""The article's claims as a page, a Markdown document and a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def _span(figure: Mapping[str, Any]) -> str:
    text = _number(figure["value"])
    if figure["lo"] != figure["hi"]:
        text += f" [{_number(figure['lo'])} – {_number(figure['hi'])}]"
    return f"{text} {figure['unit']}".strip()


def _chance(probability: float | None) -> str:
    return "–" if probability is None else f"{probability:.0%}"


def markdown(claims: Sequence[Mapping[str, Any]]) -> str:
    """The document that ``docs/claims.md`` is."""
    lines = [
        "# The article's claims, computed",
        "",
        "Each claim that can be checked, how it is computed, the verdict, the probability that it is true, and what would",
        "change it. Intervals are 80%. A claim *holds* from a probability of 80% on, *does not hold* from 20% down, and is",
        "*open* between. Regenerate with `trivet claims --markdown docs/claims.md`.",
        "",
        "| claim | verdict | probability |",
        "|---|---|---|",
    ]
    lines += [f"| [{c['claim']}](#{c['id']}) | {c['verdict']} | {_chance(c['probability'])} |" for c in claims]
    for c in claims:
        lines += ["", f"({c['id']})=", f"## {c['claim']}", "", f"**{c['verdict'].capitalize()}**"]
        if c["probability"] is not None:
            lines[-1] += f", probability {_chance(c['probability'])}"
        lines[-1] += "."
        lines += ["", f"- Computed by: {c['computed_by']}.", f"- Would change it: {c['would_change']}."]
        if c["note"]:
            lines.append(f"- {c['note']}")
        if c["figures"]:
            lines += ["", "| figure | value [80%] | supports the claim | |", "|---|---|---|---|"]
            lines += [f"| {f['name']} | {_span(f)} | {_chance(f['probability'])} | {f['note']} |" for f in c["figures"]]
    return "\n".join(lines) + "\n"


def html(claims: Sequence[Mapping[str, Any]]) -> str:
    """A self-contained page: the verdicts, then each claim with its figures as bars where they are ratios."""
    from trivet.report.charts import Section, html_table, page

    rows = [
        {
            "claim": c["claim"],
            "verdict": c["verdict"],
            "probability": _chance(c["probability"]),
            "would change it": c["would_change"],
        }
        for c in claims
    ]
    sections = [Section("Verdicts", html_table(rows))]
    for c in claims:
        body: list[str] = []
        ratios = [f for f in c["figures"] if f["unit"].startswith("x ")]
        if len(ratios) > 2:
            body.append(_bars(ratios))
        if c["figures"]:
            table = [
                {"figure": f["name"], "value [80%]": _span(f), "supports": _chance(f["probability"]), "note": f["note"]}
                for f in c["figures"]
            ]
            body.append(html_table(table))
        head = f"{c['verdict'].capitalize()}, probability {_chance(c['probability'])}."
        text = f"{head} Computed by {c['computed_by']}. {c['note']}"
        sections.append(Section(c["claim"], body, text=text))
    return page(
        "The article's claims, computed",
        sections,
        subtitle="Chip, cloud and model: what holds, how sure, and what would change it.",
    )


def _bars(figures: Sequence[Mapping[str, Any]]) -> str:
    from trivet.report.charts import bar_chart

    name = f"speed over {figures[0]['unit'][2:]}"
    return bar_chart(
        [f["name"] for f in figures],
        {name: [f["value"] for f in figures]},
        errors={name: ([f["lo"] for f in figures], [f["hi"] for f in figures])},
        value_label=name,
    )


def terminal(claims: Sequence[Mapping[str, Any]]) -> None:
    """Print the verdicts."""
    import sys

    from rich.console import Console
    from rich.table import Table

    console = Console(width=None if sys.stdout.isatty() else 150)
    table = Table(title="The article's claims", title_justify="left")
    for name in ("id", "claim", "verdict", "P(true)", "would change it"):
        table.add_column(name, justify="right" if name == "P(true)" else "left")
    colour = {"holds": "green", "does not hold": "red", "open": "yellow", "quantified": "cyan", "not computed": "dim"}
    for c in claims:
        table.add_row(
            c["id"],
            c["claim"],
            f"[{colour[c['verdict']]}]{c['verdict']}[/]",
            _chance(c["probability"]),
            c["would_change"],
        )
    console.print(table)
