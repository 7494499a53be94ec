"""Spread propagates to first order: against sampling."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trivet.chip import estimate
from trivet.chip.estimate import Estimate
from trivet.errors import TrivetError
from trivet.facts import Fact
from trivet.units import Z80

_sigma = st.floats(0.01, 0.2)


@given(_sigma, _sigma, st.floats(0.5, 20))
def test_against_sampling(a: float, b: float, scale: float) -> None:
    x, y = Estimate(3.0, {"x": a}), Estimate(scale, {"y": b})
    rng = np.random.default_rng(7)
    u, v = 3.0 * np.exp(a * rng.standard_normal(20_000)), scale * np.exp(b * rng.standard_normal(20_000))
    for ours, drawn in ((x * y, u * v), (x / y, u / v), (x + y, u + v), (2.0 / x, 2.0 / u), (x * x, u * u)):
        assert ours.log_sigma == pytest.approx(float(np.std(np.log(drawn))), rel=0.06)
        assert ours.value == pytest.approx(float(np.median(drawn)), rel=0.03)


def test_one_doubt_cancels() -> None:
    price = Estimate(5.0, {"price": 0.3})
    assert (price / price).log_sigma == 0
    assert (price + price).log_sigma == pytest.approx(0.3)


def test_driver_and_interval() -> None:
    both = Estimate(1.0, {"a": 0.1, "b": -0.2})
    assert both.driver == "b"
    assert both.hi / both.lo == pytest.approx(math.exp(2 * Z80 * math.hypot(0.1, 0.2)))


def test_facts_in() -> None:
    interval = estimate.of(Fact(2.0, "W", "reported", "s", lo=1.0, hi=4.0), "w")
    assert (interval.lo, interval.hi) == (pytest.approx(1.0), pytest.approx(4.0))
    assert estimate.of(Fact(2.0, "W", "reported", "s"), "w").spread == {}
    with pytest.raises(TrivetError, match="w: unknown"):
        estimate.of(Fact(None, "W", "unpublished", "s"), "w")
    with pytest.raises(TrivetError):
        estimate.between(2.0, 1.0, "x")
