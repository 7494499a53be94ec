"""Power: between idle and the limit, monotone, and near what systems provision."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trivet.chip.catalogue import chip
from trivet.chip.power import flop_j, power_w, utilised_w

_share = st.floats(0, 1)


@given(_share, _share, _share, st.sampled_from(["h100", "zhenwu-810e", "b200", "l40s", "yitian-710", "tpu-v5e"]))
def test_between_idle_and_limit_and_monotone(compute: float, memory: float, more: float, name: str) -> None:
    one = chip(name)
    drawn = utilised_w(one, compute, memory).value
    assert (one.get("idle_w") or 0) <= drawn <= (one.get("tdp_w") or 0) + 1e-9
    assert utilised_w(one, min(1, compute + more), memory).value >= drawn - 1e-9
    assert utilised_w(one, compute, min(1, memory + more)).value >= drawn - 1e-9


def test_idle_is_idle() -> None:
    assert power_w(chip("h100"), busy=0.0).value == chip("h100").get("idle_w")
    assert utilised_w(chip("h100"), 0, 0).value == chip("h100").get("idle_w")


@pytest.mark.parametrize("name", ["a100", "h100", "v100", "l40s", "b200"])
def test_a_gemm_nears_the_limit_and_decode_stays_below(name: str) -> None:
    one = chip(name)
    limit = one.get("tdp_w") or 0
    assert utilised_w(one, 1.0, 0.35).value > 0.9 * limit
    assert 0.4 * limit < utilised_w(one, 0.05, 0.85).value < 0.85 * limit


def test_narrow_types_take_less() -> None:
    one = chip("h100")
    assert flop_j(one, "fp8").value < flop_j(one, "bf16").value < flop_j(one, "fp32").value


def test_newer_nodes_take_less() -> None:
    assert flop_j(chip("v100")).value > flop_j(chip("a100")).value > flop_j(chip("h100")).value > flop_j(chip("b200")).value
