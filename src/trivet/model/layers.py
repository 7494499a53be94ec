"""Layers to operators: what ONE chip does in one step under a layout, fused as serving engines run it.

``operators`` walks the whole stack: the path of a token through every pipeline stage, each operator's ``count`` being the
number of times a chip of the stage that owns it runs it. ``stage_operators`` gives one stage alone. Dimensions may be
numpy arrays (a grid of batches); operators of identical layers are one operator with a ``count``.

What is shared between chips, and so is *not* divided (the named redundancy of ``docs/model.md``): norms and router over
``tp`` (unless ``sequence_parallel``), key-value heads and latents when ``tp`` exceeds them, the sparse indexer over ``tp``.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from trivet.model import expert_load, mixers
from trivet.model.architecture import Architecture, FeedForward, Layer
from trivet.model.parallel import Batch, Layout, resolve, stage_layers
from trivet.operators import ACTIVATION_BYTES, Gemm, GroupedGemm, Number, Operator, Stream, Transfer


@dataclass(frozen=True, slots=True)
class Precision:
    """Labels that the operators run in, resolved from the checkpoint and the overrides."""

    attention: str
    dense: str
    experts: str
    head: str
    kv: str


def precision(architecture: Architecture, weight_dtype: str = "", moe_dtype: str = "", kv_dtype: str = "") -> Precision:
    """Dtypes of a run: an override replaces what the checkpoint stores.

    ``weight_dtype`` sets attention, dense and (unless ``moe_dtype`` is given) expert weights; the head keeps its own.
    """
    stored = architecture.quantisation
    return Precision(
        weight_dtype or stored.attention,
        weight_dtype or stored.dense,
        moe_dtype or weight_dtype or stored.experts,
        stored.head,
        kv_dtype or stored.kv_cache,
    )


def operators(
    architecture: Architecture,
    batch: Batch,
    layout: Layout | None = None,
    *,
    weight_dtype: str = "",
    moe_dtype: str = "",
    kv_dtype: str = "",
) -> tuple[Operator, ...]:
    """Operators of one chip for one step of one attention-DP rank, through all pipeline stages.

    Args:
        architecture: the model.
        batch: what the step carries (fields may be arrays that broadcast).
        layout: how the model is split; default one chip.
        weight_dtype, moe_dtype, kv_dtype: overrides of the checkpoint's own labels ("" = keep).

    Raises:
        DoesNotFit: the layout does not divide the model.
    """
    layout = resolve(architecture, layout or Layout())
    dtypes = precision(architecture, weight_dtype, moe_dtype, kv_dtype)
    step = _Step(architecture, batch, layout, dtypes)
    counts = [layer.count for layer in architecture.layers]
    found = [*step.embedding(), *step.stack(counts), *step.head()]
    if layout.pp > 1:
        found.append(step.stage_send(layout.pp - 1))
    return tuple(found)


def stage_operators(
    architecture: Architecture,
    batch: Batch,
    layout: Layout,
    stage: int,
    *,
    weight_dtype: str = "",
    moe_dtype: str = "",
    kv_dtype: str = "",
) -> tuple[Operator, ...]:
    """Operators of one chip of pipeline ``stage`` (0-based): embedding on the first, head on the last, and the send that
    hands the activations on. Over all stages they add up to ``operators``."""
    layout = resolve(architecture, layout)
    step = _Step(architecture, batch, layout, precision(architecture, weight_dtype, moe_dtype, kv_dtype))
    found: list[Operator] = [] if stage else list(step.embedding())
    found += step.stack(stage_counts(architecture, layout.pp, stage))
    if stage == layout.pp - 1:
        found += step.head()
    else:
        found.append(step.stage_send(1))
    return tuple(found)


def stage_counts(architecture: Architecture, pp: int, stage: int) -> list[int]:
    """How many layers of each entry of ``architecture.layers`` stage ``stage`` of ``pp`` holds."""
    stack = architecture.stack
    counts = [0] * len(architecture.layers)
    for position in stage_layers(len(stack), pp)[stage]:
        counts[stack[position]] += 1
    return counts


class _Step:
    """One step being translated: the batch per rank, the layout and the dtypes, shared by the small builders below."""

    def __init__(self, architecture: Architecture, batch: Batch, layout: Layout, dtypes: Precision):
        self.architecture, self.layout, self.dtypes = architecture, layout, dtypes
        # Context parallelism: a chip of the rank holds 1/cp of the new tokens.
        self.batch = batch
        self.tokens = np.asarray(batch.tokens, float) / layout.cp
        self.hidden = architecture.hidden
        self.norm_rows: Number = self.tokens / (layout.tp if layout.sequence_parallel else 1)

    # --- the ends of the stack
    def embedding(self) -> list[Operator]:
        rows, tp = self.tokens, self.layout.tp
        found: list[Operator] = [Stream("embedding", 4.0 * rows * self.hidden)]
        if tp > 1:
            found.append(Transfer("embedding_all_reduce", "all_reduce", 2.0 * rows * self.hidden, tp, "tp"))
        return found

    def head(self) -> list[Operator]:
        found: list[Operator] = [self.norm("final_norm")]
        vocab, tp = self.architecture.vocab, self.layout.tp
        rows = np.asarray(self.batch.head_rows, float) / self.layout.cp
        if not vocab:
            return found
        found.append(Gemm("lm_head", rows, vocab / tp, self.hidden, self.dtypes.head))
        if tp > 1:
            found.append(Transfer("logits_all_gather", "all_gather", 2.0 * rows * vocab, tp, "tp"))
        found.append(Stream("sample", 6.0 * rows * vocab))
        return found

    def stage_send(self, times: int) -> Transfer:
        size = 2.0 * self.norm_rows * self.hidden
        return Transfer("stage_send", "send", size, 2, "pp", count=float(times))

    # --- the stack
    def stack(self, counts: list[int]) -> list[Operator]:
        found: list[Operator] = []
        for layer, count in zip(self.architecture.layers, counts, strict=True):
            if count:
                found += [replace(operator, count=operator.count * count) for operator in self.layer(layer)]
        return _merged(found)

    def layer(self, layer: Layer) -> list[Operator]:
        found: list[Operator] = []
        if layer.mixer.kind != "none":
            found.append(self.norm("attention_norm"))
            found += mixers.operators(
                layer.mixer,
                self.hidden,
                self.batch,
                self.layout,
                self.dtypes.attention,
                self.dtypes.kv,
                causal=not self.architecture.encoder,
            )
            found += self.join("attention")
        if layer.feed_forward.kind == "dense":
            found.append(self.norm("ffn_norm"))
            found += self.dense("ffn", layer.feed_forward.intermediate, layer.feed_forward.gated, self.dtypes.dense)
            found += self.join("ffn")
        elif layer.feed_forward.kind == "moe":
            found.append(self.norm("ffn_norm"))
            found += self.moe(layer.feed_forward)
        return found

    def norm(self, name: str) -> Stream:
        """Residual add and norm in one pass: two reads, two writes."""
        return Stream(name, 8.0 * self.norm_rows * self.hidden)

    def join(self, name: str) -> list[Operator]:
        """Sum the partial results of a tensor-parallel product."""
        tp, size = self.layout.tp, 2.0 * self.tokens * self.hidden
        if tp == 1:
            return []
        if self.layout.sequence_parallel:
            return [
                Transfer(f"{name}_reduce_scatter", "reduce_scatter", size, tp, "tp"),
                Transfer(f"{name}_all_gather", "all_gather", size, tp, "tp"),
            ]
        return [Transfer(f"{name}_all_reduce", "all_reduce", size, tp, "tp")]

    def dense(self, name: str, intermediate: float, gated: bool, dtype: str) -> list[Operator]:
        columns, rows = intermediate / self.layout.tp, self.tokens
        up = "gate_up" if gated else "up"
        return [
            Gemm(f"{name}_{up}", rows, columns * (2 if gated else 1), self.hidden, dtype),
            Stream(f"{name}_activation", rows * columns * (6.0 if gated else 4.0)),
            Gemm(f"{name}_down", rows, self.hidden, columns, dtype),
        ]

    def moe(self, ff: FeedForward) -> list[Operator]:
        layout, rows, hidden = self.layout, self.tokens, self.hidden
        width = ff.latent or hidden
        group_tokens = rows * layout.attention_dp * layout.cp
        found: list[Operator] = [
            Gemm("router", rows, ff.experts, hidden, "bf16"),
            Stream("route", rows * (4.0 * ff.experts + 8.0 * ff.top_k)),
        ]
        if ff.latent:
            found.append(Gemm("latent_down", rows, ff.latent, hidden, self.dtypes.dense))
        before, after = self.exchange(ff, width)
        experts = GroupedGemm(
            "experts",
            group_tokens,
            width,
            ff.expert_intermediate / layout.moe_tp,
            ff.experts + layout.redundant_experts,
            (ff.experts + layout.redundant_experts) / layout.moe_ep,
            ff.top_k,
            self.dtypes.experts,
            ff.gated,
            self.expert_skew(ff, group_tokens),
        )
        found += [
            *before,
            experts,
            Stream("expert_sum", 2.0 * rows * width * (ff.top_k / max(1, layout.moe_ep) + 1.0)),
            *after,
        ]
        if ff.latent:
            found.append(Gemm("latent_up", rows, hidden, ff.latent, self.dtypes.dense))
        if ff.shared_intermediate:
            found += self.dense("shared", ff.shared_intermediate, ff.gated, self.dtypes.dense)
            if layout.attention_dp * layout.cp > 1:
                found += self.join("shared")
        return found

    def expert_skew(self, ff: FeedForward, tokens: Number) -> Number:
        """Hottest chip's expert load over the mean: given, or by the popularity of experts and the tokens of the batch."""
        layout = self.layout
        if layout.moe_ep == 1:
            return 1.0
        if layout.expert_zipf is None:
            return layout.expert_skew
        return expert_load.skew(
            ff.experts, ff.top_k, layout.moe_ep, np.asarray(tokens, float), layout.expert_zipf, layout.redundant_experts
        )

    def exchange(self, ff: FeedForward, width: float) -> tuple[list[Operator], list[Operator]]:
        """Transfers before and after the experts.

        Without attention-DP every chip of ``tp`` already holds all tokens: one reduction afterwards. With it and expert
        parallelism: dispatch and combine by all-to-all, one copy of a token for each chip group that holds one of its
        experts. With it and tensor-parallel experts: all-gather the tokens, reduce-scatter the results.
        """
        layout, rows = self.layout, self.tokens
        ranks = layout.attention_dp * layout.cp
        if ranks == 1:
            return [], self.join("moe")
        group = layout.chips_per_stage
        if layout.moe_ep == 1:
            size = 2.0 * rows * ranks * width
            return (
                [Transfer("moe_all_gather", "all_gather", size, group, "dp")],
                [Transfer("moe_reduce_scatter", "reduce_scatter", size, group, "dp")],
            )
        ways = layout.moe_ep
        copies = ways * (1.0 - (1.0 - 1.0 / ways) ** ff.top_k) * layout.moe_tp
        own = rows / layout.tp * copies * width
        sent = ACTIVATION_BYTES[self.dtypes.experts] if self.dtypes.experts.startswith(("fp8", "nvfp4")) else 2.0
        before: list[Operator] = [Transfer("moe_dispatch", "all_to_all", sent * own, group, "ep", self.dtypes.experts)]
        after: list[Operator] = [Transfer("moe_combine", "all_to_all", 2.0 * own, group, "ep")]
        if layout.tp > 1:
            after.append(Transfer("moe_all_gather", "all_gather", 2.0 * rows * width, layout.tp, "tp"))
        return before, after


def _merged(found: list[Operator]) -> list[Operator]:
    """Equal operators as one with a count. Two are equal when every field but the count is."""
    merged: dict[Any, Operator] = {}
    for operator in found:
        key: list[Any] = [type(operator).__name__]
        for name in operator.__dataclass_fields__:
            if name != "count":
                value = getattr(operator, name)
                key.append((np.shape(value), np.asarray(value).tobytes()) if isinstance(value, np.ndarray) else value)
        identity = tuple(key)
        known = merged.get(identity)
        merged[identity] = operator if known is None else replace(known, count=known.count + operator.count)
    return list(merged.values())
