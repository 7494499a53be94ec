"""``trivet schedule`` as a person calls it."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import polars as pl
import pytest
from typer.testing import CliRunner

from trivet.apps.cli.schedule import app
from trivet.errors import TrivetError

NODES = "sn,cpu_milli,memory_mib,gpu,model\n" + "".join(f"n{i},64000,262144,4,T4\n" for i in range(6))
TASKS = "name,cpu_milli,memory_mib,num_gpu,gpu_milli,gpu_spec\n" + "".join(
    f"t{i},4000,1024,{1 + i % 2},{1000 if i % 2 else 300},{'T4|P100' if i % 3 else ''}\n" for i in range(20)
)


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    nodes, jobs = tmp_path / "nodes.csv", tmp_path / "jobs.csv.gz"
    nodes.write_text(NODES)
    jobs.write_bytes(gzip.compress(TASKS.encode()))
    return nodes, jobs


def call(files: tuple[Path, Path], *more: str):  # type: ignore[no-untyped-def]
    return CliRunner().invoke(app, ["--nodes", str(files[0]), "--jobs", str(files[1]), *more])


def test_writes_placements_and_a_summary_the_same_twice(files: tuple[Path, Path], tmp_path: Path) -> None:
    for name in ("a", "b"):
        result = call(files, "--policy", "fgd", "--seed", "42", "--tune", "1.3", "-o", str(tmp_path / name))
        assert result.exit_code == 0, result.output
    summary = json.loads((tmp_path / "a/summary.json").read_text())
    frame = pl.read_parquet(tmp_path / "a/placements.parquet")
    assert summary["tasks"] == len(frame) == summary["placed"] + summary["dropped"]
    placed = frame.filter(pl.col("node").is_not_null())
    milli = (placed["num_gpu"] * placed["gpu_milli"]).sum()
    assert summary["gpu_allocation_percent"] == pytest.approx(100 * milli / 24_000)
    assert max(map(int, summary["gpu_allocation_percent_at"])) == round(summary["arrived_gpu_percent"])
    for file in ("summary.json", "placements.parquet", "report.html"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_json_goes_to_standard_output_and_many_runs_have_means(files: tuple[Path, Path]) -> None:
    result = call(files, "--policy", "bestfit,random", "--seed", "1-3", "--json")
    content = json.loads(result.stdout)
    assert content["means"]["random"]["seeds"] == 3
    assert len(content["runs"]) == 6


@pytest.mark.parametrize(
    ("bad", "field"),
    [(["--policy", "nope"], "policy"), (["--seed", "x"], "--seed"), (["--tune", "-1"], "--tune")],
)
def test_bad_input_names_the_field(files: tuple[Path, Path], bad: list[str], field: str) -> None:
    result = call(files, *bad)
    assert isinstance(result.exception, TrivetError)
    assert result.exception.field == field


def test_a_file_without_the_columns_is_refused(files: tuple[Path, Path]) -> None:
    files[0].write_text("a,b\n1,2\n")
    result = call(files)
    assert isinstance(result.exception, TrivetError)
    assert "sn" in str(result.exception)
