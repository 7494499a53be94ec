"""Kernel libraries: which profile answers for a name, and how kernels are grouped for calibration."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from trivet.operators import Attention, Compute, Conv, Gemm, GroupedGemm, Scan, Stream

KINDS = ("gemm", "moe", "prefill", "decode", "mla_prefill", "mla_decode", "scan")
LIBRARIES = ("vllm", "sglang", "trtllm")
# Other names -> the calibrated library whose kernels come nearest (cuBLAS and FlashAttention run under all of these).
_NEAREST = {
    "vllm": "vllm", "sglang": "sglang", "trtllm": "trtllm", "trt-llm": "trtllm", "tensorrt-llm": "trtllm",
    "tensorrt_llm": "trtllm", "vllm_host": "vllm_host", "trtllm_min": "trtllm_min",
}  # fmt: skip
_ALIASES = {"vllm_host": "vllm", "trtllm_min": "trtllm"}  # profile -> library in the features
# A precision that was not measured for a kind -> the nearest one, in order.
_DTYPE_FALLBACK = {
    "int8": ("fp8", "bf16"), "mxfp8": ("fp8_block", "fp8", "bf16"), "fp16": ("bf16",), "fp32": ("bf16",), "tf32": ("bf16",),
    "int8_wo": ("int4_wo", "bf16"), "int4_wo": ("int8_wo", "bf16"), "mxfp4": ("int4_wo", "bf16"), "nvfp4": ("mxfp4",
    "fp8", "bf16"),
    "fp8": ("fp8_block", "bf16"), "fp8_block": ("fp8", "bf16"), "w4a8_mxfp4": ("nvfp4", "fp8", "bf16"),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Profile:
    """Library and precision group that time an operator, and what had to be assumed."""

    library: str
    note: str = ""


def profile(library: str, version: str = "") -> Profile:
    """The calibrated library for a name; unknown names take vLLM's kernels (PyTorch's own products underneath)."""
    key = library.strip().lower()
    if key in _NEAREST:
        return Profile(_NEAREST[key])
    return Profile("vllm", f"no kernel profile for {library or 'an unnamed engine'}: vllm's used")


def feature_library(library: str) -> str:
    """The library whose indicator a profile sets (a special profile shares its parent's)."""
    return _ALIASES.get(library, library)


def kind_of(op: Compute) -> str:
    """Which family of kernels runs an operator; streams and convolutions borrow the products'."""
    if isinstance(op, GroupedGemm):
        return "moe"
    if isinstance(op, Attention):
        mla = op.kind == "mla" or float(np.max(op.qk_head_dim)) != float(np.max(op.v_head_dim))
        decode = float(np.max(op.q_tokens)) <= 8.0
        return ("mla_" if mla else "") + ("decode" if decode else "prefill")
    if isinstance(op, Scan):
        return "scan"
    assert isinstance(op, Gemm | Stream | Conv)
    return "gemm"


def precision_of(op: Any) -> str:
    """The precision group of an operator, as the calibration names it."""
    if isinstance(op, Attention):
        fp8 = ("fp8", "fp8_block", "mxfp8", "int8")
        return f"{'fp8' if op.dtype in fp8 else 'bf16'}+{'fp8' if op.kv_dtype in fp8 else 'bf16'}"
    if isinstance(op, Scan):
        return "conv" if op.kind == "short_conv" else "scan"
    if isinstance(op, Stream):
        return "bf16"
    return str(op.dtype)


def nearest_precision(wanted: str, known: tuple[str, ...]) -> str:
    """``wanted`` if it was measured, else the nearest one that was."""
    if wanted in known:
        return wanted
    if "+" in wanted:
        return next((p for p in ("bf16+fp8", "bf16+bf16") if p in known), known[0])
    return next((p for p in _DTYPE_FALLBACK.get(wanted, ("bf16",)) if p in known), known[0])
