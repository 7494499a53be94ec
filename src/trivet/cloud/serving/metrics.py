"""What a simulated fleet did, in numbers: latency, goodput, rates, use, and the same over time."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from trivet.cloud.serving import _loop_state as k
from trivet.cloud.serving import sketches as sk
from trivet.cloud.serving._loop_images import I_ENCODES, I_TIME
from trivet.cloud.serving._loop_lora import C_DISK_LOADS, C_LOAD_TIME, C_LOADS
from trivet.cloud.serving.fleet import ServingResult
from trivet.cloud.serving.stream import Streamed

Floats = NDArray[np.float64]
PERCENTILES = (50, 90, 95, 99)


def latencies(result: ServingResult) -> dict[str, Floats]:
    """``ttft``, ``tpot``, ``e2e``, ``queue`` of each request, seconds; NaN where there is none.

    TPOT is (last - first token) / (tokens - 1), of requests with more than one token.
    """
    many = result.output_tokens > 1
    tpot = np.full(many.size, np.nan)
    tpot[many] = (result.last_token_s - result.first_token_s)[many] / (result.output_tokens[many] - 1)
    return {
        "ttft": result.first_token_s - result.arrival_s,
        "tpot": tpot,
        "e2e": result.last_token_s - result.arrival_s,
        "queue": result.scheduled_s - result.arrival_s,
    }


def spread(values: Floats) -> dict[str, float | None]:
    """Mean, percentiles and maximum of the finite values; None where there are none."""
    good = values[np.isfinite(values)]
    if not good.size:
        return {"mean": None, **{f"p{p}": None for p in PERCENTILES}, "max": None}
    marks = np.percentile(good, PERCENTILES)
    return {
        "mean": float(good.mean()),
        **{f"p{p}": float(v) for p, v in zip(PERCENTILES, marks, strict=True)},
        "max": float(good.max()),
    }


def spread_of_gaps(counts: NDArray[np.int64]) -> dict[str, float | None]:
    """The same of inter-token gaps from their log-binned counts (64 bins an octave: within 0.8%)."""
    total = int(counts.sum())
    if not total:
        return {"mean": None, **{f"p{p}": None for p in PERCENTILES}, "max": None}
    edges = k.itl_edges_s()
    middle = 0.5 * (edges[:-1] + edges[1:])
    summed = np.cumsum(counts)
    out: dict[str, float | None] = {"mean": float(counts @ middle / total)}
    for p in PERCENTILES:
        out[f"p{p}"] = float(middle[np.searchsorted(summed, p / 100 * total)])
    out["max"] = float(edges[int(np.flatnonzero(counts)[-1]) + 1])
    return out


def kept(result: ServingResult, ttft_s: float | None, tpot_s: float | None) -> NDArray[np.bool_]:
    """Which requests ended within the SLO; a limit of None always holds."""
    times = latencies(result)
    good = result.status == k.DONE
    if ttft_s is not None:
        good &= times["ttft"] <= ttft_s
    if tpot_s is not None:
        good &= ~(times["tpot"] > tpot_s)
    return np.asarray(good)


def summary(result: ServingResult, ttft_s: float | None = None, tpot_s: float | None = None) -> dict[str, Any]:
    """The numbers of ``summary.json`` that need neither money nor power."""
    done = result.status == k.DONE
    times = latencies(result)
    begin = float(result.arrival_s.min()) if done.size else 0.0
    good = kept(result, ttft_s, tpot_s)
    tpot = times["tpot"][np.isfinite(times["tpot"]) & (times["tpot"] > 0)]
    counts = {
        "requests": int(done.size), "done": int(done.sum()), "refused": int((result.status == k.REJECTED).sum()),
        "failed": int((result.status == k.FAILED).sum()), "within_slo": int(good.sum()),
        "input_tokens": int(result.input_tokens[done].sum()), "output_tokens": int(result.output_tokens[done].sum()),
    }  # fmt: skip
    spreads = {f"{name}_s": spread(times[name]) for name in ("ttft", "tpot")}
    spreads |= {"itl_s": spread_of_gaps(result.itl_counts)}
    spreads |= {f"{name}_s": spread(times[name]) for name in ("e2e", "queue")}
    span = max(float(np.nanmax(result.last_token_s)) - begin, 1e-12) if done.any() else 0.0
    per_user = float((1 / tpot).mean()) if tpot.size else None
    return _numbers(result, counts, spreads, span, per_user, (ttft_s, tpot_s))


def summary_streamed(found: Streamed) -> dict[str, Any]:
    """The same of a run that kept sketches: counts and means are exact, percentiles within 1/129 of themselves."""
    counts = found.sketches.counters()
    spreads = {
        f"{name}_s": sk.spread(*found.sketches.total(sk.METRICS.index(name)), PERCENTILES)
        for name in ("ttft", "tpot", "itl", "e2e", "queue")
    }
    pace, _ = found.sketches.total(sk.TPOT)
    pace[0] = 0
    per_user = float((pace[1:] / sk.values_s()[1:]).sum() / pace.sum()) if pace.sum() else None
    span = max(found.end_s - found.begin_s, 1e-12) if counts["done"] else 0.0
    out = _numbers(found.sample, counts, spreads, span, per_user, (found.ttft_slo_s, found.tpot_slo_s))
    out["percentiles"] = {
        "from": "sketches", "relative_error": sk.RELATIVE_ERROR, "rows_written": int(found.ids.size), "one_in": found.every,
    }  # fmt: skip
    out["hours"] = found.sketches.hours()
    return out


def by_priority(result: ServingResult, priority: NDArray[np.int32]) -> dict[str, Any]:
    """First-token latency of each priority; the lowest number is served first."""
    ttft = latencies(result)["ttft"]
    return {
        str(level): {"requests": int((priority == level).sum()), "ttft_s": spread(ttft[priority == level])}
        for level in np.unique(priority).tolist()
    }


def _numbers(
    result: ServingResult,
    counts: dict[str, int],
    spreads: dict[str, dict[str, float | None]],
    span: float,
    per_user: float | None,
    slo: tuple[float | None, float | None],
) -> dict[str, Any]:
    run, rows, chips = result.run, result.replicas, result.fleet.chips
    up_s, busy_s = rows[:, k.R_UP_TIME].sum() / k.PS, rows[:, k.R_BUSY].sum() / k.PS
    blocks_time = (rows[:, k.R_BLOCKS] * (rows[:, k.R_BUSY] / 1e6)).sum()
    rate = (lambda n: n / span) if span else (lambda n: 0.0)
    prompt, total = int(run[k.G_PROMPT_TOKENS]), counts["requests"]
    return {
        "requests": {
            "total": total, "done": counts["done"], "refused": counts["refused"], "failed": counts["failed"],
            "retries": int(run[k.G_RETRIES]), "preemptions": int(run[k.G_PREEMPTIONS]),
        },
        "duration_s": span,
        **spreads,
        "percentiles": {"from": "requests"},
        "slo": {"ttft_s": slo[0], "tpot_s": slo[1], "attainment": counts["within_slo"] / total if total else None,
            "goodput_requests_per_s": rate(counts["within_slo"])},
        "throughput": {
            "requests_per_s": rate(counts["done"]), "input_tokens_per_s": rate(counts["input_tokens"]),
            "output_tokens_per_s": rate(counts["output_tokens"]),
            "output_tokens_per_s_per_chip": rate(counts["output_tokens"]) / chips,
            "output_tokens_per_s_per_user": per_user,
        },
        "use": {
            "chips": chips, "replicas": result.fleet.replicas, "chip_hours": _chip_hours(result),
            "busy_share": float(busy_s / up_s) if up_s else None,
            "prefill_share": float(rows[:, k.R_MIXED_BUSY].sum() / max(rows[:, k.R_BUSY].sum(), 1)),
            "batch_mean": float(rows[:, k.R_DECODED].sum() / max(rows[:, k.R_DONE_STEPS].sum(), 1)),
            "kv_share_while_busy": float(rows[:, k.R_KV_TIME].sum() / blocks_time) if blocks_time else None,
            "steps": int(rows[:, k.R_DONE_STEPS].sum()),
        },
        "prefix_cache": {
            "hit_rate": float(run[k.G_HIT_TOKENS] / prompt) if prompt else None,
            "hit_tokens": int(run[k.G_HIT_TOKENS]), "loaded_tokens": int(run[k.G_LOADED_TOKENS]),
        },
        "kv_transfers": int(run[k.G_TRANSFERS]),
        **_extras(result),
    }  # fmt: skip


def _extras(result: ServingResult) -> dict[str, dict[str, float]]:
    """Adapters that were loaded and images that were encoded, where the traffic has any."""
    out: dict[str, dict[str, float]] = {}
    if result.adapters is not None:
        loads, disk, took = result.adapters[:, [C_LOADS, C_DISK_LOADS, C_LOAD_TIME]].sum(axis=0).tolist()
        out["adapters"] = {"loads": loads, "loads_from_disk": disk, "loading_s": took / k.PS}
    if result.images is not None:
        encodes, took = result.images[:, [I_ENCODES, I_TIME]].sum(axis=0).tolist()
        out["images"] = {"encoded": encodes, "encoding_s": took / k.PS}
    return out


def kind_of(result: ServingResult) -> NDArray[np.int64]:
    """Index into ``fleet.kinds`` of each replica."""
    return np.repeat(np.arange(len(result.fleet.kinds)), [kind.count for kind in result.fleet.kinds])


def _chip_hours(result: ServingResult) -> float:
    """Chips times the time that they were up, starting ones included; failed ones do not count."""
    chips = np.array([kind.chips for kind in result.fleet.kinds])[kind_of(result)]
    return float((result.replicas[:, k.R_UP_TIME] / k.PS * chips).sum() / 3600.0)


def over_time(result: ServingResult, most: int = 480) -> dict[str, Floats]:
    """Columns over time, means of equal buckets: see ``report.serving_report.html``."""
    series, width = result.series, result.bucket_s
    step = max(-(-len(series) // most), 1)
    padded = np.zeros((-(-len(series) // step) * step, series.shape[1]))
    padded[: len(series)] = series
    summed, width = padded.reshape(-1, step, series.shape[1]).sum(axis=1), width * step
    replicas = max(result.fleet.replicas, 1)
    blocks = max(float(result.replicas[:, k.R_BLOCKS].sum()), 1.0)
    micro = width * 1e6
    return {
        "time_s": np.arange(len(summed)) * width,
        "arrived_per_s": summed[:, k.T_ARRIVED] / width,
        "finished_per_s": summed[:, k.T_FINISHED] / width,
        "prefill_tokens_per_s": summed[:, k.T_PREFILLED] / width,
        "decode_tokens_per_s": summed[:, k.T_DECODED] / width,
        "batch": summed[:, k.T_BATCH_TIME] / micro / replicas,
        "queue": summed[:, k.T_QUEUE_TIME] / micro,
        "kv_share": np.minimum(summed[:, k.T_KV_TIME] / micro / blocks, 1.0),
        "busy_share": np.minimum(summed[:, k.T_BUSY] / k.PS / width / replicas, 1.0),
    }


def columns(result: ServingResult, ids: NDArray[np.int64] | None = None) -> dict[str, NDArray[Any]]:
    """The columns of ``requests.parquet``, one row a request in the order of the traffic; ``ids`` where it is a sample."""
    numbers = np.arange(result.arrival_s.size) if ids is None else ids
    return {
        "request_id": numbers, "arrival_s": result.arrival_s, "scheduled_s": result.scheduled_s,
        "first_token_s": result.first_token_s, "last_token_s": result.last_token_s, "input_tokens": result.input_tokens,
        "output_tokens": result.output_tokens, "cached_tokens": result.cached_tokens, "preemptions": result.preemptions,
        "replica": result.replica, "prefill_replica": result.prefill_replica, "tries": result.tries,
        "status": np.array(["done", "refused", "failed"])[result.status],
    }  # fmt: skip
