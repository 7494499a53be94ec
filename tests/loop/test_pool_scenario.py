"""Scenarios that pool many models: all policies on the same requests, sized in closed form and followed one by one."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from trivet.apps.cli.simulate import read_clients
from trivet.errors import TrivetError
from trivet.interop.yaml_files import read_yaml
from trivet.loop.pool_scenario import parse_pooling, run

ROOT = Path(__file__).resolve().parents[2]
RAW: dict[str, Any] = read_yaml(ROOT / "examples" / "serving" / "pooling.yaml")


@pytest.fixture(scope="module")
def found() -> Any:
    raw = copy.deepcopy(RAW)
    raw["pooling"]["seconds"] = 400
    return run(raw, read_clients)


def test_every_policy_serves_every_request_once(found: Any) -> None:
    count = found.summary["requests"]
    for told in found.summary["policies"].values():
        assert told["requests"]["done"] == count
    columns = found.requests
    assert len(columns["policy"]) == 4 * count
    assert (columns["first_token_s"] >= columns["arrival_s"]).all()
    assert (columns["last_token_s"] >= columns["first_token_s"]).all()
    assert (columns["instance"] >= 0).all()


def test_what_sharing_gives_and_takes(found: Any) -> None:
    """MuxServe and Aegaeon: fewer chips the finer the sharing; ServerlessLLM: cold starts break the first token."""
    told = found.summary["policies"]
    chips = {name: one["chips"] for name, one in told.items()}
    assert chips["token_level"] < chips["multiplexed"] < 0.5 * chips["dedicated"]
    assert chips["scale_to_zero"] <= 1.1 * told["scale_to_zero"]["chips_in_closed_form"]
    assert told["scale_to_zero"]["chips_mean"] < chips["scale_to_zero"]
    assert told["scale_to_zero"]["requests"]["cold"] > 0
    assert told["scale_to_zero"]["ttft_s"]["p99"] > 25 > 10 > told["token_level"]["ttft_s"]["p99"]
    assert told["dedicated"]["slo"]["attainment"] > 0.99
    assert told["token_level"]["slo"]["stream"] > 0.9
    assert 0.1 < told["token_level"]["switching_share"] < 0.9
    assert told["token_level"]["tpot_s"]["mean"] > told["dedicated"]["tpot_s"]["mean"]


def test_cold_starts_by_hand() -> None:
    """One model, rare requests: each waits for its start, and the instance is there for it, the answer and the keep-alive."""
    raw = copy.deepcopy(RAW)
    raw["pooling"] |= {
        "policy": "scale_to_zero", "seconds": 20_000, "cold_start_s": 20.0, "keep_alive_s": 10.0,
        "models": [{"model": "Qwen/Qwen3-1.7B", "rate_per_s": 0.002, "inputs": 100, "outputs": 50}],
    }  # fmt: skip
    done = run(raw, read_clients)
    told, columns = done.summary["policies"]["scale_to_zero"], done.requests
    assert columns is not None
    gaps = np.diff(columns["arrival_s"])
    alone = np.concatenate(([True], gaps > 40))
    assert columns["cold"][alone].all()
    assert (columns["first_token_s"] - columns["arrival_s"])[alone] == pytest.approx(20.0, abs=0.2)
    assert told["chips"] == 1
    assert told["chips_mean"] < 0.1


def test_a_marketplace() -> None:
    raw = read_yaml(ROOT / "src" / "trivet" / "data" / "scenarios" / "marketplace.yaml")
    raw["pooling"]["marketplace"]["draws"] = 2
    done = run(raw, read_clients)
    told = done.summary["policies"]
    assert told["dedicated"]["chips"]["value"] == pytest.approx(1192, rel=0.02)
    assert told["token_level"]["chips"]["value"] < told["multiplexed"]["chips"]["value"]
    assert told["token_level"]["published"] == 213
    assert done.draws is not None
    assert len(done.draws["chips_token_level"]) == 2
    assert done.requests is None


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"chip": "no-such"}, "chip"),
        ({"policy": "magic"}, "policy"),
        ({"models": []}, "models or a marketplace"),
        ({"seconds": 1e9}, "pooling.seconds"),
        ({"prefetched": 2}, "prefetched"),
        ({"marketplace": {"small": ["a"], "large": ["b"]}}, "models or a marketplace"),
    ],
)
def test_refusals(change: dict[str, Any], text: str) -> None:
    raw = copy.deepcopy(RAW)
    raw["pooling"] |= change
    with pytest.raises(TrivetError, match=text):
        run(raw, read_clients)


def test_files(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "from trivet.apps.cli.main import main; main()", "simulate"]
    scenario = str(ROOT / "examples" / "serving" / "pooling.yaml")
    out = tmp_path / "out"
    changes = ["--set", "pooling.policy=[token_level, dedicated]", "--set", "pooling.seconds=100"]
    done = subprocess.run([*command, scenario, "-o", str(out), *changes], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "token level" in done.stdout
    assert sorted(p.name for p in out.iterdir()) == ["report.html", "requests.parquet", "summary.json"]
    summary = json.loads((out / "summary.json").read_text())
    assert list(summary["policies"]) == ["token_level", "dedicated"]
    assert pl.read_parquet(out / "requests.parquet").height == 2 * summary["requests"]
    bad = subprocess.run([*command, scenario, "--fail", "rack:1s"], capture_output=True, text=True, timeout=300)
    assert bad.returncode == 2
    assert parse_pooling(RAW).pooling.chip == "h20"
