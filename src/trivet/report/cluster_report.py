"""What a placement run shows: a summary for machines, a table for a terminal, a page with the allocation curve."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trivet.cloud.cluster.placement import Placement
from trivet.cloud.cluster.policies import affinity_kind
from trivet.cloud.cluster.tasks import Task

# Means and standard deviations over seeds 42-51 in the paper's repository (openb, tune 1.3), at 130% and at 100%.
PUBLISHED = {
    "fgd": (95.39, 0.08, 95.23), "bestfit": (93.08, 0.13, 92.86), "gpupacking": (92.00, 0.54, 91.78),
    "gpuclustering": (91.88, 0.62, 91.65), "dotprod": (90.85, 0.20, 90.62), "random": (87.47, 0.32, 86.30),
}  # fmt: skip


def _kind(task: Task) -> str:
    if task.num_chips == 0:
        return "cpu"
    return "share" if task.is_share else f"{affinity_kind(task)}-chip"


def summary(run: Placement, seed: int, tune: float) -> dict[str, Any]:
    """One run as ``summary.json`` holds it (no clock in it: the same bytes each time)."""
    exp = run.experiment
    placed = run.node >= 0
    by_kind: dict[str, list[int]] = {}
    for task, ok in zip(exp.tasks, placed, strict=True):
        entry = by_kind.setdefault(_kind(task), [0, 0])
        entry[0] += 1
        entry[1] += not ok

    def percent(ask: Sequence[int], capacity: int) -> float:
        used = sum(a for a, ok in zip(ask, placed, strict=True) if ok)
        return 100.0 * used / capacity if capacity else 0.0

    return {
        "policy": run.policy,
        "seed": seed,
        "tune": tune,
        "nodes": len(exp.nodes),
        "gpus": sum(n.chips for n in exp.nodes),
        "tasks": len(exp.tasks),
        "placed": int(placed.sum()),
        "dropped": int((~placed).sum()),
        "gpu_allocation_percent": run.allocation_percent(),
        "gpu_allocation_percent_at": {str(p): v for p, v in run.allocation_percent_at().items()},
        "cpu_allocation_percent": percent([t.cpu_milli for t in exp.tasks], sum(n.cpu_milli for n in exp.nodes)),
        "memory_allocation_percent": percent([t.memory_mib for t in exp.tasks], sum(n.memory_mib for n in exp.nodes)),
        "arrived_gpu_percent": 100.0 * int(run.arrived_milli[-1]) / run.total_milli if run.total_milli else 0.0,
        "tasks_by_kind": {k: {"arrived": a, "dropped": d} for k, (a, d) in sorted(by_kind.items())},
        "typical_shapes": len(exp.typical),
    }


def combined(summaries: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Several runs: the only one as it is, else means and standard deviations by policy, and the runs."""
    if len(summaries) == 1:
        return summaries[0]
    policies = list(dict.fromkeys(s["policy"] for s in summaries))
    means = {}
    for policy in policies:
        ends = [s["gpu_allocation_percent"] for s in summaries if s["policy"] == policy]
        at100 = [s["gpu_allocation_percent_at"].get("100") for s in summaries if s["policy"] == policy]
        known = [v for v in at100 if v is not None]
        means[policy] = {
            "seeds": len(ends),
            "gpu_allocation_percent": statistics.fmean(ends),
            "standard_deviation": statistics.stdev(ends) if len(ends) > 1 else None,
            "gpu_allocation_percent_at_100": statistics.fmean(known) if known else None,
        }
    first = means[policies[0]]
    return {
        "policies": policies,
        "gpu_allocation_percent": first["gpu_allocation_percent"] if len(policies) == 1 else None,
        "means": means,
        "runs": list(summaries),
    }


def write_placements(runs: Sequence[tuple[Placement, int]], path: Path) -> None:
    """``placements.parquet``: one row an arrival; a dropped task has no node. Devices as ``0-3-4``."""
    import polars as pl

    frames = []
    for run, seed in runs:
        exp = run.experiment
        names = [exp.nodes[i].name if i >= 0 else None for i in run.node.tolist()]
        devices = [
            None if i < 0 else "-".join(str(d) for d in range(int(m).bit_length()) if int(m) >> d & 1)
            for i, m in zip(run.node.tolist(), run.devices.tolist(), strict=True)
        ]
        frame = pl.DataFrame(
            {
                "arrival": range(len(names)), "task": list(exp.names), "node": names, "devices": devices,
                "num_gpu": [t.num_chips for t in exp.tasks], "gpu_milli": [t.chip_milli for t in exp.tasks],
            },
            schema={"arrival": pl.Int64, "task": pl.String, "node": pl.String, "devices": pl.String,
                    "num_gpu": pl.Int64, "gpu_milli": pl.Int64},
        )  # fmt: skip
        if len(runs) > 1:
            frame = frame.with_columns(pl.lit(run.policy).alias("policy"), pl.lit(seed).alias("seed"))
        frames.append(frame)
    pl.concat(frames).write_parquet(path, compression="zstd")


def html(summaries: Sequence[dict[str, Any]]) -> str:
    """The page: allocation against arrived load, a line a policy (mean over seeds), and the table."""
    from trivet.report.charts import Section, Series, html_table, line_chart, page

    series = []
    for policy in dict.fromkeys(s["policy"] for s in summaries):
        runs = [s["gpu_allocation_percent_at"] for s in summaries if s["policy"] == policy]
        loads = sorted({int(p) for r in runs for p in r})
        values = [[r[str(p)] for r in runs if str(p) in r] for p in loads]
        ends = ([min(v) for v in values], [max(v) for v in values]) if len(runs) > 1 else (None, None)
        series.append(Series(policy, [float(p) for p in loads], [statistics.fmean(v) for v in values], *ends))
    labels: dict[str, Any] = {"x_label": "arrived GPU requests, % of the cluster", "y_label": "allocated GPUs, %"}
    parts = [line_chart(series, title="GPU allocation against arrived load", **labels)]
    late = [Series(one.name, one.x[one.x >= 70], one.y[one.x >= 70]) for one in series if len(one.x) and one.x[-1] > 80]
    if late:
        parts.append(line_chart(late, title="The same, from 70% on", y_zero=False, **labels))
    header, rows = table_rows(summaries)
    parts.append(html_table([dict(zip(header, row, strict=True)) for row in rows]))
    return page("Placement", [Section("", parts)])


def table_rows(summaries: Sequence[dict[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """One row a policy. The published columns stand only where the run is the published one (openb at 130%)."""
    openb = all(s["gpus"] == 6212 and s["nodes"] == 1213 and s["tune"] == 1.3 for s in summaries)
    header = ["policy", "tasks", "lost", "GPU %", "sd", "@100", "CPU %"]
    if openb:
        header += ["publ.", "sd", "@100"]
    rows = []
    for policy in dict.fromkeys(s["policy"] for s in summaries):
        mine = [s for s in summaries if s["policy"] == policy]
        ends = [s["gpu_allocation_percent"] for s in mine]
        at100 = [s["gpu_allocation_percent_at"]["100"] for s in mine if "100" in s["gpu_allocation_percent_at"]]
        row = [
            policy, f"{statistics.fmean(s['tasks'] for s in mine):,.0f}",
            f"{statistics.fmean(s['dropped'] for s in mine):,.0f}", f"{statistics.fmean(ends):.2f}",
            f"{statistics.stdev(ends):.2f}" if len(ends) > 1 else "", f"{statistics.fmean(at100):.2f}" if at100 else "",
            f"{statistics.fmean(s['cpu_allocation_percent'] for s in mine):.1f}",
        ]  # fmt: skip
        if openb:
            row += [f"{v:.2f}" for v in PUBLISHED[policy]] if policy in PUBLISHED else ["", "", ""]
        rows.append(row)
    return header, rows


def terminal(summaries: Sequence[dict[str, Any]], cpu_s: float, folder: str) -> None:
    """Print the table, the speed and where the files are."""
    from rich.box import SIMPLE
    from rich.console import Console
    from rich.table import Table

    console = Console()
    first = summaries[0]
    header, rows = table_rows(summaries)
    table = Table(title=f"{first['nodes']:,} nodes, {first['gpus']:,} GPUs", title_justify="left", box=SIMPLE,
                  padding=(0, 1), collapse_padding=True)  # fmt: skip
    for i, name in enumerate(header):
        table.add_column(name, justify="left" if i == 0 else "right", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    console.print(table)
    tasks = sum(s["tasks"] for s in summaries)
    console.print(
        f"{tasks:,} tasks placed or dropped in {cpu_s:.2f} CPU seconds: {tasks / max(cpu_s, 1e-9):,.0f} a second"
    )
    if folder:
        console.print(f"Wrote {folder}/summary.json, {folder}/placements.parquet and {folder}/report.html")
