"""Servers with CPU, memory and chips, and where they hang: rack, scale-up domain, network pod."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from trivet.errors import TrivetError

WHOLE = 1000  # thousandths of a chip


@dataclass(frozen=True, slots=True)
class Node:
    """One server. ``rack``, ``domain`` (ICN, NVLink) and ``pod`` (HPN) are indices of the groups it belongs to."""

    name: str
    cpu_milli: int
    memory_mib: int
    chips: int
    model: str = ""
    rack: int = 0
    domain: int = 0
    pod: int = 0

    def __post_init__(self) -> None:
        for field in ("cpu_milli", "memory_mib", "chips"):
            if getattr(self, field) < 0:
                raise TrivetError(f"{getattr(self, field)} is negative on node {self.name}", field=field)
        if self.chips > 64:
            raise TrivetError(f"{self.chips} chips on node {self.name}", field="chips", allowed="at most 64")


@dataclass(frozen=True, slots=True, eq=False)
class NodeTable:
    """Nodes as arrays, the boundary in front of the hot loop. ``models`` names the chip types."""

    cpu_milli: NDArray[np.int64]  # [N]
    memory_mib: NDArray[np.int64]  # [N]
    chips: NDArray[np.int64]  # [N]
    model: NDArray[np.int64]  # [N] index into models
    rack: NDArray[np.int64]  # [N]
    domain: NDArray[np.int64]  # [N]
    pod: NDArray[np.int64]  # [N]
    models: tuple[str, ...]

    @property
    def total_milli(self) -> int:
        return int(self.chips.sum()) * WHOLE


def node_table(nodes: Sequence[Node]) -> NodeTable:
    """Arrays of ``nodes`` in the given order. Raises TrivetError for an empty list or a repeated name."""
    if not nodes:
        raise TrivetError("no nodes", field="nodes", allowed="at least one")
    if len({n.name for n in nodes}) != len(nodes):
        raise TrivetError("a node name is repeated", field="nodes")
    models = tuple(sorted({n.model for n in nodes}))
    index = {m: i for i, m in enumerate(models)}

    def column(values: list[int]) -> NDArray[np.int64]:
        return np.array(values, np.int64)

    return NodeTable(
        column([n.cpu_milli for n in nodes]), column([n.memory_mib for n in nodes]), column([n.chips for n in nodes]),
        column([index[n.model] for n in nodes]), column([n.rack for n in nodes]), column([n.domain for n in nodes]),
        column([n.pod for n in nodes]), models,
    )  # fmt: skip


def uniform_cluster(
    servers: int, chips: int, model: str, *, cpu_milli: int = 192_000, memory_mib: int = 2_097_152,
    servers_per_rack: int = 4, servers_per_domain: int = 1, servers_per_pod: int = 1024,
) -> list[Node]:  # fmt: skip
    """``servers`` equal nodes of ``chips`` chips, filled rack by rack, domain by domain, pod by pod."""
    width = len(str(max(servers - 1, 1)))
    return [
        Node(f"{model}-{i:0{width}d}", cpu_milli, memory_mib, chips, model,
             i // servers_per_rack, i // servers_per_domain, i // servers_per_pod)
        for i in range(servers)
    ]  # fmt: skip
