"""Power limits in the ideal compute time of products, and what microbenchmarks say of narrow ones."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from trivet.chip.benchmarks import Update
from trivet.chip.catalogue import chip
from trivet.chip.features import covariates
from trivet.chip.point import chip_point
from trivet.chip.terms import THROTTLE_LATER, gemm_terms
from trivet.facts import Fact
from trivet.operators import Gemm

SIDES = 2.0 ** np.arange(8, 16)
SQUARES = Gemm("square", SIDES, SIDES, SIDES)


def test_a_board_of_few_watts_is_held_back_and_one_of_many_is_not() -> None:
    def slowed(name: str) -> np.ndarray:
        point = chip_point(chip(name), "bf16")
        free = gemm_terms(SQUARES, replace(point, power_flops=0.0))
        return gemm_terms(SQUARES, point).compute_s / free.compute_s

    assert slowed("l4")[-1] > 2.0  # 121 TFLOP/s on paper at 72 W
    assert slowed("l20")[-1] < 1.1 and slowed("h20")[-1] < 1.1
    for name in ("l4", "l40s", "mi300x", "b200", "l20"):
        assert (slowed(name) >= 1.0).all()


@pytest.mark.parametrize("name", ["l4", "l40s", "h100", "b200", "rtx-pro-6000"])
def test_the_limit_tightens_with_a_kernels_length_and_never_shortens_larger_ones(name: str) -> None:
    point = chip_point(chip(name), "bf16")
    seconds = gemm_terms(SQUARES, point).compute_s
    assert (np.diff(seconds) > 0).all()
    once = SQUARES.flops / point.power_flops
    assert (seconds >= once).all()
    assert seconds[-1] >= once[-1] * (1.0 + 0.9 * THROTTLE_LATER)
    tight = replace(point, power_flops=point.peak_flops / 10.0)  # far below what tiles reach: only the limit counts
    held = gemm_terms(Gemm("long", 32768.0, 32768.0, 32768.0), tight)
    assert held.compute_s == pytest.approx(held.flops / tight.power_flops * (1.0 + THROTTLE_LATER), rel=0.01)


def test_watts_bind_in_proportion_and_only_as_far_as_they_are_known() -> None:
    known = chip("l40s")
    usual = chip_point(known, "bf16").power_flops

    def with_watts(fact: Fact) -> float:
        return chip_point(replace(known, facts={**known.facts, "tdp_w": fact}), "bf16").power_flops

    assert with_watts(Fact(700.0, "W", "published", "test")) == pytest.approx(2.0 * usual)
    loose = Fact(350.0, "W", "unpublished", "test", lo=200.0, hi=900.0, note="test")
    assert with_watts(loose) == pytest.approx(usual * 900.0 / 350.0)
    without = {k: v for k, v in known.facts.items() if k != "tdp_w"}
    assert chip_point(replace(known, facts=without), "bf16").power_flops == 0.0


def test_narrower_operands_and_larger_instructions_take_fewer_joules() -> None:
    l40s, b200 = chip("l40s"), chip("b200")
    each = [chip_point(l40s, p).power_flops for p in ("bf16", "fp8")]
    assert 1.2 < each[1] / each[0] < 2.2
    assert chip_point(b200, "bf16").power_flops / 1000.0 > 1.5 * each[0] / 350.0


def test_what_16_bit_benchmarks_show_hardly_moves_narrow_products() -> None:
    ones = np.full(3, 0.2)
    found = Update(np.array([0.3, 0.2, 0.4]), np.zeros(3), ones, np.full(3, 0.1))
    own, _ = found.apply(True, np.zeros(3), ones)
    other, spread_other = found.apply(False, np.zeros(3), ones)
    narrow, spread = found.apply(False, np.zeros(3), ones, narrow=True)
    assert (own == found.delta).all()
    assert (np.abs(narrow[:2]) < np.abs(other[:2])).all() and (narrow[:2] > 0).all() and narrow[2] == 0.0
    assert (spread >= spread_other).all()


@pytest.mark.parametrize(
    ("name", "stacked"), [("a100-40gb", True), ("v100", True), ("h20", True), ("l40s", False), ("rtx-pro-6000", False)]
)
def test_stacked_memory_is_told_from_that_on_the_board(name: str, stacked: bool) -> None:
    point = chip_point(chip(name), "bf16")
    assert point.stacked == stacked
    assert covariates(point, "gemm")[1] == float(stacked)
