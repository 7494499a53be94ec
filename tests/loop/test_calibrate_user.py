"""A user's own results: factors that made them are found, one file moves them partly, and what they change is used."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from trivet.apps.cli.calibrate import app
from trivet.chip.catalogue import chip
from trivet.cloud.deployment import Deployment, EngineSettings
from trivet.cloud.engine import profile, step_table
from trivet.cloud.engine.profiles import from_mapping, stored
from trivet.cloud.serving.batching import batching
from trivet.cloud.serving.fleet import Fleet, ReplicaKind, simulate
from trivet.cloud.serving.traffic import Traffic
from trivet.errors import TrivetError
from trivet.interop.bench_results import from_requests, write
from trivet.loop.calibrate_user import FACTORS, Run, fit, observation, run_of, scaled
from trivet.loop.predict_serving import predict
from trivet.loop.serving_model import Compiler
from trivet.loop.serving_rows import Table
from trivet.model.config import read
from trivet.model.parallel import Layout

DEPLOYMENT = Deployment(read("Qwen/Qwen3-32B"), chip("h100"), Layout(tp=4), EngineSettings(max_num_seqs=1024))
TRUTH = np.log([1.25, 1.2, 1.6, 1.5])
LOADS = ((1024.0, 512.0, 4.0), (1024.0, 512.0, 32.0), (4096.0, 256.0, 16.0), (512.0, 1024.0, 128.0))


def made(loads: tuple[tuple[float, float, float], ...]) -> list[Run]:
    """Results of the same engine with other constants."""
    engine = Compiler({"vllm": from_mapping("vllm", scaled(stored()["vllm"], TRUTH))})
    runs = []
    for isl, osl, concurrency in loads:
        found = observation(Run(isl, osl, concurrency, 1.0, 1.0, low=0.8), DEPLOYMENT).physics(engine)
        runs.append(Run(isl, osl, concurrency, float(found.ttft_s), float(found.tpot_s), low=0.8))
    return runs


def test_finds_the_constants_that_made_the_results() -> None:
    runs = made(LOADS * 6)
    found = fit([observation(run, DEPLOYMENT) for run in runs], "vllm", Compiler())
    assert found.logs[:2] == pytest.approx(TRUTH[:2], abs=0.08)  # the priors hold it back a little
    assert (found.after < found.before).all()
    other = observation(made(((2048.0, 512.0, 64.0),))[0], DEPLOYMENT)
    calibrated = Compiler({"vllm": from_mapping("vllm", found.constants)})
    shipped_error = math.log(float(other.physics(Compiler()).tpot_s) / other.tpot_s)
    error = math.log(float(other.physics(calibrated).tpot_s) / other.tpot_s)
    assert abs(shipped_error) > 0.15
    assert abs(error) < 0.03


def test_one_result_moves_it_partly_and_more_move_it_further() -> None:
    runs = [observation(run, DEPLOYMENT) for run in made(LOADS)]
    one, all_of_them = fit(runs[:1], "vllm", Compiler()), fit(runs, "vllm", Compiler())
    shipped = float(runs[0].physics(Compiler()).tpot_s)
    moved = float(runs[0].physics(Compiler({"vllm": from_mapping("vllm", one.constants)})).tpot_s)
    assert 1.0 < moved / shipped < runs[0].tpot_s / shipped
    assert np.trace(all_of_them.covariance) < np.trace(one.covariance)
    assert (one.after < one.before).all()


def test_a_result_like_the_shipped_engine_changes_nothing() -> None:
    found = observation(Run(1024, 512, 16, 1.0, 1.0, low=0.8), DEPLOYMENT).physics(Compiler())
    run = Run(1024, 512, 16, float(found.ttft_s), float(found.tpot_s), low=0.8)
    assert fit([observation(run, DEPLOYMENT)], "vllm", Compiler()).logs == pytest.approx(
        np.zeros(len(FACTORS)), abs=1e-6
    )


def test_lengths_and_load_of_a_result() -> None:
    run = run_of((900.0, 450.0, 0.2 / math.sqrt(12) / 0.9), (16.0, math.inf), (0.1, 0.01), 160)
    assert run.low == pytest.approx(0.8, abs=1e-9)
    assert run.isl == pytest.approx(1000.0)
    assert run.osl == pytest.approx(500.0)
    assert run_of((900, 450, math.nan), (0.0, 2.0), (0.1, 0.01), 100).rate_per_s == 2.0
    assert run_of((900, 450, math.nan), (0.0, math.inf), (0.1, 0.01), 100).concurrency == 100


def test_impossible_results_are_refused() -> None:
    with pytest.raises(TrivetError, match="tpot_s"):
        observation(Run(100, 100, 4, 0.1, math.nan), DEPLOYMENT)
    with pytest.raises(TrivetError, match="rate"):
        observation(Run(100, 100, 0, 0.1, 0.01), DEPLOYMENT)
    with pytest.raises(TrivetError):
        fit([], "vllm", Compiler())


def bench_file(path: Path, form: str) -> None:
    """Sixty-four requests at once through the event loop of an engine that is a quarter slower, as a tool's file."""
    from dataclasses import replace

    table = step_table(DEPLOYMENT)
    slow = replace(table, graph_s=1.25 * table.graph_s, mixed_s=1.25 * table.mixed_s,
                   decode_attention_s=1.25 * table.decode_attention_s)  # fmt: skip
    n = 64
    traffic = Traffic(np.zeros(n), np.full(n, 1024, np.int32), (200 + np.arange(n) % 100).astype(np.int32))
    kind = ReplicaKind(slow, DEPLOYMENT.settings, rules=batching(DEPLOYMENT.settings))
    done = simulate(traffic, Fleet((kind,)))
    result = from_requests(traffic.arrival_s, done.first_token_s, done.last_token_s, traffic.input_tokens,
                           traffic.output_tokens, model="Qwen/Qwen3-32B", max_concurrency=n)  # fmt: skip
    write(result, path, form, detailed=True)


@pytest.mark.parametrize("form", ["vllm", "guidellm", "aiperf"])
def test_command_writes_a_profile_that_predictions_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    bench_file(tmp_path / "result.json", form)
    out = tmp_path / "own" / "engines" / "mine.json"
    words = ["--bench", str(tmp_path / "result.json"), "--chip", "h100", "--command",
             "vllm serve Qwen/Qwen3-32B --tensor-parallel-size 4 --max-num-seqs 1024", "-o", str(out), "--json"]  # fmt: skip
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    assert 1.02 < told["factors"]["decode"] < 1.4
    assert told["log_width"]["tpot"]["after"] < told["log_width"]["tpot"]["before"]
    row = {"chip": "h100", "engine": "vllm", "model": "Qwen/Qwen3-32B", "isl": "1024", "osl": "256", "concurrency": "64",
           "tp": "4"}  # fmt: skip
    before = step_table(DEPLOYMENT)
    monkeypatch.setenv("TRIVET_CATALOGUE", str(tmp_path / "own"))
    assert profile("vllm", "", "h100").tpot_sigma > 0
    assert profile("vllm", "", "h200").tpot_sigma == 0
    assert (step_table(DEPLOYMENT).graph_s > 1.01 * before.graph_s).all()
    (answer,) = predict(Table([row]))
    assert answer.tpot is not None
    assert math.log(answer.tpot.hi / answer.tpot.lo) == pytest.approx(told["log_width"]["tpot"]["after"], rel=0.01)


def test_a_profile_that_is_none_names_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "engines").mkdir()
    (tmp_path / "engines" / "x.json").write_text('{"engine": "vllm"}')
    monkeypatch.setenv("TRIVET_CATALOGUE", str(tmp_path))
    with pytest.raises(TrivetError, match=r"x\.json"):
        profile("vllm", "", "h100")
