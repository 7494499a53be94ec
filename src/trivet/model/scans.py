"""Linear attention and state-space layers to operators; see ``mixers`` for attention.

Third parties add a kind of layer by adding a function to ``SCANS``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from trivet.model.architecture import Mixer
from trivet.model.parallel import Batch, Layout
from trivet.operators import Gemm, Number, Operator, Scan, Stream, Transfer


@dataclass(frozen=True, slots=True, eq=False)
class Context:
    """What a mixer needs to know of the step. ``tokens``: new tokens on this chip (per attention-DP and CP rank)."""

    mixer: Mixer
    hidden: int
    batch: Batch
    layout: Layout
    tokens: Number
    dtype: str
    kv_dtype: str
    causal: bool

    @property
    def heads(self) -> float:
        return self.mixer.heads / self.layout.tp

    @property
    def kv_heads(self) -> float:
        """Key-value heads a chip holds; never less than one, so ``tp`` above their number keeps copies."""
        return max(1.0, self.mixer.kv_heads / self.layout.tp)


def present(amount: Number) -> bool:
    """Whether any of the steps has it."""
    return bool(np.any(np.asarray(amount) > 0))


def _scan_cores(c: Context, kind: str, heads: Number, key_dim: Number, value_dim: Number) -> list[Operator]:
    batch, cp = c.batch, c.layout.cp
    found: list[Operator] = []
    if present(batch.prefill_sequences):
        found.append(
            Scan(
                f"{kind}_prefill",
                kind,
                batch.prefill_sequences,
                np.asarray(batch.prefill_tokens, float) / cp,
                heads,
                key_dim,
                value_dim,
                conv_width=c.mixer.conv_width,
            )
        )
    if present(batch.decode_sequences):
        found.append(
            Scan(
                f"{kind}_decode",
                kind,
                np.asarray(batch.decode_sequences, float) / cp,
                batch.decode_tokens,
                heads,
                key_dim,
                value_dim,
                conv_width=c.mixer.conv_width,
            )
        )
    if cp > 1 and present(batch.prefill_sequences):
        size = 4.0 * np.asarray(batch.prefill_sequences, float) * heads * key_dim * value_dim
        found.append(Transfer("state_send", "send", size, 2, "cp", "fp32"))
    return found


def _convolution(c: Context, channels: float) -> list[Operator]:
    width = c.mixer.conv_width
    return [Stream("conv", 4.0 * c.tokens * channels, 2.0 * c.tokens * channels * width)] if width else []


def _gated_delta(c: Context) -> list[Operator]:
    """Gated delta net (Qwen3-Next, Qwen3.5) and Kimi delta attention."""
    m, tp, rows = c.mixer, c.layout.tp, c.tokens
    key, value = m.key_heads * m.key_dim / tp, m.value_heads * m.value_dim / tp
    heads = m.value_heads / tp
    found: list[Operator] = []
    if m.scan_kind == "kda":
        rank = m.value_dim
        found += [
            Gemm("scan_in", rows, 2 * key + value + heads, c.hidden, c.dtype),
            Gemm("scan_gate_down", rows, 2 * rank, c.hidden, c.dtype),
            Gemm("scan_gate_up", rows, value + key, rank, c.dtype),
        ]
    else:
        found.append(Gemm("scan_in", rows, 2 * key + 2 * value + 2 * heads, c.hidden, c.dtype))
    found += _convolution(c, 2 * key + value)
    found += _scan_cores(c, m.scan_kind, heads, m.key_dim, m.value_dim)
    found += [Stream("scan_norm", 6.0 * rows * value), Gemm("scan_out", rows, c.hidden, value, c.dtype)]
    return found


def _mamba2(c: Context) -> list[Operator]:
    m, tp, rows = c.mixer, c.layout.tp, c.tokens
    inner, heads = m.value_heads * m.value_dim / tp, m.value_heads / tp
    groups = max(1.0, m.state_groups / tp)
    found: list[Operator] = [Gemm("scan_in", rows, 2 * inner + 2 * groups * m.key_dim + heads, c.hidden, c.dtype)]
    found += _convolution(c, inner + 2 * groups * m.key_dim)
    found += _scan_cores(c, "mamba2", heads, m.key_dim, m.value_dim)
    found += [Stream("scan_norm", 6.0 * rows * inner), Gemm("scan_out", rows, c.hidden, inner, c.dtype)]
    return found


def _mamba1(c: Context) -> list[Operator]:
    """Mamba: a state of ``key_dim`` for each of ``value_heads`` channels; ``value_dim`` is the rank of the step size."""
    m, tp, rows = c.mixer, c.layout.tp, c.tokens
    inner = m.value_heads / tp
    found: list[Operator] = [Gemm("scan_in", rows, 2 * inner, c.hidden, c.dtype)]
    found += _convolution(c, inner)
    found += [
        Gemm("scan_parameters", rows, m.value_dim + 2 * m.key_dim, inner, c.dtype),
        Gemm("scan_step", rows, inner, m.value_dim, c.dtype),
    ]
    found += _scan_cores(c, "mamba1", inner, m.key_dim, 1.0)
    found += [Stream("scan_gate", 6.0 * rows * inner), Gemm("scan_out", rows, c.hidden, inner, c.dtype)]
    return found


def _lightning(c: Context) -> list[Operator]:
    m, tp, rows = c.mixer, c.layout.tp, c.tokens
    key, value = m.key_heads * m.key_dim / tp, m.value_heads * m.value_dim / tp
    found: list[Operator] = [Gemm("scan_in", rows, 2 * key + value, c.hidden, c.dtype)]
    found += _scan_cores(c, "lightning", m.value_heads / tp, m.key_dim, m.value_dim)
    found += [
        Gemm("scan_gate", rows, value, c.hidden, c.dtype),
        Stream("scan_norm", 6.0 * rows * value),
        Gemm("scan_out", rows, c.hidden, value, c.dtype),
    ]
    return found


def _short_conv(c: Context) -> list[Operator]:
    channels = c.mixer.value_heads / c.layout.tp
    return [
        Gemm("scan_in", c.tokens, 3 * channels, c.hidden, c.dtype),
        *_scan_cores(c, "short_conv", channels, c.mixer.conv_width, 1.0),
        Gemm("scan_out", c.tokens, c.hidden, channels, c.dtype),
    ]


def _recurrent(c: Context) -> list[Operator]:
    """RG-LRU (Griffin, RecurrentGemma): a diagonal recurrence of ``value_heads x value_dim`` channels."""
    m, tp, rows = c.mixer, c.layout.tp, c.tokens
    width, heads = m.value_heads * m.value_dim / tp, m.value_heads / tp
    return [
        Gemm("scan_in", rows, 2 * width, c.hidden, c.dtype),
        *_convolution(c, width),
        Gemm("scan_gates", rows, 2 * m.value_dim, m.value_dim, c.dtype, batch=heads),
        *_scan_cores(c, "rg_lru", width, 1.0, 1.0),
        Gemm("scan_out", rows, c.hidden, width, c.dtype),
    ]


SCANS: dict[str, Callable[[Context], list[Operator]]] = {
    "gdn": _gated_delta,
    "kda": _gated_delta,
    "mamba2": _mamba2,
    "mamba1": _mamba1,
    "lightning": _lightning,
    "short_conv": _short_conv,
    "rg_lru": _recurrent,
}
