"""How many parameters a layer has, to the last one, and where they lie.

What is counted is what the model's class builds (``sum(p.numel())`` over its parameters): tied tables once, buffers and
multi-token-prediction heads not. The formulas here cover what ``Mixer`` and ``FeedForward`` describe; a family adds what
is peculiar to it as an extra of the block.
"""

from __future__ import annotations

from dataclasses import dataclass

from trivet.model.architecture import FeedForward, Mixer


@dataclass(frozen=True, slots=True)
class Matrices:
    """Weights of one layer's mixer by how tensor parallelism treats them: cut, cut down to one key-value head, or kept whole."""

    cut: int = 0
    per_kv_head: int = 0  # of one key-value head; there are ``kv_heads``
    whole: int = 0


def mixer_matrices(hidden: int, m: Mixer) -> Matrices:
    """The big matrices of a mixer, without biases, norms and other vectors."""
    v = m.v_head_dim or m.head_dim
    if m.kind == "attention":
        gate = hidden * m.heads * v if m.output_gate else 0
        index = _index_matrices(hidden, m)
        kv = 0 if m.shared_kv else hidden * (m.head_dim + v)
        return Matrices(hidden * m.heads * m.head_dim + gate + m.heads * v * hidden, kv, index)
    if m.kind == "mla":
        qk, latent = m.nope_head_dim + m.rope_head_dim, m.kv_lora_rank + m.rope_head_dim
        q_in = m.q_lora_rank or hidden
        cut = q_in * m.heads * qk + m.kv_lora_rank * m.heads * (m.nope_head_dim + v) + m.heads * v * hidden
        return Matrices(cut, 0, hidden * (m.q_lora_rank + latent) + _index_matrices(hidden, m))
    if m.kind == "compressed":
        cut = m.q_lora_rank * m.heads * m.head_dim + m.heads * m.head_dim * m.o_lora_rank
        whole = hidden * (m.q_lora_rank + m.head_dim) + 2 * _compress_width(m) * hidden
        index = m.index_heads * (m.q_lora_rank * m.index_head_dim + hidden) + (
            4 * hidden * m.index_head_dim if m.index_heads else 0
        )
        return Matrices(cut + m.o_groups * m.o_lora_rank * hidden, 0, whole + index)
    if m.kind == "scan":
        return Matrices(_scan_matrices(hidden, m))
    return Matrices()


def _compress_width(m: Mixer) -> int:
    """Width of what is compressed: overlapping halves where an indexer chooses, one vector else."""
    return m.head_dim * (2 if m.index_heads else 1) if m.compress else 0


def _index_matrices(hidden: int, m: Mixer) -> int:
    if not m.index_heads:
        return 0
    return (m.q_lora_rank or hidden) * m.index_heads * m.index_head_dim + hidden * (m.index_head_dim + m.index_heads)


def _scan_matrices(hidden: int, m: Mixer) -> int:
    key, value = m.key_heads * m.key_dim, m.value_heads * m.value_dim
    if m.scan_kind == "gdn":
        return hidden * (2 * key + 2 * value + 2 * m.value_heads) + value * hidden
    if m.scan_kind == "kda":
        rank = m.value_dim
        return hidden * (2 * key + value + m.value_heads + 2 * rank) + rank * (key + value) + value * hidden
    if m.scan_kind == "mamba2":
        return hidden * (2 * value + 2 * m.state_groups * m.key_dim + m.value_heads) + value * hidden
    if m.scan_kind == "mamba1":
        inner = m.value_heads
        return 3 * hidden * inner + inner * (2 * m.value_dim + 2 * m.key_dim)
    if m.scan_kind == "lightning":
        return hidden * (2 * key + 2 * value) + value * hidden
    if m.scan_kind == "short_conv":
        return 4 * hidden * m.value_heads
    if m.scan_kind == "rg_lru":
        return 3 * hidden * value + 2 * m.value_heads * m.value_dim**2
    return 0


def mixer_parameters(hidden: int, m: Mixer) -> int:
    """All parameters of a mixer that its description implies: matrices, biases, per-head norms, sinks, state vectors."""
    matrices = mixer_matrices(hidden, m)
    total = matrices.cut + matrices.per_kv_head * m.kv_heads + matrices.whole
    v = m.v_head_dim or m.head_dim
    if m.kind == "attention":
        kv_width = 0 if m.shared_kv else m.kv_heads * (m.head_dim + v)
        if m.qkv_bias:
            total += m.heads * m.head_dim + kv_width + (m.heads * v if m.output_gate else 0)
        if m.out_bias:
            total += hidden
        if m.qk_norm:
            total += m.head_dim * (1 if m.shared_kv else 2)
        if m.sinks:
            total += m.heads
    elif m.kind == "compressed":  # norms, sinks, position biases of what is compressed
        total += m.q_lora_rank + m.head_dim + (m.heads if m.sinks else 0)
        total += m.compress * _compress_width(m) + (m.head_dim if m.compress else 0)
        total += (m.compress * 2 + 1) * m.index_head_dim
    elif m.kind == "mla":
        total += m.q_lora_rank + m.kv_lora_rank  # their norms
    elif m.kind == "scan":
        total += _scan_vectors(m)
    return total


def _scan_vectors(m: Mixer) -> int:
    key, value = m.key_heads * m.key_dim, m.value_heads * m.value_dim
    if m.scan_kind == "gdn":  # convolution, A, dt bias, norm
        return (2 * key + value) * m.conv_width + 2 * m.value_heads + m.value_dim
    if m.scan_kind == "kda":
        return (2 * key + value) * m.conv_width + m.value_heads + key + m.value_dim
    if m.scan_kind == "mamba2":  # convolution with bias, A, D, dt bias, norm
        return (value + 2 * m.state_groups * m.key_dim) * (m.conv_width + 1) + 3 * m.value_heads + value
    if m.scan_kind == "mamba1":  # convolution with bias, dt bias, A, D
        return m.value_heads * (m.conv_width + 1 + 1 + m.key_dim + 1)
    if m.scan_kind == "lightning":
        return value
    if m.scan_kind == "short_conv":
        return m.value_heads * m.conv_width
    if m.scan_kind == "rg_lru":
        return value * (m.conv_width + 1)
    return 0


def expert_parameters(hidden: int, ff: FeedForward) -> int:
    """One routed expert, without biases."""
    return (ff.latent or hidden) * ff.expert_intermediate * (3 if ff.gated else 2)


def feed_forward_parameters(hidden: int, ff: FeedForward) -> dict[str, int]:
    """By component: ``dense``, ``router``, ``experts``, ``shared_experts``."""
    ways = 3 if ff.gated else 2
    if ff.kind == "dense":
        bias = ff.intermediate * (ways - 1) + hidden if ff.bias else 0
        return {"dense": hidden * ff.intermediate * ways + bias}
    if ff.kind == "moe":
        width = ff.latent or hidden
        bias = ff.experts * (ff.expert_intermediate * (ways - 1) + width) if ff.bias else 0
        shared = hidden * ff.shared_intermediate * ways + (hidden if ff.shared_gate else 0)
        return {
            "router": hidden * ff.experts + (ff.experts if ff.bias else 0),
            "experts": ff.experts * expert_parameters(hidden, ff) + bias + 2 * hidden * ff.latent,
            "shared_experts": shared,
        }
    return {}


def idle_parameters(hidden: int, ff: FeedForward) -> int:
    """Parameters of the experts of one layer that a token does not visit."""
    if ff.kind != "moe":
        return 0
    width = ff.latent or hidden
    one = expert_parameters(hidden, ff) + (ff.expert_intermediate * (2 if ff.gated else 1) + width if ff.bias else 0)
    return (ff.experts - ff.top_k) * one
