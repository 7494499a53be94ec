"""Seconds of training passes on one chip: the chip's ideal terms over what training kernels sustain of them.

The ideal terms (compute at the peak with tiles and waves quantised, memory at the data sheet's bandwidth) do not depend on
the constants, so a calibration or a search computes them once: ``ideal`` makes them, ``total`` applies the constants.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from trivet.chip.point import ChipPoint, chip_point
from trivet.chip.spec import Chip
from trivet.chip.terms import terms
from trivet.cloud.training.profile import Constants
from trivet.operators import Attention, Compute, Gemm, GroupedGemm, Scan

SOFT_MAX_POWER = 4.0
BENCH_SIDE = 4096.0  # the product that characterises a chip without a data sheet
# Matrix products of attention's backward pass over those of its forward pass (FlashAttention-2: 5 against 2).
ATTENTION_BACKWARD_FLOPS = 2.5
SCAN_BACKWARD_FLOPS = 2.0
SCAN_CHUNK = 256.0

_POINTS: dict[tuple[int, str], tuple[Chip, ChipPoint]] = {}


def point(chip: Chip, dtype: str) -> ChipPoint:
    """``chip_point``, once a chip object and dtype, without its power limit: the sustained rates that divide the ideal times
    were measured under it, and ``throttle`` is what it takes beyond them in hours."""
    key = (id(chip), dtype)
    known = _POINTS.get(key)
    if known is None or known[0] is not chip:
        known = _POINTS[key] = (chip, replace(chip_point(chip, dtype), power_flops=0.0))
    return known[1]


@dataclass(frozen=True, slots=True)
class Ideal:
    """Ideal times of all calls of one operator, and which constants apply."""

    compute_s: float
    memory_s: float
    kind: str  # gemm, grouped, attention, attention_backward, scan, stream, cast
    dtype: str  # what the multiply-adds run at; a cast's precision label


def ideal(operators: Iterable[Compute], chip: Chip) -> tuple[Ideal, ...]:
    """Ideal times, counts included; backward attention and scans with their own operation counts."""
    found = []
    for o in operators:
        p = point(chip, o.dtype)
        t = terms(o, p)
        compute, memory = float(t.compute_s) * o.count, float(t.memory_s) * o.count
        backward = o.name.endswith(".backward")
        if isinstance(o, Attention):
            kind = "attention_backward" if backward else "attention"
            compute, memory = (compute * ATTENTION_BACKWARD_FLOPS, memory * 2.5) if backward else (compute, memory)
        elif isinstance(o, Scan):
            kind = "scan"
            compute, memory = _chunked_scan(o, p)
            compute, memory = (compute * SCAN_BACKWARD_FLOPS, memory * 2.0) if backward else (compute, memory)
        elif isinstance(o, Gemm | GroupedGemm):
            kind = "gemm" if isinstance(o, Gemm) else "grouped"
        else:
            kind = "cast" if o.name.endswith(".cast") else "stream"
        found.append(Ideal(compute, memory, kind, o.dtype if kind == "cast" else p.math))
    return tuple(found)


# What large kernels reach of the data sheet's peak on chips that nobody measured falls with the peak a watt: the power limit
# takes the clock down. A line through ten measured chips (0.49 to 2.25 TFLOP/s a watt, shares of 0.97 to 0.67; L40S apart).
_SHARE_AT_NO_POWER = 0.98
_SHARE_LOST = 0.13  # a TFLOP/s of BF16 peak and watt
_SHARE_RANGE = (0.5, 0.93)
# Relative to BF16, on the same chips.
_RELATIVE = {"bf16": 1.0, "fp8": 0.78, "fp4": 0.47, "int8": 0.97, "fp32": 1.05, "tf32": 1.0, "attention": 0.78}
UNMEASURED_SIGMA = 0.12


def typical_share(p: ChipPoint, what: str) -> float:
    """Share of the peak that large kernels of a chip without measured ones reach; ``p``: the chip at BF16."""
    density = p.peak_flops / 1e12 / p.watts if p.watts > 0 else 1.4
    low, high = _SHARE_RANGE
    return min(max(_SHARE_AT_NO_POWER - _SHARE_LOST * density, low), high) * _RELATIVE.get(what, 1.0)


def measured_name(p: ChipPoint, c: Constants) -> str:
    """The chip whose measured kernels stand for ``p``: itself, or its twin (same generation and units); "" = none."""
    if p.name in c.sustained:
        return p.name
    twins = [name for name in c.sustained if _TWINS.get(p.name) == name]
    return twins[0] if twins else ""


# Same silicon under another name: memory, links or exports differ.
_TWINS = {"a100-40gb": "a100-80gb", "a800": "a100-80gb", "h800": "h100", "h100-pcie": "h100"}


def _chunked_scan(o: Scan, p: ChipPoint) -> tuple[float, float]:
    """(matrix seconds, seconds of one pass over the values) of a chunked linear-attention or state-space kernel.

    Inside a chunk of 256 tokens a causal product of width key + value, across chunks the state's update and read-out
    (Dao and Gu, arXiv 2405.21060, section 6).
    """
    key, value = float(o.key_dim), float(o.value_dim)
    rows = float(o.sequences) * float(o.tokens) * float(o.heads) * o.count
    flops = rows * (SCAN_CHUNK * (key + value) + 4.0 * key * value)
    return flops / p.peak_flops, 2.0 * rows * value / p.bandwidth


def sustained_share(p: ChipPoint, c: Constants, what: str) -> float:
    """Share of the chip's peak that large kernels sustain: measured on it, on its twin, by its one benchmark, or typical.

    ``what``: dtype of the multiply-adds, or "attention" (BF16).
    """
    name = measured_name(p, c)
    rate = c.sustained.get(name, {}).get(what) if name else None
    reference = c.sustained.get(name, {}).get(f"peak_{what}") if name else None
    if rate and reference:
        return rate / reference
    if p.bench[0] > 0:
        measured = 2.0 * BENCH_SIDE**3 / p.bench[0] / p.peak_flops
        return measured * (_RELATIVE["attention"] if what == "attention" else 1.0)
    return typical_share(p, what)


def total(parts: Iterable[Ideal], p: ChipPoint, c: Constants, framework: str, version: str = "") -> float:
    """Seconds of a pass. ``p``: the chip at BF16; ``version`` names the framework's year where that matters."""
    seconds = 0.0
    era = f"{framework}-{version[:4]}"
    tuned = c.attention_framework.get(era, 1.0) * c.attention_framework.get(f"{era}.{p.family}", 1.0)
    attention = sustained_share(p, c, "attention") * tuned * c.attention_forward * c.throttle.get(p.family, 1.0)
    matrix = c.gemm_framework.get(framework, 1.0) * c.throttle.get(p.family, 1.0)
    shares: dict[str, float] = {}
    for i in parts:
        share, traffic = 1.0, 1.0
        if i.kind in ("gemm", "grouped"):
            if i.dtype not in shares:
                shares[i.dtype] = sustained_share(p, c, i.dtype) * c.gemm.get(i.dtype, 1.0) * matrix
            share = shares[i.dtype] * (c.grouped if i.kind == "grouped" else 1.0)
        elif i.kind == "attention":
            share = attention
        elif i.kind == "attention_backward":
            share = attention * c.attention_backward
        elif i.kind == "scan":
            share, traffic = c.scan, c.scan_passes
        elif i.kind == "cast":
            traffic = c.cast_factor.get(i.dtype, 1.0)
        else:
            traffic = c.stream_factor.get(framework, 1.0)
        compute, memory = i.compute_s / share, i.memory_s * traffic / c.stream
        seconds += (compute**SOFT_MAX_POWER + memory**SOFT_MAX_POWER) ** (1.0 / SOFT_MAX_POWER)
    return seconds
