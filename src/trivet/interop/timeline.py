"""A simulated fleet as a Perfetto / Chrome trace: a process a replica, a track a seat, slices of each request's life."""

from __future__ import annotations

import heapq
import json
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trivet.cloud.serving import metrics
from trivet.cloud.serving.fleet import ServingResult

MOST_REQUESTS = 20_000


def events(result: ServingResult, most: int = MOST_REQUESTS) -> list[dict[str, Any]]:
    """``traceEvents``: slices ``queue``, ``prefill``, ``decode`` of up to ``most`` requests, and counters over time.

    Microseconds from the first arrival. Requests that overlap on a replica get different tracks, so slices nest.
    """
    out: list[dict[str, Any]] = []
    index = np.flatnonzero(np.isfinite(result.last_token_s))[:most]
    index = index[np.argsort(result.arrival_s[index], kind="stable")]
    seats: dict[int, tuple[list[tuple[float, int]], int]] = {}
    for i in index.tolist():
        replica = int(result.replica[i])
        busy, used = seats.get(replica, ([], 0))
        arrival, last = float(result.arrival_s[i]), float(result.last_token_s[i])
        if busy and busy[0][0] <= arrival:
            _, track = heapq.heappop(busy)
        else:
            used += 1
            track = used
        heapq.heappush(busy, (last, track))
        seats[replica] = (busy, used)
        out += _life(result, i, replica, track)
    names = np.repeat(
        [kind.name or "replica" for kind in result.fleet.kinds], [kind.count for kind in result.fleet.kinds]
    )
    for replica in sorted(seats):
        out.append(
            {
                "name": "process_name",
                "ph": "M",
                "pid": replica + 1,
                "args": {"name": f"replica {replica}: {names[replica]}"},
            }
        )
    return out + _counters(metrics.over_time(result))


def _life(result: ServingResult, i: int, replica: int, track: int) -> list[dict[str, Any]]:
    at = [float(v[i]) for v in (result.arrival_s, result.scheduled_s, result.first_token_s, result.last_token_s)]
    marks = [round(t * 1e6, 3) for t in at]
    args = {
        "request": i, "input_tokens": int(result.input_tokens[i]), "output_tokens": int(result.output_tokens[i]),
        "cached_tokens": int(result.cached_tokens[i]), "preemptions": int(result.preemptions[i]),
    }  # fmt: skip
    base = {"ph": "X", "cat": "request", "pid": replica + 1, "tid": track}
    whole = {**base, "name": f"request {i}", "ts": marks[0], "dur": round(marks[3] - marks[0], 3), "args": args}
    parts = [
        {**base, "name": name, "ts": start, "dur": round(end - start, 3)}
        for name, start, end in zip(("queue", "prefill", "decode"), marks[:3], marks[1:], strict=True)
    ]
    return [whole, *parts]


def _counters(series: dict[str, NDArray[np.float64]]) -> list[dict[str, Any]]:
    out = []
    for name in ("batch", "queue", "kv_share", "busy_share"):
        for time, value in zip(series["time_s"].tolist(), series[name].tolist(), strict=True):
            out.append({"name": name, "ph": "C", "pid": 0, "ts": round(time * 1e6, 3), "args": {name: round(value, 6)}})
    return out


def text(result: ServingResult, most: int = MOST_REQUESTS) -> str:
    """The content of ``timeline.json``."""
    return json.dumps(
        {"displayTimeUnit": "ms", "traceEvents": events(result, most)}, separators=(",", ":"), allow_nan=False
    )
