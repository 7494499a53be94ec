"""Operators under a layout: what all chips do together is the unsharded model plus the named redundancy."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from model_examples import MODELS, fitting

from trivet.errors import DoesNotFit
from trivet.model.architecture import Architecture
from trivet.model.config import read
from trivet.model.layers import operators, stage_counts, stage_operators
from trivet.model.parallel import Batch, Layout, stage_layers
from trivet.operators import Operator, Transfer


def flops_by_name(found: Iterable[Operator]) -> dict[str, float]:
    sums: dict[str, float] = defaultdict(float)
    for one in found:
        if not isinstance(one, Transfer):
            sums[one.name] += float(one.flops) * one.count
    return dict(sums)


def whole_machine(architecture: Architecture, batch: Batch, layout: Layout) -> dict[str, float]:
    """FLOPs by name of all chips of all stages."""
    sums: dict[str, float] = defaultdict(float)
    for stage in range(layout.pp):
        for name, amount in flops_by_name(stage_operators(architecture, batch, layout, stage)).items():
            sums[name] += amount * layout.chips_per_stage
    return dict(sums)


def redundancy(architecture: Architecture, rows: float, layout: Layout) -> dict[str, float]:
    """FLOPs that are done more than once, by operator, for ``rows`` tokens of the whole machine. Written from the models'
    description, not from the operators: what every chip of ``tp`` does in full, and key-value heads kept in copies."""
    extra: dict[str, float] = defaultdict(float)
    more = layout.tp - 1.0
    hidden = architecture.hidden
    for layer in architecture.layers:
        m, ff = layer.mixer, layer.feed_forward
        each = 2.0 * rows * layer.count
        if m.kind == "attention":
            copies = max(0.0, layout.tp - m.kv_heads)
            extra["qkv"] += each * hidden * copies * (m.head_dim + (m.v_head_dim or m.head_dim))
        if m.kind == "mla":
            latent = m.kv_lora_rank + m.rope_head_dim
            if m.q_lora_rank:
                extra["q_a_kv_a"] += each * more * hidden * (m.q_lora_rank + latent)
            else:
                extra["q_kv_a"] += each * more * hidden * latent
        if m.kind == "compressed":
            extra["q_a_kv"] += each * more * hidden * (m.q_lora_rank + m.head_dim)
            if m.compress:
                extra["compress"] += each * more * hidden * 2 * m.head_dim * (2 if m.index_heads else 1)
        if m.index_heads:
            keys = m.index_head_dim * (4 if m.kind == "compressed" else 1)
            extra["index_q"] += each * more * (m.q_lora_rank or hidden) * m.index_heads * m.index_head_dim
            extra["index_k"] += each * more * hidden * (keys + m.index_heads)
        if m.scan_kind == "kda":
            extra["scan_gate_down"] += each * more * hidden * 2 * m.value_dim
        if m.scan_kind == "mamba2":
            extra["scan_in"] += each * hidden * max(0.0, layout.tp - m.state_groups) * 2 * m.key_dim
        if ff.kind == "moe":
            extra["router"] += each * more * hidden * ff.experts
            if ff.latent:
                extra["latent_down"] += each * more * hidden * ff.latent
                extra["latent_up"] += each * more * hidden * ff.latent
    return extra


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.filter_too_much])
@given(
    name=st.sampled_from(sorted(MODELS)), tp=st.sampled_from([1, 2, 4, 8]), dp=st.sampled_from([1, 2, 4]),
    pp=st.sampled_from([1, 2, 3]), experts=st.sampled_from(["ep", "tp", "mixed"]), cp=st.sampled_from([1, 2]),
    sequence_parallel=st.booleans(), prefill=st.tuples(st.integers(0, 3), st.integers(1, 40), st.integers(0, 500)),
    decode=st.tuples(st.integers(0, 20), st.integers(0, 9000)),
)  # fmt: skip
def test_flops_are_conserved(
    name: str, tp: int, dp: int, pp: int, experts: str, cp: int, sequence_parallel: bool,
    prefill: tuple[int, int, int], decode: tuple[int, int],
) -> None:  # fmt: skip
    architecture = MODELS[name]
    group = tp * dp * cp
    ep = {"ep": group, "tp": 1, "mixed": max(1, group // 2)}[experts]
    layout = fitting(
        architecture,
        Layout(
            tp=tp, pp=pp, attention_dp=dp, moe_tp=group // ep, moe_ep=ep, cp=cp, sequence_parallel=sequence_parallel
        ),
    )
    if layout is None:
        return
    batch = Batch(
        prefill_sequences=float(prefill[0]), prefill_tokens=float(prefill[1] * 8), prefill_past=float(prefill[2]),
        decode_sequences=float(decode[0] * 2), decode_context=float(decode[1]),
    )  # fmt: skip
    alone = flops_by_name(operators(architecture, batch))
    together = whole_machine(architecture, batch, layout)
    extra = redundancy(architecture, float(batch.tokens) * dp, layout)
    assert set(together) == set(alone)
    for operator, amount in together.items():
        if operator.startswith("index_score"):
            expected = alone[operator] * dp * tp  # the indexer is whole on every chip of tp
        elif operator == "kv_b":
            expected = alone[operator] * dp * cp  # every chip of cp up-projects all gathered latents
        else:
            expected = alone[operator] * dp + extra.get(operator, 0.0)
        if operator.endswith("_prefill") and cp > 1 and (operator.startswith("index") or _windowed(architecture)):
            # The mean rank of a context-parallel group: exact without a window, close with one.
            assert amount == pytest.approx(expected, rel=0.35)
        else:
            assert amount == pytest.approx(expected, rel=1e-9), operator


def _windowed(architecture: Architecture) -> bool:
    return any(layer.mixer.window or layer.mixer.chunk or layer.mixer.index_top_k for layer in architecture.layers)


@pytest.mark.parametrize("name", sorted(MODELS))
def test_stages_add_up(name: str) -> None:
    architecture = MODELS[name]
    batch = Batch(decode_sequences=3.0, decode_context=100.0, prefill_sequences=1.0, prefill_tokens=64.0)
    layout = Layout(pp=3)
    found: dict[str, float] = defaultdict(float)
    for stage in range(3):
        for one in stage_operators(architecture, batch, layout, stage):
            found[one.name] += float(np.sum(one.bytes)) * one.count
    whole = {}
    for one in operators(architecture, batch, layout):
        whole[one.name] = whole.get(one.name, 0.0) + float(np.sum(one.bytes)) * one.count
    assert found == pytest.approx(whole)
    assert np.sum([stage_counts(architecture, 3, s) for s in range(3)]) == architecture.num_layers


@given(layers=st.integers(1, 200), pp=st.integers(1, 16))
def test_stages_are_a_partition(layers: int, pp: int) -> None:
    if pp > layers:
        return
    stages = stage_layers(layers, pp)
    assert [i for stage in stages for i in stage] == list(range(layers))
    assert max(map(len, stages)) - min(map(len, stages)) <= 1


@settings(max_examples=60, deadline=None)
@given(
    name=st.sampled_from(sorted(MODELS)), sequences=st.integers(1, 300), more=st.integers(1, 100),
    context=st.integers(1, 100_000),
)  # fmt: skip
def test_more_work_is_never_less(name: str, sequences: int, more: int, context: int) -> None:
    """FLOPs and bytes grow with the batch and with the context."""
    architecture = MODELS[name]

    def total(count: float, length: float) -> tuple[float, float]:
        found = operators(architecture, Batch(decode_sequences=count, decode_context=length))
        compute = [one for one in found if not isinstance(one, Transfer)]
        return sum(float(o.flops) * o.count for o in compute), sum(float(o.bytes) * o.count for o in compute)

    base = total(sequences, context)
    wider, longer = total(sequences + more, context), total(sequences, context + more)
    assert wider[0] > base[0]
    assert wider[1] > base[1]
    assert longer[0] >= base[0]
    assert longer[1] >= base[1]


def test_a_grid_is_its_points() -> None:
    """Arrays in a batch give what the numbers give one by one."""
    architecture, layout = MODELS["moe"], Layout(tp=4)
    sizes = np.array([1.0, 17.0, 256.0])
    grid = operators(architecture, Batch(decode_sequences=sizes, decode_context=1000.0), layout)
    for i, size in enumerate(sizes):
        point = operators(architecture, Batch(decode_sequences=float(size), decode_context=1000.0), layout)
        assert [one.name for one in point] == [one.name for one in grid]
        for many, single in zip(grid, point, strict=True):
            assert np.broadcast_to(many.bytes, sizes.shape)[i] == pytest.approx(float(single.bytes))
            assert np.broadcast_to(many.flops, sizes.shape)[i] == pytest.approx(float(single.flops))


def test_dense_flops_are_two_a_parameter() -> None:
    architecture = read("meta-llama/Meta-Llama-3.1-8B")
    found = operators(architecture, Batch(decode_sequences=1.0, decode_context=0.0))
    total = sum(float(o.flops) * o.count for o in found if not isinstance(o, Transfer))
    components = architecture.components
    touched = architecture.parameters - components["embedding"] - components["norms"]
    attention = 2 * 32 * 32 * 2 * 128  # one key for each of 32 heads in 32 layers
    assert total == pytest.approx(2 * touched + attention)


@pytest.mark.parametrize(
    ("layout", "field"),
    [
        (Layout(tp=3), "tp"),
        (Layout(pp=65), "pp"),
        (Layout(tp=2, dcp=2), "dcp"),
    ],
)
def test_a_layout_that_does_not_divide_is_named(layout: Layout, field: str) -> None:
    with pytest.raises(DoesNotFit) as caught:
        operators(MODELS["gqa"], Batch(decode_sequences=1.0), layout)
    assert caught.value.field == field
    assert caught.value.allowed


def test_experts_that_do_not_divide_are_named() -> None:
    with pytest.raises(DoesNotFit, match="moe_tp"):
        operators(MODELS["moe"], Batch(decode_sequences=1.0), Layout(tp=4, moe_tp=2, moe_ep=4))
    with pytest.raises(DoesNotFit, match="moe_ep"):
        operators(MODELS["moe"], Batch(decode_sequences=1.0), Layout(attention_dp=3, moe_ep=3))


def test_transfers_of_expert_parallelism() -> None:
    batch = Batch(decode_sequences=8.0, decode_context=10.0)
    spread = [o for o in operators(MODELS["moe"], batch, Layout(attention_dp=8, moe_ep=8)) if isinstance(o, Transfer)]
    assert {o.name for o in spread} == {"moe_dispatch", "moe_combine"}
    cut = [o for o in operators(MODELS["moe"], batch, Layout(attention_dp=8, moe_tp=8)) if isinstance(o, Transfer)]
    assert {o.kind for o in cut} == {"all_gather", "reduce_scatter"}
    tensor = [o for o in operators(MODELS["moe"], batch, Layout(tp=4)) if isinstance(o, Transfer)]
    assert {o.axis for o in tensor} == {"tp"}


def test_decode_context_parallelism_shares_the_cache() -> None:
    batch = Batch(decode_sequences=8.0, decode_context=8000.0)
    plain = {o.name: o for o in operators(MODELS["mla"], batch, Layout(tp=8))}
    split = {o.name: o for o in operators(MODELS["mla"], batch, Layout(tp=8, dcp=8))}
    assert float(split["attention_decode"].flops) == pytest.approx(float(plain["attention_decode"].flops), rel=1e-3)
    assert float(split["attention_decode"].bytes) < float(plain["attention_decode"].bytes) / 4
    assert {"dcp_query_all_gather", "dcp_reduce_scatter"} <= set(split)


def test_tokens_of_a_stage_are_sent_on() -> None:
    found = [o for o in operators(MODELS["gqa"], Batch(decode_sequences=4.0), Layout(pp=4)) if o.name == "stage_send"]
    assert [(o.count, float(o.bytes)) for o in found if isinstance(o, Transfer)] == [(3.0, 4 * 5120 * 2)]
