"""Which of two chips runs an operator faster, and with what probability.

A predicted time is log-normal: ``own_sigma`` is the shape's own error, the rest comes from factors (compute, bandwidth,
launch, link) that all operators of a chip share. Between chips errors are taken as independent. That is what was measured:
with both families left out, the log errors of the same shapes on two chips of different families correlate by 0.28 (GEMM),
-0.19 (prefill attention) and 0.10 (decode attention), median over the pairs, and as independent errors 78% of GEMM ratios, 85%
of prefill ratios and 76% of decode ratios lie in their 80% interval. Over several operators of one chip the factors add up in
step, the own errors do not.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from trivet.chip.catalogue import chip as catalogue_chip
from trivet.chip.spec import Chip
from trivet.chip.timing import Seconds, time
from trivet.cloud import collectives
from trivet.loop.claim import exceeds
from trivet.operators import Attention, Gemm, Operator, Transfer

MIB = 2.0**20
# Kind and operator: what Qwen3-32B spends its time on in prompts and in decode, and the all-reduce of eight chips.
WORKLOADS: tuple[tuple[str, Operator], ...] = (
    ("GEMM", Gemm("prompt product 8,192 x 25,600 x 5,120", 8192.0, 25600.0, 5120.0)),
    ("GEMM", Gemm("the same in INT8", 8192.0, 25600.0, 5120.0, "int8")),
    ("GEMM", Gemm("decode product 64 x 25,600 x 5,120", 64.0, 25600.0, 5120.0)),
    ("GEMM", Gemm("decode product 1 x 25,600 x 5,120", 1.0, 25600.0, 5120.0)),
    ("prefill attention", Attention("prompt of 2,048 tokens, four", 4.0, 2048.0, 2048.0, 64.0, 8.0, 128.0, 128.0)),
    ("prefill attention", Attention("prompt of 8,192 tokens", 1.0, 8192.0, 8192.0, 64.0, 8.0, 128.0, 128.0)),
    ("decode attention", Attention("64 sequences of 4,096 tokens", 64.0, 1.0, 4096.0, 64.0, 8.0, 128.0, 128.0)),
    ("decode attention", Attention("8 sequences of 32,768 tokens", 8.0, 1.0, 32768.0, 64.0, 8.0, 128.0, 128.0)),
    ("all-reduce", Transfer("1 MiB over 8 chips", "all_reduce", MIB, 8, "tp")),
    ("all-reduce", Transfer("64 MiB over 8 chips", "all_reduce", 64 * MIB, 8, "tp")),
)


@dataclass(frozen=True, slots=True)
class Timed:
    """Seconds of one operator on one chip: the spread of its own, and what each factor of the chip brings (log units)."""

    value_s: float
    own_sigma: float
    factors: tuple[float, float, float, float]  # compute, bandwidth, launch, link: share times log sigma

    @property
    def log_sigma(self) -> float:
        return math.hypot(self.own_sigma, *self.factors)


@dataclass(frozen=True, slots=True)
class Lead:
    """``first`` against ``second`` on one operator."""

    kind: str
    operator: str
    first: Timed
    second: Timed

    @property
    def ratio(self) -> float:
        """Time of the second over the first: above 1 the first leads."""
        return self.second.value_s / self.first.value_s

    @property
    def log_sigma(self) -> float:
        return math.hypot(self.first.log_sigma, self.second.log_sigma)

    @property
    def probability(self) -> float:
        """That the first is the faster."""
        return exceeds(math.log(self.ratio), max(self.log_sigma, 1e-9))


@dataclass(frozen=True, slots=True)
class Overall:
    """Geometric mean of the ratios of several operators, its log spread, and the probability that it is above 1."""

    kind: str
    ratio: float
    log_sigma: float
    probability: float


def timed(operator: Operator, chip: Chip, library: str = "vllm") -> Timed:
    """An operator with scalar dimensions on a chip; a collective over the levels of the chip's own server."""
    found: Seconds
    if isinstance(operator, Transfer):
        found = collectives.time(operator, collectives.levels_of(chip, operator.group), chip, library)
    else:
        found = time(operator, chip, library)
    shares = (found.compute, found.bandwidth, found.launch, found.link)
    factors: Any = tuple(float(share) * sigma for share, sigma in zip(shares, found.sigmas, strict=True))
    # An answer that names no factors (textbook collectives) has all of its spread for itself.
    own = math.sqrt(max(float(found.log_sigma) ** 2 - math.fsum(f * f for f in factors), 0.0))
    return Timed(float(found.value_s), own, factors)


def compare(
    first: str | Chip,
    second: str | Chip,
    workloads: Sequence[tuple[str, Operator]] = WORKLOADS,
    library: str = "vllm",
) -> tuple[Lead, ...]:
    """Each operator on both chips. Raises UnknownName or Unsupported for a chip that cannot be timed."""
    one, other = (catalogue_chip(c) if isinstance(c, str) else c for c in (first, second))
    return tuple(
        Lead(kind, operator.name, timed(operator, one, library), timed(operator, other, library))
        for kind, operator in workloads
    )


def overall(leads: Sequence[Lead], kind: str = "all") -> Overall:
    """The leads taken together, each counting alike: factors of a chip add up in step, own errors as independent ones."""
    count = len(leads)
    mean = math.fsum(math.log(lead.ratio) for lead in leads) / count
    variance = 0.0
    for side in ("first", "second"):
        parts: list[Timed] = [getattr(lead, side) for lead in leads]
        variance += math.fsum((math.fsum(p.factors[f] for p in parts) / count) ** 2 for f in range(4))
        variance += math.fsum(p.own_sigma**2 for p in parts) / count**2
    sigma = math.sqrt(variance)
    return Overall(kind, math.exp(mean), sigma, exceeds(mean, max(sigma, 1e-9)))


def by_kind(leads: Sequence[Lead]) -> tuple[Overall, ...]:
    """One line a kind of operator, then all of them."""
    kinds = tuple(dict.fromkeys(lead.kind for lead in leads))
    lines = [overall([lead for lead in leads if lead.kind == kind], kind) for kind in kinds]
    return (*lines, overall(leads))
