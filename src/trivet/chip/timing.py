"""Seconds of an operator on a chip under a kernel library, with spread.

    time = floor + (compute^p + memory^p)^(1/p)

``compute`` and ``memory`` are the ideal times of ``terms.py`` over the sustained share that the library reaches; the soft
maximum (p = 4) lets the two overlap. A residual learned from measured kernels (``residual.py``) corrects it in log space.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from trivet.chip.point import ChipPoint, chip_point
from trivet.chip.spec import Chip
from trivet.chip.terms import terms
from trivet.operators import Attention, Compute, Conv, Gemm, GroupedGemm, Number, Scan

Floats = NDArray[np.float64]
SOFT_MAX_POWER = 4.0


@dataclass(frozen=True, slots=True, eq=False)
class Seconds:
    """Duration of one call of an operator (not times its ``count``).

    ``value_s`` is the median. ``log_sigma`` is the standard deviation of its logarithm, all causes together; of it,
    ``compute``, ``bandwidth``, ``launch`` and ``link`` are the shares of the time that scale with the latent factor of that
    name (they sum to about 1): a factor whose logarithm is off by ``e`` moves log time by ``share * e``. ``floor_s`` is the
    part that launching costs, already inside ``value_s``. ``note`` says what was assumed.
    """

    value_s: Number
    log_sigma: Number
    compute: Number = 0.0
    bandwidth: Number = 0.0
    launch: Number = 0.0
    link: Number = 0.0
    floor_s: Number = 0.0
    note: str = ""

    @property
    def lo_s(self) -> Number:
        """Lower end of the 80% interval."""
        return self.value_s * np.exp(-1.2815515655446004 * np.asarray(self.log_sigma))

    @property
    def hi_s(self) -> Number:
        """Upper end of the 80% interval."""
        return self.value_s * np.exp(1.2815515655446004 * np.asarray(self.log_sigma))


@dataclass(frozen=True, slots=True)
class Sustained:
    """What kernels of one kind reach: shares of the ideal rates, the launch floor, and the spread left."""

    compute: float
    bandwidth: float
    floor_s: float
    log_sigma: float


_DEFAULT = {
    "gemm": Sustained(0.75, 0.85, 3.0e-6, 0.15),
    "grouped": Sustained(0.60, 0.75, 15e-6, 0.25),
    "prefill": Sustained(0.55, 0.75, 8e-6, 0.2),
    "decode": Sustained(0.40, 0.75, 6e-6, 0.2),
    "scan": Sustained(0.15, 0.60, 10e-6, 0.35),
    "stream": Sustained(0.80, 0.75, 2.0e-6, 0.2),
    "conv": Sustained(0.60, 0.75, 4e-6, 0.3),
}


def kind_of(op: Compute) -> str:
    """Which family of kernels runs an operator."""
    if isinstance(op, Gemm):
        return "gemm"
    if isinstance(op, GroupedGemm):
        return "grouped"
    if isinstance(op, Attention):
        return "decode" if float(np.max(op.q_tokens)) <= 8.0 else "prefill"
    return "scan" if isinstance(op, Scan) else "conv" if isinstance(op, Conv) else "stream"


def time(
    operator: Compute,
    chip: Chip,
    library: str = "vllm",
    version: str = "",
    *,
    isolated: bool = False,
    graph: bool = True,
) -> Seconds:
    """Time of one call of ``operator`` on ``chip`` under the kernels of ``library``.

    Args:
        operator: its dimensions may be arrays; the answer has their common shape.
        library: vllm, sglang or trtllm; another name takes the nearest profile and says so in ``note``.
        version: of the library; "" = the newest that was calibrated.
        isolated: as a kernel benchmark runs it, again and again on the same buffers, so that small ones stay in cache.
        graph: launched from a captured graph; else the host's launch cost is a lower bound.

    Raises:
        Unsupported: a field without which the chip cannot be timed is neither published nor bounded.
    """
    point = chip_point(chip, operator.dtype)
    kind = kind_of(operator)
    base = _DEFAULT[kind]
    parts = terms(operator, point, isolated)
    compute_s = parts.compute_s / base.compute
    memory_s = parts.memory_s / base.bandwidth
    floor_s = point.launch_s or base.floor_s
    if not graph:
        floor_s = max(floor_s, point.host_launch_s or 5e-6)
    busy = (compute_s**SOFT_MAX_POWER + memory_s**SOFT_MAX_POWER) ** (1.0 / SOFT_MAX_POWER)
    value = floor_s + busy
    with np.errstate(invalid="ignore", divide="ignore"):
        weight = np.where(busy > 0, (compute_s / busy) ** SOFT_MAX_POWER, 0.0)
    share = busy / value
    s_compute, s_bandwidth = share * weight, share * (1.0 - weight)
    sigma = np.sqrt(
        base.log_sigma**2
        + (s_compute * point.sigma_compute) ** 2
        + (s_bandwidth * point.sigma_bandwidth) ** 2
    )
    return Seconds(
        value, sigma, s_compute, s_bandwidth, floor_s / value, 0.0, floor_s, _note(operator, point, kind)
    )


def _note(operator: Compute, point: ChipPoint, kind: str) -> str:
    if kind == "stream" or point.native:
        return ""
    return (
        f"{point.name} has no {operator.dtype} units: computed in {point.math}, weights widened on the way in"
    )


def combined_sigma(*sigmas: float) -> float:
    """Independent log spreads together."""
    return math.sqrt(sum(s * s for s in sigmas))
