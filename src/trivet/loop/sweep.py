"""Many variants of a scenario on all cores (or on Ray): the same bytes whatever the number of workers, and resumable.

Each finished point is a small JSON file in the sweep's folder, named by a digest of its scenario; a second run reads
those that are there.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from trivet.errors import TrivetError, Unsupported
from trivet.loop import simulate
from trivet.loop.scenario_schema import changed, parse

ENGINES = ("processes", "ray")


def points(raw: Mapping[str, Any], axes: Sequence[str]) -> list[tuple[dict[str, str], dict[str, Any]]]:
    """All combinations of axes ``path=a,b,c``: (what is set, the scenario). Every scenario is checked here."""
    names, values = [], []
    for axis in axes:
        path, equals, text = axis.partition("=")
        choices = [v.strip() for v in text.split(",") if v.strip()]
        if not equals or not choices:
            raise TrivetError(f"{axis!r}", field="--sweep", allowed="path=value,value,...")
        names.append(path)
        values.append(choices)
    out = []
    for combination in itertools.product(*values):
        scenario = changed(raw, [f"{n}={v}" for n, v in zip(names, combination, strict=True)])
        parse(scenario)
        out.append((dict(zip(names, combination, strict=True)), scenario))
    return out


def digest(scenario: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(scenario, sort_keys=True, default=str).encode()).hexdigest()[:16]


def one(
    scenario: Mapping[str, Any], read_trace: simulate.ReadTrace, read_clients: simulate.ReadClients | None = None
) -> str:
    """Simulate one point; its summary as JSON, or its error."""
    try:
        summary = simulate.run(scenario, read_trace, read_clients=read_clients).summary
    except TrivetError as error:
        summary = {"error": str(error)}
    return json.dumps(summary, sort_keys=True, allow_nan=False)


def keep(file: str, text: str) -> None:
    """Leave a point's summary in its file, whole or not at all."""
    work = f"{file}.{os.getpid()}.part"
    Path(work).write_text(text, encoding="utf-8")
    os.replace(work, file)


def run(
    raw: Mapping[str, Any],
    axes: Sequence[str],
    folder: Path,
    read_trace: simulate.ReadTrace,
    *,
    read_clients: simulate.ReadClients | None = None,
    engine: str = "processes",
    workers: int = 0,
    report: Callable[[str, int, int], None] = lambda *_: None,
) -> list[dict[str, Any]]:
    """All points, in the order of the axes: ``[{"set": {...}, "summary": {...}}]``.

    Raises:
        TrivetError: a bad axis or scenario. Unsupported: ``engine="ray"`` without Ray.
    """
    if engine not in ENGINES:
        raise TrivetError(f"unknown {engine!r}", field="--engine", allowed=ENGINES)
    todo = points(raw, axes)
    cache = folder / "points"
    cache.mkdir(parents=True, exist_ok=True)
    files = [str(cache / f"{digest(scenario)}.json") for _, scenario in todo]
    missing = {file: scenario for file, (_, scenario) in zip(files, todo, strict=True) if not Path(file).exists()}
    total, done = len(set(files)), len(set(files)) - len(missing)
    report("simulating", done, total)
    points_of = _ray if engine == "ray" else _processes
    for file, text in points_of(missing, read_trace, read_clients, workers):
        keep(file, text)
        done += 1
        report("simulating", done, total)
    return [
        {"set": what, "summary": json.loads(Path(file).read_text("utf-8"))}
        for file, (what, _) in zip(files, todo, strict=True)
    ]


def _processes(
    missing: Mapping[str, Any], read_trace: simulate.ReadTrace, read_clients: simulate.ReadClients | None, workers: int
) -> Iterator[tuple[str, str]]:
    """(file, summary) of each point as it ends, on processes of this machine."""
    count = min(workers or len(os.sched_getaffinity(0)), len(missing))
    if count <= 1:
        for file, scenario in missing.items():
            yield file, one(scenario, read_trace, read_clients)
        return
    with ProcessPoolExecutor(count) as pool:
        jobs = {pool.submit(one, scenario, read_trace, read_clients): file for file, scenario in missing.items()}
        for job in as_completed(jobs):
            yield jobs[job], job.result()


def _ray(
    missing: Mapping[str, Any], read_trace: simulate.ReadTrace, read_clients: simulate.ReadClients | None, workers: int
) -> Iterator[tuple[str, str]]:
    """The same on a Ray cluster: the one of ``RAY_ADDRESS``, else one of this machine. This process writes the files."""
    try:
        import ray
    except ImportError as error:
        raise Unsupported(
            "Ray is not installed", field="--engine", allowed="pip install 'trivet[ray]', or processes"
        ) from error
    mine = not ray.is_initialized()
    if mine:
        there = {} if os.environ.get("RAY_ADDRESS") else {"num_cpus": workers or None, "include_dashboard": False}
        ray.init(log_to_driver=False, logging_level=logging.ERROR, **there)
    try:
        remote = ray.remote(one)
        jobs = {remote.remote(scenario, read_trace, read_clients): file for file, scenario in missing.items()}
        waiting = list(jobs)
        while waiting:
            finished, waiting = ray.wait(waiting)
            for reference in finished:
                yield jobs[reference], ray.get(reference)
    finally:
        if mine:
            ray.shutdown()
