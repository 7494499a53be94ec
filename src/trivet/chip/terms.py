"""The physics of one operator on one chip: compute time, memory time, and how well the shape fills the chip.

Every function here returns *ideal* times at data-sheet rates, quantisation of tiles and waves included; how far kernels
stay behind (sustained peak, achieved bandwidth, launch floor) is the business of ``residual.py``. Arrays broadcast.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trivet.chip.attention import blocks, passes_s, prompt_products, softmax_s
from trivet.chip.experts import PORTABLE_FLOPS, WIDENING, of_library, widened_ahead
from trivet.chip.kernels import precision_of
from trivet.chip.point import CDNA, OPERAND_BYTES, SYSTOLIC, ChipPoint
from trivet.chip.tilings import Rules, allowed, copies, quantising, read_share, rules, shared_memory
from trivet.errors import Unsupported
from trivet.operators import ACTIVATION_BYTES, WEIGHT_BYTES, Attention, Conv, Gemm, GroupedGemm, Scan, Stream

Floats = NDArray[np.float64]

# Output tiles that matrix libraries build from (rows, columns); the best one is taken, as their heuristics do.
TILES = np.array(
    [
        [256, 128], [128, 256], [128, 128], [128, 64], [64, 128], [64, 64], [32, 64], [16, 128], [16, 64], [32, 128], [64, 32],
    ], float,
)  # fmt: skip
# Rows and columns loaded per multiply: a small tile starves the matrix unit. Relative rate 1/(1 + c (1/rows + 1/cols)).
TILE_COST = 24.0
# What tiles of experts can be fed in a cycle and unit: 64 bytes from the cache, half as many again by neighbours that share what
# they read. It binds where a unit multiplies fast: small tiles of narrow operands on Blackwell.
FED_BYTES_PER_CYCLE, LEAST_ROWS = 96.0, 8.0
FREE = 8  # the first of them are cuBLAS'
UNIT_FETCH = 1e6  # what fits a unit's shared memory is fetched so often a second: one over the latency of a read under load
SPLIT_K_MIN = 256.0  # shortest useful slice of the inner dimension, elements
L2_OVER_HBM = 3.0  # bandwidth that products see from the last-level cache over that of the memory
# Of a product's working set over cache of PRODUCT_REACH nothing is left there, PRODUCT_FADE less and all of it is.
PRODUCT_REACH, PRODUCT_FADE = 1.15, 0.5
L2_BYTES_PER_CYCLE = 24.0  # what the cache gives one unit in a cycle where reads are spread evenly, as in attention
# Power limits: what a kernel of well over THROTTLE_S is slowed by beyond what holds from its start (a board regulates its mean
# power), and how sharply the limit takes over from the tiles.
THROTTLE_LATER, THROTTLE_S, THROTTLE_POWER = 0.3, 0.7e-3, 8.0
ATTENTION_POWER = 1.4  # operations a joule of attention over those of products: the softmax keeps the matrix units waiting
# Decode reads keys once: a repeated call finds them in the cache as long as they fit, and none soon after (least recently used
# goes first). L40S and RTX PRO read them at 4 times their memory's rate, Hopper and Blackwell at no less than twice.
DECODE_REACH, DECODE_FADE = 1.1, 0.2  # working set over cache at which nothing is left; width of the fall
DECODE_L2_BYTES_PER_CYCLE, DECODE_L2_OVER_HBM = 18.0, (2.0, 4.5)

ABSORBED = 576.0 + 512.0  # widths of keys and values where latents are multiplied in place of heads


@dataclass(frozen=True, slots=True, eq=False)
class Terms:
    """Ideal times and dimensionless descriptors, each an array of one common shape (or a float)."""

    compute_s: Floats
    memory_s: Floats
    fill: Floats  # share of the chip's units that the best tiling keeps busy, 0..1
    waves: Floats  # waves of tiles over the units
    warm: Floats  # share of the bytes that a repeated call finds in the last-level cache, 0..1
    depth: Floats  # length of the serial inner loop, elements
    rows: Floats  # rows per weight matrix or per key-value head (reuse of what is read)
    bytes: Floats
    flops: Floats


def _array(value: Any) -> Floats:
    return np.asarray(value, dtype=np.float64)


def _warm(total_bytes: Floats, point: ChipPoint, isolated: bool, reach: float = 1.5) -> Floats:
    """Share of a working set that the cache still holds when the same call is repeated, as kernel benchmarks do."""
    if not isolated:
        return np.zeros_like(total_bytes)
    return np.clip(reach - total_bytes / max(point.l2_bytes, 1.0), 0.0, 1.0)


def _memory_s(total_bytes: Floats, warm: Floats, point: ChipPoint, ratio: float = L2_OVER_HBM) -> Floats:
    return total_bytes * (1.0 - warm + warm / ratio) / point.bandwidth


def _tiled(
    m: Floats, n: Floats, k: Floats, batch: Floats, point: ChipPoint, fixed: Rules = (), width: float = 0.0,
    feed: tuple[float, float, float] = (0.0, 0.0, 1.0),
) -> tuple[Floats, Floats, Floats]:  # fmt: skip
    """Compute time of ``batch`` products under the best tile and split of the inner dimension; fill; waves. Under ``fixed`` rules
    the tile is theirs and nothing is split, and a tile's operands, ``width`` bytes each, come no faster than one unit fetches.
    ``feed``: bytes of an operand of the rows and of the columns, and bytes that a unit is fed in a cycle."""
    shape = np.broadcast_shapes(m.shape, n.shape, k.shape, batch.shape)
    peak = point.fed_flops or point.peak_flops
    if point.fine_grained:
        ones = np.ones(shape)
        waves = np.maximum(m * n * batch / 4096.0 / point.units, 1.0)
        return 2.0 * m * n * k * batch * ones / point.peak_flops, ones, waves * ones
    menu = TILES if fixed else TILES[:FREE]
    rows = menu[:, 0].reshape((-1,) + (1,) * len(shape))
    cols = menu[:, 1].reshape(rows.shape)
    tiles = np.ceil(m / rows) * np.ceil(n / cols) * batch
    split = np.clip(np.floor(point.units / tiles), 1.0, np.maximum(1.0, k / SPLIT_K_MIN))
    jobs = tiles * split
    waves = np.ceil(jobs / point.units)
    rate = (
        peak / point.units / (1.0 + TILE_COST * (1.0 / rows + 1.0 / cols)) * (1.0 + TILE_COST * 3.0 / 256.0)
    )
    fetched = np.minimum(rows, np.maximum(m, LEAST_ROWS)) * feed[0] + cols * feed[1]
    each = np.maximum(2.0 * rows * cols / rate, fetched / (feed[2] * point.clock_hz))
    seconds = waves * (each * k / split)
    if fixed:
        whole = np.ceil(tiles / point.units)
        # Weights that one row of tiles reads come from memory; those that several read, mostly from the cache, in half the time.
        fetch = (rows + cols) * width * k / (UNIT_FETCH * shared_memory(point.family)) * np.where(m <= rows, 1.0, 0.5)
        unsplit = whole * np.maximum(2.0 * rows * cols * k / rate, fetch)
        may = np.broadcast_to(allowed(fixed, TILES, m, n), unsplit.shape)
        ruled = may.any(0)
        seconds[FREE:] = np.inf
        seconds = np.where(ruled, np.where(may, unsplit, np.inf), seconds)
        jobs = np.where(ruled, tiles, jobs)
    best = np.argmin(seconds, axis=0)[None, ...]
    pick = np.take_along_axis(np.broadcast_to(seconds, (len(menu), *shape)), best, 0)[0]
    best_jobs = np.take_along_axis(np.broadcast_to(jobs, (len(menu), *shape)), best, 0)[0]
    best_waves = np.ceil(best_jobs / point.units)
    return pick, np.minimum(1.0, best_jobs / (best_waves * point.units)), best_waves


def quantise_s(op: Gemm, point: ChipPoint, library: str = "") -> Floats:
    """Time of the pass ahead of a product that reads activations in 16 bits and writes them as narrow as they are read there."""
    rows, values = _array(op.batch) * _array(op.m), _array(op.batch) * _array(op.m) * _array(op.k)
    width = ACTIVATION_BYTES[op.dtype] if point.native else 2.0
    read, row_s = quantising(library, point.family, op.dtype)
    if width >= 2.0 or not read:
        return np.zeros_like(values)
    held = np.minimum(np.maximum(1.5 - values * ((2.0 + 2.0 * width) / max(point.l2_bytes, 1.0)), 0.0), 1.0)
    return np.maximum(_memory_s(values * (read + width), held, point), rows * row_s)


def _throttled(compute_s: Floats, flops: Floats, point: ChipPoint) -> Floats:
    """Compute time of products where the power limit holds the clock down: at once by what the board can draw, after about a
    millisecond by what it may draw for long."""
    if not point.power_flops:
        return compute_s
    held = flops / point.power_flops * (1.0 + THROTTLE_LATER * compute_s / (compute_s + THROTTLE_S))
    larger = np.maximum(np.maximum(compute_s, held), 1e-30)
    both = (np.minimum(compute_s, held) / larger) ** THROTTLE_POWER
    return np.asarray(larger * (1.0 + both) ** (1.0 / THROTTLE_POWER))


def gemm_terms(op: Gemm, point: ChipPoint, isolated: bool = False, library: str = "") -> Terms:
    """Dense product: weights, activations and output cross the bus once; tiles and waves quantise the compute, on the tiles of
    the ``library``'s kernels where these are known. The pass that quantises activations comes before either, so it lengthens
    both."""
    m, n, k, batch = (_array(v) for v in (op.m, op.n, op.k, op.batch))
    activation = ACTIVATION_BYTES[op.dtype] if point.native else 2.0
    fixed = rules(library, point.family, op.dtype)
    compute_s, fill, waves = _tiled(m, n, k, batch, point, fixed, max(activation, WEIGHT_BYTES[op.dtype]))
    weights = batch * WEIGHT_BYTES[op.dtype] * n * k
    passing = batch * (activation * m * k + 2.0 * m * n)
    total = weights + passing
    sets = copies(library, op.dtype, weights, point.l2_bytes)
    held = sets * weights + passing * (sets if library.startswith("sglang") else 1.0)
    warm = np.clip((PRODUCT_REACH - held / max(point.l2_bytes, 1.0)) / PRODUCT_FADE, 0.0, 1.0) * float(isolated)
    before = quantise_s(op, point, library)
    flops = 2.0 * batch * m * n * k
    return Terms(
        _throttled(compute_s, flops, point) + before,
        _memory_s(total, warm, point) / read_share(point.family, op.dtype) + before,
        fill,
        waves,
        warm,
        k + 0.0 * compute_s,
        m + 0.0 * compute_s,
        total,
        flops,
    )


def grouped_terms(op: GroupedGemm, point: ChipPoint, isolated: bool = False, library: str = "") -> Terms:
    """Expert feed-forward: every active expert's weights are read once, rows are quantised to tiles per expert. A kernel that
    widens weights in its units does so at a rate of theirs; one built on Ampere's multiply runs at Ampere's rate a unit."""
    hidden, inter = _array(op.hidden), _array(op.intermediate)
    local_rows, active = _array(op.local_rows), np.maximum(_array(op.active_experts), 1e-9)
    rows = local_rows / active
    factor = 3.0 if op.gated else 2.0
    activation = ACTIVATION_BYTES[op.dtype] if point.native else 2.0
    kernel, cycles = of_library(library), point.units * point.clock_hz
    slow = max(1.0, (point.fed_flops or point.peak_flops) / (PORTABLE_FLOPS * cycles)) if kernel.portable else 1.0
    # A systolic core is fed by copies ahead of time, and it is no unit.
    fed = 0.0 if point.family in SYSTOLIC else 1.0
    feed = (fed * activation, fed * WEIGHT_BYTES[op.dtype], FED_BYTES_PER_CYCLE * slow)
    up, fill, waves = _tiled(rows, (factor - 1.0) * inter, hidden, active, point, feed=feed)
    down, _, _ = _tiled(rows, hidden, inter, active, point, feed=feed)
    numbers = factor * hidden * inter * active
    width = 2.0 if widened_ahead(library.partition("/")[2], op.dtype) else WEIGHT_BYTES[op.dtype]
    total = width * numbers + local_rows * (activation * hidden + 2.0 * hidden + 2.0 * factor * inter)
    warm = _warm(total, point, isolated)
    zero = np.zeros_like(up)
    compute_s, memory_s = (up + down) * slow, _memory_s(total, warm, point)
    if kernel.unpack and (op.dtype in WIDENING or kernel.portable):
        memory_s = np.hypot(memory_s, numbers / (kernel.widened(op.dtype) * cycles))
    return Terms(
        compute_s,
        memory_s,
        fill,
        waves,
        warm,
        hidden + zero,
        rows + zero,
        total,
        _array(op.flops),
    )


def _latent_work(op: Attention, point: ChipPoint, library: str) -> Floats | float:
    """Time of a latent prefill's products over that of its expanded heads at the peak of its precision: a cache in 8 bits is
    multiplied in 16, and SGLang's FlashAttention 3 and Triton kernels (all but Blackwell's) multiply latents, not heads.
    On AMD and on systolic cores it runs other kernels, which multiply heads, on CDNA 4 in 8 bits."""
    sglang = library.startswith("sglang")
    if sglang and point.family == "cdna4":
        return 1.0
    wide = 2.0 if point.native and point.math == "fp8" else 1.0
    if not sglang or point.family in ("blackwell", *CDNA, *SYSTOLIC):
        return wide
    return wide * ABSORBED / (_array(op.qk_head_dim) + _array(op.v_head_dim))


def attention_terms(op: Attention, point: ChipPoint, isolated: bool = False, library: str = "") -> Terms:
    """Softmax attention: keys and values read once per sequence and key head; query tiles, or key splits in decode."""
    q, sequences = _array(op.q_tokens), _array(op.sequences)
    heads, kv_heads = _array(op.heads), np.maximum(_array(op.kv_heads), 1.0)
    keys = _array(op.keys_read)
    group = np.maximum(1.0, heads / kv_heads)
    stacked = q * group  # query rows that share one key head
    tile = np.where(stacked >= 128.0, 128.0, np.where(stacked >= 64.0, 64.0, 16.0))
    decode = op.kind != "mla" and float(np.max(q)) <= 8.0
    block = None
    if decode:
        head = _array(op.qk_head_dim) + 0.0 * stacked
        block = blocks(library, op.kv_dtype not in ("bf16", "fp16"), point, group + 0.0 * stacked, head, keys)
        tile = np.where(block.rows > 1.5, np.maximum(np.minimum(tile, block.rows), 1.0), 1.0)
        tile = np.where((block.rows > 16.5) & (stacked > 16.0), block.rows, tile)
    jobs = sequences * kv_heads * np.ceil(stacked / tile)
    split = np.clip(np.floor(point.units / np.maximum(jobs, 1e-9)), 1.0, np.maximum(1.0, keys / 256.0))
    waves = jobs * split / point.units
    fill = np.clip(waves / np.ceil(np.maximum(waves, 1e-9)), 1e-3, 1.0)
    padded = np.ceil(stacked / tile) * tile / np.maximum(stacked, 1e-9)
    flops = _array(op.flops)
    compute_s = flops * padded / point.peak_flops / fill
    total = _array(op.bytes)
    latent = op.kind == "mla" or float(np.max(op.qk_head_dim)) != float(np.max(op.v_head_dim))
    if latent and op.kind != "mla":
        compute_s = compute_s * _latent_work(op, point, library)
    if block is not None:
        compute_s = compute_s + waves * block.wave_s + jobs / point.units * block.key_s + block.before_s
        reach = np.clip((DECODE_REACH - total / max(point.l2_bytes, 1.0)) / DECODE_FADE, 0.0, 1.0)
        warm = reach if isolated else np.zeros_like(total)
        rate = DECODE_L2_BYTES_PER_CYCLE * point.units * point.clock_hz / point.bandwidth
        cache = min(max(rate, DECODE_L2_OVER_HBM[0]), DECODE_L2_OVER_HBM[1])
    else:
        if not latent:
            compute_s = compute_s * prompt_products(library, precision_of(op), _array(op.qk_head_dim) + 0.0 * compute_s)
        if not latent and point.family not in SYSTOLIC:
            compute_s = np.hypot(compute_s, softmax_s(sequences * heads * _array(op.pairs), point))
        compute_s = _throttled(compute_s, flops / ATTENTION_POWER, point)
        warm = _warm(total, point, isolated, 2.0)
        cache = max(1.3, L2_BYTES_PER_CYCLE * point.units * point.clock_hz / point.bandwidth)
    if not latent:
        compute_s = compute_s + passes_s(library, precision_of(op), point, _array(op.qk_head_dim) + 0.0 * compute_s)
    zero = np.zeros_like(compute_s)
    memory_s = _memory_s(total, warm, point, cache) / np.clip(waves * 2.0, 0.05, 1.0)
    return Terms(
        compute_s,
        memory_s + zero,
        fill + zero,
        waves + zero,
        warm + zero,
        keys + zero,
        stacked + zero,
        total + zero,
        flops + zero,
    )


def scan_terms(op: Scan, point: ChipPoint, isolated: bool = False) -> Terms:
    """Linear attention and state-space cores: the state in and out, and chunks of 64 tokens on the matrix unit."""
    sequences, tokens = _array(op.sequences), _array(op.tokens)
    total, flops = _array(op.bytes), _array(op.flops)
    heads = _array(op.heads)
    # Inside a chunk of 64 tokens a quadratic part of 2 x 64 x (key + value) is added per token and head.
    inner = np.minimum(tokens, 64.0)
    flops = flops + 4.0 * sequences * tokens * heads * inner * (_array(op.key_dim) + op.value_dim)
    jobs = np.maximum(sequences * heads * np.maximum(1.0, _array(op.value_dim) / 64.0), 1e-9)
    waves = jobs / point.units
    fill = np.clip(waves / np.ceil(waves), 1e-3, 1.0)
    compute_s = flops / point.peak_flops / fill
    warm = _warm(total, point, isolated)
    zero = np.zeros_like(compute_s)
    memory_s = _memory_s(total, warm, point)
    return Terms(
        compute_s,
        memory_s + zero,
        fill + zero,
        waves + zero,
        warm + zero,
        tokens + zero,
        inner + zero,
        total + zero,
        flops + zero,
    )


def stream_terms(op: Stream, point: ChipPoint, isolated: bool = False) -> Terms:
    """A pass over memory; its few operations run on the vector units."""
    total, flops = np.broadcast_arrays(_array(op.bytes), _array(op.flops))
    warm = _warm(total, point, isolated)
    one = np.ones_like(total)
    return Terms(
        flops / point.vector_flops,
        _memory_s(total, warm, point),
        one,
        one,
        warm,
        one,
        one,
        total + 0.0,
        flops + 0.0,
    )


def conv_terms(op: Conv, point: ChipPoint, isolated: bool = False) -> Terms:
    """A convolution as an implicit product: rows are output pixels, the inner dimension is channels x kernel."""
    m = _array(op.batch) * op.height * op.width
    n = _array(op.out_channels) / op.groups
    k = _array(op.in_channels) / op.groups * _array(op.kernel) ** 2
    compute_s, fill, waves = _tiled(m, n, k, _array(op.groups), point)
    total = _array(op.bytes)
    warm = _warm(total, point, isolated)
    zero = np.zeros_like(compute_s)
    return Terms(
        compute_s,
        _memory_s(total, warm, point) + zero,
        fill,
        waves,
        warm + zero,
        k + zero,
        m + zero,
        total + zero,
        _array(op.flops) + zero,
    )


def terms(op: Any, point: ChipPoint, isolated: bool = False, library: str = "") -> Terms:
    """Dispatch on the operator's kind; ``library`` ("library/kernel") tells the kernel of experts. Raises Unsupported for one
    that is no compute operator."""
    if isinstance(op, GroupedGemm):
        return grouped_terms(op, point, isolated, library)
    if isinstance(op, Attention):
        return attention_terms(op, point, isolated, library)
    if isinstance(op, Gemm):
        return gemm_terms(op, point, isolated, library)
    for kind, function in _KINDS:
        if isinstance(op, kind):
            found: Terms = function(op, point, isolated)
            return found
    known = ["Gemm", "GroupedGemm", "Attention", *(k.__name__ for k, _ in _KINDS)]
    raise Unsupported(f"no timing for {type(op).__name__}", field="operator", allowed=known)


_KINDS: tuple[tuple[type, Any], ...] = (
    (Scan, scan_terms),
    (Stream, stream_terms),
    (Conv, conv_terms),
)

__all__ = ["OPERAND_BYTES", "Terms", "terms"]
