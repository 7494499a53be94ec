"""Bytes: weights, cache, state, activations."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from model_examples import MODELS, fitting

from trivet.model.architecture import Architecture
from trivet.model.config import read
from trivet.model.memory import (
    activation_bytes,
    kv_bytes_per_sequence,
    kv_bytes_per_token,
    state_bytes_per_sequence,
    weight_bytes,
)
from trivet.model.parallel import Layout
from trivet.model.parameters import expert_parameters, mixer_matrices


def test_bf16_weights_are_two_bytes_a_parameter() -> None:
    for name in ("Qwen/Qwen3-32B", "Qwen/Qwen3-30B-A3B", "Qwen/Qwen3.5-35B-A3B", "google/gemma-4-26B-A4B"):
        architecture = read(name)
        assert weight_bytes(architecture) == pytest.approx(2 * architecture.parameters, rel=1e-12)


def _redundant_parameters(architecture: Architecture, layout: Layout) -> float:
    """Parameters kept more than once by all chips of all stages, from the description: everything but the routed experts
    once more for each further rank of attention-DP and CP; what tensor parallelism keeps whole; copies of key-value heads;
    a tied table once more on the last stage."""
    hidden = architecture.hidden
    routed = sum(
        layer.count * layer.feed_forward.experts * expert_parameters(hidden, layer.feed_forward)
        for layer in architecture.layers if layer.feed_forward.kind == "moe"
    )  # fmt: skip
    cut = routed
    extra = 0.0
    for layer in architecture.layers:
        m, ff, n = mixer_matrices(hidden, layer.mixer), layer.feed_forward, layer.count
        heads = layer.mixer.kv_heads
        cut += n * (m.cut + m.per_kv_head * heads)
        extra += n * m.per_kv_head * max(0, layout.tp - heads)
        if ff.kind == "dense":
            cut += n * hidden * ff.intermediate * (3 if ff.gated else 2)
        elif ff.kind == "moe":
            cut += n * hidden * ff.shared_intermediate * (3 if ff.gated else 2)
    components = architecture.components
    tables = components["embedding"] + components.get("head", 0)
    cut += tables
    if architecture.tied_embeddings and layout.pp > 1:
        extra += components["embedding"]
    extra += (layout.tp - 1) * (architecture.parameters - cut)
    ranks = layout.attention_dp * layout.cp
    return ranks * extra + (ranks - 1) * (architecture.parameters - routed)


@settings(max_examples=100, deadline=None)
@given(
    name=st.sampled_from(["gqa", "moe", "mla", "sparse", "delta", "mamba", "chunked", "compressed"]),
    tp=st.sampled_from([1, 2, 4, 8, 16]),
    dp=st.sampled_from([1, 2, 4]), pp=st.sampled_from([1, 2, 5]), expert_parallel=st.booleans(),
)  # fmt: skip
def test_weights_are_conserved(name: str, tp: int, dp: int, pp: int, expert_parallel: bool) -> None:
    """All chips together hold the model once plus the named redundancy (in one dtype, where bytes are parameters)."""
    architecture = MODELS[name]
    group = tp * dp
    wanted = Layout(
        tp=tp, pp=pp, attention_dp=dp, moe_tp=1 if expert_parallel else group, moe_ep=group if expert_parallel else 1
    )
    layout = fitting(architecture, wanted)
    if layout is None:
        return
    options = {"weight_dtype": "bf16"}
    held = sum(weight_bytes(architecture, layout, stage=s, **options) for s in range(pp)) * layout.chips_per_stage
    base = 2.0 * architecture.parameters
    stored = architecture.quantisation.head
    assert stored == "bf16"
    assert held == pytest.approx(base + 2.0 * _redundant_parameters(architecture, layout), rel=1e-9)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("Qwen/Qwen3-32B", 64 * 8 * 128 * 2 * 2),
        ("deepseek-ai/DeepSeek-V3", 61 * 576 * 2),
        ("openai/gpt-oss-120b", 36 * 8 * 64 * 2 * 2),
    ],
)
def test_cache_of_a_token(name: str, expected: int) -> None:
    assert kv_bytes_per_token(read(name)) == expected


def test_cache_under_layouts() -> None:
    gqa, mla = MODELS["gqa"], MODELS["mla"]
    assert kv_bytes_per_token(gqa, Layout(tp=8)) == kv_bytes_per_token(gqa) / 8
    assert kv_bytes_per_token(gqa, Layout(tp=16)) == kv_bytes_per_token(gqa) / 8  # heads kept in copies
    assert kv_bytes_per_token(gqa, Layout(tp=16, dcp=2)) == kv_bytes_per_token(gqa) / 16
    assert kv_bytes_per_token(mla, Layout(tp=8)) == kv_bytes_per_token(mla)
    assert kv_bytes_per_token(mla, Layout(tp=8, dcp=4)) == kv_bytes_per_token(mla) / 4
    assert kv_bytes_per_token(gqa, kv_dtype="fp8") == kv_bytes_per_token(gqa) / 2


def test_windows_cap_the_cache() -> None:
    windowed = MODELS["windowed"]
    short, long = kv_bytes_per_sequence(windowed, 100), kv_bytes_per_sequence(windowed, 100_000)
    assert short == 100 * kv_bytes_per_token(windowed)
    assert long == 12 * 128 * 2048 + 12 * 100_000 * 2048
    assert kv_bytes_per_token(windowed, context=100_000.0) == kv_bytes_per_token(windowed) / 2


def test_compressed_keys_grow_slowly() -> None:
    """DeepSeek V4 Flash: one vector of 512 is key and value; 128 tokens of window, then one of 4 or of 128."""
    model = MODELS["compressed"]
    long = kv_bytes_per_sequence(model, 100_000)
    expected = 43 * 128 * 1024 + 21 * 25_000 * (1024 + 132) + 20 * 100_000 / 128 * 1024
    assert long == pytest.approx(expected)
    assert kv_bytes_per_token(model, context=100_000.0) == pytest.approx(21 * (1024 + 132) / 4 + 20 * 1024 / 128)


def test_state_of_a_sequence() -> None:
    assert state_bytes_per_sequence(MODELS["gqa"]) == 0
    delta = MODELS["delta"]
    scan = next(layer for layer in delta.layers if layer.mixer.kind == "scan")
    m = scan.mixer
    channels = 2 * m.key_heads * m.key_dim + m.value_heads * m.value_dim
    expected = scan.count * (4 * m.value_heads * m.key_dim * m.value_dim + 2 * 3 * channels)
    assert state_bytes_per_sequence(delta) == expected
    assert state_bytes_per_sequence(delta, Layout(tp=2)) == expected / 2


def test_quantised_weights_are_smaller() -> None:
    plain, eight, four = (
        weight_bytes(read(n))
        for n in ("Qwen/Qwen3-235B-A22B", "Qwen/Qwen3-235B-A22B-FP8", "nvidia/Qwen3-235B-A22B-NVFP4")
    )
    assert eight / plain == pytest.approx(0.5, abs=0.02)
    assert four / plain == pytest.approx(0.29, abs=0.03)


def test_activations_grow_with_tokens() -> None:
    for architecture in MODELS.values():
        assert activation_bytes(architecture, 2048.0) == pytest.approx(2 * activation_bytes(architecture, 1024.0))
