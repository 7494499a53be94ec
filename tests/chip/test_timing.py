"""Operator timing: every kind on every chip, bounds of physics, spread, microbenchmarks."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from trivet.chip.catalogue import chip, names
from trivet.chip.timing import time
from trivet.errors import Unsupported
from trivet.facts import Fact
from trivet.operators import Attention, Conv, Gemm, GroupedGemm, Scan, Stream

GRID = np.array([1.0, 16.0, 300.0])
KINDS = {
    "gemm": Gemm("g", GRID, 4096.0, 4096.0),
    "experts": GroupedGemm("e", GRID, 2048.0, 768.0, 128.0, 128.0, 8.0),
    "prefill": Attention("p", 1.0, GRID * 64, GRID * 64, 32.0, 8.0, 128.0, 128.0),
    "decode": Attention("d", GRID, 1.0, 4096.0, 32.0, 8.0, 128.0, 128.0),
    "mla": Attention("m", GRID, 1.0, 4096.0, 128.0, 1.0, 576.0, 512.0, kind="mla"),
    "scan": Scan("s", "gdn", GRID, 1.0, 32.0, 128.0, 128.0),
    "stream": Stream("n", GRID * 8192),
    "conv": Conv("c", GRID, 64.0, 64.0, 56.0, 56.0, 3.0, dtype="int8"),
}


def accelerators() -> list[str]:
    return [n for n in names() if chip(n).role in ("accelerator", "sram_accelerator", "cpu")]


@pytest.mark.parametrize("name", accelerators())
def test_every_kind_on_every_chip_or_a_clear_refusal(name: str) -> None:
    part = chip(name)
    for kind, operator in KINDS.items():
        try:
            found = time(operator, part)
        except Unsupported as refusal:
            assert refusal.field in ("peak_flops", "memory_bandwidth_bytes_per_s")  # noqa: PT017
            return
        value = np.asarray(found.value_s)
        assert value.shape == (3,), kind
        assert np.all(np.isfinite(value)) and np.all(value > 0), kind
        assert np.all(np.asarray(found.log_sigma) > 0), kind
        assert np.all(np.asarray(found.floor_s) <= value * (1 + 1e-9)), kind
        shares = np.asarray(found.compute) + found.bandwidth + found.launch + found.link
        assert np.allclose(shares, 1.0, atol=1e-6), kind


@pytest.mark.parametrize("dtype", ["fp8", "fp8_block", "nvfp4", "mxfp4", "int8", "int8_wo", "int4_wo", "fp16", "fp32"])
def test_a_dtype_that_the_chip_lacks_falls_back(dtype: str) -> None:
    found = time(Gemm("g", 16.0, 4096.0, 4096.0, dtype), chip("a100-80gb"))
    assert found.value_s > 0
    if dtype in ("fp8", "nvfp4"):
        assert "weights widened" in found.note


def test_no_chip_beats_its_data_sheet() -> None:
    for name in ("h100", "a100-80gb", "b200", "l40s", "zhenwu-810e", "mi300x"):
        part = chip(name)
        big = time(Gemm("g", 8192.0, 8192.0, 8192.0), part)
        peak = part.facts["peak_flops_bf16"].hi or part.get("peak_flops_bf16")
        assert 2 * 8192.0**3 / big.value_s < peak
        wide = time(Gemm("v", 1.0, 65536.0, 8192.0), part)
        bandwidth = part.facts["memory_bandwidth_bytes_per_s"].hi or part.get("memory_bandwidth_bytes_per_s")
        assert 2 * 65536.0 * 8192.0 / wide.value_s < bandwidth


def test_scalar_in_scalar_out_and_broadcasting() -> None:
    part = chip("h100")
    assert isinstance(time(Gemm("g", 16.0, 4096.0, 4096.0), part).value_s, float)
    grid = time(Attention("d", GRID[:, None], 1.0, np.array([[128.0, 4096.0]]), 32.0, 8.0, 128.0, 128.0), part)
    assert np.shape(grid.value_s) == (3, 2)
    alone = time(Attention("d", 16.0, 1.0, 4096.0, 32.0, 8.0, 128.0, 128.0), part)
    assert np.isclose(np.asarray(grid.value_s)[1, 1], alone.value_s, rtol=1e-5)


def test_more_work_takes_longer_on_a_wide_range() -> None:
    for operator in (
        Gemm("g", np.array([16.0, 256.0, 4096.0, 65536.0]), 4096.0, 4096.0),
        Attention("d", 32.0, 1.0, np.array([256.0, 4096.0, 65536.0]), 32.0, 8.0, 128.0, 128.0),
    ):
        value = np.asarray(time(operator, chip("zhenwu-810e")).value_s)
        assert np.all(np.diff(value) > 0)


def test_an_interval_goes_through_as_spread() -> None:
    bare = replace(chip("zhenwu-810e"), name="bare")
    bare = replace(bare, facts={k: f for k, f in bare.facts.items() if not k.startswith("bench_")})
    exact = dict(bare.facts)
    for name in ("peak_flops_bf16", "memory_bandwidth_bytes_per_s"):
        exact[name] = Fact(bare.get(name), "", "published", "test")
    operator = Gemm("g", 4096.0, 4096.0, 4096.0)
    wide, narrow = time(operator, bare), time(operator, replace(bare, facts=exact))
    sheet = bare.facts["peak_flops_bf16"].log_sigma
    assert wide.log_sigma > narrow.log_sigma
    assert np.isclose(wide.log_sigma**2 - narrow.log_sigma**2, (wide.compute * sheet) ** 2, rtol=0.15)


def test_three_microbenchmarks_pin_what_they_measure_and_narrow_the_rest() -> None:
    part = chip("zhenwu-810e")
    bare = replace(part, name="bare", facts={k: f for k, f in part.facts.items() if not k.startswith("bench_")})
    measured = {
        (4096.0, 4096.0, 4096.0): 1.038975e-3,
        (1.0, 128256.0, 4096.0): 0.471567e-3,
        (384.0, 384.0, 384.0): 5.053e-6,
    }
    for (m, n, k), seconds in measured.items():
        found = time(Gemm("g", m, n, k), part, isolated=True)
        assert abs(np.log(found.value_s / seconds)) < 0.08
        assert found.log_sigma < time(Gemm("g", m, n, k), bare, isolated=True).log_sigma
    known, unknown = (time(KINDS["decode"], which) for which in (part, bare))
    assert all(a < b for a, b in zip(known.sigmas[:3], unknown.sigmas[:3], strict=True))  # what its kernels share
    # A shape's own spread goes with its size over the floor, which moves as well.
    assert np.all(np.asarray(known.log_sigma) < 1.04 * np.asarray(unknown.log_sigma))


def test_cold_reads_are_not_faster_than_warm_ones() -> None:
    operator = Gemm("g", 1.0, 4096.0, 4096.0)
    assert time(operator, chip("l40s")).value_s >= time(operator, chip("l40s"), isolated=True).value_s


def test_without_a_graph_the_host_bounds_a_launch() -> None:
    tiny = Gemm("g", 1.0, 128.0, 128.0)
    assert time(tiny, chip("zhenwu-810e"), graph=False).value_s >= 26e-6 > time(tiny, chip("zhenwu-810e")).value_s


def test_unknown_library_says_so() -> None:
    found = time(Gemm("g", 16.0, 4096.0, 4096.0), chip("h100"), "lmdeploy")
    assert "lmdeploy" in found.note


def test_a_chip_without_rates_is_refused_by_name() -> None:
    nothing = replace(chip("h100"), name="nothing", facts={})
    with pytest.raises(Unsupported, match="nothing"):
        time(Gemm("g", 16.0, 4096.0, 4096.0), nothing)


@pytest.mark.parametrize(
    ("operator", "name", "low_us", "high_us"),
    [
        # Public kernel tables (aiconfigurator-core 0.12): medians of these shapes.
        (Gemm("g", 4096.0, 4096.0, 4096.0), "h100", 150, 190),
        (Gemm("g", 8192.0, 4096.0, 4096.0), "b200", 150, 200),  # 163 to 198 by engine
        (Gemm("g", 4096.0, 4096.0, 4096.0), "a100-80gb", 480, 600),
        (Gemm("g", 1.0, 4096.0, 4096.0), "h200", 10.5, 15),
    ],
)
def test_known_kernels(operator: Gemm, name: str, low_us: float, high_us: float) -> None:
    assert low_us < time(operator, chip(name), isolated=True).value_s * 1e6 < high_us


def test_a_systolic_core_is_not_one_unit_that_a_tile_fills() -> None:
    # One core of a TPU v6e streams the weights of a thin product at its memory's rate.
    thin = Gemm("g", 16.0, 8192.0, 8192.0)
    for name in ("tpu-v6e", "gaudi-3", "trainium-2"):
        rate = float(thin.bytes) / float(time(thin, chip(name)).value_s)
        assert rate > 0.5 * chip(name).get("memory_bandwidth_bytes_per_s"), name
