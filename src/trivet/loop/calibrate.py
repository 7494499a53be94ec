"""Calibration of the kernel model from a folder of measured tables: fit, leave-one-family-out, spread; the shipped file.

``calibrate_operators`` reproduces ``data/calibration/operators.npz`` bit for bit with the locked packages.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trivet.chip import residual
from trivet.chip.benchmarks import update
from trivet.chip.catalogue import chip as catalogue_chip
from trivet.chip.centre import believed, centre
from trivet.chip.kernels import KINDS
from trivet.chip.point import chip_point
from trivet.chip.timing import predict_flat
from trivet.errors import TrivetError
from trivet.loop.collective_tables import load_collectives
from trivet.loop.fit_kernels import (
    as_fitted,
    damped,
    library_columns,
    measured_elsewhere,
    teaching,
    with_expert_kernels,
    with_kernels,
)
from trivet.loop.fit_operators import Recipe, train
from trivet.loop.fit_spread import by_engine, by_precision, own_spread, spread_between, spread_labels
from trivet.loop.fit_typical import assembled, centred, labelled, seen
from trivet.loop.operator_tables import Samples, load, read
from trivet.operators import Gemm

Floats = NDArray[np.float64]
# Rows for each chip, engine and precision: enough to see every corner of the tables, few enough for minutes.
ROWS = {
    "gemm": 1000, "gemm_narrow": 1000, "moe": 800, "prefill": 800, "decode": 1000, "mla_prefill": 600, "mla_decode": 600,
    "scan": 400,
}  # fmt: skip
RECIPES: dict[str, Recipe] = {kind: Recipe() for kind in KINDS} | {
    "gemm": Recipe(epochs=80, bears=(1, 1), centred=True, members=3),
    "gemm_narrow": Recipe(decay=0.8, nearest=True, members=3),
    "moe": Recipe(
        bears=(0, 0, 1), nearest=True, members=3, centred=True,
        ridge=(("library", 0.1), ("precision", 1.0), ("group", 1.0), ("covariate", 0.5), ("family", 0.3), ("chip", 1.0)),
    ),
    # Hopper's links answer in two thirds of the time of all others': the family has its share, so that others do not follow it.
    "collective": Recipe(
        (24, 12), 100, 512, 4e-3, 1e-2, tether=0.1, members=6, outlier=0.2,
        ridge=(("library", 0.1), ("precision", 1.0), ("group", 1.0), ("covariate", 0.5), ("family", 0.2), ("chip", 1.0)),
    ),
    "scan": Recipe((48, 24), 24, 1024, 4e-3, kernels=True, styles=True, members=3),
    "prefill": Recipe(kernels=True, styles=True, members=3),
    "decode": Recipe(kernels=True, members=3),
    # Few rows and one model's shapes: a smaller network, held closer to the physics.
    "mla_prefill": Recipe((64, 32), 40, 1024, 4e-3, 0.3, kernels=True, styles=True, members=3),
    "mla_decode": Recipe((64, 32), 40, 1024, 4e-3, 0.3, kernels=True, styles=True, members=3),
}
ALL_KINDS = (*KINDS, "collective")
Progress = Callable[[str, float], None]


@dataclass(frozen=True, slots=True)
class _Named:
    """A chip as the offsets need it; an empty family is one never seen."""

    name: str
    family: str


@dataclass(frozen=True, eq=False)
class Fit:
    """A fitted kind, its samples and what it predicts for them: in the fit, and with their family left out."""

    kind: residual.Kind
    data: Samples
    inside_s: Floats
    outside_s: Floats
    outside_sigma: Floats  # total log spread of a chip of an unseen family
    left: dict[str, residual.Kind]  # family -> coefficients fitted without it
    known: residual.Kind | None = None  # the same kind fitted with the kernel that each library runs on a family


def predict(kind: residual.Kind, data: Samples, hide: bool = False) -> tuple[Floats, Floats, NDArray[Any]]:
    """(seconds, shares [rows, 3], how each chip is known) of samples; ``hide`` forgets their chips and families."""
    correction = residual.network(kind, data.x)
    seconds, shares = np.zeros(len(data.seconds)), np.zeros((len(data.seconds), 3))
    how = np.empty(len(data.seconds), "U12")
    for key, rows in _groups(data):
        chip, library, precision = key.split("|")
        family = str(data.family[rows[0]])
        point = _Named("" if hide else chip, "" if hide else family)
        offset, _, known, _ = residual.offsets(kind, point, library, precision, data.covariate[rows[0]])
        if kind.centred and known != "measured":
            offset = offset - centre(kind, chip_point(catalogue_chip(chip), precision), data.kind, library, precision)
        value, a, b, c, _ = residual.combine(
            data.base[rows, 0], data.base[rows, 1], data.base[rows[0], 2], correction[rows] + offset,
            join=1.0 if data.join is None else float(data.join[rows[0]]),
        )  # fmt: skip
        seconds[rows], shares[rows] = value, np.column_stack([a, b, c])
        how[rows] = known
    return seconds, shares, how


def _groups(data: Samples) -> list[tuple[str, NDArray[np.intp]]]:
    names, inverse, _ = data.groups
    order = np.argsort(inverse, kind="stable")
    edges = np.searchsorted(inverse[order], np.arange(len(names) + 1))
    return [(n, order[a:b]) for n, a, b in zip(names, edges[:-1], edges[1:], strict=True)]


def fit_kind(data: Samples, recipe: Recipe, seed: int = 0, progress: Progress | None = None) -> Fit:
    """Fit one kind, predict every row with its family left out, and calibrate the spread on that.

    With ``recipe.kernels`` there are two fits: one that knows which kernel a library runs on a family, for chips of families
    where it is known and was measured, and one that does not, for the rest.
    """
    if data.kind == "moe":
        named, kernels = with_expert_kernels(data)
        return _fit(named, recipe, seed, progress, masked=library_columns(data), kernels=kernels)
    if not recipe.kernels:
        return _fit(data, recipe, seed, progress)
    named, kernels = with_kernels(data)
    elsewhere = measured_elsewhere(named)
    close = _fit(named, recipe, seed, progress, elsewhere)
    styled, styles = as_fitted(data, recipe)
    # Where every row has its kernel elsewhere, this fit still needs rows to set its spread on.
    asked = np.ones_like(elsewhere) if elsewhere.all() else ~elsewhere
    far = _fit(styled, damped(recipe), seed, progress, asked, library_columns(data), taught=teaching(data))
    return replace(
        far,
        kind=replace(far.kind, kernels=styles),
        data=data,
        inside_s=close.inside_s,
        outside_s=np.where(elsewhere, close.outside_s, far.outside_s),
        outside_sigma=np.where(elsewhere, close.outside_sigma, far.outside_sigma),
        known=replace(close.kind, kernels=kernels),
    )


def _fit(
    data: Samples,
    recipe: Recipe,
    seed: int = 0,
    progress: Progress | None = None,
    asked: NDArray[Any] | None = None,
    masked: slice | None = None,
    kernels: tuple[str, ...] = (),
    taught: NDArray[Any] | None = None,
) -> Fit:
    """One fit; ``asked``: the rows to predict with their family left out, and on which the spread is calibrated (all);
    ``masked``: columns that the network may not use; ``kernels`` of experts, the last columns;
    ``taught``: the rows to learn from (all)."""
    from trivet.loop.fit_operators import weights_of

    asked = np.ones(len(data.seconds), bool) if asked is None else asked
    families = [str(f) for f in np.unique(data.family)]

    def told(done: float) -> None:
        if progress is not None:
            progress(data.kind, done / (1 + len(families)))

    known = data if taught is None or taught.all() else data.take(taught)
    trained = train(known, recipe, seed, hidden=masked)
    told(1)
    typical = centred(trained, known, recipe, kernels)
    new, near = spread_between(typical, known, recipe)
    kind = replace(assembled(trained, typical, known, recipe, new, near), kernels=kernels)
    outside, shares, _ = predict(kind, data)
    kept: dict[str, residual.Kind] = {}
    for index, family in enumerate(families):
        out = (data.family == family) & asked
        if not out.any():
            continue
        rest = known.take(known.family != family)
        other = train(rest, recipe, seed, hidden=masked)
        left = assembled(other, centred(other, rest, recipe, kernels), rest, recipe, new, near)
        left = seen(left, rest, kernels) if kernels else left
        kept[family] = left
        hidden = data.take(out)
        if recipe.nearest:
            hidden = replace(hidden, x=labelled(hidden, rest, kernels))
        outside[out], shares[out], _ = predict(left, hidden)
        told(2 + index)
    inside, inside_shares, _ = predict(kind, data)
    weight = weights_of(data)
    floor = data.base[:, 2]
    usual = (data.family != "battlemage") & asked
    error = np.abs(np.log(data.seconds / outside))
    far = own_spread(error[usual], shares[usual], np.log(outside / floor)[usual], weight[usual], new)
    near_error = np.abs(np.log(data.seconds / inside))
    close = own_spread(near_error, inside_shares, np.log(inside / floor), weight, np.full(3, 0.03))
    kind = replace(kind, spread=np.vstack([close, far, far]))
    labels = spread_labels(data)
    adjust = {
        **by_precision(kind, 0, labels, near_error, inside_shares, np.log(inside / floor), np.full(3, 0.03), usual),
        **by_precision(kind, 1, labels, error, shares, np.log(outside / floor), new, usual),
    }
    kind = replace(kind, adjust=adjust)
    engine = np.char.partition(data.library, "/")[:, 0]
    if data.kind in ("prefill", "decode"):
        adjust = {**adjust, **by_engine(kind, data, engine, error, shares, np.log(outside / floor), new, usual)}
        kind = replace(kind, adjust=adjust)
    own = np.zeros(len(data.seconds))
    for label, library in sorted(set(zip(labels.tolist(), engine.tolist(), strict=True))):
        mine = (labels == label) & (engine == library)
        own[mine] = residual.own_sigma(kind, shares[mine], np.log(outside / floor)[mine], "new", str(label), str(library))
    return Fit(kind, data, inside, outside, np.sqrt(own**2 + ((shares * new) ** 2).sum(1)), kept)


def calibrate_operators(
    folder: Path, kinds: tuple[str, ...] = ALL_KINDS, rows: int = 0, seed: int = 0, progress: Progress | None = None
) -> dict[str, Fit]:
    """Fit every kind from the tables in ``folder``; ``rows`` a group overrides the usual sample."""
    found = {}
    for kind in kinds:
        data = load_collectives(folder) if kind == "collective" else load(folder, kind, rows or ROWS[kind])
        found[kind] = fit_kind(data, RECIPES[kind], seed, progress)
        if kind.startswith("gemm") and "gemm" in found:
            found[kind] = with_benchmarks(found[kind], found["gemm"], folder)
    return found


BENCHMARKS = ((4096, 4096, 4096), (1, 65536, 4096), (256, 512, 512))


def benchmark_rows(folder: Path) -> dict[str, tuple[tuple[Gemm, float], ...]]:
    """Chip -> three microbenchmarks out of its BF16 table: a large product, a matrix-vector product, a tiny product."""
    frame = read(folder, "gemm", 1 << 40)
    found: dict[str, list[tuple[Gemm, float]]] = {}
    for m, n, k in BENCHMARKS:
        mine = frame.filter(
            (frame["m"] == m)
            & (frame["n"] == n)
            & (frame["k"] == k)
            & (frame["gemm_dtype"] == "bfloat16")
            & (frame["engine"] == "vllm")
        )
        for chip, latency in mine.select("chip", "latency").sort("chip", "latency").iter_rows():
            shapes = found.setdefault(str(chip), [])
            if all(g.m != m for g, _ in shapes):
                shapes.append((Gemm("benchmark", float(m), float(n), float(k)), float(latency) * 1e-3))
    return {catalogue_chip(c).name: tuple(v) for c, v in found.items() if len(v) >= 2}


def predict_benchmarked(
    fit: Fit, wide: Fit, measured: dict[str, tuple[tuple[Gemm, float], ...]]
) -> tuple[Floats, Floats, Floats]:
    """(seconds, shares, spread of the offsets [rows, 3]) with the family left out but the chip's microbenchmarks known, which
    are of the kind of ``wide``."""
    data = fit.data
    nearest = RECIPES[data.kind].nearest
    seconds, shares, spread = fit.outside_s.copy(), np.zeros((len(data.seconds), 3)), np.zeros((len(data.seconds), 3))
    for key, rows in _groups(data):
        name, library, precision = key.split("|")
        left = fit.left[str(data.family[rows[0]])]
        unnamed, chip = _Named("", ""), catalogue_chip(name)
        offset, kernels, _, _ = believed(left, unnamed, chip_point(chip, precision), data.kind, library, precision)
        sigma = kernels
        if name in measured:
            point, base = chip_point(chip, "bf16"), wide.left[str(data.family[rows[0]])]
            prior, before, _, _ = believed(base, unnamed, point, "gemm", "vllm", "bf16")

            def ask(
                operator: Gemm, delta: Floats, kind: Any = base, where: Any = point, start: Any = prior
            ) -> tuple[float, Floats]:
                parts = predict_flat(kind, operator, where, "gemm", "vllm", start + delta, True, bounded=False)
                return float(parts[0][0]), np.array([parts[1][0], parts[2][0], parts[3][0]])

            shift, sigma = update(measured[name], ask, np.zeros(3), before).apply(
                precision == "bf16", np.zeros(3), kernels, data.kind == "gemm_narrow"
            )
            offset = offset + shift
        mine = data.take(rows)
        x = labelled(mine, data.take(data.family != mine.family[0])) if nearest else mine.x
        correction = residual.network(left, x)
        value, a, b, c, _ = residual.combine(
            data.base[rows, 0], data.base[rows, 1], data.base[rows[0], 2], correction + offset
        )
        seconds[rows], shares[rows], spread[rows] = value, np.column_stack([a, b, c]), sigma
    return seconds, shares, spread


def with_benchmarks(fit: Fit, wide: Fit, folder: Path) -> Fit:
    """The fit with the spread of a chip known by its microbenchmarks, from families left out."""
    from trivet.loop.fit_operators import weights_of

    measured = benchmark_rows(folder)
    seconds, shares, spread = predict_benchmarked(fit, wide, measured)
    rows = np.isin(fit.data.chip, sorted(measured)) & (fit.data.family != "battlemage")
    if not rows.any():
        return fit
    error = np.abs(np.log(fit.data.seconds / seconds))[rows]
    size = np.log(seconds / fit.data.base[:, 2])[rows]
    coefficients = own_spread(error, shares[rows], size, weights_of(fit.data)[rows], spread[rows])
    kind = replace(fit.kind, spread=np.vstack([fit.kind.spread[:2], coefficients]))
    every = np.abs(np.log(fit.data.seconds / seconds))
    sizes = np.log(seconds / fit.data.base[:, 2])
    use = np.isin(fit.data.chip, sorted(measured)) & (fit.data.family != "battlemage")
    more = by_precision(kind, 2, spread_labels(fit.data), every, shares, sizes, spread, use)
    return replace(fit, kind=replace(kind, adjust={**kind.adjust, **more}))


def chosen_kinds(text: str) -> tuple[str, ...]:
    """Kinds of a comma-separated list, all when empty; raises TrivetError for one that is unknown."""
    wanted = tuple(k.strip() for k in text.split(",") if k.strip()) or ALL_KINDS
    for kind in wanted:
        if kind not in ALL_KINDS:
            raise TrivetError(f"unknown kind {kind!r}", field="kinds", allowed=ALL_KINDS)
    return wanted


def kinds_of(fits: dict[str, Fit]) -> dict[str, residual.Kind]:
    """Coefficients by the name under which they are shipped."""
    known = {name + residual.KNOWN: fit.known for name, fit in fits.items() if fit.known is not None}
    return {name: fit.kind for name, fit in fits.items()} | known


def differences(fits: dict[str, Fit]) -> list[str]:
    """Names of arrays that are not bit for bit those of the shipped file."""
    shipped = residual.shipped()
    found = kinds_of(fits)
    ours = residual.pack(found)
    theirs = residual.pack({name: shipped[name] for name in found if name in shipped})
    return sorted(
        k for k in {*ours, *theirs} if k not in ours or k not in theirs or not np.array_equal(ours[k], theirs[k])
    )


def write_coefficients(fits: dict[str, Fit], path: Path) -> None:
    """The ``npz`` that ``trivet.chip.residual`` reads; whole or not at all."""
    arrays: dict[str, Any] = residual.pack(kinds_of(fits))
    temporary = path.with_name(path.name + ".partial")
    with temporary.open("wb") as stream:
        np.savez_compressed(stream, **arrays)
    temporary.replace(path)
