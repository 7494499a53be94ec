"""``trivet codesign`` as a user calls it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

DEMAND = """
title: "one pool"
workloads:
  decode: {kind: decode, model: Qwen/Qwen3-8B, context: 8192, tpot_s: 0.05}
"""


def run(*args: str) -> subprocess.CompletedProcess[str]:
    code = "from trivet.apps.cli.main import main; main()"
    return subprocess.run([sys.executable, "-c", code, "codesign", *args], capture_output=True, text=True, check=False)


def test_a_study_writes_summary_and_page(tmp_path: Path) -> None:
    demand = tmp_path / "demand.yaml"
    demand.write_text(DEMAND)
    done = run("H20", "--demand", str(demand), "--no-check", "-o", str(tmp_path / "out"))
    assert done.returncode == 0, done.stderr
    assert "best chip" in done.stdout
    assert "memory_bandwidth" in done.stdout
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["chip"] == "h20"
    cards = {
        s["parameter"]: s["percent"]
        for s in summary["sensitivities"]
        if (s["workload"], s["metric"]) == ("all", "cards")
    }
    assert cards["memory_bandwidth"] < cards["vector"]
    assert cards["memory_bandwidth"] < 0
    assert {s["parameter"] for s in summary["sensitivities"]} >= {"matrix", "links", "clock"}
    page = (tmp_path / "out" / "report.html").read_text()
    assert "<svg" in page
    assert "http://" not in page.replace("http://www.w3.org", "")


@pytest.mark.parametrize(
    "args",
    [
        ("h10o",), ("yitian-710",), ("h20", "--step", "0"), ("h20", "--budget", "area_mm2=much"), ("h20", "--budget", "mass=1"),
        ("h20", "--demand", "no/such.yaml"), ("h20", "--basis", "barter"), ("h20", "--replica-chips", "0"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line_and_exit_2(args: tuple[str, ...], tmp_path: Path) -> None:
    demand = tmp_path / "demand.yaml"
    demand.write_text(DEMAND)
    extra = () if "--demand" in args else ("--demand", str(demand))
    done = run(*args, "--no-check", *extra)
    assert done.returncode == 2
    assert done.stdout == ""
    assert len(done.stderr.strip().splitlines()) == 1
