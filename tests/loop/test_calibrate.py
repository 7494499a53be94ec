"""Operator calibration: it finds what made its data, repeats itself, covers what it left out; predict, measure, calibrate."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from trivet.chip import residual
from trivet.chip.catalogue import read_chip
from trivet.errors import TrivetError
from trivet.loop import calibrate, predict_operators, validate_operators
from trivet.loop.calibrate_chip import calibrate_chip, entry_text
from trivet.loop.fit_operators import Parts, Recipe, Trained, take_apart, train
from trivet.loop.fit_typical import with_hosts
from trivet.loop.measure import Measured, catalogue_entry
from trivet.loop.operator_rows import active_share, load_imbalance
from trivet.loop.operator_tables import Samples
from trivet.units import Z80

SMALL = Recipe((16,), 12, 256, 1e-2)


def made_up(rows: int = 600, seed: int = 1) -> Samples:
    """Kernels of five chips in three families whose true offsets are known: family + library, no network."""
    rng = np.random.default_rng(seed)
    chips = {"a1": ("fa", 0.1), "a2": ("fa", 0.1), "b1": ("fb", 0.3), "c1": ("fc", 0.2), "c2": ("fc", 0.2)}
    parts = []
    for chip, (family, offset) in chips.items():
        for library, more in (("vllm", 0.0), ("sglang", 0.2)):
            compute, memory = 10 ** rng.uniform(-7, -3, rows), 10 ** rng.uniform(-7, -3, rows)
            total = offset + more
            seconds = 2e-6 + ((compute * np.exp(total)) ** 4 + (memory * np.exp(0.2)) ** 4) ** 0.25
            x = np.column_stack([np.log(compute), np.log(memory)]).astype(np.float32)
            parts.append(
                (
                    x,
                    np.column_stack([compute, memory, np.full(rows, 2e-6)]),
                    seconds * np.exp(0.02 * rng.standard_normal(rows)),
                    chip,
                    family,
                    library,
                )
            )
    column = {i: np.concatenate([np.full(rows, p[i]) for p in parts]) for i in (3, 4, 5)}
    x, base, seconds = (np.concatenate([p[i] for p in parts]) for i in (0, 1, 2))
    ones = np.column_stack([column[5] == "vllm", column[5] == "sglang", np.zeros(len(x)), np.ones(len(x))]).astype(
        np.float32
    )
    return Samples(
        "gemm",
        ("bf16",),
        np.hstack([x, ones]),
        base,
        seconds,
        column[3],
        column[4],
        column[5],
        np.full(len(x), "bf16"),
        np.zeros((len(x), 2)),
    )


def test_fit_recovers_and_leaves_out_fairly() -> None:
    data = made_up()
    fit = calibrate.fit_kind(data, SMALL)
    inside = np.median(np.abs(fit.inside_s / data.seconds - 1))
    outside = np.median(np.abs(fit.outside_s / data.seconds - 1))
    assert inside < 0.03
    assert inside < outside < 0.15
    covered = np.abs(np.log(data.seconds / fit.outside_s)) <= Z80 * fit.outside_sigma
    assert 0.7 < covered.mean() < 0.9


def test_the_same_data_give_the_same_bits() -> None:
    data = made_up(200)
    first, second = train(data, SMALL), train(data, SMALL)
    assert all(np.array_equal(a, b) for a, b in zip(first.weights, second.weights, strict=True))
    assert first.offsets.keys() == second.offsets.keys()
    assert all(np.array_equal(first.offsets[k], second.offsets[k]) for k in first.offsets)


def test_offsets_taken_apart_add_up() -> None:
    data = made_up()
    trained = train(data, SMALL)
    parts = take_apart(trained, data, SMALL)
    for key, offset in trained.offsets.items():
        chip, pair = key.split("|", 1)
        total = parts.group[pair] + parts.family[{"a": "fa", "b": "fb", "c": "fc"}[chip[0]]] + parts.chip[chip]
        assert np.abs(total[0] - offset[0]) < 0.12


def test_imbalance_of_experts() -> None:
    tokens = np.array([64.0, 4096.0])
    cv, skew = load_imbalance("balanced", tokens, np.array([8.0, 8.0]), np.array([128.0, 128.0]))
    assert np.all(cv == 0) and np.all(skew == 1)
    cv, skew = load_imbalance("power_law_1.01", tokens, np.array([8.0, 8.0]), np.array([128.0, 128.0]))
    # Log-uniform loads on [1, R]: cv^2 = ln(R) (R + 1) / (2 (R - 1)) - 1.
    top = 0.8 * 4096
    assert np.isclose(cv[1] ** 2, np.log(top) * (top + 1) / (2 * (top - 1)) - 1, rtol=0.05)
    assert np.all((skew > 1) & (skew <= 8))


def test_experts_that_get_a_token_as_the_tables_dealt_them() -> None:
    tokens, experts = np.array([1.0, 16.0, 48.0, 1024.0]), 384.0
    dealt = active_share("balanced", tokens, 8.0, experts) * experts
    assert np.allclose(dealt, [8, 128, 384, 384])  # one by one, where chance would meet 8, 110, 244 and 384
    drawn = active_share("power_law_1.01", tokens, 8.0, experts) * experts
    # H100's INT4 experts take 115 and 200 of the balanced run's time an expert at 16 and 48 tokens.
    assert np.allclose(drawn[1:3], [115, 200], rtol=0.08) and drawn[0] == 8 and drawn[3] < 384
    assert np.all(np.diff(drawn) > 0)
    assert np.allclose(active_share("power_law_1.0", tokens, 8.0, experts) * experts, drawn, rtol=0.02)
    assert np.all(active_share("", tokens, 8.0, experts) == 0)


def test_launches_without_a_graph_go_beside_the_devices_work() -> None:
    ones, none = np.ones(3), np.zeros((3, 3))
    host, device = 30e-6, np.array([3e-6, 30e-6, 300e-6])
    value, compute, memory, launch, floor = residual.combine(device, device / 100.0, host, none, join=6.0)
    assert np.allclose(value, [30e-6, 2 ** (1 / 6) * 30e-6, 300e-6], rtol=0.01)
    assert np.allclose(compute + memory + launch, ones) and floor == pytest.approx(np.full(3, host))
    assert launch[0] > 0.99 and abs(launch[1] - 0.5) < 0.01 and launch[2] < 0.01
    after = residual.combine(device, device / 100.0, host, none)[0]
    assert np.allclose(after, host + device, rtol=0.01)


def test_an_unseen_chip_has_the_median_of_the_hosts() -> None:
    names = ("a|vllm_eager|all_reduce_eager", "b|vllm_eager|all_reduce_eager", "c|vllm_eager/pcie|all_reduce_eager")
    trained = Trained((), (), np.zeros(1, np.float32), np.ones(1, np.float32), {n: np.array([0.3, 0.1, f]) for n, f in zip(
        names, (0.7, 0.0, -0.1), strict=True)})  # fmt: skip
    parts = Parts({"vllm_eager|all_reduce_eager": np.array([0.4, 0.2, 0.6]), "vllm|all_reduce": np.ones(3),
        "vllm_eager/pcie|all_reduce_eager": np.zeros(3)}, np.zeros((1, 3)), np.zeros(1), {}, {})  # fmt: skip
    found = with_hosts(parts, trained).group
    assert np.allclose(found["vllm_eager|all_reduce_eager"], [0.4, 0.2, 0.0])
    assert np.allclose(found["vllm_eager/pcie|all_reduce_eager"], [0.0, 0.0, 0.0])
    assert np.allclose(found["vllm|all_reduce"], 1.0)


ROWS = """id,chip,engine,op,dtype,m,n,k,batch_size,isl,step,num_heads,num_key_value_heads,head_dim,num_gpus,message_size
1,h100_sxm,vllm,gemm,bfloat16,16.0,4096,4096,,,,,,,,
2,h100_sxm,trtllm,generation_attention,bfloat16,,,,32,1,4095,32,8,128,,
3,h100_sxm,nccl,all_reduce,half,,,,,,,,,,8,67108864
4,nochip,vllm,gemm,bfloat16,16,4096,4096,,,,,,,,
5,h100_sxm,vllm,gemm,bfloat16,16,,4096,,,,,,,,
6,h100_sxm,lmdeploy,gemm,bfloat16,16,4096,4096,,,,,,,,
7,h100_sxm,vllm,gemm,bfloat16,-3,4096,4096,,,,,,,,
8,h100_sxm,vllm,attention_context,fp8,,,,2,4096,0,32,8,128,,
"""


def test_predict_rows(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text(ROWS, encoding="utf-8")
    answers = predict_operators.predict(predict_operators.read_csv(path))
    by = {a.id: a for a in answers}
    assert [a.id for a in answers] == list("12345678")
    for name in "12368":
        assert by[name].value_s is not None, by[name].note
        assert by[name].lo_s < by[name].value_s < by[name].hi_s  # type: ignore[operator]
    assert "nochip" in by["4"].note and by["4"].value_s is None
    assert by["5"].note.startswith("n:")
    assert "lmdeploy" in by["6"].note
    assert by["7"].value_s is None and "m" in by["7"].note
    # 64 Mi elements of two bytes over 8 chips: 134 MB, measured 0.58 ms.
    assert 0.5e-3 < by["3"].value_s < 0.66e-3  # type: ignore[operator]
    text = predict_operators.csv_text(answers)
    assert text.splitlines()[0] == "id,latency_us,latency_us_lo,latency_us_hi,error"


def test_a_file_without_op_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("id,chip\n1,h100\n", encoding="utf-8")
    with pytest.raises(TrivetError, match="op"):
        predict_operators.read_csv(path)


def test_command_exits_zero_whatever_rows_fail(tmp_path: Path) -> None:
    from trivet.apps.cli.predict.operators import app

    path, out = tmp_path / "rows.csv", tmp_path / "out.csv"
    path.write_text(ROWS, encoding="utf-8")
    done = CliRunner().invoke(app, [str(path), "-o", str(out), "--json"])
    assert done.exit_code == 0
    assert json.loads(done.stdout)["failed"] == 3
    assert len(out.read_text(encoding="utf-8").splitlines()) == 9


def test_measured_entry_is_a_chip(tmp_path: Path) -> None:
    found = Measured(
        "Some CPU",
        "numpy",
        "fp32",
        {"bench_gemm_4096_s": 2.0, "bench_gemv_s": 0.15, "bench_gemm_384_s": 1.7e-3},
        16e9,
        4,
    )
    path = tmp_path / "local.yaml"
    path.write_text(catalogue_entry(found), encoding="utf-8")
    part = read_chip(path)
    assert part.role == "cpu" and part.get("bench_gemv_s") == 0.15
    assert part.facts["peak_flops_fp32"].lo < part.get("peak_flops_fp32") < part.facts["peak_flops_fp32"].hi  # type: ignore[operator]
    from trivet.chip.timing import time
    from trivet.operators import Gemm

    assert abs(np.log(time(Gemm("g", 4096.0, 4096.0, 4096.0, "fp32"), part).value_s / 2.0)) < 0.15


def test_user_microbenchmarks_shrink_the_spread(tmp_path: Path) -> None:
    done = calibrate_chip("h20", {"bench_gemm_4096_s": 1.02e-3, "bench_gemv_s": 0.30e-3, "bench_gemm_384_s": 5.2e-6})
    changed = {c.operator: c for c in done.changes}
    large = changed["prompt product 4096 x 5120 x 5120"]
    assert large.after_sigma < 0.9 * large.before_sigma
    unseen = calibrate_chip(
        "zhenwu-810e", {"bench_gemm_4096_s": 1.039e-3, "bench_gemv_s": 0.4716e-3, "bench_gemm_384_s": 5.05e-6}
    )
    assert np.mean([c.after_sigma / c.before_sigma for c in unseen.changes]) < 0.9
    path = tmp_path / "h20-mine.yaml"
    path.write_text(entry_text(done), encoding="utf-8")
    assert read_chip(path).get("bench_gemm_4096_s") == 1.02e-3
    with pytest.raises(TrivetError, match="no measurement"):
        calibrate_chip("h20", {})


def test_scores_count_groups_alike() -> None:
    labels = {
        n: np.array(v)
        for n, v in {
            "op": ["g"] * 4,
            "dtype": ["x"] * 4,
            "chip": list("aaab"),
            "engine": ["e"] * 4,
            "family": ["f"] * 4,
        }.items()
    }
    data = validate_operators.Compared(
        np.ones(4), np.array([1.1, 1.1, 1.1, 1.5]), np.full(4, 0.5), np.full(4, 1.2), labels
    )
    assert np.isclose(validate_operators.pooled(data)[0].median_error, 0.3)
    assert np.isclose(validate_operators.scores(data, ("chip",))[0].coverage, 1.0)


def test_left_out_families_on_measured_kernels(shared_data: Path) -> None:
    """The golden level: a family known by its data sheet only. Small samples, so with room above what a full fit reaches."""
    fits = calibrate.calibrate_operators(shared_data / "kernels", ("gemm", "gemm_narrow", "collective"), rows=80)
    by = {s.group: s for s in validate_operators.pooled(validate_operators.from_fits(fits.values()))}
    assert by["gemm", "bf16"].median_error < 0.19
    assert by["gemm", "fp8"].median_error < 0.24
    assert 0.68 < by["gemm", "bf16"].coverage < 0.92
    for op in ("all_gather", "all_reduce"):
        assert by["collective", op].median_error < 0.45


def test_calibration_does_not_depend_on_the_number_of_threads(shared_data: Path) -> None:
    """The command sets one thread itself: the same scores to the last digit whatever the environment asks for."""
    import os
    import subprocess
    import sys

    program = "from trivet.apps.cli.main import main; main()"
    words = [sys.executable, "-c", program, "calibrate", str(shared_data / "kernels"), "--kinds", "scan"]
    told = [
        subprocess.run([*words, "--json"], env={**os.environ, "OPENBLAS_NUM_THREADS": n, "OMP_NUM_THREADS": n},
                       capture_output=True, text=True, check=True).stdout
        for n in ("1", "2")
    ]  # fmt: skip
    assert told[0]
    assert told[0] == told[1]
