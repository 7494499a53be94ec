"""Pareto frontiers over arrays: every objective is to be small."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def pareto(objectives: Floats, tolerance: float = 0.0) -> NDArray[np.int64]:
    """Indices of the rows that no other row dominates, in order of the first objective.

    Args:
        objectives: [points, objectives], positive where ``tolerance`` > 0; rows with a NaN are never on the frontier.
        tolerance: rows within this relative distance in every objective count as one, the first of them stands.

    A row is dominated when another is no larger in every objective and smaller in one. Sorted by the first objective,
    a row can only be dominated by an earlier one, so each is compared with the frontier so far.
    """
    good = np.flatnonzero(np.isfinite(objectives).all(axis=1))
    points = objectives[good]
    if tolerance > 0.0 and len(points):
        cells = np.floor(np.log(np.maximum(points, 1e-300)) / np.log1p(tolerance))
    else:
        cells = points
    order = np.lexsort(tuple(cells.T[::-1]) if tolerance == 0.0 else (points.sum(axis=1), *cells.T[::-1]))
    kept = np.empty((0, points.shape[1]))
    chosen: list[int] = []
    for i in order:
        if len(kept) and bool((kept <= cells[i]).all(axis=1).any()):
            continue
        kept = np.vstack([kept, cells[i]])
        chosen.append(int(good[i]))
    return np.array(chosen, dtype=np.int64)
