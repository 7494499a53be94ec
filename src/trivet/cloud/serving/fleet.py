"""A fleet of replicas under traffic: describe it, simulate it, read the result. The front door of the serving loop."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from trivet.cloud.serving import _loop_state as k
from trivet.cloud.serving.adapters import adapters_of
from trivet.cloud.serving.fleet_run import Finished, FleetRun, Longs
from trivet.cloud.serving.fleet_spec import Admission, Fleet, ReplicaKind, Transfer
from trivet.cloud.serving.traffic import Traffic

__all__ = [
    "Admission",
    "Finished",
    "Fleet",
    "FleetRun",
    "ReplicaKind",
    "ServingResult",
    "Transfer",
    "result_of",
    "simulate",
]


@dataclass(frozen=True, slots=True, eq=False)
class ServingResult:
    """A finished simulation. Arrays have one entry a request, in the order of the traffic; times in seconds, NaN where
    there is none (a refused request has no first token).
    """

    fleet: Fleet
    arrival_s: NDArray[np.float64]
    scheduled_s: NDArray[np.float64]
    first_token_s: NDArray[np.float64]
    last_token_s: NDArray[np.float64]
    input_tokens: Longs
    output_tokens: Longs
    cached_tokens: Longs
    preemptions: Longs
    replica: Longs
    prefill_replica: Longs
    status: Longs  # 0 done, 1 refused, 2 failed
    tries: Longs
    series: NDArray[np.float64]
    bucket_s: float
    itl_counts: Longs
    replicas: Longs
    run: Longs
    adapters: Longs | None = None  # [replicas, columns C_* of the loop]: loads, time of loads; None without adapters
    images: Longs | None = None  # [replicas, 2]: images encoded, picoseconds spent on them; None without images


def simulate(traffic: Traffic, fleet: Fleet) -> ServingResult:
    """Every request of ``traffic`` through ``fleet``."""
    sessions = traffic.arrival_s.size if traffic.previous is not None else 0
    hashes = traffic.hash_ids if traffic.hash_offsets is not None else None
    run = FleetRun(
        fleet, hash_ids=hashes, hash_block=traffic.block_tokens, sessions=sessions, adapters=adapters_of(traffic)
    )
    result = result_of(run, run.feed(traffic, copy=False))
    run.close()
    return result


def result_of(run: FleetRun, finished: Finished) -> ServingResult:
    """Sort what ended into the order of the traffic and turn it into seconds.

    What a request takes outside the scheduler (HTTP, tokeniser; ``first_token_overhead_s``) is added here: it holds up
    nobody else.
    """
    order = np.empty(finished.rows.shape[0], np.int64)
    order[finished.rows[:, k.O_ID] - (finished.rows[:, k.O_ID].min() if finished.rows.size else 0)] = np.arange(
        order.size
    )
    rows = Finished(finished.rows[order])
    ints = rows.rows
    state = run.state
    now = int(state.run[k.G_NOW])
    kinds = run.fleet.kinds
    overhead = np.repeat([kind.table.first_token_overhead_s for kind in kinds], [kind.count for kind in kinds])
    served = np.where(ints[:, k.O_PREFILL_REPLICA] >= 0, ints[:, k.O_PREFILL_REPLICA], ints[:, k.O_REPLICA])
    late = np.where(served >= 0, overhead[served], 0.0)
    on = np.isin(state.replicas[:, k.R_UP], (k.ON, k.DRAINING, k.STARTING))
    state.replicas[on, k.R_UP_TIME] += now - state.replicas[on, k.R_SINCE]
    state.replicas[on, k.R_SINCE] = now
    return ServingResult(
        fleet=run.fleet,
        arrival_s=rows.seconds(k.O_ARRIVAL),
        scheduled_s=rows.seconds(k.O_SCHEDULED),
        first_token_s=rows.seconds(k.O_FIRST) + late,
        last_token_s=np.where(ints[:, k.O_STATUS] == k.DONE, ints[:, k.O_LAST] / k.PS + late, np.nan),
        input_tokens=ints[:, k.O_INPUT],
        output_tokens=ints[:, k.O_OUTPUT],
        cached_tokens=ints[:, k.O_HIT],
        preemptions=ints[:, k.O_PREEMPTIONS],
        replica=ints[:, k.O_REPLICA],
        prefill_replica=ints[:, k.O_PREFILL_REPLICA],
        status=ints[:, k.O_STATUS],
        tries=ints[:, k.O_TRIES],
        series=state.series[: now // int(state.run[k.G_BUCKET]) + 1].astype(float),
        bucket_s=int(state.run[k.G_BUCKET]) / k.PS,
        itl_counts=state.itl,
        replicas=state.replicas,
        run=state.run,
        adapters=None if state.lora is None else state.lora.counts,
        images=None if state.images is None else state.images.counts,
    )
