"""Expert feed-forwards: which kernel an engine runs on a chip, and what is known of how that kernel works.

A benchmark shows that the kernel decides, not the engine around it: one kernel under two engines on one chip differs by 2 to 6%
(Triton's by 10 to 22%: each engine brings tile sizes of its own), two kernels under one engine by up to a factor of 5.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from trivet.chip.point import CDNA, SYSTOLIC

UNPACK_INTEGERS = 32.0  # integer weights that a unit widens in a cycle by bit operations


@dataclass(frozen=True, slots=True)
class ExpertKernel:
    """What is known of a kernel beforehand.

    ``launches``: kernels one after the other for one layer, routing and the sum over experts included; ``more`` of them at some
    precisions, whose activations or scales take passes of their own. ``portable``: built on the warp-wide multiply of Ampere,
    which later chips keep at Ampere's rate a unit. ``unpack``: 4- and 8-bit weights that a unit widens in a cycle, where
    activations stay in 16 bits; 0 = not told. ``like``: kernels that come next, where this one was not measured.
    """

    launches: float
    portable: bool = False
    unpack: float = 0.0
    like: tuple[str, ...] = ()
    more: tuple[tuple[str, float], ...] = ()

    def widened(self, precision: str) -> float:
        """Weights of a precision that a unit widens in a cycle: no chip has an instruction for integers."""
        return min(self.unpack, UNPACK_INTEGERS) if precision.startswith("int") else self.unpack

    def launched(self, precision: str) -> float:
        """Kernels launched at a precision."""
        return self.launches + dict(self.more).get(precision, 0.0)


# gen: TensorRT-LLM's generated ones (FlashInfer ships them): rows are gathered and activated inside the two products.
# cutlass: TensorRT-LLM's grouped products. ficutlass: the same out of FlashInfer, launched from Python; +90: not tuned on Hopper,
# where it reads weights at a fifth to a quarter of the memory's rate. deepgemm: contiguous rows padded to 128 an expert.
# oai: the Triton kernels that came with gpt-oss. mixed: TensorRT-LLM's for such weights on Blackwell. min: its low-latency ones.
# aiter: AMD's, which gather and activate inside their two products too; narrow weights enter the matrix units as they are.
# compiled: a systolic core's, from its compiler: none of the rules of a GPU's units holds.
KERNELS: dict[str, ExpertKernel] = {
    "gen": ExpertKernel(
        5.0,
        unpack=64.0,  # Blackwell widens FP4 by an instruction
        like=("cutlass", "ficutlass", "triton", "marlin"),
        more=(("fp8_block", 1.0), ("w4a8_mxfp4", 1.0)),
    ),
    "min": ExpertKernel(5.0, like=("gen", "cutlass", "ficutlass")),
    "cutlass": ExpertKernel(
        8.0, like=("ficutlass", "gen", "triton", "marlin"), more=(("fp8", 1.0), ("nvfp4", 4.0), ("w4a8_mxfp4", 8.0))
    ),
    "ficutlass": ExpertKernel(
        12.0, like=("cutlass", "gen", "triton", "marlin"), more=(("nvfp4", 3.0), ("w4a8_mxfp4", 8.0))
    ),
    "ficutlass+90": ExpertKernel(12.0, like=("ficutlass", "cutlass", "gen", "triton")),
    "deepgemm": ExpertKernel(9.0, like=("cutlass", "ficutlass", "triton", "gen")),
    "triton": ExpertKernel(7.0, like=("ficutlass", "cutlass", "marlin", "gen"), more=(("fp8_block", 4.0),)),
    "oai": ExpertKernel(13.0, unpack=32.0, like=("marlin", "mixed", "triton", "gen")),
    "mixed": ExpertKernel(13.0, unpack=20.0, like=("oai", "marlin", "triton", "gen")),
    "marlin": ExpertKernel(12.0, portable=True, unpack=32.0, like=("oai", "triton", "gen")),
    "xpu": ExpertKernel(10.0, like=("triton",)),
    "aiter": ExpertKernel(
        4.0,  # scores, sorted rows, two products; narrow activations are quantised before each
        like=("gen", "cutlass", "triton"),
        more=tuple((name, 2.0) for name in ("fp8", "fp8_block", "mxfp8", "int8", "nvfp4", "w4a8_mxfp4")),
    ),
    "compiled": ExpertKernel(7.0, like=("triton", "cutlass", "gen")),
}
USUAL = ExpertKernel(8.0)
# Words of a table's kernel source -> kernel, the first that is found.
_SOURCES = (
    ("min_latency", "min"), ("marlin", "marlin"), ("deepgemm", "deepgemm"), ("oaitriton", "oai"), ("flashinfer_trtllm", "gen"),
    ("flashinfer_cutlass", "ficutlass"), ("cutlass", "cutlass"), ("nongated", "cutlass"), ("triton", "triton"),
    ("fused_moe", "triton"), ("xpu", "xpu"),
)  # fmt: skip
_TRTLLM = {"mxfp4": "mixed", "w4a8_mxfp4": "gen"}  # its default where the source does not say: Triton's, its own
# (engine, precision) -> {family: kernel}, "" for any other; the engines' own choice on their default settings.
_CHOSEN: dict[tuple[str, str], dict[str, str]] = {
    ("vllm", "bf16"): {"blackwell": "gen", "blackwell-gddr": "ficutlass", "": "triton"},
    ("vllm", "fp8"): {"blackwell": "gen", "blackwell-gddr": "ficutlass", "hopper": "ficutlass", "": "triton"},
    ("vllm", "fp8_block"): {"blackwell": "gen", "hopper": "ficutlass", "": "triton"},
    ("vllm", "nvfp4"): {"blackwell": "gen", "blackwell-gddr": "ficutlass", "": "marlin"},
    ("vllm", "int4_wo"): {"": "marlin"},
    ("vllm", "mxfp4"): {"blackwell": "gen", "hopper": "oai", "": "marlin"},
    ("vllm", "w4a8_mxfp4"): {"blackwell": "gen", "": "marlin"},
    ("sglang", "bf16"): {"blackwell": "gen", "": "triton"},
    ("sglang", "fp8"): {"blackwell": "gen", "": "triton"},
    ("sglang", "fp8_block"): {"blackwell": "gen", "": "triton"},
    ("sglang", "nvfp4"): {"blackwell": "gen", "": "ficutlass"},
    ("sglang", "int4_wo"): {"blackwell": "gen", "": "marlin"},
    ("sglang", "mxfp4"): {"blackwell": "gen", "blackwell-gddr": "marlin", "": "triton"},
    ("sglang", "w4a8_mxfp4"): {"blackwell": "gen", "": "triton"},
    ("trtllm", "fp8_block"): {"blackwell": "deepgemm", "blackwell-gddr": "triton", "": "cutlass"},
    ("trtllm", "mxfp4"): {"blackwell": "mixed", "": "oai"},
    ("trtllm", "w4a8_mxfp4"): {"blackwell": "gen", "": "cutlass"},
}  # fmt: skip
# Families whose experts run on their maker's kernels under every engine. Of integer weights AMD's library has no form.
_MAKERS = {"battlemage": "xpu", **dict.fromkeys(CDNA, "aiter"), **dict.fromkeys(SYSTOLIC, "compiled")}
WIDENING = ("int4_wo", "int8_wo", "mxfp4")  # narrow weights under 16-bit activations
PORTABLE_FLOPS = 2048.0  # 16-bit operations that a unit does in a cycle through Ampere's warp-wide multiply


# Triton's INT8 experts, measured on no chip, are its 16-bit ones with operands half as wide: one source, one choice of tiles.
# Under their own ideal times kernels with FP8 operands take exp(-0.2 to 0.16) of what 16-bit ones say on Hopper, Blackwell and
# RTX PRO, Triton's in blocks too; exp(0.3) in vLLM's blocks on Hopper, and exp(0.55) on Ada alone, whose FP8 multiply the
# compiler feeds badly. Dense INT8 of A100 takes exp(-0.04). (log offset, log spread) of (compute, memory, floor) on top.
INT8_OFFSET, INT8_SIGMA = np.array([0.10, 0.03, 0.0]), np.array([0.25, 0.10, 0.20])


def expert_kernel(library: str, family: str, precision: str, source: str = "") -> str:
    """The kernel of a table's ``source``; without one, what ``library`` runs on an architecture family."""
    if family in _MAKERS:
        return "triton" if family in CDNA and precision in ("int4_wo", "int8_wo") else _MAKERS[family]
    found = next((name for word, name in _SOURCES if word in source.lower()), "")
    if not found and library == "trtllm":
        found = _TRTLLM.get(precision, "cutlass") if source else ""
        found = "oai" if (found, family) == ("mixed", "hopper") else found
    if not found:
        chosen = _CHOSEN.get((library, precision), {})
        found = chosen.get(family, chosen.get("", "cutlass" if library == "trtllm" else "triton"))
    # FlashInfer's kernels of 8 and 16 bits a weight; those for blocks of FP8 are others.
    return found + "+90" if (found, family) == ("ficutlass", "hopper") and precision in ("bf16", "fp8") else found


def of_library(library: str) -> ExpertKernel:
    """The kernel in "library/kernel"."""
    return KERNELS.get(library.partition("/")[2], USUAL)


def alike(kernel: str, precision: str) -> tuple[str, ...]:
    """Kernels that come nearest to one, itself first; for narrow weights under 16-bit activations those that widen weights."""
    if kernel not in KERNELS:
        return (kernel,) if kernel else ()
    like = KERNELS[kernel].like
    if precision in WIDENING:
        like = tuple(sorted(like, key=lambda k: not KERNELS[k].unpack))
    return (kernel, *like)


def nearest_kernel(kernel: str, precision: str, known: tuple[str, ...]) -> str:
    """The kernel of ``known`` that comes nearest, "" where none does."""
    return next((k for k in alike(kernel, precision) if k in known), "")


def taken_as(library: str, precision: str) -> str:
    """The precision whose measured kernels stand for ``precision`` in "library/kernel", itself where nothing is known."""
    return "bf16" if (library.partition("/")[2], precision) == ("triton", "int8") else precision


def stand_in(library: str, precision: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(log offset, log spread) of (compute, memory, floor) on top of those kernels'."""
    same = taken_as(library, precision) == precision
    return (np.zeros(3), np.zeros(3)) if same else (INT8_OFFSET, INT8_SIGMA)


def widened_ahead(kernel: str, dtype: str) -> bool:
    """Whether weights were widened to 16 bits when the model was loaded: SGLang's Triton kernel has no 4-bit form."""
    return kernel == "triton" and dtype == "mxfp4"
