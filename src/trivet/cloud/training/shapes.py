"""Parameters and saved activations of one layer of a training job, from the architecture's own numbers.

Activation counts follow Korthikanti et al. (arXiv 2205.05198) with a fused attention kernel (no ``s x s`` matrix is kept):
what each product needs again in the backward pass, plus the input of each norm and activation function.
"""

from __future__ import annotations

from dataclasses import dataclass

from trivet.model.architecture import Architecture, FeedForward, Layer, Mixer


@dataclass(frozen=True, slots=True)
class LayerParameters:
    """Parameters of one layer: cut by tp, by the experts' split, or held by every chip."""

    tp_cut: float
    expert: float
    replicated: float

    @property
    def total(self) -> float:
        return self.tp_cut + self.expert + self.replicated


def mixer_parameters(mixer: Mixer, hidden: int) -> tuple[float, float]:
    """(cut by tp, replicated) parameters of a token mixer."""
    if mixer.kind == "attention":
        v_dim = mixer.v_head_dim or mixer.head_dim
        width_q, width_o = mixer.heads * mixer.head_dim, mixer.heads * v_dim
        kv = 0 if mixer.shared_kv else mixer.kv_heads * (mixer.head_dim + v_dim)
        return float(hidden * (width_q * (2 if mixer.output_gate else 1) + kv + width_o)), 0.0
    if mixer.kind == "mla":
        qk = mixer.nope_head_dim + mixer.rope_head_dim
        up_q = (mixer.q_lora_rank or hidden) * mixer.heads * qk
        up_kv = mixer.kv_lora_rank * mixer.heads * (mixer.nope_head_dim + mixer.v_head_dim)
        down = hidden * (mixer.q_lora_rank + mixer.kv_lora_rank + mixer.rope_head_dim)
        index = mixer.index_heads * mixer.index_head_dim * (mixer.q_lora_rank or hidden) + hidden * mixer.index_head_dim
        return float(up_q + up_kv + hidden * mixer.heads * mixer.v_head_dim), float(
            down + (index if mixer.index_heads else 0)
        )
    if mixer.kind == "scan":
        inner_k, inner_v = scan_widths(mixer)
        gate = inner_v
        return float(hidden * (2 * inner_k + inner_v + gate + mixer.value_heads) + inner_v * hidden), 0.0
    return 0.0, 0.0


def scan_widths(mixer: Mixer) -> tuple[float, float]:
    """Widths of keys (one of the two: query or key, B or C) and of values of a linear or state-space mixer."""
    heads_k = mixer.key_heads or mixer.state_groups or mixer.value_heads
    return float(heads_k * mixer.key_dim), float(mixer.value_heads * mixer.value_dim)


def feed_forward_parameters(ffn: FeedForward, hidden: int) -> LayerParameters:
    mats = 3 if ffn.gated else 2
    if ffn.kind == "dense":
        return LayerParameters(float(mats * hidden * ffn.intermediate), 0.0, 0.0)
    if ffn.kind == "moe":
        width = ffn.latent or hidden
        expert = float(mats * width * ffn.expert_intermediate * ffn.experts)
        shared = float(mats * hidden * ffn.shared_intermediate)
        latent = 2.0 * hidden * ffn.latent if ffn.latent else 0.0
        return LayerParameters(shared, expert, float(hidden * ffn.experts) + latent)
    return LayerParameters(0.0, 0.0, 0.0)


def layer_parameters(layer: Layer, hidden: int) -> LayerParameters:
    cut, replicated = mixer_parameters(layer.mixer, hidden)
    ffn = feed_forward_parameters(layer.feed_forward, hidden)
    norms = hidden * ((layer.mixer.kind != "none") + (layer.feed_forward.kind != "none"))
    return LayerParameters(cut + ffn.tp_cut, ffn.expert, replicated + ffn.replicated + norms)


def embedding_parameters(architecture: Architecture) -> float:
    """Parameters of one embedding or head matrix."""
    return float(architecture.vocab) * architecture.hidden


@dataclass(frozen=True, slots=True)
class SavedElements:
    """Elements kept for the backward pass, a token and layer.

    ``split`` lie in parts that tensor parallelism cuts, ``whole`` in parts that only sequence parallelism cuts; of each
    ``*_gemm`` is the share that feeds only matrix products (an FP8 job keeps it in one byte). ``input`` is what full
    recompute keeps, ``core`` what selective recompute drops.
    """

    split_gemm: float
    split_other: float
    whole_gemm: float
    whole_other: float
    expert_gemm: float
    expert_other: float
    input: float
    core: float


def saved_elements(layer: Layer, hidden: int) -> SavedElements:
    """What one token leaves behind in one layer. Selective recompute redoes norms and activation functions as well
    as the cheap parts of the mixer (up-projections of latent attention)."""
    mixer, ffn = layer.mixer, layer.feed_forward
    split_gemm = split_other = whole_gemm = whole_other = expert_gemm = expert_other = core = 0.0
    if mixer.kind != "none":
        whole_other += hidden  # residual into the norm
        whole_gemm += hidden  # norm output, input of the first product
    if mixer.kind == "attention":
        v_dim = mixer.v_head_dim or mixer.head_dim
        kv = 0 if mixer.shared_kv else mixer.kv_heads * (mixer.head_dim + v_dim)
        split_other += mixer.heads * mixer.head_dim * (2 if mixer.output_gate else 1) + kv
        split_other += mixer.heads * v_dim  # attention output: kept once, for its own backward and for the product
        if mixer.qk_norm:
            split_other += mixer.heads * mixer.head_dim + kv / 2
    elif mixer.kind == "mla":
        qk = mixer.nope_head_dim + mixer.rope_head_dim
        whole_gemm += mixer.q_lora_rank + mixer.kv_lora_rank + mixer.rope_head_dim
        up = mixer.heads * (2 * qk + mixer.v_head_dim)
        split_other += up + mixer.heads * mixer.v_head_dim
        core += up
    elif mixer.kind == "scan":
        inner_k, inner_v = scan_widths(mixer)
        split_other += 2 * (2 * inner_k + inner_v) + 2 * inner_v  # convolution input and output, gate, output
        split_gemm += inner_v
        core += 2 * inner_k + inner_v
    if ffn.kind != "none":
        whole_other += hidden
        whole_gemm += hidden
    hidden_of = 3 if ffn.gated else 2
    if ffn.kind == "dense":
        split_other += (hidden_of - 1) * ffn.intermediate
        split_gemm += ffn.intermediate
        core += ffn.intermediate  # the activation function's output is redone
    elif ffn.kind == "moe":
        width = ffn.latent or hidden
        expert_gemm += ffn.top_k * (width + ffn.expert_intermediate)
        # gates are applied to the activations, so that the experts' outputs need not be kept
        expert_other += ffn.top_k * (hidden_of - 1) * ffn.expert_intermediate
        split_other += (hidden_of - 1) * ffn.shared_intermediate
        split_gemm += ffn.shared_intermediate
        core += ffn.top_k * ffn.expert_intermediate + ffn.shared_intermediate
        whole_other += 2 * ffn.experts if ffn.experts else 0.0
    return SavedElements(
        split_gemm, split_other, whole_gemm, whole_other, expert_gemm, expert_other, float(hidden), core
    )
