"""``trivet schedule``: a task list on a node list under a placement policy."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from trivet.errors import TrivetError

app = typer.Typer(add_completion=False, rich_markup_mode=None)
PUBLISHED_SIX = ("fgd", "bestfit", "gpupacking", "gpuclustering", "dotprod", "random")


def _seeds(text: str) -> list[int]:
    """``"42"``, ``"42,43"`` or ``"42-51"``."""
    out: list[int] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        try:
            out += range(int(first), int(last) + 1) if dash else [int(first)]
        except ValueError as error:
            raise TrivetError(f"{part!r}", field="--seed", allowed="whole numbers: 42 or 42,43 or 42-51") from error
    if not out or len(out) > 1000:
        raise TrivetError(f"{len(out)} seeds in {text!r}", field="--seed", allowed="1 to 1000")
    return out


def _told(report: Callable[[str, int, int], None], what: str, done: int) -> None:
    report(what, done, 0)


@app.command()
def schedule(
    nodes: Annotated[Path, typer.Option(help="Node list: sn, cpu_milli, memory_mib, gpu, model; CSV, plain or .gz.")],
    jobs: Annotated[Path, typer.Option(help="Task list: name, cpu_milli, memory_mib, num_gpu, gpu_milli, gpu_spec ...")],
    policy: Annotated[str, typer.Option(help="fgd bestfit dotprod gpupacking gpuclustering random firstfit fgdcpu, a "
                                             "plug-in's name, a comma list, or 'all'.")] = "fgd",
    seed: Annotated[str, typer.Option(help="Seed, list or range (42-51).")] = "42",
    tune: Annotated[float, typer.Option(help="Raise requests to this multiple of the GPUs by clones; 0 = as they are.")] = 0.0,
    plain: Annotated[bool, typer.Option("--plain", help="The plain Python reference instead of the compiled loop.")] = False,
    out: Annotated[Path | None, typer.Option("-o", "--out", help="Folder for placements.parquet, summary.json, "
                                                                     "report.html.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print summary.json instead of a table.")] = False,
) -> None:  # fmt: skip
    """Place a list of tasks in the published openb protocol and report how much of the GPUs they get."""
    from trivet.apps.cli.output import deliver
    from trivet.apps.cli.screen import progress
    from trivet.cloud.cluster.placement import Placement
    from trivet.cloud.cluster.placement import schedule as place
    from trivet.interop.openb import read_nodes, read_tasks
    from trivet.report import cluster_report

    if not 0.0 <= tune <= 100.0:
        raise TrivetError(f"{tune}", field="--tune", allowed="0 to 100")
    named = [p.strip() for p in policy.split(",") if p.strip()]
    policies = list(dict.fromkeys(q for p in named for q in (PUBLISHED_SIX if p == "all" else (p,))))
    if not policies:
        raise TrivetError("no policy", field="--policy", allowed="at least one name")
    seeds = _seeds(seed)
    node_list, task_list = read_nodes(nodes), read_tasks(jobs)
    runs: list[tuple[Placement, int]] = []
    with progress(enabled=not as_json) as report:
        for name in policies:
            for s in seeds:
                step = len(runs)
                total = len(policies) * len(seeds)
                runs.append((
                    place(node_list, task_list, name, seed=s, tune=tune, plain=plain,
                          progress=partial(_told, report, f"{name} {step + 1}/{total}")), s,
                ))  # fmt: skip
    summaries = [cluster_report.summary(run, s, tune) for run, s in runs]
    deliver(
        cluster_report.combined(summaries),
        out,
        as_json,
        lambda folder: cluster_report.terminal(summaries, sum(run.cpu_s for run, _ in runs), folder),
        {"report.html": lambda: cluster_report.html(summaries)},
        lambda folder: cluster_report.write_placements(runs, folder / "placements.parquet"),
    )
