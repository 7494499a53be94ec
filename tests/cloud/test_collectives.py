"""Collectives: totals of the textbook, levels that add up, no free lunch."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trivet.chip.catalogue import chip
from trivet.cloud import collectives
from trivet.cloud.collectives import KINDS, Level, levels_of, time
from trivet.errors import TrivetError
from trivet.operators import Transfer

SLOW = Level(8, 50e9, 2e-6)
OUTER = Level(1024, 25e9, 8e-6)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["h100", "zhenwu-810e", "l40s", "mi300x", "tpu-v5p", "zhenwu-m890"])
def test_every_kind_on_every_fabric(kind: str, name: str) -> None:
    part = chip(name)
    size = np.array([1e3, 1e6, 1e9])
    found = time(Transfer("t", kind, size, 8, "tp"), levels_of(part, 8), part)
    value = np.asarray(found.value_s)
    assert np.all(np.diff(value) > 0) and np.all(np.asarray(found.log_sigma) > 0)
    assert np.allclose(np.asarray(found.link) + found.launch, 1.0)


def test_no_faster_than_the_links() -> None:
    part = chip("h100")
    for kind, share in (("all_reduce", 1.0), ("all_gather", 7 / 8), ("all_to_all", 7 / 8), ("send", 1.0)):
        found = time(Transfer("t", kind, 1e9, 8, "tp"), levels_of(part, 8), part)
        # In-switch reduction sends a buffer once; nothing sends less.
        assert found.value_s > share * 1e9 / 450e9


def test_a_group_of_one_takes_nothing() -> None:
    assert time(Transfer("t", "all_reduce", 1e6, 1, "tp"), [], chip("h100")).value_s == 0.0


@given(st.floats(1e4, 1e9), st.sampled_from(KINDS))
def test_two_levels_are_no_faster_than_the_inner_one_alone(size: float, kind: str) -> None:
    part = chip("h100")
    inner = time(Transfer("t", kind, size, 8, "dp"), [SLOW], part)
    both = time(Transfer("t", kind, size, 16, "dp"), [SLOW, OUTER], part)
    assert both.value_s >= inner.value_s * 0.999 or kind == "all_to_all"
    flat = time(Transfer("t", kind, size, 16, "dp"), [Level(16, 25e9, 8e-6)], part)
    assert kind in ("send", "broadcast") or both.value_s <= flat.value_s * 1.5 + 20e-6


def test_hierarchy_moves_one_share_outside() -> None:
    part = chip("h100")
    size = 1e9
    found = time(Transfer("t", "all_gather", size, 16, "dp"), [SLOW, OUTER], part)
    expected = 7 / 8 * size / (50e9 * 0.8) + 0.5 * (size / 8) / (25e9 * 0.8)
    assert np.isclose(found.value_s, expected, rtol=0.02)


def test_mistakes() -> None:
    with pytest.raises(TrivetError, match="kind"):
        time(Transfer("t", "gossip", 1e6, 8, "tp"), [SLOW], chip("h100"))
    with pytest.raises(TrivetError, match="levels"):
        time(Transfer("t", "send", 1e6, 8, "tp"), [], chip("h100"))


def test_known_collectives() -> None:
    # NCCL 2.27 on 8 H100, half precision: 134 MB all-reduce takes 0.57-0.58 ms, all-gather 0.38-0.39 ms.
    part = chip("h100")
    reduce = time(Transfer("t", "all_reduce", 134217728.0, 8, "tp"), levels_of(part, 8), part, "nccl")
    gather = time(Transfer("t", "all_gather", 134217728.0, 8, "tp"), levels_of(part, 8), part, "nccl")
    assert 0.5e-3 < reduce.value_s < 0.66e-3
    assert 0.33e-3 < gather.value_s < 0.45e-3


def test_grace_launches_slower_without_a_graph() -> None:
    slow, fast = chip("gb200"), chip("b200")
    assert collectives.collective_floor("vllm_eager", slow) == pytest.approx(
        collectives.GRACE_LAUNCH * collectives.collective_floor("vllm_eager", fast)
    )
    assert collectives.collective_floor("vllm", slow) == collectives.collective_floor("nccl", fast) == collectives.FLOOR_S


def test_chips_that_reach_only_neighbours_take_turns() -> None:
    # 16 Trainiums on a torus: 6 hops there, 6 back; as many ranks through a switch pay for none.
    small = Transfer("t", "all_reduce", 16384.0, 16, "tp")
    torus, switch = (Level(16, 1.5e11, 5.5e-6, topology=name, dimensions=2) for name in ("torus", ""))
    apart = float(time(small, [torus], chip("trainium-1")).value_s) - float(
        time(small, [switch], chip("trainium-1")).value_s
    )
    assert 4e-5 < apart < 12 * 5.5e-6 + 1e-9
    ring = float(time(small, [Level(16, 1.5e11, 5.5e-6, topology="ring")], chip("trainium-1")).value_s)
    assert ring > float(time(small, [torus], chip("trainium-1")).value_s)


def test_over_pcie_the_measured_size_next_to_a_group_counts() -> None:
    part, rate = chip("rtx-pro-6000"), 63e9
    names = [collectives.collective_group("vllm", rate, part, n) for n in (2, 3, 4, 6, 8, 16)]
    assert names == ["vllm/pcie2", "vllm/pcie4", "vllm/pcie4", "vllm/pcie8", "vllm/pcie8", "vllm/pcie8"]
    assert collectives.collective_group("vllm", 450e9, chip("h100"), 4) == "vllm"


def test_two_cards_over_pcie_as_measured() -> None:
    """Custom all-reduce of vLLM on two RTX PRO 6000: 30.1, 106 and 475 us for 1, 4 and 16 MiB."""
    part = chip("rtx-pro-6000")
    size = np.array([1.0, 4.0, 16.0]) * 2**20
    found = np.asarray(time(Transfer("t", "all_reduce", size, 2, "tp"), levels_of(part, 2), part, "vllm").value_s)
    assert found == pytest.approx([30.1e-6, 106e-6, 475e-6], rel=0.12)
