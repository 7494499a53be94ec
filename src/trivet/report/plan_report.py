"""A plan as a person reads it: a table on the terminal, a page with the frontier as a picture."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

WIDE, PIPE_WIDTH = 150, 180  # columns: from where on the whole table is shown; what a file or pipe gets
ROWS = 12  # plans on the terminal; summary.json and the page hold all


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.0f} ms" if seconds < 1 else f"{seconds:.2f} s"


def _ms_or(seconds: float | None) -> str:
    return "never" if seconds is None else _ms(seconds)


def _interval(entry: Mapping[str, float | None], style: str) -> str:
    def one(value: float | None) -> str:
        if value is None:
            return "overload" if style == "time" else "no number"
        return _ms(value) if style == "time" else f"{value:.3g}"

    return f"{one(entry['value'])} [{one(entry['lo'])} – {one(entry['hi'])}]"


def layout_text(layout: Mapping[str, int]) -> str:
    """``TP4 DP2 EP8``, leaving out what is 1."""
    names = (("tp", "TP"), ("pp", "PP"), ("attention_dp", "DP"), ("moe_tp", "MoE-TP"), ("moe_ep", "EP"))
    return " ".join(f"{text}{layout[key]}" for key, text in names if layout[key] > 1 or key == "tp")


def deployment_text(plan: Mapping[str, Any]) -> str:
    """``3 x TP4`` or ``2 x TP2 prefill + 1 x TP4 decode``."""
    own = f"{plan['replicas']} x {layout_text(plan['layout'])}"
    if "decode" not in plan:
        return own
    return f"{own} prefill + {plan['decode']['replicas']} x {layout_text(plan['decode']['layout'])} decode"


def shown(result: Mapping[str, Any], rows: int) -> list[Mapping[str, Any]]:
    """The winner, the cheapest of each chip and the cheapest of the frontier, at most ``rows``, cheapest first."""
    front, best = set(result["frontier"]), set(result["cheapest_by_chip"].values())
    order = sorted(
        result["plans"],
        key=lambda p: (p["id"] != result["winner"], p["id"] not in best, p["id"] not in front),
    )
    return sorted(order[:rows], key=lambda p: p["usd_per_million_tokens"]["value"])


def terminal(result: Mapping[str, Any], folder: str) -> None:
    """Print the plan."""
    import sys

    from rich.console import Console

    console = Console(width=None if sys.stdout.isatty() else PIPE_WIDTH)
    traffic, slo = result["traffic"], result["slo"]
    held = f"p{100 * slo['percentile']:g}" if slo["percentile"] else "mean"
    console.print(
        f"[bold]{result['model']}[/] · {traffic['name']}: {traffic['rate_per_s']:.3g} requests/s, "
        f"{traffic['input_tokens_mean']:.0f} in / {traffic['output_tokens_mean']:.0f} out · "
        f"{held} TTFT ≤ {_ms(slo['ttft_s'])}, TPOT ≤ {_ms(slo['tpot_s'])}"
    )
    if not result["plans"]:
        console.print("[bold red]No configuration keeps this SLO.[/]")
    else:
        console.print(_table(result, held, wide=console.width >= WIDE))
    total = sum(result["rejected"].values())
    lost = ", ".join(
        f"{reason} {count:,}" for reason, count in sorted(result["rejected"].items(), key=lambda kv: -kv[1])
    )
    wall_s = result["evaluate_s"] + result["compile_s"]
    console.print(f"{result['configurations']:,} configurations in {wall_s:.2f} s; lost {total:,}: {lost}")
    winner = next((p for p in result["plans"] if p["id"] == result["winner"]), None)
    if winner:
        safe = next((p for p in result["plans"] if p["id"] == result["safe"]), None)
        if safe is None:
            console.print("No plan found keeps the SLO with a probability of 90%.")
        elif safe is not winner:
            money = _interval(safe["usd_per_million_tokens"], "n")
            console.print(
                f"Cheapest with 90% confidence: {safe['id']}, {safe['chips']} x {safe['chip']}, {money} USD/M"
            )
        if winner["spread_drivers"]:
            shares = ", ".join(f"{d['unknown']} {d['share']:.0%}" for d in winner["spread_drivers"][:4])
            console.print(f"The spread of {winner['id']}'s cost comes from: {shares}")
        console.print(f"[bold]Launch {winner['id']}[/] ({winner['chips']} chips):")
        console.print(winner["launch"], soft_wrap=True, highlight=False, markup=False)
    if folder:
        console.print(f"Wrote {folder}/summary.json and {folder}/report.html")


def _table(result: Mapping[str, Any], held: str, wide: bool) -> Any:
    """The plans shown; a narrow terminal gets fewer columns and a tick for the simulation."""
    from rich.table import Table

    table = Table(
        title=f"80% intervals in brackets; money and energy per {result['per_token'][:-1]}", title_justify="left"
    )
    left = {"plan", "chip", "deployment", "weights/KV", "simulated"}
    names = [
        "plan",
        "chip",
        "deployment",
        "weights/KV",
        "chips",
        f"TTFT {held}",
        f"TPOT {held}",
        "USD/M",
        "J",
        "P(SLO)",
        "simulated",
    ]
    if not wide:
        names = [name for name in names if name not in ("weights/KV", "J", "P(SLO)")]
    for name in names:
        table.add_column(name if wide or name != "simulated" else "sim", justify="left" if name in left else "right")
    for plan in shown(result, ROWS):
        wins = plan["id"] == result["winner"]
        cells = {
            "plan": ("→ " if wins else "  ") + plan["id"],
            "chip": plan["chip"],
            "deployment": deployment_text(plan),
            "weights/KV": f"{plan['precision']['weights']}/{plan['precision']['kv_cache']}",
            "chips": _interval(plan["chips_needed"], "n") if wide else str(plan["chips"]),
            f"TTFT {held}": _interval(plan["ttft_s"], "time"),
            f"TPOT {held}": _interval(plan["tpot_s"], "time"),
            "USD/M": _interval(plan["usd_per_million_tokens"], "n"),
            "J": _interval(plan["joules_per_token"], "n"),
            "P(SLO)": f"{plan['slo_confidence']:.0%}",
            "simulated": _simulated(plan.get("simulated")) if wide else _tick(plan.get("simulated")),
        }
        table.add_row(*(cells[name] for name in names), style="bold green" if wins else None)
    return table


def _tick(check: Mapping[str, Any] | None) -> str:
    return "" if check is None else "holds" if check["holds"] else "fails"


def _simulated(check: Mapping[str, Any] | None) -> str:
    if check is None:
        return ""
    verdict = "holds" if check["holds"] else "does not hold"
    return f"{verdict}: {_ms_or(check['ttft_s'])}, {_ms_or(check['tpot_s'])}"


def html(result: Mapping[str, Any]) -> str:
    """A self-contained page: the frontier as a picture, the plans, why the others lost, what drives the spread."""
    from trivet.report.charts import Section, html_table, kpis, page

    slo, traffic = result["slo"], result["traffic"]
    held = f"p{100 * slo['percentile']:g}" if slo["percentile"] else "mean"
    subtitle = (
        f"{traffic['name']}: {traffic['requests']:,} requests, {traffic['rate_per_s']:.3g}/s, "
        f"{traffic['input_tokens_mean']:.0f} tokens in and {traffic['output_tokens_mean']:.0f} out on average. "
        f"SLO: {held} TTFT up to {_ms(slo['ttft_s'])}, TPOT up to {_ms(slo['tpot_s'])}."
    )
    plans = list(result["plans"])
    winner = next((p for p in plans if p["id"] == result["winner"]), None)
    sections: list[Section] = []
    if winner is None:
        sections.append(
            Section(
                "Nothing keeps this SLO",
                text="No configuration in the space searched keeps both limits. The table below counts why.",
            )
        )
    else:
        sections.append(Section("", kpis(_headline(winner))))
        sections.append(
            Section(
                "Cost against latency",
                [_picture(result, "ttft_s", "TTFT"), _picture(result, "tpot_s", "TPOT")],
                columns=True,
            )
        )
        sections.append(
            Section(
                "By chip",
                _by_chip(result),
                text="The cheapest plan of each chip that its simulation did not refute, with 80% intervals.",
            )
        )
        sections.append(
            Section(
                "Plans",
                html_table([_row(p, p["id"] == result["winner"], p["id"] in result["frontier"]) for p in plans]),
            )
        )
        sections.append(
            Section(
                "Launch",
                f"<pre>{_escape(winner['launch'])}</pre>",
                text=f"Plan {winner['id']}, {winner['chips']} chips.",
            )
        )
    lost = sorted(result["rejected"].items(), key=lambda kv: -kv[1])
    sections.append(Section("Why the others lost", html_table([{"reason": k, "configurations": v} for k, v in lost])))
    return page(f"Plan for {result['model']}", sections, subtitle=subtitle)


def _escape(text: str) -> str:
    from trivet.report.svg import escape

    return escape(text)


def _headline(plan: Mapping[str, Any]) -> dict[str, str]:
    return {
        "chips": f"{plan['chips']} x {plan['chip']}",
        "deployment": deployment_text(plan),
        "USD per million output tokens": _interval(plan["usd_per_million_tokens"], "n"),
        "probability that the SLO holds": f"{plan['slo_confidence']:.0%}",
    }


def _picture(result: Mapping[str, Any], key: str, name: str) -> str:
    """One cloud a chip: money against a latency, error bars for its 80% interval, the frontier joined."""
    from trivet.report.charts import Series, scatter_chart, seconds

    series = []
    for chip in dict.fromkeys(p["chip"] for p in result["plans"]):
        group = [p for p in result["plans"] if p["chip"] == chip]
        series.append(
            Series(
                chip,
                [p["usd_per_million_tokens"]["value"] for p in group],
                [p[key]["value"] for p in group],
                [p[key]["lo"] for p in group],
                [_or_nan(p[key]["hi"]) for p in group],
                [f"{p['id']}: {p['chips']} x {chip}, {deployment_text(p)}" for p in group],
            )
        )
    points = [(p["usd_per_million_tokens"]["value"], p[key]["value"]) for p in result["plans"]]
    edge: list[tuple[float, float]] = []
    for point in sorted(points):
        if not edge or point[1] < edge[-1][1]:
            edge.append(point)
    return scatter_chart(
        series,
        title=f"{name} against cost",
        x_label="USD per million output tokens",
        y_label=name,
        x_log=True,
        y_log=True,
        y_format=seconds,
        frontier=edge,
    )


def _or_nan(value: float | None) -> float:
    return float("nan") if value is None else value


def _by_chip(result: Mapping[str, Any]) -> str:
    from trivet.report.charts import bar_chart

    best = [p for p in result["plans"] if p["id"] in set(result["cheapest_by_chip"].values())]
    cost = [p["usd_per_million_tokens"] for p in best]
    return bar_chart(
        [f"{p['chip']} · {p['chips']} chips" for p in best],
        {"USD per million output tokens": [c["value"] for c in cost]},
        errors={"USD per million output tokens": ([c["lo"] for c in cost], [_or_nan(c["hi"]) for c in cost])},
        value_label="USD per million output tokens",
    )


def _row(plan: Mapping[str, Any], wins: bool, on_frontier: bool) -> dict[str, Any]:
    drivers = ", ".join(f"{d['unknown']} {d['share']:.0%}" for d in plan["spread_drivers"][:2])
    return {
        "plan": plan["id"] + (" (winner)" if wins else "" if on_frontier else " (off the frontier)"),
        "chip": plan["chip"],
        "deployment": deployment_text(plan),
        "weights / KV": f"{plan['precision']['weights']} / {plan['precision']['kv_cache']}",
        "budget": plan["max_num_batched_tokens"],
        "sequences": plan["max_num_seqs"],
        "chips": plan["chips"],
        "TTFT": _interval(plan["ttft_s"], "time"),
        "TPOT": _interval(plan["tpot_s"], "time"),
        "USD/M": _interval(plan["usd_per_million_tokens"], "n"),
        "J/token": _interval(plan["joules_per_token"], "n"),
        "P(SLO)": f"{plan['slo_confidence']:.0%}",
        "spread from": drivers,
        "simulated": _simulated(plan.get("simulated")),
    }
