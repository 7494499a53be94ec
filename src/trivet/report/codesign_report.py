"""A codesign study as a person reads it: a table on the terminal, a page with the tornado pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

WIDE, PIPE_WIDTH = 100, 150  # columns: from where on drivers are shown; what a file or pipe gets
METRICS = {"cost": "cost per token", "energy": "energy per token", "cards": "cards for the demand"}
PARAMETERS = {
    "matrix": "matrix peak, all formats", "clock": "clock",
    "vector": "vector peak", "memory_bandwidth": "memory bandwidth (pin rate)",
    "memory_capacity": "memory capacity", "memory_stacks": "memory stacks", "cache": "last-level cache",
    "links": "scale-up links",
    "launch": "launch floor (shorter)", "host_launch": "host launch (shorter)", "power_limit": "power limit",
}  # fmt: skip
_CHANGES = {
    "workload": "workload", "metric": "metric", "change": "change", "interval": "80% interval", "driver": "driven by",
}  # fmt: skip


def terminal(result: Mapping[str, Any], folder: str) -> None:
    """Print the study."""
    import sys

    from rich.console import Console
    from rich.table import Table

    console = Console(width=None if sys.stdout.isatty() else PIPE_WIDTH)
    workloads = [w["name"] for w in result["workloads"]]
    console.print(f"[bold]{result['title']}[/] under: {result['demand']}")
    table = Table(box=None, pad_edge=False, title="as it is", title_justify="left", title_style="dim")
    for heading in ("workload", "USD/M tokens", "J/token", "chips for 1 M tokens/s", "driven by"):
        table.add_column(heading, justify="left" if heading in ("workload", "driven by") else "right")
    for w in result["workloads"]:
        usd, joules, chips = (
            w[k] for k in ("usd_per_million_tokens", "joules_per_token", "chips_per_million_tokens_per_s")
        )
        table.add_row(
            w["name"], *(f"{m['value']:.3g} ({m['lo']:.2g}-{m['hi']:.2g})" for m in (usd, joules, chips)), usd["driver"]
        )
    console.print(table)
    for metric, words in METRICS.items():
        table = Table(box=None, pad_edge=False, title_justify="left", title_style="dim")
        table.title = f"{result['step_percent']:g}% more: change of {words}, %"
        table.add_column("parameter", no_wrap=True)
        for name in (*workloads, "all"):
            table.add_column(name.replace("-", "\n"), justify="right", no_wrap=True)
        table.add_column("80% of all", justify="right", no_wrap=True)
        if console.width >= WIDE:
            table.add_column("driven by")
        for parameter in result["ranking"][metric]:
            rows = {s["workload"]: s for s in _of(result, parameter, metric)}
            whole = rows["all"]
            cells = [f"{rows[name]['percent']:+.1f}" for name in (*workloads, "all")]
            more = [whole["driver"]] if console.width >= WIDE else []
            table.add_row(parameter, *cells, f"{whole['lo']:+.1f} to {whole['hi']:+.1f}", *more)
        console.print(table)
    _print_best(console, result)
    for placed in result["placed"]:
        _print_placed(console, placed, result["chip"])
    if result["check"]:
        console.print(check_text(result["check"]))
    if folder:
        console.print(f"report: {folder}/report.html")


def _print_best(console: Any, result: Mapping[str, Any]) -> None:
    found = result["best"]
    budget = ", ".join(f"{k} {v:,.0f}" for k, v in found["budget"].items())
    factors = ", ".join(f"{k} x{v:.2f}" for k, v in found["factors"].items())
    binding = ", ".join(found["binding"]) or "none"
    console.print(f"[bold]best chip[/] within {budget}: {factors}; binding: {binding}")
    whole = {c["metric"]: c for c in found["changes"] if c["workload"] == "all"}
    for metric, words in METRICS.items():
        c = whole[metric]
        console.print(
            f"  {words} {c['percent']:+.1f}% ({c['lo']:+.1f} to {c['hi']:+.1f}), driven by {c['driver'] or 'nothing'}"
        )


def _print_placed(console: Any, placed: Mapping[str, Any], base: str) -> None:
    factors = ", ".join(f"{k} x{v['value']:.2f} ({v['lo']:.2f}-{v['hi']:.2f})" for k, v in placed["factors"].items())
    console.print(f"[bold]{placed['chip']}[/] over {base}: {factors}")
    for workload, ratios in placed["ratios"].items():
        parts = ", ".join(f"{m} x{r['value']:.2f} ({r['lo']:.2f}-{r['hi']:.2f})" for m, r in ratios.items())
        console.print(f"  {workload}: {parts}, driven by {ratios['cost']['driver']}")
    for workload, reason in placed["refused"].items():
        console.print(f"  {workload}: {reason}")


def check_text(found: Mapping[str, Any]) -> str:
    """The check of method in words."""
    lines = [f"check from {found['base']} with the demand of its time (factor the successor took / the search takes):"]
    for step in found["steps"]:
        parts = ", ".join(f"{k} {step['actual'][k]:.2f} / {step['found'][k]:.2f}" for k in step["actual"])
        lines.append(f"  {step['successor']}: {parts}")
    agree = round(found["same_direction"] * found["compared"])
    lines.append(f"  same direction {agree} of {found['compared']}; rank correlation {found['rank_correlation']:.2f}")
    return "\n".join(lines)


def html(result: Mapping[str, Any]) -> str:
    """The whole page; charts are inline SVG."""
    from trivet.report.charts import bar_chart, html_table, kpis, page

    best, whole = result["best"], {c["metric"]: c for c in result["best"]["changes"] if c["workload"] == "all"}
    lead = result["ranking"]["cost"][0]
    first = next(s for s in _of(result, lead, "cost") if s["workload"] == "all")
    head = kpis({
        f"most cost saved by 10% more: {PARAMETERS.get(lead, lead)}": _range(first),
        "cost per token of the best chip within budget": _range(whole["cost"]),
        "its energy per token": _range(whole["energy"]),
        "its cards for the demand": _range(whole["cards"]),
    })  # fmt: skip
    sections: list[tuple[str, str]] = [
        ("", head),
        ("The demand on the chip as it is", html_table(_base_rows(result))),
        *[(f"What 10% does to {words}", _tornados(result, metric)) for metric, words in METRICS.items()],
        ("What 10% does to the chip itself, per cent", html_table(result["silicon"])),
        ("The best chip within the budget", _best(result, bar_chart, html_table)),
        *[(f"{p['chip']} placed beside {result['chip']}", _placed(p, bar_chart, html_table)) for p in result["placed"]],
    ]
    if result["check"]:
        sections.append(("Check of method", _check(result["check"], bar_chart, html_table)))
    sections.append(("Every figure", html_table(_all_rows(result), _CHANGES)))
    subtitle = (
        f"{result['demand']}. Cost basis {result['basis']}; binding budgets: {', '.join(best['binding']) or 'none'}."
    )
    whole_page: str = page(f"Codesign: {result['title']}", sections, subtitle=subtitle)
    return whole_page


def _tornados(result: Mapping[str, Any], metric: str) -> str:
    from trivet.report.charts import tornado_chart

    charts = []
    for workload in (*(w["name"] for w in result["workloads"]), "all"):
        rows = [s for s in result["sensitivities"] if (s["workload"], s["metric"]) == (workload, metric)]
        rows = [s for s in rows if abs(s["percent"]) >= 0.05 or abs(s["less_percent"]) >= 0.05]
        if not rows:
            continue
        wide = max(rows, key=lambda s: abs(s["percent"]))
        charts.append(tornado_chart(
            [PARAMETERS.get(s["parameter"], s["parameter"]) for s in rows],
            [s["less_percent"] for s in rows], [s["percent"] for s in rows], 0.0,
            title=f"{workload}: {METRICS[metric]}", value_label="change, %", value_format=lambda v: f"{v:+.1f}",
            low_name="10% less", high_name="10% more",
            note=_widest(wide),
        ))  # fmt: skip
    return "\n".join(charts)


def _widest(row: Mapping[str, Any]) -> str:
    name = PARAMETERS.get(row["parameter"], row["parameter"])
    return f"{name}: {_range(row)}, driven by {row['driver'] or 'nothing'}."


def _best(result: Mapping[str, Any], bar_chart: Any, html_table: Any) -> str:
    found = result["best"]
    names = [PARAMETERS.get(k, k) for k in found["factors"]]
    budget = [
        {"budget": k, "allowed": v, "used": found["used"][k], "binding": k in found["binding"]}
        for k, v in found["budget"].items()
    ]
    return "\n".join((
        bar_chart(names, {"factor": list(found["factors"].values())}, title="Over the chip as it is", value_label="factor"),
        html_table(budget),
        html_table([_change_row(c) for c in found["changes"]], _CHANGES),
    ))  # fmt: skip


def _placed(placed: Mapping[str, Any], bar_chart: Any, html_table: Any) -> str:
    factors = placed["factors"]
    errors = {"factor": ([f["lo"] for f in factors.values()], [f["hi"] for f in factors.values()])}
    chart = bar_chart(
        list(factors), {"factor": [f["value"] for f in factors.values()]}, errors=errors, title="Data sheet over data sheet",
        value_label="factor, 80% interval",
    )  # fmt: skip
    rows = [
        {
            "workload": w,
            "metric": m,
            "change": f"x{r['value']:.2f}",
            "interval": f"{r['lo']:.2f} to {r['hi']:.2f}",
            "driver": r["driver"],
        }
        for w, ratios in placed["ratios"].items()
        for m, r in ratios.items()
    ]
    refused = [{"workload": w, "refused": reason} for w, reason in placed["refused"].items()]
    return "".join((chart, html_table(rows, _CHANGES), html_table(refused) if refused else ""))


def _check(found: Mapping[str, Any], bar_chart: Any, html_table: Any) -> str:
    charts = [
        bar_chart(
            list(s["actual"]), {"successor took": list(s["actual"].values()), "search takes": list(s["found"].values())},
            title=f"{found['base']} to {s['successor']}", value_label="factor",
        )
        for s in found["steps"]
    ]  # fmt: skip
    agree = round(found["same_direction"] * found["compared"])
    words = (
        f"Same direction for {agree} of {found['compared']} parameters; rank correlation {found['rank_correlation']:.2f}. "
        "The search had each successor's node, area, power and bill of materials, and for H20 the export rule on arithmetic."
    )
    return "\n".join((f"<p>{words}</p>", *charts))


def _base_rows(result: Mapping[str, Any]) -> list[dict[str, Any]]:
    rows = []
    for w in result["workloads"]:
        usd, joules, chips = (
            w[k] for k in ("usd_per_million_tokens", "joules_per_token", "chips_per_million_tokens_per_s")
        )
        rows.append({
            "workload": w["name"], "share": f"{w['share']:.0%}", "USD per M tokens": _estimate(usd),
            "J per token": _estimate(joules), "chips for 1 M tokens/s": _estimate(chips), "driven by": usd["driver"],
            "run as": w["run_as"],
        })  # fmt: skip
    return rows


def _all_rows(result: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [
        {**_change_row(s), "workload": f"{s['workload']}, {PARAMETERS.get(s['parameter'], s['parameter'])}"}
        for s in result["sensitivities"]
    ]


def _change_row(c: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "workload": c["workload"], "metric": c["metric"], "change": f"{c['percent']:+.1f}%",
        "interval": f"{c['lo']:+.1f} to {c['hi']:+.1f}", "driver": c["driver"],
    }  # fmt: skip


def _of(result: Mapping[str, Any], parameter: str, metric: str) -> Sequence[Mapping[str, Any]]:
    return [s for s in result["sensitivities"] if (s["parameter"], s["metric"]) == (parameter, metric)]


def _range(change: Mapping[str, Any]) -> str:
    return f"{change['percent']:+.1f}% ({change['lo']:+.1f} to {change['hi']:+.1f})"


def _estimate(entry: Mapping[str, Any]) -> str:
    return f"{entry['value']:.3g} ({entry['lo']:.2g}-{entry['hi']:.2g})"
