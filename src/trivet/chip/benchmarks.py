"""Three microbenchmarks of a chip sharpen what is believed of all its kernels.

One large GEMM tells the compute rate, one GEMV the memory rate, one tiny GEMM the launch floor: a Gauss-Newton update of the
three offsets from their prior (the data sheet's interval and the spread between chips), with the benchmarks' own noise.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from trivet.chip.spec import Chip
from trivet.operators import Gemm

Floats = NDArray[np.float64]
NOISE = 0.05  # log spread of one kernel's time about the model of its own chip
# Share of what a GEMM shows beyond the data sheet that other kinds of kernel and other precisions share.
SHARED = 0.6
# Products of narrow weights are other kernels, and launch mostly two: the tiny GEMM says nothing of their launches, the others
# little of what power limits have not told already.
SHARED_NARROW, SHARED_LAUNCH = 0.2, 0.0


@dataclass(frozen=True, eq=False)
class Update:
    """What the benchmarks changed: log offsets and variances of (compute, bandwidth, launch)."""

    delta: Floats  # [3]
    sheet: Floats  # [3] prior log spread from the data sheet
    kernels: Floats  # [3] prior log spread between chips
    kept: Floats  # [3] posterior variance over prior variance

    def apply(self, same: bool, sheet: Floats, kernels: Floats, narrow: bool = False) -> tuple[Floats, Floats]:
        """(offset, log spread) for kernels like the benchmarks' (``same``), of another kind or precision, or ``narrow``
        products."""
        share = np.full(3, 1.0 if same else SHARED)
        if narrow:
            share[:] = SHARED_NARROW, SHARED_NARROW, SHARED_LAUNCH
        before = np.maximum(self.sheet**2 + self.kernels**2, 1e-12)
        offset = self.delta * (self.sheet**2 + share * self.kernels**2) / before
        variance = sheet**2 * self.kept + kernels**2 * (1.0 - share**2 * (1.0 - self.kept))
        return offset, np.sqrt(variance)


def benchmarks(chip: Chip) -> tuple[tuple[Gemm, float], ...]:
    """The microbenchmarks that the catalogue holds of a chip: operator and measured seconds."""
    found = []
    for name, shape in (
        ("bench_gemm_4096_s", (4096, 4096, 4096)),
        ("bench_gemv_s", (1, 128256, 4096)),
        ("bench_gemm_384_s", (384, 384, 384)),
    ):
        seconds = chip.get(name)
        if seconds is not None and seconds > 0:
            dtype = "bf16" if chip.get("peak_flops_bf16") or chip.get("peak_flops_fp16") else "fp32"
            m, n, k = (float(v) for v in shape)
            found.append((Gemm(name, m, n, k, dtype), seconds))
    return tuple(found)


Predict = Callable[[Gemm, Floats], tuple[float, Floats]]


def update(measured: Sequence[tuple[Gemm, float]], predict: Predict, sheet: Floats, kernels: Floats) -> Update:
    """Posterior of the offsets; ``predict`` gives seconds and the shares [3] of an operator under added offsets [3]."""
    prior = np.maximum(sheet**2 + kernels**2, 1e-8)
    delta = np.zeros(3)
    covariance = np.diag(prior)
    for _ in range(12):
        rows, off = [], []
        for operator, seconds in measured:
            value, shares = predict(operator, delta)
            rows.append(shares)
            off.append(np.log(seconds / value) + shares @ delta)
        slope, target = np.array(rows), np.array(off)
        # A benchmark that contradicts the others (a busy machine, another clock) counts less.
        trust = 1.0 / (1.0 + ((target - slope @ delta) / 0.5) ** 2)
        weighted = slope * (trust / NOISE**2)[:, None]
        covariance = np.linalg.inv(np.diag(1.0 / prior) + weighted.T @ slope)
        following = covariance @ (weighted.T @ target)
        step = np.clip(following - delta, -0.5, 0.5)
        delta = delta + step
        if float(np.abs(step).max()) < 1e-6:
            break
    return Update(delta, sheet, kernels, np.clip(np.diag(covariance) / prior, 0.0, 1.0))
