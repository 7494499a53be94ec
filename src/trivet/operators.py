"""Operators and transfers: the language between model and chip.

A dimension is a number or a numpy array; arrays of one operator broadcast, so that one operator stands for a whole grid
of batches and timing is one vectorised call. ``count`` says how often the operator runs in one step on one chip.
FLOPs count a multiply-add as two. Bytes are the least that must cross the memory bus once (compulsory traffic).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Number: TypeAlias = float | NDArray[np.float64]

# Bytes of one stored weight, scales included (block scales: 128x128 fp32, 16-element fp8 for nvfp4, 32-element e8m0 for mxfp4).
WEIGHT_BYTES = {
    "fp32": 4.0,
    "tf32": 4.0,
    "bf16": 2.0,
    "fp16": 2.0,
    "fp8": 1.0,
    "fp8_block": 1.0 + 4 / 128**2,
    "mxfp8": 1.0 + 1 / 32,
    "int8": 1.0,
    "int8_wo": 1.0,
    "int4_wo": 0.5 + 2 / 128,
    "nvfp4": 0.5 + 1 / 16,
    "mxfp4": 0.5 + 1 / 32,
    "w4a8_mxfp4": 0.5 + 1 / 32,
}
# Bytes of one activation element as the matrix unit reads it.
ACTIVATION_BYTES = {
    "fp32": 4.0,
    "tf32": 4.0,
    "bf16": 2.0,
    "fp16": 2.0,
    "fp8": 1.0,
    "fp8_block": 1.0,
    "mxfp8": 1.0,
    "int8": 1.0,
    "int8_wo": 2.0,
    "int4_wo": 2.0,
    "nvfp4": 0.5 + 1 / 16,
    "mxfp4": 2.0,
    "w4a8_mxfp4": 1.0 + 1 / 32,
}


@dataclass(frozen=True, slots=True, eq=False)
class Gemm:
    """``[m,k] x [k,n]``, weights ``[k,n]`` of ``dtype``; ``batch`` independent products in one kernel."""

    name: str
    m: Number
    n: Number
    k: Number
    dtype: str = "bf16"
    batch: Number = 1.0
    count: float = 1.0

    @property
    def flops(self) -> Number:
        return 2.0 * self.batch * self.m * self.n * self.k

    @property
    def bytes(self) -> Number:
        activation = ACTIVATION_BYTES[self.dtype] * self.m * self.k + 2.0 * self.m * self.n
        return self.batch * (WEIGHT_BYTES[self.dtype] * self.n * self.k + activation)


@dataclass(frozen=True, slots=True, eq=False)
class GroupedGemm:
    """The expert feed-forward of one MoE layer on one chip: up (and gate) and down products of its experts.

    ``tokens`` are the tokens of the whole expert group (before top-k); this chip holds ``local_experts`` of ``experts``,
    each of ``intermediate`` columns (already divided by the expert tensor parallelism). ``skew`` is the hottest chip's
    load over the mean load (1 = balanced); ``imbalance`` the coefficient of variation of the load over the experts. ``active``:
    local experts that at least one token chose, where that is known (0: from independent uniform choice).
    """

    name: str
    tokens: Number
    hidden: Number
    intermediate: Number
    experts: Number
    local_experts: Number
    top_k: Number
    dtype: str = "bf16"
    gated: bool = True
    skew: Number = 1.0
    count: float = 1.0
    imbalance: Number = 0.0
    active: Number = 0.0

    @property
    def local_rows(self) -> Number:
        """Token copies that this chip's experts process."""
        return self.tokens * self.top_k * self.local_experts / self.experts * self.skew

    @property
    def active_experts(self) -> Number:
        """Expected number of local experts that at least one token chose."""
        miss = (1.0 - np.minimum(self.top_k / self.experts, 1.0)) ** self.tokens
        found = self.local_experts * (1.0 - miss)
        return found if np.ndim(self.active) == 0 and self.active == 0.0 else np.where(self.active > 0.0, self.active, found)

    @property
    def flops(self) -> Number:
        return 2.0 * self.local_rows * self.hidden * self.intermediate * (3.0 if self.gated else 2.0)

    @property
    def bytes(self) -> Number:
        weights = WEIGHT_BYTES[self.dtype] * self.hidden * self.intermediate * (3.0 if self.gated else 2.0)
        rows = self.local_rows * (
            ACTIVATION_BYTES[self.dtype] * self.hidden + 2.0 * self.hidden + 4.0 * self.intermediate
        )
        return self.active_experts * weights + rows


@dataclass(frozen=True, slots=True, eq=False)
class Attention:
    """Softmax attention core over ``sequences``, each with ``q_tokens`` new queries and ``kv_tokens`` keys in total.

    Heads are those of this chip. ``window`` limits the keys a query sees (0 = no limit). Causal unless told.
    ``kind``: "gqa" for multi-head to multi-query with keys and values in the cache; "mla" for latent attention in its
    absorbed form (one shared latent of ``qk_head_dim``, of which ``v_head_dim`` are the values).
    """

    name: str
    sequences: Number
    q_tokens: Number
    kv_tokens: Number
    heads: Number
    kv_heads: Number
    qk_head_dim: Number
    v_head_dim: Number
    window: Number = 0.0
    dtype: str = "bf16"
    kv_dtype: str = "bf16"
    kind: str = "gqa"
    causal: bool = True
    count: float = 1.0

    @property
    def keys_read(self) -> Number:
        """Keys that at least one query of a sequence sees."""
        limit = np.where(np.asarray(self.window) > 0, np.asarray(self.window) + self.q_tokens - 1.0, np.inf)
        return np.minimum(self.kv_tokens, limit)

    @property
    def pairs(self) -> Number:
        """Query-key pairs of one sequence and head."""
        q, kv = np.asarray(self.q_tokens, float), np.asarray(self.kv_tokens, float)
        if not self.causal:
            return q * kv
        past = kv - q
        full = q * past + q * (q + 1.0) / 2.0
        w = np.where(np.asarray(self.window) > 0, np.asarray(self.window, float), np.inf)
        # Query i (1-based) sees min(past + i, w) keys: below the knee an arithmetic sum, above it w each.
        knee = np.clip(np.where(np.isfinite(w), w - past, q), 0.0, q)
        limited = (
            knee * past
            + knee * (knee + 1.0) / 2.0
            + np.where(np.isfinite(w), (q - knee) * np.where(np.isfinite(w), w, 0.0), 0.0)
        )
        return np.where(np.isfinite(w), limited, full)

    @property
    def flops(self) -> Number:
        return 2.0 * self.sequences * self.heads * self.pairs * (np.asarray(self.qk_head_dim, float) + self.v_head_dim)

    @property
    def bytes(self) -> Number:
        width = np.asarray(self.qk_head_dim, float) + (0.0 if self.kind == "mla" else self.v_head_dim)
        cache = WEIGHT_BYTES[self.kv_dtype] * self.kv_heads * self.keys_read * width
        query = 2.0 * self.q_tokens * self.heads * (np.asarray(self.qk_head_dim, float) + self.v_head_dim)
        return self.sequences * (cache + query)


@dataclass(frozen=True, slots=True, eq=False)
class Scan:
    """A linear-attention or state-space core (gated delta net, Mamba-2, lightning attention, short convolution).

    ``tokens`` new tokens a sequence through a state of ``heads x key_dim x value_dim`` of ``state_dtype``.
    ``kind``: "gdn", "mamba2", "kda", "lightning", "short_conv", ...
    """

    name: str
    kind: str
    sequences: Number
    tokens: Number
    heads: Number
    key_dim: Number
    value_dim: Number
    dtype: str = "bf16"
    state_dtype: str = "fp32"
    conv_width: float = 0.0
    count: float = 1.0

    @property
    def flops(self) -> Number:
        # Decay, rank-one update and read-out of the state: about 6 operations an element and token.
        return 6.0 * self.sequences * self.tokens * self.heads * self.key_dim * self.value_dim

    @property
    def bytes(self) -> Number:
        state = 2.0 * WEIGHT_BYTES[self.state_dtype] * self.heads * self.key_dim * self.value_dim
        rows = 2.0 * self.tokens * self.heads * (2.0 * self.key_dim + 2.0 * self.value_dim)
        return self.sequences * (state + rows)


@dataclass(frozen=True, slots=True, eq=False)
class Stream:
    """A memory-bound pass (norm, activation, rotary, embedding, sampling, cache write, quantisation)."""

    name: str
    bytes: Number
    flops: Number = 0.0
    dtype: str = "bf16"
    count: float = 1.0


@dataclass(frozen=True, slots=True, eq=False)
class Conv:
    """A 2-D convolution, NCHW: output ``[batch, out_channels, height, width]``."""

    name: str
    batch: Number
    in_channels: Number
    out_channels: Number
    height: Number
    width: Number
    kernel: Number
    stride: Number = 1.0
    groups: Number = 1.0
    dtype: str = "int8"
    count: float = 1.0

    @property
    def flops(self) -> Number:
        return (
            2.0
            * self.batch
            * self.out_channels
            * self.height
            * self.width
            * self.in_channels
            / self.groups
            * self.kernel**2
        )

    @property
    def bytes(self) -> Number:
        weights = WEIGHT_BYTES[self.dtype] * self.out_channels * self.in_channels / self.groups * self.kernel**2
        size = ACTIVATION_BYTES[self.dtype]
        inputs = size * self.batch * self.in_channels * self.height * self.width * self.stride**2
        return weights + inputs + size * self.batch * self.out_channels * self.height * self.width


@dataclass(frozen=True, slots=True, eq=False)
class Transfer:
    """A collective or a send among ``group`` chips along parallel ``axis``.

    ``bytes`` is the size of the full buffer: what each chip holds before an all-reduce or a reduce-scatter, holds after
    an all-gather, sends in all (to itself too) in an all-to-all, sends in a send. ``axis``: tp, ep, pp, cp, dcp, dp, kv.
    """

    name: str
    kind: str  # all_reduce all_gather reduce_scatter all_to_all send broadcast
    bytes: Number
    group: int
    axis: str
    dtype: str = "bf16"
    count: float = 1.0

    @property
    def flops(self) -> Number:
        return 0.0


Compute: TypeAlias = Gemm | GroupedGemm | Attention | Scan | Stream | Conv
Operator: TypeAlias = Compute | Transfer


def repeated(operator: Any, times: float) -> Any:
    """The same operator ``times`` as often."""
    return replace(operator, count=operator.count * times)
