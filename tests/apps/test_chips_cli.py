"""``trivet chips`` as a user calls it."""

from __future__ import annotations

import json
import subprocess
import sys
import time

import pytest

pytestmark = pytest.mark.filterwarnings("ignore")


def run(*args: str) -> subprocess.CompletedProcess[str]:
    code = "from trivet.apps.cli.main import main; main()"
    return subprocess.run([sys.executable, "-c", code, "chips", *args], capture_output=True, text=True, check=False)


def test_list() -> None:
    done = run()
    assert done.returncode == 0
    for name in ("zhenwu-810e", "h100", "hanguang-800", "yitian-710", "zhenyue-510"):
        assert name in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 80


def test_side_by_side() -> None:
    done = run("zhenwu-810e", "h20", "a800")
    assert done.returncode == 0
    for text in ("165 TFLOP/s", "138-195", "conflict", "787 TFLOP/s", "550 W", "FlagGems", "derived"):
        assert text in done.stdout, text


def test_role_lines() -> None:
    assert "published 78,563 images/s" in " ".join(run("hanguang-800").stdout.split())


def test_json() -> None:
    done = run("zhenwu-810e", "H100_SXM", "--json")
    first, second = json.loads(done.stdout)
    assert (first["name"], second["name"]) == ("zhenwu-810e", "h100")
    field = first["fields"]["peak_flops_bf16"]
    assert (field["lo"], field["hi"], field["unit"], field["status"]) == (138e12, 195e12, "FLOP/s", "derived")
    assert field["source"]
    assert second["fields"]["peak_flops_bf16"]["value"] == pytest.approx(989.4e12)
    everything = json.loads(run("--json").stdout)
    assert len(everything) > 50


@pytest.mark.parametrize("args", [("h10o",), ("--role", "oven"), ("no/such.yaml",)])
def test_a_mistake_is_one_line_and_exit_2(args: tuple[str, ...]) -> None:
    done = run(*args)
    assert done.returncode == 2
    assert done.stdout == ""
    assert len(done.stderr.strip().splitlines()) == 1


def test_fast() -> None:
    best = min(_timed() for _ in range(3))
    assert best < 1.0  # 0.3 s on a quiet core


def _timed() -> float:
    start = time.perf_counter()
    run("h100")
    return time.perf_counter() - start
