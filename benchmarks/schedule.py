"""Placement and the week, timed: tasks per processor second against the published simulator and schedulers.

    python benchmarks/schedule.py [--json] [--nodes F --jobs F] [--week-jobs N]

Peers: the authors' simulator of FGD took 46 processor minutes for 10,866 tasks on 1,213 nodes on this class of machine (3.9
tasks a second); kube-scheduler's test floor with extended resources at 5,000 nodes is 180 pods a second, Goedel reports 5,000.
Without --nodes/--jobs a list of openb's size is drawn (1,213 nodes, 10,866 tasks).
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np

from trivet.cloud.cluster.faults import draw, llama3_faults
from trivet.cloud.cluster.jobs import Job
from trivet.cloud.cluster.nodes import Node, uniform_cluster
from trivet.cloud.cluster.placement import schedule
from trivet.cloud.cluster.tasks import Task
from trivet.cloud.cluster.week import Cluster, Rules, as_task, describe
from trivet.units import WEEK_S

AUTHORS_TASKS_PER_CPU_S, KUBE_PODS_PER_S, GODEL_PODS_PER_S = 3.9, 180.0, 5000.0


def drawn(nodes: int = 1213, tasks: int = 8152) -> tuple[list[Node], list[Task]]:
    """A cluster and a task list of openb's size and kinds."""
    rng = np.random.default_rng(0)
    kinds = [
        (96_000, 393_216, 8, "G2"),
        (104_000, 524_288, 2, "T4"),
        (16_000, 122_880, 2, "P100"),
        (128_000, 786_432, 8, "G3"),
    ]
    pick = rng.choice(4, nodes, p=(0.5, 0.33, 0.1, 0.07))
    asked = [(1, 1000), (0, 0), (1, 810), (1, 470), (1, 320), (2, 1000), (4, 1000), (8, 1000)]
    kind = rng.choice(8, tasks, p=(0.48, 0.13, 0.13, 0.09, 0.08, 0.03, 0.02, 0.04))
    cpu = rng.choice([2_000, 4_000, 6_000, 8_000, 11_300, 12_000, 16_000, 32_000], tasks)
    return (
        [Node(f"n{i:05d}", *kinds[k]) for i, k in enumerate(pick)],
        [Task(f"t{i:05d}", int(cpu[i]), int(cpu[i]) * 3, *asked[k]) for i, k in enumerate(kind)],
    )


def week_jobs(count: int, chips: int, load: float, seed: int = 0) -> list[Job]:
    """``count`` jobs of a week, a quarter to 256 chips, log-normal durations, 40 tenants, one in ten urgent."""
    rng = np.random.default_rng(seed)
    sizes = rng.choice(
        [0.25, 0.5, 1, 2, 4, 8, 16, 64, 256], count, p=[0.15, 0.1, 0.4, 0.1, 0.08, 0.1, 0.05, 0.015, 0.005]
    )
    seconds = rng.lognormal(0.0, 1.3, count)
    seconds *= load * chips * WEEK_S / float((sizes * seconds).sum())
    arrival = np.sort(rng.uniform(0.0, 0.95 * WEEK_S, count))
    tenant, urgent = rng.zipf(1.5, count) % 40, rng.random(count) < 0.1
    workers = {
        float(s): as_task(
            "w",
            max(1, min(int(s), 8)),
            milli=1000 if s >= 1 else int(1000 * s),
            cpu_milli=4000 * max(1, min(int(s), 8)),
            memory_mib=32_768 * max(1, min(int(s), 8)),
        )
        for s in np.unique(sizes)
    }
    return [
        Job(
            f"j{i}",
            f"t{tenant[i]}",
            float(arrival[i]),
            max(float(seconds[i]), 30.0),
            workers[float(s)],
            max(1, int(s) // 8),
            int(urgent[i]),
            "pod" if s >= 64 else "",
            1800.0 if s >= 16 else 0.0,
        )
        for i, s in enumerate(sizes)
    ]


def time_week(name: str, nodes: list[Node], jobs: list[Job], rules: Rules) -> dict[str, Any]:
    failures = draw(nodes, llama3_faults(), WEEK_S, 0)
    Cluster(nodes[:8], jobs[:8], rules).advance(1.0)  # load the compiled code outside the clock
    wall, cpu = time.perf_counter(), time.process_time()
    cluster = Cluster(nodes, jobs, rules, failures=failures)
    cluster.advance(WEEK_S)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    cluster.check_integrity()
    figures = describe(cluster.result())
    return {
        "name": name,
        "jobs": len(jobs),
        "wall_s": round(wall, 2),
        "cpu_s": round(cpu, 2),
        "use": round(figures["use"], 4),
        "done": figures["done"],
        "evictions": figures["evictions"],
        "restarts": figures["restarts"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=Path)
    parser.add_argument("--jobs", type=Path)
    parser.add_argument("--week-jobs", type=int, default=200_000)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    if arguments.nodes and arguments.jobs:
        from trivet.interop.openb import read_nodes, read_tasks

        nodes, tasks = read_nodes(arguments.nodes), read_tasks(arguments.jobs)
    else:
        nodes, tasks = drawn()
    result: dict[str, Any] = {}
    for policy in ("fgd", "bestfit"):
        runs = [schedule(nodes, tasks, policy, seed=s, tune=1.3) for s in range(42, 47)]
        speed = sum(len(r.node) for r in runs) / sum(r.cpu_s for r in runs)
        began = time.process_time()
        schedule(nodes, tasks, policy, seed=42, tune=1.3)
        result[f"{policy}_tasks_per_cpu_s"] = round(speed)
        result[f"{policy}_with_preparation_tasks_per_cpu_s"] = round(len(runs[0].node) / (time.process_time() - began))
    result["tasks"], result["nodes"] = len(runs[0].node), len(nodes)
    result["fgd_ratio_to_authors_simulator"] = round(result["fgd_tasks_per_cpu_s"] / AUTHORS_TASKS_PER_CPU_S)
    big = uniform_cluster(5000, 8, "x")
    pods = [Task(f"p{i}", 4000, 16_384, 1, 1000) for i in range(30_000)]
    run = schedule(big, pods, "bestfit", seed=1)
    result["pods_per_cpu_s_at_5000_nodes"] = round(len(pods) / run.cpu_s)
    result["ratio_to_kube_scheduler_floor"] = round(result["pods_per_cpu_s_at_5000_nodes"] / KUBE_PODS_PER_S)
    result["ratio_to_godel"] = round(result["pods_per_cpu_s_at_5000_nodes"] / GODEL_PODS_PER_S, 1)
    count = arguments.week_jobs
    result["weeks"] = [
        time_week("5,000 servers", big, week_jobs(count, 40_000, 0.8), Rules()),
        time_week("16,384 cards", uniform_cluster(1024, 16, "x"), week_jobs(count, 16_384, 0.8), Rules()),
        time_week(
            "16,384 cards, DRF, FGD", uniform_cluster(1024, 16, "x"), week_jobs(count, 16_384, 0.8), Rules("fgd", "drf")
        ),
    ]
    if arguments.json:
        print(json.dumps(result))
        return
    for key, value in result.items():
        for line in value if key == "weeks" else [value]:
            print(f"{key}: {line}")


if __name__ == "__main__":
    main()
