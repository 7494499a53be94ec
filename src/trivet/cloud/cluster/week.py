"""A cluster over time: jobs arrive, queue, run, are evicted, fail, restart and leave.

The plain description goes in (``Job``, ``Node``, ``Tenant``, ``Rules``, failures), a ``Week`` comes out. The compiled loop
is ``_loop_week.py``; arrays are made at this one boundary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trivet.cloud.cluster.faults import KINDS, Failure
from trivet.cloud.cluster.go_random import GoRandom
from trivet.cloud.cluster.jobs import LEVELS, Job, Tenant, by_arrival
from trivet.cloud.cluster.nodes import WHOLE, Node, node_table
from trivet.cloud.cluster.placement import loop_arrays, records
from trivet.cloud.cluster.policies import POLICIES, cpu_price
from trivet.cloud.cluster.tasks import Task, typical_tasks
from trivet.errors import TrivetError, UnknownName
from trivet.units import HOUR_S, WEEK_S

QUEUE_ORDERS = ("fifo", "fair", "drf")
STATES = 1 << 13
Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Rules:
    """How the cluster is run.

    ``queue``: fifo; fair (the tenant with the least chips per weight, by chip type, goes next); drf (dominant resource
    fairness over chips of each type, CPU and memory; Ghodsi et al., NSDI 2011). ``backfill``: EASY (Lifka 1995) over the
    first ``depth`` jobs of the order. ``quotas``: a tenant's jobs within its quota are guaranteed; with ``borrow`` it may
    use more while nobody with quota wants it, and loses that again (reclaim). ``compact``: gangs prefer one rack, then
    one pod. ``restart_s``: from a stop to work again; ``spare_s``: until a spare host serves.
    """

    policy: str = "bestfit"
    queue: str = "fifo"
    backfill: bool = True
    depth: int = 64
    preempt: bool = True
    quotas: bool = False
    borrow: bool = True
    compact: bool = True
    restart_s: float = 600.0
    spares: int = 0
    spare_s: float = 900.0

    def __post_init__(self) -> None:
        if self.policy not in POLICIES:
            raise UnknownName(f"no placement policy {self.policy!r} over time", field="policy", allowed=list(POLICIES))
        if self.queue not in QUEUE_ORDERS:
            raise UnknownName(f"no queue order {self.queue!r}", field="queue", allowed=QUEUE_ORDERS)
        if self.depth < 1 or self.restart_s < 0 or self.spares < 0 or self.spare_s < 0:
            raise TrivetError("a rule is negative", field="rules")


@dataclass(frozen=True, slots=True, eq=False)
class Week:
    """What happened. Arrays by job in the order of arrival; times in seconds, -1 = never."""

    jobs: tuple[Job, ...]
    kinds: tuple[str, ...]
    horizon_s: float
    status: NDArray[np.int64]  # 0 not yet there, 1 queued, 2 running, 3 done
    first_start_s: Floats
    finish_s: Floats
    restarts: NDArray[np.int64]
    evictions: NDArray[np.int64]
    lost_s: Floats  # work done twice
    chip_seconds: Floats  # held until the horizon
    hourly: Floats  # [hours, kinds + 3]: mean chips held by kind, then chips queued, chips down, jobs running
    failures: dict[str, int]
    events: int
    total_chips: float

    def wait_s(self) -> Floats:
        """Seconds from arrival to first start of the jobs that started."""
        arrival = np.array([j.arrival_s for j in self.jobs])
        started = self.first_start_s >= 0
        return np.asarray(self.first_start_s[started] - arrival[started])

    def used_chips(self) -> Floats:
        """Mean chips held in each hour."""
        return np.asarray(self.hourly[:, : len(self.kinds)].sum(axis=1))


class Cluster:
    """The arrays of one simulation; ``advance`` moves it on, ``result`` reads it, ``check_integrity`` proves it."""

    def __init__(
        self, nodes: Sequence[Node], jobs: Sequence[Job], rules: Rules, tenants: Sequence[Tenant] = (),
        failures: Sequence[Failure] = (), *, horizon_s: float = WEEK_S, seed: int = 0,
    ) -> None:  # fmt: skip
        from trivet.cloud.cluster import _loop_desk, _loop_place, _loop_week

        self._loop, self._desk_of, self.rules, self.horizon_s = _loop_week, _loop_desk, rules, horizon_s
        self.jobs, self.nodes = tuple(by_arrival(jobs)), tuple(nodes)
        if not self.jobs:
            raise TrivetError("no jobs", field="jobs", allowed="at least one")
        workers = [j.worker for j in self.jobs]
        typical = typical_tasks(workers)
        states = max(STATES, 2 * len(nodes))
        self._nodes, self._classes, cls, self._typ, self._store = loop_arrays(nodes, workers, typical, states)
        self.kinds = tuple(sorted({j.kind for j in self.jobs}))
        names = list(dict.fromkeys([t.name for t in tenants] + [j.tenant for j in self.jobs]))
        self.tenants = tuple(names)
        self._code = _loop_place.CODES[rules.policy]
        self._price = cpu_price(typical, sum(n.cpu_milli for n in nodes), sum(n.chips for n in nodes) * WHOLE)
        self._rng = GoRandom(seed).state()
        self._scratch = _loop_place.new_scratch(self._nodes, self._typ)
        self._events = 0
        self._make_jobs(cls, names)
        self._make_site(names, {t.name: t for t in tenants}, failures)
        if self._code in (_loop_place.FGD, _loop_place.FGDCPU):
            _loop_place.number_states(self._nodes, self._typ, self._store)
        self._hold_spares()

    def _make_jobs(self, cls: NDArray[np.int64], names: list[str]) -> None:
        tenant = {n: i for i, n in enumerate(names)}
        kind = {k: i for i, k in enumerate(self.kinds)}
        shapes: dict[tuple[int, ...], int] = {}
        table = np.zeros(len(self.jobs), self._desk_of.JOB)
        for name in ("next", "first_start", "finish"):
            table[name] = -1
        table["arrival"], table["work"] = [j.arrival_s for j in self.jobs], [j.duration_s for j in self.jobs]
        table["remaining"], table["cls"] = table["work"], cls
        table["workers"] = [j.workers for j in self.jobs]
        table["tenant"], table["kind"] = [tenant[j.tenant] for j in self.jobs], [kind[j.kind] for j in self.jobs]
        table["priority"], table["level"] = (
            [j.priority for j in self.jobs],
            [LEVELS.index(j.topology) for j in self.jobs],
        )
        table["checkpoint"], table["milli"] = [j.checkpoint_s for j in self.jobs], [j.chip_milli for j in self.jobs]
        for i, j in enumerate(self.jobs):
            key = (int(cls[i]), j.workers, int(table["level"][i]), j.priority if self.rules.preempt else 0,
                   tenant[j.tenant] if self.rules.quotas else 0)  # fmt: skip
            table["shape"][i] = shapes.setdefault(key, len(shapes))
        table["first"] = np.cumsum(table["workers"]) - table["workers"]
        places = int(table["workers"].sum())
        self._work = self._desk_of.Work(table, np.full(places, -1, np.int64), np.zeros(places, np.uint64),
                                     np.zeros(len(self.jobs), np.int64))  # fmt: skip
        self._shapes = len(shapes)

    def _make_site(self, names: list[str], known: dict[str, Tenant], failures: Sequence[Failure]) -> None:
        table, n = node_table(self.nodes), len(self.nodes)
        models = table.models
        index = {m: k for k, m in enumerate(models)}
        # A tenant that is not listed has no quota: all that it holds is borrowed.
        quota = np.zeros((len(names), len(models) + 1))
        for i, name in enumerate(names):
            quota[i, -1] = known[name].weight if name in known else 1.0
            for model, chips in known[name].quota if name in known else ():
                if model not in index:
                    raise UnknownName(f"no chips {model!r} in the cluster", field=f"quota of {name}", allowed=models)
                quota[i, index[model]] = round(chips * WHOLE)
        milli = np.bincount(table.model, table.chips * WHOLE, len(models))
        capacity = np.array([*milli, float(table.cpu_milli.sum()), float(table.memory_mib.sum())])
        listed = sorted(failures, key=lambda f: f.time_s)
        for f in listed:
            limit = int(table.rack.max()) + 1 if f.kind == "rack" else n
            if not 0 <= f.at < limit:
                raise TrivetError(f"{f.kind} {f.at} is not there", field="failures", allowed=f"0 to {limit - 1}")
        faults = records(self._desk_of.FAULT, t=[f.time_s for f in listed], kind=[KINDS.index(f.kind) for f in listed],
                         at=[f.at for f in listed], device=[f.device for f in listed],
                         repair=[f.repair_s for f in listed])  # fmt: skip
        group = np.stack([np.zeros(n, np.int64), table.rack, table.domain, table.pod])
        self._site = self._desk_of.Site(group, quota, capacity, faults, np.zeros((n, 2), np.int64),
                               np.zeros((n, self._nodes.left.shape[1]), np.int64), np.zeros(len(KINDS), np.int64))  # fmt: skip
        self._make_desk(len(names), len(models), len(listed))

    def _make_desk(self, tenants: int, models: int, failures: int) -> None:
        rules = self.rules
        settings = np.zeros(1, self._desk_of.RULES)
        settings[0] = (QUEUE_ORDERS.index(rules.queue), rules.backfill, rules.depth, rules.preempt, rules.quotas, rules.borrow,
                       rules.compact, rules.restart_s, rules.spare_s)  # fmt: skip
        state = np.zeros(1, self._desk_of.DESK)
        state["shadow_of"] = -1
        queues = 1 if rules.queue == "fifo" else tenants
        hours = max(math.ceil(self.horizon_s / HOUR_S), 1)
        self._desk = self._desk_of.Desk(
            settings, state, np.zeros(2 * len(self.jobs) + 2 * failures + 1024, self._desk_of.EVENT),
            np.full((queues, 2), -1, np.int64), np.full((self._shapes, 2), -1, np.int64),
            np.zeros((tenants, models + 2), np.int64), np.zeros(len(self.kinds)), np.zeros((hours, len(self.kinds) + 3)),
        )  # fmt: skip

    def _hold_spares(self) -> None:
        """The last nodes are spares: there, but out of service until a host fails."""
        if self.rules.spares >= len(self.nodes):
            raise TrivetError(
                f"{self.rules.spares} of {len(self.nodes)} nodes", field="spares", allowed="fewer than the nodes"
            )
        for i in range(len(self.nodes) - self.rules.spares, len(self.nodes)):
            self._site.flags[i, 1] = self._desk_of.HELD
            self._loop.set_node(
                i, 1, self._code, self._desk, self._site, self._nodes, self._typ, self._store, self._scratch
            )
        self._desk.now["spares"] = self.rules.spares

    def advance(self, until_s: float) -> None:
        """Handle all events up to ``until_s``."""
        self._events += self._loop.advance(
            float(until_s), self._code, self._price, self._work, self._desk, self._site, self._nodes, self._classes,
            self._typ, self._store, self._scratch, self._rng,
        )  # fmt: skip

    def running(self) -> list[int]:
        """Indices of the running jobs."""
        return [int(j) for j in self._work.running[: self._desk.now["running"][0]]]

    def workers_of(self, j: int) -> list[tuple[int, list[int]]]:
        """Node index and devices of each worker of a running job."""
        first = int(self._work.jobs["first"][j])
        return [
            (int(self._work.node[w]), [d for d in range(64) if int(self._work.mask[w]) >> d & 1])
            for w in range(first, first + self.jobs[j].workers)
        ]

    def check_integrity(self) -> None:
        """What is free plus what running jobs hold is what there is, on every device; raises TrivetError otherwise."""
        left = self._nodes.left.copy()
        cpu, memory = self._nodes.info["cpu"].copy(), self._nodes.info["mem"].copy()
        for j in self.running():
            task = self.jobs[j].worker
            for i, devices in self.workers_of(j):
                cpu[i] += task.cpu_milli
                memory[i] += task.memory_mib
                if len(devices) != task.num_chips or self._site.flags[i, 0] > 0:
                    raise TrivetError(f"job {self.jobs[j].name} holds {devices} on node {i}", field="integrity")
                for d in devices:
                    left[i, d] += task.chip_milli
        for i, node in enumerate(self.nodes):
            down = self._desk_of.DOWN if self._site.flags[i, 0] > 0 else 0
            whole = [WHOLE * (self._site.device_down[i, d] == 0) for d in range(node.chips)]
            if (
                cpu[i] + down != node.cpu_milli
                or memory[i] != node.memory_mib
                or left[i, : node.chips].tolist() != whole
            ):
                raise TrivetError(f"node {node.name} does not add up", field="integrity")

    def result(self) -> Week:
        """What has happened so far; running jobs count up to now."""
        table, now = self._work.jobs, float(self._desk.now["clock"][0])
        held = table["chip_seconds"].copy()
        for j in self.running():
            held[j] += self.jobs[j].chip_milli / WHOLE * (now - table["started"][j])
        hourly = (
            self._desk.integral / np.clip(now - HOUR_S * np.arange(len(self._desk.integral)), 1e-9, HOUR_S)[:, None]
        )
        hourly[:, : len(self.kinds) + 2] /= WHOLE
        return Week(
            self.jobs, self.kinds, now, table["status"].copy(), table["first_start"].copy(), table["finish"].copy(),
            table["restarts"].copy(), table["evictions"].copy(), table["lost"].copy(), held, hourly,
            {k: int(c) for k, c in zip(KINDS, self._site.counts, strict=True)}, self._events,
            float(sum(n.chips for n in self.nodes)),
        )  # fmt: skip


def run_week(
    nodes: Sequence[Node], jobs: Sequence[Job], rules: Rules, tenants: Sequence[Tenant] = (), failures: Sequence[Failure] = (),
    *, horizon_s: float = WEEK_S, seed: int = 0, progress: Callable[[int, int], None] | None = None,
) -> Week:  # fmt: skip
    """Simulate ``horizon_s``. ``progress(done, total)`` counts simulated hours."""
    cluster = Cluster(nodes, jobs, rules, tenants, failures, horizon_s=horizon_s, seed=seed)
    hours = max(math.ceil(horizon_s / HOUR_S), 1)
    for h in range(hours):
        cluster.advance(min((h + 1) * HOUR_S, horizon_s))
        if progress is not None:
            progress(h + 1, hours)
    return cluster.result()


def as_task(
    name: str, chips: int, *, milli: int = WHOLE, cpu_milli: int = 0, memory_mib: int = 0, types: Sequence[str] = ()
) -> Task:
    """A worker of ``chips`` chips."""
    return Task(name, cpu_milli, memory_mib, chips, milli if chips else 0, tuple(types))


def describe(week: Week) -> dict[str, Any]:
    """The figures of a week as a summary holds them."""
    wait = week.wait_s()
    done = week.status == 3
    work = np.array([j.duration_s if math.isfinite(j.duration_s) else 0.0 for j in week.jobs])
    chips = np.array([j.chip_milli / WHOLE for j in week.jobs])
    held = float(week.chip_seconds.sum())
    return {
        "jobs": len(week.jobs),
        "done": int(done.sum()),
        "running": int((week.status == 2).sum()),
        "queued": int((week.status == 1).sum()),
        "mean_wait_s": float(wait.mean()) if len(wait) else None,
        "p99_wait_s": float(np.quantile(wait, 0.99)) if len(wait) else None,
        "restarts": int(week.restarts.sum()),
        "evictions": int(week.evictions.sum()),
        "chip_hours_held": held / HOUR_S,
        "chip_hours_lost": float((week.lost_s * chips).sum()) / HOUR_S,
        "chip_hours_done": float((work * chips)[done].sum()) / HOUR_S,
        "chips": week.total_chips,
        "use": held / (week.total_chips * week.horizon_s) if week.total_chips and week.horizon_s else 0.0,
        "failures": week.failures,
    }
