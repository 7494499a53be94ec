"""Other task lists drawn from a given one: other mixes of shares, CPU-only, typed and multi-chip tasks.

For judging a policy on lists that it was not designed on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from trivet.cloud.cluster.nodes import WHOLE, Node
from trivet.cloud.cluster.tasks import Task
from trivet.errors import TrivetError


def drawn_list(tasks: Sequence[Task], nodes: Sequence[Node], seed: int, load: float = 0.98) -> list[Task]:
    """A random list: random shares of demand for chip shares, single and multi-chip tasks, each drawn from a random part
    of the pool, up to ``load`` times the chips; up to a third CPU-only tasks on top; in half of the lists types."""
    rng = np.random.default_rng(seed)
    pools = [
        [t for t in tasks if t.is_share],
        [t for t in tasks if t.num_chips == 1 and not t.is_share],
        [t for t in tasks if t.num_chips > 1],
    ]
    pools = [p for p in pools if p]
    if not pools:
        raise TrivetError("no task asks for a chip", field="tasks")
    cpu_only = [t for t in tasks if not t.num_chips]
    weights = rng.random(len(pools)) ** 1.5
    chips = sum(n.chips for n in nodes)
    out: list[Task] = []
    for pool, weight in zip(pools, weights / weights.sum(), strict=True):
        kept = rng.permutation(len(pool))[: max(5, int(len(pool) * rng.uniform(0.05, 1.0)))]
        need = weight * load * chips * WHOLE
        while need > 0:
            out.append(pool[kept[rng.integers(len(kept))]])
            need -= out[-1].total_milli
    extra = int(rng.choice([0.0, 0.04, 0.1, 0.2, 0.33]) * len(tasks))
    out += [cpu_only[rng.integers(len(cpu_only))] for _ in range(extra if cpu_only else 0)]
    typed = float(rng.choice([0.0, 0.0, 0.1, 0.33]))
    models = sorted({n.model for n in nodes})
    share = np.array([sum(n.chips for n in nodes if n.model == m) for m in models], float) / max(chips, 1)
    for i, task in enumerate(out):
        if 0 < task.num_chips <= 2 and rng.random() < typed:
            drawn = rng.choice(len(models), size=int(rng.integers(1, 3)), p=share)
            out[i] = replace(task, chip_types=tuple(sorted({models[m] for m in drawn})))
    return [replace(t, name=f"drawn-{i:06d}") for i, t in enumerate(out)]
