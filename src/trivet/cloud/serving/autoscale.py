"""Autoscaling: how many replicas are on, and how long one takes to come up."""

from __future__ import annotations

from dataclasses import dataclass

from trivet.errors import TrivetError


@dataclass(frozen=True, slots=True)
class Autoscale:
    """Every ``interval_s`` the fleet is sized so that each replica would have ``target_in_flight`` requests.

    Args:
        cold_start_s: from the order to the first request (see ``cold_start_s``).
        minimum, maximum: replicas on; a maximum of 0 means all that the fleet names.
    """

    target_in_flight: int
    interval_s: float = 30.0
    cold_start_s: float = 120.0
    minimum: int = 1
    maximum: int = 0

    def __post_init__(self) -> None:
        if self.target_in_flight < 1:
            raise TrivetError(f"{self.target_in_flight}", field="autoscale.target_in_flight", allowed="1 or more")
        if not self.interval_s > 0:
            raise TrivetError(f"{self.interval_s}", field="autoscale.interval_s", allowed="above 0")
        if not self.cold_start_s >= 0:
            raise TrivetError(f"{self.cold_start_s}", field="autoscale.cold_start_s", allowed="0 or more")
        if self.minimum < 0 or self.maximum < 0 or (self.maximum and self.maximum < self.minimum):
            raise TrivetError(
                f"{self.minimum} to {self.maximum}", field="autoscale.minimum", allowed="0 <= minimum <= maximum"
            )


def cold_start_s(weight_bytes: float, bandwidth_bytes_per_s: float, start_s: float = 30.0) -> float:
    """Weights over the bandwidth of the SSD or object store that they come from, plus the engine's own start.

    ``start_s``: process, compile cache, graph capture; 30 s is an assumption, engines log 10 to 60 s.
    """
    if not bandwidth_bytes_per_s > 0:
        raise TrivetError(f"{bandwidth_bytes_per_s} B/s", field="bandwidth_bytes_per_s", allowed="above 0")
    return start_s + weight_bytes / bandwidth_bytes_per_s
