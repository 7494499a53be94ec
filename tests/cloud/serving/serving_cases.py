"""A plain step table and small traffics for the tests of the simulator."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from trivet.cloud.deployment import EngineSettings, StepTable
from trivet.cloud.serving.batching import Batching
from trivet.cloud.serving.fleet import Fleet, ReplicaKind
from trivet.cloud.serving.traffic import Traffic

DECODE_S, TOKEN_S, CONTEXT_S = 10e-3, 1e-5, 1e-8


def table(kv_blocks: int = 4000, block_size: int = 16, **changes: Any) -> StepTable:
    """Decode 10 ms plus 10 ns a token of summed context; a prompt token 10 us, not less than a decode step."""
    tokens = np.array([1.0, DECODE_S / TOKEN_S, 1e5])
    sequences, context = np.array([1.0, 1024.0]), np.array([0.0, 1e6])
    plain = StepTable(
        tokens, np.maximum(tokens * TOKEN_S, DECODE_S), sequences, np.full(2, DECODE_S), context,
        CONTEXT_S * sequences[:, None] * context, np.array([1.0, 1e5]), np.array([0.0, 1e6]), np.zeros((2, 2)),
        0.0, 0.0, 0.0, True, 0.0, 0.0, kv_blocks, block_size,
    )  # fmt: skip
    return replace(plain, **changes)


def replicas(count: int = 1, rules: Batching | None = None, kv_blocks: int = 4000, **settings: Any) -> ReplicaKind:
    block = settings.get("block_size", 16)
    return ReplicaKind(
        table(kv_blocks, block),
        EngineSettings(**{"max_num_batched_tokens": 2048, **settings}),
        count,
        rules=rules or Batching(),
    )


def fleet(*kinds: ReplicaKind, **more: Any) -> Fleet:
    return Fleet(kinds, **more)


def traffic(arrival: Any, inputs: Any, outputs: Any, **more: Any) -> Traffic:
    arrival = np.asarray(arrival, float)
    return Traffic(arrival, np.broadcast_to(inputs, arrival.shape), np.broadcast_to(outputs, arrival.shape), **more)


def poisson(count: int, rate: float, inputs: int, outputs: int, seed: int = 0, **more: Any) -> Traffic:
    rng = np.random.default_rng(seed)
    arrival = np.cumsum(rng.exponential(1 / rate, count))
    return traffic(
        arrival, rng.integers(inputs // 2, inputs * 2, count), rng.integers(outputs // 2, outputs * 2, count), **more
    )
