"""KV memory below and beside HBM: tiers with capacity and bandwidth, and the cache arrays of a run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from trivet.cloud.serving import _loop_cache as c
from trivet.cloud.serving._loop_state import PS
from trivet.errors import TrivetError

TIER_NAMES = ("host", "nvme", "remote")  # in the order in which a block that is evicted goes down


@dataclass(frozen=True, slots=True)
class Tier:
    """A place for KV blocks below HBM.

    Args:
        name: "host" and "nvme" belong to one replica, "remote" is a pool shared by all.
        tokens: tokens of context that it holds (of a replica, or of the whole pool).
        load_s_per_token: time to bring one token's KV to HBM (bytes a token over bandwidth).
        latency_s: once a load.
    """

    name: str
    tokens: float
    load_s_per_token: float
    latency_s: float = 0.0

    def __post_init__(self) -> None:
        if self.name not in TIER_NAMES:
            raise TrivetError(f"unknown tier {self.name!r}", field="tiers", allowed=TIER_NAMES)
        for field in ("tokens", "load_s_per_token", "latency_s"):
            if not getattr(self, field) >= 0:
                raise TrivetError(f"{getattr(self, field)} is below 0", field=f"tiers.{self.name}.{field}")


def dense_ids(hash_ids: NDArray[np.int64]) -> NDArray[np.int64]:
    """Hash ids renumbered from 0, so that arrays can be indexed by them."""
    if hash_ids.size == 0 or int(hash_ids.max()) < 4 * hash_ids.size + 1024:
        return hash_ids
    return np.unique(hash_ids, return_inverse=True)[1].astype(np.int64)


def new_cache(
    hash_ids: NDArray[np.int64],
    hash_block_tokens: int,
    block_size: int,
    hbm_blocks: Sequence[int],
    tiers: Sequence[Sequence[Tier]],
) -> c.Cache:
    """Empty caches of all replicas.

    Args:
        hash_ids: dense ids of the traffic's prompt blocks.
        hash_block_tokens: tokens of one id; a multiple of ``block_size``.
        hbm_blocks: engine blocks of each replica.
        tiers: tiers of each replica; "remote" is taken from the first replica that names one.
    """
    if hash_block_tokens % block_size:
        raise TrivetError(
            f"hash blocks of {hash_block_tokens} tokens do not hold whole KV blocks of {block_size}",
            field="block_size",
            allowed=f"a divisor of {hash_block_tokens}",
        )
    replicas = len(hbm_blocks)
    weight = hash_block_tokens // block_size
    ids = int(hash_ids.max()) + 1 if hash_ids.size else 1
    capacity = np.zeros((replicas + 1, c.TIERS), np.int64)
    load, latency = np.zeros_like(capacity), np.zeros_like(capacity)
    capacity[:replicas, c.HBM] = np.asarray(hbm_blocks) // weight
    for replica, levels in enumerate(tiers):
        for tier in levels:
            at = TIER_NAMES.index(tier.name) + 1
            owner = replicas if at == c.REMOTE else replica
            if at == c.REMOTE and capacity[owner, at]:
                continue
            capacity[owner, at] = min(int(tier.tokens // hash_block_tokens), ids)
            load[owner, at] = round(tier.load_s_per_token * hash_block_tokens * PS)
            latency[owner, at] = round(tier.latency_s * PS)
    # An owner never holds more entries than there are ids, nor more than its tiers hold, HBM twice (a new prompt's
    # blocks are entered before idle ones make room) and one more while it moves down.
    entries = int(sum(min(int(row.sum() + row[c.HBM]), ids) + 2 for row in capacity))
    table = 1
    while table < 2 * entries:
        table *= 2
    if replicas + 1 >= 1 << (63 - c.HASH_BITS):
        raise TrivetError(
            f"{replicas} replicas", field="replicas", allowed=f"below {1 << (63 - c.HASH_BITS)} with a prefix cache"
        )
    return c.Cache(
        key=np.full(table, -1, np.int64),
        value=np.zeros(table, np.int64),
        entry=np.zeros((entries, 6), np.int64),
        lru=np.full((replicas + 1, c.TIERS, 2), -1, np.int64),
        count=np.zeros((replicas + 1, c.TIERS), np.int64),
        capacity=capacity,
        load_ps=load,
        latency_ps=latency,
        meta=np.array([-1, 0, weight, 0], np.int64),
        hash_ids=hash_ids,
        owner=np.full(ids, -1, np.int64),
    )
