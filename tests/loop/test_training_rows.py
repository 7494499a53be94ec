"""Rows of measurements: reading, predicting, leaving out; the shipped calibration against its own claims."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import numpy as np
import pytest

from trivet.cloud.training.profile import Constants, shipped
from trivet.cloud.training.step import train_step
from trivet.errors import TrivetError
from trivet.loop import calibrate_training, predict_training, validate_training
from trivet.loop.predict_training import parse, predict, read_rows

ROW = {
    "id": "x",
    "source": "a table",
    "chip": "h100_80gb",
    "num_chips": "64",
    "model": "LLAMA3_70B",
    "seq_len": "8192",
    "precision": "FP8",
    "global_batch": "256",
    "micro_batch": "1",
    "tp": "4",
    "pp": "8.0",
    "cp": "1",
    "vp": "5",
    "ep": "n/a",
    "task": "pre-training",
}


def test_cells_read_as_people_write_them() -> None:
    job = parse(ROW).job
    assert (job.split.tp, job.split.pp, job.split.vp, job.split.dp, job.split.ep) == (4, 8, 5, 2, 1)
    assert job.precision == "fp8"
    assert job.chip.name == "h100"
    assert job.zero == 1
    assert (
        parse({"id": "1", "chip": "a100_80gb", "num_chips": "8", "model": "MPT-7b", "sharding": "FULL_SHARD"}).job.zero
        == 3
    )


@pytest.mark.parametrize(
    ("text", "zero", "framework"),
    [
        ("FULL_SHARD", 3, "fsdp"),
        ("SHARD_GRAD_OP", 2, "fsdp"),
        ("HYBRID_SHARD", 3, "fsdp"),
        ("NO_SHARD", 0, "fsdp"),
        ("ZeRO-2", 2, "deepspeed"),
        ("64", 3, "megatron"),
        ("0", 1, "megatron"),
        ("n/a", 1, "megatron"),
    ],
)
def test_sharding_texts(text: str, zero: int, framework: str) -> None:
    job = parse({"id": "1", "chip": "h100", "num_chips": "64", "model": "LLAMA3_8B", "sharding": text}).job
    assert (job.zero, job.framework) == (zero, framework)
    assert job.shard_group == (8 if text == "HYBRID_SHARD" else 0)


@pytest.mark.parametrize(
    ("column", "value", "note"),
    [
        ("precision", "quantum", "precision"),
        ("sharding", "SOMEHOW", "sharding"),
        ("recompute", "sometimes", "recompute"),
    ],
)
def test_unknown_free_text_takes_the_default_and_says_so(column: str, value: str, note: str) -> None:
    found = parse({**ROW, column: value})
    assert any(note in n for n in found.notes)
    assert train_step(found.job).tokens_per_s_per_chip > 0


@pytest.mark.parametrize(
    ("column", "value", "word"),
    [
        ("chip", "abacus", "chip"),
        ("model", "mystery", "model"),
        ("num_chips", "10", "num_chips"),
        ("tp", "two", "tp"),
        ("tp", "0", "tp"),
        ("tp", "-4", "tp"),
        ("params", "many", "params"),
        ("node_network_gbps", "x", "node_network_gbps"),
        ("model", "", "model"),
        ("chip", "", "chip"),
    ],
)
def test_a_row_that_cannot_be_predicted_says_why_and_the_others_go_on(column: str, value: str, word: str) -> None:
    bad, good = predict([{**ROW, column: value}, ROW])
    assert bad.result is None
    assert word in bad.error
    assert good.result is not None
    assert not good.error


def test_the_answer_file_has_its_columns_and_ordered_intervals() -> None:
    lines = list(csv.DictReader(io.StringIO(predict_training.csv_text(predict([ROW, {**ROW, "chip": "?"}])))))
    assert tuple(lines[0]) == predict_training.COLUMNS_OUT
    assert (
        float(lines[0]["tokens_per_s_per_chip_lo"])
        < float(lines[0]["tokens_per_s_per_chip"])
        < float(lines[0]["tokens_per_s_per_chip_hi"])
    )
    assert lines[1]["tokens_per_s_per_chip"] == ""
    assert lines[1]["error"]


def test_recompute_that_is_not_given_is_the_least_that_fits() -> None:
    assert parse(ROW).job.recompute == "none"
    tight = parse({**ROW, "micro_batch": "4"})
    assert tight.job.recompute != "none"
    assert train_step(tight.job).fits
    assert any("recompute" in n for n in tight.notes)


def test_a_size_alone_gives_a_shape_and_a_note() -> None:
    found = parse({**ROW, "model": "Unheard-13b", "params": "13e9"})
    assert found.job.architecture.parameters == pytest.approx(13e9, rel=0.05)
    assert any("derived" in n for n in found.notes)


def test_a_file_that_is_no_table_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("a,b\n1,2\n")
    with pytest.raises(TrivetError, match="no column 'id'"):
        read_rows(tmp_path / "x.csv")
    with pytest.raises(TrivetError, match="cannot read"):
        read_rows(tmp_path / "absent.csv")


# --- against the measured runs
@pytest.fixture(scope="module")
def measured(shared_data: Path) -> list[dict[str, str]]:
    return read_rows(shared_data / "training_measured.csv")


def test_every_row_that_ran_is_predicted_and_fits(measured: list[dict[str, str]]) -> None:
    answers = predict(measured)
    assert all(a.result is not None for a in answers)
    assert [a.id for a in answers if a.result is not None and not a.result.fits] == []


def test_shipped_constants_hold_their_error_and_cover(measured: list[dict[str, str]]) -> None:
    checked, failed = validate_training.check(measured, "nothing")
    summary = validate_training.summarise(checked)["all"]
    assert not failed
    assert summary["median_error"] < 0.05
    assert summary["p90_error"] < 0.15


def test_a_model_left_out_is_predicted_within_the_bar(measured: list[dict[str, str]]) -> None:
    found, _ = calibrate_training.samples(measured)
    rest = [s for s in found if s.model != "LLAMA3_70B"]
    constants = calibrate_training.fit(rest, shipped(), evaluations=2)
    errors = calibrate_training.log_errors([s for s in found if s.model == "LLAMA3_70B"], constants)
    assert np.median(np.abs(errors)) < 0.07


def test_fitting_recovers_constants_from_rows_that_they_made(measured: list[dict[str, str]]) -> None:
    found, _ = calibrate_training.samples(measured[:60:3])
    truth = calibrate_training.put(Constants(sustained=shipped().sustained), {"stream": 0.6, "gemm.bf16": 0.9})
    made = [calibrate_training.replace_measured(s, truth) for s in found]
    start = Constants(sustained=shipped().sustained)
    fitted = calibrate_training.fit(made, start, evaluations=8)
    before, after = (np.mean(np.abs(calibrate_training.log_errors(made, c))) for c in (start, fitted))
    assert after < 0.25 * before


def test_too_few_rows_are_judged_by_the_shipped_constants(measured: list[dict[str, str]]) -> None:
    checked, _ = validate_training.check(measured[:5], "model")
    assert len(checked) == 5
    with pytest.raises(TrivetError, match="hold_out"):
        validate_training.check(measured[:5], "sometimes")
