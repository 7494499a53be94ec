"""The report of a simulated fleet: latency, load, batch and KV over time, replicas; one self-contained HTML file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trivet.errors import TrivetError
from trivet.report.charts import (
    Section,
    Series,
    bar_chart,
    cdf_chart,
    html_table,
    kpis,
    line_chart,
    number,
    page,
    percent,
    scatter_chart,
    seconds,
)

Columns = Mapping[str, Any]
MOST_BUCKETS = 480
NEEDED = ("arrival_s", "first_token_s", "last_token_s", "input_tokens", "output_tokens")
# Column of ``series`` -> (title, axis, how a value is shown)
_SERIES = {
    "batch": ("Sequences in a batch, mean of the replicas", "sequences", number),
    "queue": ("Requests waiting", "requests", number),
    "kv_share": ("KV cache in use", "share of the blocks", percent),
    "busy_share": ("Replicas busy", "share of the time", percent),
    "replicas_up": ("Replicas up", "replicas", number),
}


def latencies(requests: Columns) -> dict[str, NDArray[np.float64]]:
    """``ttft``, ``tpot`` (requests of more than one token), ``e2e`` and, where scheduled_s is given, ``queue``; seconds."""
    arrival, first, last = (np.asarray(requests[k], float) for k in NEEDED[:3])
    outputs = np.asarray(requests["output_tokens"], float)
    found = {
        "ttft": first - arrival,
        "tpot": np.where(outputs > 1, (last - first) / np.maximum(outputs - 1, 1), np.nan),
    }
    found["e2e"] = last - arrival
    if requests.get("scheduled_s") is not None:
        found["queue"] = np.asarray(requests["scheduled_s"], float) - arrival
    return {k: v[np.isfinite(v)] for k, v in found.items()}


def html(
    requests: Columns,
    summary: Mapping[str, Any],
    series: Columns | None = None,
    *,
    title: str = "Serving report",
    subtitle: str = "",
    ttft_slo_s: float | None = None,
    tpot_slo_s: float | None = None,
    notes: Sequence[str] = (),
    one_in: int = 1,
) -> str:
    """One HTML page.

    Args:
        requests: columns ``arrival_s first_token_s last_token_s input_tokens output_tokens``, and where known
            ``scheduled_s cached_tokens preemptions replica status``; NaN where a request never came so far.
        summary: what ``summary.json`` holds; flat numbers are shown as a table.
        series: columns over time: ``time_s`` and any of ``arrived_per_s finished_per_s prefill_tokens_per_s
            decode_tokens_per_s batch queue kv_share busy_share replicas_up``.
        ttft_slo_s, tpot_slo_s: drawn as limits.
        notes: assumptions to print.
        one_in: the requests are a sample of so many; numbers of all then come from ``summary``.

    Raises:
        TrivetError: a needed column is missing or there is no request.
    """
    missing = [k for k in NEEDED if k not in requests]
    if missing:
        raise TrivetError("missing", field=missing[0], allowed=NEEDED)
    if not len(requests["arrival_s"]):
        raise TrivetError("no request to report", field="requests")
    times = latencies(requests)
    series = _whole_buckets(series)
    sections = [
        Section("", kpis(_headline(requests, times) if one_in == 1 else _headline_of(summary))),
        Section("Latency", _latency_charts(times, ttft_slo_s, tpot_slo_s), columns=True),
        Section("Load", _load_charts(requests, series, one_in), columns=True),
    ]
    inside = _inside_charts(series) if series is not None else []
    if inside:
        sections.append(Section("Inside the replicas", inside, columns=True))
    shape = _shape_charts(requests, one_in)
    if shape:
        sections.append(Section("What makes a request slow", shape, columns=True))
    sections.append(
        Section("Percentiles", html_table(_percentiles(times) if one_in == 1 else _percentiles_of(summary)))
    )
    shown = {k: v for k, v in summary.items() if not (isinstance(v, Mapping) and "p99" in v)}
    flat = [{"name": k.replace("_", " ").replace(".", ": "), "value": v} for k, v in _flat(shown).items()]
    if flat:
        sections.append(Section("Summary", html_table(flat)))
    if one_in > 1:
        told = (
            f"Curves of single requests are those of one in {one_in:,}; percentiles come from sketches of all requests."
        )
        notes = [*notes, told]
    if notes:
        sections.append(Section("Assumptions", text="\n\n".join(notes)))
    return page(title, sections, subtitle=subtitle)


def _whole_buckets(series: Columns | None) -> Columns | None:
    """Without the last bucket, which the run ends within: its means would fall to nothing."""
    if series is None or len(series["time_s"]) < 4:
        return series
    return {name: np.asarray(values)[:-1] for name, values in series.items()}


def _headline(requests: Columns, times: Mapping[str, NDArray[np.float64]]) -> dict[str, str]:
    last = np.asarray(requests["last_token_s"], float)
    done = np.isfinite(last)
    span = float(np.nanmax(last) - np.min(np.asarray(requests["arrival_s"], float))) if done.any() else np.nan
    tokens = float(np.asarray(requests["output_tokens"], float)[done].sum())
    items = {
        "requests": number(float(done.size)),
        "finished": percent(float(done.mean())),
        "requests per second": number(float(done.sum()) / span) if span else "–",
        "output tokens per second": number(tokens / span) if span else "–",
    }
    for name, label in (("ttft", "TTFT"), ("tpot", "TPOT")):
        if times[name].size:
            items[f"{label} p50"] = seconds(float(np.quantile(times[name], 0.5)))
            items[f"{label} p99"] = seconds(float(np.quantile(times[name], 0.99)))
    return items


def _headline_of(summary: Mapping[str, Any]) -> dict[str, str]:
    """The headline of a run whose requests are a sample."""
    counts, rates = summary["requests"], summary["throughput"]
    items = {
        "requests": number(float(counts["total"])),
        "finished": percent(counts["done"] / max(counts["total"], 1)),
        "requests per second": number(rates["requests_per_s"]),
        "output tokens per second": number(rates["output_tokens_per_s"]),
    }
    for key, label in (("ttft_s", "TTFT"), ("tpot_s", "TPOT")):
        for mark in ("p50", "p99"):
            if summary[key][mark] is not None:
                items[f"{label} {mark}"] = seconds(summary[key][mark])
    return items


def _percentiles_of(summary: Mapping[str, Any]) -> list[dict[str, Any]]:
    names = {
        "queue_s": "waiting",
        "ttft_s": "time to first token",
        "tpot_s": "time per output token",
        "e2e_s": "whole request",
    }
    return [
        {"latency": name, **{mark: seconds(value) for mark, value in summary[key].items()}}
        for key, name in names.items()
        if summary[key]["mean"] is not None
    ]


def _latency_charts(times: Mapping[str, NDArray[np.float64]], ttft: float | None, tpot: float | None) -> list[str]:
    charts = []
    first = {"time to first token": times["ttft"], "whole request": times["e2e"]}
    if "queue" in times and np.any(times["queue"] > 0):
        first["waiting"] = np.maximum(times["queue"], 1e-4)
    first = {k: v[v > 0] for k, v in first.items() if np.any(v > 0)}
    if first:
        charts.append(cdf_chart(first, title="Latency", x_label="seconds", x_log=True, x_format=seconds, limit=ttft))
    positive = times["tpot"][times["tpot"] > 0]
    if positive.size:
        charts.append(
            cdf_chart(
                {"": positive},
                title="Time per output token",
                x_label="seconds a token",
                x_log=True,
                x_format=seconds,
                limit=tpot,
            )
        )
    return charts


def _buckets(end: float) -> NDArray[np.float64]:
    return np.linspace(0.0, max(end, 1e-9), MOST_BUCKETS // 2 + 1)


def _load_charts(requests: Columns, series: Columns | None, one_in: int = 1) -> list[str]:
    arrival, last = np.asarray(requests["arrival_s"], float), np.asarray(requests["last_token_s"], float)
    ends = last[np.isfinite(last)]
    end = max(float(arrival.max()), float(ends.max()) if ends.size else 0.0)
    if series is not None and "arrived_per_s" in series:
        time, came, went = (np.asarray(series[k], float) for k in ("time_s", "arrived_per_s", "finished_per_s"))
    else:
        edges = _buckets(end)
        width = (edges[1] - edges[0]) / one_in
        time, came, went = edges[:-1], np.histogram(arrival, edges)[0] / width, np.histogram(ends, edges)[0] / width
    charts = [
        line_chart(
            [Series("arriving", time, came), Series("finishing", time, went)],
            title="Requests per second",
            x_label="time",
            y_label="requests/s",
            x_format=seconds,
        )
    ]
    if series is not None and "decode_tokens_per_s" in series:
        for name, title in (("prefill", "Prompt tokens computed per second"), ("decode", "Output tokens per second")):
            part = Series("", series["time_s"], series[f"{name}_tokens_per_s"])
            charts.append(line_chart([part], title=title, x_label="time", y_label="tokens/s", x_format=seconds))
    if one_in > 1:
        lines = [Series("in flight", time, np.maximum(np.cumsum(came - went) * _width(time), 0.0))]
    else:
        edges = _buckets(end)
        lines = [
            Series(name, edges, _count(arrival, edges) - _count(marks, edges))
            for name, marks in (
                ("in flight", ends),
                ("before the first token", np.asarray(requests["first_token_s"], float)),
            )
        ]
    charts.append(line_chart(lines, title="Requests in flight", x_label="time", y_label="requests", x_format=seconds))
    return charts


def _count(times: NDArray[np.float64], edges: NDArray[np.float64]) -> NDArray[np.float64]:
    """How many of the finite ``times`` lie at or before each edge."""
    return np.searchsorted(np.sort(times[np.isfinite(times)]), edges, "right").astype(float)


def _width(time: NDArray[np.float64]) -> float:
    return float(time[1] - time[0]) if time.size > 1 else 1.0


def _inside_charts(series: Columns) -> list[str]:
    time = np.asarray(series["time_s"], float)
    charts = []
    for name, (title, axis, show) in _SERIES.items():
        if name in series:
            values = Series("", time, series[name])
            charts.append(
                line_chart([values], title=title, x_label="time", y_label=axis, x_format=seconds, y_format=show)
            )
    return charts


def _shape_charts(requests: Columns, one_in: int) -> list[str]:
    arrival, first = (np.asarray(requests[k], float) for k in NEEDED[:2])
    inputs, ttft = np.asarray(requests["input_tokens"], float), first - arrival
    good = np.isfinite(ttft) & (ttft > 0)
    charts = []
    if good.sum() > 1:
        keep = np.flatnonzero(good)
        keep = keep[np.linspace(0, keep.size - 1, min(keep.size, 2000)).astype(int)]
        charts.append(
            scatter_chart(
                [Series("", inputs[keep], ttft[keep])],
                title="First token by prompt length",
                x_label="input tokens",
                y_label="time to first token",
                x_log=True,
                y_log=True,
                y_format=seconds,
            )
        )
    replica = requests.get("replica") if one_in == 1 else None
    if replica is not None:
        index = np.asarray(replica, int)
        chosen = index >= 0
        counts = np.bincount(index[chosen]) if chosen.any() else np.zeros(0)
        if 1 < counts.size <= 32:
            charts.append(
                bar_chart(
                    [f"replica {i}" for i in range(counts.size)], {"": counts.tolist()}, title="Requests by replica"
                )
            )
        elif counts.size > 32:
            order = np.sort(counts)[::-1]
            line = Series("", np.arange(1, order.size + 1), order)
            charts.append(
                line_chart([line], title="Requests by replica, busiest first", x_label="replica", y_label="requests")
            )
    return charts


def _percentiles(times: Mapping[str, NDArray[np.float64]]) -> list[dict[str, Any]]:
    names = {"queue": "waiting", "ttft": "time to first token", "tpot": "time per output token", "e2e": "whole request"}
    rows = []
    for key, name in names.items():
        values = times.get(key)
        if values is not None and values.size:
            row: dict[str, Any] = {"latency": name, "mean": seconds(float(values.mean()))}
            row |= {f"p{q:g}": seconds(float(np.percentile(values, q))) for q in (50, 90, 95, 99, 99.9)}
            rows.append(row | {"max": seconds(float(values.max()))})
    return rows


def _flat(summary: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Numbers and texts of a nested mapping, by dotted name; long lists are left to the file."""
    found: dict[str, Any] = {}
    for key, value in summary.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            found |= _flat(value, f"{name}.")
        elif isinstance(value, str | int | float | bool) or value is None:
            found[name] = value
    return found
