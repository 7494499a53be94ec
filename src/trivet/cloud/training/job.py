"""A training job: which model, on which chips, split how, by which framework."""

from __future__ import annotations

from dataclasses import dataclass, replace

from trivet.chip.spec import Chip
from trivet.errors import DoesNotFit, TrivetError
from trivet.model.architecture import Architecture

PRECISIONS = ("bf16", "fp16", "fp8", "mxfp8", "nvfp4", "int8", "fp32")
FRAMEWORKS = ("megatron", "fsdp", "deepspeed")
SCHEDULES = ("1f1b", "interleaved", "zero_bubble", "dualpipe", "gpipe")
CP_KINDS = ("ring", "all_gather", "ulysses")
TASKS = ("pretrain", "sft", "lora", "distill")
RECOMPUTE = ("none", "selective", "full")
# Bytes a parameter that an optimiser keeps beside the weights: FP32 copy and moments.
OPTIMIZER_BYTES = {"adam": 12.0, "adam_bf16": 8.0, "adafactor": 0.1}
OFFLOADS = ("", "cpu", "nvme")
TP_COMM = ("rs_ag", "all_reduce")


@dataclass(frozen=True, slots=True)
class Split:
    """How the model and the batch lie over the chips: ``chips = tp * cp * pp * dp``.

    ``ep`` experts' groups and their own tensor parallelism ``etp`` reuse the chips of ``tp * cp * dp``. ``vp`` virtual
    stages a chip. ``stage_layers`` gives uneven stages (layers of each of the ``pp`` ranks); empty = as even as can be.
    """

    tp: int = 1
    pp: int = 1
    cp: int = 1
    dp: int = 1
    ep: int = 1
    etp: int = 1
    vp: int = 1
    sequence_parallel: bool = True
    cp_kind: str = "ring"
    schedule: str = ""  # "" = 1f1b, or interleaved where vp > 1
    stage_layers: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        for name in ("tp", "pp", "cp", "dp", "ep", "etp", "vp"):
            value = getattr(self, name)
            if value < 1 or value != int(value):
                raise DoesNotFit(f"{value} is not a positive whole number", field=name)
        if self.cp_kind not in CP_KINDS:
            raise TrivetError(f"unknown kind {self.cp_kind!r}", field="cp_kind", allowed=CP_KINDS)
        if self.schedule and self.schedule not in SCHEDULES:
            raise TrivetError(f"unknown schedule {self.schedule!r}", field="schedule", allowed=SCHEDULES)
        if (self.tp * self.cp * self.dp) % (self.ep * self.etp):
            raise DoesNotFit(
                f"ep {self.ep} x etp {self.etp} does not divide the {self.tp * self.cp * self.dp} chips of tp x cp x dp",
                field="ep",
            )
        if self.stage_layers and len(self.stage_layers) != self.pp:
            raise DoesNotFit(f"{len(self.stage_layers)} stages given for pp {self.pp}", field="stage_layers")
        if self.vp > 1 and self.pp == 1:
            raise DoesNotFit("virtual stages need pp > 1", field="vp")

    @property
    def chips(self) -> int:
        return self.tp * self.cp * self.pp * self.dp

    @property
    def expert_dp(self) -> int:
        """Replicas of one expert's weights."""
        return self.tp * self.cp * self.dp // (self.ep * self.etp)

    @property
    def pipeline(self) -> str:
        return self.schedule or ("interleaved" if self.vp > 1 else "1f1b")


@dataclass(frozen=True, slots=True)
class Overlap:
    """Which communication the framework hides behind compute."""

    tp: bool = True
    dp: bool = True  # gradients behind the backward pass, parameters behind the forward pass
    pp: bool = True
    cp: bool = True
    ep: bool = False


@dataclass(frozen=True, slots=True)
class TrainingJob:
    """One training run's step, entirely described. ``global_batch`` and ``micro_batch`` count sequences."""

    architecture: Architecture
    chip: Chip
    split: Split
    seq_len: int
    global_batch: int
    micro_batch: int = 1
    precision: str = "bf16"
    recompute: str = "none"
    recompute_layers: int = 0  # with "full": layers a stage recomputed; 0 = all
    framework: str = "megatron"
    version: str = ""
    optimizer: str = "adam"  # adam; adam_bf16 (moments in BF16); adafactor (factored, no FP32 copy of the weights)
    gradient_dtype: str = ""  # of the accumulated gradients; "" = fp32 (Megatron, DeepSpeed) or bf16 (FSDP)
    zero: int = 1  # ZeRO stage: 0 replicated, 1 optimiser, 2 + gradients, 3 + weights (= FSDP full shard)
    shard_group: int = 0  # HSDP: chips over which weights are sharded; 0 = all of dp
    overlap: Overlap = Overlap()
    tp_comm: str = "rs_ag"
    task: str = "pretrain"
    lora_rank: int = 16
    teacher: Architecture | None = None
    document_tokens: int = 0  # mean length of the documents packed into a sequence; 0 = one
    parameter_sharing: int = 1  # layers that share one set of weights (M6's "pseudo" stage)
    offload_optimizer: str = ""
    offload_weights: str = ""
    offload_activations: str = ""
    offload_layers: int = 0  # of a rank, whose activations are offloaded; 0 = all
    expert_skew: float = 1.0
    dispatch_dtype: str = "bf16"  # in which tokens travel to the experts: bf16, fp8
    routed_domains: int = 0  # most scale-up domains that one token visits (group-limited routing); 0 = no limit
    server: str = ""
    fabric: str = ""
    node_network_bytes_per_s: float = 0.0  # per server and direction; 0 = the server's own
    straggler: float = 0.0  # extra time of the slowest chip, as a share of the step
    measured_on: str = ""  # when the software was current

    def __post_init__(self) -> None:
        for name, allowed in (
            ("precision", PRECISIONS),
            ("framework", FRAMEWORKS),
            ("task", TASKS),
            ("recompute", RECOMPUTE),
            ("tp_comm", TP_COMM),
            ("optimizer", tuple(OPTIMIZER_BYTES)),
            ("dispatch_dtype", ("bf16", "fp8")),
            ("gradient_dtype", ("", "bf16", "fp32")),
            ("offload_optimizer", OFFLOADS),
            ("offload_weights", OFFLOADS),
            ("offload_activations", OFFLOADS),
        ):
            if getattr(self, name) not in allowed:
                raise TrivetError(
                    f"unknown value {getattr(self, name)!r}", field=name, allowed=[repr(a) for a in allowed]
                )
        for name in ("seq_len", "global_batch", "micro_batch", "parameter_sharing", "lora_rank"):
            if getattr(self, name) < 1:
                raise TrivetError(f"{getattr(self, name)} is not positive", field=name)
        if self.zero not in (0, 1, 2, 3):
            raise TrivetError(f"unknown stage {self.zero}", field="zero", allowed="0, 1, 2, 3")
        if self.task == "distill" and self.teacher is None:
            raise TrivetError("distillation needs a teacher", field="teacher")
        if self.global_batch % (self.split.dp * self.micro_batch):
            raise DoesNotFit(
                f"{self.global_batch} sequences do not divide into dp {self.split.dp} x micro-batch {self.micro_batch}",
                field="global_batch",
            )
        layers = self.architecture.num_layers
        if self.split.pp * self.split.vp > layers + 2:  # the embedding and the head may count as layers
            raise DoesNotFit(f"{self.split.pp} x {self.split.vp} virtual stages for {layers} layers", field="pp")
        if self.split.stage_layers and sum(self.split.stage_layers) != layers:
            raise DoesNotFit(f"stages hold {sum(self.split.stage_layers)} of {layers} layers", field="stage_layers")
        if self.shard_group and (self.split.dp * self.split.cp) % self.shard_group:
            raise DoesNotFit(f"{self.shard_group} does not divide dp x cp", field="shard_group")

    @property
    def micro_batches(self) -> int:
        """Micro-batches of one data-parallel rank in one step (gradient accumulation)."""
        return self.global_batch // (self.split.dp * self.micro_batch)

    @property
    def tokens_per_step(self) -> int:
        return self.global_batch * self.seq_len

    @property
    def shards(self) -> int:
        """Chips over which optimiser state (and, by stage, gradients and weights) is sharded."""
        return (self.shard_group or self.split.dp * self.split.cp) if self.zero else 1

    def with_(self, **changes: object) -> TrainingJob:
        """A copy with fields changed (checked again)."""
        return replace(self, **changes)  # type: ignore[arg-type]  # any field's type


def stage_layers(job: TrainingJob) -> tuple[int, ...]:
    """Layers of each pipeline rank: as given; else as even as can be. Where the layers do not divide but layers + 2 do,
    embedding and head count as a layer each (as Megatron's recipes do); otherwise the middle ranks take the remainder."""
    split = job.split
    if split.stage_layers:
        return split.stage_layers
    layers = job.architecture.num_layers
    if split.pp > 1 and layers % split.pp and (layers + 2) % split.pp == 0:
        each = (layers + 2) // split.pp
        return (each - 1, *[each] * (split.pp - 2), each - 1)
    base, extra = divmod(layers, split.pp)
    counts = [base] * split.pp
    order = sorted(range(split.pp), key=lambda rank: abs(rank - (split.pp - 1) / 2))
    for rank in order[:extra]:
        counts[rank] += 1
    return tuple(counts)
