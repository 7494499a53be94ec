"""Each feature of the simulator changes an answer, in the direction and by the size that a source gives."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from trivet.apps.cli.simulate import read_clients, read_trace
from trivet.errors import TrivetError, Unsupported
from trivet.interop.yaml_files import read_yaml
from trivet.loop import simulate
from trivet.loop.expect import check, number
from trivet.loop.scenario_schema import changed, outage_text

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


def test_every_compilation_of_the_loop_is_told() -> None:
    """Each form that has no compiled copy, whoever asked last; not what else is compiled."""
    from numba.core import event

    from trivet.cloud.serving._loop_fleet import advance
    from trivet.cloud.serving._loop_updown import bounce

    first: list[str] = []
    second: list[str] = []
    simulate.say_if_compiling(first.append)
    for function in (advance, bounce, advance):
        with event.trigger_event("numba:compile", data={"dispatcher": function, "args": (), "return_type": None}):
            pass
    simulate.say_if_compiling(second.append)
    with event.trigger_event("numba:compile", data={"dispatcher": advance, "args": (), "return_type": None}):
        pass
    assert (len(first), len(second)) == (2, 1) and "once on this machine" in first[0]


TEXT = {
    "model": "Qwen/Qwen3-8B", "traffic": {"generate": {"requests": 20, "rate_per_s": 5, "inputs": 200, "outputs": 20}},
    "fleet": [{"chip": "h100", "role": "prefill"}, {"chip": "h100", "role": "decode"}],
}  # fmt: skip


def test_links_in_one_line() -> None:
    assert outage_text("link#1:5s@10s", 60.0) == {"start_s": 10.0, "duration_s": 5.0, "links": [1]}
    assert (
        simulate.run({**TEXT, "outages": [outage_text("link:5s", 4.0)]}, read_trace).summary["requests"]["done"] == 20
    )
    for part, field in (
        ({"links": [1]}, "outages.links"), ({"replicas": [0], "factor": 0.5}, "outages.factor"), ({}, "outages"),
    ):  # fmt: skip
        with pytest.raises(TrivetError) as error:
            simulate.run({**TEXT, "outages": [{"start_s": 1, "duration_s": 1, **part}]}, read_trace)
        assert error.value.field == field


def test_images_need_a_tower() -> None:
    with pytest.raises(Unsupported, match="vision tower"):
        simulate.run(changed(TEXT, ["traffic.generate.images={tokens: 100, share: 0.5}"]), read_trace)
