"""What a claim is: how it was computed, its verdict and probability, the figures behind it, what would change it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from statistics import NormalDist
from typing import Any

from trivet.errors import TrivetError
from trivet.units import Z80

VERDICTS = ("holds", "does not hold", "open", "quantified", "not computed")
SURE = 0.8  # from this probability on a claim holds, from its complement down it does not; between them it is open


@dataclass(frozen=True, slots=True)
class Figure:
    """One computed number behind a verdict, with its 80% interval."""

    name: str
    value: float
    lo: float
    hi: float
    unit: str = ""
    note: str = ""
    probability: float | None = None  # that this figure alone supports the claim

    @classmethod
    def of(
        cls, name: str, value: float, log_sigma: float, unit: str = "", note: str = "", probability: float | None = None
    ) -> Figure:
        """A log-normal figure from its median and the standard deviation of its logarithm."""
        half = math.exp(Z80 * log_sigma)
        return cls(name, value, value / half, value * half, unit, note, probability)

    def to_dict(self) -> dict[str, Any]:
        return {
            "name": self.name, "value": self.value, "lo": self.lo, "hi": self.hi, "unit": self.unit, "note": self.note,
            "probability": self.probability,
        }  # fmt: skip


@dataclass(frozen=True, slots=True)
class Claim:
    """One claim and what Trivet finds. ``probability`` is that the claim is true, None where it is not computed."""

    id: str
    claim: str
    computed_by: str
    verdict: str
    probability: float | None
    would_change: str
    figures: tuple[Figure, ...] = ()
    note: str = ""

    def __post_init__(self) -> None:
        if self.verdict not in VERDICTS:
            raise TrivetError(f"unknown verdict {self.verdict!r}", field="verdict", allowed=VERDICTS)

    def to_dict(self) -> dict[str, Any]:
        return {
            "id": self.id, "claim": self.claim, "computed_by": self.computed_by, "verdict": self.verdict,
            "probability": self.probability, "would_change": self.would_change,
            "figures": [figure.to_dict() for figure in self.figures], "note": self.note,
        }  # fmt: skip


def verdict(probability: float | None) -> str:
    """The word for a probability."""
    if probability is None:
        return "not computed"
    return "holds" if probability >= SURE else "does not hold" if probability <= 1 - SURE else "open"


def exceeds(log_ratio: float, log_sigma: float, threshold: float = 1.0) -> float:
    """P(ratio > threshold) of a log-normal ratio with this median logarithm."""
    distance = log_ratio - math.log(threshold)
    if log_sigma <= 0:
        return 1.0 if distance >= 0 else 0.0
    return NormalDist().cdf(distance / log_sigma)


@dataclass(frozen=True, slots=True)
class Bench:
    """What the claims are computed with; results that several claims need are computed once."""

    seed: int = 0
    clients: Callable[[str], Any] | None = None  # reads the recorded customers of a cloud; without it they are not computed
    progress: Callable[[str, int, int], None] = lambda *_: None
    memo: dict[str, Any] = field(default_factory=dict)

    def once(self, key: str, compute: Callable[[], Any]) -> Any:
        if key not in self.memo:
            self.memo[key] = compute()
        return self.memo[key]
