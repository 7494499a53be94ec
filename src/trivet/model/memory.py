"""What a model keeps in a chip's memory: weights, KV cache, recurrent state, activations. All in bytes per chip."""

from __future__ import annotations

from collections.abc import Callable

from trivet.model.architecture import Architecture, FeedForward, Layer, Mixer
from trivet.model.layers import Precision, precision, stage_counts
from trivet.model.parallel import Layout, resolve
from trivet.model.parameters import expert_parameters, mixer_matrices
from trivet.operators import WEIGHT_BYTES, Number


def weight_bytes(
    architecture: Architecture,
    layout: Layout | None = None,
    *,
    weight_dtype: str = "",
    moe_dtype: str = "",
    stage: int | None = None,
) -> float:
    """Weights of one chip of pipeline ``stage`` (default: the fullest stage), scales of quantisation included.

    Matrices are cut over ``tp`` (experts over ``moe_tp`` and ``moe_ep``); key-value heads are kept at least once a chip;
    norms, biases, router, latent down-projections, indexer and towers are whole on every chip.
    """
    layout = resolve(architecture, layout or Layout())
    dtypes = precision(architecture, weight_dtype, moe_dtype)
    if stage is None:
        return max(
            weight_bytes(architecture, layout, weight_dtype=weight_dtype, moe_dtype=moe_dtype, stage=s)
            for s in range(layout.pp)
        )
    counts = stage_counts(architecture, layout.pp, stage)
    total = sum(
        count
        * (
            _mixer_bytes(architecture.hidden, layer.mixer, layout, dtypes)
            + _feed_forward_bytes(architecture.hidden, layer.feed_forward, layout, dtypes)
        )
        for layer, count in zip(architecture.layers, counts, strict=True)
        if count
    )
    base = WEIGHT_BYTES[architecture.quantisation.head]
    components = architecture.components
    if stage == 0:
        total += components.get("embedding", 0) / layout.tp * base
    if stage == layout.pp - 1:
        head = components.get("head", 0) or (components.get("embedding", 0) if layout.pp > 1 else 0)
        total += head / layout.tp * WEIGHT_BYTES[dtypes.head]
    return total + _unsharded(architecture) * base * sum(counts) / architecture.num_layers


def _matrix_weights(architecture: Architecture, layer: Layer) -> int:
    """Weights of one layer that the sharded formulas below cover."""
    matrices = mixer_matrices(architecture.hidden, layer.mixer)
    covered = matrices.cut + matrices.per_kv_head * layer.mixer.kv_heads + matrices.whole
    ff, hidden = layer.feed_forward, architecture.hidden
    if ff.kind == "dense":
        covered += hidden * ff.intermediate * (3 if ff.gated else 2)
    elif ff.kind == "moe":
        covered += ff.experts * expert_parameters(hidden, ff) + 2 * hidden * ff.latent
        covered += hidden * ff.experts + hidden * ff.shared_intermediate * (3 if ff.gated else 2)
    return covered


def _unsharded(architecture: Architecture) -> float:
    """Parameters outside the big matrices, embedding and head: norms, biases, state vectors, towers. Whole on every chip."""
    covered = sum(layer.count * _matrix_weights(architecture, layer) for layer in architecture.layers)
    components = architecture.components
    rest = architecture.parameters - components.get("embedding", 0) - components.get("head", 0) - covered
    return max(0.0, float(rest))  # layers that share one set of weights are covered more than once


def _mixer_bytes(hidden: int, mixer: Mixer, layout: Layout, dtypes: Precision) -> float:
    matrices = mixer_matrices(hidden, mixer)
    kv_heads = max(1.0, mixer.kv_heads / layout.tp) if matrices.per_kv_head else 0.0
    weights = matrices.cut / layout.tp + matrices.per_kv_head * kv_heads + matrices.whole
    return weights * WEIGHT_BYTES[dtypes.attention]


def _feed_forward_bytes(hidden: int, ff: FeedForward, layout: Layout, dtypes: Precision) -> float:
    ways = 3 if ff.gated else 2
    if ff.kind == "dense":
        return hidden * ff.intermediate * ways / layout.tp * WEIGHT_BYTES[dtypes.dense]
    if ff.kind == "moe":
        kept = ff.experts + layout.redundant_experts
        routed = kept * expert_parameters(hidden, ff) / (layout.moe_tp * layout.moe_ep)
        shared = hidden * ff.shared_intermediate * ways / layout.tp
        beside = hidden * ff.experts * 2.0 + (shared + 2 * hidden * ff.latent) * WEIGHT_BYTES[dtypes.dense]
        return routed * WEIGHT_BYTES[dtypes.experts] + beside
    return 0.0


# --- cache and state ------------------------------------------------------------------------------------------------


def _cache_width(mixer: Mixer, tp: int) -> float:
    """Elements that one token adds to one layer's cache on one chip."""
    if mixer.shared_kv:
        return 0.0
    if mixer.kind == "attention":
        return max(1.0, mixer.kv_heads / tp) * (mixer.head_dim + (mixer.v_head_dim or mixer.head_dim))
    if mixer.kind == "mla":
        return float(mixer.kv_lora_rank + mixer.rope_head_dim)
    if mixer.kind == "compressed":  # one vector is key and value
        return float(mixer.head_dim)
    return 0.0


def _cache_bytes(mixer: Mixer, tp: int, label: str, context: float) -> float:
    """Cache of one sequence of ``context`` tokens in one layer on one chip."""
    width = _cache_width(mixer, tp) * WEIGHT_BYTES[label]
    limit = mixer.window or mixer.chunk
    kept = min(context, limit) if limit else context
    if mixer.kind == "compressed":
        compressed = context / mixer.compress if mixer.compress else 0.0
        return kept * width + compressed * (width + _index_bytes(mixer))
    return kept * (width + _index_bytes(mixer))


def _growth_bytes(mixer: Mixer, tp: int, label: str, context: float) -> float:
    """What one more token adds after ``context`` others; with 0 every layer counts as growing."""
    width = _cache_width(mixer, tp) * WEIGHT_BYTES[label] + _index_bytes(mixer)
    if mixer.kind == "compressed" and mixer.compress:
        return width / mixer.compress
    limit = mixer.window or mixer.chunk
    return 0.0 if context and limit and context > limit else width


def _index_bytes(mixer: Mixer) -> float:
    """The sparse indexer's FP8 keys with an fp32 scale for each."""
    return mixer.index_head_dim + 4.0 if mixer.index_heads else 0.0


def _fullest_stage(architecture: Architecture, pp: int, of_layer: Callable[[Mixer], float]) -> float:
    """The most that the layers of one pipeline stage hold together."""
    best = 0.0
    for stage in range(pp):
        total = 0.0
        for layer, count in zip(architecture.layers, stage_counts(architecture, pp, stage), strict=True):
            total += count * of_layer(layer.mixer)
        best = max(best, total)
    return best


def kv_bytes_per_token(
    architecture: Architecture, layout: Layout | None = None, *, kv_dtype: str = "", context: float = 0.0
) -> float:
    """KV cache that one more token takes on one chip (all layers of the fullest stage).

    With ``context`` (tokens of the sequence) sliding-window and chunked layers count only while they still grow; with
    0 every layer counts. Latents are whole on every chip of ``tp``; key-value heads at least one a chip; ``dcp`` and
    ``cp`` split the tokens.
    """
    layout = resolve(architecture, layout or Layout())
    label = precision(architecture, kv_dtype=kv_dtype).kv
    held = _fullest_stage(architecture, layout.pp, lambda mixer: _growth_bytes(mixer, layout.tp, label, context))
    return held / (layout.dcp * layout.cp)


def kv_bytes_per_sequence(
    architecture: Architecture, context: float, layout: Layout | None = None, *, kv_dtype: str = ""
) -> float:
    """KV cache of one sequence of ``context`` tokens on one chip; windowed layers keep their window only."""
    layout = resolve(architecture, layout or Layout())
    label = precision(architecture, kv_dtype=kv_dtype).kv
    held = _fullest_stage(architecture, layout.pp, lambda mixer: _cache_bytes(mixer, layout.tp, label, context))
    return held / (layout.dcp * layout.cp)


def state_bytes_per_sequence(architecture: Architecture, layout: Layout | None = None) -> float:
    """Recurrent state of one sequence on one chip: fp32 states and bf16 convolution tails."""
    layout = resolve(architecture, layout or Layout())
    return _fullest_stage(architecture, layout.pp, _state_bytes) / layout.tp


def _state_bytes(m: Mixer) -> float:
    if m.kind != "scan":
        return 0.0
    key, value, tail = m.key_heads * m.key_dim, m.value_heads * m.value_dim, max(0, m.conv_width - 1)
    if m.scan_kind in ("gdn", "kda"):
        return 4.0 * m.value_heads * m.key_dim * m.value_dim + 2.0 * tail * (2 * key + value)
    if m.scan_kind == "mamba2":
        return 4.0 * value * m.key_dim + 2.0 * tail * (value + 2 * m.state_groups * m.key_dim)
    if m.scan_kind == "mamba1":
        return 4.0 * m.value_heads * m.key_dim + 2.0 * tail * m.value_heads
    if m.scan_kind == "lightning":
        return 4.0 * m.value_heads * m.key_dim * m.value_dim
    if m.scan_kind == "short_conv":
        return 2.0 * m.conv_width * m.value_heads
    return 4.0 * value + 2.0 * tail * value


def activation_bytes(
    architecture: Architecture, tokens: Number, layout: Layout | None = None, *, head_rows: Number = 0.0
) -> Number:
    """Working memory of one step of ``tokens`` tokens per rank on one chip: the widest layer's live tensors in bf16
    (residual, input, widest intermediate and its output), and the logits in fp32 where a head runs."""
    layout = resolve(architecture, layout or Layout())
    widest = 0.0
    for layer in architecture.layers:
        ff, m = layer.feed_forward, layer.mixer
        qkv = m.heads * (m.head_dim or m.nope_head_dim + m.rope_head_dim) + 2 * m.kv_heads * m.head_dim
        scan = 2 * m.key_heads * m.key_dim + 2 * m.value_heads * max(1, m.value_dim)
        widest = max(widest, 2.0 * qkv / layout.tp, 2.0 * scan / layout.tp if m.kind == "scan" else 0.0)
        if ff.kind == "dense":
            widest = max(widest, 3.0 * ff.intermediate / layout.tp)
        elif ff.kind == "moe":
            copies = ff.top_k * layout.attention_dp * layout.cp / layout.moe_ep
            routed = copies * (3.0 * ff.expert_intermediate / layout.moe_tp + 2.0 * (ff.latent or architecture.hidden))
            widest = max(widest, routed, 3.0 * ff.shared_intermediate / layout.tp)
    return 2.0 * tokens * (3.0 * architecture.hidden + widest) + 4.0 * head_rows * architecture.vocab / layout.tp
