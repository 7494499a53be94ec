"""What the network says of a chip's typical product: subtracted, offsets of chips are alike, and so can be foretold.

A network that sees a shape's tiles over the chip's units also knows the chip, and shares what is the chip's own with its
offsets as it likes. For a chip that it never saw that share is a guess; so it is taken out: the offset of an unseen chip is
foretold for typical shapes, and the network only says how a shape differs from them.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from trivet.chip import residual
from trivet.chip.features import covariates, features, floor_seconds
from trivet.chip.point import ChipPoint
from trivet.chip.terms import terms
from trivet.operators import Gemm, GroupedGemm

Floats = NDArray[np.float64]
USUAL = np.array([0.4, 0.15, 0.0])  # usual corrections: they decide which shapes are compute's, memory's and launch's
_ROWS = np.array([1.0, 8.0, 64.0, 256.0, 1024.0, 8192.0])
_SIDES = np.array([256.0, 1024.0, 4096.0, 16384.0])


# Experts of today's models: hidden size, columns, experts, chosen ones.
_EXPERTS = np.array(
    [
        [2048, 768, 128, 8], [4096, 1536, 128, 8], [7168, 2048, 256, 8], [7168, 256, 256, 8], [4096, 14336, 8, 2],
        [2880, 2880, 32, 4],
    ], float,
)  # fmt: skip


def _products(precision: str) -> Gemm:
    m, n, k = (axis.ravel() for axis in np.meshgrid(_ROWS, _SIDES, _SIDES, indexing="ij"))
    return Gemm("typical", m, n, k, precision)


def _experts(precision: str) -> GroupedGemm:
    tokens, model = (axis.ravel() for axis in np.meshgrid(_ROWS, np.arange(len(_EXPERTS)), indexing="ij"))
    hidden, inter, experts, chosen = _EXPERTS[model.astype(int)].T
    return GroupedGemm("typical", tokens, hidden, inter, experts, experts, chosen, precision)


def centre(learned: residual.Kind, point: ChipPoint, kind: str, library: str, precision: str) -> Floats:
    """Corrections ``[3]`` of (compute, memory, launch) for typical products, each weighted by its share of the time."""
    operator = _experts(precision) if kind == "moe" else _products(precision)
    ideal = terms(operator, point, True, library)
    ones = residual.indicators(learned.precisions, library, precision, learned.kernels)
    matrix = features(kind, operator, ideal, point, library)
    found = residual.network(learned, np.hstack([matrix, np.broadcast_to(ones, (len(matrix), len(ones)))]))
    floor = floor_seconds(point, kind, library, precision)
    _, *shares, _ = residual.combine(ideal.compute_s, ideal.memory_s, floor, found + USUAL)
    weight = np.column_stack(shares)
    return np.asarray((weight * found).sum(0) / weight.sum(0))


def believed(
    learned: residual.Kind, named: residual.Named, point: ChipPoint, kind: str, library: str, precision: str
) -> tuple[Floats, Floats, str, str]:
    """``residual.offsets`` of a chip under the name that ``named`` gives it, for the network as it stands."""
    found = residual.offsets(learned, named, library, precision, covariates(point, kind))
    if not learned.centred or found[2] == "measured":
        return found
    return found[0] - centre(learned, point, kind, library, precision), *found[1:]
