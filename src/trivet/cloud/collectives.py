"""Collectives and sends over the levels of a fabric: latency and bandwidth terms per level, the best algorithm of each library.

A buffer of ``S`` bytes (``Transfer.bytes``: the full buffer) among ``n`` chips of one level with bandwidth ``b`` per chip and
direction and latency ``a`` a step costs (Thakur, Rabenseifner, Gropp, 2005; NCCL's and the engines' own kernels):

    all-reduce      ring      2 (n-1)/n S/b + 2 (n-1) a
                    tree      2 S/b + 2 ceil(log2 n) a
                    in-switch S/b (1 + 1/n) + 2 a
                    one-shot  (n-1) S/b + a          (custom kernels: every chip reads all others)
                    two-shot  2 (n-1)/n S/b + 2 a
    all-gather, reduce-scatter, all-to-all   (n-1)/n S/b + steps a
    send            S/b + a
    broadcast       S/b + ceil(log2 n) a

Over several levels an all-reduce is a reduce-scatter inside, an all-reduce of the remaining share outside, an all-gather inside.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from trivet.chip.spec import Chip
from trivet.chip.timing import Seconds
from trivet.errors import TrivetError
from trivet.operators import Transfer

Floats = NDArray[np.float64]
KINDS = ("all_reduce", "all_gather", "reduce_scatter", "all_to_all", "send", "broadcast")


class LinkLevel(Protocol):
    """One level of a fabric, innermost first."""

    @property
    def chips(self) -> int: ...  # chips in one domain of this level

    @property
    def bandwidth_bytes_per_s(self) -> float: ...  # per chip and direction

    @property
    def latency_s(self) -> float: ...  # one hop, software included


@dataclass(frozen=True, slots=True)
class Level:
    """A level in plain numbers."""

    chips: int
    bandwidth_bytes_per_s: float
    latency_s: float
    in_network_reduction: bool = False
    log_sigma: float = 0.1


@dataclass(frozen=True, slots=True)
class CollectiveProfile:
    """What a library's collectives reach on a scale-up or scale-out level."""

    efficiency: float = 0.80  # of the link rate at large sizes
    launch_s: float = 5e-6
    custom: bool = True  # one-shot and two-shot kernels over peer memory inside a node
    log_sigma: float = 0.2


def _profile(library: str) -> CollectiveProfile:
    return CollectiveProfile()


def _steps(kind: str, n: int) -> float:
    return float(n - 1) if kind in ("all_gather", "reduce_scatter") else 1.0


def _flat(
    kind: str, size: Floats, n: int, level: Any, profile: CollectiveProfile, inside: bool
) -> tuple[Floats, Floats]:
    """(latency part, bandwidth part) of one collective inside one level."""
    rate = level.bandwidth_bytes_per_s * profile.efficiency
    hop = level.latency_s
    part = (n - 1) / n
    if kind == "send":
        return np.full_like(size, hop), size / rate
    if kind == "broadcast":
        return np.full_like(size, math.ceil(math.log2(n)) * hop), size / rate
    if kind != "all_reduce":
        return np.full_like(size, _steps(kind, n) * hop), part * size / rate
    ways = [(2.0 * (n - 1) * hop, 2.0 * part), (2.0 * math.ceil(math.log2(n)) * hop, 2.0)]
    if getattr(level, "in_network_reduction", False):
        ways.append((2.0 * hop, 1.0 + 1.0 / n))
    if inside and profile.custom:
        ways += [(hop, float(n - 1)), (2.0 * hop, 2.0 * part)]
    latency = np.stack([np.full_like(size, a) for a, _ in ways])
    volume = np.stack([factor * size / rate for _, factor in ways])
    best = np.argmin(latency + volume, axis=0)[None, ...]
    return np.take_along_axis(latency, best, 0)[0], np.take_along_axis(volume, best, 0)[0]


def _spans(group: int, levels: Sequence[LinkLevel]) -> list[tuple[LinkLevel, int]]:
    """How many peers of the group each level joins, innermost first."""
    spans: list[tuple[LinkLevel, int]] = []
    joined = 1
    for index, level in enumerate(levels):
        last = index == len(levels) - 1
        reach = group if last else min(group, level.chips)
        factor = math.ceil(reach / joined)
        if factor > 1:
            spans.append((level, factor))
            joined *= factor
        if joined >= group:
            break
    return spans


def time(
    transfer: Transfer, levels: Sequence[LinkLevel], chip: Chip, library: str = "vllm", version: str = ""
) -> Seconds:
    """Seconds of one collective or send among ``transfer.group`` chips.

    ``levels``: the fabric, innermost first; the last one takes whatever the group has left. A send crosses the outermost level
    that the group needs. Raises TrivetError for an unknown kind or no level.
    """
    if transfer.kind not in KINDS:
        raise TrivetError(f"unknown transfer {transfer.kind!r}", field="kind", allowed=KINDS)
    size = np.atleast_1d(np.asarray(transfer.bytes, dtype=np.float64))
    scalar = np.ndim(transfer.bytes) == 0
    if transfer.group <= 1:
        zero = np.zeros_like(size)
        return Seconds(float(zero[0]) if scalar else zero, 0.0)
    if not levels:
        raise TrivetError("a transfer needs at least one fabric level", field="levels")
    profile = _profile(library)
    latency, volume = _nested(transfer.kind, size, _spans(transfer.group, levels), profile)
    value = profile.launch_s + latency + volume
    link, launch = volume / value, (profile.launch_s + latency) / value
    sigma = np.full_like(size, profile.log_sigma)
    parts: list[Any] = [value, sigma, link, launch]
    if scalar:
        parts = [float(p[0]) for p in parts]
    return Seconds(parts[0], parts[1], 0.0, 0.0, parts[3], parts[2], profile.launch_s)


def _nested(
    kind: str, size: Floats, spans: list[tuple[LinkLevel, int]], profile: CollectiveProfile
) -> tuple[Floats, Floats]:
    """Latency and bandwidth parts over several levels."""
    if kind == "send" or len(spans) == 1:
        level, n = spans[-1]
        return _flat(kind, size, n, level, profile, len(spans) == 1)
    latency: Floats = np.zeros_like(size)
    volume: Floats = np.zeros_like(size)
    inside = 1  # peers joined by the levels inside this one
    group = math.prod(n for _, n in spans)
    for index, (level, n) in enumerate(spans):
        if kind == "all_to_all":
            # A chip's buffer is cut by where it goes; the share that leaves a domain crosses the outer level, and the
            # levels work at the same time.
            share = inside * (n - 1) / group
            a, b = level.latency_s, share * size / (level.bandwidth_bytes_per_s * profile.efficiency)
            latency, volume = latency + a, np.maximum(volume, b)
        elif kind == "broadcast":
            step = _flat(kind, size, n, level, profile, False)
            latency, volume = latency + step[0], np.maximum(volume, step[1])
        elif kind == "all_reduce" and index < len(spans) - 1:
            for phase in ("reduce_scatter", "all_gather"):
                step = _flat(phase, size / inside, n, level, profile, False)
                latency, volume = latency + step[0], volume + step[1]
        else:
            # The outer level moves one chip's share of the inner domain, on every chip's own rail.
            step = _flat(kind, size / inside, n, level, profile, False)
            latency, volume = latency + step[0], volume + step[1]
        inside *= n
    return latency, volume
