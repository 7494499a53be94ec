"""Least squares where the residuals leap: a simulated queue admits a request a step earlier or later, and its times jump.

Derivatives over small steps see nothing but the leaps. Here the slope along every axis is taken over a whole trust region, the
plane through all of its points gives the step, and the region shrinks. Every point is asked for at most once, in a fixed
order, on a fixed grid: the last bits of linear algebra (threads, libraries) do not reach the answer.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
RADIUS, LEAST_RADIUS = 1.0, 0.2  # of the region, in the parameters' own units; a plane over less is made of leaps
DIGITS = 4  # of the grid


def least_squares(residuals: Callable[[Floats], Floats], start: Floats, lowest: Floats) -> Floats:
    """The ``x`` [n] >= ``lowest`` with about the least sum of squares of ``residuals(x)`` [m].

    Parameters are in units in which the residuals are about linear over +-1 (spreads of a prior). Residuals must determine all
    of them (with a prior among them they do). 2 n + 2 calls a round, some five rounds.
    """
    seen: dict[tuple[float, ...], Floats] = {}

    def ask(x: Floats) -> tuple[Floats, Floats]:
        point = np.maximum(x.round(DIGITS), lowest)
        key = tuple(point.tolist())
        if key not in seen:
            seen[key] = residuals(point)
        return point, seen[key]

    centre, at = ask(np.asarray(start, np.float64))
    radius = RADIUS
    while radius >= LEAST_RADIUS:
        points, values = [centre], [at]
        for axis in np.eye(len(centre)):
            for side in (radius, -radius):
                point, value = ask(centre + side * axis)
                points.append(point)
                values.append(value)
        step = _plane_step(np.array(points) - centre, np.array(values), 2.0 * radius)
        points[:0], values[:0] = zip(*(ask(centre + share * step) for share in (1.0, 0.5)), strict=True)
        costs = [float(value @ value) for value in values]
        best = int(np.argmin(costs))
        moved = float(np.abs(points[best] - centre).max())
        centre, at = points[best], values[best]
        if moved < radius:
            radius *= 0.5
    return centre


def _plane_step(offsets: Floats, values: Floats, longest: float) -> Floats:
    """The step [n] to the least sum of squares of the plane through ``values`` [points, m] at ``offsets`` [points, n]."""
    design = np.column_stack([np.ones(len(offsets)), offsets])
    plane = np.linalg.lstsq(design, values, rcond=None)[0]
    step = np.linalg.lstsq(plane[1:].T, -plane[0], rcond=None)[0]
    return np.asarray(step * min(1.0, longest / max(float(np.abs(step).max()), 1e-12)))
