"""Fitted networks as coefficients: offsets of typical shapes, and labels that the rest of the data knows."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from trivet.chip import residual
from trivet.chip.catalogue import chip as catalogue_chip
from trivet.chip.centre import centre
from trivet.chip.experts import nearest_kernel
from trivet.chip.kernels import nearest_precision
from trivet.chip.point import chip_point
from trivet.loop.fit_operators import Parts, Recipe, Trained, assemble, take_apart
from trivet.loop.operator_tables import Samples

Floats = NDArray[np.float64]


def assembled(
    trained: Trained, typical: Trained, data: Samples, recipe: Recipe, new: Floats, near: Floats
) -> residual.Kind:
    """Coefficients from a network and the offsets to take apart; their spread is still to be calibrated."""
    parts = with_hosts(take_apart(typical, data, recipe), typical)
    return replace(assemble(trained, parts, data.precisions, new, near), centred=recipe.centred)


def with_hosts(parts: Parts, trained: Trained) -> Parts:
    """Launches without a graph are the host's, whatever the chip's family: an unseen chip has the median of the machines, each
    counted once (over PCIe a machine has an offset for each size of group)."""
    floors: dict[str, dict[str, list[float]]] = {}
    for key, offset in trained.offsets.items():
        chip, library, precision = key.split("|")
        if precision.endswith("_eager") and key.split("|", 1)[1] in parts.group:
            floors.setdefault(library.partition("/")[0], {}).setdefault(chip, []).append(float(offset[2]))
    group = dict(parts.group)
    for pair, offset in parts.group.items():
        machines = floors.get(pair.split("|")[0].partition("/")[0], {})
        if pair.endswith("_eager") and machines:
            group[pair] = np.array([*offset[:2], np.median([np.mean(own) for own in machines.values()])])
    return replace(parts, group=group)


def centred(trained: Trained, data: Samples, recipe: Recipe, kernels: tuple[str, ...] = ()) -> Trained:
    """The same with the offsets of a typical shape, as they are taken apart."""
    if not recipe.centred:
        return trained
    bare = assemble(trained, Parts({}, np.zeros((0, 3)), np.zeros(0), {}, {}), data.precisions, np.zeros(3), np.zeros(3))
    bare = replace(bare, kernels=kernels)
    found = {}
    for key, offset in trained.offsets.items():
        chip, library, precision = key.split("|")
        point = chip_point(catalogue_chip(chip), precision)
        found[key] = offset + centre(bare, point, data.kind, library, precision)
    return replace(trained, offsets=found)


def seen(kind: residual.Kind, data: Samples, kernels: tuple[str, ...]) -> residual.Kind:
    """A kind of experts that does not take precisions and kernels for known which ``data`` lacks; their places stay."""
    have = set(np.unique(np.char.partition(data.library, "/")[:, 2]).tolist())
    precisions = tuple(p if (data.precision == p).any() else "" for p in data.precisions)
    return replace(kind, precisions=precisions, kernels=tuple(k if k in have else "" for k in kernels))


def expert_indicators(key: str, rest: Samples, kernels: tuple[str, ...]) -> NDArray[np.float32]:
    """Indicator of the kernel in ``key`` ("chip|library/kernel|precision"), or of the nearest one that ``rest`` knows."""
    _, library, precision = key.split("|")
    known = tuple(k for k in kernels if np.char.endswith(rest.library, "/" + k).any())
    wanted = nearest_kernel(library.partition("/")[2], precision, known)
    return np.asarray([k == wanted for k in kernels], np.float32)


def labelled(data: Samples, rest: Samples, kernels: tuple[str, ...] = ()) -> NDArray[np.float32]:
    """Features of ``data`` with precisions and kernels (the last columns) that ``rest`` lacks labelled as the nearest it has."""
    x, seen = data.x.copy(), tuple(p for p in data.precisions if (rest.precision == p).any())
    if kernels:
        for number, key in enumerate(data.groups[0]):
            x[data.groups[1] == number, -len(kernels) :] = expert_indicators(key, rest, kernels)
    start = x.shape[1] - len(kernels) - len(data.precisions)
    for number, label in enumerate(data.precisions):
        mine = data.precision == label
        if label not in seen and mine.any():
            x[mine, start + number] = 0.0
            x[mine, start + data.precisions.index(nearest_precision(label, seen))] = 1.0
    return x
