"""Least squares of residuals that leap."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from trivet.loop.leaps import least_squares

Floats = NDArray[np.float64]
FREE = np.full(3, -np.inf)
DESIGN = np.random.default_rng(3).normal(size=(40, 3))


@pytest.mark.parametrize("truth", [(0.5, -0.3, 1.0), (2.5, -3.0, 0.2), (0.0, 0.0, 0.0)])
def test_finds_the_least_of_a_plane(truth: tuple[float, ...]) -> None:
    found = least_squares(lambda x: DESIGN @ (x - np.array(truth)), np.zeros(3), FREE)
    assert found == pytest.approx(truth, abs=1e-3)


def test_sees_the_slope_through_leaps() -> None:
    """A staircase has no slope anywhere: small steps tell nothing."""
    truth = np.array([1.3, -0.8, 0.4])
    asked: list[Floats] = []

    def stairs(x: Floats) -> Floats:
        asked.append(x)
        return np.floor(DESIGN @ (x - truth) / 0.3) * 0.3 + 0.15

    found = least_squares(stairs, np.zeros(3), FREE)
    assert found == pytest.approx(truth, abs=0.1)
    assert len(asked) < 60
    assert len({tuple(x) for x in asked}) == len(asked)


def test_keeps_the_bounds() -> None:
    found = least_squares(
        lambda x: DESIGN @ (x - np.array([1.0, -2.0, 0.0])), np.zeros(3), np.array([-np.inf, -0.5, -np.inf])
    )
    assert found[1] == -0.5


def test_the_last_bits_do_not_matter() -> None:
    noise = np.random.default_rng(5)

    def stairs(x: Floats, last_bits: float) -> Floats:
        exact = np.floor(DESIGN @ x / 0.2) * 0.2 - 0.7
        return exact * (1.0 + last_bits * noise.normal(size=len(exact)))

    first, second = (least_squares(lambda x, bits=bits: stairs(x, bits), np.zeros(3), FREE) for bits in (0.0, 1e-14))
    assert np.array_equal(first, second)
