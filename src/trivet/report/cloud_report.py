"""A week of a cloud as a person reads it: tables on a terminal, a page with pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from trivet.loop.cloud_week import CloudWeek
from trivet.report.charts import Section, Series, bar_chart, html_table, line_chart, page


def _spread(e: Mapping[str, Any], scale: float = 1.0, digits: int = 3) -> str:
    def one(v: float | None) -> str:
        return "?" if v is None else f"{v * scale:,.{digits}g}" if abs(v * scale) < 1e4 else f"{v * scale:,.0f}"

    return f"{one(e['value'])} [{one(e['lo'])} – {one(e['hi'])}]"


def service_rows(summary: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    header = ["service", "model (assumed)", "chip", "req/s", "cards", "at peak", "SLO kept", "W/card"]
    rows = [
        [
            s["service"],
            s["model_assumed"].split("/")[-1],
            s["chip"],
            f"{s['requests_per_s']:,.0f}",
            f"{s['chips_mean']:,.0f}",
            _spread(s["chips_at_peak"]),
            f"{s['slo_attainment']:.1%}",
            f"{s['watts_a_chip']:.0f}",
        ]
        for s in summary["services"]
    ]
    return header, rows


def check_rows(summary: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    header = [
        "service",
        "hour",
        "replicas",
        "TTFT fluid",
        "simulated",
        "TPOT fluid",
        "simulated",
        "kept fluid",
        "simulated",
    ]

    def ms(v: float | None) -> str:
        return "?" if v is None else f"{v * 1e3:,.0f} ms"

    rows = [
        [
            r["service"],
            str(r["hour"]),
            f"{r['simulated_replicas']} of {r['replicas']}",
            ms(r["fluid_ttft_s"]),
            ms(r["simulated_ttft_s"]),
            ms(r["fluid_tpot_s"]),
            ms(r["simulated_tpot_s"]),
            f"{r['fluid_attainment']:.1%}",
            f"{r['simulated_attainment']:.1%}",
        ]
        for r in summary["checks"]
    ]
    return header, rows


def money_rows(s: Mapping[str, Any]) -> list[list[str]]:
    m = s["metering"]
    rows = [
        ["cards", f"{s['chips']:,} in {s['servers']:,} servers"],
        ["use of the cluster", f"{s['use']:.1%}: " + ", ".join(f"{k} {v:.1%}" for k, v in s["use_by_kind"].items())],
        [
            "failures",
            ", ".join(f"{k} {v}" for k, v in s["jobs"]["failures"].items())
            + f"; {s['jobs']['restarts']} restarts, {s['jobs']['evictions']} evictions",
        ],
        ["power", f"{s['power_mw_mean']:.2f} MW mean, {s['power_mw_peak']:.2f} MW peak at the meter"],
        ["energy", f"{_spread(s['energy_kwh'], 1e-3)} MWh"],
        ["cost of the cluster", f"{_spread(s['cost_usd'], 1e-3)} thousand USD ({s['cost_usd']['driver']})"],
        ["of it, cards that served", f"{_spread(s['serving_cost_usd'], 1e-3)} thousand USD"],
        ["revenue of serving", f"{s['serving_revenue_usd'] / 1e3:,.1f} thousand USD at the list prices assumed"],
        [
            "a million tokens served",
            f"{_spread(s['serving_usd_per_million_tokens'])} USD, {s['serving_joules_per_token']:.3g} J a token",
        ],
        ["customers", f"{s['customers']} ({s['customers_with_pooled_lengths']} with their service's pooled lengths)"],
        [
            "metered",
            f"{m['requests']:,} requests drawn ({m['share_of_requests_drawn']:.1%}), {m['input_tokens']:,} + "
            f"{m['output_tokens']:,} tokens; customers add up to the last token: {m['adds_up_to_the_last_token']}",
        ],
    ]
    rows += [
        [
            t["name"],
            f"{t['tokens_this_week'] / 1e12:.3g} of {t['tokens_wanted'] / 1e12:.3g} T tokens on {t['chips']:,} {t['chip']}, "
            f"{_spread(t['tokens_per_s'], 1e-6)} M tokens/s, goodput {t['goodput']:.1%}, {t['stops']} stops",
        ]
        for t in s["training"]
    ]
    error = s["check_error"]
    if error["hours"]:
        rows.append(
            [
                "fluid against simulated",
                f"{error['hours']} sampled hours: kept {error['attainment_mean_difference']:+.1%} in the "
                f"mean, {error['attainment_worst']:+.1%} at worst; medians: TPOT within "
                f"{np.expm1(error['tpot_median_abs_log'] or 0):.0%}, TTFT "
                f"within {np.expm1(error['ttft_median_abs_log'] or 0):.0%}",
            ]
        )
    return rows


def comparison_rows(rows: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[list[str]]]:
    def ratio(e: Mapping[str, Any]) -> str:
        return f"{e['ratio']:.2f} [{e['lo']:.2f} – " + ("?]" if e["hi"] is None else f"{e['hi']:.2f}]")

    header = [
        "week on",
        "serving cards",
        "serving USD",
        "J a token",
        "cluster USD",
        "training tokens",
        "spread driven by",
        "SLO breaks with slow steps",
    ]
    return header, [
        [
            r["name"],
            ratio(r["serving_chips"]),
            ratio(r["serving_usd"]),
            ratio(r["joules_per_token"]),
            ratio(r["cluster_usd"]),
            "" if r["training_tokens_ratio"] is None else f"{r['training_tokens_ratio']:.2f}",
            r["driver"],
            ", ".join(r["slo_breaks_with_slow_steps"]),
        ]
        for r in rows
    ]


def html(week: CloudWeek) -> str:
    """The page of one week."""
    s, h = week.summary, week.hourly
    days = (h["hour"] / 24.0).tolist()
    held = {
        k[7:]: v.tolist() for k, v in h.items() if k.startswith("chips: ") and k not in ("chips: queued", "chips: down")
    }
    power = {k[7:]: (v / 1e6).tolist() for k, v in h.items() if k.startswith("watts: ")}
    slo = {k[5:]: (v * 100).tolist() for k, v in h.items() if k.startswith("slo: ")}
    load = {k[16:]: v.tolist() for k, v in h.items() if k.startswith("requests_per_s: ")}
    faults = {"down": h["chips: down"].tolist(), "queued": h["chips: queued"].tolist()}
    top = week.customers[:20]

    def lines(title: str, columns: Mapping[str, Sequence[float]], unit: str, **options: Any) -> str:
        series = [Series(name, days, values) for name, values in columns.items()]
        return line_chart(series, title=title, x_label="day", y_label=unit, **options)

    def money(title: str, field: str) -> str:
        values = {"thousand USD": [r[field] / 1e3 for r in top]}
        return bar_chart([r["customer"] for r in top], values, title=title, value_label="thousand USD")

    charts = [
        lines("Use of the cluster", held, "cards", stacked=True, h_lines={"cards there are": float(s["chips"])}),
        lines("Requests a second", load, "requests/s"),
        lines("Requests within their SLO", slo, "%", y_zero=False),
        lines("Power at the meter", power, "MW", stacked=True),
        lines("Cards out of service (spares included), and asked for in the queue", faults, "cards"),
        money("Revenue of the 20 largest customers", "revenue_usd"),
        money("Cost of the same customers", "cost_usd"),
    ]
    checked = "Sampled hours, other than those that the fluid rate was corrected in."
    sections = [
        Section("", charts),
        Section("The week", html_table([{"": a, "value": b} for a, b in money_rows(s)])),
        Section("Services", _table(*service_rows(s))),
        Section("Fluid against simulated", _table(*check_rows(s)), checked),
    ]
    words = f"{s['days']} days, seed {s['seed']}. Cards held by the hour; services first, the rest as room is left."
    return page(f"A week of {s['name']}", sections, subtitle=words)


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return html_table([dict(zip(header, row, strict=True)) for row in rows])


def comparison_html(rows: Sequence[Mapping[str, Any]]) -> str:
    """The page that compares weeks: each against the first."""
    parts = []
    for key, title in (
        ("serving_chips", "Cards that serve"),
        ("serving_usd", "Cost of serving"),
        ("joules_per_token", "Energy a token"),
        ("cluster_usd", "Cost of the whole cluster"),
    ):
        ratios = [r[key]["ratio"] for r in rows]
        ends = [[r[key]["ratio"] if r[key][end] is None else r[key][end] for r in rows] for end in ("lo", "hi")]
        parts.append(
            bar_chart(
                [r["name"] for r in rows], {"ratio": ratios}, errors={"ratio": (ends[0], ends[1])},
                title=f"{title}, over that of {rows[0]['name']}", value_label="ratio",
            )
        )  # fmt: skip
    return page("The same week on other cards", [Section("", [*parts, _table(*comparison_rows(rows))])])


def write(week: CloudWeek, folder: Path) -> None:
    """``hourly.parquet``, ``customers.parquet`` and ``report.html``."""
    import polars as pl

    pl.DataFrame({k: np.asarray(v) for k, v in week.hourly.items()}).write_parquet(
        folder / "hourly.parquet", compression="zstd"
    )
    pl.DataFrame(week.customers).write_parquet(folder / "customers.parquet", compression="zstd")
    (folder / "report.html").write_text(html(week))


def terminal(weeks: Sequence[CloudWeek], comparison: Sequence[Mapping[str, Any]], folder: str) -> None:
    """Print the week(s)."""
    from rich.box import SIMPLE
    from rich.console import Console
    from rich.table import Table

    console = Console()

    def show(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        table = Table(title=title, title_justify="left", box=SIMPLE, padding=(0, 1), show_header=any(header))
        for k, name in enumerate(header):
            left = k == 0 or not any(header)
            table.add_column(name, justify="left" if left else "right", overflow="fold", no_wrap=k == 0)
        for row in rows:
            table.add_row(*(escape(c, quote=False) for c in row))
        console.print(table)

    for week in weeks:
        show(f"A week of {week.summary['name']}", ["", ""], money_rows(week.summary))
        header, rows = service_rows(week.summary)
        narrow = [k for k, name in enumerate(header) if name not in ("chip", "req/s", "W/card")]
        show("Services", [header[k] for k in narrow], [[row[k] for k in narrow] for row in rows])
    if len(weeks) > 1:
        show(f"Over {weeks[0].summary['name']} (80% intervals)", *comparison_rows(comparison))
    if folder:
        console.print(f"Wrote {folder}")
