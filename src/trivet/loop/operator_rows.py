"""Rows of measured kernels (the columns of the calibration tables) as operators."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trivet.errors import TrivetError
from trivet.operators import Attention, Gemm, GroupedGemm, Scan, Transfer

Floats = NDArray[np.float64]

# The engines' own names of precisions -> ours.
PRECISIONS = {
    "bfloat16": "bf16", "bf16": "bf16", "float16": "fp16", "fp16": "fp16", "half": "fp16", "float32": "fp32", "fp32": "fp32",
    "fp8": "fp8", "fp8_e4m3": "fp8", "fp8_block": "fp8_block", "nvfp4": "nvfp4", "fp4": "nvfp4", "mxfp4": "mxfp4", "int8": "int8",
    "sq": "int8", "int8_wo": "int8_wo", "int4_wo": "int4_wo", "w4a16_mxfp4": "mxfp4", "w4a8_mxfp4_mxfp8": "w4a8_mxfp4",
    "mxfp8": "mxfp8", "tf32": "tf32", "auto": "bf16", "": "bf16",
}  # fmt: skip
# Names of operators in the tables (column ``op_name`` or the file's stem) -> ours.
OPERATORS = {
    "gemm": "gemm", "moe": "moe", "context_attention": "attention_context", "attention_context": "attention_context",
    "generation_attention": "attention_generation", "attention_generation": "attention_generation",
    "mla_context": "mla_context", "mla_generation": "mla_generation", "gdn": "linear_attention_gdn",
    "linear_attention_gdn": "linear_attention_gdn", "all_reduce": "all_reduce", "allreduce_custom": "all_reduce",
    "all_gather": "all_gather", "reduce_scatter": "reduce_scatter", "alltoall": "all_to_all", "all_to_all": "all_to_all",
    "nccl": "all_reduce", "moe_a2a": "moe_all_to_all", "moe_all_to_all": "moe_all_to_all", "ll": "deepep_low_latency",
    "deepep_low_latency": "deepep_low_latency",
}  # fmt: skip
NON_GATED = "nongated"
QUANTILES = 256  # of drawn loads


def precision(name: str) -> str:
    """Our label of an engine's precision name; raises TrivetError for one that is unknown."""
    found = PRECISIONS.get(name.strip().lower())
    if found is None:
        raise TrivetError(f"unknown precision {name!r}", field="dtype", allowed=sorted(k for k in PRECISIONS if k))
    return found


def operator_name(name: str) -> str:
    """Our name of an operator; raises TrivetError for one that is unknown."""
    found = OPERATORS.get(name.strip().lower())
    if found is None:
        raise TrivetError(f"unknown operator {name!r}", field="op", allowed=sorted(OPERATORS))
    return found


def load_imbalance(distribution: str, tokens: Floats, ranks: Floats, experts: Floats) -> tuple[Floats, Floats]:
    """(coefficient of variation of the experts' loads, hottest rank's load over the mean).

    ``power_law_A``: loads drawn from a density ``x^-A`` on [1, 0.8 tokens], as the measurements drew them; with A near 1
    the load is log-uniform. The hottest of ``ranks`` groups of experts lies about sqrt(2 ln ranks) deviations above the mean.
    """
    ones = np.ones(np.broadcast_shapes(np.shape(tokens), np.shape(ranks), np.shape(experts)))
    if not distribution.startswith("power_law"):
        return 0.0 * ones, ones
    exponent = float(distribution.rsplit("_", 1)[-1])
    top = np.maximum(0.8 * tokens, 2.0)

    def moment(order: float) -> Floats:
        power = order + 1.0 - exponent
        integral = np.log(top) if abs(power) < 1e-9 else (top**power - 1.0) / power
        return np.asarray(integral, dtype=np.float64)

    mean = moment(1.0) / moment(0.0)
    cv = np.sqrt(np.maximum(moment(2.0) / moment(0.0) / mean**2 - 1.0, 0.0)) * ones
    inside = np.maximum(experts / ranks, 1.0)
    deviations = np.sqrt(2.0 * np.log(np.maximum(ranks, 1.0)))
    skew = np.minimum(1.0 + cv / np.sqrt(inside) * deviations, ranks)
    return cv, np.maximum(skew, 1.0) * ones


def active_share(distribution: str, tokens: Floats, top_k: Floats, experts: Floats) -> Floats:
    """Share of the experts that get a token, as the measurements drew them; 0 where nothing is said of that.

    Balanced: dealt out one by one, so that ``tokens x top_k`` experts have one. ``power_law_A``: the drawn loads (from [0.01, 2]
    where there are no more copies than experts) are scaled to the copies and rounded; copies that are left go to further experts.
    """
    tokens, top_k, experts = np.broadcast_arrays(tokens, top_k, experts)
    copies = tokens * top_k / experts
    if not distribution.startswith("power_law"):
        return np.asarray(np.minimum(copies, 1.0) * (distribution == "balanced"))
    exponent = 1.0 - float(distribution.rsplit("_", 1)[-1])
    exponent = exponent if abs(exponent) > 1e-6 else 1e-6
    low = np.where(copies > 1.0, 1.0, 0.01)[..., None]
    high = np.where(copies > 1.0, np.maximum(0.8 * tokens, 1.1), 2.0)[..., None]
    quantile = (np.arange(QUANTILES) + 0.5) / QUANTILES
    drawn = (low**exponent + (high**exponent - low**exponent) * quantile) ** (1.0 / exponent)
    load = np.rint(drawn / drawn.mean(-1, keepdims=True) * copies[..., None])
    left = np.maximum(copies - load.mean(-1), 0.0)
    return np.asarray(np.minimum((load > 0.0).mean(-1) + left, np.minimum(copies, 1.0)))


class Columns:
    """Number columns of a table by name, with a default and one message for what is missing."""

    def __init__(self, table: Mapping[str, Any], rows: int):
        self._table, self._rows = table, rows

    def __call__(self, *names: str, default: float | None = None) -> Floats:
        for name in names:
            if name in self._table:
                values = np.asarray(self._table[name], dtype=np.float64)
                if default is not None:
                    values = np.where(np.isnan(values), default, values)
                if not np.isnan(values).any():
                    return values
        if default is None:
            raise TrivetError("missing or empty", field=names[0])
        return np.full(self._rows, default)


def operator(op: str, dtype: str, kv_dtype: str, columns: Columns, text: Mapping[str, str]) -> Any:
    """One operator whose dimensions are columns of rows that share ``op``, precision and the ``text`` columns.

    ``op`` is one of ``OPERATORS``' values; message sizes of collectives are in elements. Raises TrivetError naming a column.
    """
    c = columns
    if op == "gemm":
        return Gemm(op, c("m"), c("n"), c("k"), dtype, c("batch", default=1.0))
    if op == "moe":
        tokens, experts = c("num_tokens"), c("num_experts")
        ranks = c("moe_ep_size", default=1.0)
        cv, skew = load_imbalance(text.get("distribution", ""), tokens, ranks, experts)
        gated = NON_GATED not in text.get("kernel_source", "")
        inter = c("inter_size") / c("moe_tp_size", default=1.0)
        return GroupedGemm(
            op, tokens, c("hidden_size"), inter, experts, experts / ranks, c("topk"), dtype, gated, skew, 1.0, cv,
            active_share(text.get("distribution", ""), tokens, c("topk"), experts) * experts / ranks,
        )  # fmt: skip
    if op in ("attention_context", "attention_generation"):
        heads = c("num_heads")
        kv_heads = c("num_key_value_heads", default=0.0)
        kv_heads = np.where(kv_heads > 0, kv_heads, heads)
        isl, step = c("isl", default=1.0), c("step", default=0.0)
        new = isl if op == "attention_context" else np.ones_like(isl)
        head = c("head_dim")
        return Attention(
            op,
            c("batch_size"),
            new,
            isl + step,
            heads,
            kv_heads,
            head,
            head,
            c("window_size", default=0.0),
            dtype,
            kv_dtype,
        )
    if op in ("mla_context", "mla_generation"):
        heads, isl, step = c("num_heads"), c("isl", default=1.0), c("step", default=0.0)
        ones = np.ones_like(heads)
        if op == "mla_context":
            return Attention(
                op, c("batch_size"), isl, isl + step, heads, heads, 192.0 * ones, 128.0 * ones, 0.0, dtype, kv_dtype
            )
        return Attention(
            op, c("batch_size"), ones, isl + step, heads, ones, 576.0 * ones, 512.0 * ones, 0.0, dtype, kv_dtype, "mla"
        )
    if op == "linear_attention_gdn":
        short = "conv" in text.get("kernel_source", "")
        length = c("seq_len", default=1.0)
        if text.get("phase", "context") == "generation":
            length = np.ones_like(length)
        kind = "short_conv" if short else "gdn"
        return Scan(
            op, kind, c("batch_size"), length, c("num_v_heads"), c("head_k_dim"), c("head_v_dim"), dtype,
            conv_width=float(math.ceil(c("d_conv", default=4.0).max())),
        )  # fmt: skip
    if op in ("all_reduce", "all_gather", "reduce_scatter", "all_to_all"):
        size = 1.0 if dtype == "int8" else 2.0
        group = c("num_gpus")
        if np.unique(group).size != 1:
            raise TrivetError("rows of one operator must share it", field="num_gpus")
        return Transfer(op, op, c("message_size") * size, int(group[0]), "tp", dtype)
    raise TrivetError(f"no timing of {op!r} by rows", field="op", allowed=sorted(set(OPERATORS.values())))
