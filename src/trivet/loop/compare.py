"""Which of two chips runs an operator faster, and with what probability."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from trivet.chip.catalogue import chip as catalogue_chip
from trivet.chip.spec import Chip
from trivet.chip.timing import Seconds, time
from trivet.cloud import collectives
from trivet.operators import Attention, Gemm, Operator, Transfer

# What a model spends its time on: a prompt and a decode product, attention of both, an all-reduce of eight chips.
OPERATORS: tuple[Operator, ...] = (
    Gemm("GEMM 4096 x 8192 x 8192", 4096.0, 8192.0, 8192.0),
    Gemm("GEMM 16 x 8192 x 8192", 16.0, 8192.0, 8192.0),
    Attention("prompt attention, 4096 tokens", 1.0, 4096.0, 4096.0, 32.0, 8.0, 128.0, 128.0),
    Attention("decode attention, 64 x 4096 keys", 64.0, 1.0, 4096.0, 32.0, 8.0, 128.0, 128.0),
    Transfer("all-reduce of 64 MB, 8 chips", "all_reduce", 64e6, 8, "tp"),
)


@dataclass(frozen=True, slots=True)
class Lead:
    """``first`` against ``second`` on one operator."""

    operator: str
    first_s: float
    first_sigma: float
    second_s: float
    second_sigma: float
    probability: float  # that the first is the faster

    @property
    def ratio(self) -> float:
        """Time of the second over the first: above 1 the first leads."""
        return self.second_s / self.first_s


def _seconds(operator: Operator, chip: Chip, library: str) -> Seconds:
    if isinstance(operator, Transfer):
        return collectives.time(operator, collectives.levels_of(chip, operator.group), chip, library)
    return time(operator, chip, library)


def compare(
    first: str | Chip, second: str | Chip, operators: tuple[Operator, ...] = OPERATORS, library: str = "vllm"
) -> tuple[Lead, ...]:
    """Each operator on both chips; log times as independent normals (chips share no unknown field).

    ``operators`` have scalar dimensions. Raises UnknownName or Unsupported for a chip that cannot be timed.
    """
    chips: list[Any] = [catalogue_chip(c) if isinstance(c, str) else c for c in (first, second)]
    found = []
    for operator in operators:
        a, b = (_seconds(operator, c, library) for c in chips)
        ta, tb, sa, sb = (float(v) for v in (a.value_s, b.value_s, a.log_sigma, b.log_sigma))
        z = math.log(tb / ta) / max(math.hypot(sa, sb), 1e-9)
        found.append(Lead(operator.name, ta, sa, tb, sb, 0.5 * (1.0 + math.erf(z / math.sqrt(2.0)))))
    return tuple(found)
