"""Pipeline schedules: the bubble in closed form, the timeline event by event.

Equations: 1F1B (Narayanan et al., PipeDream-2BW, ICML 2021), interleaved 1F1B (Narayanan et al., SC 2021, eq. for the
bubble ``(p-1)/(v m)``), zero-bubble ZB-H1 (Qi et al., ICLR 2024), DualPipe (DeepSeek-V3, arXiv 2412.19437, table 2).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from trivet.errors import Unsupported
from trivet.operators import Number


def bubble_s(schedule: str, pp: Number, vp: Number, forward_s: Number, input_s: Number, weight_s: Number) -> Number:
    """Idle time of a rank in one step, seconds.

    Args:
        schedule: name in ``job.SCHEDULES``.
        pp, vp: pipeline ranks and virtual stages a rank.
        forward_s, input_s, weight_s: time of one micro-batch on one rank forward, backward for inputs (recompute
            included) and backward for weights. Arrays broadcast.
    """
    ranks = np.asarray(pp, float) - 1.0
    whole = np.asarray(forward_s, float) + input_s + weight_s
    if schedule in ("1f1b", "gpipe"):
        return ranks * whole
    if schedule == "interleaved":
        return ranks * whole / vp
    if schedule == "zero_bubble":
        # ZB-H1: (p-1)(F + B - W), the weight pass fills the rest
        return ranks * np.maximum(np.asarray(forward_s, float) + input_s - weight_s, 0.0)
    if schedule == "dualpipe":
        # (p/2 - 1)(F&B + B - 3W) with F&B = F + B_in + W overlapped and B = B_in + W
        both = np.asarray(forward_s, float) + input_s + weight_s
        return np.maximum(np.asarray(pp, float) / 2 - 1, 0.0) * np.maximum(
            both + input_s + weight_s - 3 * np.asarray(weight_s, float), 0.0
        )
    raise Unsupported(f"no bubble known for {schedule!r}", field="schedule")


def in_flight(schedule: str, pp: int, vp: int, rank: int, micro_batches: int) -> float:
    """Micro-batches (of all the rank's layers) whose activations a rank holds at its peak."""
    if schedule == "gpipe":
        return float(micro_batches)
    if schedule == "dualpipe":
        return float(min(pp + 1, 2 * micro_batches))
    if vp > 1 and schedule == "interleaved":
        chunks = (vp - 1) * pp + 2 * (pp - rank - 1) + 1
        return min(chunks, micro_batches * vp) / vp
    return float(min(pp - rank, micro_batches))


@dataclass(frozen=True, slots=True)
class Slot:
    """One box of the timeline: pass ``kind`` ("F", "B", "W") of a micro-batch and virtual stage on a rank."""

    rank: int
    kind: str
    micro_batch: int
    chunk: int
    start_s: float
    end_s: float


def _order(schedule: str, pp: int, vp: int, rank: int, micro_batches: int) -> list[tuple[str, int, int]]:
    """The passes of one rank in the order in which it runs them: (kind, micro-batch, chunk)."""
    if vp == 1:
        warm = micro_batches if schedule == "gpipe" else min(pp - rank - 1, micro_batches)
        order = [("F", m, 0) for m in range(warm)]
        for m in range(micro_batches - warm):
            order += [("F", warm + m, 0), ("B", m, 0)]
        return order + [("B", m, 0) for m in range(micro_batches - warm, micro_batches)]
    total = micro_batches * vp
    group = pp * vp

    def unit(index: int, forward: bool) -> tuple[int, int]:
        inside = index % group
        chunk = inside // pp
        return index // group * pp + inside % pp, chunk if forward else vp - 1 - chunk

    warm = total if micro_batches == pp else min((pp - rank - 1) * 2 + (vp - 1) * pp, total)
    order = [("F", *unit(i, True)) for i in range(warm)]
    for i in range(total - warm):
        order += [("F", *unit(warm + i, True)), ("B", *unit(i, False))]
    return order + [("B", *unit(i, False)) for i in range(total - warm, total)]


def timeline(
    schedule: str,
    vp: int,
    micro_batches: int,
    forward_s: Sequence[float],
    input_s: Sequence[float],
    weight_s: Sequence[float],
    send_s: float = 0.0,
) -> list[Slot]:
    """Every pass of every rank of one step, exact for the given times (seconds a micro-batch and rank).

    With "zero_bubble" weight passes fill idle slots and the end; otherwise a backward pass is input and weight in one.

    Raises:
        Unsupported: interleaving with micro-batches that are no multiple of the ranks; "dualpipe" (two directions).
    """
    pp = len(forward_s)
    if schedule == "dualpipe":
        raise Unsupported("the timeline of DualPipe is not drawn; its bubble is in closed form", field="schedule")
    if vp > 1 and micro_batches % pp:
        raise Unsupported(
            f"interleaving needs micro-batches in multiples of pp {pp}, got {micro_batches}", field="global_batch"
        )
    split_weight = schedule == "zero_bubble"
    orders = [_order(schedule, pp, vp, rank, micro_batches) for rank in range(pp)]
    cursor, clock = [0] * pp, [0.0] * pp
    done: dict[tuple[str, int, int, int], float] = {}
    waiting: list[list[int]] = [[] for _ in range(pp)]
    slots: list[Slot] = []

    def ready(rank: int, kind: str, micro: int, chunk: int) -> float | None:
        stage, last = chunk * pp + rank, pp * vp - 1
        if kind == "F":
            if stage == 0:
                return 0.0
            before = stage - 1
            end = done.get(("F", before % pp, micro, before // pp))
        elif stage == last:
            return done.get(("F", rank, micro, chunk))
        else:
            after = stage + 1
            end = done.get(("B", after % pp, micro, after // pp))
        return None if end is None else end + send_s

    remaining = sum(len(order) for order in orders)
    while remaining:
        moved = False
        for rank in range(pp):
            while cursor[rank] < len(orders[rank]):
                kind, micro, chunk = orders[rank][cursor[rank]]
                at = ready(rank, kind, micro, chunk)
                if at is None:
                    break
                if split_weight:
                    # fill the gap before ``at`` with waiting weight passes
                    while waiting[rank] and clock[rank] + weight_s[rank] / vp <= at + 1e-15:
                        _weight(slots, clock, waiting, rank, weight_s[rank] / vp)
                start = max(at, clock[rank])
                length = forward_s[rank] if kind == "F" else input_s[rank] + (0.0 if split_weight else weight_s[rank])
                end = start + length / vp
                slots.append(Slot(rank, kind, micro, chunk, start, end))
                done[kind, rank, micro, chunk] = clock[rank] = end
                if kind == "B" and split_weight:
                    waiting[rank].append(micro)
                cursor[rank] += 1
                remaining -= 1
                moved = True
        if not moved:  # pragma: no cover - the orders above are free of cycles
            raise Unsupported("the schedule has a cycle", field="schedule")
    for rank in range(pp):
        while waiting[rank]:
            _weight(slots, clock, waiting, rank, weight_s[rank] / vp)
    return slots


def _weight(slots: list[Slot], clock: list[float], waiting: list[list[int]], rank: int, length: float) -> None:
    micro = waiting[rank].pop(0)
    slots.append(Slot(rank, "W", micro, 0, clock[rank], clock[rank] + length))
    clock[rank] += length


def span_s(slots: Sequence[Slot]) -> float:
    """End of the last pass, seconds."""
    return max(slot.end_s for slot in slots)


def pipeline_s(
    schedule: str,
    vp: int,
    micro_batches: int,
    forward_s: NDArray[np.float64],
    input_s: NDArray[np.float64],
    weight_s: NDArray[np.float64],
) -> float:
    """Time of one step's passes through an uneven pipeline, closed form: the slowest rank works without a pause, the
    others fill and drain it (exact for equal stages; tested against ``timeline``)."""
    whole = forward_s + input_s + weight_s
    slow = int(np.argmax(whole))
    if schedule in ("1f1b", "gpipe", "interleaved"):
        fill = float(np.sum(whole) - whole[slow]) / (vp if schedule == "interleaved" else 1)
    else:
        fill = float(
            bubble_s(
                schedule, len(whole), vp, float(np.mean(forward_s)), float(np.mean(input_s)), float(np.mean(weight_s))
            )
        )
    return float(whole[slow]) * micro_batches + fill
