"""The learned part: coefficients survive a round trip, combining is what the equation says."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from trivet.chip import residual


def test_round_trip() -> None:
    shipped = residual.shipped()
    again = residual.unpack(residual.pack(shipped))
    assert set(again) == set(shipped)
    for name, kind in shipped.items():
        assert np.array_equal(kind.spread, again[name].spread)
        assert kind.group.keys() == again[name].group.keys()
        x = np.zeros((2, len(kind.mean)), np.float32)
        assert np.array_equal(residual.network(kind, x), residual.network(again[name], x))


def test_coefficients_are_small() -> None:
    assert residual.COEFFICIENTS.stat().st_size < 1_000_000


@given(
    st.floats(1e-9, 1.0), st.floats(1e-9, 1.0), st.floats(1e-7, 1e-4), st.tuples(*[st.floats(-2.0, 2.0)] * 3),
)  # fmt: skip
def test_combine(compute: float, memory: float, floor: float, correction: tuple[float, float, float]) -> None:
    a, b = np.array([compute]), np.array([memory])
    total, c, m, launch, floor_s = residual.combine(a, b, floor, np.array([correction]))
    grown = np.exp(correction)
    expected = floor * grown[2] + ((compute * grown[0]) ** 4 + (memory * grown[1]) ** 4) ** 0.25
    assert np.isclose(total[0], expected, rtol=1e-9)
    assert np.isclose(c[0] + m[0] + launch[0], 1.0)
    assert np.isclose(floor_s[0], floor * grown[2])
    # A share is the slope of log time in its factor.
    more, *_ = residual.combine(a, b, floor, np.array([correction]) + np.array([1e-6, 0.0, 0.0]))
    assert np.isclose((np.log(more[0]) - np.log(total[0])) / 1e-6, c[0], atol=1e-4)


def test_a_measured_chip_is_known_better_than_a_new_one() -> None:
    kind = residual.shipped()["gemm"]
    shares, size = np.array([[0.3, 0.3, 0.4]]), np.array([2.0])
    assert residual.own_sigma(kind, shares, size, "measured")[0] < residual.own_sigma(kind, shares, size, "new")[0]
