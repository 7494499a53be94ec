"""Token mixers to operators: attention, latent attention, sparse attention's indexer, linear and state-space layers.

Linear and state-space layers are in ``scans``; third parties add a kind of them by adding a function to ``SCANS``.
"""

from __future__ import annotations

import numpy as np

from trivet.errors import Unsupported
from trivet.model.architecture import Mixer
from trivet.model.parallel import Batch, Layout
from trivet.model.scans import SCANS, Context, present
from trivet.operators import WEIGHT_BYTES, Attention, Gemm, Number, Operator, Stream, Transfer


def operators(
    mixer: Mixer,
    hidden: int,
    batch: Batch,
    layout: Layout,
    dtype: str,
    kv_dtype: str,
    *,
    causal: bool = True,
) -> list[Operator]:
    """Operators of one layer's mixer on one chip, without its norm and the closing reduction."""
    context = Context(
        mixer, hidden, batch, layout, np.asarray(batch.tokens, float) / layout.cp, dtype, kv_dtype, causal
    )
    if mixer.kind == "attention":
        return _attention(context)
    if mixer.kind == "mla":
        return _latent(context)
    if mixer.kind == "compressed":
        return _compressed(context)
    if mixer.kind == "scan":
        if mixer.scan_kind not in SCANS:
            raise Unsupported(f"no operators for {mixer.scan_kind!r} layers", field="scan_kind", allowed=SCANS)
        return SCANS[mixer.scan_kind](context)
    raise Unsupported(f"no operators for mixer {mixer.kind!r}", field="mixer")


def _cores(
    c: Context,
    *,
    name: str,
    heads: Number,
    kv_heads: Number,
    qk: Number,
    v: Number,
    kind: str,
    prefill: bool = True,
    window: Number | None = None,
    dtype: str = "",
    kv_dtype: str = "",
    decode: bool = True,
) -> list[Operator]:
    """The attention cores of a step: one over the prefill chunks, one over the decode sequences.

    Context parallelism gives a chip 1/cp of a chunk's queries, balanced (zigzag): it sees the mean number of keys.
    Decode-context parallelism gives it 1/dcp of the keys and the heads of all ``dcp`` chips.
    """
    batch, cp, dcp = c.batch, c.layout.cp, c.layout.dcp
    seen = c.mixer.window or c.mixer.chunk if window is None else window
    found: list[Operator] = []
    dtype, kv = dtype or "bf16", kv_dtype or c.kv_dtype
    if prefill and present(batch.prefill_sequences):
        q = np.asarray(batch.prefill_tokens, float)
        own = q / cp
        keys = np.asarray(batch.prefill_past, float) + (q + own) / 2.0
        found.append(
            Attention(
                f"{name}_prefill",
                batch.prefill_sequences,
                own,
                keys,
                heads,
                kv_heads,
                qk,
                v,
                seen,
                dtype,
                kv,
                kind,
                c.causal,
            )
        )
    if decode and present(batch.decode_sequences):
        new = np.asarray(batch.decode_tokens, float)
        keys = (np.asarray(batch.decode_context, float) + new) / dcp
        limit = np.asarray(seen, float) / dcp
        # A query attends 1/dcp of its keys: causality inside the few new tokens is left out when keys are split.
        found.append(
            Attention(
                f"{name}_decode",
                np.asarray(batch.decode_sequences, float) / cp,
                new,
                np.maximum(keys, new),
                heads * dcp,
                max(1.0, kv_heads),
                qk,
                v,
                limit,
                dtype,
                kv,
                kind,
                c.causal,
            )
        )
    return found


def _context_transfers(c: Context, row_bytes: float) -> list[Operator]:
    """What the two context parallelisms move: keys and values of a chunk (cp); queries and partial outputs (dcp)."""
    found: list[Operator] = []
    m, layout, batch = c.mixer, c.layout, c.batch
    if layout.cp > 1 and present(batch.prefill_sequences):
        whole = np.asarray(batch.prefill_sequences, float) * batch.prefill_tokens
        found.append(Transfer("context_all_gather", "all_gather", whole * row_bytes, layout.cp, "cp", c.kv_dtype))
    if layout.dcp > 1 and present(batch.decode_sequences):
        rows = np.asarray(batch.decode_sequences, float) * batch.decode_tokens / layout.cp
        width = m.kv_lora_rank + m.rope_head_dim if m.kind == "mla" else m.head_dim
        value = m.kv_lora_rank if m.kind == "mla" else (m.v_head_dim or m.head_dim)
        heads = c.heads * layout.dcp
        found += [
            Transfer("dcp_query_all_gather", "all_gather", 2.0 * rows * heads * width, layout.dcp, "dcp"),
            Transfer("dcp_reduce_scatter", "reduce_scatter", 2.0 * rows * heads * (value + 2.0), layout.dcp, "dcp"),
        ]
    return found


def _attention(c: Context) -> list[Operator]:
    m, rows = c.mixer, c.tokens
    qk, v = m.head_dim, m.v_head_dim or m.head_dim
    q_width, kv_width = c.heads * qk, 0.0 if m.shared_kv else c.kv_heads * (qk + v)
    gate = c.heads * v if m.output_gate else 0.0
    found: list[Operator] = [
        Gemm("qkv", rows, q_width + kv_width + gate, c.hidden, c.dtype),
        Stream(
            "rope",
            4.0 * rows * (c.heads + (0.0 if m.shared_kv else c.kv_heads)) * qk * (2.0 if m.qk_norm else 1.0),
        ),
    ]
    if m.wide_norm:
        # The norm spans the heads of all chips: mean squares are summed over them, then a pass of its own scales (vLLM's
        # ``MiniMaxText01RMSNormTP``, SGLang likewise).
        found.append(Stream("qk_norm", 4.0 * rows * (c.heads + c.kv_heads) * qk))
        if c.layout.tp > 1:
            found.append(Transfer("qk_norm_all_reduce", "all_reduce", 8.0 * rows, c.layout.tp, "tp"))
    row_bytes = kv_width * WEIGHT_BYTES[c.kv_dtype]
    if kv_width:
        found.append(Stream("kv_write", rows * (2.0 * kv_width + row_bytes)))
    found += _indexer(c)
    found += _context_transfers(c, row_bytes)
    window = float(m.index_top_k) if m.index_top_k else None
    found += _cores(c, name="attention", heads=c.heads, kv_heads=c.kv_heads, qk=qk, v=v, kind="gqa", window=window)
    if gate:
        found.append(Stream("attention_gate", 6.0 * rows * gate))
    found.append(Gemm("attention_out", rows, c.hidden, c.heads * v, c.dtype))
    return found


def _latent(c: Context) -> list[Operator]:
    """Multi-head latent attention: up-projected keys and values in prefill, absorbed products in decode.

    The latent (``kv_lora_rank + rope_head_dim``) and the down-projections are on every chip of ``tp``.
    """
    m, rows, batch = c.mixer, c.tokens, c.batch
    latent, qk, v = m.kv_lora_rank + m.rope_head_dim, m.nope_head_dim + m.rope_head_dim, m.v_head_dim
    found: list[Operator] = []
    if m.q_lora_rank:
        found.append(Gemm("q_a_kv_a", rows, m.q_lora_rank + latent, c.hidden, c.dtype))
        found.append(Stream("latent_norm", 4.0 * rows * (m.q_lora_rank + m.kv_lora_rank)))
        found.append(Gemm("q_b", rows, c.heads * qk, m.q_lora_rank, c.dtype))
    else:
        found.append(Gemm("q_kv_a", rows, c.heads * qk + latent, c.hidden, c.dtype))
        found.append(Stream("latent_norm", 4.0 * rows * m.kv_lora_rank))
    found.append(Stream("rope", 4.0 * rows * (c.heads + 1.0) * m.rope_head_dim))
    row_bytes = latent * WEIGHT_BYTES[c.kv_dtype]
    found.append(Stream("kv_write", rows * (2.0 * latent + row_bytes)))
    found += _indexer(c)
    found += _context_transfers(c, row_bytes)
    window = float(m.index_top_k) if m.index_top_k else None
    absorbed = bool(m.index_top_k)  # sparse attention gathers latents, so prefill is absorbed too
    if present(batch.prefill_sequences) and not absorbed:
        past_and_new = np.asarray(batch.prefill_sequences, float) * (
            np.asarray(batch.prefill_past, float) + batch.prefill_tokens
        )
        found.append(Gemm("kv_b", past_and_new, c.heads * (m.nope_head_dim + v), m.kv_lora_rank, c.dtype))
        found += _cores(c, name="attention", heads=c.heads, kv_heads=c.heads, qk=qk, v=v, kind="gqa", decode=False)
    decode_rows = np.asarray(batch.decode_sequences, float) * batch.decode_tokens / c.layout.cp
    absorbed_rows = rows if absorbed else decode_rows
    if present(absorbed_rows):
        found.append(Gemm("q_absorb", absorbed_rows, m.kv_lora_rank, m.nope_head_dim, "bf16", batch=c.heads))
        found += _cores(
            c,
            name="attention",
            heads=c.heads,
            kv_heads=1.0,
            qk=latent,
            v=m.kv_lora_rank,
            kind="mla",
            prefill=absorbed,
            window=window,
        )
        found.append(Gemm("v_absorb", absorbed_rows, v, m.kv_lora_rank, "bf16", batch=c.heads))
    found.append(Gemm("attention_out", rows, c.hidden, c.heads * v, c.dtype))
    return found


def _indexer(c: Context) -> list[Operator]:
    """DeepSeek sparse attention's indexer: scores every key in FP8 with few small heads, keeps ``index_top_k``.

    Every chip of ``tp`` does all of it (as engines do). Layers that reuse another layer's choice have no heads.
    """
    m, rows = c.mixer, c.tokens
    if not m.index_heads:
        return []
    found: list[Operator] = [
        Gemm("index_q", rows, m.index_heads * m.index_head_dim, m.q_lora_rank or c.hidden, c.dtype),
        Gemm("index_k", rows, m.index_head_dim + m.index_heads, c.hidden, "bf16"),
        Stream("index_write", rows * 3.0 * m.index_head_dim),
    ]
    whole = Context(c.mixer, c.hidden, c.batch, Layout(cp=c.layout.cp), rows, c.dtype, "fp8", c.causal)
    cores = _cores(
        whole,
        name="index_score",
        heads=float(m.index_heads),
        kv_heads=1.0,
        qk=m.index_head_dim,
        v=0.0,
        kind="gqa",
        window=0.0,
        dtype="fp8",
        kv_dtype="fp8",
    )
    for core in cores:
        assert isinstance(core, Attention)
        found += _scored(core)
    return found


def _scored(core: Attention) -> list[Operator]:
    """A scoring core as the product that it is (no softmax, no values; heads are summed on chip), and the choice of the best.

    Many queries: ``q`` rows against the keys over all heads' elements at once, so that the output is one score a pair. Few
    queries (decode): every head's query is a row, so that a key is read once for all heads.
    """
    keys = np.asarray(core.pairs, float) / np.asarray(core.q_tokens, float)  # mean keys a query
    rows, depth = (core.q_tokens, core.heads * core.qk_head_dim)
    if core.name.endswith("decode"):
        rows, depth = core.heads * np.asarray(core.q_tokens, float), core.qk_head_dim
    product = Gemm(core.name, rows, np.maximum(keys, 1.0), depth, core.dtype, batch=core.sequences)
    return [product, Stream(core.name.replace("score", "top_k"), 8.0 * core.sequences * core.pairs)]


def _compressed(c: Context) -> list[Operator]:
    """DeepSeek V4: all heads share one vector that is key and value. A query sees its window and keys that each stand for
    ``compress`` tokens: all of them, or the ``index_top_k`` that an indexer over compressed keys chooses."""
    m, rows, tp = c.mixer, c.tokens, c.layout.tp
    dim, groups = m.head_dim, max(1.0, m.o_groups / tp)
    found: list[Operator] = [
        Gemm("q_a_kv", rows, m.q_lora_rank + dim, c.hidden, c.dtype),
        Stream("latent_norm", 4.0 * rows * (m.q_lora_rank + dim)),
        Gemm("q_b", rows, c.heads * dim, m.q_lora_rank, c.dtype),
        Stream("rope", 4.0 * rows * (c.heads + 1.0) * dim),
        Stream("kv_write", rows * dim * (2.0 + WEIGHT_BYTES[c.kv_dtype])),
    ]
    found += _context_transfers(c, dim * WEIGHT_BYTES[c.kv_dtype])
    found += _cores(c, name="attention", heads=c.heads, kv_heads=1.0, qk=dim, v=dim, kind="mla")
    if m.compress:
        wide = 2 * dim if m.index_heads else dim
        found += [Gemm("compress", rows, 2 * wide, c.hidden, c.dtype), Stream("compress_pool", 4.0 * rows * wide)]
        if m.index_heads:
            found += [
                Gemm("index_q", rows, m.index_heads * m.index_head_dim, m.q_lora_rank, c.dtype),
                Gemm("index_k", rows, 4 * m.index_head_dim + m.index_heads, c.hidden, "bf16"),
            ]
            shape = (float(m.index_heads), m.index_head_dim, 0.0)
            for core in _compressed_cores(c, "index_score", *shape, limit=np.inf, dtype="fp8", kv_dtype="fp8"):
                found += _scored(core)
        limit = float(m.index_top_k) if m.index_top_k else np.inf
        found += _compressed_cores(c, "attention_compressed", c.heads, dim, dim, limit=limit)
    found.append(Gemm("attention_out_a", rows, m.o_lora_rank, c.heads * dim / groups, c.dtype, batch=groups))
    found.append(Gemm("attention_out", rows, c.hidden, groups * m.o_lora_rank, c.dtype))
    return found


def _compressed_cores(
    c: Context,
    name: str,
    heads: Number,
    qk: Number,
    v: Number,
    *,
    limit: float,
    dtype: str = "bf16",
    kv_dtype: str = "",
) -> list[Attention]:
    """Cores over compressed keys; a query of a chunk sees the mean number of them."""
    batch, cp, dcp, ratio = c.batch, c.layout.cp, c.layout.dcp, float(c.mixer.compress)
    kind, kv, heads = "mla" if np.all(np.asarray(v) > 0) else "gqa", kv_dtype or c.kv_dtype, np.asarray(heads, float)
    found = []
    if present(batch.prefill_sequences):
        q = np.asarray(batch.prefill_tokens, float)
        keys = np.minimum((np.asarray(batch.prefill_past, float) + q / 2.0) / ratio, limit)
        found.append(
            Attention(
                f"{name}_prefill", batch.prefill_sequences, q / cp, keys, heads, 1.0, qk, v, 0.0, dtype, kv, kind, False
            )
        )
    if present(batch.decode_sequences):
        new = np.asarray(batch.decode_tokens, float)
        keys = np.minimum((np.asarray(batch.decode_context, float) + new) / ratio, limit) / dcp
        count = np.asarray(batch.decode_sequences, float) / cp
        found.append(
            Attention(f"{name}_decode", count, new, keys, heads * dcp, 1.0, qk, v, 0.0, dtype, kv, kind, False)
        )
    return found
