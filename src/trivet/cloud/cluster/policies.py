"""Placement policies, each a plain function: how good a node is for a task. The highest score wins, ties go to the node
of the lowest rank; a policy sees only nodes on which the task fits.

The six of the published comparison (Weng et al., "Beware of Fragmentation", ATC 2023) follow the authors' simulator,
whole-number scores included: the rounding makes ties, and ties decide placements. Their formulas are in
``docs/scheduling.md``. The hot loop (``_loop_place.py``) computes the same numbers; these functions are its reference
and the contract that a plug-in of the entry point group ``trivet.placement`` meets.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from trivet.cloud.cluster.nodes import WHOLE
from trivet.cloud.cluster.tasks import Task, TypicalTask
from trivet.errors import TrivetError, UnknownName

MAX_CPU_MILLI, MAX_CHIP_MILLI = 128_000, 8_000  # the largest node of the published comparison; scales scores to 0..100


@dataclass(slots=True)
class NodeView:
    """What a policy sees of one node: what is free now."""

    index: int
    model: str
    cpu_left: int
    memory_left: int
    chip_left: list[int]  # thousandths by device
    affinity: dict[str, int] = field(default_factory=dict)  # placed tasks by kind: "share", "1", "2", ...

    @property
    def total_left(self) -> int:
        return sum(self.chip_left)


class Draws(Protocol):
    def intn(self, n: int) -> int: ...


@dataclass(slots=True)
class Context:
    """What is common to the nodes of one decision: the typical demand, the nodes that fit, a generator."""

    typical: tuple[TypicalTask, ...]
    random: Draws
    cpu_price: float = 0.0  # see ``cpu_price``
    feasible: list[int] = field(default_factory=list)
    pick: int = -1  # one node drawn from ``feasible``, for policies that draw


Score = Callable[[NodeView, Task, Context], float]


def fits(node: NodeView, task: Task) -> bool:
    """Enough CPU, memory, and devices of an accepted type with room for the share each."""
    if node.cpu_left < task.cpu_milli or node.memory_left < task.memory_mib:
        return False
    if task.num_chips == 0:
        return True
    if task.chip_types and node.model not in task.chip_types:
        return False
    return sum(left >= task.chip_milli for left in node.chip_left) >= task.num_chips


def affinity_kind(task: Task) -> str:
    return "share" if task.is_share else str(task.num_chips)


def first_fit(node: NodeView, task: Task, context: Context) -> int:
    """Any node that fits: the lowest rank wins."""
    return 0


def random_fit(node: NodeView, task: Task, context: Context) -> int:
    """One node drawn among those that fit."""
    return 100 if node.index == context.pick else 0


def best_fit(node: NodeView, task: Task, context: Context) -> int:
    """The least weighted rest of CPU and chips, both over the largest node."""
    rest = (node.cpu_left - task.cpu_milli) / MAX_CPU_MILLI * 0.5
    rest += (node.total_left - task.total_milli) / MAX_CHIP_MILLI * 0.5
    return int((1.0 - rest) * 100.0)


def dot_product(node: NodeView, task: Task, context: Context) -> int:
    """One minus the inner product of what is left and what is asked (Tetris, Grandl et al., SIGCOMM 2014)."""
    dot = (node.cpu_left / MAX_CPU_MILLI) * (task.cpu_milli / MAX_CPU_MILLI)
    dot += (node.total_left / MAX_CHIP_MILLI) * (task.total_milli / MAX_CHIP_MILLI)
    return int(100.0 * (1.0 - dot / 2.0))


def gpu_packing(node: NodeView, task: Task, context: Context) -> int:
    """Shared devices first, then free devices of used nodes, then free nodes (MLaaS in the Wild, NSDI 2022)."""
    if task.num_chips == 0:
        return 0
    free = sum(left == WHOLE for left in node.chip_left)
    if free == len(node.chip_left):
        return max(33 - free, free)
    used = sorted(left for left in node.chip_left if left >= task.chip_milli)[: task.num_chips]
    fresh = sum(left == WHOLE for left in used)
    if fresh:
        return max(50 - fresh, 33)
    return max(100 - sum(left * 100 // WHOLE for left in used) // 10, 50)


def gpu_clustering(node: NodeView, task: Task, context: Context) -> int:
    """Tasks of one kind (share, 1, 2, ... chips) together, fuller nodes first (Gandiva, OSDI 2018)."""
    if task.num_chips == 0:
        return 0
    kind = affinity_kind(task)
    if node.affinity.get(kind, 0) > 0:
        base = 75 if len(node.affinity) == 1 else 50
    else:
        base = 25 if not node.affinity else 0
    # Go's division rounds towards zero; a node larger than the scale would make the numerator negative.
    return int(25 * (MAX_CHIP_MILLI - node.total_left) / MAX_CHIP_MILLI) + base


def fragmentation(
    model: str, cpu_left: int, chip_left: list[int], typical: tuple[TypicalTask, ...]
) -> float:
    """Expected thousandths of free chips that a task drawn from ``typical`` could not use on this node.

    All of the free chips count where the task does not fit or asks for none; where it fits, those devices with less room
    than its share. Summed by cause in a fixed order, so that equal nodes give equal sums to the last bit.
    """
    total = sum(chip_left)
    lack_both = lack_chip = lack_cpu = cpu_fits = cpu_lacks = no_access = 0.0
    for t in typical:
        cpu_ok = cpu_left >= t.cpu_milli
        if t.num_chips == 0:
            if cpu_ok:
                cpu_fits += t.share * total
            else:
                cpu_lacks += t.share * total
        elif t.chip_types and model not in t.chip_types:
            no_access += t.share * total
        elif sum(left >= t.chip_milli for left in chip_left) >= t.num_chips:
            if cpu_ok:
                lack_chip += t.share * sum(left for left in chip_left if left < t.chip_milli)
            else:
                lack_cpu += t.share * total
        elif cpu_ok:
            lack_chip += t.share * total
        else:
            lack_both += t.share * total
    return lack_both + lack_chip + lack_cpu + cpu_fits + cpu_lacks + no_access


def _fgd_whole(drop_milli: float) -> int:
    return int(1.0 / (1.0 + math.exp(-(drop_milli / 1000.0))) * 100.0)


def fgd_share(node: NodeView, task: Task, context: Context, rounded: bool = True) -> tuple[float, int]:
    """Score and device of a share: the device whose use lowers fragmentation most, the first of equals.

    ``rounded``: the published whole number; else the drop itself in thousandths.
    """
    before = fragmentation(node.model, node.cpu_left, node.chip_left, context.typical)
    score, device = 0.0, -1
    for i, left in enumerate(node.chip_left):
        if left >= task.chip_milli:
            rest = node.chip_left.copy()
            rest[i] -= task.chip_milli
            after = fragmentation(node.model, node.cpu_left - task.cpu_milli, rest, context.typical)
            candidate = _fgd_whole(before - after) if rounded else before - after
            if device < 0 or candidate > score:
                score, device = candidate, i
    return score, device


def _whole_drop(node: NodeView, task: Task, context: Context) -> float:
    before = fragmentation(node.model, node.cpu_left, node.chip_left, context.typical)
    rest = node.chip_left.copy()
    for i in whole_devices(node, task):
        rest[i] = 0
    return before - fragmentation(node.model, node.cpu_left - task.cpu_milli, rest, context.typical)


def fgd(node: NodeView, task: Task, context: Context) -> float:
    """Fragmentation gradient descent: the steepest drop of expected fragmentation, through a sigmoid to 0..100."""
    if task.is_share:
        return fgd_share(node, task, context)[0]
    return _fgd_whole(_whole_drop(node, task, context))


STEP_MILLI, PRICE_MILLI = 80.0, 100.0


def fgd_cpu(node: NodeView, task: Task, context: Context) -> float:
    """Ours: FGD in coarse steps, with a price on what is left as CPU becomes scarce.

    FGD sees CPU only where its lack strands chips. Here the BestFit rest is priced at ``100 w`` thousandths, with ``w``
    the CPU price of ``cpu_price``: 0 where CPU is plenty, 1 where it runs out first. Below ``w = 0.5`` drops count in
    steps of 80 thousandths, so that nearly equal nodes fall to the first and the others stay whole.
    Rounded to single precision, as the compiled loop stores it.
    """
    drop = fgd_share(node, task, context, rounded=False)[0] if task.is_share else _whole_drop(node, task, context)
    rest = (node.cpu_left - task.cpu_milli) / MAX_CPU_MILLI + (node.total_left - task.total_milli) / MAX_CHIP_MILLI
    if context.cpu_price < 0.5:
        drop = math.floor(drop / STEP_MILLI + 1e-9) * STEP_MILLI
    return float(np.float32(drop - PRICE_MILLI * context.cpu_price * rest))


def cpu_price(typical: Sequence[TypicalTask], cpu_milli: int, chip_milli: int) -> float:
    """How scarce CPU is for the demand: its CPU per chip over the cluster's, from 0.8 (no price) to 1 (full price)."""
    chips = sum(t.share * t.num_chips * t.chip_milli for t in typical)
    if chips <= 0.0 or cpu_milli <= 0 or chip_milli <= 0:
        return 0.0
    pressure = sum(t.share * t.cpu_milli for t in typical) / chips * chip_milli / cpu_milli
    return min(max((pressure - 0.8) / 0.2, 0.0), 1.0)


def whole_devices(node: NodeView, task: Task) -> list[int]:
    """The first free devices."""
    return [i for i, left in enumerate(node.chip_left) if left == WHOLE][: task.num_chips]


def choose_devices(policy: str, node: NodeView, task: Task, context: Context) -> list[int]:
    """The devices that a task gets: whole chips in order; a share by the policy's rule, best fit unless told."""
    if task.num_chips == 0:
        return []
    if not task.is_share:
        return whole_devices(node, task)
    if policy in ("fgd", "fgdcpu"):
        return [fgd_share(node, task, context, rounded=policy == "fgd")[1]]
    roomy = [i for i, left in enumerate(node.chip_left) if left >= task.chip_milli]
    if policy == "random":
        pick = roomy[0]
        for count, i in enumerate(roomy, start=1):  # reservoir, as published
            if context.random.intn(count) == 0:
                pick = i
        return [pick]
    return [min(roomy, key=lambda i: node.chip_left[i])]


POLICIES: Mapping[str, Score] = {
    "fgd": fgd,
    "bestfit": best_fit,
    "dotprod": dot_product,
    "gpupacking": gpu_packing,
    "gpuclustering": gpu_clustering,
    "random": random_fit,
    "firstfit": first_fit,
    "fgdcpu": fgd_cpu,
}
ENTRY_POINT_GROUP = "trivet.placement"


def find_policy(name: str) -> Score:
    """A policy by name: built in, or a plug-in's function. Raises UnknownName."""
    if name in POLICIES:
        return POLICIES[name]
    from importlib.metadata import entry_points

    plugins = {e.name: e for e in entry_points(group=ENTRY_POINT_GROUP)}
    if name in plugins:
        loaded = plugins[name].load()
        if not callable(loaded):
            raise TrivetError(f"the plug-in {name} is not a function", field="policy")
        return loaded
    raise UnknownName(f"no placement policy {name!r}", field="policy", allowed=[*POLICIES, *plugins])
