"""Attention kernels: blocks of decode, passes around them, and the exponentials of prompts."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trivet.chip.attention import BLOCK_S, blocks, launched, passes_s, per_head, prompt_products, softmax_s
from trivet.chip.catalogue import chip
from trivet.chip.features import floor_seconds
from trivet.chip.kernels import attention_kernel
from trivet.chip.point import chip_point
from trivet.chip.terms import attention_terms
from trivet.operators import Attention

KEYS, HEAD = np.array(4096.0), np.array(128.0)


def decode(heads: float, kv_heads: float, keys: float = 16.0, sequences: float = 1024.0) -> Attention:
    return Attention("decode", sequences, 1.0, keys, heads, kv_heads, 128.0, 128.0)


def prompt(head: float, tokens: float = 8192.0, dtype: str = "bf16", kv_dtype: str = "bf16") -> Attention:
    return Attention("prompt", 1.0, tokens, tokens, 32.0, 8.0, head, head, 0.0, dtype, kv_dtype)


def wave_s(library: str, part: str = "h100", group: float = 8.0, eight: bool = False) -> float:
    return float(blocks(library, eight, chip_point(chip(part), "bf16"), np.array(group), HEAD, KEYS).wave_s)


def test_a_block_costs_cycles_of_its_kernel() -> None:
    assert wave_s("vllm/fa2", "a100") == wave_s("vllm/fa2", "l40s") == wave_s("vllm") == pytest.approx(BLOCK_S)
    assert wave_s("trtllm/xqa", "a100") > 1.5 * wave_s("trtllm/xqa", "l40s")  # the clock's ratio
    assert wave_s("vllm/gen", "b200") < 0.6 * wave_s("vllm/fa3", "b200")
    assert wave_s("sglang/fa3+80", "a100") == wave_s("vllm/fa3", "a100")


def test_flashinfer_takes_the_tensor_cores_from_four_heads_on_or_for_eight_bits() -> None:
    assert wave_s("sglang/fi", "l40s", 2.0) < 0.5 * wave_s("sglang/fi", "l40s", 4.0)
    assert wave_s("sglang/fi", "l40s", 2.0, eight=True) == wave_s("vllm/fi", "l40s", 2.0) == wave_s("vllm/fi", "l40s")


@given(st.integers(1, 128))
def test_tensorrt_llm_runs_heads_alone_where_it_cannot_stack_them(group: int) -> None:
    size = np.array(float(group))
    assert bool(per_head("trtllm/xqa", size)) == (group == 1 or group > 32)
    assert bool(per_head("trtllm/gen", size)) == (group > 32)
    assert not per_head("vllm/fa3", size) and not per_head("trtllm", size)


def test_heads_alone_cost_a_block_and_reads_each() -> None:
    point = chip_point(chip("h100"), "bf16")
    short = [attention_terms(decode(g, 1.0), point, True, "trtllm/xqa").compute_s for g in (32.0, 64.0, 128.0)]
    assert short[1] > 5.0 * short[0] and short[2] == pytest.approx(2.0 * short[1], rel=0.05)
    long = attention_terms(decode(64.0, 1.0, 8192.0, 16.0), point, True, "trtllm/xqa").compute_s
    assert long == pytest.approx(693e-6, rel=0.3)  # measured: each head reads its keys over the cache's bus


def test_hopper_turns_values_of_eight_bits_in_the_unit() -> None:
    point = chip_point(chip("h200"), "bf16")
    eight, wide = (blocks("sglang/fa3", b, point, np.array(8.0), HEAD, KEYS).key_s for b in (True, False))
    assert eight > 0.0 and wide == 0.0
    assert blocks("vllm/gen", True, point, np.array(8.0), HEAD, KEYS).key_s == 0.0


def test_sglang_runs_passes_around_some_kernels() -> None:
    point = chip_point(chip("b200"), "bf16")
    heads = np.array([128.0, 192.0])
    plain, padded = passes_s("sglang/gen", "bf16+bf16", point, heads)
    assert plain == 0.0 and 4e-6 < padded < 10e-6
    assert passes_s("sglang/gen", "fp8+fp8", point, heads)[0] > 3e-6
    assert not passes_s("vllm/gen", "fp8+fp8", point, heads).any()
    assert launched("sglang/gen", "bf16+fp8") > launched("sglang/gen", "bf16+bf16") == launched("trtllm/xqa", "bf16+bf16")
    assert floor_seconds(point, "decode", "sglang/gen", "bf16+fp8") > floor_seconds(point, "decode", "vllm/gen", "bf16+fp8")


def test_exponentials_bound_small_heads_where_matrix_units_are_fast() -> None:
    b200, b300 = (chip_point(chip(name), "bf16") for name in ("b200", "b300"))
    assert (b200.exponentials, b300.exponentials) == (16.0, 32.0)
    assert softmax_s(np.array(1e12), b300) < 0.55 * softmax_s(np.array(1e12), b200)
    slower, faster = (
        [float(attention_terms(prompt(h), point, True, "vllm/gen").compute_s) for h in (64.0, 256.0)] for point in (b200, b300)
    )
    gain = [a / b for a, b in zip(slower, faster, strict=True)]
    assert gain[0] > 1.4 and gain[1] < 1.25  # measured: 1.36 to 1.41 and 1.08
    slow = chip_point(chip("a100"), "bf16")
    alone = prompt(128.0).flops / slow.peak_flops
    assert attention_terms(prompt(128.0), slow, True, "vllm/fa2").compute_s == pytest.approx(alone, rel=0.1)


def test_rates_of_tensorrt_llms_prompts() -> None:
    assert prompt_products("trtllm/fmha+90", "bf16+fp8", HEAD) == 0.5 == prompt_products("vllm/gen", "bf16+fp8", HEAD)
    assert prompt_products("trtllm/fmha", "bf16+fp8", HEAD) == 1.0 == prompt_products("vllm/fa3", "bf16+fp8", HEAD)
    assert prompt_products("trtllm/fmha", "fp8+fp8", np.array(256.0)) > 2.0


def test_chips_that_build_cudas_kernels_without_asynchronous_copies_run_the_older_ones() -> None:
    for family in ("ppu", "turing"):
        assert attention_kernel("vllm", family, "bf16+bf16", "decode") == "fa2"
        assert attention_kernel("sglang", family, "bf16+fp8", "decode") == "fi"
        assert attention_kernel("trtllm", family, "bf16+bf16", "prefill") == "fmha"
    assert attention_kernel("vllm", "cdna3", "bf16+bf16", "decode") == ""
    assert attention_kernel("sglang", "blackwell", "bf16+fp8", "prefill") == ""
