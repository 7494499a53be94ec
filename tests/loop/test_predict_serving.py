"""Reading rows, predicting them, and the file that comes out."""

from __future__ import annotations

import csv
import io
import math
import time
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from trivet.chip.catalogue import chip
from trivet.cloud.deployment import Deployment, EngineSettings
from trivet.errors import TrivetError
from trivet.loop.calibrate_residual import (
    LeftOut,
    Task,
    fit_scales,
    folds,
    score_and_gradient,
    share_and_lean,
    widths_of,
)
from trivet.loop.predict_serving import COLUMNS, csv_text, predict, serving_point
from trivet.loop.serving_features import CONTINUOUS, NAMED, Features
from trivet.loop.serving_model import Compiler, steady
from trivet.loop.serving_residual import (
    CAMPAIGN,
    FORMS,
    Process,
    Widths,
    condition_exactly,
    covariance,
    encode,
    fit_process,
    vocabulary_of,
)
from trivet.loop.serving_rows import Case, Table, Unread, read_csv, understand
from trivet.model.config import read
from trivet.model.parallel import Layout

ROW = {
    "id": "a", "chip": "h200_sxm", "engine": "vllm", "engine_version": "0.19.0", "model": "Qwen/Qwen3-32B", "weights": "fp8",
    "mode": "agg", "isl": "1024", "osl": "1024", "concurrency": "16", "batch_size": "16", "tp": "4", "measured_on": "2026-04-22",
}  # fmt: skip


def case(**changes: str) -> Case:
    found = understand({**ROW, **changes})
    assert isinstance(found, Case), found
    return found


def test_integers_may_be_floats_and_columns_absent() -> None:
    row = {"chip": "h100", "model": "Qwen3-32B", "isl": "1024.0", "osl": "128.0", "concurrency": "8.0", "tp": "2.0"}
    found = understand(row, 7)
    assert isinstance(found, Case)
    assert (found.id, found.isl, found.pools[0].deployment.layout) == ("7", 1024, Layout(tp=2))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"chip": "h900"}, "chip"), ({"model": "Nobody/Nothing-7B"}, "Nothing"), ({"isl": ""}, "isl"), ({"osl": "-3"}, "osl"),
        ({"tp": "4.5"}, "tp"), ({"concurrency": "", "batch_size": ""}, "concurrency"), ({"mode": "both"}, "mode"),
        ({"mode": "disagg"}, "prefill_workers"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_says_which_column(changes: dict[str, str], reason: str) -> None:
    found = understand({**ROW, **changes})
    assert isinstance(found, Unread)
    assert reason in found.reason


def test_pools_under_attention_data_parallel_spread_their_experts() -> None:
    pools = {"prefill_workers": "1", "prefill_tp": "8", "decode_workers": "1", "decode_tp": "1", "decode_attention_dp": "8",
             "decode_moe_tp": "8", "decode_moe_ep": "1", "decode_batch_size": "4"}  # fmt: skip
    found = case(model="deepseek-ai/DeepSeek-R1", mode="disagg", tp="", batch_size="", **pools)
    assert (found.pools[1].deployment.layout.moe_ep, found.pools[1].deployment.layout.moe_tp) == (8, 1)
    assert any("attention data parallel" in note for note in found.notes)
    assert found.pools[0].deployment.layout.moe_tp == 8


def test_speculation_that_rows_do_not_state() -> None:
    """The benchmark's configuration of the date tells it: by the build, else by what was new that day."""
    from trivet.loop.serving_speculation import unstated

    row = {"chip": "b200_sxm", "engine": "trtllm", "engine_version": "1.2.0rc6.post3", "model": "deepseek-ai/DeepSeek-R1",
           "weights": "fp8", "tp": "8", "concurrency": "16", "batch_size": "16", "measured_on": "2026-02-05"}  # fmt: skip
    sure = case(**row)
    assert (unstated(sure).share, unstated(sure).drafts) == (1.0, 3)
    plain = [{"engine_version": "1.2.0rc6.post2"}, {"measured_on": ""}, {"measured_on": "recent"}, {"isl": "2048"},
             {"model": "Qwen/Qwen3-32B"},
             {"engine_version": "1.1.0rc2.post2", "measured_on": "2025-12-15"}]  # fmt: skip
    for other in [case(**{**row, **change}) for change in plain]:
        assert unstated(other).share == 0.0
    came = case(**{**row, "engine_version": "1.1.0rc2.post2", "measured_on": "2026-01-14"})
    assert unstated(came).share == 1.0
    both = {"engine": "sglang", "engine_version": "0.5.9", "measured_on": "2026-03-25", "osl": "8192"}
    assert unstated(case(**{**row, **both})).share == 0.5
    assert unstated(case(**{**row, **both, "concurrency": "128", "batch_size": "128"})).share == 1.0


def test_speculation_pays_and_less_where_prompts_take_the_time() -> None:
    from trivet.loop.serving_model import Compiler, steady

    row = {"chip": "b200_sxm", "engine": "trtllm", "engine_version": "1.2.0rc6.post3", "model": "deepseek-ai/DeepSeek-R1",
           "weights": "fp8", "tp": "8", "concurrency": "16", "batch_size": "16", "measured_on": "2026-02-05"}  # fmt: skip

    def gain(**load: str) -> float:
        found = case(**{**row, **load})
        return float(steady(found, Compiler(speculation=False)).tpot_s / steady(found, Compiler()).tpot_s)

    assert 1.3 < gain(isl="8192", osl="1024") < gain(isl="1024", osl="8192") < 2.5


@pytest.mark.parametrize(
    ("changes", "versions"),
    [
        ({"engine": "trtllm", "chip": "h100_sxm", "measured_on": ""}, ("1.0.0", "1.1.0")),
        ({"chip": "b200_sxm", "model": "Qwen/Qwen3-30B-A3B", "weights": "bf16", "moe_ep": "4"}, ("0.19.0", "0.20.0")),
    ],
)
def test_a_batch_keeps_versions_with_other_kernels_apart(changes: dict[str, str], versions: tuple[str, str]) -> None:
    old, new = (case(**changes, engine_version=version) for version in versions)
    alone = steady(new, Compiler()).tpot_s
    batch = Compiler()
    before = steady(old, batch).tpot_s
    assert steady(new, batch).tpot_s == alone != before


def test_unknown_engine_and_labels_fall_back_and_say_so() -> None:
    found = case(engine="lmdeploy", weights="q5_k_m")
    assert found.group["engine"] == "vllm"
    assert "lmdeploy" in " ".join(found.notes)
    assert "q5_k_m" in " ".join(found.notes)


def test_precision() -> None:
    assert case(weights="").group["precision"] == "bf16"
    assert case(weights="fp8").group["precision"] == "fp8"
    blocks = case(model="deepseek-ai/DeepSeek-R1", weights="fp8", tp="8")
    assert blocks.group["precision"] == "fp8_block"
    four = case(model="deepseek-ai/DeepSeek-R1", weights="nvfp4", tp="8", chip="b200")
    assert four.group["precision"] == "nvfp4"
    old = case(model="deepseek-ai/DeepSeek-R1", weights="nvfp4", tp="8")
    assert old.group["precision"] == "fp8_block"
    assert "no FP4 units" in " ".join(old.notes)


def test_ranks_follow_from_batch_and_experts() -> None:
    found = case(
        model="deepseek-ai/DeepSeek-R1", chip="b200", weights="nvfp4", tp="4", moe_tp="1", moe_ep="4", batch_size="4"
    )
    assert found.pools[0].deployment.layout == Layout(attention_dp=4, moe_ep=4)
    copies = case(batch_size="4")
    assert copies.pools[0].workers == 4


def test_answers_in_order_with_reasons() -> None:
    rows = [ROW, {**ROW, "id": "b", "chip": "h900"}, {**ROW, "id": "c", "concurrency": "64", "batch_size": "64"}]
    answers = predict(Table(rows))
    assert [a.id for a in answers] == ["a", "b", "c"]
    assert answers[1].tpot is None
    assert "h900" in answers[1].note
    for a in (answers[0], answers[2]):
        assert a.ttft is not None
        assert a.tpot is not None
        assert a.ttft.lo < a.ttft.value < a.ttft.hi
        assert a.tpot.lo < a.tpot.value < a.tpot.hi
    assert answers[2].tpot.value > answers[0].tpot.value  # type: ignore[union-attr]
    lines = list(csv.DictReader(io.StringIO(csv_text(answers))))
    assert tuple(lines[0]) == COLUMNS
    assert lines[1]["tpot_ms"] == ""
    assert float(lines[0]["tpot_ms"]) == pytest.approx(1e3 * answers[0].tpot.value, rel=1e-5)  # type: ignore[union-attr]


def test_other_makers_and_unpublished_fields_widen() -> None:
    base = {**ROW, "weights": "", "tp": "2", "measured_on": ""}
    known, sheet, hidden = predict(Table([base, {**base, "chip": "mi300x"}, {**base, "chip": "zhenwu-810e"}]))
    widths = [math.log(a.tpot.hi / a.tpot.lo) for a in (known, sheet, hidden) if a.tpot is not None]
    assert len(widths) == 3
    assert widths[2] > widths[1] * 0.99


def test_an_unknown_version_and_a_wide_interval_are_told() -> None:
    known, other, chip_, hidden = predict(
        Table([ROW, {**ROW, "engine_version": "9.9.9"}, {**ROW, "chip": "mi300x"}, {**ROW, "chip": "zhenwu-810e"}])
    )
    assert known.note == ""
    assert "vllm 9.9.9 has no profile" in other.note
    assert "no serving measurement" in chip_.note
    assert "is not published" in hidden.note


def test_point_for_a_plan() -> None:
    d = Deployment(read("Qwen/Qwen3-32B"), chip("h200"), Layout(tp=4), EngineSettings())
    few, many = serving_point(d, 1024, 512, [4, 64])
    assert many.output_tokens_per_s.value > 5 * few.output_tokens_per_s.value
    assert few.output_tokens_per_s.lo < few.output_tokens_per_s.value < few.output_tokens_per_s.hi


FORM = FORMS["tpot"]


def _features(n: int, seed: int = 0) -> Features:
    rng = np.random.default_rng(seed)
    names = np.array([[f"{k}{rng.integers(2)}" for k in NAMED] for _ in range(n)])
    return Features(rng.normal(size=(n, len(CONTINUOUS))), names)


def test_gradient_of_the_score() -> None:
    found, rng = _features(40), np.random.default_rng(1)
    masks = [mask for by in ("chip", "quarter") for mask in folds(found, by)]
    codes = encode(found, vocabulary_of(found), FORM)
    odd = np.where(found.named("chip") == "chip0", 3.0, 1.0)  # one factor a campaign
    task = Task(FORM, codes, 0.1 * rng.normal(size=40), rng.uniform(0, 0.01, 40), odd, rng.uniform(0.3, 1, 40), masks)
    logs = FORM.start() + 0.1
    _, gradient = score_and_gradient(logs, task)
    for i in range(len(logs)):
        step = np.zeros_like(logs)
        step[i] = 1e-5
        up, down = score_and_gradient(logs + step, task)[0], score_and_gradient(logs - step, task)[0]
        assert gradient[i] == pytest.approx((up - down) / 2e-5, rel=1e-3, abs=1e-4)


def test_covariance_by_groups_is_the_sum_of_its_terms() -> None:
    found, odd = _features(50), np.full(50, 2.0)
    codes, logs = encode(found, vocabulary_of(found), FORM), FORM.start()
    matrix = covariance(codes, codes, FORM, logs, odd)
    for a, b in [(0, 0), (3, 17), (20, 41)]:
        total = 0.0
        for j, (names, kernel) in enumerate(FORM.terms):
            if any(found.named(name)[a] != found.named(name)[b] for name in names):
                continue
            part = math.exp(2 * logs[j]) * (2.0 if names == CAMPAIGN and kernel != "short" else 1.0)
            if kernel:
                gap = (found.x[a] - found.x[b])[FORM.columns(kernel)] / np.exp(logs[FORM.lengths(kernel)])
                part *= math.exp(-0.5 * float(gap @ gap))
            total += part
        assert matrix[a, b] == pytest.approx(total, rel=1e-9)
    assert np.linalg.eigvalsh(matrix).min() > -1e-9


def test_single_precision_answers_as_double() -> None:
    found, target = _features(120), np.random.default_rng(2).normal(size=120) * 0.1
    process = fit_process(found.rows(np.arange(100)), target[:100], FORM, FORM.start())
    mean, deviation = process.predict(found)
    exact_mean, exact_deviation = condition_exactly(process, found)
    assert np.abs(mean - exact_mean).max() < 1e-4
    assert np.abs(deviation / exact_deviation - 1).max() < 1e-2


def test_residual_knows_what_it_saw_and_doubts_what_it_did_not() -> None:
    found, target = _features(60), np.full(60, 0.2)
    process = fit_process(found, target, FORM, FORM.start())
    mean, deviation = process.predict(found)
    assert np.abs(mean - 0.2).max() < 0.08
    stranger = Features(found.x + 40.0, np.full_like(found.names, "other"))
    far, doubt = process.predict(stranger)
    assert doubt.min() > deviation.max()
    assert np.all(np.abs(far) < np.abs(mean))
    assert (process.tier(stranger) == 2).all()
    assert (process.tier(found) == 0).all()


def test_an_odd_campaign_says_little_about_others() -> None:
    found = _features(80)
    odd_one = found.named("setup") == "setup0"
    target = np.where(odd_one, 1.5, 0.0)
    stranger = Features(found.x[:1], found.names[:1].copy())
    stranger.names[0, [NAMED.index(name) for name in ("model", "setup")]] = "other"

    def answer(factor: float) -> float:
        odd = np.where(odd_one, factor, 1.0)
        process: Process = fit_process(found, target, FORM, FORM.start(), None, odd)
        return float(process.predict(stranger)[0][0])

    assert answer(50.0) < 0.7 * answer(1.0)


def test_scales_carry_over_what_names_cannot() -> None:
    """An error that follows a mechanism, the same in all models, is found in a model left out."""
    found, rng = _features(160, 3), np.random.default_rng(4)
    target = 0.15 * np.sin(found.x[:, CONTINUOUS.index("launch")]) + 0.02 * rng.normal(size=160)
    logs, noise, odd = fit_scales(found, target, FORM, rounds=2, steps=8)
    mask = found.named("shape") == "shape0"
    process = fit_process(found.rows(~mask), target[~mask], FORM, logs, noise[~mask], odd[~mask])
    mean, _ = process.predict(found.rows(mask))
    assert np.abs(target[mask] - mean).mean() < 0.6 * np.abs(target[mask]).mean()


def test_the_value_leans_to_the_least_relative_error() -> None:
    """For a log-normal the least mean relative error is one variance below the median; the median stays the middle."""
    target = np.random.default_rng(6).normal(size=4000) * 0.7
    _, lean = share_and_lean(target, np.zeros(4000), np.full(4000, 0.3))
    assert 0.2 <= lean <= 1.0  # of a grid of quarters
    found = _features(60)
    widths = Widths(np.ones(3), np.full((3, 1), lean), (), np.ones((3, 1)))
    part = fit_process(found, target[:60], FORM, FORM.start(), None, None, widths).correct(found)
    assert np.all(part.value < part.middle)
    assert np.all(part.value > part.middle - 1.2815515655446004 * part.deviation)


def test_widths_cover_each_group_and_all() -> None:
    rng = np.random.default_rng(5)
    group = np.array(["vllm agg"] * 600 + ["trtllm disagg"] * 600)
    scale = np.where(group == "vllm agg", 0.1, 0.4)
    tier, campaign = np.ones(1200, dtype=np.int64), np.arange(1200) // 10
    left = LeftOut(scale * rng.normal(size=1200), np.zeros(1200), np.full(1200, 0.2), tier, group, campaign)
    widths = widths_of(left)
    index = np.array([widths.groups.index(g) for g in group])
    inside = np.abs(left.target) < 1.2815515655446004 * widths.factor[1, index] * left.deviation
    assert inside.mean() == pytest.approx(0.8, abs=0.01)
    for name in widths.groups:
        assert inside[group == name].mean() == pytest.approx(0.8, abs=0.03)
    assert (
        widths.factor[1, widths.groups.index("vllm agg")] < 0.4 * widths.factor[1, widths.groups.index("trtllm disagg")]
    )


def test_calibration_rows_are_met(shared_data: Path) -> None:
    """Golden level of the shipped fit on what it has seen, and every row with a known layout answered."""
    table = read_csv(shared_data / "serving_measured.csv")
    rows = [i for i, row in enumerate(table.rows) if row["layout_known"] == "1"][::7]
    part = Table([table.rows[i] for i in rows])
    answers = predict(part)
    assert all(a.tpot is not None for a in answers)
    error = [
        abs(1e3 * a.tpot.value / float(r["tpot_ms"]) - 1) for a, r in zip(answers, part.rows, strict=True) if a.tpot
    ]
    assert np.median(error) < 0.03


def test_ten_thousand_configurations_within_ten_seconds(shared_data: Path) -> None:
    table = read_csv(shared_data / "serving_measured.csv")
    rows = [
        {**row, "isl": str(int(row["isl"]) + k)} for k in range(8) for row in table.rows if row["layout_known"] == "1"
    ]
    predict(Table(rows[:20]))  # compile
    cpu, wall = time.process_time(), time.perf_counter()
    assert len(predict(Table(rows[:10_000]))) == 10_000
    # Linear algebra may use more cores than one, and the machine may be busy: the smaller of the two clocks.
    assert min(time.process_time() - cpu, time.perf_counter() - wall) < 10.0


def test_command(tmp_path: Path) -> None:
    from trivet.apps.cli.predict.serving import app

    source, out = tmp_path / "in.csv", tmp_path / "out.csv"
    with source.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(ROW))
        writer.writeheader()
        writer.writerows([ROW, {**ROW, "id": "b", "chip": "h900"}])
    result = CliRunner().invoke(app, [str(source), "-o", str(out), "--json"])
    assert result.exit_code == 0, result.output
    assert out.read_text().splitlines()[0] == ",".join(COLUMNS)
    assert '"failed": 1' in result.output
    source.write_text("a,b\n1,2\n")
    broken = CliRunner().invoke(app, [str(source), "-o", str(out)])
    assert isinstance(broken.exception, TrivetError)
