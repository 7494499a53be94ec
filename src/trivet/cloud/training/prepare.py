"""The part of a step that no calibrated constant touches: operators, their ideal times, transfers and memory."""

from __future__ import annotations

from dataclasses import dataclass, replace

from trivet.chip.point import ChipPoint
from trivet.cloud.training import kernels, memory, network, workload
from trivet.cloud.training.job import TrainingJob
from trivet.cloud.training.kernels import Ideal
from trivet.cloud.training.memory import RankMemory, RankParameters
from trivet.cloud.training.network import Fabric, Network
from trivet.errors import Unsupported
from trivet.model.architecture import Layer
from trivet.operators import Transfer

Comm = dict[str, float]  # seconds by axis, nothing hidden


@dataclass(frozen=True, slots=True)
class LayerPart:
    """One kind of layer, one micro-batch, one chip."""

    forward: tuple[Ideal, ...]
    inputs: tuple[Ideal, ...]
    weights: tuple[Ideal, ...]
    core: tuple[Ideal, ...]
    forward_comm: Comm
    backward_comm: Comm
    mixer: str = "none"  # kinds of the layer, for the host's time
    feed_forward: str = "none"


@dataclass(frozen=True, slots=True)
class RankPart:
    """One pipeline rank: how many of each kind of layer, what the ends add, and its traffic, seconds unless named."""

    layers: tuple[tuple[int, int], ...]  # (kind of layer, how many)
    recomputed: tuple[tuple[int, int], ...]
    ends: tuple[LayerPart, ...]
    gather_s: float  # ZeRO-3 traffic of one micro-batch
    offload_s: float  # host traffic of one micro-batch
    exchange_s: float  # gradients and weights, once a step
    update_bytes: float  # optimiser traffic, once a step
    update_host_s: float  # the same where the optimiser is offloaded


@dataclass(frozen=True, slots=True)
class Prepared:
    """Everything a step needs but the constants."""

    job: TrainingJob
    point: ChipPoint
    layers: tuple[LayerPart, ...]
    ranks: tuple[RankPart, ...]
    send_s: float  # one boundary, one direction
    memory: tuple[RankMemory, ...]
    flops_per_token: float
    host: str = ""  # CPU of the server
    host_bytes: float = 0.0  # of host memory, a chip; 0 = unknown


def _comm(transfers: tuple[Transfer, ...], fabric: Fabric) -> Comm:
    found: Comm = {}
    for t in transfers:
        found[t.axis] = found.get(t.axis, 0.0) + fabric.transfer(t)
    return found


def _expert_comm(job: TrainingJob, layer: Layer, comm: Comm, fabric: Fabric) -> Comm:
    """The experts' exchange as training frameworks route it, dispatch and combine, in BF16."""
    if "ep" not in comm:
        return comm
    ffn, split = layer.feed_forward, job.split
    rows = job.micro_batch * job.seq_len / split.cp / split.tp
    width = float(ffn.latent or job.architecture.hidden)
    there = fabric.exchange((1.0 if job.dispatch_dtype == "fp8" else 2.0) * width, rows, ffn.top_k)
    back = fabric.exchange(2.0 * width, rows, ffn.top_k)
    return {**comm, "ep": (there + back) * job.expert_skew}


def layer_part(job: TrainingJob, work: workload.LayerWork, fabric: Fabric, layer: Layer | None = None) -> LayerPart:
    chip = job.chip
    return LayerPart(
        kernels.ideal(work.forward, chip),
        kernels.ideal(work.inputs, chip),
        kernels.ideal(work.weights, chip),
        kernels.ideal(work.core, chip),
        _comm(work.forward_transfers, fabric),
        _comm(work.backward_transfers, fabric),
        "none" if layer is None else layer.mixer.kind,
        "none" if layer is None else layer.feed_forward.kind,
    )


def _gather_s(job: TrainingJob, p: RankParameters, fabric: Fabric) -> float:
    """ZeRO-3 / FSDP: weights gathered for the forward and the backward pass, gradients scattered, every micro-batch."""
    if job.zero != 3:
        return 0.0
    total, group = 0.0, job.shards
    for params, ways, axis in (
        (p.dense + p.embedding, group, "dp_cp"),
        (p.expert, min(group, job.split.expert_dp), "expert_dp"),
    ):
        total += 2.0 * fabric.seconds("all_gather", 2.0 * params, ways, axis)
        total += fabric.seconds("reduce_scatter", 2.0 * params, ways, axis) if job.task != "lora" else 0.0
    return total


def _exchange_s(job: TrainingJob, p: RankParameters, trained: float, fabric: Fabric) -> float:
    """Gradients reduced and updated weights gathered over the replicas, once a step, BF16."""
    split, total = job.split, 0.0
    for params, ways, axis in (
        (p.dense + p.embedding, split.dp * split.cp, "dp_cp"),
        (p.expert, split.expert_dp, "expert_dp"),
    ):
        size = 2.0 * params * trained
        if job.zero == 3:
            inner = min(job.shards, ways)
            total += fabric.seconds("all_reduce", size / inner, ways // inner, axis, apart=inner)
        elif job.zero and not job.shard_group:
            total += fabric.seconds("reduce_scatter", size, ways, axis) + fabric.seconds("all_gather", size, ways, axis)
        else:
            total += fabric.seconds("all_reduce", size, ways, axis)
    return total


def _host_link(job: TrainingJob) -> float:
    link = job.chip.get("host_bandwidth_bytes_per_s")
    if not link:
        raise Unsupported(f"offload needs the host bandwidth of {job.chip.name}, which is not known", field="offload")
    return link


def _offload_s(job: TrainingJob, layers: list[Layer], p: RankParameters) -> float:
    """Weights (forward and backward) and activations (out and back) that cross the host link in one micro-batch."""
    moved = 0.0
    if job.offload_weights:
        moved += 4.0 * (p.dense + p.expert) / (job.shards if job.zero == 3 else 1)
    if job.offload_activations:
        kept = sum(memory.activation_bytes(job, layer, job.recompute) for layer in layers)
        moved += 2.0 * memory.offloaded_share(job, layers) * kept
    return moved / _host_link(job) if moved else 0.0


# Host-side update: what a chip's share of the host's memory and of the server's NVMe drives moves.
HOST_MEMORY_BYTES_PER_S = 20e9
NVME_BYTES_PER_S = 3e9


def _update(job: TrainingJob, own: float) -> tuple[float, float]:
    """(optimiser bytes on the chip, seconds on the host) of one step for ``own`` parameters.

    30 bytes a parameter: FP32 weight and two moments read and written, gradient read, BF16 weight written. Offloaded:
    gradient out and weight back over the host link, update in host memory, on NVMe also 24 bytes of states.
    """
    if not job.offload_optimizer:
        return 30.0 * own, 0.0
    nvme = 24.0 * own / NVME_BYTES_PER_S if job.offload_optimizer == "nvme" else 0.0
    return 0.0, 6.0 * own / _host_link(job) + 30.0 * own / HOST_MEMORY_BYTES_PER_S + nvme


def prepare(job: TrainingJob, net: Network | None = None) -> Prepared:
    """Operators, ideal times, transfers and memory of a job; see ``step.train_step`` for the arguments."""
    net = net or network.of(job)
    fabric = Fabric(job, net)
    by_rank, params = memory.rank_layers(job), memory.rank_parameters(job)
    kinds = list(dict.fromkeys(layer for layers in by_rank for layer in layers))
    parts = tuple(_expert_part(job, k, fabric) for k in kinds)
    first = layer_part(job, workload.embedding_work(job), fabric)
    last = layer_part(job, workload.head_work(job), fabric)
    gathers: dict[RankParameters, tuple[float, float]] = {}
    ranks = []
    for r, layers in enumerate(by_rank):
        p = params[r]
        adapters = memory.lora_parameters(job, layers) if job.task == "lora" else 0.0
        trained = adapters / p.total if job.task == "lora" else 1.0
        if p not in gathers:
            gathers[p] = (_gather_s(job, p, fabric), _exchange_s(job, p, trained, fabric))
        expert_shards = max(1, min(job.shards, job.split.expert_dp))
        own = (
            adapters / job.shards
            if job.task == "lora"
            else (p.dense + p.embedding) / job.shards + p.expert / expert_shards
        )
        redo = 0 if job.recompute != "full" else min(job.recompute_layers or len(layers), len(layers))
        ranks.append(
            RankPart(
                _count(layers, kinds),
                _count(layers[:redo], kinds),
                ((first,) if r == 0 else ()) + ((last,) if r == job.split.pp - 1 else ()),
                gathers[p][0],
                _offload_s(job, layers, p),
                gathers[p][1],
                *_update(job, own),
            )
        )
    tokens = job.micro_batch * job.seq_len / job.split.cp / (job.split.tp if job.split.sequence_parallel else 1)
    send = fabric.send(2.0 * tokens * job.architecture.hidden) if job.split.pp > 1 else 0.0
    return Prepared(
        job,
        kernels.point(job.chip, "bf16"),
        parts,
        tuple(ranks),
        send,
        memory.memory(job),
        workload.model_flops_per_token(job.architecture, job.seq_len, job.task, job.document_tokens),
        net.server.host,
        (net.server.get("host_memory_bytes") or 0.0) / net.server.chips,
    )


def _expert_part(job: TrainingJob, layer: Layer, fabric: Fabric) -> LayerPart:
    part = layer_part(job, workload.layer_work(job, layer), fabric, layer)
    if part.feed_forward != "moe":
        return part
    return replace(
        part,
        forward_comm=_expert_comm(job, layer, part.forward_comm, fabric),
        backward_comm=_expert_comm(job, layer, part.backward_comm, fabric),
    )


def _count(layers: list[Layer], kinds: list[Layer]) -> tuple[tuple[int, int], ...]:
    return tuple((k, n) for k, kind in enumerate(kinds) if (n := sum(layer == kind for layer in layers)))
