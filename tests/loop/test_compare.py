"""Chips on one operator and over several: probabilities are those of log-normals with factors that a chip's operators share."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from typer.testing import CliRunner

from trivet.apps.cli.chips import app
from trivet.loop.compare import Lead, Timed, by_kind, compare, overall


def test_a_chip_against_itself_is_even() -> None:
    found = compare("zhenwu-810e", "zhenwu-810e")
    for lead in (*found, *by_kind(found)):
        assert lead.probability == pytest.approx(0.5)
        assert lead.ratio == pytest.approx(1.0)


def test_sides_add_up_and_the_faster_leads() -> None:
    one, other = compare("zhenwu-810e", "a800"), compare("a800", "zhenwu-810e")
    for a, b in zip((*one, *by_kind(one)), (*other, *by_kind(other)), strict=True):
        assert a.probability + b.probability == pytest.approx(1.0)
        assert (a.probability > 0.5) == (a.ratio > 1.0)
    assert all(line.probability > 0.95 for line in by_kind(compare("b200", "a100-80gb")))


def test_probability_is_the_normal_one() -> None:
    lead = compare("zhenwu-810e", "h20")[0]
    z = math.log(lead.second.value_s / lead.first.value_s) / math.hypot(lead.first.log_sigma, lead.second.log_sigma)
    assert lead.probability == pytest.approx(0.5 * math.erfc(-z / math.sqrt(2)))


def test_shared_factors_do_not_average_out() -> None:
    alone, shared = Timed(1.0, 0.2, (0.0,) * 4), Timed(1.0, 0.0, (0.2, 0.0, 0.0, 0.0))
    even = Timed(1.1, 0.0, (0.0,) * 4)
    own = overall([Lead("k", str(i), alone, even) for i in range(4)])
    common = overall([Lead("k", str(i), shared, even) for i in range(4)])
    assert own.log_sigma == pytest.approx(0.1)
    assert common.log_sigma == pytest.approx(0.2)
    assert own.probability > common.probability > 0.5


def test_command(tmp_path: Path) -> None:
    run = CliRunner()
    found = run.invoke(app, ["zhenwu-810e", "a800", "h20", "--compare", "--json", "-o", str(tmp_path / "out")])
    assert found.exit_code == 0, found.output
    printed = json.loads(found.stdout)
    assert printed == json.loads((tmp_path / "out" / "summary.json").read_text())
    assert [c["against"] for c in printed["comparisons"]] == ["a800", "h20"]
    for comparison in printed["comparisons"]:
        assert {row["kind"] for row in comparison["operators"]} == {
            "GEMM", "prefill attention", "decode attention", "all-reduce",
        }  # fmt: skip
        for row in comparison["operators"]:
            assert row["first_s"]["lo"] < row["first_s"]["value"] < row["first_s"]["hi"]
    assert "<svg" in (tmp_path / "out" / "report.html").read_text()
    assert "P(zhenwu-810e leads)" in run.invoke(app, ["zhenwu-810e", "a800", "--compare"]).output
    assert run.invoke(app, ["zhenwu-810e", "--compare"]).exception is not None
