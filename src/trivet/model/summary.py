"""What one model is, in numbers: parameters, bytes, FLOPs per token as a function of context."""

from __future__ import annotations

from typing import Any

from trivet.model.architecture import Architecture
from trivet.model.layers import operators
from trivet.model.memory import kv_bytes_per_sequence, kv_bytes_per_token, state_bytes_per_sequence, weight_bytes
from trivet.model.parallel import Batch
from trivet.operators import Transfer

CONTEXTS = (0, 4096, 32768, 131072)


def flops_per_token(architecture: Architecture, context: float) -> float:
    """FLOPs of one more token after ``context`` others, head included, unsharded; a multiply-add counts as two.

    Of an encoder (which has no cache): FLOPs of one token in a sequence of ``context``.
    """
    if architecture.encoder:
        tokens = max(1.0, context)
        batch = Batch(prefill_sequences=1.0, prefill_tokens=tokens)
        return _flops(architecture, batch) / tokens
    return _flops(architecture, Batch(decode_sequences=1.0, decode_context=float(context)))


def _flops(architecture: Architecture, batch: Batch) -> float:
    found = operators(architecture, batch)
    return sum(float(one.flops) * one.count for one in found if not isinstance(one, Transfer))


def summary(architecture: Architecture, *, weight_dtype: str = "", kv_dtype: str = "") -> dict[str, Any]:
    """The model as a JSON-able mapping. Bytes are of the whole model on one chip, FLOPs at several contexts."""
    contexts = [c for c in CONTEXTS if not architecture.max_context or c <= architecture.max_context]
    stored = architecture.quantisation
    return {
        "name": architecture.name,
        "model_type": architecture.model_type,
        "parameters": architecture.parameters,
        "active_parameters": architecture.active_parameters,
        "weight_bytes": weight_bytes(architecture, weight_dtype=weight_dtype),
        "kv_bytes_per_token": kv_bytes_per_token(architecture, kv_dtype=kv_dtype),
        "kv_bytes_per_sequence": {
            str(c): kv_bytes_per_sequence(architecture, c, kv_dtype=kv_dtype) for c in contexts if c
        },
        "state_bytes_per_sequence": state_bytes_per_sequence(architecture),
        "flops_per_token": {str(c): flops_per_token(architecture, c) for c in contexts},
        "components": architecture.components,
        "layers": architecture.num_layers,
        "layer_kinds": _kinds(architecture),
        "hidden": architecture.hidden,
        "vocab": architecture.vocab,
        "max_context": architecture.max_context,
        "tied_embeddings": architecture.tied_embeddings,
        "quantisation": {
            "attention": stored.attention,
            "experts": stored.experts,
            "dense": stored.dense,
            "head": stored.head,
            "kv_cache": stored.kv_cache,
        },
        "mtp_layers": architecture.mtp_layers,
        "has_vision": architecture.has_vision,
        "has_audio": architecture.has_audio,
        "notes": list(architecture.notes),
    }


def _kinds(architecture: Architecture) -> dict[str, int]:
    """Layers by kind, e.g. ``{"attention window 128 + moe": 18, "attention + moe": 18}``."""
    kinds: dict[str, int] = {}
    for layer in architecture.layers:
        m = layer.mixer
        name = m.scan_kind if m.kind == "scan" else m.kind
        if m.index_top_k:
            name += f" top {m.index_top_k}"
        if m.window or m.chunk:
            name += f" window {m.window}" if m.window else f" chunk {m.chunk}"
        parts = [part for part in (name, layer.feed_forward.kind) if part != "none"]
        key = " + ".join(parts)
        kinds[key] = kinds.get(key, 0) + layer.count
    return kinds
