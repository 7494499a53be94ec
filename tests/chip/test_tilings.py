"""Tiles of narrow products' kernels, benchmarks' sets of buffers, quantising passes and launches."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from trivet.chip.catalogue import chip
from trivet.chip.features import floor_seconds
from trivet.chip.point import chip_point
from trivet.chip.terms import TILES, gemm_terms, quantise_s
from trivet.chip.tilings import allowed, copies, launches, rules, shared_memory
from trivet.operators import Gemm

NARROW = [
    (library, family, dtype)
    for library in ("vllm", "sglang", "trtllm")
    for family in ("ampere", "ada", "hopper", "blackwell", "blackwell-gddr")
    for dtype in ("fp8", "fp8_block", "int8", "int8_wo", "int4_wo", "nvfp4")
    if rules(library, family, dtype)
]


def test_kernels_are_known_for_narrow_products_alone() -> None:
    assert len(NARROW) > 15
    for family in ("ampere", "hopper", "blackwell", "cdna3", "tpu"):
        assert not rules("vllm", family, "bf16")
    assert not rules("vllm", "cdna3", "fp8") and not rules("trtllm", "hopper", "fp8")  # AITER's; cuBLAS'


@pytest.mark.parametrize("known", NARROW)
def test_every_shape_has_a_tile_that_there_is(known: tuple[str, str, str]) -> None:
    rows, columns = [1.0, 5.0, 16.0, 17.0, 64.0, 100.0, 256.0, 4096.0, 32768.0], [64.0, 1281.0, 8192.0, 65536.0]
    m, n = np.meshgrid(rows, columns, indexing="ij")
    may = allowed(rules(*known), TILES, m, n)
    asked = m > 4 if known == ("trtllm", "ampere", "int8") else m > 0  # its kernel for few rows splits
    assert (may.any(0) == asked).all()
    menu = {tile for _, _, choice in rules(*known) for tile in choice}
    assert menu <= {tuple(row) for row in TILES.tolist()}


def test_the_first_rule_that_fits_decides() -> None:
    found = rules("vllm", "ada", "fp8")
    for m, n, tile in ((16.0, 8192.0, (16, 64)), (16.0, 8193.0, (16, 128)), (33.0, 8192.0, (64, 64)), (512.0, 8e3, (256, 128))):
        may = allowed(found, TILES, np.array(m), np.array(n))
        assert [tuple(row) for row in TILES[may].tolist()] == [tile]


@pytest.mark.parametrize(
    ("library", "dtype", "k", "seconds"),
    # One row, 256 to 4,096 columns, as the tables have it: a whole tile's loop on one unit, launches taken off.
    [("vllm", "nvfp4", 16384.0, 57e-6), ("sglang", "fp8", 16384.0, 110e-6), ("vllm", "nvfp4", 4096.0, 15e-6)],
)
def test_one_row_takes_a_tile_whatever_the_columns(library: str, dtype: str, k: float, seconds: float) -> None:
    point = chip_point(chip("rtx-pro-6000"), dtype)
    columns = np.array([256.0, 1024.0, 4096.0])
    found = gemm_terms(Gemm("row", 1.0, columns, k, dtype), point, True, library).compute_s
    assert found == pytest.approx(np.full(3, found[0]))
    assert 0.75 * seconds < found[0] < 1.1 * seconds
    split = gemm_terms(Gemm("row", 1.0, columns, k, dtype), point, True).compute_s
    assert (split < 0.3 * found).all()


def test_a_product_without_known_kernels_is_as_before() -> None:
    point = chip_point(chip("mi300x"), "fp8")
    shape = Gemm("p", 64.0, 4096.0, 4096.0, "fp8")
    assert gemm_terms(shape, point, False, "vllm").compute_s == gemm_terms(shape, point, False, "sglang").compute_s
    assert gemm_terms(shape, point, False, "vllm").memory_s == gemm_terms(shape, point).memory_s


def test_sets_of_buffers_decide_what_a_benchmark_finds_in_the_cache() -> None:
    point = chip_point(chip("rtx-pro-6000"), "fp8")
    assert copies("trtllm", "fp8", np.array([1e6, 68e6, 200e6]), 128 * 2.0**20) == pytest.approx([5.0, 2.0, 1.0])
    assert copies("vllm", "nvfp4", 1e6, 1e8) == 1.0 and copies("vllm", "fp8", 1e6, 1e8) == 6.0
    whole = Gemm("fits exactly", 1.0, 8192.0, 12288.0, "fp8")  # 96 MB of 128: one set under TensorRT-LLM would fit, two do not
    assert gemm_terms(whole, point, True, "trtllm").warm < 0.1
    assert gemm_terms(replace(whole, k=8192.0), point, True, "trtllm").warm > 0.25  # two sets fill it
    assert gemm_terms(replace(whole, k=8192.0), point, True, "vllm").warm == 0.0
    assert gemm_terms(replace(whole, k=8192.0), point, False, "trtllm").warm == 0.0  # in service


def test_quantising_reads_twice_where_the_largest_is_sought_and_not_at_all_where_the_norm_did_it() -> None:
    point = chip_point(chip("h100"), "fp8")
    long = Gemm("long", 8192.0, 4096.0, 8192.0, "fp8")
    once, twice = (float(quantise_s(long, point, lib)) for lib in ("sglang", "trtllm"))
    assert twice == pytest.approx(once * 5.0 / 3.0, rel=0.01)
    short = Gemm("short", 8192.0, 4096.0, 64.0, "fp8")
    assert quantise_s(short, point, "vllm") == pytest.approx(8192 * 6e-9)  # a row at a time
    other = chip_point(chip("mi300x"), "fp8")
    assert quantise_s(short, other, "vllm") == quantise_s(short, other, "sglang")
    assert quantise_s(Gemm("i", 64.0, 4096.0, 4096.0, "int8"), chip_point(chip("a100-80gb"), "int8"), "trtllm") == 0.0
    assert quantise_s(Gemm("w", 64.0, 4096.0, 4096.0, "bf16"), point, "vllm") == 0.0


def test_narrow_products_launch_more_than_once() -> None:
    point = chip_point(chip("h100"), "fp8")
    one = floor_seconds(point, "gemm")
    assert floor_seconds(point, "gemm_narrow", "vllm", "fp8") == pytest.approx(2.0 * one)
    assert floor_seconds(point, "gemm_narrow", "trtllm", "fp8") == pytest.approx(launches("trtllm", "fp8") * one)
    assert launches("vllm", "int4_wo") == 1.0  # activations stay wide
    assert 10e-6 < floor_seconds(point, "gemm_narrow", "trtllm", "fp8") < 16e-6  # measured: 12 us
    assert shared_memory("ada") < shared_memory("hopper") == shared_memory("a family to come")
