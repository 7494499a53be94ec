"""What a load generator's run says, in one form; see ``bench_results`` for files."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trivet.cloud.serving.traffic import Traffic
from trivet.errors import TrivetError

METRICS = ("ttft", "tpot", "itl", "e2el")  # as vLLM calls them
PERCENTILES = (1.0, 5.0, 10.0, 25.0, 50.0, 75.0, 90.0, 95.0, 99.0, 99.9)


@dataclass(frozen=True, slots=True)
class Summary:
    """Moments of one latency, seconds; NaN where the file does not say."""

    mean: float = math.nan
    std: float = math.nan
    low: float = math.nan
    high: float = math.nan
    percentiles: dict[float, float] = field(default_factory=dict)

    @property
    def median(self) -> float:
        return self.percentiles.get(50.0, math.nan)

    @classmethod
    def of(cls, values: NDArray[np.float64]) -> Summary:
        good = values[np.isfinite(values)]
        if not good.size:
            return cls()
        points = dict(zip(PERCENTILES, map(float, np.percentile(good, PERCENTILES)), strict=True))
        return cls(float(good.mean()), float(good.std()), float(good.min()), float(good.max()), points)


@dataclass(frozen=True, slots=True, eq=False)
class Requests:
    """Per request, in order of start: seconds and tokens; ``itls`` are the times between its tokens."""

    start_s: NDArray[np.float64]
    input_tokens: NDArray[np.int32]
    output_tokens: NDArray[np.int32]
    ttft_s: NDArray[np.float64]
    e2el_s: NDArray[np.float64]
    itls: tuple[NDArray[np.float64], ...] = ()

    def traffic(self, name: str = "") -> Traffic:
        """The same requests as traffic, time from 0 on."""
        order = np.argsort(self.start_s, kind="stable")
        start = self.start_s[order]
        return Traffic(
            start - start[0] if start.size else start, self.input_tokens[order], self.output_tokens[order], name=name
        )


@dataclass(frozen=True, slots=True, eq=False)
class BenchResult:
    """One run. Rates are per second; counts are of successful requests unless told."""

    tool: str
    model: str = ""
    backend: str = ""
    date: str = ""
    request_rate_per_s: float = math.inf
    burstiness: float = 1.0
    max_concurrency: int = 0
    duration_s: float = math.nan
    completed: int = 0
    failed: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    goodput_per_s: float = math.nan
    latencies: dict[str, Summary] = field(default_factory=dict)
    requests: Requests | None = None

    @property
    def request_throughput(self) -> float:
        return self.completed / self.duration_s if self.duration_s else math.nan

    @property
    def output_throughput(self) -> float:
        return self.output_tokens / self.duration_s if self.duration_s else math.nan


def from_requests(
    start_s: Any,
    first_token_s: Any,
    last_token_s: Any,
    input_tokens: Any,
    output_tokens: Any,
    *,
    model: str = "",
    tool: str = "vllm",
    failed: int = 0,
    **settings: Any,
) -> BenchResult:
    """A result from times of start, first and last token (seconds on one clock; NaN = failed, left out)."""
    start, first, last = (np.asarray(v, float) for v in (start_s, first_token_s, last_token_s))
    ins, outs = np.asarray(input_tokens, np.int32), np.asarray(output_tokens, np.int32)
    if not len({start.size, first.size, last.size, ins.size, outs.size}) == 1:
        raise TrivetError("columns of different length", field="requests")
    good = np.isfinite(first) & np.isfinite(last)
    failed += int((~good).sum())
    start, first, last, ins, outs = (v[good] for v in (start, first, last, ins, outs))
    requests = Requests(start, ins, outs, first - start, last - start)
    duration = float(last.max() - start.min()) if start.size else 0.0
    return BenchResult(
        tool,
        model,
        duration_s=duration,
        completed=int(start.size),
        failed=failed,
        input_tokens=int(ins.sum()),
        output_tokens=int(outs.sum()),
        latencies=_latencies(requests),
        requests=requests,
        **settings,
    )


def _latencies(requests: Requests) -> dict[str, Summary]:
    more = requests.output_tokens > 1
    tpot = (requests.e2el_s - requests.ttft_s)[more] / (requests.output_tokens[more] - 1)
    if requests.itls:
        itl = np.concatenate([np.zeros(0), *requests.itls])
    else:  # without the single gaps: each request's mean gap, as often as it has gaps
        itl = np.repeat(tpot, np.minimum(requests.output_tokens[more] - 1, 10_000))
    return {
        "ttft": Summary.of(requests.ttft_s),
        "tpot": Summary.of(tpot),
        "itl": Summary.of(itl),
        "e2el": Summary.of(requests.e2el_s),
    }


def parse_json(text: str, label: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise TrivetError(f"{label}: torn or not JSON: {error}", field="results") from error


def get_number(source: Mapping[str, Any], name: str, label: str, default: float = math.nan) -> float:
    value = source.get(name)
    if value is None:
        return default
    try:
        return float(value)  # vLLM writes "inf" as text
    except (TypeError, ValueError) as error:
        raise TrivetError(f"{label}: {value!r} is not a number", field=name) from error


def get_count(source: Mapping[str, Any], name: str, label: str) -> int:
    value = get_number(source, name, label, 0.0)
    if not math.isfinite(value) or value < 0:
        raise TrivetError(f"{label}: {value} is not a count", field=name)
    return int(value)


def finite(value: Any) -> Any:
    """NaN is no JSON: null."""
    if isinstance(value, dict):
        return {k: finite(v) for k, v in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
