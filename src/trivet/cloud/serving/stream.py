"""A fleet under more requests than fit in memory: fed block by block, told by sketches and a sample of the requests.

What is kept does not grow with the number of requests: one sketch an hour (some 100 kB), every so-many-th request, and what is
in flight.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np

from trivet.cloud.serving import _loop_state as k
from trivet.cloud.serving.fleet import Finished, Fleet, FleetRun, ServingResult, result_of
from trivet.cloud.serving.sketches import HOUR_S, Longs, Sketches
from trivet.cloud.serving.traffic import Traffic
from trivet.errors import TrivetError

SAMPLE = 1000  # one request in so many is kept whole
BLOCK = 1_000_000  # requests of a block where a long traffic is cut


@dataclass(frozen=True, slots=True, eq=False)
class Streamed:
    """A finished simulation of many requests.

    Args:
        sample: every ``every``-th request, in order; its series, replicas and counters are those of all requests.
        ids: their numbers in the traffic.
        sketches: of all requests.
        begin_s, end_s: first arrival and last token of all.
        ttft_slo_s, tpot_slo_s: the limits that the sketches' ``within_slo`` was counted with.
    """

    sample: ServingResult
    ids: Longs
    sketches: Sketches
    every: int
    begin_s: float
    end_s: float
    ttft_slo_s: float | None
    tpot_slo_s: float | None


def blocks_of(traffic: Traffic, size: int = BLOCK) -> Iterator[Traffic]:
    """Traffic in blocks; whole where its requests depend on each other (sessions, prefixes, priorities, closed loops)."""
    linked = (traffic.previous, traffic.hash_offsets, traffic.priority)
    if traffic.max_concurrency or any(part is not None for part in linked):
        yield traffic
        return
    for start in range(0, len(traffic), size):
        yield traffic.take(np.arange(start, min(start + size, len(traffic))))


def groups_of(fleet: Fleet) -> tuple[tuple[str, ...], Longs]:
    """Names of the groups of replicas ("0 h100 prefill"), and the group of each replica."""
    names = tuple(
        " ".join(filter(None, (str(at), kind.name, "" if kind.role == "both" else kind.role)))
        for at, kind in enumerate(fleet.kinds)
    )
    return names, np.repeat(np.arange(len(fleet.kinds)), [kind.count for kind in fleet.kinds]).astype(np.int64)


def simulate_stream(
    blocks: Iterable[Traffic],
    fleet: Fleet,
    *,
    service: str = "",
    every: int = SAMPLE,
    ttft_slo_s: float | None = None,
    tpot_slo_s: float | None = None,
    adapters: int = 0,
    report: Callable[[int], None] = lambda _: None,
) -> Streamed:
    """Every request of ``blocks`` through ``fleet``.

    Args:
        blocks: traffic in order of time, on one clock. Sessions and prefixes need one block.
        every: requests whose number is a multiple of it are kept.
        adapters: how many different ones the blocks name in all.
        report: called with the number of requests sent so far.

    Raises:
        TrivetError: blocks that do not follow each other, or a fleet that cannot run.
    """
    names, group = groups_of(fleet)
    late = np.repeat(
        np.array([round(kind.table.first_token_overhead_s * k.PS) for kind in fleet.kinds], np.int64),
        [kind.count for kind in fleet.kinds],
    )
    sketches, kept = Sketches(names, service), []
    run: FleetRun | None = None
    gaps = np.zeros(k.ITL_BINS, np.int64)
    begin, end = k.INF, 0
    for traffic, final in _with_last(blocks):
        if run is None:
            run = _new_run(traffic, fleet, adapters)
        rows = run.feed(traffic, final=final, copy=False).rows
        sketches.add_rows(rows, group, late, ttft_slo_s, tpot_slo_s)
        if rows.shape[0]:
            begin = min(begin, int(rows[:, k.O_ARRIVAL].min()))
            done = rows[rows[:, k.O_STATUS] == k.DONE]
            served = np.where(done[:, k.O_PREFILL_REPLICA] >= 0, done[:, k.O_PREFILL_REPLICA], done[:, k.O_REPLICA])
            end = max(end, int((done[:, k.O_LAST] + late[served]).max(initial=0)))
        hour = (
            int(run.state.run[k.G_NOW]) // round(HOUR_S * k.PS)
            if not len(traffic)
            else int(traffic.arrival_s[0] // HOUR_S)
        )
        new = run.state.itl - gaps
        if new.any():
            sketches.add_gaps(hour, new)
            gaps = run.state.itl.copy()
        kept.append(rows[rows[:, k.O_ID] % every == 0])
        report(run.sent)
    if run is None:
        raise TrivetError("no traffic", field="traffic")
    sample = np.concatenate(kept)
    sample = sample[np.argsort(sample[:, k.O_ID], kind="stable")]
    ids = sample[:, k.O_ID].copy()
    sample[:, k.O_ID] = np.arange(ids.size)
    result = result_of(run, Finished(sample))
    return Streamed(
        result, ids, sketches, every, begin / k.PS if begin < k.INF else 0.0, end / k.PS, ttft_slo_s, tpot_slo_s
    )


def _new_run(first: Traffic, fleet: Fleet, adapters: int) -> FleetRun:
    sessions = len(first) if first.previous is not None else 0
    hashes = first.hash_ids if first.hash_offsets is not None else None
    return FleetRun(fleet, hash_ids=hashes, hash_block=first.block_tokens, sessions=sessions, adapters=adapters)


def _with_last(blocks: Iterable[Traffic]) -> Iterator[tuple[Traffic, bool]]:
    """Each block, and whether it is the last."""
    source = iter(blocks)
    try:
        one = next(source)
    except StopIteration:
        return
    for following in source:
        yield one, False
        one = following
    yield one, True


def on_clock(blocks: Iterable[Traffic], start_s: float) -> Iterator[Traffic]:
    """Blocks with times from ``start_s`` on, moved to begin at 0."""
    for block in blocks:
        yield replace(block, arrival_s=block.arrival_s - start_s)
