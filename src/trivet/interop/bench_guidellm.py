"""guidellm's ``benchmarks.json`` (0.8)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from trivet.errors import TrivetError
from trivet.interop.bench_core import (
    BenchResult,
    Summary,
    finite,
    get_count,
    get_number,
)

_GUIDELLM = {
    "ttft": ("time_to_first_token_ms", 1e3), "tpot": ("time_per_output_token_ms", 1e3),
    "itl": ("inter_token_latency_ms", 1e3), "e2el": ("request_latency", 1.0),
}  # fmt: skip
_GUIDELLM_POINTS = {0.1: "p001", 1.0: "p01", 5.0: "p05", 10.0: "p10", 25.0: "p25", 50.0: "p50", 75.0: "p75", 90.0: "p90",
                    95.0: "p95", 99.0: "p99", 99.9: "p999"}  # fmt: skip


def from_guidellm(item: Any, document: dict[str, Any], label: str) -> BenchResult:
    metrics = item.get("metrics") if isinstance(item, dict) else None
    if not isinstance(metrics, dict):
        raise TrivetError(f"{label}: a benchmark without metrics", field="benchmarks")
    latencies = {}
    for metric, (name, scale) in _GUIDELLM.items():
        part = metrics.get(name, {}).get("successful")
        if isinstance(part, dict):
            raw = part.get("percentiles") or {}
            points = {p: get_number(raw, k, label) / scale for p, k in _GUIDELLM_POINTS.items() if k in raw}
            points.setdefault(50.0, get_number(part, "median", label) / scale)
            mean, std, low, high = (get_number(part, k, label) / scale for k in ("mean", "std_dev", "min", "max"))
            latencies[metric] = Summary(mean, std, low, high, points)
    counts = {
        k: metrics.get(k, {}).get("successful") or {}
        for k in ("prompt_token_count", "output_token_count", "request_latency")
    }
    completed = get_count(counts["request_latency"], "count", label)
    tokens = [
        round(get_number(counts[k], "mean", label, 0.0) * completed)
        for k in ("prompt_token_count", "output_token_count")
    ]
    rate = get_number(metrics.get("requests_per_second", {}).get("successful") or {}, "mean", label)
    duration = get_number(item, "duration", label, completed / rate if rate > 0 else math.nan)
    failed = get_count(metrics.get("request_latency", {}).get("errored") or {}, "count", label)
    config = item.get("config") if isinstance(item.get("config"), dict) else {}
    streams = ((config or {}).get("strategy") or {}).get("streams") or 0
    model = (document.get("config") or {}).get("model") or ""
    return BenchResult(
        "guidellm",
        str(model),
        duration_s=duration,
        completed=completed,
        failed=failed,
        input_tokens=tokens[0],
        output_tokens=tokens[1],
        latencies=latencies,
        max_concurrency=int(streams),
    )


def to_guidellm(results: Sequence[BenchResult]) -> dict[str, Any]:
    """A ``benchmarks.json`` object."""
    benchmarks = []
    for result in results:
        metrics: dict[str, Any] = {
            "requests_per_second": {"successful": {"mean": result.request_throughput, "count": result.completed}},
            "output_tokens_per_second": {"successful": {"mean": result.output_throughput, "count": result.completed}},
        }
        for name, total in (("prompt_token_count", result.input_tokens), ("output_token_count", result.output_tokens)):
            metrics[name] = {"successful": {"mean": total / max(result.completed, 1), "count": result.completed}}
        for metric, summary in result.latencies.items():
            name, scale = _GUIDELLM[metric]
            points = {_GUIDELLM_POINTS[p]: v * scale for p, v in summary.percentiles.items() if p in _GUIDELLM_POINTS}
            metrics[name] = {
                "successful": {
                    "mean": summary.mean * scale,
                    "median": summary.median * scale,
                    "std_dev": summary.std * scale,
                    "min": summary.low * scale,
                    "max": summary.high * scale,
                    "count": result.completed,
                    "percentiles": points,
                },
                "errored": {"count": result.failed},
            }
        strategy = (
            {"type_": "concurrent", "streams": result.max_concurrency} if result.max_concurrency else {"type_": "async"}
        )
        benchmarks.append({"config": {"strategy": strategy}, "duration": result.duration_s, "metrics": metrics})
    model = results[0].model if results else ""
    return {"metadata": {"version": 1}, "config": {"model": model}, "benchmarks": [finite(b) for b in benchmarks]}
