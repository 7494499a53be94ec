"""What is known beforehand of chips whose kernels were never in the calibration, by maker.

The calibrated kernels are NVIDIA's and one of Intel's. Other makers' libraries are younger, and public benchmarks put them
further from their data sheets; these offsets say so, with a spread wide enough to hold those benchmarks. They are logarithms
on (compute, memory, floor) time, on top of a typical chip's.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from trivet.chip.spec import Chip


@dataclass(frozen=True, eq=False)
class MakerProfile:
    """Offsets and spreads in log of (compute, memory, floor) time."""

    offset: NDArray[np.float64]
    sigma: NDArray[np.float64]


# AMD: 45-65% of peak in BF16 GEMM on MI300X where NVIDIA reaches 70-85% (public GEMM studies of 2024-2025); its power limit
# explains most of it.
# Google: MXU-friendly shapes reach 85-95% of peak; kernels are launched from a compiled program, so the floor is low.
# Others: a younger software stack.
_OFFSETS = {
    "AMD": ((0.10, 0.08, 0.45), (0.20, 0.10, 0.40)),
    "Google": ((0.08, 0.05, -0.10), (0.20, 0.12, 0.50)),
    "NVIDIA": ((0.0, 0.0, 0.0), (0.0, 0.0, 0.0)),
    "T-Head": ((0.0, 0.0, 0.30), (0.20, 0.10, 0.40)),
}
_OTHER = ((0.25, 0.12, 0.60), (0.30, 0.15, 0.60))


@cache
def _of(maker: str) -> MakerProfile:
    offset, sigma = _OFFSETS.get(maker, _OTHER)
    return MakerProfile(np.array(offset), np.array(sigma))


def maker_profile(chip: Chip) -> MakerProfile:
    """The maker's offsets; a maker that is not listed takes those of a young software stack."""
    return _of(chip.maker)
