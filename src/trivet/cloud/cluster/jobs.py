"""Jobs over time: gangs of equal workers with what they need, how long they run and what a stop costs them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from trivet.cloud.cluster.tasks import Task
from trivet.errors import TrivetError

LEVELS = ("", "rack", "domain", "pod")


@dataclass(frozen=True, slots=True)
class Job:
    """``workers`` equal tasks that start together or not at all.

    ``duration_s``: work at full speed; inf for a service that stays. ``checkpoint_s``: work between checkpoints, 0 when a
    stop loses everything. ``topology``: the group that must hold all workers ("" = any). ``kind`` is a label to account
    by. Higher ``priority`` goes first and, where preemption is on, evicts lower.
    """

    name: str
    tenant: str
    arrival_s: float
    duration_s: float
    worker: Task
    workers: int = 1
    priority: int = 0
    topology: str = ""
    checkpoint_s: float = 0.0
    kind: str = "job"

    def __post_init__(self) -> None:
        if self.topology not in LEVELS:
            raise TrivetError(f"{self.topology!r} in job {self.name}", field="topology", allowed=LEVELS)
        if self.workers < 1:
            raise TrivetError(f"{self.workers} in job {self.name}", field="workers", allowed="at least 1")
        if not (self.duration_s > 0 and math.isfinite(self.arrival_s) and self.arrival_s >= 0 and self.checkpoint_s >= 0):
            raise TrivetError(f"times of job {self.name} are impossible", field="duration_s", allowed="positive")

    @property
    def chip_milli(self) -> int:
        return self.worker.total_milli * self.workers


@dataclass(frozen=True, slots=True)
class Tenant:
    """A customer of the cluster: ``quota`` in chips by model (absent = none), ``weight`` for fair shares."""

    name: str
    quota: tuple[tuple[str, float], ...] = ()
    weight: float = 1.0

    def __post_init__(self) -> None:
        if not self.weight > 0:
            raise TrivetError(f"{self.weight} of tenant {self.name}", field="weight", allowed="above 0")


def by_arrival(jobs: Sequence[Job]) -> list[Job]:
    return sorted(jobs, key=lambda j: j.arrival_s)
