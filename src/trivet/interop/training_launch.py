"""How a planned training job is started: Megatron-LM and Megatron-Bridge arguments, torchrun, FSDP and DeepSpeed settings;
and its pipeline as a timeline for Perfetto.

Flag names: Megatron-LM ``megatron/training/arguments.py``; Megatron-Bridge's performance recipes; ``torchrun`` and
``accelerate`` FSDP configuration keys; DeepSpeed's JSON configuration.
"""

from __future__ import annotations

import json
import math
import shlex
from typing import Any

from trivet.cloud import fabric
from trivet.cloud.training import schedule
from trivet.cloud.training.job import TrainingJob, stage_layers
from trivet.cloud.training.step import StepResult
from trivet.errors import Unsupported
from trivet.model.architecture import Architecture

_RENDEZVOUS = "--rdzv-backend=c10d --rdzv-endpoint=$MASTER_ADDR:29500 --rdzv-id=$JOB_ID"


def servers(job: TrainingJob) -> tuple[int, int]:
    """(servers, processes a server) of a job."""
    each = min(fabric.server_of(job.chip, job.server).chips, job.split.chips)
    return math.ceil(job.split.chips / each), each


def torchrun(job: TrainingJob, script: str, arguments: list[str]) -> str:
    """One ``torchrun`` line, the same on every server; the rendezvous host is the first one."""
    nodes, each = servers(job)
    head = [
        "torchrun",
        f"--nnodes={nodes}",
        f"--nproc-per-node={each}",
        "--rdzv-backend=c10d",
        "--rdzv-endpoint=$MASTER_ADDR:29500",
        "--rdzv-id=$JOB_ID",
        script,
    ]
    return " ".join(head) + "".join(f" \\\n  {' '.join(part)}" for part in _pairs(arguments))


def _pairs(arguments: list[str]) -> list[list[str]]:
    found: list[list[str]] = []
    for a in arguments:
        if a.startswith("--"):
            found.append([a])
        else:
            found[-1].append(shlex.quote(a))
    return found


def megatron_arguments(job: TrainingJob, tokens: float = 0.0) -> list[str]:
    """Arguments of Megatron-LM's ``pretrain_gpt.py``.

    Raises:
        Unsupported: a schedule that Megatron-LM does not have.
    """
    split, arch = job.split, job.architecture
    if split.pipeline not in ("1f1b", "interleaved"):
        raise Unsupported(f"Megatron-LM has no {split.pipeline} schedule", field="schedule")
    found = [
        "--tensor-model-parallel-size",
        str(split.tp),
        "--pipeline-model-parallel-size",
        str(split.pp),
        "--context-parallel-size",
        str(split.cp),
        "--micro-batch-size",
        str(job.micro_batch),
        "--global-batch-size",
        str(job.global_batch),
        "--seq-length",
        str(job.seq_len),
        "--max-position-embeddings",
        str(max(job.seq_len, arch.max_context)),
    ]
    if tokens:
        found += ["--train-iters", str(math.ceil(tokens / job.tokens_per_step))]
    if split.vp > 1:
        found += _virtual(job)
    elif split.pp > 1 and arch.num_layers % split.pp:
        counts = stage_layers(job)
        found += [
            "--decoder-first-pipeline-num-layers",
            str(counts[0]),
            "--decoder-last-pipeline-num-layers",
            str(counts[-1]),
        ]
    if split.sequence_parallel and split.tp > 1:
        found += ["--sequence-parallel"]
    if split.cp > 1:
        found += ["--cp-comm-type", {"ring": "p2p", "all_gather": "allgather", "ulysses": "a2a"}[split.cp_kind]]
    found += _model(arch)
    found += _experts(job)
    found += {
        "bf16": ["--bf16"],
        "fp16": ["--fp16"],
        "fp8": ["--bf16", "--fp8-format", "hybrid", "--fp8-recipe", "tensorwise"],
        "mxfp8": ["--bf16", "--fp8-format", "e4m3", "--fp8-recipe", "mxfp8"],
        "nvfp4": ["--bf16", "--fp4-format", "e2m1", "--fp4-recipe", "nvfp4"],
    }.get(job.precision, [])
    found += _sharding(job)
    if split.tp > 1 and job.overlap.tp:
        found += ["--tp-comm-overlap"]
    found += _recompute(job)
    if job.offload_optimizer:
        found += ["--optimizer-cpu-offload"]
    return [*found, "--use-flash-attn"]


def _sharding(job: TrainingJob) -> list[str]:
    found: list[str] = []
    if job.zero == 3:
        found += ["--use-megatron-fsdp", "--data-parallel-sharding-strategy", "optim_grads_params"]
        if job.shard_group:
            instances = job.split.dp * job.split.cp // job.shard_group
            found += ["--num-distributed-optimizer-instances", str(instances)]
    elif job.zero == 2:
        found += ["--use-megatron-fsdp", "--data-parallel-sharding-strategy", "optim_grads"]
    elif job.zero == 1:
        found += ["--use-distributed-optimizer"]
    if job.zero and job.overlap.dp:
        found += ["--overlap-grad-reduce", "--overlap-param-gather"]
    return found


def _recompute(job: TrainingJob) -> list[str]:
    split, arch = job.split, job.architecture
    if job.recompute == "full":
        layers = job.recompute_layers or math.ceil(arch.num_layers / split.pp / split.vp)
        return ["--recompute-granularity", "full", "--recompute-method", "block", "--recompute-num-layers", str(layers)]
    if job.recompute == "selective":
        modules = ["layernorm", "moe_act" if arch.routed else "mlp"] + (
            ["mla_up_proj"] if any(x.mixer.kind == "mla" for x in arch.layers) else []
        )
        return ["--recompute-granularity", "selective", "--recompute-modules", *modules]
    return []


def _virtual(job: TrainingJob) -> list[str]:
    split, layers = job.split, job.architecture.num_layers
    stages = split.pp * split.vp
    if layers % stages == 0:
        return ["--num-virtual-stages-per-pipeline-rank", str(split.vp)]
    extra = []
    if (layers + 2) % stages == 0:
        extra = ["--account-for-embedding-in-pipeline-split", "--account-for-loss-in-pipeline-split"]
    return ["--num-virtual-stages-per-pipeline-rank", str(split.vp), *extra]


def _model(arch: Architecture) -> list[str]:
    """Shape arguments of a uniform decoder; a hybrid or latent-attention model is left to its recipe."""
    layer = max(arch.layers, key=lambda x: x.count)
    found = ["--num-layers", str(arch.num_layers), "--hidden-size", str(arch.hidden), "--vocab-size", str(arch.vocab)]
    mixer, ffn = layer.mixer, layer.feed_forward
    if mixer.kind == "attention":
        found += ["--num-attention-heads", str(mixer.heads), "--kv-channels", str(mixer.head_dim)]
        if mixer.kv_heads != mixer.heads:
            found += ["--group-query-attention", "--num-query-groups", str(mixer.kv_heads)]
        if mixer.qk_norm:
            found += ["--qk-layernorm"]
    elif mixer.kind == "mla":
        found += [
            "--multi-latent-attention",
            "--num-attention-heads",
            str(mixer.heads),
            "--kv-lora-rank",
            str(mixer.kv_lora_rank),
            "--qk-head-dim",
            str(mixer.nope_head_dim),
            "--qk-pos-emb-head-dim",
            str(mixer.rope_head_dim),
            "--v-head-dim",
            str(mixer.v_head_dim),
        ]
        if mixer.q_lora_rank:
            found += ["--q-lora-rank", str(mixer.q_lora_rank)]
    dense = next((x.feed_forward.intermediate for x in arch.layers if x.feed_forward.kind == "dense"), 0)
    if dense or ffn.intermediate:
        found += ["--ffn-hidden-size", str(dense or ffn.intermediate)]
    if ffn.gated:
        found += ["--swiglu"]
    if not arch.tied_embeddings:
        found += ["--untie-embeddings-and-output-weights"]
    return found


def _experts(job: TrainingJob) -> list[str]:
    ffn = next((x.feed_forward for x in job.architecture.layers if x.feed_forward.kind == "moe"), None)
    if ffn is None:
        return []
    found = [
        "--num-experts",
        str(ffn.experts),
        "--moe-router-topk",
        str(ffn.top_k),
        "--moe-ffn-hidden-size",
        str(ffn.expert_intermediate),
        "--expert-model-parallel-size",
        str(job.split.ep),
        "--expert-tensor-parallel-size",
        str(job.split.etp),
        "--moe-grouped-gemm",
        "--moe-token-dispatcher-type",
        "flex" if job.split.ep > 1 else "alltoall",
        "--moe-permute-fusion",
    ]
    if ffn.shared_intermediate:
        found += ["--moe-shared-expert-intermediate-size", str(ffn.shared_intermediate)]
    return found


def megatron_lm(job: TrainingJob, tokens: float = 0.0) -> str:
    """The whole line for Megatron-LM."""
    return torchrun(job, "pretrain_gpt.py", megatron_arguments(job, tokens))


def megatron_bridge(job: TrainingJob, tokens: float = 0.0) -> str:
    """Overrides of a Megatron-Bridge recipe (``ConfigContainer`` fields, Hydra style), in a torchrun line."""
    split = job.split
    values: dict[str, Any] = {
        "model.tensor_model_parallel_size": split.tp,
        "model.pipeline_model_parallel_size": split.pp,
        "model.context_parallel_size": split.cp,
        "model.expert_model_parallel_size": split.ep,
        "model.expert_tensor_parallel_size": split.etp,
        "model.sequence_parallel": split.sequence_parallel and split.tp > 1,
        "model.seq_length": job.seq_len,
        "train.micro_batch_size": job.micro_batch,
        "train.global_batch_size": job.global_batch,
        "ddp.use_distributed_optimizer": job.zero >= 1,
        "ddp.overlap_grad_reduce": job.overlap.dp,
        "ddp.overlap_param_gather": job.overlap.dp,
        "mixed_precision": {
            "bf16": "bf16_mixed",
            "fp16": "fp16_mixed",
            "fp8": "bf16_with_fp8_current_scaling_mixed",
            "mxfp8": "bf16_with_mxfp8_mixed",
            "nvfp4": "bf16_with_nvfp4_mixed",
        }.get(job.precision, "bf16_mixed"),
    }
    if split.vp > 1:
        values["model.virtual_pipeline_model_parallel_size"] = split.vp
    if tokens:
        values["train.train_iters"] = math.ceil(tokens / job.tokens_per_step)
    if job.recompute != "none":
        values["model.recompute_granularity"] = job.recompute
        if job.recompute == "full":
            values |= {
                "model.recompute_method": "block",
                "model.recompute_num_layers": job.recompute_layers or math.ceil(job.architecture.num_layers / split.pp),
            }
    if split.tp > 1 and job.overlap.tp:
        values["comm_overlap.tp_comm_overlap"] = True
    nodes, each = servers(job)
    head = f"torchrun --nnodes={nodes} --nproc-per-node={each} {_RENDEZVOUS} train.py"
    return head + "".join(f" \\\n  {key}={str(v).lower() if isinstance(v, bool) else v}" for key, v in values.items())


def fsdp_config(job: TrainingJob) -> dict[str, Any]:
    """The ``fsdp_config`` and job keys that Composer / llm-foundry and ``accelerate`` read."""
    strategy = {
        0: "NO_SHARD",
        1: "SHARD_GRAD_OP",
        2: "SHARD_GRAD_OP",
        3: "HYBRID_SHARD" if job.shard_group else "FULL_SHARD",
    }[job.zero]
    return {
        "device_train_microbatch_size": job.micro_batch,
        "global_train_batch_size": job.global_batch,
        "max_seq_len": job.seq_len,
        "precision": {"bf16": "amp_bf16", "fp8": "amp_fp8", "fp16": "amp_fp16"}.get(job.precision, "amp_bf16"),
        "fsdp_config": {
            "sharding_strategy": strategy,
            "mixed_precision": "PURE",
            "activation_checkpointing": job.recompute == "full",
            "activation_checkpointing_reentrant": False,
            "activation_cpu_offload": bool(job.offload_activations),
            "limit_all_gathers": True,
        },
    }


def deepspeed_config(job: TrainingJob) -> dict[str, Any]:
    """DeepSpeed's JSON configuration."""
    zero: dict[str, Any] = {"stage": job.zero, "overlap_comm": job.overlap.dp, "contiguous_gradients": True}
    for key, where in (("offload_optimizer", job.offload_optimizer), ("offload_param", job.offload_weights)):
        if where:
            zero[key] = {"device": where, "pin_memory": True}
    return {
        "train_batch_size": job.global_batch,
        "train_micro_batch_size_per_gpu": job.micro_batch,
        "gradient_accumulation_steps": job.micro_batches,
        "bf16": {"enabled": job.precision != "fp16"},
        "fp16": {"enabled": job.precision == "fp16"},
        "zero_optimization": zero,
    }


def launch(job: TrainingJob, tokens: float = 0.0) -> dict[str, Any]:
    """Every launch form that can express the job; a form that cannot says why."""
    found: dict[str, Any] = {}
    try:
        found["megatron_lm"], found["megatron_bridge"] = megatron_lm(job, tokens), megatron_bridge(job, tokens)
    except Unsupported as error:
        found["megatron_lm"] = f"# {error}"
    plain = job.split.tp * job.split.pp * job.split.cp * job.split.ep == 1
    if plain:
        found["fsdp"] = fsdp_config(job)
        found["torchrun"] = torchrun(job, "train.py", ["--config", "fsdp.yaml"])
        found["deepspeed"] = deepspeed_config(job)
    else:
        found["torchrun"] = torchrun(job, "pretrain_gpt.py", ["--yaml-cfg", "job.yaml"])
    return found


def perfetto(job: TrainingJob, result: StepResult, *, most_micro_batches: int = 64) -> dict[str, Any]:
    """The pipeline of one step in Chrome's trace format: a track a rank, a box a pass, microseconds.

    A step with more micro-batches is shown with a multiple of the ranks up to ``most_micro_batches`` and says so.
    """
    split = job.split
    count = job.micro_batches
    if count > most_micro_batches:
        count = max(split.pp, most_micro_batches // split.pp * split.pp)
    vp = split.vp if split.pipeline == "interleaved" and count % split.pp == 0 else 1
    kind = split.pipeline if split.pipeline != "dualpipe" and (split.pipeline != "interleaved" or vp > 1) else "1f1b"
    slots = schedule.timeline(
        kind,
        vp,
        count,
        [r.forward for r in result.ranks],
        [r.inputs for r in result.ranks],
        [r.weights for r in result.ranks],
    )
    names = {"F": "forward", "B": "backward", "W": "weights"}
    events: list[dict[str, Any]] = [
        {"name": "thread_name", "ph": "M", "pid": 0, "tid": rank, "args": {"name": f"pipeline rank {rank}"}}
        for rank in range(split.pp)
    ]
    events += [
        {
            "name": f"{names[s.kind]} {s.micro_batch}",
            "cat": names[s.kind],
            "ph": "X",
            "pid": 0,
            "tid": s.rank,
            "ts": round(s.start_s * 1e6, 3),
            "dur": round((s.end_s - s.start_s) * 1e6, 3),
            "args": {"micro_batch": s.micro_batch, "virtual_stage": s.chunk},
        }
        for s in slots
    ]
    end = schedule.span_s(slots)
    for name in ("dp_s", "optimizer_s", "other_s"):
        length = result.breakdown[name] if name != "dp_s" or job.zero != 3 else 0.0
        if length > 0:
            events += [
                {
                    "name": name[:-2],
                    "cat": name[:-2],
                    "ph": "X",
                    "pid": 0,
                    "tid": rank,
                    "ts": round(end * 1e6, 3),
                    "dur": round(length * 1e6, 3),
                }
                for rank in range(split.pp)
            ]
            end += length
    return {
        "traceEvents": events,
        "displayTimeUnit": "ms",
        "otherData": {"schedule": kind, "micro_batches_shown": count, "micro_batches": job.micro_batches},
    }


def timeline_text(job: TrainingJob, result: StepResult) -> str:
    return json.dumps(perfetto(job, result), separators=(",", ":"))
