"""Dimensionless descriptors of an operator on a chip, one function a kind of kernel: what the learned residual sees.

Each returns a list of arrays of one shape. Sizes enter as base-2 logarithms, ratios to a property of the chip (units, cache)
as natural logarithms, clipped to the range where data exist, so that a residual cannot run away outside it.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trivet.chip.attention import launched
from trivet.chip.experts import of_library
from trivet.chip.kernels import feature_library, portable_kernel, precision_of
from trivet.chip.point import ChipPoint
from trivet.chip.terms import Terms
from trivet.chip.tilings import launches as product_launches
from trivet.operators import Attention, Conv, Gemm, GroupedGemm, Scan, Stream

Floats = NDArray[np.float64]
UNIT_BANDWIDTH = 25e9  # bandwidth of a typical unit
FLOOR_CYCLES = 5000.0  # launch floor of a small kernel in clock cycles, typical: 2 to 3 us on the chips measured
USUAL_CLOCK_HZ = 1.8e9
HALF_CLOCKED = ("gemm", "gemm_narrow", "moe")
_TINY = 1e-12


def floor_seconds(point: ChipPoint, kind: str = "", library: str = "", precision: str = "") -> float:
    """Typical launch floor of the chip: a fixed number of cycles, within the range of clocks seen. Products': half of it
    follows the units' clock, half (front end, memory) does not. Experts': as many as the kernel of ``library`` launches."""
    clock = min(max(point.clock_hz, 1.2e9), 2.6e9)
    if kind in HALF_CLOCKED:
        launches = 1.0
        if kind == "moe":
            launches = of_library(library).launched(precision)
        elif kind == "gemm_narrow":
            launches = product_launches(library, precision)
        return launches * FLOOR_CYCLES / float(np.sqrt(clock * USUAL_CLOCK_HZ))
    if kind == "decode":
        return launched(library, precision) * FLOOR_CYCLES / clock
    return FLOOR_CYCLES / clock


def _log2(value: Any, lo: float, hi: float) -> Floats:
    return np.log2(np.clip(np.asarray(value, dtype=np.float64), 2.0**lo, 2.0**hi))


@cache
def _limits(lo: float, hi: float) -> tuple[Any, Any]:
    return np.exp(lo), np.exp(hi)


def _ln(value: Any, lo: float, hi: float) -> Floats:
    return np.log(np.clip(np.asarray(value, dtype=np.float64), *_limits(lo, hi)))


def _common(parts: Terms, point: ChipPoint, kind: str = "", library: str = "", precision: str = "") -> list[Any]:
    longest = np.maximum(parts.compute_s, parts.memory_s)
    return [
        _ln(longest / floor_seconds(point, kind, library, precision), -4, 6),
        parts.fill,
        _ln(parts.waves, -4, 5),
        parts.warm,
        _ln(parts.bytes / point.l2_bytes, -4, 4),
    ]


def _quantisation(m: Floats, n: Floats, batch: Floats, point: ChipPoint) -> list[Floats]:
    found = []
    for rows, cols in ((128, 256), (128, 128), (64, 128), (256, 128)):
        tiles = np.maximum(np.ceil(m / rows) * np.ceil(n / cols) * batch, 1.0)
        found.append(_ln(np.ceil(tiles / point.units) * point.units / tiles, 0, 4))
    return found


def product_features(op: Gemm | Stream | Conv, parts: Terms, point: ChipPoint) -> list[Any]:
    """Dense products; a stream is a product with one row, a convolution its implicit product."""
    if isinstance(op, Gemm):
        m, n, k, batch = (np.asarray(v, dtype=np.float64) for v in (op.m, op.n, op.k, op.batch))
    else:
        m, k, batch = parts.rows, parts.depth, np.ones_like(parts.rows)
        n = np.maximum(
            parts.bytes / 4096.0 if isinstance(op, Stream) else np.asarray(op.out_channels, dtype=np.float64), 1.0
        )
    tiles = np.maximum(np.ceil(m / 128.0) * np.ceil(n / 128.0) * batch, 1.0)
    depth = k / np.clip(point.units / tiles, 1.0, np.maximum(k / 256.0, 1.0))
    return [
        # Here and for scans: elsewhere the ratio tells chips apart more than shapes, and leads astray on one of another balance.
        _ln(parts.compute_s / (parts.memory_s + _TINY), -5, 5),
        *_common(parts, point, "gemm"),
        _log2(m, 0, 15),
        _log2(n, 0, 16),
        _log2(k, 5, 16),
        _ln(m * n * batch / 16384.0 / point.units, -5, 5),
        *_quantisation(m, n, batch, point),
        _ln(np.ceil(m / 128.0) * 128.0 / m, 0, 4),
        _ln(np.ceil(n / 128.0) * 128.0 / n, 0, 4),
        _log2(depth, 5, 16),
    ]


def grouped_features(op: GroupedGemm, parts: Terms, point: ChipPoint, library: str = "") -> list[Any]:
    """Expert feed-forward."""
    active = np.maximum(np.asarray(op.active_experts, dtype=np.float64), 1e-3)
    local = np.asarray(op.local_experts, dtype=np.float64)
    rows = np.asarray(op.local_rows, dtype=np.float64)
    inter = np.asarray(op.intermediate, dtype=np.float64)
    hidden = np.asarray(op.hidden, dtype=np.float64)
    per = rows / active
    blocks = active * np.ceil(per / 64.0)
    return [
        *_common(parts, point, "moe", library, op.dtype),
        _log2(op.tokens, 0, 16),
        _log2(rows, -3, 19),
        _log2(per, -3, 14),
        _log2(hidden, 10, 13),
        _log2(inter, 5, 14),
        _log2(local, 0, 10),
        _log2(op.experts, 3, 10),
        _log2(op.top_k, 0, 5),
        active / local,
        np.asarray(op.imbalance, dtype=np.float64) / 3.0,
        _ln(op.skew, 0, 3),
        np.asarray(float(op.gated)),
        _ln(blocks * np.ceil(inter / 128.0) / point.units, -5, 6),
        _ln(np.ceil(per / 64.0) * 64.0 / np.maximum(per, 1e-3), 0, 5),
    ]


def attention_features(op: Attention, parts: Terms, point: ChipPoint, library: str = "", kind: str = "") -> list[Any]:
    """Attention cores, prefill and decode."""
    family = point.family
    heads = np.asarray(op.heads, dtype=np.float64)
    kv_heads = np.maximum(np.asarray(op.kv_heads, dtype=np.float64), 1.0)
    window = np.asarray(op.window, dtype=np.float64)
    kv = np.asarray(op.kv_tokens, dtype=np.float64)
    q = np.asarray(op.q_tokens, dtype=np.float64)
    seqs = np.asarray(op.sequences, dtype=np.float64)
    cut = np.where(window > 0, np.minimum(window / np.maximum(kv, 1.0), 1.0), 1.0)
    return [
        *_common(parts, point),
        _log2(seqs, 0, 11),
        _log2(q, 0, 15),
        _log2(np.asarray(op.keys_read, dtype=np.float64), 0, 18),
        _log2(heads, 0, 8),
        _log2(kv_heads, 0, 8),
        _log2(heads / kv_heads, 0, 7),
        _log2(op.qk_head_dim, 6, 9.2),
        (window > 0) * 1.0,
        np.log(np.maximum(cut, 1e-4)),
        _ln(seqs * kv_heads * np.ceil(q * heads / kv_heads / 64.0) / point.units, -6, 7),
        _ln(seqs * heads / point.units, -6, 7),
        portable_kernel(feature_library(library), family, op.qk_head_dim, op.window, precision_of(op), kind),
    ]


def latent_features(op: Attention, parts: Terms, point: ChipPoint) -> list[Any]:
    """Latent attention: the same without the choice of kernels."""
    return attention_features(op, parts, point)[:-1]


def scan_features(op: Scan, parts: Terms, point: ChipPoint) -> list[Any]:
    """Linear attention and state-space cores, and their short convolutions."""
    tokens = np.asarray(op.tokens, dtype=np.float64)
    seqs = np.asarray(op.sequences, dtype=np.float64)
    heads = np.asarray(op.heads, dtype=np.float64)
    return [
        _ln(parts.compute_s / (parts.memory_s + _TINY), -5, 5),
        *_common(parts, point),
        _log2(tokens, 0, 16),
        _log2(seqs, 0, 10),
        _log2(heads, 0, 8),
        _log2(tokens * seqs, 0, 20),
        _ln(seqs * heads / point.units, -6, 6),
        (tokens <= 4.0) * 1.0,
        _log2(np.asarray(op.key_dim, dtype=np.float64), 0, 12),
    ]


_FUNCTIONS: dict[str, Any] = {
    "gemm": product_features,
    "gemm_narrow": product_features,
    "moe": grouped_features,
    "prefill": attention_features,
    "decode": attention_features,
    "mla_prefill": latent_features,
    "mla_decode": latent_features,
    "scan": scan_features,
}


def features(kind: str, op: Any, parts: Terms, point: ChipPoint, library: str = "") -> NDArray[np.float32]:
    """``[rows, features]`` of an operator; rows in C order of the operator's shape."""
    shape = np.shape(parts.compute_s)
    function = _FUNCTIONS[kind]
    if function is attention_features:
        found = function(op, parts, point, library, kind)
    else:
        found = function(op, parts, point, library) if function is grouped_features else function(op, parts, point)
    matrix = np.empty((len(found), *shape), np.float32)
    for row, value in enumerate(found):
        matrix[row] = value  # broadcasts
    return matrix.reshape(len(found), -1).T


def covariates(point: ChipPoint, kind: str = "") -> Floats:
    """What a data sheet says beforehand about how close a chip comes to its peak and its bandwidth, ``[covariates]``.

    Peak per watt at this precision (a chip that promises more work a joule throttles earlier), and by how much it exceeds the
    2.7 TFLOP/s a watt beyond which every chip measured so far is held back by power or by feeding its units.

    Products in 16 bits: nothing of power, whose limit is in their ideal times (``terms.py``). These and experts: bandwidth per
    unit, since by Little's law a unit that is to read more must have more reads in flight. Products: whether the memory is
    stacked (large matrix-vector products reach 0.82 to 0.89 of HBM and 0.93 to 0.95 of GDDR).
    """
    little = np.clip(np.log(point.bandwidth / point.units / UNIT_BANDWIDTH), -2.5, 1.5)
    if kind == "gemm":
        return np.array([little, float(point.stacked)])
    density = float(np.log(point.peak_flops / point.watts / 1e12))
    found = [np.clip(density, -1.0, 3.0), max(0.0, min(density, 3.0) - 1.0)]
    return np.array([*found, little] if kind == "moe" else found)
