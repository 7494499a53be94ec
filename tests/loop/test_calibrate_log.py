"""An engine on a card from a log of its requests: found again, moved partly, shipped as it is fitted, and used."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from trivet.apps.cli.calibrate import app
from trivet.chip.reading import data_folder
from trivet.cloud import engine
from trivet.cloud.engine.process import STEP_S
from trivet.cloud.serving.traffic import Traffic
from trivet.errors import TrivetError
from trivet.loop import calibrate_log
from trivet.loop.calibrate_log import PRIOR, STEP_SIGMA_S, fit
from trivet.loop.predict_requests import Log, Replay, constants_of, predict

META = {
    "model": "meta-llama/Llama-3.1-8B",
    "vllm_version": "0.19.0",
    "engine_kwargs": {"max_num_seqs": 64, "max_num_batched_tokens": 2048},
}


def made(
    factors: tuple[float, float, float],
    step_s: float,
    requests: int = 150,
    seed: int = 5,
    chip: str = "l40s",
    cold_s: float = 0.0,
) -> Log:
    """A log of the same engine with other constants."""
    draw = np.random.default_rng(seed)
    arrival = np.sort(draw.uniform(0.0, 20.0, requests))
    arrival -= arrival[0]
    traffic = Traffic(arrival, draw.integers(50, 1500, requests), draw.integers(20, 400, requests), name="made")
    log = Log(tuple(str(i) for i in range(requests)), traffic)
    truth = engine.process("vllm", "", np.log(factors), step_s, cold_s)
    found = Replay(log, META, chip).run(truth)
    return replace(log, first_token_s=found.first_token_s, last_token_s=found.last_token_s)


def test_tells_other_loads_of_the_same_engine() -> None:
    truth, step_s = (1.15, 1.2, 1.1), 1.6e-3
    found = fit([made(truth, step_s)], [META], "l40s")
    assert abs(found.after[0]) < 0.25 * abs(found.before[0])
    other = made(truth, step_s, requests=40, seed=6)
    assert other.first_token_s is not None
    assert other.last_token_s is not None
    replay = Replay(other, META, "l40s")
    shipped, calibrated = (
        np.log((run.last_token_s - run.first_token_s) / (other.last_token_s - other.first_token_s)).mean()
        for run in (replay.run(engine.process("vllm")), replay.run(engine.process("vllm", "", found.logs, found.step_s)))
    )
    assert shipped < -0.10
    assert abs(calibrated) < 0.5 * abs(shipped)


@pytest.mark.parametrize("chip", ["l40s", "rtx-pro-6000"])
@pytest.mark.parametrize(
    ("truth", "step_s"),
    [((1.2, 1.2, 1.2), 1e-3), ((1.2, 1.2, 1.0), 1e-3), ((0.9, 1.1, 1.0), 0.5e-3), ((0.85, 0.9, 0.95), 1.5e-3)],
)
def test_does_not_stop_early(chip: str, truth: tuple[float, float, float], step_s: float) -> None:
    """Made-up logs on which small steps of derivatives saw nothing but a queue's leaps and ended 4% off."""
    found = fit([made(truth, step_s, chip=chip)], [META], chip)
    assert abs(found.after[0]) < 0.012
    other = made(truth, step_s, seed=9, chip=chip)
    assert other.first_token_s is not None
    assert other.last_token_s is not None
    run = Replay(other, META, chip).run(engine.process("vllm", "", found.logs, found.step_s))
    ratio = (run.last_token_s - run.first_token_s).sum() / (other.last_token_s - other.first_token_s).sum()
    assert abs(np.log(ratio)) < 0.02


@pytest.mark.parametrize("cold_s", [0.0, 0.4])
def test_a_first_step_that_loads_kernels(cold_s: float) -> None:
    """It holds up the requests that come meanwhile, and is told from a log by the first request alone."""
    log = made((1.0, 1.0, 1.0), STEP_S, cold_s=cold_s)
    assert fit([log], [META], "l40s").cold_s == pytest.approx(cold_s, abs=2e-3)
    replay = Replay(log, META, "l40s")
    warm, cold = (replay.run(engine.process("vllm", cold_s=seconds)) for seconds in (0.0, 0.4))
    late = cold.first_token_s - warm.first_token_s
    assert late[0] == pytest.approx(0.4, abs=0.2)
    assert np.all(cold.first_token_s > 0.4)
    assert late[log.traffic.arrival_s > 5.0].mean() < 0.1


def test_dense_products_count_half_for_other_kernels() -> None:
    shown = engine.process("vllm", "", np.log([1.21, 1.44, 1.0]))
    assert (shown.weights["gemm"], shown.weights["head"]) == pytest.approx((1.21, 1.21))
    assert shown.weights["experts"] == shown.weights["block_gemm"] == pytest.approx(1.1)
    assert (shown.prefill_weights["gemm"], shown.prefill_weights["experts"]) == pytest.approx((1.44, 1.2))


def test_a_log_of_the_prior_changes_nothing() -> None:
    found = fit([made((1.0, 1.0, 1.0), engine.process("vllm").graph_s)], [META], "l40s")
    assert np.abs(found.logs).max() < 1e-3
    assert found.step_s == pytest.approx(engine.process("vllm").graph_s, rel=1e-2)


def test_what_counts_for_little_moves_it_little(monkeypatch: pytest.MonkeyPatch) -> None:
    """The more a log counts, the further from the prior the most probable constants lie and the nearer to the log; which of them
    moves most, a log of one load leaves open."""
    log = made((1.2, 1.2, 1.2), 1.0e-3)
    strong = fit([log], [META], "l40s")
    monkeypatch.setattr(calibrate_log, "INDEPENDENT", 2.0)
    weak = fit([log], [META], "l40s")
    far = [np.hypot(np.linalg.norm(f.logs / PRIOR), (f.step_s - STEP_S) / STEP_SIGMA_S) for f in (weak, strong)]
    assert 0.1 < far[0] < 0.5 * far[1]
    assert abs(strong.after[0]) < 0.5 * abs(weak.after[0]) < 0.5 * abs(weak.before[0])


def test_refuses_what_teaches_nothing() -> None:
    log = made((1.0, 1.0, 1.0), 1e-3, requests=20)
    with pytest.raises(TrivetError, match="first_token_ts"):
        fit([replace(log, first_token_s=None)], [META], "l40s")
    with pytest.raises(TrivetError, match="no log"):
        fit([], [], "l40s")
    short = replace(log, traffic=replace(log.traffic, output_tokens=np.full(20, 3)))
    with pytest.raises(TrivetError, match="output tokens"):
        fit([short], [META], "l40s")


def test_a_profile_is_used_for_its_chip_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = made((1.25, 1.25, 1.25), 2e-3)
    before = predict(log, META, "l40s")[0]
    (tmp_path / "engines").mkdir()
    (tmp_path / "engines" / "mine.json").write_text(fit([log], [META], "l40s").text())
    monkeypatch.setenv("TRIVET_CATALOGUE", str(tmp_path))
    after, other = predict(log, META, "l40s")[0], predict(log, META, "a10")[0]
    assert after.last_token_s.max() > before.last_token_s.max()
    monkeypatch.delenv("TRIVET_CATALOGUE")
    assert np.array_equal(other.last_token_s, predict(log, META, "a10")[0].last_token_s)


def test_which_constants_a_chip_takes() -> None:
    log = made((1.0, 1.0, 1.0), 1e-3, requests=20)
    assert constants_of(Replay(log, META, "h100")) == engine.profile("vllm", "0.19.0")
    assert constants_of(Replay(log, META, "l40s")).weights["gemm"] == 1.0
    calibrated, alone = (constants_of(Replay(log, META, "rtx-4090"), own).weights["gemm"] for own in (True, False))
    assert calibrated != alone == 1.0


def test_the_host_works_beside_the_device_only_where_the_log_says_so() -> None:
    log = made((1.0, 1.0, 1.0), 1e-3, requests=20)
    for stated in (True, False):
        meta = {**META, "resolved_config": {"scheduler_config": {"async_scheduling": stated}}}
        assert constants_of(Replay(log, meta, "rtx-4090")).overlap is stated


@pytest.mark.parametrize(("chip", "stem"), [("rtx-4090", "vllm_rtx4090"), ("rtx-pro-6000", "vllm_rtxpro6000")])
def test_shipped_profiles_are_those_of_the_logs(shared_data: Path, tmp_path: Path, chip: str, stem: str) -> None:
    out = tmp_path / "profile.json"
    log = shared_data / "requests" / f"{stem}_llama-3.1-8b.jsonl"
    done = CliRunner().invoke(app, ["--requests", str(log), "--chip", chip, "-o", str(out), "--json"])
    assert done.exit_code == 0, done.output
    # Threads of linear algebra move the last bits, and a queue's leaps make that a fraction of a per cent of the factors.
    found, shipped = (json.loads(p.read_text())["factors"] for p in (out, data_folder() / "engines" / f"vllm-{chip}.json"))
    assert found.pop("step_s") == pytest.approx(shipped.pop("step_s"), rel=0.15)
    assert found.pop("cold_s") == pytest.approx(shipped.pop("cold_s"), abs=0.002)
    assert found == pytest.approx(shipped, rel=0.02)
    assert abs(json.loads(done.stdout)["logs"][0]["TPOT error calibrated"]) < 0.01
