"""Seconds of training passes on one chip: the chip's ideal terms over what training kernels sustain of them.

The ideal terms (compute at the peak with tiles and waves quantised, memory at the data sheet's bandwidth) do not depend on
the constants, so a calibration or a search computes them once: ``ideal`` makes them, ``total`` applies the constants.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

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

_POINTS: dict[tuple[int, str], tuple[Chip, ChipPoint]] = {}


def point(chip: Chip, dtype: str) -> ChipPoint:
    """``chip_point``, once a chip object and dtype."""
    key = (id(chip), dtype)
    known = _POINTS.get(key)
    if known is None or known[0] is not chip:
        known = _POINTS[key] = (chip, chip_point(chip, dtype))
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
            compute, memory = (compute * SCAN_BACKWARD_FLOPS, memory * 2.0) if backward else (compute, memory)
        elif isinstance(o, Gemm | GroupedGemm):
            kind = "gemm" if isinstance(o, Gemm) else "grouped"
        else:
            kind = "cast" if o.name.endswith(".cast") else "stream"
        found.append(Ideal(compute, memory, kind, o.dtype if kind == "cast" else p.math))
    return tuple(found)


def family_share(p: ChipPoint, constants: Constants) -> float:
    """What the generation sustains of its matrix peak, relative to the reference (Ampere)."""
    if p.bench[0] > 0:
        measured = 2.0 * BENCH_SIDE**3 / p.bench[0] / p.peak_flops
        return measured / constants.gemm["bf16"]
    return constants.family.get(p.family, constants.family_default)


def total(parts: Iterable[Ideal], p: ChipPoint, c: Constants, framework: str) -> float:
    """Seconds of a pass. ``p``: the chip at BF16."""
    family, seconds = family_share(p, c), 0.0
    attention = c.attention_family.get(p.family, 1.0) * c.attention_framework.get(framework, 1.0)
    for i in parts:
        share, traffic = 1.0, 1.0
        if i.kind in ("gemm", "grouped"):
            share = family * c.gemm.get(i.dtype, c.gemm["bf16"]) * (c.grouped if i.kind == "grouped" else 1.0)
        elif i.kind == "attention":
            share = family * attention * c.attention_forward
        elif i.kind == "attention_backward":
            share = family * attention * c.attention_backward
        elif i.kind == "scan":
            share = family * c.scan
        elif i.kind == "cast":
            traffic = c.cast_factor.get(i.dtype, 1.0)
        else:
            traffic = c.stream_factor.get(framework, 1.0)
        compute, memory = i.compute_s / share, i.memory_s * traffic / c.stream
        seconds += (compute**SOFT_MAX_POWER + memory**SOFT_MAX_POWER) ** (1.0 / SOFT_MAX_POWER)
    return seconds
