"""Kernels of experts and of latent attention: which one runs, and what is known of it beforehand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from trivet.chip import residual, timing
from trivet.chip.catalogue import chip
from trivet.chip.centre import centre
from trivet.chip.experts import INT8_OFFSET, KERNELS, alike, expert_kernel, nearest_kernel, taken_as
from trivet.chip.features import features, floor_seconds
from trivet.chip.kernels import latent_maker
from trivet.chip.point import chip_point
from trivet.chip.terms import Terms, terms
from trivet.operators import Attention, GroupedGemm

TOKENS = np.array([1.0, 64.0, 8192.0])


def _experts(dtype: str, kernel: str, part: str, library: str = "vllm") -> Terms:
    operator = GroupedGemm("e", TOKENS, 4096.0, 1536.0, 128.0, 128.0, 8.0, dtype)
    return terms(operator, chip_point(chip(part), dtype), True, f"{library}/{kernel}")


@pytest.mark.parametrize(
    ("library", "family", "precision", "source", "kernel"),
    [
        ("vllm", "hopper", "bf16", "vllm_unquantizedfusedmoe_triton_tritonexperts", "triton"),
        ("vllm", "ampere", "bf16", "vllm_fused_moe", "triton"),
        ("sglang", "blackwell", "nvfp4", "sglang_flashinfer_trtllm_moe", "gen"),
        ("vllm", "blackwell-gddr", "fp8", "vllm_modeloptfp8moe_flashinfer_cutlass_flashinferexperts", "ficutlass"),
        ("vllm", "hopper", "fp8", "vllm_modeloptfp8moe_flashinfer_cutlass_flashinferexperts", "ficutlass+90"),
        ("vllm", "hopper", "fp8_block", "vllm_fp8moe_flashinfer_cutlass_flashinferexperts", "ficutlass"),
        ("trtllm", "blackwell", "nvfp4", "moe_torch_flow_min_latency", "min"),
        ("trtllm", "ampere", "bf16", "moe_torch_flow", "cutlass"),
        ("trtllm", "hopper", "mxfp4", "moe_torch_flow", "oai"),
        ("trtllm", "blackwell", "mxfp4", "moe_torch_flow", "mixed"),
        ("vllm", "hopper", "int4_wo", "", "marlin"),
        ("vllm", "cdna3", "bf16", "", "aiter"),
        ("vllm", "cdna3", "int4_wo", "", "triton"),
        ("sglang", "tpu", "mxfp4", "", "compiled"),
        ("trtllm", "hopper", "int8", "", "cutlass"),
        ("sglang", "blackwell", "fp8_block", "", "gen"),
    ],
)
def test_kernel_of_a_source_or_an_engines_choice(
    library: str, family: str, precision: str, source: str, kernel: str
) -> None:
    assert expert_kernel(library, family, precision, source) == kernel


def test_likenesses_are_kernels_and_those_that_widen_come_first_for_narrow_weights() -> None:
    for name, kernel in KERNELS.items():
        assert set(kernel.like) <= set(KERNELS) - {name}
    assert alike("gen", "mxfp4")[1] == "marlin" and alike("gen", "nvfp4")[1] == "cutlass"
    assert nearest_kernel("gen", "nvfp4", ("triton", "cutlass")) == "cutlass"
    assert nearest_kernel("gen", "bf16", ()) == "" and alike("fa3", "bf16") == ("fa3",)


def test_floor_follows_the_launches() -> None:
    point = chip_point(chip("b200"), "nvfp4")
    gen, cutlass = (floor_seconds(point, "moe", f"trtllm/{k}", "nvfp4") for k in ("gen", "cutlass"))
    assert cutlass / gen == pytest.approx(12.0 / 5.0)
    assert floor_seconds(point, "decode", "trtllm/gen") == floor_seconds(point, "decode")


def test_amperes_multiply_keeps_amperes_rate() -> None:
    for part, slower in (("a100-80gb", 1.0), ("l40s", 1.0), ("h100", 1.5), ("b200", 3.0)):
        marlin, other = (_experts("int4_wo", k, part).compute_s for k in ("marlin", "cutlass"))
        ratio = np.asarray(marlin / other)
        assert np.all(ratio >= slower - 1e-9), part
        assert np.ptp(ratio) < 1e-9
        if slower == 1.0:
            assert np.all(ratio < 1.1), part


def test_widening_bounds_fast_memories_only() -> None:
    fast, slow = (
        _experts("int4_wo", "marlin", part).memory_s / _experts("int4_wo", "cutlass", part).memory_s
        for part in ("h200", "l40s")
    )
    assert fast[1] > 1.2 and slow[1] < 1.1
    four, integers = (_experts(d, "gen", "b200").memory_s[1] for d in ("mxfp4", "int4_wo"))
    assert integers > 1.3 * four  # Blackwell widens FP4 by an instruction
    assert np.allclose(_experts("nvfp4", "gen", "b200").memory_s, _experts("nvfp4", "cutlass", "b200").memory_s)


def test_sglang_reads_fp4_weights_in_16_bits_under_triton() -> None:
    four, sixteen = (_experts(d, "triton", "h100", "sglang").bytes for d in ("mxfp4", "bf16"))
    assert four[1] == pytest.approx(sixteen[1], rel=0.02)
    assert _experts("mxfp4", "marlin", "h100").bytes[1] < 0.4 * sixteen[1]


def test_experts_are_told_their_kernel() -> None:
    kinds = residual.shipped()
    told = {**kinds, "moe": replace(kinds["moe"], kernels=("gen", "triton"))}
    assert residual.with_kernel(told, "moe", "vllm", "hopper", "bf16") == ("moe", "vllm/triton")
    assert residual.with_kernel(told, "moe", "vllm/gen", "hopper", "bf16") == ("moe", "vllm/gen")
    assert residual.with_kernel(told, "moe", "trtllm_min", "blackwell", "nvfp4") == ("moe", "trtllm/min")
    ones = residual.indicators(("bf16",), "vllm/ficutlass", "bf16", ("triton", "gen"))
    assert ones.tolist()[-2:] == [0.0, 1.0]  # the generated kernel is nearer to a grouped product than Triton's


def test_typical_experts_have_a_centre() -> None:
    kind, point = residual.shipped()["moe"], chip_point(chip("h100"), "bf16")
    operator = GroupedGemm("e", TOKENS, 4096.0, 1536.0, 128.0, 128.0, 8.0)
    columns = features("moe", operator, terms(operator, point, True), point).shape[1]
    plain = replace(kind, kernels=())
    if len(kind.mean) == columns + 3 + len(kind.precisions) + len(kind.kernels):
        plain = kind
    found = centre(plain, point, "moe", "vllm/triton", "bf16")
    assert found.shape == (3,) and np.all(np.abs(found) < 4.0)


def _latent(kv: str, part: str, library: str) -> float:
    operator = Attention("p", 1.0, 4096.0, 4096.0, 16.0, 16.0, 192.0, 128.0, dtype=kv, kv_dtype=kv)
    return float(terms(operator, chip_point(chip(part), kv), True, library).compute_s)


def test_latent_prefill_multiplies_in_16_bits_and_latents_under_sglang() -> None:
    assert _latent("fp8", "h100", "trtllm") == pytest.approx(_latent("bf16", "h100", "trtllm"), rel=0.03)
    assert _latent("fp8", "a100-80gb", "trtllm") == pytest.approx(_latent("bf16", "a100-80gb", "trtllm"), rel=0.03)
    assert _latent("bf16", "h100", "sglang/fa3") == pytest.approx(3.4 * _latent("bf16", "h100", "trtllm"), rel=0.03)
    assert _latent("bf16", "b200", "sglang/gen") == pytest.approx(_latent("bf16", "b200", "trtllm/gen"))
    usual = Attention("p", 1.0, 4096.0, 4096.0, 16.0, 16.0, 128.0, 128.0)
    point = chip_point(chip("h100"), "bf16")
    assert float(terms(usual, point, True, "sglang").compute_s) == float(terms(usual, point, True).compute_s)


def test_whose_latent_attention_sglang_runs() -> None:
    assert latent_maker("sglang", "blackwell", "mla_decode") == "trtllm"
    assert latent_maker("sglang", "hopper", "mla_decode") == latent_maker("sglang", "blackwell", "decode") == "sglang"


def test_triton_runs_int8_experts_like_16_bit_ones_on_operands_half_as_wide() -> None:
    assert taken_as("vllm/triton", "int8") == "bf16"
    assert taken_as("vllm/aiter", "int8") == "int8" and taken_as("vllm/triton", "fp8") == "fp8"
    a100 = chip("a100-80gb")

    def seconds(dtype: str, tokens: float) -> timing.Seconds:
        return timing.time(GroupedGemm("e", tokens, 7168.0, 2048.0, 256.0, 16.0, 8.0, dtype), a100, "vllm")

    # Twice the peak and half the bytes, less the offsets.
    many = seconds("int8", 16384.0).value_s / seconds("bf16", 16384.0).value_s
    few = seconds("int8", 64.0).value_s / seconds("bf16", 64.0).value_s
    assert 0.45 < many / np.exp(INT8_OFFSET[0]) < 0.55 and 0.45 < few < 0.65
    wide, narrow = seconds("int8", 16384.0), seconds("bf16", 16384.0)
    assert wide.log_sigma > 1.3 * narrow.log_sigma and "taken like bf16" in wide.note


def test_small_tiles_of_narrow_operands_starve_where_a_unit_multiplies_fast() -> None:
    def slowed(part: str, dtype: str, tokens: float) -> float:
        point = chip_point(chip(part), dtype)
        operator = GroupedGemm("e", tokens, 7168.0, 2048.0, 256.0, 256.0, 8.0, dtype)
        fast = terms(operator, replace(point, clock_hz=point.clock_hz * 100.0), True, "vllm/cutlass").compute_s
        return float(terms(operator, point, True, "vllm/cutlass").compute_s / fast)

    assert slowed("b200", "nvfp4", 512.0) > 1.5 > slowed("b200", "nvfp4", 65536.0)
    assert slowed("h100", "bf16", 512.0) < 1.3 and slowed("rtx-pro-6000", "nvfp4", 512.0) == pytest.approx(1.0)
    assert slowed("tpu-v6e", "bf16", 512.0) == pytest.approx(1.0)
