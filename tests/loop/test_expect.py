"""Each feature of the simulator changes an answer, in the direction and by the size that a source gives."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from trivet.apps.cli.simulate import read_clients, read_trace
from trivet.errors import TrivetError
from trivet.interop.yaml_files import read_yaml
from trivet.loop.expect import check, number

ROOT = Path(__file__).resolve().parents[2]
FILES = [path for path in sorted((ROOT / "examples" / "serving").glob("*.yaml")) if path.stem != "pooling"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_features_change_the_answer(path: Path) -> None:
    raw = read_yaml(path)
    rows = check(raw, read_trace, read_clients)
    assert rows
    for row in rows:
        assert row["holds"], row


def test_an_expectation_that_does_not_hold_is_told() -> None:
    raw = {
        "model": "Qwen/Qwen3-8B", "traffic": {"generate": {"requests": 50, "rate_per_s": 5, "inputs": 200, "outputs": 20}},
        "fleet": [{"chip": "h100"}],
        "expect": [
            {"feature": "twice", "change": ["traffic.rate_scale=2"], "metric": "requests.done", "ratio": [2, 2], "source": "x"},
            {"feature": "none", "change": ["traffic.rate_scale=2"], "metric": "requests.failed", "ratio": [0, 1], "source": "x"},
        ],
    }  # fmt: skip
    rows = check(raw, read_trace)
    assert [row["ratio"] for row in rows] == [1.0, None]
    assert [row["holds"] for row in rows] == [False, False]


def test_numbers_by_path() -> None:
    summary = {"a": {"b": 2, "c": None, "d": "x"}}
    assert number(summary, "a.b") == 2.0
    assert math.isnan(number(summary, "a.c"))
    with pytest.raises(TrivetError, match=r"no number 'a\.z'"):
        number(summary, "a.z")
    with pytest.raises(TrivetError, match="no number"):
        number(summary, "a.d")
