"""Routers: which replica takes a request. The loop's own are numbers to it; any Python function works too, slower.

A router in Python is called with the request and a view of the replicas, and returns a replica's number:
``def mine(request: int, time_s: float, load: ReplicaLoad) -> int``; register it in ``PYTHON_ROUTERS`` or, from another
package, by an entry point in the group ``trivet.router``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trivet.cloud.serving import _loop_state as k
from trivet.errors import UnknownName

ROUTERS: dict[str, int] = {
    "round_robin": k.ROUND_ROBIN,
    "least_outstanding": k.LEAST_OUTSTANDING,
    "power_of_two": k.POWER_OF_TWO,
    "kv_load": k.KV_LOAD,  # least prompt tokens held
    "prefix_aware": k.PREFIX_AWARE,  # where the prompt's blocks are, unless that one is too busy
    "slo_aware": k.SLO_AWARE,  # least time until the queue's prompts are computed
}


@dataclass(frozen=True, slots=True)
class ReplicaLoad:
    """What a router sees, one entry a replica: requests there, prompt tokens still to compute and held, is it up."""

    outstanding: NDArray[np.int64]
    backlog_tokens: NDArray[np.int64]
    held_tokens: NDArray[np.int64]
    up: NDArray[np.bool_]


PythonRouter = Callable[[int, float, ReplicaLoad], int]
PYTHON_ROUTERS: dict[str, PythonRouter] = {}
ENTRY_POINT_GROUP = "trivet.router"


def router_code(name: str) -> int:
    """The loop's number for a router; -1 for one written in Python."""
    if name in ROUTERS:
        return ROUTERS[name]
    if name not in PYTHON_ROUTERS:
        PYTHON_ROUTERS.update(_plugins())
    if name not in PYTHON_ROUTERS:
        raise UnknownName(f"unknown router {name!r}", field="router", allowed=[*ROUTERS, *PYTHON_ROUTERS])
    return -1


def _plugins() -> dict[str, PythonRouter]:
    """Routers of installed packages."""
    from importlib.metadata import entry_points

    return {entry.name: entry.load() for entry in entry_points(group=ENTRY_POINT_GROUP)}


def view(replicas: NDArray[Any]) -> ReplicaLoad:
    return ReplicaLoad(
        replicas[:, k.R_OUTSTANDING],
        replicas[:, k.R_BACKLOG],
        replicas[:, k.R_LOAD_TOKENS],
        replicas[:, k.R_UP] == k.ON,
    )
