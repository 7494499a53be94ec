"""Results of load generators, read and written: ``vllm bench serve``, guidellm, aiperf.

Everything is seconds inside; each format has its own names and units. A ``BenchResult`` also comes from a simulation
(:func:`from_requests`), so that one can be held against a measurement.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from trivet.errors import TrivetError
from trivet.interop.bench_aiperf import from_aiperf, from_records, to_aiperf
from trivet.interop.bench_core import BenchResult, Requests, Summary, from_requests, parse_json
from trivet.interop.bench_guidellm import from_guidellm, to_guidellm
from trivet.interop.bench_vllm import from_vllm, to_vllm

__all__ = [
    "FORMATS",
    "BenchResult",
    "Requests",
    "Summary",
    "from_requests",
    "read",
    "to_aiperf",
    "to_guidellm",
    "to_vllm",
    "write",
]

FORMATS = ("vllm", "guidellm", "aiperf")


def read(path: str | Path) -> tuple[BenchResult, ...]:
    """The runs of a file of any of the three tools (told by its content); ``.jsonl`` is aiperf's record export.

    Raises TrivetError naming the file and the field.
    """
    source = Path(path)
    try:
        text = source.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise TrivetError(f"{source.name}: cannot be read: {error}", field="results") from error
    if source.suffix == ".jsonl":
        rows = [line for line in text.splitlines() if line.strip()]
        return (
            from_records([parse_json(line, f"{source.name} row {i}") for i, line in enumerate(rows, 1)], source.name),
        )
    document = parse_json(text, source.name)
    if not isinstance(document, dict):
        raise TrivetError(f"{source.name}: not a JSON object", field="results")
    if isinstance(document.get("benchmarks"), list):
        return tuple(from_guidellm(item, document, source.name) for item in document["benchmarks"])
    if "mean_ttft_ms" in document or "num_prompts" in document:
        return (from_vllm(document, source.name),)
    if isinstance(document.get("request_throughput"), dict):
        return (from_aiperf(document, source.name),)
    raise TrivetError(f"{source.name}: of no known tool", field="results", allowed="vllm bench serve, guidellm, aiperf")


def write(
    results: BenchResult | Sequence[BenchResult], path: str | Path, form: str = "vllm", *, detailed: bool = False
) -> None:
    """Write one run (guidellm: several) in one of ``FORMATS``."""
    runs = [results] if isinstance(results, BenchResult) else list(results)
    if form not in FORMATS:
        raise TrivetError(f"unknown {form!r}", field="format", allowed=FORMATS)
    if form != "guidellm" and len(runs) != 1:
        raise TrivetError(f"{len(runs)} runs in one file", field="format", allowed="guidellm for several")
    document = (
        to_guidellm(runs)
        if form == "guidellm"
        else to_vllm(runs[0], detailed=detailed)
        if form == "vllm"
        else to_aiperf(runs[0])
    )
    Path(path).write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
