"""The samples in the repository are predicted as well as recorded, and what is worse is said."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from trivet.apps.cli.validate.golden import app
from trivet.errors import TrivetError
from trivet.loop.golden import LEVELS, compare, measure

GOLDEN = Path(__file__).resolve().parents[1] / "golden"


def test_accuracy_is_as_recorded() -> None:
    figures = compare(measure(GOLDEN), GOLDEN)
    assert {figure.section for figure in figures} == {"serving", "training", "operators", "requests"}
    assert not [figure.line() for figure in figures if not figure.ok]


@pytest.fixture
def logs(tmp_path: Path) -> Path:
    """A folder with the request logs alone."""
    shutil.copytree(GOLDEN / "requests", tmp_path / "requests")
    return tmp_path


def test_records_then_holds_then_says_what_is_worse(logs: Path) -> None:
    run = CliRunner()
    assert run.invoke(app, [str(logs), "--record"]).exit_code == 0
    assert run.invoke(app, [str(logs)]).exit_code == 0
    levels = json.loads((logs / LEVELS).read_text())
    name = next(n for n, value in levels["requests"].items() if value > 0.01)
    levels["requests"][name] /= 2.0  # as if it had been twice as good once
    (logs / LEVELS).write_text(json.dumps(levels))
    found = run.invoke(app, [str(logs), "--json"])
    assert found.exit_code == 1
    assert f"worse than recorded: requests {name}" in found.output
    del levels["requests"][name]  # a figure that nobody recorded is no pass
    (logs / LEVELS).write_text(json.dumps(levels))
    assert run.invoke(app, [str(logs)]).exit_code == 1


def test_a_level_without_its_sample_is_an_error(logs: Path) -> None:
    (logs / LEVELS).write_text(json.dumps({"serving": {"tpot": 0.1}}))
    with pytest.raises(TrivetError, match="not measured"):
        compare(measure(logs), logs)


@pytest.mark.parametrize("text", ["", "[]", '{"requests": {"x": "fast"}}'])
def test_levels_that_cannot_be_read(tmp_path: Path, text: str) -> None:
    (tmp_path / LEVELS).write_text(text)
    with pytest.raises(TrivetError):
        compare({}, tmp_path)


def test_an_empty_folder_has_no_samples(tmp_path: Path) -> None:
    with pytest.raises(TrivetError, match="no samples"):
        measure(tmp_path)
