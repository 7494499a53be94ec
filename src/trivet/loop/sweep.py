"""Many variants of a scenario on all cores (or on Ray): the same bytes whatever the number of workers, and resumable.

Each finished point is a small JSON file in the sweep's folder, named by a digest of its scenario; a second run reads
those that are there.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
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
    scenario: Mapping[str, Any],
    read_trace: simulate.ReadTrace,
    file: str,
    read_clients: simulate.ReadClients | None = None,
) -> str:
    """Simulate one point and leave its summary in ``file`` (whole or not at all)."""
    try:
        summary = simulate.run(scenario, read_trace, read_clients=read_clients).summary
    except TrivetError as error:
        summary = {"error": str(error)}
    work = f"{file}.{os.getpid()}.part"
    Path(work).write_text(json.dumps(summary, sort_keys=True, allow_nan=False), encoding="utf-8")
    os.replace(work, file)
    return file


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
    do = functools.partial(_do, read_trace=read_trace, read_clients=read_clients)
    for _ in _ray(missing, do, workers) if engine == "ray" else _processes(missing, do, workers):
        done += 1
        report("simulating", done, total)
    return [
        {"set": what, "summary": json.loads(Path(file).read_text("utf-8"))}
        for file, (what, _) in zip(files, todo, strict=True)
    ]


Do = Callable[[Mapping[str, Any], str], str]


def _do(
    scenario: Mapping[str, Any], file: str, *, read_trace: simulate.ReadTrace, read_clients: simulate.ReadClients | None
) -> str:
    return one(scenario, read_trace, file, read_clients)


def _processes(missing: Mapping[str, Any], do: Do, workers: int) -> Iterator[str]:
    count = min(workers or len(os.sched_getaffinity(0)), len(missing))
    if count <= 1:
        for file, scenario in missing.items():
            yield do(scenario, file)
        return
    with ProcessPoolExecutor(count) as pool:
        waiting: set[Future[str]] = {pool.submit(do, scenario, file) for file, scenario in missing.items()}
        while waiting:
            finished, waiting = wait(waiting, return_when=FIRST_COMPLETED)
            for future in finished:
                yield future.result()


def _ray(missing: Mapping[str, Any], do: Do, workers: int) -> Iterator[str]:
    try:
        import ray
    except ImportError as error:
        raise Unsupported(
            "Ray is not installed", field="--engine", allowed="pip install 'trivet[ray]', or processes"
        ) from error
    mine = not ray.is_initialized()
    if mine:
        ray.init(log_to_driver=False, num_cpus=workers or None, include_dashboard=False)
    try:
        remote = ray.remote(do)
        waiting = [remote.remote(scenario, file) for file, scenario in missing.items()]
        while waiting:
            finished, waiting = ray.wait(waiting)
            for reference in finished:
                yield ray.get(reference)
    finally:
        if mine:
            ray.shutdown()
