"""What serving LoRA adapters takes: memory for their slots, time to load one, and what their products add to a step.

An adapter of rank ``r`` puts a pair of thin products beside each adapted projection ``[k -> n]``: ``r (k + n)`` weights. The
engines run both for the whole batch in two kernels a projection (vLLM's shrink and expand), so a step takes two launches a
projection, reads the weights of each different adapter once, and for each token its input, the rank's partial sums and the
output that it is added to. Sources: vLLM ``lora/ops/triton_ops``, ``lora/models.py``; Punica (arXiv 2310.18547).
"""

from __future__ import annotations

from dataclasses import dataclass

from trivet.chip import timing
from trivet.cloud import fabric, storage
from trivet.cloud.deployment import Deployment
from trivet.errors import TrivetError
from trivet.model.layers import operators
from trivet.model.parallel import Batch
from trivet.operators import Gemm, Stream

BYTES = 2.0  # adapters are kept in 16 bits
TARGETS = ("all", "attention")
# Products that are no projection of the checkpoint that an adapter can sit on: routers, heads, absorbed latents.
_NEVER = ("router", "lm_head", "q_absorb", "v_absorb", "index_q", "index_k", "scan_parameters", "scan_step")
_ATTENTION = ("qkv", "attention_out", "q_a_kv_a", "q_b", "q_kv_a", "kv_b", "q_a_kv", "attention_out_a")


# Projections that the engine has fused: each of their parts has a narrow side of its own.
_PARTS = {"qkv": 3.0, "q_a_kv_a": 2.0, "q_kv_a": 2.0, "q_a_kv": 2.0}


def _parts(name: str) -> float:
    return 2.0 if name.endswith("gate_up") else _PARTS.get(name, 1.0)


@dataclass(frozen=True, slots=True)
class LoraCost:
    """Of one chip. Bytes of one adapter, seconds to bring it from host memory and from disk, seconds added to a step."""

    adapter_bytes: float
    load_s: float
    disk_s: float
    step_s: float
    adapter_s: float
    token_s: float


def projections(deployment: Deployment, targets: str = "all") -> tuple[Gemm, ...]:
    """The adapted products of one chip for one token, each with its ``count``."""
    if targets not in TARGETS:
        raise TrivetError(f"unknown {targets!r}", field="engine.lora_targets", allowed=TARGETS)
    found = operators(deployment.architecture, Batch(decode_sequences=1.0, decode_context=1.0), deployment.layout)
    chosen = _ATTENTION if targets == "attention" else None
    return tuple(
        o for o in found
        if isinstance(o, Gemm) and o.name not in _NEVER and (chosen is None or o.name in chosen)
    )  # fmt: skip


def adapter_bytes(deployment: Deployment, rank: int, targets: str = "all") -> float:
    """Weights of one adapter on one chip; the cut of a projection cuts its adapter's wide side alone, as vLLM does.

    With pipeline stages the fullest stage's share.
    """
    total = sum(
        o.count * float(o.batch) * rank * (_parts(o.name) * float(o.k) + float(o.n))
        for o in projections(deployment, targets)
    )  # fmt: skip
    return BYTES * total / deployment.layout.pp


def lora_cost(deployment: Deployment, rank: int, targets: str = "all") -> LoraCost:
    """Costs of adapters of ``rank`` on the projections of ``targets``.

    Raises:
        TrivetError: a rank below 1 or unknown targets.
    """
    if rank < 1:
        raise TrivetError(f"{rank}", field="engine.lora_rank", allowed="1 or more")
    where, chip = fabric.server_of(deployment.chip, deployment.server), deployment.chip
    wide = [
        (o.count * float(o.batch), float(o.k), float(o.n), _parts(o.name)) for o in projections(deployment, targets)
    ]
    size = adapter_bytes(deployment, rank, targets)
    library = deployment.settings.engine

    def seconds(name: str, moved: float, flops: float) -> tuple[float, float]:
        found = timing.time(Stream(name, moved, flops), chip, library)
        return float(found.value_s), float(found.floor_s)

    # Sizes at which a stream runs at the sustained rate, so that the slope is the rate's and not a launch's.
    many = 4096.0
    moved = sum(c * (2.0 * k + 8.0 * parts * rank + 4.0 * n) for c, k, n, parts in wide)
    flops = sum(c * 2.0 * rank * (parts * k + n) for c, k, n, parts in wide)
    busy, floor = seconds("lora_tokens", many * moved, many * flops)
    weights, _ = seconds("lora_weights", 64.0 * size, 0.0)
    host = storage.tier(where, chip, "host_memory")
    disk = storage.tier(where, chip, "nvme")
    return LoraCost(
        size,
        host.read_s(size).value,
        disk.read_s(size).value,
        2.0 * sum(c for c, *_ in wide) * floor,
        max(weights - floor, 0.0) / 64.0,
        max(busy - floor, 0.0) / many,
    )
