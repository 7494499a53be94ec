"""An Estimate: a positive number with the spread that unknown fields give it, and the field that drives the spread.

First-order propagation in logarithms: every source of doubt is a named factor, ``spread[name]`` is how many units of
log the result moves when that factor moves by one standard deviation. Factors of one name are the same doubt and add
with their sign (they may cancel); different names are independent. Products add the spreads, sums weigh them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

from trivet.errors import TrivetError
from trivet.facts import Fact
from trivet.units import Z80


@dataclass(frozen=True, slots=True)
class Estimate:
    """``value`` (> 0 or exactly 0) with ``spread``: named factor -> signed log standard deviation."""

    value: float
    spread: dict[str, float] = field(default_factory=dict)

    @property
    def log_sigma(self) -> float:
        return math.sqrt(sum(s * s for s in self.spread.values()))

    @property
    def lo(self) -> float:
        """Lower end of the 80% interval."""
        return self.value * math.exp(-Z80 * self.log_sigma)

    @property
    def hi(self) -> float:
        """Upper end of the 80% interval."""
        return self.value * math.exp(Z80 * self.log_sigma)

    @property
    def driver(self) -> str:
        """Name of the factor that widens the interval most; "" when nothing does."""
        return max(self.spread, key=lambda name: abs(self.spread[name]), default="")

    def __mul__(self, other: Estimate | float) -> Estimate:
        if isinstance(other, Estimate):
            return Estimate(self.value * other.value, _added(self.spread, other.spread, 1.0))
        return Estimate(self.value * other, self.spread)

    __rmul__ = __mul__

    def __truediv__(self, other: Estimate | float) -> Estimate:
        if isinstance(other, Estimate):
            return Estimate(self.value / other.value, _added(self.spread, other.spread, -1.0))
        return Estimate(self.value / other, self.spread)

    def __rtruediv__(self, other: float) -> Estimate:
        return Estimate(other / self.value, {name: -s for name, s in self.spread.items()})

    def __add__(self, other: Estimate | float) -> Estimate:
        return total((self, other if isinstance(other, Estimate) else Estimate(other)))

    __radd__ = __add__

    def to_dict(self) -> dict[str, float | str]:
        return {"value": self.value, "lo": self.lo, "hi": self.hi, "driver": self.driver}


def of(fact: Fact | None, name: str) -> Estimate:
    """The estimate that a fact gives; raises TrivetError when the fact is unknown.

    The median of an interval's log-normal is the fact's value; an interval that reaches down to zero keeps only its
    upper half-width.
    """
    if fact is None or fact.value is None:
        raise TrivetError("unknown: neither a value nor an interval with a best value", field=name)
    if fact.lo is None or fact.hi is None or fact.value <= 0:
        return Estimate(fact.value)
    sigma = fact.log_sigma if fact.lo > 0 else math.log(max(fact.hi / fact.value, 1.0)) / Z80
    return Estimate(fact.value, {name: sigma}) if sigma > 0 else Estimate(fact.value)


def between(lo: float, hi: float, name: str, value: float | None = None) -> Estimate:
    """An estimate from an 80% interval; the median is ``value`` or the geometric middle."""
    if not 0 < lo <= hi:
        raise TrivetError(f"[{lo}, {hi}] is not a positive interval", field=name)
    sigma = math.log(hi / lo) / (2 * Z80)
    return Estimate(math.sqrt(lo * hi) if value is None else value, {name: sigma} if sigma else {})


def total(parts: Iterable[Estimate]) -> Estimate:
    """The sum; each part's spread weighs with its share."""
    parts = tuple(parts)
    value = sum(part.value for part in parts)
    spread: dict[str, float] = {}
    if value > 0:
        for part in parts:
            spread = _added(spread, part.spread, part.value / value)
    return Estimate(value, spread)


def least(parts: Iterable[Estimate]) -> Estimate:
    """The smallest by value (a bottleneck), with its own spread."""
    return min(parts, key=lambda part: part.value)


def _added(a: dict[str, float], b: dict[str, float], weight: float) -> dict[str, float]:
    if not b:
        return a
    out = dict(a)
    for name, sigma in b.items():
        out[name] = out.get(name, 0.0) + weight * sigma
    return out
