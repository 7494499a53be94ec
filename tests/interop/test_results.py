"""Results appear whole or not at all; a scenario file is refused in one line."""

from __future__ import annotations

from pathlib import Path

import pytest

from trivet.errors import TrivetError
from trivet.interop.results import result_file, result_folder
from trivet.interop.yaml_files import read_yaml


def test_folder_is_untouched_by_a_failure(tmp_path: Path) -> None:
    with result_folder(tmp_path / "out") as work:
        (work / "a").write_text("old")
    with pytest.raises(RuntimeError), result_folder(tmp_path / "out") as work:
        (work / "a").write_text("half")
        raise RuntimeError
    assert (tmp_path / "out" / "a").read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_file_is_untouched_by_a_failure(tmp_path: Path) -> None:
    target = tmp_path / "x.csv"
    with pytest.raises(RuntimeError), result_file(target) as work:
        work.write_text("half")
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []
    with result_file(target) as work:
        work.write_text("whole")
    assert target.read_text() == "whole"


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "f").write_text("")
    with pytest.raises(TrivetError, match="-o"), result_folder(tmp_path / "f"):
        pass


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [1,", "not YAML"),
        ("- 1", "no mapping"),
        ("", "no mapping"),
        ("a: &x [1]\n" + "b: [" + "*x, " * 200 + "]", "aliases"),
        ("[" * 100_000, "deep"),
        ("a: " + "[" * 50 + "]" * 50 + "\nb: [", "not YAML"),
    ],
)
def test_bad_yaml(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "s.yaml"
    path.write_text(text)
    with pytest.raises(TrivetError, match=message):
        read_yaml(path)


def test_huge_yaml(tmp_path: Path) -> None:
    path = tmp_path / "s.yaml"
    path.write_text("a: " + "x" * 1_100_000)
    with pytest.raises(TrivetError, match="bytes"):
        read_yaml(path)
