"""aiperf's ``profile_export_aiperf.json`` and ``profile_export.jsonl`` (0.13)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from trivet.errors import TrivetError
from trivet.interop.bench_core import (
    BenchResult,
    Summary,
    finite,
    from_requests,
    get_number,
)

_AIPERF = {"ttft": "time_to_first_token", "itl": "inter_token_latency", "e2el": "request_latency"}
_UNITS = {"ns": 1e-9, "us": 1e-6, "ms": 1e-3, "s": 1.0, "sec": 1.0, "seconds": 1.0}


def _unit(part: Mapping[str, Any], name: str, label: str) -> float:
    unit = str(part.get("unit", "ms"))
    if unit not in _UNITS:
        raise TrivetError(f"{label}: unknown unit {unit!r}", field=name, allowed=_UNITS)
    return _UNITS[unit]


def from_aiperf(document: dict[str, Any], label: str) -> BenchResult:
    latencies = {}
    for metric, name in _AIPERF.items():
        part = document.get(name)
        if isinstance(part, dict):
            scale = _unit(part, name, label)
            raw = {float(k[1:]): k for k in part if k[:1] == "p" and k[1:].replace(".", "").isdigit()}
            mean, std, low, high = (get_number(part, k, label) * scale for k in ("avg", "std", "min", "max"))
            points = {p: get_number(part, k, label) * scale for p, k in raw.items()}
            latencies[metric] = Summary(mean, std, low, high, points)
    if "itl" in latencies:  # aiperf's inter-token latency is one value a request: what vLLM calls TPOT
        latencies["tpot"] = latencies["itl"]

    def average(name: str, default: float = math.nan) -> float:
        part = document.get(name)
        return get_number(part, "avg", label, default) if isinstance(part, dict) else default

    rate = average("request_throughput")
    duration = average("benchmark_duration")
    completed = average("request_count")
    if math.isnan(completed):
        completed = rate * duration if math.isfinite(rate * duration) else 0.0
    if math.isnan(duration):
        duration = completed / rate if rate > 0 else math.nan
    count = round(completed)
    tokens = [round(average(k, 0.0) * count) for k in ("input_sequence_length", "output_sequence_length")]
    config = document.get("input_config") or {}
    models = (config.get("endpoint") or {}).get("model_names") or [""]
    concurrency = (config.get("loadgen") or {}).get("concurrency") or 0
    return BenchResult(
        "aiperf",
        str(models[0]),
        duration_s=duration,
        completed=count,
        failed=round(average("error_request_count", 0.0)),
        input_tokens=tokens[0],
        output_tokens=tokens[1],
        goodput_per_s=average("goodput"),
        latencies=latencies,
        max_concurrency=int(concurrency),
    )


def from_records(rows: list[Any], label: str) -> BenchResult:
    columns: dict[str, list[float]] = {k: [] for k in ("start", "ttft", "e2el", "input", "output")}
    failed = 0
    for at, row in enumerate(rows, 1):
        metrics, meta = (row.get(k) for k in ("metrics", "metadata")) if isinstance(row, dict) else (None, None)
        if not isinstance(metrics, dict) or not isinstance(meta, dict):
            raise TrivetError(f"{label} row {at}: no metrics or no metadata", field="metrics")
        if row.get("error") or "request_latency" not in metrics:
            failed += 1
            continue
        for key, name in (("ttft", "time_to_first_token"), ("e2el", "request_latency")):
            part = metrics.get(name) or metrics["request_latency"]
            columns[key].append(get_number(part, "value", f"{label} row {at}") * _unit(part, name, label))
        for key, name in (("input", "input_sequence_length"), ("output", "output_sequence_length")):
            columns[key].append(get_number(metrics.get(name) or {}, "value", f"{label} row {at}", 1.0))
        columns["start"].append(get_number(meta, "request_start_ns", f"{label} row {at}", 0.0) / 1e9)
    data = {k: np.array(v) for k, v in columns.items()}
    start = data["start"]
    return from_requests(
        start, start + data["ttft"], start + data["e2el"], data["input"], data["output"], tool="aiperf", failed=failed
    )


def to_aiperf(result: BenchResult) -> dict[str, Any]:
    """A ``profile_export_aiperf.json`` object."""
    count = max(result.completed, 1)
    document: dict[str, Any] = {
        "request_throughput": {"unit": "requests/sec", "avg": result.request_throughput},
        "output_token_throughput": {"unit": "tokens/sec", "avg": result.output_throughput},
        "request_count": {"unit": "requests", "avg": result.completed},
        "error_request_count": {"unit": "requests", "avg": result.failed},
        "benchmark_duration": {"unit": "sec", "avg": result.duration_s},
        "input_sequence_length": {"unit": "tokens", "avg": result.input_tokens / count},
        "output_sequence_length": {"unit": "tokens", "avg": result.output_tokens / count},
        "goodput": {"unit": "requests/sec", "avg": result.goodput_per_s},
        "input_config": {
            "endpoint": {"model_names": [result.model]},
            "loadgen": {"concurrency": result.max_concurrency or None},
        },
    }
    for metric, name in _AIPERF.items():
        summary = result.latencies.get("tpot" if metric == "itl" else metric)
        if summary is not None:
            points = {f"p{p:g}": v * 1e3 for p, v in summary.percentiles.items() if p <= 99}
            ends = {"avg": summary.mean, "std": summary.std, "min": summary.low, "max": summary.high}
            document[name] = {"unit": "ms"} | {k: v * 1e3 for k, v in ends.items()} | points
    clean: dict[str, Any] = finite(document)
    return clean
