"""The servers of a cloud's week and the jobs that services and other customers put on them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from trivet.cloud.cluster.jobs import Job
from trivet.cloud.cluster.nodes import Node, uniform_cluster
from trivet.cloud.cluster.week import as_task
from trivet.errors import DoesNotFit
from trivet.loop.cloud_scenario import CloudScenario, Pool
from trivet.loop.cloud_services import Sized
from trivet.units import DAY_S, HOUR_S

SERVICE_PRIORITY, TRAINING_PRIORITY = 20, 10
CPU_MILLI_A_CHIP, MEMORY_MIB_A_CHIP = 8_000, 98_304


def nodes_of(scenario: CloudScenario) -> list[Node]:
    nodes: list[Node] = []
    for p in scenario.pools:
        part = uniform_cluster(
            p.servers,
            p.chips_per_server,
            p.chip,
            cpu_milli=CPU_MILLI_A_CHIP * p.chips_per_server * 2,
            memory_mib=MEMORY_MIB_A_CHIP * p.chips_per_server * 2,
            servers_per_rack=scenario.servers_per_rack,
            servers_per_pod=scenario.servers_per_pod,
        )
        racks = max((n.rack for n in nodes), default=-1) + 1
        domains = max((n.domain for n in nodes), default=-1) + 1
        pods = max((n.pod for n in nodes), default=-1) + 1
        nodes += [
            Node(n.name, n.cpu_milli, n.memory_mib, n.chips, n.model, n.rack + racks, n.domain + domains, n.pod + pods)
            for n in part
        ]
    return nodes


def pool_of(scenario: CloudScenario, chip: str) -> Pool:
    return next(p for p in scenario.pools if p.chip == chip)


def workers_of(chips: int, pool: Pool) -> tuple[int, int]:
    """(workers, chips of each): whole servers where a job is larger than one."""
    each = min(chips, pool.chips_per_server)
    if chips % each:
        raise DoesNotFit(f"{chips} chips do not divide into servers of {pool.chips_per_server}", field="chips")
    return chips // each, each


def service_jobs(sized: Sized, pool: Pool) -> list[Job]:
    """A job for each stretch of hours that a replica is needed; a replica that fails starts again elsewhere."""
    workers, each = workers_of(sized.chips_per_replica, pool)
    worker = as_task(
        sized.spec.name,
        each,
        cpu_milli=CPU_MILLI_A_CHIP * each,
        memory_mib=MEMORY_MIB_A_CHIP * each,
        types=(pool.chip,),
    )
    jobs = []
    need = sized.replicas
    for k in range(int(need.max())):
        wanted = np.concatenate([[0], (need > k).astype(np.int8), [0]])
        starts, ends = np.flatnonzero(np.diff(wanted) == 1), np.flatnonzero(np.diff(wanted) == -1)
        jobs += [
            Job(
                f"{sized.spec.name}-{k}-{a}",
                "services",
                a * HOUR_S,
                (b - a) * HOUR_S,
                worker,
                workers,
                SERVICE_PRIORITY,
                "rack" if workers > 1 else "",
                1.0,
                sized.spec.name,
            )
            for a, b in zip(starts.tolist(), ends.tolist(), strict=True)
        ]
    return jobs


def mixed_jobs(scenario: CloudScenario, customers: Sequence[str]) -> list[Job]:
    """The other jobs, drawn (see ``JobMix``); their chips take any pool."""
    mix, span = scenario.jobs, scenario.days * DAY_S
    if mix.count == 0:
        return []
    rng = np.random.default_rng([scenario.seed, 0x6A6F])
    weights = np.array(mix.weights) / sum(mix.weights)
    sizes = rng.choice(np.array(mix.sizes), mix.count, p=weights)
    durations = rng.lognormal(math.log(mix.median_s), mix.sigma, mix.count)
    durations = np.clip(durations * mix.load * scenario.chips * span / float((sizes * durations).sum()), 30.0, span)
    arrivals = np.sort(rng.uniform(0.0, span, mix.count))
    owner = rng.integers(len(customers), size=mix.count)
    low = rng.random(mix.count) < mix.low_priority_share
    smallest = min(p.chips_per_server for p in scenario.pools)
    jobs = []
    for i in range(mix.count):
        chips = float(sizes[i])
        each = max(1, min(int(chips), smallest))
        worker = as_task(
            "job",
            each,
            milli=1000 if chips >= 1 else round(1000 * chips),
            cpu_milli=CPU_MILLI_A_CHIP * each,
            memory_mib=MEMORY_MIB_A_CHIP * each,
        )
        workers = max(1, int(chips) // each)
        jobs.append(
            Job(
                f"job-{i}",
                customers[owner[i]],
                float(arrivals[i]),
                float(durations[i]),
                worker,
                workers,
                0 if low[i] else 1,
                "pod" if chips >= 64 else "",
                1800.0 if chips >= 8 else 0.0,
                "other jobs",
            )
        )
    return jobs
