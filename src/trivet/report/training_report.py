"""A training plan as a page: totals, where the step goes, memory by rank, alternatives, failures, launch."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from trivet.report import charts, svg
from trivet.report.page import Section
from trivet.units import HOUR_S, seconds_text

_PARTS = {
    "compute_s": "compute",
    "recompute_s": "recompute",
    "host_s": "waiting for the host",
    "tp_s": "tensor parallel",
    "cp_s": "context parallel",
    "ep_s": "experts' exchange",
    "pp_s": "pipeline sends",
    "bubble_s": "pipeline bubble",
    "dp_s": "data parallel",
    "offload_s": "offload",
    "optimizer_s": "optimiser",
    "other_s": "once a step",
}


def interval(e: Mapping[str, Any], scale: float = 1.0, digits: int = 3) -> str:
    """Value with its 80% interval."""
    return f"{e['value'] * scale:.{digits}g} [{e['lo'] * scale:.{digits}g} – {e['hi'] * scale:.{digits}g}]"


def split_text(split: Mapping[str, Any]) -> str:
    """``TP4 PP8 DP312 EP32, micro-batch 1, recompute none``."""
    ways = " ".join(f"{k.upper()}{split[k]}" for k in ("tp", "cp", "pp", "vp", "dp", "ep", "etp") if split[k] > 1)
    rest = f"batch {split['global_batch']}, recompute {split['recompute']}, {split['precision']}"
    return f"{ways or 'one chip'}, micro-batch {split['micro_batch']}, {rest}"


def comparison_rows(summaries: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One row a chip: what the run takes."""
    return [
        {
            "chip": s["chip"],
            "days": interval(s["days"]),
            "million USD": interval(s["usd"], 1e-6),
            "GWh": interval(s["energy_kwh"], 1e-6),
            "MFU": f"{100 * s['mfu']:.1f}%",
            "goodput": f"{100 * s['goodput']['value']:.1f}%",
            "parallelism": split_text(s["best"]["split"]),
            "driven by": f"{s['driver']}; {s['driver_field']}",
        }
        for s in summaries
    ]


def figures_rows(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    return [
        {
            "figure": f"{r['what']} ({r['unit']})" if r["unit"] else r["what"],
            "published": f"{r['published']:.4g}",
            "predicted": f"{r['predicted']:.4g}",
            "predicted / published": f"{r['ratio']:.3f}",
            "source": r["source"],
        }
        for r in rows
    ]


def html(
    summaries: Sequence[Mapping[str, Any]],
    launch: Mapping[str, Any],
    figures: Sequence[Mapping[str, Any]],
    title: str = "",
) -> str:
    """The whole page; ``summaries``: the planned chip first, then those compared."""
    s = summaries[0]
    best, good = s["best"], s["goodput"]
    heads = {
        "days": interval(s["days"]),
        "million USD": interval(s["usd"], 1e-6),
        "GWh": interval(s["energy_kwh"], 1e-6),
        "MFU": f"{100 * s['mfu']:.1f}%",
        "goodput": f"{100 * good['value']:.1f}% [{100 * good['lo']:.0f} – {100 * good['hi']:.0f}]",
        "memory of the fullest chip": f"{best['memory_bytes'] / 1e9:.0f} of {best['memory_capacity_bytes'] / 1e9:.0f} GB",
    }
    sections = [Section("", charts.kpis(heads), f"{split_text(best['split'])}. {_driver_text(s)}")]
    if len(summaries) > 1:
        sections.append(Section("The same run on other chips", charts.html_table(comparison_rows(summaries))))
    if figures:
        sections.append(Section("Predicted and published", charts.html_table(figures_rows(figures))))
    failures = [{"component": k, "a day": f"{v:.3g}"} for k, v in good["failures_per_day"].items()]
    sections += [
        Section("Where a step goes", _step_chart(best)),
        Section("Memory by pipeline rank", _memory_table(s)),
        Section("What widens the interval", _spread_chart(s)),
        Section("Failures", charts.html_table(failures), _failures_text(s)),
        _configurations(s),
    ]
    for name, value in launch.items():
        body = value if isinstance(value, str) else json.dumps(value, indent=1)
        sections.append(Section(f"Launch: {name.replace('_', ' ')}", f"<pre>{svg.escape(body)}</pre>"))
    return charts.page(
        title or f"Training {s['model']} on {s['chips']:,} {s['chip']}",
        sections,
        subtitle=f"{s['tokens']:.3g} tokens, {s['framework']}",
    )


def _step_chart(best: Mapping[str, Any]) -> str:
    shares = {_PARTS[k]: v for k, v in best["breakdown_s"].items() if v > 1e-9}
    title = f"One step of {seconds_text(best['step_s'])}"
    return charts.bar_chart(list(shares), {"": list(shares.values())}, title=title, value_format=svg.seconds)


def _memory_table(s: Mapping[str, Any]) -> str:
    parts = ("weights", "gradients", "optimizer", "activations", "logits", "working", "total")
    return charts.html_table(
        [{"rank": r["rank"], **{p: f"{r[p] / 1e9:.1f} GB" for p in parts}} for r in s["memory_by_rank_bytes"]]
    )


def _spread_chart(s: Mapping[str, Any]) -> str:
    spread = {k: abs(v) for k, v in s["spread"].items() if abs(v) > 1e-3}
    top = sorted(spread, key=lambda k: -spread[k])[:8]
    return charts.bar_chart(top, {"": [spread[k] for k in top]}, title="Standard deviation of log days")


def _configurations(s: Mapping[str, Any]) -> Section:
    others = [
        {
            "parallelism": split_text(o["split"]),
            "tokens/s": f"{o['tokens_per_s']:,.0f}",
            "MFU": f"{100 * o['mfu']:.1f}%",
            "memory": f"{o['memory_bytes'] / 1e9:.0f} GB",
        }
        for o in [s["best"], *s["others"]]
    ]
    dropped = ", ".join(f"{k} {v:,}" for k, v in sorted(s["rejected"].items()))
    return Section(
        "The best configurations", charts.html_table(others), f"{s['considered']:,} considered; dropped: {dropped}."
    )


def _driver_text(s: Mapping[str, Any]) -> str:
    field = f", of the fields by: {s['driver_field']}" if s["driver_field"] and s["driver_field"] != s["driver"] else ""
    return f"The spread is driven by: {s['driver']}{field}."


def _failures_text(s: Mapping[str, Any]) -> str:
    g = s["goodput"]
    lost = ", ".join(f"{k} {100 * v:.2f}%" for k, v in g["lost"].items() if v > 0)
    return (
        f"A failure every {g['mean_time_between_failures_s'] / HOUR_S:.3g} h; "
        f"a checkpoint every {seconds_text(g['checkpoint_interval_s'])} stops training {seconds_text(g['checkpoint_stop_s'])}; "
        f"{seconds_text(g['restart_s'])} to recover; {s['spares']} spare chips. Lost: {lost}."
    )


def terminal(summaries: Sequence[Mapping[str, Any]], figures: Sequence[Mapping[str, Any]], folder: str) -> None:
    """Print the plan."""
    from rich.console import Console

    from trivet.report.tables import print_table

    s, console = summaries[0], Console()
    console.print(
        f"[bold]{s['model']}[/] · {s['tokens']:.3g} tokens on {s['chips']:,} x {s['chip']} · {s['framework']} · {s['task']}"
    )
    best = s["best"]
    memory = f"{best['memory_bytes'] / 1e9:.0f} of {best['memory_capacity_bytes'] / 1e9:.0f} GB"
    console.print(f"  {split_text(best['split'])}: step {seconds_text(best['step_s'])}, {memory}")
    rows = comparison_rows(summaries)
    if len(rows) == 1:
        rows = [{k: v for k, v in rows[0].items() if k not in ("parallelism", "driven by")}]
    print_table(rows, title="80% intervals in brackets")
    console.print(f"  {_failures_text(s)}")
    shares = ", ".join(
        f"{_PARTS[k]} {100 * v / best['step_s']:.1f}%"
        for k, v in best["breakdown_s"].items()
        if v / best["step_s"] > 0.002
    )
    console.print(f"  The step: {shares}")
    console.print(f"  {_driver_text(s)}")
    if figures:
        print_table(figures_rows(figures), title="Predicted and published")
    if folder:
        console.print(f"  {folder}: summary.json, report.html, timeline.json, launch.txt")
