"""Which output tiles the kernels of narrow products run on, and how kernel benchmarks go round their buffers.

cuBLAS chooses among many tiles and splits the inner dimension where they are few; the CUTLASS, CuTe and DeepGEMM kernels behind
8- and 4-bit products do not split it, and take their tile from a short list by the number of rows, sometimes columns. One row
then costs a whole tile's inner loop on one unit: with few columns most units stand idle, whatever the memory's rate.

Sources: the dispatch headers of vLLM (``scaled_mm_sm*_fp8_dispatch.cuh``, ``scaled_mm_c2x_sm80_dispatch.cuh``) and SGLang
(``fp8_gemm_kernel.cu``), FlashInfer's CUTLASS kernels for sm120; how the benchmarks go round their buffers is in aiconfigurator's
collectors. DeepGEMM, CuTe and TensorRT-LLM choose among tiles by measurement or rules of their own: here the best of their usual
ones, and for TensorRT-LLM's FP4 kernel of Blackwell the one at whose multiples its times step.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from trivet.chip.point import CDNA, SYSTOLIC
from trivet.operators import ACTIVATION_BYTES

Floats: TypeAlias = NDArray[np.float64]
Tile: TypeAlias = tuple[float, float]
ANY = float("inf")
# (rows up to, columns up to, the tiles to choose from): the first rule that fits.
Rules: TypeAlias = tuple[tuple[float, float, tuple[Tile, ...]], ...]


def _by_rows(*steps: tuple[float, Tile]) -> Rules:
    return tuple((rows, ANY, (tile,)) for rows, tile in steps)


# CUTLASS on Ada: shared memory of 100 KB, tiles by rows and columns.
_ADA_VLLM: Rules = (
    (16, 8192, ((16, 64),)), (16, 24576, ((16, 128),)), (32, 8192, ((32, 64),)), (32, 16384, ((32, 128),)),
    (32, ANY, ((32, 64),)), (64, 8192, ((64, 64),)), (64, 16384, ((64, 128),)), (64, ANY, ((64, 64),)),
    (128, 8192, ((64, 128),)), (128, 16384, ((128, 128),)), (128, ANY, ((128, 64),)), (256, 4096, ((64, 128),)),
    (256, ANY, ((128, 128),)), (ANY, 4096, ((128, 128),)), (ANY, 8192, ((256, 128),)), (ANY, ANY, ((128, 128),)),
)  # fmt: skip
_ADA_SGLANG: Rules = (
    (16, 8192, ((16, 64),)), (16, 16384, ((32, 64),)), (16, ANY, ((16, 64),)), (64, 16384, ((32, 64),)),
    (64, ANY, ((16, 64),)), (128, 16384, ((64, 64),)), (128, ANY, ((32, 64),)), (256, 8192, ((128, 64),)),
    (256, 16384, ((64, 128),)), (256, ANY, ((128, 64),)), (ANY, ANY, ((128, 128),)),
)  # fmt: skip
# Two units share a tile of 256 x 128 (and of 128 x 128) on Blackwell: each has half of it.
_FP8: dict[tuple[str, str], Rules] = {
    ("vllm", "ada"): _ADA_VLLM,
    ("sglang", "ada"): _ADA_SGLANG,
    ("vllm", "hopper"): (
        (16, ANY, ((16, 64),)), (64, 1280, ((16, 64),)), (64, ANY, ((64, 64),)), (128, ANY, ((64, 128),)),
        (ANY, ANY, ((128, 128),)),
    ),
    ("sglang", "hopper"): _by_rows((256, (64, 64)), (ANY, (128, 128))),
    ("vllm", "blackwell"): _by_rows((16, (32, 128)), (64, (64, 128)), (256, (64, 128)), (ANY, (128, 128))),
    ("sglang", "blackwell"): _by_rows((64, (64, 64)), (256, (64, 128)), (ANY, (128, 128))),
    ("vllm", "blackwell-gddr"): _by_rows((16, (16, 64)), (32, (32, 64)), (256, (64, 64)), (ANY, (128, 128))),
    ("sglang", "blackwell-gddr"): _by_rows((ANY, (128, 128))),
}  # fmt: skip
_SQUARE = _by_rows((ANY, (128, 128)))
_CUTE: Rules = ((ANY, ANY, ((128, 64), (128, 128), (128, 256))),)
_NVFP4: dict[tuple[str, str], Rules] = {
    ("vllm", "blackwell"): _CUTE,
    ("sglang", "blackwell"): _CUTE,
    ("trtllm", "blackwell"): _by_rows((ANY, (128, 256))),
    ("vllm", "blackwell-gddr"): _SQUARE,
    ("sglang", "blackwell-gddr"): _SQUARE,
    ("trtllm", "blackwell-gddr"): _SQUARE,
}
# DeepGEMM, and TensorRT-LLM's kernels built on it.
_DEEP: Rules = ((ANY, ANY, ((64, 32), (64, 64), (64, 128), (128, 64), (128, 128))),)
# TensorRT-LLM's plugins choose by measurement; up to four rows INT8 runs on a kernel of its own that splits the inner
# dimension.
_INT8: dict[tuple[str, str], Rules] = {
    ("trtllm", "ampere"): ((4, ANY, ()), (ANY, ANY, ((32, 128), (64, 64), (64, 128), (128, 128), (128, 256), (256, 128)))),
    ("vllm", "ampere"): (
        (16, ANY, ((16, 64),)), (32, ANY, ((32, 64),)), (64, ANY, ((64, 128),)), (128, 8191, ((64, 128),)),
        (ANY, ANY, ((128, 128),)),
    ),
}  # fmt: skip
_WEIGHT_ONLY: Rules = ((ANY, ANY, ((16, 128), (32, 128), (64, 128), (128, 128))),)


# Shared memory of one unit, bytes (CUDA programming guide, compute capabilities 8.0 to 12.0).
_SHARED = {"ampere": 164e3, "ada": 100e3, "blackwell-gddr": 100e3}


def shared_memory(family: str) -> float:
    """Bytes that one unit can hold of tiles; of a family not listed what Hopper and Blackwell have."""
    return _SHARED.get(family, 228e3)


def rules(library: str, family: str, dtype: str) -> Rules:
    """The tiles of a library's kernels on a family; empty where they are not known, or are cuBLAS'."""
    library = library.partition("/")[0]
    if dtype == "fp8":
        return _FP8.get((library, family), ())
    if dtype == "nvfp4":
        return _NVFP4.get((library, family), ())
    if dtype == "fp8_block" and library in ("sglang", "trtllm") and family in ("hopper", "blackwell"):
        return _DEEP
    if dtype == "int8":
        return _INT8.get((library, family), ())
    if dtype in ("int4_wo", "int8_wo") and library == "trtllm" and family == "ampere":
        return _WEIGHT_ONLY
    return ()


def allowed(found: Rules, tiles: Floats, m: Floats, n: Floats) -> NDArray[Any]:
    """``[tiles, ...]``: whether the rules let a product of ``m`` rows and ``n`` columns run on each tile; on none where they
    leave it open."""
    shape = np.broadcast_shapes(m.shape, n.shape)
    may = np.zeros((len(tiles), *shape), bool)
    open_ = np.ones(shape, bool)
    for rows, cols, choice in found:
        mine = open_ & (m <= rows) & (n <= cols)
        for tile in choice:
            may[(tiles == tile).all(1)] |= mine
        open_ = open_ & ~mine
    return may


def copies(library: str, dtype: str, weight_bytes: Floats, l2_bytes: float) -> Floats | float:
    """Sets of weights that the benchmark of a library's products goes round: one for vLLM's FP4 and block-FP8, as many as fill
    the cache and at most five for TensorRT-LLM's, else six."""
    library = library.partition("/")[0]
    if library == "trtllm":
        return np.clip(np.ceil(l2_bytes / np.maximum(weight_bytes, 1.0)), 1.0, 5.0)
    return 1.0 if library.startswith("vllm") and dtype in ("nvfp4", "fp8_block") else 6.0


# Launches of a narrow product, set where the smallest calls of the tables fit them on all chips: activations are quantised by a
# kernel of its own, by four under TensorRT-LLM's dynamic FP8; its plugins of 2025 are timed by the engine's own profiler, whose
# events cost as much as two launches. vLLM's block-FP8 ones were timed with the host's.
_LAUNCHES = {
    ("vllm_host", "fp8_block"): 60.0, ("trtllm", "fp8"): 5.0, ("trtllm", "int8"): 3.0, ("trtllm", "int8_wo"): 3.5,
    ("trtllm", "int4_wo"): 3.5,
}  # fmt: skip


def launches(library: str, dtype: str) -> float:
    """Launches of a product of narrow weights, with that of the pass that quantises activations; where these stay wide, one."""
    usual = 1.0 if ACTIVATION_BYTES.get(dtype, 1.0) >= 2.0 else 2.0
    return _LAUNCHES.get((library.partition("/")[0], dtype), usual)


# How a library quantises activations: bytes read a number (TensorRT-LLM's dynamic FP8 looks for the largest first), and seconds a
# row whatever its length. vLLM's FP8 pass takes 5 to 8 ns on L40S, H100, H200, B200, GB300 and RTX PRO alike: rows one by one.
_QUANTISE = {("trtllm", "fp8"): (4.0, 0.0), ("vllm", "fp8"): (2.0, 6e-9), ("trtllm", "int8"): (0.0, 0.0)}


def quantising(library: str, family: str, dtype: str) -> tuple[float, float]:
    """(bytes read a number, seconds a row) of the pass that quantises activations; no bytes: they come quantised, as
    SmoothQuant's do from the norm before. Chips of other makers have kernels of their own."""
    if family in (*CDNA, *SYSTOLIC):
        return 2.0, 0.0
    return _QUANTISE.get((library.partition("/")[0], dtype), (2.0, 0.0))


def read_share(family: str, dtype: str) -> float:
    """Share of the memory's rate that a kernel's reads can have: FP4 tiles 128 deep (sm120's CUTLASS) read rows of 64 bytes, half
    a cache line, at 0.7 of the rate of whole lines (RTX PRO: 1.0 TB/s where FP8 has 1.46)."""
    return 0.7 if dtype == "nvfp4" and family == "blackwell-gddr" else 1.0
