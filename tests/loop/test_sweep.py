"""A sweep: the same bytes on processes and on Ray, and going on after it was killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from trivet.apps.cli.simulate import read_clients, read_trace
from trivet.errors import Unsupported
from trivet.loop import sweep

SCENARIO: dict[str, Any] = {
    "model": "meta-llama/Meta-Llama-3.1-8B",
    "traffic": {
        "generate": {"requests": 300, "rate_per_s": 20, "inputs": 500, "outputs": {"kind": "exponential", "mean": 60}}
    },
    "fleet": [{"chip": "h100", "replicas": 2}],
}
AXES = ["traffic.rate_scale=1,2", "fleet.0.replicas=1,2"]


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((folder / "points").iterdir())}


def test_ray_gives_the_same_bytes(tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="Ray is an optional extra: pip install 'trivet[ray]'")
    seen: list[tuple[int, int]] = []
    found = {}
    for engine in sweep.ENGINES:
        rows = sweep.run(
            SCENARIO, AXES, tmp_path / engine, read_trace, read_clients=read_clients, engine=engine, workers=2,
            report=lambda _, done, total: seen.append((done, total)),
        )  # fmt: skip
        found[engine] = rows, bytes_of(tmp_path / engine)
    assert found["ray"] == found["processes"]
    assert seen == [(n, 4) for n in range(5)] * 2


def test_without_ray_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(Unsupported, match=r"trivet\[ray\]"):
        sweep.run(SCENARIO, AXES, tmp_path, read_trace, engine="ray")


def test_a_point_that_fails_is_told_and_the_others_stay(tmp_path: Path) -> None:
    rows = sweep.run(SCENARIO, ["fleet.0.chip=h100,no-such-chip"], tmp_path, read_trace, workers=1)
    assert "error" not in rows[0]["summary"]
    assert rows[1]["summary"]["error"]


def test_it_goes_on_after_a_kill(tmp_path: Path) -> None:
    scenario = tmp_path / "scenario.yaml"
    scenario.write_text(
        "model: meta-llama/Meta-Llama-3.1-8B\ntraffic: {generate: {requests: 150000, rate_per_s: 20, inputs: 500, outputs: 60}}\n"
        "fleet: [{chip: h100, replicas: 2}]\n"
    )
    out, points = tmp_path / "out", tmp_path / "out" / "points"
    command = [
        sys.executable, "-c", "from trivet.apps.cli.main import main; main()", "simulate", str(scenario), "-o", str(out),
        "--sweep", "seed=1,2,3,4,5,6,7,8", "--workers", "1", "--json",
    ]  # fmt: skip
    first = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not list(points.glob("*.json")) and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(first.pid, signal.SIGKILL)
    first.wait()
    stamps = {path: path.stat().st_mtime_ns for path in points.glob("*.json")}
    assert 0 < len(stamps) < 8
    assert not (out / "summary.json").exists()
    assert subprocess.run(command, stdout=subprocess.DEVNULL, timeout=300).returncode == 0
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in stamps.items())
    assert len(list(points.glob("*.json"))) == 8
    whole = [*command[:6], str(tmp_path / "whole"), *command[7:]]
    assert subprocess.run(whole, stdout=subprocess.DEVNULL, timeout=300).returncode == 0
    assert (tmp_path / "whole" / "summary.json").read_bytes() == (out / "summary.json").read_bytes()
