"""``trivet simulate``, ``predict requests`` and ``validate requests`` as a user calls them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import polars as pl
import pytest

ROOT = Path(__file__).resolve().parents[2]
SCENARIO = """
title: Test
model: meta-llama/Meta-Llama-3.1-8B
traffic: {generate: {requests: 400, rate_per_s: 20, inputs: 500, outputs: {kind: exponential, mean: 60}}}
fleet:
  - {chip: h100, replicas: 2}
engine: {max_num_batched_tokens: 2048}
slo: {ttft_s: 1.0, tpot_s: 0.05}
"""


def trivet(*arguments: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from trivet.apps.cli.main import main; main()", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


@pytest.fixture
def scenario(tmp_path: Path) -> Path:
    path = tmp_path / "scenario.yaml"
    path.write_text(SCENARIO)
    return path


def test_files(scenario: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = trivet("simulate", scenario, "-o", out)
    assert done.returncode == 0, done.stderr
    assert "TTFT" in done.stdout
    assert sorted(p.name for p in out.iterdir()) == ["report.html", "requests.parquet", "summary.json", "timeline.json"]
    summary = json.loads((out / "summary.json").read_text())
    frame = pl.read_parquet(out / "requests.parquet")
    assert frame.height == 400 == summary["requests"]["done"]
    assert (frame["first_token_s"] >= frame["scheduled_s"]).all()
    assert frame.select((pl.col("first_token_s") - pl.col("arrival_s")).mean()).item() == pytest.approx(
        summary["ttft_s"]["mean"]
    )
    assert summary["cost"]["usd"] > 0
    assert summary["energy"]["joules"] > 0
    assert json.loads((out / "timeline.json").read_text())["traceEvents"]


def test_too_many_requests_are_told_by_sketches(scenario: Path, tmp_path: Path) -> None:
    whole, thin = tmp_path / "whole", tmp_path / "thin"
    assert trivet("simulate", scenario, "--set", "traffic.generate.requests=3000", "-o", whole).returncode == 0
    done = trivet("simulate", scenario, "--set", "traffic.generate.requests=3000", "-o", thin, "--most-rows", 2000)
    assert done.returncode == 0, done.stderr
    assert "sketches" in done.stdout
    exact, told = (json.loads((folder / "summary.json").read_text()) for folder in (whole, thin))
    assert told["requests"] == exact["requests"]
    assert told["slo"] == pytest.approx(exact["slo"])
    for metric in ("ttft_s", "tpot_s", "e2e_s"):
        assert told[metric]["mean"] == pytest.approx(exact[metric]["mean"], rel=1e-4)
        assert told[metric]["p99"] == pytest.approx(exact[metric]["p99"], rel=0.01)
    sample, every = pl.read_parquet(thin / "requests.parquet"), pl.read_parquet(whole / "requests.parquet")
    assert sample.equals(every.gather_every(1000))
    frame = pl.read_parquet(thin / "sketches.parquet")
    assert frame.columns == ["service", "group", "hour", "metric", "bin", "lower_s", "upper_s", "count", "sum_us"]
    assert frame.filter(pl.col("metric") == "ttft")["count"].sum() == 3000
    assert not (whole / "sketches.parquet").exists()


def test_customers_of_a_service(tmp_path: Path) -> None:
    path = tmp_path / "customers.yaml"
    path.write_text(
        "model: Qwen/Qwen3-8B\ntraffic: {customers: {service: deepseek-r1, start_h: 3, hours: 0.5}, rate_scale: 0.1}\n"
        "fleet: [{chip: h100, replicas: 2}]\n"
    )
    done = trivet("simulate", path, "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["requests"]["done"] == found["requests"]["total"] > 500
    bad = trivet("simulate", path, "--set", "traffic.customers.service=m-none")
    assert bad.returncode == 2
    assert "deepseek-r1" in bad.stderr


def test_what_ifs_move_the_answer(scenario: Path) -> None:
    def run(*more: str) -> dict[str, Any]:
        done = trivet("simulate", scenario, "--json", *more)
        assert done.returncode == 0, done.stderr
        answer: dict[str, Any] = json.loads(done.stdout)
        return answer

    base, twice = run(), run("--set", "traffic.rate_scale=2")
    assert twice["tpot_s"]["mean"] > base["tpot_s"]["mean"]
    half = run("--set", "engine.kv_scale=0.5")
    assert half["replicas"][0]["kv_blocks"] == base["replicas"][0]["kv_blocks"] // 2
    down = run("--fail", "replica:5s")
    assert down["ttft_s"]["max"] > base["ttft_s"]["max"]
    assert down["requests"]["done"] == 400


@pytest.mark.parametrize(
    ("more", "text"),
    [
        (["--set", "traffic.rat=2"], "unknown key"),
        (["--set", "router=best"], "round_robin"),
        (["--set", "fleet.0.chip=none-such"], "chip"),
        (["--set", "fleet.0.replicas=0"], "fleet.0.replicas"),
        (["--set", "engine.name=tgi"], "vllm"),
        (["--fail", "moon:3s"], "rack"),
        (["--fail", "rack#9:60s"], "servers 0 to"),
        (["--sweep", "traffic.rate_scale=1,2"], "-o"),
    ],
)
def test_one_clear_line(scenario: Path, more: list[str], text: str) -> None:
    done = trivet("simulate", scenario, *more)
    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) == 1
    assert text in done.stderr


def test_a_sweep_is_the_same_on_one_and_two_workers_and_resumes(scenario: Path, tmp_path: Path) -> None:
    answers = []
    for workers in (1, 2):
        out = tmp_path / f"sweep{workers}"
        done = trivet("simulate", scenario, "-o", out, "--sweep", "traffic.rate_scale=1,2", "--workers", workers)
        assert done.returncode == 0, done.stderr
        answers.append((out / "summary.json").read_bytes())
    assert answers[0] == answers[1]
    points = sorted((tmp_path / "sweep1" / "points").iterdir())
    assert len(points) == 2
    points[0].unlink()
    before = points[1].stat().st_mtime_ns
    done = trivet("simulate", scenario, "-o", tmp_path / "sweep1", "--sweep", "traffic.rate_scale=1,2")
    assert done.returncode == 0
    assert points[0].exists()
    assert points[1].stat().st_mtime_ns == before
    assert (tmp_path / "sweep1" / "summary.json").read_bytes() == answers[0]


def test_requests_of_both_logs(shared_data: Path, tmp_path: Path) -> None:
    logs = sorted((shared_data / "requests").glob("*.jsonl"))
    assert len(logs) == 2
    done = trivet("validate", "requests", *logs, "--chip", "rtx-4090", "--chip", "rtx-pro-6000", "--json")
    assert done.returncode == 0, done.stderr
    for log in json.loads(done.stdout)["logs"]:
        assert all(row["within"] for row in log["figures"]), log
    out = tmp_path / "out.csv"
    meta = logs[0].with_name(logs[0].name.replace(".jsonl", ".meta.json"))
    done = trivet("predict", "requests", logs[0], "--meta", meta, "--chip", "rtx-4090", "-o", out)
    assert done.returncode == 0, done.stderr
    frame = pl.read_csv(out)
    assert frame.columns == ["request_id", "queued_s", "first_token_s", "last_token_s"]
    assert frame.height == 300
    assert (frame["last_token_s"] > frame["first_token_s"]).all()


def test_times_in_the_log_are_not_used(shared_data: Path, tmp_path: Path) -> None:
    log = next((shared_data / "requests").glob("*4090*.jsonl"))
    meta = log.with_name(log.name.replace(".jsonl", ".meta.json"))
    bare = tmp_path / "bare.jsonl"
    keep = ("request_id", "input_toks", "output_toks", "arrival_time")
    bare.write_text(
        "\n".join(json.dumps({k: json.loads(line)[k] for k in keep}) for line in log.read_text().splitlines())
    )
    outs = []
    for name, source in (("a", log), ("b", bare)):
        out = tmp_path / f"{name}.csv"
        assert trivet("predict", "requests", source, "--meta", meta, "--chip", "rtx-4090", "-o", out).returncode == 0
        outs.append(out.read_bytes())
    assert outs[0] == outs[1]


def test_examples_are_scenarios() -> None:
    from trivet.interop.yaml_files import read_yaml
    from trivet.loop.scenario_schema import parse

    found = sorted((ROOT / "examples").glob("simulate_*.yaml"))
    assert found
    for path in found:
        parse(read_yaml(path))
