"""Pipeline schedules: closed forms against the event-by-event timeline, and against the papers' own formulas."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trivet.cloud.training.schedule import bubble_s, in_flight, pipeline_s, span_s, timeline
from trivet.errors import Unsupported


@settings(max_examples=40, deadline=None)
@given(pp=st.integers(1, 8), groups=st.integers(1, 4), f=st.floats(0.1, 2.0), b=st.floats(0.1, 3.0))
def test_equal_stages_of_1f1b_take_m_plus_p_minus_1_passes(pp: int, groups: int, f: float, b: float) -> None:
    micro = pp * groups
    slots = timeline("1f1b", 1, micro, [f] * pp, [b] * pp, [0.0] * pp)
    assert span_s(slots) == pytest.approx((micro + pp - 1) * (f + b))
    ones = np.ones(pp)
    assert pipeline_s("1f1b", 1, micro, f * ones, b * ones, 0 * ones) == pytest.approx(span_s(slots))


@settings(max_examples=25, deadline=None)
@given(pp=st.integers(2, 6), vp=st.integers(2, 4), groups=st.integers(2, 4))
def test_interleaving_divides_the_bubble_by_the_virtual_stages(pp: int, vp: int, groups: int) -> None:
    micro = pp * groups
    plain = span_s(timeline("1f1b", 1, micro, [1.0] * pp, [2.0] * pp, [0.0] * pp)) - 3 * micro
    split = span_s(timeline("interleaved", vp, micro, [1.0] * pp, [2.0] * pp, [0.0] * pp)) - 3 * micro
    assert split == pytest.approx(plain / vp)
    assert bubble_s("interleaved", pp, vp, 1.0, 2.0, 0.0) == pytest.approx(split)


def test_zero_bubble_leaves_a_third_of_the_1f1b_bubble_for_equal_passes() -> None:
    # Qi et al. (ICLR 2024), table 1: ZB-H1 (p-1)(F + B - W) against (p-1)(F + B + W)
    ratio = bubble_s("zero_bubble", 8, 1, 1.0, 1.0, 1.0) / bubble_s("1f1b", 8, 1, 1.0, 1.0, 1.0)
    assert ratio == pytest.approx(1 / 3)
    drawn = span_s(timeline("zero_bubble", 1, 32, [1.0] * 8, [1.0] * 8, [1.0] * 8))
    plain = span_s(timeline("1f1b", 1, 32, [1.0] * 8, [1.0] * 8, [1.0] * 8))
    assert 96 + 7 <= drawn < plain


def test_dualpipe_has_less_bubble_than_zero_bubble_and_holds_one_more_micro_batch() -> None:
    # DeepSeek-V3 (arXiv 2412.19437), table 2
    assert bubble_s("dualpipe", 8, 1, 1.0, 1.0, 1.0) < bubble_s("zero_bubble", 8, 1, 1.0, 1.0, 0.5)
    assert in_flight("dualpipe", 8, 1, 0, 64) == 9


def test_a_timeline_keeps_order_and_never_overlaps_on_a_rank() -> None:
    slots = timeline("interleaved", 2, 8, [1.0, 1.2, 0.9, 1.1], [2.0] * 4, [0.0] * 4, send_s=0.05)
    assert len(slots) == 4 * 2 * 8 * 2
    for rank in range(4):
        mine = sorted((s for s in slots if s.rank == rank), key=lambda s: s.start_s)
        assert all(a.end_s <= b.start_s + 1e-12 for a, b in itertools.pairwise(mine))
    forward = {(s.micro_batch, s.chunk, s.rank): s for s in slots if s.kind == "F"}
    for (micro, chunk, rank), s in forward.items():
        if rank:
            assert s.start_s >= forward[micro, chunk, rank - 1].end_s + 0.05 - 1e-12


def test_uneven_stages_wait_for_the_slowest() -> None:
    slow = span_s(timeline("1f1b", 1, 16, [1.0, 2.0, 1.0, 1.0], [2.0, 4.0, 2.0, 2.0], [0.0] * 4))
    assert slow >= 16 * 6
    closed = pipeline_s("1f1b", 1, 16, np.array([1.0, 2.0, 1.0, 1.0]), np.array([2.0, 4.0, 2.0, 2.0]), np.zeros(4))
    assert closed == pytest.approx(slow, rel=0.05)


def test_gpipe_keeps_every_micro_batch_and_1f1b_only_the_ranks_after_it() -> None:
    assert in_flight("gpipe", 4, 1, 0, 32) == 32
    assert [in_flight("1f1b", 4, 1, r, 32) for r in range(4)] == [4, 3, 2, 1]
    assert in_flight("interleaved", 4, 2, 0, 32) == (4 + 6 + 1) / 2


def test_what_cannot_be_drawn_says_so() -> None:
    with pytest.raises(Unsupported, match="multiples of pp"):
        timeline("interleaved", 2, 6, [1.0] * 4, [1.0] * 4, [0.0] * 4)
    with pytest.raises(Unsupported, match="DualPipe"):
        timeline("dualpipe", 1, 8, [1.0] * 4, [1.0] * 4, [0.0] * 4)
