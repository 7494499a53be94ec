"""Fitting the kernel model: a small network and offsets by gradient descent, then offsets taken apart by ridge regression.

All numpy and single-threaded, in a fixed order, so that the same data give the same coefficients bit for bit.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trivet.chip.residual import SOFT_MAX_POWER, Kind
from trivet.loop.operator_tables import Samples

Floats = NDArray[np.float64]
HUBER = 0.1  # log residual beyond which a row counts linearly: measurements have outliers of 2x


# Log of ideal over usual rates: kernels reach about 67% of the compute peak, 86% of the bandwidth.
USUAL = np.array([0.4, 0.15, 0.0], np.float32)


@dataclass(frozen=True, slots=True)
class Recipe:
    """How a kind is fitted."""

    hidden: tuple[int, ...] = (64, 32)
    epochs: int = 40
    batch: int = 1024
    rate: float = 6e-3
    decay: float = 1e-1
    tether: float = (
        0.01  # pull of every correction towards USUAL: decides between causes that the data cannot tell apart
    )
    ridge: tuple[tuple[str, float], ...] = (
        ("library", 0.1), ("precision", 1.0), ("group", 1.0), ("covariate", 0.5), ("family", 3.0), ("chip", 1.0),
    )  # fmt: skip
    bears: tuple[int, ...] = (0, 0)  # which offset (0 compute, 1 memory) each covariate bears on
    centred: bool = False  # chips' offsets are those of a typical shape (``chip/centre.py``)
    nearest: bool = False  # left out, a precision that no other family has is labelled as the nearest
    kernels: bool = False  # a second fit that knows which kernel each library runs on a family
    styles: bool = False  # where the kernel is not known, how kernels are built on a family is
    outlier: float = 0.3  # log offset beyond which a group says little of chips that were not seen
    members: int = 1  # networks from as many seeds, joined into one whose corrections are their mean


@dataclass(frozen=True, eq=False)
class Trained:
    """A network and the offsets of each measured group."""

    weights: tuple[NDArray[np.float32], ...]
    biases: tuple[NDArray[np.float32], ...]
    mean: NDArray[np.float32]
    scale: NDArray[np.float32]
    offsets: dict[str, Floats]


def weights_of(data: Samples) -> Floats:
    """Every (chip, library, precision) counts alike, and a family with many chips less than in proportion."""
    names, inverse, first = data.groups
    count = np.bincount(inverse, minlength=len(names))
    family = data.family[first]
    groups = {f: int((family == f).sum()) for f in np.unique(family)}
    of_group = np.array([groups[f] ** -0.5 for f in family]) / count
    weight = of_group[inverse]
    return np.asarray(weight / weight.mean())


class _Adam:
    def __init__(self, parameters: dict[str, NDArray[np.float32]], rate: float, decay: float, steps: int):
        self.parameters, self.rate, self.decay, self.steps, self.step = parameters, rate, decay, steps, 0
        self.first = {k: np.zeros_like(v) for k, v in parameters.items()}
        self.second = {k: np.zeros_like(v) for k, v in parameters.items()}

    def update(self, gradient: dict[str, Any]) -> None:
        self.step += 1
        rate = self.rate * (0.5 * (1.0 + np.cos(np.pi * self.step / self.steps)) + 0.01)
        for name, value in self.parameters.items():
            slope = gradient[name].astype(np.float32)
            self.first[name] = 0.9 * self.first[name] + 0.1 * slope
            self.second[name] = 0.99 * self.second[name] + 0.01 * slope * slope
            first = self.first[name] / (1.0 - 0.9**self.step)
            second = self.second[name] / (1.0 - 0.99**self.step)
            value -= np.float32(rate * (3.0 if name == "offsets" else 1.0)) * first / (np.sqrt(second) + 1e-9)
            if name[0] == "w":
                value *= np.float32(1.0 - rate * self.decay)


def _forward(
    parameters: dict[str, NDArray[np.float32]],
    depth: int,
    x: NDArray[np.float32],
    logs: NDArray[np.float32],
    rows: NDArray[Any],
    join: NDArray[np.float32] | None = None,
) -> tuple[NDArray[np.float32], NDArray[np.float32], list[NDArray[np.float32]]]:
    """(log seconds, their slope in the three corrections, hidden layers)."""
    layers = [x]
    for index in range(depth):
        hidden = layers[-1] @ parameters[f"w{index}"] + parameters[f"b{index}"]
        layers.append(np.tanh(hidden) if index < depth - 1 else hidden)
    total = logs + layers[-1] + parameters["offsets"][rows]
    power = np.float32(SOFT_MAX_POWER)
    larger = np.maximum(total[:, 0], total[:, 1])
    # Bounded below: subnormal numbers would slow the products down tenfold.
    a = np.exp(np.maximum(power * (total[:, 0] - larger), np.float32(-20.0)))
    b = np.exp(np.maximum(power * (total[:, 1] - larger), np.float32(-20.0)))
    busy = larger + np.log(a + b) / power
    if join is None:
        value = np.logaddexp(total[:, 2], busy)
        share = np.exp(busy - value)
    else:
        value = np.logaddexp(join * total[:, 2], join * busy) / join
        share = np.exp(join * (busy - value))
    slope = np.column_stack([share * a / (a + b), share * b / (a + b), 1.0 - share])
    return value, slope, layers


def train(
    data: Samples,
    recipe: Recipe,
    seed: int = 0,
    progress: Callable[[float], None] | None = None,
    hidden: slice | None = None,
) -> Trained:
    """Fit network and offsets to ``data``; deterministic in data, recipe and seed. ``hidden`` columns have no effect."""
    if hidden is not None:
        x = data.x.copy()
        x[:, hidden] = 0.0
        found = train(replace(data, x=x), recipe, seed, progress)
        first = found.weights[0].copy()
        first[hidden] = 0.0
        return replace(found, weights=(first, *found.weights[1:]))
    if recipe.members > 1:
        alone = replace(recipe, members=1)
        return _joined([train(data, alone, seed + member, progress) for member in range(recipe.members)])
    rng = np.random.default_rng(seed)
    names, rows, _ = data.groups
    mean, scale = data.x.mean(0), data.x.std(0)
    scale = np.where(scale > 1e-3, scale, np.float32(1.0)).astype(np.float32)
    x = (data.x - mean) / scale
    logs = np.log(np.maximum(data.base, 1e-13)).astype(np.float32)
    target = np.log(data.seconds).astype(np.float32)
    weight = weights_of(data).astype(np.float32)
    join = None if data.join is None else data.join.astype(np.float32)
    sizes = [x.shape[1], *recipe.hidden, 3]
    depth = len(sizes) - 1
    parameters: dict[str, NDArray[np.float32]] = {}
    for index, (a, b) in enumerate(itertools.pairwise(sizes)):
        gain = 0.1 if index == depth - 1 else 1.0
        parameters[f"w{index}"] = (rng.normal(0.0, gain / np.sqrt(a), (a, b))).astype(np.float32)
        parameters[f"b{index}"] = np.zeros(b, np.float32)
    parameters["offsets"] = np.tile(USUAL, (len(names), 1))
    count = len(target)
    per_epoch = max(1, count // recipe.batch)
    adam = _Adam(parameters, recipe.rate, recipe.decay, recipe.epochs * per_epoch)
    for epoch in range(recipe.epochs):
        order = rng.permutation(count)
        for start in range(0, per_epoch * recipe.batch, recipe.batch):
            pick = order[start : start + recipe.batch]
            side = None if join is None else join[pick]
            _descend(adam, depth, recipe.tether, x[pick], logs[pick], rows[pick], target[pick], weight[pick], side)
        if progress is not None:
            progress((epoch + 1) / recipe.epochs)
    return Trained(
        tuple(parameters[f"w{i}"] for i in range(depth)), tuple(parameters[f"b{i}"] for i in range(depth)), mean, scale,
        {n: v.astype(np.float64) for n, v in zip(names, parameters["offsets"], strict=True)},
    )  # fmt: skip


def _joined(fits: list[Trained]) -> Trained:
    """One network whose corrections are the mean of several, side by side in every hidden layer, and the mean offsets."""
    from scipy.linalg import block_diag

    last, count = len(fits[0].weights) - 1, np.float32(len(fits))
    weights, biases = [], []
    for layer in range(last + 1):
        each = [f.weights[layer] for f in fits]
        side = np.hstack(each) if layer == 0 else np.vstack(each) / count if layer == last else block_diag(*each)
        weights.append(side.astype(np.float32))
        bias = [f.biases[layer] for f in fits]
        biases.append((np.mean(bias, axis=0) if layer == last else np.concatenate(bias)).astype(np.float32))
    offsets = {name: np.mean([f.offsets[name] for f in fits], axis=0) for name in fits[0].offsets}
    return Trained(tuple(weights), tuple(biases), fits[0].mean, fits[0].scale, offsets)


def _descend(
    adam: _Adam, depth: int, tether: float, x: Any, logs: Any, rows: Any, target: Any, weight: Any, join: Any = None
) -> None:
    parameters = adam.parameters
    value, slope, layers = _forward(parameters, depth, x, logs, rows, join)
    off = value - target
    pull = off / np.sqrt(1.0 + (off / HUBER) ** 2) / HUBER * weight
    excess = layers[-1] + parameters["offsets"][rows] - USUAL
    back = (pull[:, None] * slope + tether * weight[:, None] * excess).astype(np.float32)
    gradient: dict[str, Any] = {}
    summed = np.zeros_like(parameters["offsets"])
    np.add.at(summed, rows, back)
    gradient["offsets"] = summed
    for index in range(depth - 1, -1, -1):
        gradient[f"w{index}"], gradient[f"b{index}"] = layers[index].T @ back, back.sum(0)
        if index:
            back = (back @ parameters[f"w{index}"].T) * (1.0 - layers[index] ** 2)
    adam.update(gradient)


@dataclass(frozen=True, eq=False)
class Parts:
    """Offsets taken apart: what is the library's and precision's, what the family's, what the chip's."""

    group: dict[str, Floats]
    covariate: Floats
    centre: Floats
    family: dict[str, Floats]
    chip: dict[str, Floats]


def take_apart(
    trained: Trained,
    data: Samples,
    recipe: Recipe,
    outsiders: tuple[str, ...] = ("battlemage",),
    without: frozenset[str] = frozenset(),
) -> Parts:
    """Robust ridge regression of the offsets on library, precision, their pairs, covariates, family and chip.

    ``without``: keys to leave out.

    ``outsiders``: families of another software stack, which get an effect of their own and do not shape the rest.
    """
    keys, _, first = data.groups
    chip_of, library_of, precision_of = (np.array([k.split("|")[i] for k in keys]) for i in range(3))
    family_of, covariate = data.family[first], data.covariate[first]
    kept = np.array([k not in without for k in keys])
    keys = [k for k, keep in zip(keys, kept, strict=True) if keep]
    chip_of, library_of, precision_of = chip_of[kept], library_of[kept], precision_of[kept]
    family_of, covariate = family_of[kept], covariate[kept]
    values = np.array([trained.offsets[k] for k in keys])
    inside = ~np.isin(family_of, outsiders)
    if not inside.any():
        inside = np.ones(len(keys), bool)
    count = {f: (family_of == f).sum() for f in np.unique(family_of)}
    weight = np.array([count[f] ** -0.5 for f in family_of]) * inside
    weight = weight / np.sqrt(np.mean(weight[inside] ** 2))
    ridge = dict(recipe.ridge)
    centre = np.average(covariate[inside], axis=0)
    pair = np.char.add(np.char.add(library_of, "|"), precision_of)
    columns: list[Floats] = [np.ones(len(keys))]
    penalty, names = [1e-9], [("intercept", "")]
    for what, labels in (
        ("library", library_of), ("precision", precision_of), ("group", pair), ("family", family_of), ("chip", chip_of),
    ):  # fmt: skip
        for label in np.unique(labels[inside]):
            columns.append((labels == label) * 1.0)
            penalty.append(ridge[what])
            names.append((what, str(label)))
    for index in range(covariate.shape[1]):
        columns.append(covariate[:, index] - centre[index])
        penalty.append(ridge["covariate"])
        names.append(("covariate", str(index)))
    design = np.column_stack(columns)
    # What a data sheet says of watts bears on the compute rate alone.
    bears = [recipe.bears[int(label)] if what == "covariate" else -1 for what, label in names]
    firm = [[1e6 if b not in (-1, j) else p for b, p in zip(bears, penalty, strict=True)] for j in range(3)]
    told = [i for i, (what, _) in enumerate(names) if what == "covariate"]
    solution = np.column_stack(
        [_held_back(design[inside], values[inside, j], weight[inside], firm[j], told, recipe.outlier) for j in range(3)]
    )
    found = dict(zip(names, solution, strict=True))

    def effect(what: str, label: str) -> Floats:
        return np.asarray(found.get((what, label), np.zeros(3)))

    group = {
        str(p): effect("intercept", "") + effect("library", p.split("|")[0]) + effect("precision",
        p.split("|")[1]) + effect("group", str(p))
        for p in np.unique(pair)
    }  # fmt: skip
    slope = np.array([effect("covariate", str(i)) for i in range(covariate.shape[1])])
    parts = Parts(
        group, slope, centre, {str(f): effect("family", str(f)) for f in np.unique(family_of[inside])},
        {str(c): effect("chip", str(c)) for c in np.unique(chip_of[inside])},
    )  # fmt: skip
    return _outsiders(parts, keys, values, family_of, covariate, inside)


def _outsiders(parts: Parts, keys: list[str], values: Floats, family_of: Any, covariate: Floats, inside: Any) -> Parts:
    """Effects of families that were kept out: the mean of what the rest does not explain."""
    family = dict(parts.family)
    for name in np.unique(family_of[~inside]):
        rest = []
        for index in np.flatnonzero(family_of == name):
            pair = keys[index].split("|", 1)[1]
            rest.append(values[index] - parts.group[pair] - (covariate[index] - parts.centre) @ parts.covariate)
        family[str(name)] = np.median(np.array(rest), axis=0)
    return replace(parts, family=family)


def _held_back(
    design: Floats, value: Floats, weight: Floats, penalty: list[float], told: list[int], outlier: float
) -> Floats:
    """Robust ridge regression in which no column of ``told`` has a negative slope: more peak a watt, or more bandwidth a unit,
    never brings a chip nearer to its data sheet. Those that would are left out."""
    penalty = list(penalty)
    while True:
        solution = _robust_ridge(design, value, weight, penalty, outlier)
        wrong = [i for i in told if solution[i] < 0.0 and penalty[i] < 1e6]
        if not wrong:
            solution[told] = np.maximum(solution[told], 0.0)
            return solution
        for i in wrong:
            penalty[i] = 1e6


def _robust_ridge(design: Floats, value: Floats, weight: Floats, penalty: list[float], outlier: float) -> Floats:
    """Iteratively reweighted: a group far off (``outlier`` and more in log) counts less."""
    trust: Any = np.ones(len(value))
    solution = np.zeros(design.shape[1])
    for _ in range(8):
        scaled = design * (weight * np.sqrt(trust))[:, None]
        target = value * weight * np.sqrt(trust)
        solution = np.linalg.solve(scaled.T @ scaled + np.diag(penalty), scaled.T @ target)
        trust = 1.0 / (1.0 + ((value - design @ solution) / outlier) ** 2)
    return np.asarray(solution)


def assemble(
    trained: Trained, parts: Parts, precisions: tuple[str, ...], sigma_new: Floats, sigma_family: Floats
) -> Kind:
    """A ``Kind`` whose own spread is still to be calibrated."""
    return Kind(
        precisions, trained.weights, trained.biases, trained.mean, trained.scale, parts.group, parts.covariate, parts.centre,
        parts.family, parts.chip, trained.offsets, sigma_new, sigma_family, np.zeros((3, 5)),
    )  # fmt: skip
