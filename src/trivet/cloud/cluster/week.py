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

from trivet.cloud.cluster.faults import Failure
from trivet.cloud.cluster.go_random import GoRandom
from trivet.cloud.cluster.jobs import LEVELS, Job, Tenant, by_arrival
from trivet.cloud.cluster.nodes import WHOLE, Node, node_table
from trivet.cloud.cluster.placement import loop_arrays
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
        from trivet.cloud.cluster import _loop_place, _loop_week

        self._loop, self._place, self.rules, self.horizon_s = _loop_week, _loop_place, rules, horizon_s
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
        self._counts = np.zeros(4, np.int64)
        self._events = 0
        self._make_jobs(cls, names)
        self._make_site(names, {t.name: t for t in tenants}, failures)
        if self._code in (_loop_place.FGD, _loop_place.FGDCPU):
            _loop_place.number_states(self._nodes, self._typ, self._store)
        self._hold_spares()

    def _make_jobs(self, cls: NDArray[np.int64], names: list[str]) -> None:
        count = len(self.jobs)
        tenant = {n: i for i, n in enumerate(names)}
        kind = {k: i for i, k in enumerate(self.kinds)}
        workers = np.array([j.workers for j in self.jobs], np.int64)
        shapes: dict[tuple[int, ...], int] = {}
        shape = np.empty(count, np.int64)
        for i, j in enumerate(self.jobs):
            key = (int(cls[i]), j.workers, LEVELS.index(j.topology), j.priority if self.rules.preempt else 0,
                   tenant[j.tenant] if self.rules.quotas else 0)  # fmt: skip
            shape[i] = shapes.setdefault(key, len(shapes))
        self._jobs = self._loop.Jobs(
            np.array([j.arrival_s for j in self.jobs]), np.array([j.duration_s for j in self.jobs], np.float64), workers, cls,
            np.array([tenant[j.tenant] for j in self.jobs], np.int64), np.array([j.priority for j in self.jobs], np.int64),
            np.array([LEVELS.index(j.topology) for j in self.jobs], np.int64), np.array([j.checkpoint_s for j in self.jobs]),
            np.array([kind[j.kind] for j in self.jobs], np.int64), shape, np.cumsum(workers) - workers,
        )  # fmt: skip
        whole, real = (lambda: np.zeros(count, np.int64)), (lambda: np.zeros(count))
        self._runs = self._loop.Runs(
            whole(), self._jobs.work.copy(), real(), whole(), np.full(count, -1, np.int64), np.full(count, -1.0),
            np.full(count, -1.0), whole(), whole(), real(), real(), whole(), np.full(int(workers.sum()), -1, np.int64),
            np.zeros(int(workers.sum()), np.uint64), whole(), whole(), whole(),
        )  # fmt: skip
        self._shapes = len(shapes)

    def _make_site(self, names: list[str], known: dict[str, Tenant], failures: Sequence[Failure]) -> None:
        table = node_table(self.nodes)
        models, rules, n = table.models, self.rules, len(self.nodes)
        index = {m: k for k, m in enumerate(models)}
        # A tenant that is not listed has no quota: all that it holds is borrowed.
        quota = np.zeros((len(names), len(models)), np.int64)
        for i, name in enumerate(names):
            for model, chips in known[name].quota if name in known else ():
                if model not in index:
                    raise UnknownName(f"no chips {model!r} in the cluster", field=f"quota of {name}", allowed=models)
                quota[i, index[model]] = round(chips * WHOLE)
        milli = np.bincount(table.model, table.chips * WHOLE, len(models))
        # What nobody asks is no scarce resource: capacity inf keeps it out of dominant shares.
        capacity = np.array([*milli, float(table.cpu_milli.sum()) or math.inf, float(table.memory_mib.sum()) or math.inf])
        group = np.stack([np.zeros(n, np.int64), table.rack, table.domain, table.pod])
        listed = sorted(failures, key=lambda f: f.time_s)
        kinds = {"chip": self._loop.CHIP, "host": self._loop.HOST, "rack": self._loop.RACK, "software": self._loop.SOFTWARE}
        self._site = self._loop.Site(
            group, group.max(axis=1) + 1, quota, np.array([known[x].weight if x in known else 1.0 for x in names]), capacity,
            np.array([f.time_s for f in listed], np.float64), np.array([kinds[f.kind] for f in listed], np.int64),
            np.array([f.at for f in listed], np.int64), np.array([f.device for f in listed], np.int64),
            np.array([f.repair_s for f in listed], np.float64), np.zeros(n, np.int64),
            np.zeros((n, self._nodes.left.shape[1]), np.int64), np.zeros(n, np.int64),
            np.array([QUEUE_ORDERS.index(rules.queue), rules.backfill, rules.depth, rules.preempt, rules.quotas, rules.borrow,
                      rules.compact, rules.restart_s, rules.spare_s], np.float64),
        )  # fmt: skip
        queues = 1 if rules.queue == "fifo" else len(names)
        heap = len(self.jobs) * 2 + 3 * len(listed) + 64
        heap += 4 * len(self.jobs)  # versions of restarted jobs linger until they surface
        hours = max(math.ceil(self.horizon_s / HOUR_S), 1)
        self._desk = self._loop.Desk(
            np.zeros(heap), np.zeros(heap, np.int64), np.zeros(heap, np.int64), np.full(queues, -1, np.int64),
            np.full(queues, -1, np.int64), np.full(self._shapes, -1, np.int64), np.full(self._shapes, -1, np.int64),
            np.zeros(2), np.zeros(8, np.int64), np.zeros((len(names), len(models)), np.int64), np.zeros(len(names), np.int64),
            np.zeros(len(names), np.int64), np.zeros(len(self.kinds)), np.zeros(3), np.zeros((hours, len(self.kinds) + 3)),
        )  # fmt: skip

    def _hold_spares(self) -> None:
        """The last nodes are spares: there, but out of service until a host fails."""
        if self.rules.spares >= len(self.nodes):
            raise TrivetError(f"{self.rules.spares} of {len(self.nodes)} nodes", field="spares", allowed="fewer than the nodes")
        for i in range(len(self.nodes) - self.rules.spares, len(self.nodes)):
            self._site.spare[i] = 1
            self._loop.set_node(i, 1, 0.0, self._desk, self._site, self._nodes, self._typ, self._store, self._scratch, self._code)
        self._desk.count[6] = self.rules.spares

    def advance(self, until_s: float) -> None:
        """Handle all events up to ``until_s``."""
        self._events += self._loop.advance(
            float(until_s), self._code, self._price, self._jobs, self._runs, self._desk, self._site, self._nodes, self._classes,
            self._typ, self._store, self._scratch, self._rng, self._counts,
        )  # fmt: skip

    def running(self) -> list[int]:
        return [int(j) for j in self._runs.running[: self._desk.count[1]]]

    def workers_of(self, j: int) -> list[tuple[int, list[int]]]:
        """Node index and devices of each worker of a running job."""
        first = int(self._jobs.first[j])
        return [
            (int(self._runs.node[w]), [d for d in range(64) if int(self._runs.mask[w]) >> d & 1])
            for w in range(first, first + self.jobs[j].workers)
        ]

    def check_integrity(self) -> None:
        """What is free plus what running jobs hold is what there is, on every device; raises TrivetError otherwise."""
        left = self._nodes.left.copy()
        cpu, memory = self._nodes.cpu.copy(), self._nodes.mem.copy()
        for j in self.running():
            task = self.jobs[j].worker
            for i, devices in self.workers_of(j):
                cpu[i] += task.cpu_milli
                memory[i] += task.memory_mib
                if len(devices) != task.num_chips or self._site.down[i] > 0:
                    raise TrivetError(f"job {self.jobs[j].name} holds {devices} on node {i}", field="integrity")
                for d in devices:
                    left[i, d] += task.chip_milli
        for i, node in enumerate(self.nodes):
            down = self._loop.DOWN if self._site.down[i] > 0 else 0
            whole = [WHOLE * (self._site.device_down[i, d] == 0) for d in range(node.chips)]
            if cpu[i] + down != node.cpu_milli or memory[i] != node.memory_mib or left[i, : node.chips].tolist() != whole:
                raise TrivetError(f"node {node.name} does not add up", field="integrity")

    def result(self) -> Week:
        """What has happened so far; running jobs count up to now."""
        runs, now = self._runs, float(self._desk.clock[0])
        held = runs.chip_seconds.copy()
        for j in self.running():
            held[j] += self.jobs[j].chip_milli / WHOLE * (now - runs.started[j])
        hourly = self._desk.integral.copy()
        spans = np.clip(now - HOUR_S * np.arange(len(hourly)), 1e-9, HOUR_S)[:, None]
        hourly /= spans
        hourly[:, : len(self.kinds) + 2] /= WHOLE
        names = ("chip", "host", "rack", "software")
        return Week(
            self.jobs, self.kinds, now, runs.status.copy(), runs.first_start.copy(), runs.finish.copy(), runs.restarts.copy(),
            runs.evictions.copy(), runs.lost.copy(), held, hourly, {k: int(c) for k, c in zip(names, self._counts, strict=True)},
            self._events, float(sum(n.chips for n in self.nodes)),
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


def as_task(name: str, chips: int, *, milli: int = WHOLE, cpu_milli: int = 0, memory_mib: int = 0, types: Sequence[str] = ()) -> Task:
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
