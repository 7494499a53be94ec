"""Collectives and sends over the levels of a fabric: latency and bandwidth terms per level, the best algorithm each.

A buffer of ``S`` bytes (``Transfer.bytes``: the full buffer) among ``n`` chips of one level with bandwidth ``b`` per chip
and direction and latency ``a`` a step costs (Thakur, Rabenseifner, Gropp, 2005; NCCL's and the engines' own kernels):

    all-reduce      ring      2 (n-1)/n S/b + 2 (n-1) a
                    tree      2 S/b + 2 ceil(log2 n) a
                    in-switch S/b (1 + 1/n) + 2 a
                    one-shot  (n-1) S/b + a          (custom kernels: every chip reads all others)
                    two-shot  2 (n-1)/n S/b + 2 a
    all-gather, reduce-scatter, all-to-all   (n-1)/n S/b + steps a
    send            S/b + a
    broadcast       S/b + ceil(log2 n) a

Over several levels an all-reduce is a reduce-scatter inside, an all-reduce of the remaining share outside, an all-gather
inside. Inside one scale-up level the kernels of NCCL and of the engines were measured: there the ring's volume and a floor
are corrected by what calibration learned (``chip/residual.py``, kind "collective"), as a function of size and group.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from trivet.chip import residual
from trivet.chip.point import fact_value
from trivet.chip.spec import Chip
from trivet.chip.timing import Seconds
from trivet.cloud import fabric
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
    topology: str = ""  # of fabric.TOPOLOGIES; "" = not told, taken as a switch where it is fast
    dimensions: int = 1  # of a torus


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
    # Parallel aggregated trees (NCCL 2.23 and later) or recursive doubling: the ring's volume in log2(n) steps.
    return float(math.ceil(math.log2(n))) if kind in ("all_gather", "reduce_scatter") else 1.0


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
    spans = _spans(transfer.group, levels)
    if len(spans) == 1 and transfer.kind in LEARNED and _scale_up(spans[0][0]):
        found = _learned(transfer, size, spans[0][0], chip, library)
    else:
        profile = _profile(library)
        latency, volume = _nested(transfer.kind, size, spans, profile)
        value = profile.launch_s + latency + volume
        sheet = max(float(getattr(level, "log_sigma", 0.0)) for level, _ in spans)
        sigma = np.sqrt(profile.log_sigma**2 + (volume / value * sheet) ** 2)
        found = _seconds(value, sigma, volume / value, profile.launch_s, profile.log_sigma, sheet, "")
    if not scalar:
        return found
    seconds, spread, launch, link, floor_s, own = (
        float(np.ravel(v)[0])
        for v in (found.value_s, found.log_sigma, found.launch, found.link, found.floor_s, found.own_sigma)
    )
    return Seconds(seconds, spread, 0.0, 0.0, launch, link, floor_s, found.note, own, found.sigmas)


def _seconds(value: Floats, sigma: Floats, link: Floats, floor: Any, own: Any, sheet: float, note: str) -> Seconds:
    floors = np.broadcast_to(np.asarray(floor, dtype=np.float64), value.shape)
    owns = np.broadcast_to(np.asarray(own, dtype=np.float64), value.shape)
    return Seconds(value, sigma, 0.0, 0.0, 1.0 - link, link, floors, note, owns, (0.0, 0.0, 0.0, sheet))


LEARNED = ("all_reduce", "all_gather", "reduce_scatter", "all_to_all")
FLOOR_S = 4e-6  # before calibration: two flags across the links, and a launch
# Without a graph the host launches: 20 to 45 us on x86, on Grace GRACE_LAUNCH times as long (as the floors of dispatch to experts
# show). Meanwhile the device does the one before: the longer of the two counts, not the sum (HOST_JOIN). The device also copies
# the message into and out of buffers that a graph knows beforehand.
HOST_S, GRACE_LAUNCH, HOST_JOIN, EAGER_COPIES = 25e-6, 2.7, 6.0, 2.0
PCIE_BYTES_PER_S = 100e9  # a link below this rate is PCIe's, or like it
# What runs a collective: name -> (group in the calibration, custom kernels, launched without a graph).
BACKENDS = {
    "nccl": (0.0, 0.0), "vllm": (1.0, 0.0), "sglang": (1.0, 0.0), "trtllm": (1.0, 0.0), "vllm_eager": (1.0, 1.0),
    "sglang_eager": (1.0, 1.0),
}  # fmt: skip


def backend(engine: str, source: str = "", label: str = "") -> str:
    """The calibrated back end of a row: engine name, kernel source and back-end label as the tables have them."""
    text = f"{engine} {source} {label}".lower()
    if "nccl" in text:
        return "nccl"
    name = "trtllm" if "trt" in text else "sglang" if "sglang" in text else "vllm" if "vllm" in text else "nccl"
    return f"{name}_eager" if "eager" in text and name != "trtllm" else name


def levels_of(chip: Chip, group: int, server: str = "") -> list[Level]:
    """The levels that ``group`` neighbouring chips of a server type cross, in plain numbers."""
    found = fabric.levels(fabric.server_of(chip, server), group, chip)
    return [
        Level(
            level.size, level.bandwidth_bytes_per_s / level.oversubscription, level.latency_s, False, level.log_sigma,
            "" if level.scale_out else level.topology, max(1, level.degree // 2),
        )
        for level in found
    ]  # fmt: skip


def _scale_up(level: LinkLevel) -> bool:
    return (
        getattr(level, "topology", "") in ("switch", "mesh", "pcie", "ring", "torus")
        or level.bandwidth_bytes_per_s >= 100e9
    )


def ring_share(kind: str, n: int) -> float:
    """Bytes that each chip sends in a ring over the bytes of the buffer."""
    return (2.0 if kind == "all_reduce" else 1.0) * (n - 1) / n


def reduced_in_switch(called: str, chip: Chip) -> bool:
    """Whether NCCL may let the switch add up an all-reduce: NVSwitch of the third generation (Hopper) and later can."""
    return called == "all_reduce" and chip.server != "" and _scale_up_name(chip.server) in _REDUCING


_REDUCING = ("nvswitch3", "nvswitch4", "nvswitch4-rack")


@cache
def _scale_up_name(server: str) -> str:
    return fabric.server(server).scale_up.name


def collective_features(
    kind: str, size: Floats, n: int, bandwidth: float, name: str, in_switch: bool, floor_s: float = FLOOR_S, memory: float = 0.0
) -> tuple[Floats, NDArray[np.float32]]:
    """(ideal seconds [rows, 3]: ring volume over the link, a hundredth of it, floor; features [rows, features]).

    The features hold no size and no bandwidth by itself, only their ratio to the floor: five families are too few to learn
    what a link rate does, and it is the ratio that transfers. ``memory``: bytes/s of the chip, for copies without a graph.
    """
    custom, eager = BACKENDS[name]
    volume = ring_share(kind, n) * size / bandwidth
    if eager and memory:
        volume = volume + EAGER_COPIES * 2.0 * size / memory
    ones = np.ones_like(size)
    columns = [
        np.log2(float(n)) * ones, np.log(np.clip(volume / FLOOR_S, 1e-4, 1e4)), custom * ones, eager * ones,
        (bandwidth < PCIE_BYTES_PER_S) * ones, float(in_switch and n >= 8) * ones, *((kind == k) * ones for k in LEARNED),
    ]  # fmt: skip
    return np.column_stack([volume, volume / 100.0, floor_s * ones]), np.column_stack(columns).astype(np.float32)


def collective_group(name: str, bandwidth: float, chip: Chip) -> str:
    """The group whose offsets a back end takes: over PCIe other protocols run, and a launch without a graph waits for the
    host, where Grace takes 2 to 4 times as long as x86."""
    if bandwidth < PCIE_BYTES_PER_S:
        return f"{name}/pcie"
    return f"{name}/grace" if _slow_host(name, chip) else name


def _slow_host(name: str, chip: Chip) -> bool:
    return BACKENDS[name][1] > 0.0 and chip.server != "" and fabric.server_of(chip).host == "grace"


def collective_floor(name: str, chip: Chip) -> float:
    """Seconds of a back end's smallest collective before calibration."""
    if BACKENDS[name][1] > 0.0:
        return HOST_S * (GRACE_LAUNCH if _slow_host(name, chip) else 1.0)
    return FLOOR_S


def floor_join(name: str) -> float:
    """How the floor joins the rest: 1, one after the other; larger, side by side."""
    return HOST_JOIN if BACKENDS[name][1] > 0.0 else 1.0


def memory_rate(chip: Chip) -> float:
    """Bytes/s of a chip's memory, 0 where it is not known."""
    found = fact_value(chip, "memory_bandwidth_bytes_per_s")
    return found.value if found is not None else 0.0


def collective_label(kind: str, name: str, dtype: str = "bf16") -> str:
    """What the calibration calls a collective: launched without a graph it is a kernel of its own, bound by the host, and
    NCCL's reductions of 8-bit integers do not run in the switch."""
    if BACKENDS[name][1] > 0.0:
        return kind + "_eager"
    return kind + ("_int8" if dtype == "int8" and kind in ("all_reduce", "reduce_scatter") else "")


COVARIATES = np.zeros(1)  # a data sheet tells nothing more that would hold for a family left out


def _ring_latency_s(kind: str, n: int, level: LinkLevel) -> float:
    """Hops that a reduction takes one after the other where chips reach only their neighbours: along every dimension a ring of
    the group's side, there and back. The measured kernels ran through switches, where each chip reaches all others at once."""
    if getattr(level, "topology", "") not in ("ring", "torus"):
        return 0.0
    dimensions = int(getattr(level, "dimensions", 1))
    hops = dimensions * (float(n) ** (1.0 / dimensions) - 1.0)
    return (2.0 if kind == "all_reduce" else 1.0) * hops * level.latency_s


def _learned(transfer: Transfer, size: Floats, level: LinkLevel, chip: Chip, library: str) -> Seconds:
    learned = residual.shipped()["collective"]
    name = library if library in BACKENDS else backend(library)
    if transfer.kind != "all_reduce":
        name = "nccl"
    bandwidth = level.bandwidth_bytes_per_s
    shape, flat = size.shape, size.ravel()
    called = collective_label(transfer.kind, name, transfer.dtype)
    in_switch = reduced_in_switch(called, chip)
    floor_s = collective_floor(name, chip)
    memory = memory_rate(chip)
    base, x = collective_features(transfer.kind, flat, transfer.group, bandwidth, name, in_switch, floor_s, memory)
    ones = residual.indicators(learned.precisions, name, called)
    group = collective_group(name, bandwidth, chip)
    correction = residual.network(learned, np.hstack([x, np.broadcast_to(ones, (len(x), len(ones)))]))
    offset, spread, how, note = residual.offsets(learned, chip, group, called, COVARIATES)
    value, a, b, launch, floor = residual.combine(
        base[:, 0], base[:, 1], floor_s, correction + offset, join=floor_join(name)
    )
    further = np.maximum(_ring_latency_s(transfer.kind, transfer.group, level) - floor, 0.0)
    a, b, launch = (share * value / (value + further) for share in (a, b, launch))
    value, floor, launch = value + further, floor + further, launch + further / (value + further)
    shares = np.column_stack([a, b, launch])
    own = residual.own_sigma(learned, shares, np.log(np.maximum(value / floor_s, 1e-3)), how, called)
    sheet = float(getattr(level, "log_sigma", 0.0))
    factors = np.array([np.hypot(spread[0], sheet), np.hypot(spread[1], sheet), spread[2]])
    total = np.sqrt(own**2 + ((shares * factors) ** 2).sum(1))
    link = a + b
    said = (
        note
        if library in BACKENDS or library == "nccl"
        else "; ".join(n for n in (note, f"collectives of {name}") if n)
    )
    return Seconds(
        value.reshape(shape), total.reshape(shape), 0.0, 0.0, launch.reshape(shape), link.reshape(shape), floor.reshape(shape),
        said, own.reshape(shape), (0.0, 0.0, float(factors[2]), float(factors[0])),
    )  # fmt: skip


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
