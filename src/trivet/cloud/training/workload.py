"""What one chip does for one micro-batch: forward operators from the model, backward as a pure function of them.

A product ``Y = X W`` costs one product more for ``dX = dY W^T`` and one for ``dW = X^T dY``; attention's backward redoes
the scores and makes four more products (5 against 2: Dao, FlashAttention-2, arXiv 2307.08691); a pass over memory reads
its input and the gradient and writes one. Collectives turn into their adjoints: an all-gather into a reduce-scatter.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np

from trivet.cloud.training.job import TrainingJob
from trivet.errors import Unsupported
from trivet.model import layers as model_layers
from trivet.model.architecture import Architecture, FeedForward, Layer, Mixer
from trivet.model.parallel import Batch, Layout
from trivet.operators import Attention, Compute, Gemm, GroupedGemm, Operator, Scan, Stream, Transfer

_ENDS = {"embedding", "embedding_all_reduce", "final_norm", "lm_head", "logits_all_gather", "sample", "stage_send"}
_SERVING_ONLY = {"kv_write", "index_write"}
GEMM_DTYPE = {
    "bf16": "bf16",
    "fp16": "fp16",
    "fp32": "fp32",
    "fp8": "fp8",
    "mxfp8": "mxfp8",
    "nvfp4": "nvfp4",
    "int8": "int8",
}
QUANTISED = ("fp8", "mxfp8", "nvfp4", "int8")
ADJOINT = {"all_gather": "reduce_scatter", "reduce_scatter": "all_gather"}


@dataclass(frozen=True, slots=True)
class LayerWork:
    """Operators of one layer and micro-batch on one chip, by pass.

    ``core`` is the part of ``forward`` that selective recompute runs again. Transfers stand in their own tuples.
    """

    forward: tuple[Compute, ...]
    inputs: tuple[Compute, ...]  # backward for the inputs
    weights: tuple[Compute, ...]  # backward for the weights
    core: tuple[Compute, ...]
    forward_transfers: tuple[Transfer, ...]
    backward_transfers: tuple[Transfer, ...]


_NO_MIXER = Mixer("none")
_NO_FFN = FeedForward("none")


def _strip(operators: Iterable[Operator]) -> list[Operator]:
    return [o for o in operators if o.name not in _ENDS and o.name not in _SERVING_ONLY]


def _single(architecture: Architecture, mixer: Mixer, ffn: FeedForward) -> Architecture:
    return replace(architecture, layers=(Layer(mixer, ffn, 1),), order=(), tied_embeddings=True)


def _batch(job: TrainingJob, sequences: float, tokens: float) -> Batch:
    return Batch(prefill_sequences=float(sequences), prefill_tokens=float(tokens), logits=float(sequences * tokens))


def forward_operators(job: TrainingJob, layer: Layer) -> list[Operator]:
    """Forward operators of one layer: the mixer (and a dense feed-forward) cut by tp and cp, experts over their group."""
    split, arch = job.split, job.architecture
    dtype = GEMM_DTYPE[job.precision]
    document = min(job.document_tokens or job.seq_len, job.seq_len)
    sequences = job.micro_batch * job.seq_len / document
    layout = Layout(tp=split.tp, cp=split.cp, sequence_parallel=split.sequence_parallel and job.tp_comm == "rs_ag")
    ffn = layer.feed_forward
    dense = ffn if ffn.kind == "dense" else _NO_FFN
    kinds = {"weight_dtype": dtype, "moe_dtype": dtype, "kv_dtype": "bf16"}
    found: list[Operator] = []
    if layer.mixer.kind != "none" or dense.kind != "none":
        found += _strip(
            model_layers.operators(_single(arch, layer.mixer, dense), _batch(job, sequences, document), layout, **kinds)
        )
    if ffn.kind == "moe":
        found += _expert_operators(job, ffn, kinds)
    return [_context(job, layer.mixer, o) for o in found]


def _expert_operators(job: TrainingJob, ffn: FeedForward, kinds: dict[str, str]) -> list[Operator]:
    """Router, dispatch, experts and combine on a chip's own share of the tokens (sequence parallel over tp)."""
    split = job.split
    own = job.micro_batch * job.seq_len / split.cp / split.tp
    group = split.ep * split.etp
    layout = Layout(attention_dp=group, moe_ep=split.ep, moe_tp=split.etp, expert_skew=job.expert_skew)
    found = _strip(
        model_layers.operators(_single(job.architecture, _NO_MIXER, ffn), _batch(job, 1.0, own), layout, **kinds)
    )
    copies = own * ffn.top_k
    width = ffn.latent or job.architecture.hidden
    found += [
        # sorted by destination, then by expert, and back: each a read and a write of every copy
        Stream("permute", 8.0 * copies * width),
        Stream("expert_activation", copies * ffn.expert_intermediate / split.etp * (6.0 if ffn.gated else 4.0)),
        # scores, their top-k, the map and the balancing loss in FP32
        Stream("routing", 40.0 * own * ffn.experts),
    ]
    if split.tp > 1:  # tokens come to the experts' block scattered over tp, but the residual stream is whole in between
        size = 2.0 * own * split.tp * job.architecture.hidden
        found += [Transfer("moe_sp_gather", "all_gather", size, split.tp, "tp")] if ffn.shared_intermediate else []
    return found


def _context(job: TrainingJob, mixer: Mixer, operator: Operator) -> Operator:
    """Name the transfers of context parallelism by how the framework does it (ring, all-gather, Ulysses)."""
    if not isinstance(operator, Transfer) or operator.axis != "cp" or operator.kind != "all_gather":
        return operator
    if job.split.cp_kind == "ulysses":
        # Q, K, V and the output swap heads for tokens: four all-to-alls of a chip's own part
        tokens = job.micro_batch * job.seq_len / job.split.cp
        width = (2 * mixer.heads + 2 * mixer.kv_heads) * (mixer.head_dim or mixer.v_head_dim) / job.split.tp
        return replace(operator, name="ulysses", kind="all_to_all", bytes=2.0 * tokens * width)
    return replace(operator, name="cp_ring") if job.split.cp_kind == "ring" else operator


def backward_inputs(operator: Compute) -> Compute:
    """The pass that turns the output's gradient into the input's."""
    if isinstance(operator, Gemm):
        return replace(operator, name=operator.name + ".dx", n=operator.k, k=operator.n)
    if isinstance(operator, GroupedGemm):
        return replace(operator, name=operator.name + ".dx")
    if isinstance(operator, Attention):
        return replace(operator, name=operator.name + ".backward", count=operator.count)
    if isinstance(operator, Scan):
        return replace(operator, name=operator.name + ".backward")
    if isinstance(operator, Stream):
        return replace(operator, name=operator.name + ".backward", bytes=1.5 * np.asarray(operator.bytes, float))
    raise Unsupported(f"no backward pass for {type(operator).__name__}", field="operator")


def backward_weights(operator: Compute) -> Compute | None:
    """The pass that makes the weights' gradient, or None where there are no weights."""
    if isinstance(operator, Gemm):
        return replace(operator, name=operator.name + ".dw", m=operator.k, k=operator.m)
    if isinstance(operator, GroupedGemm):
        return replace(operator, name=operator.name + ".dw")
    return None


def quantise_streams(operators: Iterable[Compute], passes: float) -> list[Compute]:
    """What low precision adds: each product's operand is read in BF16 and written twice (by rows and by columns)."""
    found: list[Compute] = []
    for o in operators:
        if isinstance(o, Gemm) and o.dtype in QUANTISED:
            found.append(
                Stream(o.name + ".cast", np.asarray(o.m, float) * o.k * 4.0 * passes, dtype=o.dtype, count=o.count)
            )
        elif isinstance(o, GroupedGemm) and o.dtype in QUANTISED:
            width = np.asarray(o.hidden, float) + o.intermediate
            found.append(Stream(o.name + ".cast", o.local_rows * width * 4.0 * passes, dtype=o.dtype, count=o.count))
    return found


def _selective(operators: Iterable[Compute]) -> list[Compute]:
    """What selective recompute redoes: norms, activation functions, and latent attention's up-projections."""
    kept = ("permute", "routing", "route", "expert_sum")
    return [o for o in operators if (isinstance(o, Stream) and o.name not in kept) or o.name in ("q_b", "kv_b")]


def layer_work(job: TrainingJob, layer: Layer) -> LayerWork:
    """Operators of one layer and micro-batch on one chip."""
    everything = forward_operators(job, layer)
    compute = [o for o in everything if not isinstance(o, Transfer)]
    transfers = [o for o in everything if isinstance(o, Transfer)]
    inputs: list[Compute] = [backward_inputs(o) for o in compute]
    weights = [w for o in compute if (w := backward_weights(o)) is not None]
    forward = compute + quantise_streams(compute, 1.0)
    inputs += quantise_streams(compute, 1.0)
    if job.task == "lora":
        forward += _adapters(job, compute)
        weights = [w for o in _adapters(job, compute) if (w := backward_weights(o)) is not None]
        inputs += [backward_inputs(o) for o in _adapters(job, compute)]
    back = [
        replace(t, kind=ADJOINT.get(t.kind, t.kind), count=t.count * (2.0 if t.name == "cp_ring" else 1.0))
        for t in transfers
    ]
    if job.split.sequence_parallel and job.tp_comm == "rs_ag" and job.split.tp > 1 and job.task != "lora":
        # the gathered input was not kept: gather it again for dW
        back += [replace(t, name=t.name + ".again") for t in transfers if t.kind == "all_gather" and t.axis == "tp"]
    return LayerWork(
        tuple(forward),
        tuple(inputs),
        tuple(weights),
        tuple(_selective(compute)),
        tuple(transfers),
        tuple(back),
    )


def _adapters(job: TrainingJob, compute: Iterable[Compute]) -> list[Compute]:
    """LoRA's two thin products beside each product with weights."""
    found: list[Compute] = []
    for o in compute:
        if isinstance(o, Gemm) and o.name != "router":
            found.append(replace(o, name=o.name + ".lora_a", n=float(job.lora_rank), dtype="bf16"))
            found.append(replace(o, name=o.name + ".lora_b", k=float(job.lora_rank), dtype="bf16"))
    return found


def head_work(job: TrainingJob) -> LayerWork:
    """Final norm, head and loss over every token; BF16 whatever the precision."""
    rows = job.micro_batch * job.seq_len / job.split.cp
    arch, tp = job.architecture, job.split.tp
    head = Gemm("lm_head", rows, arch.vocab / tp, arch.hidden, "bf16" if job.precision != "fp16" else "fp16")
    norm = Stream("final_norm", 8.0 * rows / tp * arch.hidden)
    # BF16 logits read for the maximum and the sum, the gradient written in place
    loss = Stream("loss", 8.0 * rows * arch.vocab / tp)
    moves = [Transfer("loss_all_reduce", "all_reduce", 12.0 * rows, tp, "tp")] if tp > 1 else []
    weights = () if job.task == "lora" else (backward_weights(head),)
    return LayerWork(
        (norm, head, loss),
        (backward_inputs(head), backward_inputs(norm)),
        tuple(w for w in weights if w is not None),
        (),
        tuple(moves),
        (),
    )


def embedding_work(job: TrainingJob) -> LayerWork:
    """The look-up, and the scatter of its gradient."""
    rows = job.micro_batch * job.seq_len / job.split.cp
    look = Stream("embedding", 4.0 * rows * job.architecture.hidden)
    moves = []
    if job.split.tp > 1:
        kind = "reduce_scatter" if job.split.sequence_parallel else "all_reduce"
        moves = [Transfer("embedding_reduce", kind, 2.0 * rows * job.architecture.hidden, job.split.tp, "tp")]
    return LayerWork(
        (look,),
        (),
        (replace(look, name="embedding.dw", bytes=8.0 * rows * job.architecture.hidden),),
        (),
        tuple(moves),
        (),
    )


def model_flops_per_token(
    architecture: Architecture, seq_len: int, task: str = "pretrain", document_tokens: int = 0
) -> float:
    """Model FLOPs of one trained token: 2 a multiply-add forward, twice that backward; causal attention counted half;
    no recompute. LoRA has no weight gradients of the frozen model (4/6)."""
    document = float(min(document_tokens or seq_len, seq_len))
    total = 2.0 * architecture.vocab * architecture.hidden
    for layer in architecture.layers:
        for o in model_layers.operators(
            _single(architecture, layer.mixer, layer.feed_forward),
            Batch(prefill_sequences=1.0, prefill_tokens=document, logits=document),
            Layout(),
        ):
            if o.name not in _ENDS and not isinstance(o, Transfer) and not isinstance(o, Stream):
                total += layer.count * float(o.flops) * o.count / document
    return total * (2.0 if task == "lora" else 3.0)
