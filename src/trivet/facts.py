"""A Fact: a value or an interval with its unit, status, source and date; unknown stays unknown."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from trivet.errors import TrivetError
from trivet.units import Z80

STATUSES = ("published", "reported", "derived", "measured", "unpublished")


@dataclass(frozen=True, slots=True)
class Conflict:
    """Another value that a source prints for the same field, and why it is not the one used."""

    value: float
    source: str
    reason: str


@dataclass(frozen=True, slots=True)
class Fact:
    """One sourced field.

    ``value`` is the best point estimate in SI ``unit``; None when nothing is known.
    ``lo``/``hi`` bound it when it is not published (an 80% interval); both None for a plain value.
    """

    value: float | None
    unit: str
    status: str
    source: str
    date: str = ""
    lo: float | None = None
    hi: float | None = None
    note: str = ""
    conflicts: tuple[Conflict, ...] = ()

    def __post_init__(self) -> None:
        if self.status not in STATUSES:
            raise TrivetError(f"unknown status {self.status!r}", field="status", allowed=STATUSES)
        if (self.lo is None) != (self.hi is None):
            raise TrivetError("an interval needs both lo and hi", field="lo/hi")
        for name in ("value", "lo", "hi"):
            number = getattr(self, name)
            if number is not None and not math.isfinite(number):
                raise TrivetError(f"{number} is not a finite number", field=name)
        if self.lo is not None and self.hi is not None:
            if self.lo > self.hi:
                raise TrivetError(f"lo {self.lo} above hi {self.hi}", field="lo/hi")
            if self.value is not None and not self.lo <= self.value <= self.hi:
                raise TrivetError(f"value {self.value} outside [{self.lo}, {self.hi}]", field="value")

    @property
    def known(self) -> bool:
        return self.value is not None

    @property
    def log_sigma(self) -> float:
        """Standard deviation of log(value) that an 80% interval implies; 0 for a plain value."""
        if self.lo is None or self.hi is None or self.lo <= 0:
            return 0.0
        return math.log(self.hi / self.lo) / (2 * Z80)

    def to_dict(self) -> dict[str, Any]:
        return {
            "value": self.value,
            "lo": self.lo,
            "hi": self.hi,
            "unit": self.unit,
            "status": self.status,
            "source": self.source,
            "date": self.date,
            "note": self.note,
            "conflicts": [{"value": c.value, "source": c.source, "reason": c.reason} for c in self.conflicts],
        }

    @classmethod
    def from_mapping(cls, raw: Mapping[str, Any], *, field: str) -> Fact:
        """Read a fact as the catalogue files write it; raises TrivetError naming ``field``."""
        try:
            conflicts = tuple(
                Conflict(float(c["value"]), str(c["source"]), str(c["reason"])) for c in raw.get("conflicts", ())
            )
            number = {k: None if raw.get(k) is None else float(raw[k]) for k in ("value", "lo", "hi")}
            return cls(
                number["value"],
                str(raw["unit"]),
                str(raw["status"]),
                str(raw["source"]),
                str(raw.get("date", "")),
                number["lo"],
                number["hi"],
                str(raw.get("note", "")),
                conflicts,
            )
        except (KeyError, TypeError, ValueError) as error:
            raise TrivetError(f"bad fact: {error}", field=field) from error
