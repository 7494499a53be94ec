"""One-shot placement in plain Python: the reference of the jitted loop, and the path of plug-in policies."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from trivet.cloud.cluster.policies import Context, NodeView, affinity_kind, choose_devices, find_policy, fits
from trivet.cloud.cluster.protocol import Experiment


def place_plain(
    experiment: Experiment, policy: str, progress: Callable[[int], None] | None = None
) -> tuple[NDArray[np.int64], NDArray[np.uint64]]:
    """Place every task in order, drop what does not fit.

    Returns the node rank of each task (-1 = dropped) and its devices as a bit mask.
    """
    score = find_policy(policy)
    nodes = [
        NodeView(i, n.model, n.cpu_milli, n.memory_mib, [1000] * n.chips) for i, n in enumerate(experiment.nodes)
    ]
    context = Context(experiment.typical, experiment.random, experiment.cpu_price)
    where = np.full(len(experiment.tasks), -1, np.int64)
    devices = np.zeros(len(experiment.tasks), np.uint64)
    for k, task in enumerate(experiment.tasks):
        context.feasible = [n.index for n in nodes if fits(n, task)]
        if not context.feasible:
            continue
        best = context.feasible[0]
        if len(context.feasible) > 1:
            if policy == "random":
                context.pick = context.feasible[context.random.intn(len(context.feasible))]
            top = score(nodes[best], task, context)
            for i in context.feasible[1:]:
                value = score(nodes[i], task, context)
                if value > top:
                    best, top = i, value
        node = nodes[best]
        chosen = choose_devices(policy, node, task, context)
        node.cpu_left -= task.cpu_milli
        node.memory_left -= task.memory_mib
        mask = 0
        for d in chosen:
            node.chip_left[d] -= task.chip_milli
            mask |= 1 << d
        if task.num_chips:
            kind = affinity_kind(task)
            node.affinity[kind] = node.affinity.get(kind, 0) + 1
        where[k], devices[k] = best, mask
        if progress is not None:
            progress(k + 1)
    return where, devices
