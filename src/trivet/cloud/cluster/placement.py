"""One-shot placement of a task list on a cluster, and what is read off it: allocation against arrived load."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trivet.cloud.cluster.nodes import WHOLE, Node, node_table
from trivet.cloud.cluster.policies import POLICIES, affinity_kind, find_policy
from trivet.cloud.cluster.protocol import Experiment, experiment
from trivet.cloud.cluster.reference import place_plain
from trivet.cloud.cluster.tasks import Task, TypicalTask, allowed_models, class_table

STATES = 1 << 15  # states remembered before the store starts anew
Progress = Callable[[int], None]


@dataclass(frozen=True, slots=True, eq=False)
class Placement:
    """Where each arrival went. Arrays are by arrival; ``node`` is the rank in ``experiment.nodes``, -1 = dropped."""

    experiment: Experiment
    policy: str
    node: NDArray[np.int64]
    devices: NDArray[np.uint64]  # bit mask
    cpu_s: float  # processor time of the placement itself

    @property
    def total_milli(self) -> int:
        return sum(n.chips for n in self.experiment.nodes) * WHOLE

    @property
    def allocated_milli(self) -> NDArray[np.int64]:
        """Cumulative thousandths given out after each arrival."""
        ask = np.array([t.total_milli for t in self.experiment.tasks], np.int64)
        return np.cumsum(np.where(self.node >= 0, ask, 0))

    @property
    def arrived_milli(self) -> NDArray[np.int64]:
        return np.cumsum(np.array([t.total_milli for t in self.experiment.tasks], np.int64))

    def allocation_percent(self) -> float:
        """Thousandths given out over all thousandths, at the end, in percent; 0 without chips."""
        return 100.0 * float(self.allocated_milli[-1]) / self.total_milli if self.total_milli else 0.0

    def allocation_percent_at(self) -> dict[int, float]:
        """Allocation by arrived load in whole percent: the mean over the arrivals that round to it, as published."""
        if not self.total_milli:
            return {}
        load = np.rint(100.0 * self.arrived_milli / self.total_milli).astype(np.int64)
        share = 100.0 * self.allocated_milli / self.total_milli
        sums, counts = np.bincount(load, share), np.bincount(load)
        return {int(p): float(sums[p] / counts[p]) for p in np.flatnonzero(counts)}


def records(dtype: np.dtype[Any], **columns: Any) -> NDArray[Any]:
    """A structured array from columns; every field of ``dtype`` must be given."""
    out = np.empty(len(next(iter(columns.values()))), dtype)
    for name in dtype.names or ():
        out[name] = columns[name]
    return out


def typical_arrays(typical: Sequence[TypicalTask], models: Sequence[str]) -> tuple[Any, NDArray[np.int64]]:
    """Arrays of the demand model, and for each model the group of models that it cannot tell apart."""
    from trivet.cloud.cluster._loop_place import DEMAND, Typical

    levels = np.array(sorted({t.chip_milli for t in typical if t.num_chips}) or [WHOLE], np.int64)
    access = np.array([allowed_models(t.chip_types, models) for t in typical], np.bool_).reshape(len(typical), len(models))
    groups, kind = np.unique(access, axis=1, return_inverse=True)
    milli = np.array([t.chip_milli if t.num_chips else levels[0] for t in typical], np.int64)
    info = records(DEMAND, cpu=[t.cpu_milli for t in typical], level=np.searchsorted(levels, milli),
                   num=[t.num_chips for t in typical], share=[t.share for t in typical])  # fmt: skip
    return Typical(info, np.ascontiguousarray(groups), levels), np.asarray(kind, np.int64).reshape(-1)


def loop_arrays(
    node_list: Sequence[Node], tasks: Sequence[Task], typical: Sequence[TypicalTask], states: int
) -> tuple[Any, Any, NDArray[np.int64], Any, Any]:
    """Arrays of the hot loop: nodes, classes, the class of each task, demand, and a store of ``states`` states."""
    from trivet.cloud.cluster._loop_place import CLASS, NODE, STATE, Classes, Nodes, Store

    table = node_table(node_list)
    classes = class_table(tasks, table.models)
    typ, kind = typical_arrays(typical, table.models)
    n, width = len(node_list), max(int(table.chips.max()), 1)
    left = np.where(np.arange(width) < table.chips[:, None], WHOLE, 0).astype(np.int64)
    kinds: dict[str, int] = {}
    affinity = np.full(len(classes.cpu_milli), -1, np.int64)
    for task, c in zip(tasks, classes.task, strict=True):
        if task.num_chips and affinity[c] < 0:
            affinity[c] = kinds.setdefault(affinity_kind(task), len(kinds))
    info = records(NODE, cpu=table.cpu_milli, mem=table.memory_mib, chips=table.chips, model=table.model,
                   kind=kind[table.model], total=table.chips * WHOLE, whole=table.chips,
                   top=np.where(table.chips > 0, WHOLE, 0), state=np.zeros(n, np.int64))  # fmt: skip
    nodes = Nodes(info, left, np.zeros((n, max(len(kinds), 1)), np.int64))
    asked = records(CLASS, cpu=classes.cpu_milli, mem=classes.memory_mib, milli=classes.chip_milli, num=classes.num_chips,
                    shape=classes.shape, affinity=affinity)  # fmt: skip
    by_class = Classes(asked, classes.allowed)
    slots = 1 << int(2 * states).bit_length()
    store = Store(np.full(slots, -1, np.int64), np.zeros(states, STATE), np.zeros((states, width), np.int64),
                  np.zeros(2, np.int64), np.full((classes.shapes, states), -np.inf, np.float32))  # fmt: skip
    return nodes, by_class, classes.task, typ, store


def _place_fast(exp: Experiment, policy: str, progress: Progress | None) -> tuple[NDArray[np.int64], NDArray[np.uint64], float]:
    from trivet.cloud.cluster import _loop_place as loop

    code, count, n = loop.CODES[policy], len(exp.tasks), len(exp.nodes)
    with_states = code in (loop.FGD, loop.FGDCPU)
    # One more than the nodes at least, so that renumbering the present states always fits.
    states = max(min(STATES, n + count), n) + 1 if with_states else 1
    nodes, classes, task_class, typ, store = loop_arrays(exp.nodes, exp.tasks, exp.typical, states)
    rng, price = exp.random.state(), exp.cpu_price
    where, mask = np.full(count, -1, np.int64), np.zeros(count, np.uint64)

    def run(begin: int, end: int) -> None:
        loop.place_range(begin, end, code, price, nodes, classes, task_class, typ, rng, store, where, mask)

    run(0, 0)  # load the compiled code outside the clock
    started = time.process_time()
    if with_states:
        loop.number_states(nodes, typ, store)
    step = count if progress is None else 1000
    for begin in range(0, count, max(step, 1)):
        run(begin, min(begin + step, count))
        if progress is not None:
            progress(min(begin + step, count))
    return where, mask, time.process_time() - started


def schedule(
    nodes: Sequence[Node], tasks: Sequence[Task], policy: str, *, seed: int = 42, tune: float = 0.0, plain: bool = False,
    progress: Progress | None = None,
) -> Placement:  # fmt: skip
    """Place ``tasks`` on ``nodes`` in the published protocol (``protocol.py``), without departures.

    ``policy``: a name of ``POLICIES`` or a plug-in's. ``plain`` takes the Python reference, as plug-ins always do.
    ``progress`` is called with the number of tasks done. Raises TrivetError on an unknown policy or empty lists.
    """
    find_policy(policy)
    exp = experiment(nodes, tasks, seed, tune)
    if plain or policy not in POLICIES:
        started = time.process_time()
        where, mask = place_plain(exp, policy, progress)
        return Placement(exp, policy, where, mask, time.process_time() - started)
    where, mask, cpu_s = _place_fast(exp, policy, progress)
    return Placement(exp, policy, where, mask, cpu_s)
