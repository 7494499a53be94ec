"""Kernel libraries: which profile answers for a name, and how kernels are grouped for calibration."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from trivet.chip.point import CDNA
from trivet.operators import Attention, Compute, Conv, Gemm, GroupedGemm, Scan, Stream

KINDS = ("gemm", "gemm_narrow", "moe", "prefill", "decode", "mla_prefill", "mla_decode", "scan")
# Products of weights narrower than 16 bits run on other kernels, mostly with one ahead that quantises the activations.
WIDE = ("bf16", "fp16", "fp32", "tf32")
WEIGHT_ONLY = ("int8_wo", "int4_wo", "mxfp4")  # no such kernel ahead; measured under TensorRT-LLM alone
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
    """The calibrated library for a name, with a kernel ("library/kernel") as it is; unknown names take vLLM's kernels
    (PyTorch's own products underneath)."""
    key, slash, kernel = library.strip().lower().partition("/")
    if key in _NEAREST:
        return Profile(_NEAREST[key] + slash + kernel)
    return Profile("vllm", f"no kernel profile for {library or 'an unnamed engine'}: vllm's used")


def feature_library(library: str) -> str:
    """The library whose indicator a profile sets (a special profile shares its parent's)."""
    return _ALIASES.get(library, library.partition("/")[0])


# The attention kernels that the engines choose by architecture (their documentation and source): family -> kernel of the
# engine's default back end, "" for any other family. FP8 caches are read by FlashInfer's where FlashAttention 2 cannot.
_ATTENTION = {
    ("vllm", "ampere"): "fa2", ("vllm", "ada"): "fa2", ("vllm", "blackwell-gddr"): "fa2", ("vllm", "hopper"): "fa3",
    ("vllm", "blackwell"): "gen", ("sglang", "ampere"): "fa3", ("sglang", "ada"): "fi", ("sglang", "blackwell-gddr"): "fi",
    ("sglang", "hopper"): "fa3", ("sglang", "blackwell"): "gen", ("trtllm", "ampere"): "xqa", ("trtllm", "ada"): "xqa",
    ("trtllm", "blackwell-gddr"): "xqa", ("trtllm", "hopper"): "xqa", ("trtllm", "blackwell"): "gen",
}  # fmt: skip


# Families without asynchronous copies whose software stack builds CUDA's kernels run what the engines give older chips.
LIKE = dict.fromkeys(("ppu", "musa", "turing", "volta", "pascal"), "ada")

# Families whose units copy and multiply asynchronously, which attention kernels of all makers of software build on there; AMD's,
# in assembly, load straight into shared memory while two groups of waves take turns.
ASYNCHRONOUS = ("hopper", "blackwell", *CDNA)


def attention_style(family: str) -> str:
    """How attention kernels are built on a family, where nothing closer is known: "async" or "sync"."""
    return "async" if family in ASYNCHRONOUS else "sync"


def latent_maker(library: str, family: str, kind: str) -> str:
    """Whose latent attention a library runs: on Blackwell SGLang calls TensorRT-LLM's."""
    return "trtllm" if kind.startswith("mla") and library == "sglang" and family == "blackwell" else library


def attention_kernel(library: str, family: str, precision: str, kind: str) -> str:
    """Which attention kernel a library runs on an architecture family, for ``precision`` like "bf16+fp8"; "" if not known.

    fa2, fa3: FlashAttention; fi: FlashInfer; gen: TensorRT-LLM's for Blackwell (also in vLLM and SGLang); xqa, fmha: its
    older ones, which differ on Hopper and, in decode, with an FP8 cache. "+80" marks FlashAttention 3 on Ampere. Linear
    attention and its convolutions run on Triton's kernels under every engine, compiled into asynchronous copies where a family
    has them ("+90"); vLLM's chunks on Hopper and Blackwell on FlashInfer's. Ampere's were measured under an older SGLang.
    """
    if kind == "scan":
        fast = library == "vllm" and precision == "scan" and family in ("hopper", "blackwell")
        plain = "triton+90" if attention_style(family) == "async" else "triton+80" if family == "ampere" else "triton"
        return ("fi" if fast else plain) if (library, LIKE.get(family, family)) in _ATTENTION else ""
    found = _ATTENTION.get((library, LIKE.get(family, family)), "")
    if library == "sglang" and kind == "prefill" and precision == "bf16+fp8" and found in ("fa3", "gen"):
        return ""  # Triton's for the shapes that the fast ones lack (an FP8 cache with 16-bit queries): no two families share any
    if found == "fa2" and precision.endswith("fp8"):
        return "fi"
    if found == "fa3" and family == "ampere":
        return "fa3+80"
    if found == "xqa":
        name = found if kind.endswith("decode") else "fmha"
        eight = "8" if name == "xqa" and precision.endswith("fp8") else ""
        hopper = family == "hopper" and (eight or name == "fmha" or kind.startswith("mla"))
        return name + eight + ("+90" if hopper else "")
    return found


def portable_kernel(library: str, family: str, head_dim: Any, window: Any, precision: str, kind: str) -> Any:
    """1 where a library falls back to a portable (Triton) attention kernel because its fast one lacks the shape, else 0."""
    if library != "sglang" and (library != "vllm" or family == "hopper" or not precision.endswith("fp8")):
        return 0.0
    head, span = np.asarray(head_dim, dtype=np.float64), np.asarray(window, dtype=np.float64)
    odd = head == 192.0
    if library == "sglang":
        if family == "hopper":
            odd = (head > 256.0) | ((head == 256.0) & (span > 0.0))
            if precision == "bf16+fp8" and kind == "prefill":
                odd = head > 0.0
        elif family == "blackwell" and precision == "bf16+fp8" and kind == "prefill":
            odd = head > 128.0
        elif family != "blackwell":
            odd = odd | (head < 128.0)
            if family == "blackwell-gddr":
                odd = odd | (head > 256.0) | (span > 0.0)
            if precision == "fp8+fp8":
                odd = head > 0.0
    return odd * 1.0


def kind_of(op: Compute, library: str = "trtllm") -> str:
    """Which family of kernels runs an operator under a library; streams and convolutions borrow the products'."""
    if isinstance(op, GroupedGemm):
        return "moe"
    if isinstance(op, Attention):
        mla = op.kind == "mla" or float(np.max(op.qk_head_dim)) != float(np.max(op.v_head_dim))
        decode = float(np.max(op.q_tokens)) <= 8.0
        return ("mla_" if mla else "") + ("decode" if decode else "prefill")
    if isinstance(op, Scan):
        return "scan"
    assert isinstance(op, Gemm | Stream | Conv)
    label = precision_of(op)
    return "gemm" if label in WIDE or (label in WEIGHT_ONLY and library != "trtllm") else "gemm_narrow"


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
