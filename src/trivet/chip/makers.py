"""What is known beforehand of chips that the calibration never measured, by maker and architecture family.

The calibrated kernels are NVIDIA's and one of Intel's. Three sources stand for other makers:

- **AMD** publishes the times of its tuned kernels with the kernels: ``loop/fit_makers.py`` fits their offsets for CDNA 3 and
  CDNA 4 (``data/calibration/makers.json``), by kind of kernel, library and precision.
- For the others, offsets of a family from published serving figures and microbenchmarks (``docs/accuracy.md`` names them).
- A maker without either takes those of a young software stack, wide enough to hold the others.

All are logarithms on (compute, memory, floor) time, on top of a typical chip's.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trivet.chip.residual import SOFT_MAX_POWER
from trivet.chip.spec import Chip


@dataclass(frozen=True, eq=False)
class MakerProfile:
    """Offsets and spreads in log of (compute, memory, floor) time; ``fitted`` to kernels of the family: then the spread is all
    that is not known of the offsets, else it comes on top of a new chip's. ``power`` joins compute and memory."""

    offset: NDArray[np.float64]
    sigma: NDArray[np.float64]
    fitted: bool = False
    power: float = SOFT_MAX_POWER


# Family or maker -> offsets, spreads.
_OFFSETS = {
    "NVIDIA": ((0.0, 0.0, 0.0), (0.0, 0.0, 0.0)),
    # Kernels that AMD's tables do not hold: attention. FlashAttention 2 reaches 25% of MI300X's peak (Azure, 328 TFLOP/s).
    "AMD": ((0.10, 0.08, 0.45), (0.20, 0.10, 0.40)),
    # Matrix engines of Gaudi reach 90% and more of their peak on square products and keep most of it on thin ones (ISCA 2025,
    # arXiv 2501.00210; arXiv 2502.01070), as a typical chip does that no power limit holds back. Memory and floor from half of
    # the models of Intel's own table: recorded graphs keep launches short.
    "gaudi": ((-0.10, -0.10, -0.40), (0.20, 0.12, 0.50)),
    # From half of the published TPU figures: products that fit the MXU reach what a typical chip does, the bandwidth also, and
    # a step has a floor of more than its kernels' own.
    "tpu": ((0.0, 0.0, 0.60), (0.20, 0.12, 0.50)),
    # Memory from half of AWS's models.
    "neuron": ((0.20, 0.20, 0.60), (0.30, 0.15, 0.60)),
    # What launching operators one by one takes is the engine's (``cloud/engine/ported.py``).
    "davinci": ((0.20, 0.12, 0.60), (0.30, 0.15, 0.60)),
    "T-Head": ((0.0, 0.0, 0.30), (0.20, 0.10, 0.40)),
}
_OTHER = ((0.25, 0.12, 0.60), (0.30, 0.15, 0.60))
# (maker, kind, precision) -> the same, of kernels that the maker's library does not have. Experts in 4-bit integers: engines run
# Triton's there, untuned (SGLang's Kimi-K2.5 on MI350X takes 15 times as long as in MXFP4, its only published run).
_WITHOUT = {("AMD", "moe", "int4_wo"): ((1.0, 1.2, 0.3), (0.7, 0.8, 0.4))}
# A precision that was not fitted for a kind -> one of like kernels.
_ALIKE = {
    "fp16": ("bf16",), "mxfp8": ("fp8",), "mxfp4": ("nvfp4",), "int8_wo": ("bf16",), "int4_wo": ("mxfp4",),
    "w4a8_mxfp4": ("nvfp4",), "fp8+fp8": ("bf16+fp8", "bf16+bf16"), "bf16+fp8": ("fp8+fp8", "bf16+bf16"),
    "bf16+bf16": ("bf16+fp8", "fp8+fp8"),
}  # fmt: skip

# Attention of a family that was not fitted -> the family whose kernels the same library wrote for both; the spread it adds.
_ATTENTION = ("prefill", "decode", "mla_prefill", "mla_decode")
_NEXT, _NEXT_SIGMA = {"cdna3": "cdna4"}, np.array([0.3, 0.1, 0.2])


@cache
def fitted() -> dict[str, dict[str, Any]]:
    """Family -> "kind|library|precision" -> offset and sigma, as ``loop/fit_makers.py`` wrote them."""
    text = resources.files("trivet.data.calibration").joinpath("makers.json").read_text("utf-8")
    families: dict[str, dict[str, Any]] = json.loads(text)["families"]
    return families


@cache
def _profile(maker: str, family: str, kind: str, library: str, precision: str) -> MakerProfile:
    without = _WITHOUT.get((maker, kind, precision))
    if without:
        return MakerProfile(np.array(without[0]), np.array(without[1]))
    names = [f"{kind}|{library}|{name}" for name in (precision, *_ALIKE.get(precision, ()))]
    for known in (family, _NEXT.get(family, "") if kind in _ATTENTION else ""):
        kernels = fitted().get(known, {})
        for found in (kernels[name] for name in names if name in kernels):
            sigma = np.hypot(found["sigma"], 0.0 if known == family else _NEXT_SIGMA)
            return MakerProfile(np.array(found["offset"]), sigma, True, float(found["power"]))
    offset, sigma = _OFFSETS.get(family) or _OFFSETS.get(maker, _OTHER)
    return MakerProfile(np.array(offset), np.array(sigma))


def maker_profile(chip: Chip, kind: str = "", library: str = "", precision: str = "") -> MakerProfile:
    """What is believed of a chip's kernels of one kind under one library (a kernel's name behind its slash does not count)."""
    return _profile(chip.maker, chip.family, kind, library.partition("/")[0], precision)
