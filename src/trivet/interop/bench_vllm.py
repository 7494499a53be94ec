"""``vllm bench serve`` JSON (``vllm/benchmarks/serve.py`` of 0.33)."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trivet.errors import TrivetError
from trivet.interop.bench_core import (
    METRICS,
    BenchResult,
    Requests,
    Summary,
    finite,
    get_count,
    get_number,
)


def from_vllm(document: dict[str, Any], label: str) -> BenchResult:
    latencies = {}
    for metric in METRICS:
        points = {50.0: get_number(document, f"median_{metric}_ms", label) / 1e3}
        for key in document:
            head, _, rest = key.partition("_")
            if rest == f"{metric}_ms" and head.startswith("p") and head[1:].replace(".", "").isdigit():
                points[float(head[1:])] = get_number(document, key, label) / 1e3
        if f"mean_{metric}_ms" in document:
            mean, std = (get_number(document, f"{m}_{metric}_ms", label) / 1e3 for m in ("mean", "std"))
            latencies[metric] = Summary(mean, std, percentiles={p: v for p, v in points.items() if not math.isnan(v)})
    return BenchResult(
        "vllm",
        str(document.get("model_id", "")),
        str(document.get("backend", "")),
        str(document.get("date", "")),
        get_number(document, "request_rate", label, math.inf),
        get_number(document, "burstiness", label, 1.0),
        get_count(document, "max_concurrency", label),
        get_number(document, "duration", label),
        get_count(document, "completed", label),
        get_count(document, "failed", label),
        get_count(document, "total_input_tokens", label),
        get_count(document, "total_output_tokens", label),
        get_number(document, "request_goodput", label),
        latencies,
        _vllm_requests(document, label),
    )


def _vllm_requests(document: dict[str, Any], label: str) -> Requests | None:
    names = ("input_lens", "output_lens", "ttfts", "itls")
    if not all(isinstance(document.get(n), list) for n in names):
        return None
    ins, outs, ttfts, raw = (document[n] for n in names)
    starts = document.get("start_times") or [0.0] * len(ins)
    if len({len(ins), len(outs), len(ttfts), len(raw), len(starts)}) > 1:
        raise TrivetError(
            f"{label}: lists of different length", field="input_lens, output_lens, ttfts, itls, start_times"
        )
    try:
        itls = tuple(np.asarray(v, float) for v in raw)
        ttft = np.asarray(ttfts, float)
        e2el = ttft + np.array([v.sum() for v in itls])
        order = np.argsort(np.asarray(starts, float), kind="stable")
        return Requests(
            np.asarray(starts, float)[order],
            np.asarray(ins, np.int32)[order],
            np.asarray(outs, np.int32)[order],
            ttft[order],
            e2el[order],
            tuple(itls[i] for i in order),
        )
    except (TypeError, ValueError) as error:
        raise TrivetError(f"{label}: {error}", field="input_lens, output_lens, ttfts, itls, start_times") from error


def to_vllm(result: BenchResult, *, detailed: bool = False) -> dict[str, Any]:
    """The JSON object of ``vllm bench serve``; ``detailed`` adds the lists of ``--save-detailed``."""
    rate = result.request_rate_per_s
    document: dict[str, Any] = {
        "date": result.date,
        "backend": result.backend,
        "model_id": result.model,
        "tokenizer_id": result.model,
        "num_prompts": result.completed + result.failed,
        "request_rate": rate if math.isfinite(rate) else "inf",
        "burstiness": result.burstiness,
        "max_concurrency": result.max_concurrency or None,
        "duration": result.duration_s,
        "completed": result.completed,
        "failed": result.failed,
        "total_input_tokens": result.input_tokens,
        "total_output_tokens": result.output_tokens,
        "request_throughput": result.request_throughput,
        "request_goodput": None if math.isnan(result.goodput_per_s) else result.goodput_per_s,
        "output_throughput": result.output_throughput,
        "total_token_throughput": (result.input_tokens + result.output_tokens) / (result.duration_s or math.nan),
    }
    for metric, summary in result.latencies.items():
        document[f"mean_{metric}_ms"], document[f"median_{metric}_ms"] = summary.mean * 1e3, summary.median * 1e3
        document[f"std_{metric}_ms"] = summary.std * 1e3
        document[f"p99_{metric}_ms"] = summary.percentiles.get(99.0, math.nan) * 1e3
    requests = result.requests
    if detailed and requests is not None:
        itls = requests.itls or _even_gaps(requests)
        document |= {
            "input_lens": requests.input_tokens.tolist(),
            "output_lens": requests.output_tokens.tolist(),
            "ttfts": requests.ttft_s.tolist(),
            "itls": [v.tolist() for v in itls],
            "start_times": requests.start_s.tolist(),
        }
    clean: dict[str, Any] = finite(document)
    return clean


def _even_gaps(requests: Requests) -> tuple[NDArray[np.float64], ...]:
    gaps = np.maximum(requests.output_tokens - 1, 0)
    spans = requests.e2el_s - requests.ttft_s
    return tuple(np.full(n, s / n if n else 0.0) for n, s in zip(gaps, spans, strict=True))
