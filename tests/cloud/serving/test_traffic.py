"""Traffic: validation, slicing, merging."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trivet.cloud.serving.traffic import Traffic, merge
from trivet.errors import TrivetError


def plain(count: int = 4, **more: object) -> Traffic:
    fields: dict[str, object] = {
        "arrival_s": np.arange(count) * 1.0,
        "input_tokens": np.full(count, 10),
        "output_tokens": np.full(count, 5),
    }
    return Traffic(**(fields | more))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"arrival_s": [0, -1, 2, 3]}, r"arrival_s: request 1: -1.0 is negative"),
        ({"arrival_s": [0, np.nan, 2, 3]}, r"arrival_s: request 1: nan is not a finite time"),
        ({"arrival_s": [0, 2, 1, 3]}, r"arrival_s: request 2: 1.0 goes back in time"),
        ({"arrival_s": [0, 1, 2, 1e300]}, r"arrival_s: request 3: 1e\+300 is too late"),
        ({"input_tokens": [1, 0, 1, 1]}, r"input_tokens: request 1: 0 is below 1"),
        ({"input_tokens": [1, 2, np.nan, 1]}, r"input_tokens: request 2: nan is not a number"),
        ({"input_tokens": [1, 2, 1.5, 1]}, r"input_tokens: request 2: 1.5 is not a whole number"),
        ({"output_tokens": [1, 2, 3, 2**40]}, r"output_tokens: request 3: 1099511627776 is too large"),
        ({"output_tokens": [1, 2]}, r"output_tokens: 2 entries for 4 requests"),
        ({"output_tokens": [[1, 2, 3, 4]]}, r"output_tokens: .*dimension"),
        ({"output_tokens": ["a", "b", "c", "d"]}, r"output_tokens: "),
        ({"previous": [-1, 1, 0, 0]}, r"previous: request 1: 1 is not an earlier request"),
        ({"think_s": [0, 0, 0, 0]}, r"think_s: needs previous"),
        ({"client": [0, 0, -1, 0]}, r"client: request 2: -1 is below 0"),
        ({"image_tokens": [0, 11, 0, 0]}, r"image_tokens: request 1: 11 exceeds input_tokens"),
        ({"reasoning_tokens": [0, 6, 0, 0]}, r"reasoning_tokens: request 1: 6 exceeds output_tokens"),
        ({"hash_ids": [1]}, r"hash_offsets and hash_ids come together"),
        ({"hash_ids": [1], "hash_offsets": [0, 1, 1, 1, 1]}, r"block_tokens: 0 tokens a block"),
        ({"hash_ids": [1], "hash_offsets": [0, 1, 1], "block_tokens": 16}, r"hash_offsets: not ascending"),
        ({"hash_ids": [1, 2], "hash_offsets": [0, 2, 2, 2, 2], "block_tokens": 16}, r"hash_ids: .*more than"),
        ({"hash_ids": [-1], "hash_offsets": [0, 1, 1, 1, 1], "block_tokens": 16}, r"hash_ids: .*negative"),
        ({"max_concurrency": -1}, r"max_concurrency: "),
    ],
)
def test_one_clear_error(change: dict[str, object], message: str) -> None:
    with pytest.raises(TrivetError, match=message) as caught:
        plain(**change)
    assert "\n" not in str(caught.value)


def test_empty_and_single() -> None:
    empty = plain(0)
    assert len(empty) == 0
    assert empty.rate_per_s == 0
    assert plain(1).duration_s == 0


@st.composite
def traffics(draw: st.DrawFn) -> Traffic:
    n = draw(st.integers(0, 12))
    rng = np.random.default_rng(draw(st.integers(0, 999)))
    arrival = np.sort(rng.integers(0, 6, n)).astype(float)
    tokens = rng.integers(1, 100, n)
    more: dict[str, object] = {}
    if draw(st.booleans()):
        more["previous"] = np.array([rng.integers(-1, i) if i else -1 for i in range(n)], np.int64)
        more["think_s"] = rng.random(n)
    if draw(st.booleans()):
        sizes = np.minimum(rng.integers(0, 4, n), -(-tokens // 16))
        more |= {"hash_offsets": np.concatenate(([0], np.cumsum(sizes))), "block_tokens": 16}
        more["hash_ids"] = rng.integers(0, 9, int(sizes.sum()))
    if draw(st.booleans()):
        more["priority"] = rng.integers(-3, 3, n)
    return Traffic(arrival, tokens, rng.integers(1, 9, n), **more)  # type: ignore[arg-type]


@settings(max_examples=60, deadline=None)
@given(st.lists(traffics(), min_size=1, max_size=4))
def test_merge_keeps_every_request(parts: list[Traffic]) -> None:
    both = merge(parts)
    assert len(both) == sum(map(len, parts))
    assert both.model is not None
    shift = 0
    for i, part in enumerate(parts):
        back = both.take(both.model == i)
        for name in ("arrival_s", "input_tokens", "output_tokens"):
            np.testing.assert_array_equal(getattr(back, name), getattr(part, name))
        if part.previous is not None:
            np.testing.assert_array_equal(back.previous, part.previous)
        if part.hash_ids is not None:
            np.testing.assert_array_equal(back.hash_offsets, part.hash_offsets)
            np.testing.assert_array_equal(back.hash_ids, part.hash_ids + shift)
            shift += int(part.hash_ids.max(initial=-1)) + 1


def test_take_cuts_links_to_absent_requests() -> None:
    traffic = plain(4, previous=[-1, 0, 1, 2])
    assert traffic.take(np.array([0, 2, 3])).previous.tolist() == [-1, -1, 1]  # type: ignore[union-attr]
    assert traffic.head(2).previous.tolist() == [-1, 0]  # type: ignore[union-attr]
    assert traffic.scaled(2.0).rate_per_s == pytest.approx(2.0)
