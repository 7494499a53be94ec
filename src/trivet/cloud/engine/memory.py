"""What fits: weights, activations, workspace and graphs leave room for KV blocks."""

from __future__ import annotations

from dataclasses import dataclass

from trivet.chip.point import fact_value
from trivet.cloud.deployment import Deployment
from trivet.cloud.engine.lora import adapter_bytes
from trivet.cloud.engine.profiles import EngineProfile
from trivet.errors import DoesNotFit, Unsupported
from trivet.model import memory
from trivet.units import text


@dataclass(frozen=True, slots=True)
class Room:
    """Bytes of one chip, and what is left for KV."""

    memory_bytes: float
    weight_bytes: float
    activation_bytes: float
    reserve_bytes: float
    kv_bytes: float
    bytes_per_token: float  # of KV cache, on this chip
    bytes_per_sequence: float  # recurrent state, on this chip
    blocks: int


def _working_bytes(deployment: Deployment, budget: float, logit_bytes: float) -> float:
    """Working memory of the largest step of one chip: of its layers, or of a sampler with a row for every sequence that may run
    (the ranks of a tensor-parallel group each gather all logits)."""
    architecture, sequences = deployment.architecture, deployment.settings.max_num_seqs
    layers = memory.activation_bytes(architecture, budget, deployment.layout, head_rows=min(sequences, 256))
    return max(float(layers), logit_bytes * min(sequences, budget) * architecture.vocab)


def room(deployment: Deployment, profile: EngineProfile, context: float = 0.0) -> Room:
    """Memory of the fullest chip. ``context``: tokens of a typical sequence, which windowed layers and recurrent states
    spread their bytes over (0 = four thousand).

    Raises:
        DoesNotFit: the weights and the workspace leave no room for one sequence.
        Unsupported: the chip's memory is not known.
    """
    architecture, layout, settings = deployment.architecture, deployment.layout, deployment.settings
    found = fact_value(deployment.chip, "memory_bytes")
    if found is None:
        raise Unsupported(f"{deployment.chip.name} has no known memory", field="memory_bytes")
    weights = memory.weight_bytes(
        architecture, layout, weight_dtype=settings.weight_dtype, moe_dtype=settings.moe_dtype
    )
    budget = float(min(settings.max_num_batched_tokens, 16384))
    activations = _working_bytes(deployment, budget, profile.logit_bytes)
    typical = context or 4096.0
    per_token = memory.kv_bytes_per_sequence(architecture, typical, layout, kv_dtype=settings.kv_dtype) / typical
    per_sequence = memory.state_bytes_per_sequence(architecture, layout)
    share = per_token + per_sequence / typical
    usable = found.value * settings.memory_utilization
    adapters = 0.0
    if settings.max_loras:
        adapters = settings.max_loras * adapter_bytes(deployment, settings.lora_rank, settings.lora_targets)
    taken = weights + activations + profile.memory_reserve_bytes + adapters
    left = usable - taken
    if settings.engine == "trtllm":  # a fraction of what is free once the model is loaded (``free_gpu_memory_fraction``)
        left = (found.value - taken) * settings.memory_utilization
    blocks = int(left // (share * settings.block_size)) if left > 0 and share > 0 else 0
    if settings.num_kv_blocks:
        blocks = settings.num_kv_blocks
    if blocks < 1 or (left <= 0 and not settings.num_kv_blocks):
        raise DoesNotFit(
            f"{architecture.name} on {deployment.chip.name} with {layout.chips} chips: weights {text(weights, 'B')}, activations "
            f"{text(activations, 'B')}, adapters {text(adapters, 'B')} and workspace "
            f"{text(profile.memory_reserve_bytes, 'B')} leave nothing of "
            f"{text(usable, 'B')} for KV", field="layout", allowed="more chips or a smaller format",
        )  # fmt: skip
    return Room(
        found.value, weights, activations, profile.memory_reserve_bytes, max(left, 0.0), per_token, per_sequence, blocks
    )
