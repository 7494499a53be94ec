"""The published protocol of Weng et al. (ATC 2023): which tasks arrive in which order, and how nodes break ties.

Tasks sorted by name are shuffled; clones of random tasks are appended until the requests reach ``tune`` times the chips
(or random tasks are removed where they already exceed it); nodes, sorted by name, get a random rank, and a tie in score
goes to the lowest rank. Draws are those of Go's ``math/rand`` in the order of the authors' simulator.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from trivet.cloud.cluster.go_random import GoRandom
from trivet.cloud.cluster.nodes import WHOLE, Node
from trivet.cloud.cluster.policies import cpu_price
from trivet.cloud.cluster.tasks import Task, TypicalTask, typical_tasks

# The authors' scheduler starts its ten informers between drawing the clones and ordering the nodes, and each takes a draw:
# with ten, seed 42 under FGD ends at their log's 5,919,410 thousandths of a GPU and 89,928,302 of a CPU, to the last one.
DRAWS_AT_START = 10


@dataclass(frozen=True, slots=True, eq=False)
class Experiment:
    """``nodes`` by rank, ``tasks`` by arrival (``original`` = index in the list that was read; clones repeat it)."""

    nodes: tuple[Node, ...]
    tasks: tuple[Task, ...]
    names: tuple[str, ...]
    typical: tuple[TypicalTask, ...]
    random: GoRandom

    @property
    def cpu_price(self) -> float:
        return cpu_price(self.typical, sum(n.cpu_milli for n in self.nodes), sum(n.chips for n in self.nodes) * WHOLE)


def experiment(nodes: Sequence[Node], tasks: Sequence[Task], seed: int, tune: float) -> Experiment:
    """Draw one experiment. ``tune`` 0 keeps the tasks as they are, 1.3 raises their requests to 130% of the chips."""
    by_name = sorted(tasks, key=lambda t: t.name)
    random = GoRandom(seed)
    random.uint64()  # the authors' simulator logs one draw after seeding
    arrivals = list(by_name)
    random.shuffle(arrivals)
    names = [t.name for t in arrivals]
    requested = sum(t.total_milli for t in arrivals)
    target = tune * float(sum(n.chips for n in nodes) * WHOLE)
    if tune > 0 and requested > target:
        while requested > target:
            k = random.intn(len(arrivals))
            requested -= arrivals.pop(k).total_milli
            names.pop(k)
    elif tune > 0 and 0 < requested < target:
        while True:
            task = by_name[random.intn(len(by_name))]
            # The stop compares one chip's share, not the total, as published: a last multi-chip task may overshoot.
            if requested + task.chip_milli > target:
                break
            names.append(f"{task.name}-tuned-{len(arrivals) - len(by_name)}")
            arrivals.append(task)
            requested += task.total_milli
    for _ in range(DRAWS_AT_START):
        random.uint64()
    ordered = sorted(nodes, key=lambda n: n.name)
    ranks = random.perm(len(ordered))
    ranked = [ordered[0]] * len(ordered)
    for node, rank in zip(ordered, ranks, strict=True):
        ranked[rank] = node
    return Experiment(tuple(ranked), tuple(arrivals), tuple(names), typical_tasks(by_name), random)
