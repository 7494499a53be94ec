"""Go's generator: known draws, and what any generator owes."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from trivet.cloud.cluster.go_random import GoRandom


def test_the_draws_that_every_go_beginner_sees() -> None:
    random = GoRandom(1)
    assert [random.intn(100) for _ in range(10)] == [81, 87, 47, 59, 81, 18, 25, 40, 56, 0]


@given(st.integers(0, 2**40), st.integers(1, 2000))
def test_perm_and_shuffle_are_permutations(seed: int, n: int) -> None:
    assert sorted(GoRandom(seed).perm(n)) == list(range(n))
    items = list(range(n))
    GoRandom(seed).shuffle(items)
    assert sorted(items) == list(range(n))


@given(st.integers(0, 2**31), st.integers(1, 2**31 - 1))
def test_intn_stays_below(seed: int, n: int) -> None:
    random = GoRandom(seed)
    assert all(0 <= random.intn(n) < n for _ in range(20))
