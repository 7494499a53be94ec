"""The files of Alibaba's cluster-trace-gpu-v2023 ("openb"): node list and task list, CSV, plain or gzip."""

from __future__ import annotations

import csv
import gzip
import io
from collections.abc import Iterator
from pathlib import Path

from trivet.cloud.cluster.nodes import WHOLE, Node
from trivet.cloud.cluster.tasks import Task
from trivet.errors import TrivetError

NODE_COLUMNS = ("sn", "cpu_milli", "memory_mib", "gpu", "model")
TASK_COLUMNS = ("name", "cpu_milli", "memory_mib", "num_gpu", "gpu_milli")


def _rows(path: Path, needed: tuple[str, ...]) -> Iterator[tuple[int, dict[str, str]]]:
    """Line numbers and rows of a CSV file; raises TrivetError when the file or a needed column is not there."""
    try:
        raw = path.read_bytes()
        text = (gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw).decode("utf-8-sig")
    except (OSError, EOFError, UnicodeDecodeError, gzip.BadGzipFile) as error:
        raise TrivetError(f"cannot read {path}: {error}", field="file") from error
    reader = csv.DictReader(io.StringIO(text))
    missing = [c for c in needed if c not in (reader.fieldnames or ())]
    if missing:
        raise TrivetError(f"{path.name} lacks the column {missing[0]}", field=missing[0], allowed=needed)
    for row in reader:
        yield reader.line_num, row


def _whole(row: dict[str, str], column: str, path: Path, line: int) -> int:
    text = (row.get(column) or "").strip()
    try:
        value = float(text) if text else 0.0
    except ValueError:
        value = float("nan")
    if value != value or value != int(value):
        raise TrivetError(f"{text!r} in line {line} of {path.name} is not a whole number", field=column)
    return int(value)


def _seconds(row: dict[str, str], column: str, path: Path, line: int) -> float | None:
    text = (row.get(column) or "").strip()
    if not text or text.lower() == "nan":
        return None
    try:
        return float(text)
    except ValueError as error:
        raise TrivetError(f"{text!r} in line {line} of {path.name} is not a time", field=column) from error


def _label(row: dict[str, str], column: str) -> str:
    text = (row.get(column) or "").strip()
    return "" if text.lower() == "nan" else text


def read_nodes(path: str | Path) -> list[Node]:
    """Nodes of a list with the columns ``sn, cpu_milli, memory_mib, gpu, model``."""
    file = Path(path)
    nodes = [
        Node(
            _label(row, "sn"), _whole(row, "cpu_milli", file, line), _whole(row, "memory_mib", file, line),
            _whole(row, "gpu", file, line), _label(row, "model"),
        )
        for line, row in _rows(file, NODE_COLUMNS)
    ]  # fmt: skip
    if not nodes:
        raise TrivetError(f"{file.name} has no rows", field="nodes", allowed="at least one node")
    return nodes


def read_tasks(path: str | Path) -> list[Task]:
    """Tasks of a list with the columns ``name, cpu_milli, memory_mib, num_gpu, gpu_milli`` and, where it has them,
    ``gpu_spec`` (types joined by ``|``), ``qos``, ``creation_time``, ``deletion_time`` (seconds)."""
    file = Path(path)
    tasks = []
    for line, row in _rows(file, TASK_COLUMNS):
        chips = _whole(row, "num_gpu", file, line)
        # More than one whole chip in gpu_milli means whole chips, as in the trace's own converter.
        milli = min(_whole(row, "gpu_milli", file, line), WHOLE) if chips else 0
        types = tuple(t for t in _label(row, "gpu_spec").split("|") if t) if chips else ()
        tasks.append(
            Task(
                _label(row, "name"), _whole(row, "cpu_milli", file, line), _whole(row, "memory_mib", file, line),
                chips, milli, types, _label(row, "qos"),
                _seconds(row, "creation_time", file, line), _seconds(row, "deletion_time", file, line),
            )
        )  # fmt: skip
    if not tasks:
        raise TrivetError(f"{file.name} has no rows", field="jobs", allowed="at least one task")
    return tasks
