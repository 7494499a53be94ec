"""Tasks of one placement each: what a pod asks of one server, and tables of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from trivet.cloud.cluster.nodes import WHOLE
from trivet.errors import TrivetError


@dataclass(frozen=True, slots=True)
class Task:
    """One task: ``num_chips`` chips, ``chip_milli`` thousandths of each; a share (< 1000) of one chip only.

    ``chip_types``: the chip models that it accepts; empty = any. Times are seconds; None where the trace has none.
    """

    name: str
    cpu_milli: int
    memory_mib: int
    num_chips: int
    chip_milli: int
    chip_types: tuple[str, ...] = ()
    qos: str = ""
    creation_s: float | None = None
    deletion_s: float | None = None

    def __post_init__(self) -> None:
        for field in ("cpu_milli", "memory_mib", "num_chips", "chip_milli"):
            if getattr(self, field) < 0:
                raise TrivetError(f"{getattr(self, field)} is negative in task {self.name}", field=field)
        if self.num_chips and not 0 < self.chip_milli <= WHOLE:
            raise TrivetError(f"{self.chip_milli} in task {self.name}", field="gpu_milli", allowed="1 to 1000")
        if self.num_chips > 1 and self.chip_milli != WHOLE:
            raise TrivetError(f"{self.chip_milli} with {self.num_chips} chips in task {self.name}", field="gpu_milli",
                              allowed="1000 where num_gpu is above 1")  # fmt: skip

    @property
    def total_milli(self) -> int:
        return self.num_chips * self.chip_milli

    @property
    def is_share(self) -> bool:
        return self.num_chips == 1 and self.chip_milli < WHOLE

    @property
    def shape(self) -> tuple[int, int, int, str]:
        """What a placement score may depend on: CPU, thousandths, chips, accepted types."""
        return self.cpu_milli, self.chip_milli, self.num_chips, "|".join(self.chip_types)


@dataclass(frozen=True, slots=True)
class TypicalTask:
    """A shape of the expected demand and its share of it (0 to 1)."""

    cpu_milli: int
    chip_milli: int
    num_chips: int
    chip_types: tuple[str, ...]
    share: float


def typical_tasks(tasks: Sequence[Task], popularity: float = 0.95) -> tuple[TypicalTask, ...]:
    """The most frequent shapes that make up ``popularity`` of ``tasks``, with renormalised shares (FGD's demand model).

    Ties in frequency go to the larger shape (CPU, thousandths, chips, types), so that the cut is the same everywhere.
    """
    counts: dict[tuple[int, int, int, str], int] = {}
    types: dict[tuple[int, int, int, str], tuple[str, ...]] = {}
    for task in tasks:
        counts[task.shape] = counts.get(task.shape, 0) + 1
        types[task.shape] = task.chip_types
    ordered = sorted(counts, key=lambda shape: (counts[shape], shape), reverse=True)
    total, kept, covered = float(len(tasks)), [], 0.0
    for shape in ordered:
        if covered >= popularity * total:
            break
        kept.append(shape)
        covered += counts[shape]
    chopped = len(kept) < len(ordered)
    out = []
    for shape in kept:
        share = counts[shape] / total
        out.append(TypicalTask(shape[0], shape[1], shape[2], types[shape], share / (covered / total) if chopped else share))
    return tuple(out)


@dataclass(frozen=True, slots=True, eq=False)
class ClassTable:
    """Distinct task shapes as arrays and the class of every task."""

    cpu_milli: NDArray[np.int64]  # [C]
    memory_mib: NDArray[np.int64]  # [C]
    chip_milli: NDArray[np.int64]  # [C]
    num_chips: NDArray[np.int64]  # [C]
    allowed: NDArray[np.bool_]  # [C, models]
    shape: NDArray[np.int64]  # [C] classes that differ in memory alone share a shape, hence a score
    shapes: int
    task: NDArray[np.int64]  # [tasks] class of each task


def allowed_models(types: Sequence[str], models: Sequence[str]) -> list[bool]:
    """Which of ``models`` a type constraint accepts; an empty constraint accepts all."""
    return [not types or m in types for m in models]


def class_table(tasks: Sequence[Task], models: Sequence[str]) -> ClassTable:
    """Group ``tasks`` by what they ask."""
    classes: dict[tuple[int, tuple[int, int, int, str]], int] = {}
    shapes: dict[tuple[int, int, int, str], int] = {}
    first: list[Task] = []
    task_class = np.empty(len(tasks), np.int64)
    for i, task in enumerate(tasks):
        key = (task.memory_mib, task.shape)
        c = classes.get(key)
        if c is None:
            c = classes[key] = len(classes)
            shapes.setdefault(task.shape, len(shapes))
            first.append(task)
        task_class[i] = c
    return ClassTable(
        np.array([t.cpu_milli for t in first], np.int64), np.array([t.memory_mib for t in first], np.int64),
        np.array([t.chip_milli if t.num_chips else 0 for t in first], np.int64),
        np.array([t.num_chips for t in first], np.int64),
        np.array([allowed_models(t.chip_types if t.num_chips else (), models) for t in first], np.bool_).reshape(-1, len(models)),
        np.array([shapes[t.shape] for t in first], np.int64), len(shapes), task_class,
    )  # fmt: skip
