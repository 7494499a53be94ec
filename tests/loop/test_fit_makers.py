"""Offsets of other makers' kernels: the shipped ones are the fit of the published table, and hold on it."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from trivet.apps.cli.calibrate import app
from trivet.chip import catalogue, residual
from trivet.chip.kernels import kind_of
from trivet.chip.makers import fitted, maker_profile
from trivet.chip.timing import time
from trivet.errors import TrivetError
from trivet.loop import fit_makers
from trivet.loop.fit_makers import HOSTED, LIBRARIES, Sample, whole_seconds

DATA = Path(__file__).parents[1] / "makers"


@pytest.fixture(scope="module")
def samples() -> list[Sample]:
    return [*fit_makers.read(DATA / "kernels.csv"), *fit_makers.read_attention(DATA / "attention.csv")]


def test_the_shipped_offsets_are_the_fit_of_the_table(samples: list[Sample]) -> None:
    shipped = resources.files("trivet.data.calibration").joinpath("makers.json").read_text("utf-8")
    assert fit_makers.text(fit_makers.fit(samples)) == shipped


def test_published_kernels_are_timed_within_a_quarter(samples: list[Sample]) -> None:
    errors: dict[tuple[str, str], list[float]] = {}
    for sample in samples:
        chip, operator = catalogue.chip(sample.chip), sample.operator()
        for library in LIBRARIES:
            if (kind_of(operator, library), library, sample.precision) in HOSTED:
                continue
            off = np.abs(np.asarray(time(operator, chip, library).value_s) / whole_seconds(sample, chip) - 1.0)
            errors.setdefault((chip.family, sample.kind.partition("+")[0]), []).extend(off.tolist())
    assert set(errors) == {(f, k) for f in ("cdna3", "cdna4") for k in ("gemm", "moe", "gqa", "mla")}
    for key, found in errors.items():
        limit = 0.20 if key[1] in ("gemm", "moe") else 0.40
        assert np.median(found) < limit, key


def test_one_power_joins_compute_and_memory_of_all_products() -> None:
    powers = {kind: {found["power"] for names in fitted().values() for name, found in names.items() if name.startswith(kind)}
              for kind in ("gemm", "moe")}  # fmt: skip
    assert all(len(found) == 1 and found < {*fit_makers.POWERS} for found in powers.values())
    assert all(power < residual.SOFT_MAX_POWER for found in powers.values() for power in found)


def test_a_fitted_kernel_is_surer_than_a_guess() -> None:
    chip = catalogue.chip("mi300x")
    known, guessed = (
        maker_profile(chip, "gemm_narrow", "sglang", "fp8_block"),
        maker_profile(chip, "scan", "sglang", "scan"),
    )
    assert known.fitted and not guessed.fitted
    assert (known.sigma[:2] < 0.4).all()


def test_attention_of_cdna3_leans_on_cdna4_with_more_spread() -> None:
    old, new = (
        maker_profile(catalogue.chip(name), "mla_prefill", "sglang", "bf16+bf16") for name in ("mi300x", "mi355x")
    )
    assert (old.offset == new.offset).all() and (old.sigma > new.sigma).all()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("chip,kind\nmi300x,gemm\n", "no table"),
        ("chip,kind,precision,rows,columns,depth,experts,top_k,us\nmi300x,gemm,fp8,1,2,3,,,-1\n", "no kernel"),
    ],
)
def test_a_bad_table_is_named(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "kernels.csv"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(TrivetError, match=words):
        fit_makers.read(path)
    with pytest.raises(TrivetError, match="no table of attention"):
        fit_makers.read_attention(path)


def test_the_command_writes_what_is_shipped(tmp_path: Path) -> None:
    out = tmp_path / "makers.json"
    answer = CliRunner().invoke(app, [str(DATA), "--kinds", "makers", "-o", str(out)])
    assert answer.exit_code == 0, answer.output
    shipped = resources.files("trivet.data.calibration").joinpath("makers.json").read_text("utf-8")
    assert out.read_text("utf-8") == shipped
