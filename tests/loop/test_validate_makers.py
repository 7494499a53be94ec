"""Serving figures that makers and their users published: how far predictions are from them, by maker and by half."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from trivet.apps.cli.validate.serving import app
from trivet.errors import TrivetError
from trivet.loop.calibrate_serving import measured_rows
from trivet.loop.validate_serving import Checked, check, summarise

FILE = Path(__file__).parents[1] / "makers" / "serving.csv"
# The median error of time per output token that each maker's chips are held to; a handful of rows hold nothing.
LIMITS = {"AMD": 0.15, "Intel": 0.20, "AWS": 0.10, "Google": 0.20}


@pytest.fixture(scope="module")
def checked() -> list[Checked]:
    return check(measured_rows(FILE, whole=False), ["nothing"])


def halves() -> dict[str, str]:
    with FILE.open(newline="", encoding="utf-8") as file:
        return {row["id"]: row["half"] for row in csv.DictReader(file)}


def test_every_row_is_answered_and_has_a_source(checked: list[Checked]) -> None:
    with FILE.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert {row.id for row in checked} == {row["id"] for row in rows}
    assert all(row["source"] and row["published"] for row in rows)
    assert not [row for row in rows if "inferencex" in row["source"].lower() or "mlperf" in row["source"].lower()]


@pytest.mark.parametrize("maker", LIMITS)
def test_median_error_by_maker(checked: list[Checked], maker: str) -> None:
    errors = [abs(c.predicted / c.measured - 1.0) for c in checked if c.quantity != "ttft" and c.maker == maker]
    assert len(errors) > 10
    assert np.median(errors) < LIMITS[maker]


def test_the_half_that_set_nothing_is_no_worse(checked: list[Checked]) -> None:
    half = halves()
    by_half = {name: [c for c in checked if half[c.id] == name and c.quantity != "ttft"] for name in ("set", "held")}
    errors = {name: np.median([abs(c.predicted / c.measured - 1.0) for c in found]) for name, found in by_half.items()}
    inside = {name: np.mean([c.lo <= c.measured <= c.hi for c in found]) for name, found in by_half.items()}
    assert errors["held"] < 0.15 and errors["set"] < 0.15
    assert all(0.72 < share < 0.92 for share in inside.values())


def test_a_throughput_is_compared_by_how_long_a_request_lasts(tmp_path: Path) -> None:
    head = "id,chip,engine,model,weights,isl,osl,concurrency,tp,ttft_ms,tpot_ms,latency_s,output_tokens_per_s"
    row = "mi300x,vllm,meta-llama/Llama-3.1-70B,fp8,1024,512,16,8"
    lines = [f"a,{row},,,,800", f"b,{row},,,10.24,", f"c,{row},,20,,", f"d,{row},100,20,,", f"e,{row},,,,"]
    path = tmp_path / "rows.csv"
    path.write_text("\n".join([head, *lines]) + "\n", encoding="utf-8")
    rows = measured_rows(path, whole=False)
    assert [r.case.id for r in rows] == ["a", "b", "c", "d"]
    assert rows[0].latency_s == rows[1].latency_s == pytest.approx(10.24)
    assert math.isnan(rows[2].latency_s)
    found = check(rows, ["nothing"])
    assert [(c.id, c.quantity) for c in found] == [
        ("a", "latency"), ("b", "latency"), ("c", "tpot"), ("d", "ttft"), ("d", "tpot")
    ]  # fmt: skip
    assert found[0].predicted == found[1].predicted > 511 * found[2].predicted
    assert found[0].maker == "AMD"
    summary = summarise(rows, found)
    assert summary["splits"]["nothing"]["latency"]["by_maker"]["AMD"]["rows"] == 2
    assert [r.case.id for r in measured_rows(path)] == ["d"]


def test_no_measurement_at_all_is_named(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("chip,model,isl,osl\nmi300x,meta-llama/Llama-3.1-70B,1024,512\n", encoding="utf-8")
    with pytest.raises(TrivetError, match="latency_s"):
        measured_rows(path, whole=False)


def test_the_command_reads_such_a_file(tmp_path: Path) -> None:
    answer = CliRunner().invoke(app, [str(FILE), "--json", "--limit-tpot", "0.25", "-o", str(tmp_path / "out")])
    assert answer.exit_code == 0, answer.output
    summary = json.loads(answer.output)
    assert set(summary["splits"]["nothing"]) == {"ttft", "tpot", "latency"}
    assert (tmp_path / "out" / "report.html").is_file()
