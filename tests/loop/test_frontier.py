"""The frontier holds exactly the rows that nothing dominates."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from trivet.loop.frontier import pareto


@given(arrays(float, st.tuples(st.integers(1, 40), st.integers(1, 4)), elements=st.integers(1, 6).map(float)))
def test_against_every_pair(points: np.ndarray) -> None:
    chosen = pareto(points)
    for i, row in enumerate(points):
        dominated = any((other <= row).all() and (other < row).any() for other in points)
        equal_chosen = any((points[j] == row).all() for j in chosen)
        assert dominated != equal_chosen, i
    assert len({tuple(points[j]) for j in chosen}) == len(chosen)


@given(arrays(float, (30, 3), elements=st.floats(0.1, 100)))
def test_tolerance_keeps_a_point_within_reach_of_every_frontier_point(points: np.ndarray) -> None:
    coarse = points[pareto(points, tolerance=0.05)]
    for row in points[pareto(points)]:
        assert ((coarse / row) <= 1.05 + 1e-9).all(axis=1).any()


def test_nan_is_never_on_the_frontier() -> None:
    assert list(pareto(np.array([[1.0, np.nan], [2.0, 2.0]]))) == [1]
