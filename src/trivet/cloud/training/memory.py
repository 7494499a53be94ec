"""Memory of a training job by component and by pipeline rank.

``weights + gradients + optimiser + activations + working set``: ZeRO stages as in Rajbhandari et al. (SC 2020), in-flight
micro-batches as the schedule keeps them (Narayanan et al., SC 2021), activations as in ``shapes.py``.
"""

from __future__ import annotations

from dataclasses import dataclass

from trivet.cloud.training import schedule, shapes
from trivet.cloud.training.job import OPTIMIZER_BYTES, TrainingJob, stage_layers
from trivet.model.architecture import Layer
from trivet.units import GIB

# Driver context, communication buffers and the allocator's fragments: what nvidia-smi shows beyond tensors.
CONTEXT_BYTES = 2.0 * GIB
FRAGMENTATION = 0.03  # of the activations


@dataclass(frozen=True, slots=True)
class RankMemory:
    """Bytes on one chip of one pipeline rank, by component."""

    rank: int
    weights: float
    gradients: float
    optimizer: float
    activations: float
    logits: float
    working: float
    host: float  # bytes offloaded to the host or to NVMe, not on the chip

    @property
    def total(self) -> float:
        return self.weights + self.gradients + self.optimizer + self.activations + self.logits + self.working


def rank_layers(job: TrainingJob) -> list[list[Layer]]:
    """The layers of each pipeline rank. Interleaved ranks hold every pp-th chunk of the stack; by count the same."""
    stack = [job.architecture.layers[i] for i in job.architecture.stack]
    counts, pp, vp = stage_layers(job), job.split.pp, job.split.vp
    if vp > 1 and job.split.pipeline == "interleaved" and len(stack) % (pp * vp) == 0:
        size = len(stack) // (pp * vp)
        return [
            [layer for v in range(vp) for layer in stack[(v * pp + r) * size : (v * pp + r + 1) * size]]
            for r in range(pp)
        ]
    ranks, at = [], 0
    for count in counts:
        ranks.append(stack[at : at + count])
        at += count
    return ranks


@dataclass(frozen=True, slots=True)
class RankParameters:
    """Parameters on one chip of one rank (before any data-parallel sharding)."""

    dense: float
    expert: float
    embedding: float
    largest_layer: float

    @property
    def total(self) -> float:
        return self.dense + self.expert + self.embedding


def rank_parameters(job: TrainingJob) -> list[RankParameters]:
    """Parameters a chip of each rank holds: layers, experts, embedding on the first rank and head on the last."""
    arch, split = job.architecture, job.split
    matrix = shapes.embedding_parameters(arch) / split.tp
    out = []
    for rank, layers in enumerate(rank_layers(job)):
        dense = expert = largest = 0.0
        for layer in layers:
            p = shapes.layer_parameters(layer, arch.hidden)
            here = p.tp_cut / split.tp + p.replicated
            there = p.expert / (split.ep * split.etp)
            dense, expert, largest = dense + here, expert + there, max(largest, here + there)
        dense, expert = dense / job.parameter_sharing, expert / job.parameter_sharing
        ends = (rank == 0) + (rank == split.pp - 1)
        if arch.tied_embeddings and split.pp == 1:
            ends = 1
        out.append(RankParameters(dense, expert, ends * matrix, max(largest, ends * matrix if job.zero == 3 else 0.0)))
    return out


def gradient_bytes(job: TrainingJob) -> float:
    """Bytes of one accumulated gradient: Megatron and DeepSpeed accumulate in FP32 unless told, FSDP (pure BF16) in BF16."""
    return 2.0 if (job.gradient_dtype or ("bf16" if job.framework == "fsdp" else "fp32")) == "bf16" else 4.0


def activation_bytes(job: TrainingJob, layer: Layer, recompute: str) -> float:
    """Bytes that one micro-batch leaves on one chip in one layer."""
    split = job.split
    tokens = job.micro_batch * job.seq_len / split.cp
    sp = split.tp if split.sequence_parallel else 1
    e = shapes.saved_elements(layer, job.architecture.hidden)
    if recompute == "full":
        return 2.0 * tokens * e.input / sp
    gemm = 1.0 if job.precision in ("fp8", "mxfp8", "nvfp4", "int8") else 2.0
    # dispatched copies spread over the expert group: the mean chip gets its own tokens' share, the hottest skew times it
    expert_share = job.expert_skew / split.tp
    values = (e.split_gemm * gemm + e.split_other * 2.0) / split.tp + (e.whole_gemm * gemm + e.whole_other * 2.0) / sp
    values += (e.expert_gemm * gemm + e.expert_other * 2.0) * expert_share
    if recompute == "selective":
        cut = split.tp
        values = max(values - 2.0 * (e.core / cut) - (e.whole_gemm * gemm) / sp, 2.0 * e.input / sp)
    return tokens * values


def _rank_activations(job: TrainingJob, layers: list[Layer]) -> tuple[float, float]:
    """(bytes kept by one micro-batch on a rank, bytes alive while one recomputed layer runs)."""
    full = len(layers) if job.recompute == "full" and not job.recompute_layers else job.recompute_layers
    full = min(full, len(layers)) if job.recompute == "full" else 0
    kept = alive = 0.0
    for index, layer in enumerate(layers):
        mode = ("full" if index < full else "none") if job.recompute == "full" else job.recompute
        kept += activation_bytes(job, layer, mode)
        if mode != "none":
            alive = max(alive, activation_bytes(job, layer, "none"))
    return kept, alive


def offloaded_share(job: TrainingJob, layers: list[Layer]) -> float:
    """Share of a rank's layers whose activations go to the host."""
    return min(job.offload_layers, len(layers)) / len(layers) if job.offload_layers and layers else 1.0


def logits_bytes(job: TrainingJob) -> float:
    """Logits and their gradient of one micro-batch: BF16 twice (the fused cross-entropy writes the gradient in place of
    an FP32 copy); Megatron keeps the FP32 logits of its vocabulary-parallel loss."""
    tokens = job.micro_batch * job.seq_len / job.split.cp
    each = 4.0 if job.framework == "fsdp" else 6.0
    return tokens * job.architecture.vocab / job.split.tp * each


def rank_memory(job: TrainingJob, rank: int, layers: list[Layer], p: RankParameters) -> RankMemory:
    """Bytes on one chip of rank ``rank``."""
    split = job.split
    shards = job.shards
    expert_shards = max(1, min(shards, split.expert_dp)) if job.zero else 1
    dense, expert = p.dense + p.embedding, p.expert
    sharded = dense / shards + expert / expert_shards
    trained = 1.0
    if job.task == "lora":
        trained = lora_parameters(job, layers) / max(p.total, 1.0)
    weight_each = 2.0
    weights = weight_each * (sharded if job.zero == 3 else dense + expert)
    if job.zero == 3:
        weights += weight_each * 2.0 * p.largest_layer  # two layers gathered at a time
    if job.framework == "fsdp" and job.zero == 3:
        weights -= weight_each * sharded  # the FP32 master is the only copy
    host = 0.0
    grads = gradient_bytes(job) * trained * (sharded if job.zero >= 2 else dense + expert)
    if job.offload_optimizer and job.zero >= 2:
        # they leave for the host layer by layer as they are made (ZeRO-Offload), and stay there only to be accumulated
        host, grads = grads if job.micro_batches > 1 else 0.0, gradient_bytes(job) * trained * p.largest_layer
    elif job.zero >= 2:
        grads += gradient_bytes(job) * trained * p.largest_layer
    optimizer = OPTIMIZER_BYTES[job.optimizer] * trained * sharded
    kept, alive = _rank_activations(job, layers)
    copies = schedule.in_flight(split.pipeline, split.pp, split.vp, rank, job.micro_batches)
    activations = kept * copies * (1 + FRAGMENTATION) + alive
    if job.offload_optimizer:
        host, optimizer = host + optimizer, 0.0
    if job.offload_weights:
        # two layers stay on the chip while the rest waits on the host
        stay = min(weights, 2.0 * weight_each * p.largest_layer)
        host, weights = host + weights - stay, stay
    if job.offload_activations:
        # two layers' stay: one computes while the next comes or goes
        away = offloaded_share(job, layers) * (activations - alive)
        stay = 2.0 * max((activation_bytes(job, layer, job.recompute) for layer in layers), default=0.0)
        away = max(away - stay, 0.0)
        host, activations = host + away, activations - away
    logits = logits_bytes(job) if rank == split.pp - 1 else 0.0
    if job.task == "distill" and job.teacher is not None and rank == split.pp - 1:
        logits *= 2.0
    if job.task == "distill" and job.teacher is not None:
        weights += 2.0 * job.teacher.parameters / split.pp / split.tp / (shards if job.zero == 3 else 1)
    return RankMemory(rank, weights, grads, optimizer, activations, logits, CONTEXT_BYTES, host)


def lora_parameters(job: TrainingJob, layers: list[Layer]) -> float:
    """Adapter parameters on one chip: rank x (in + out) on the products of attention and feed-forward."""
    hidden = job.architecture.hidden
    total = 0.0
    for layer in layers:
        p = shapes.layer_parameters(layer, hidden)
        # a square product of width w has w^2 parameters and 2 r w of adapter
        total += 2.0 * job.lora_rank * (p.tp_cut + p.expert / max(layer.feed_forward.experts, 1)) / hidden
    return total / job.split.tp


def memory(job: TrainingJob) -> tuple[RankMemory, ...]:
    """Bytes on a chip of every pipeline rank."""
    layers = rank_layers(job)
    return tuple(rank_memory(job, rank, layers[rank], p) for rank, p in enumerate(rank_parameters(job)))


def peak(job: TrainingJob) -> RankMemory:
    """The fullest rank."""
    return max(memory(job), key=lambda rank: rank.total)
