"""Samples that know which attention kernel a library runs on a family, and how the fit that does not know it is held back."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trivet.chip.kernels import LIBRARIES, attention_kernel, attention_style, latent_maker
from trivet.loop.fit_operators import Recipe
from trivet.loop.operator_tables import Samples

# Of a kernel that is not known the library's name says little: damped offsets, and no shapes of its own. It says more where
# the style of the kernels is known.
DAMPED, DAMPED_STYLE = {"library": 1.0, "group": 10.0}, {"library": 0.3, "group": 3.0}


def damped(recipe: Recipe) -> Recipe:
    """The recipe for kernels that are not known."""
    least = DAMPED_STYLE if recipe.styles else DAMPED
    return replace(recipe, ridge=tuple((name, least.get(name, value)) for name, value in recipe.ridge))


def as_fitted(data: Samples, recipe: Recipe) -> tuple[Samples, tuple[str, ...]]:
    """Samples as the fit that does not know the kernel sees them, and its indicators beyond library and precision."""
    if not recipe.styles:
        return data, ()
    style = np.array([attention_style(str(family)) for family in data.family])
    maker = np.array([latent_maker(str(a), str(b), data.kind) for a, b in zip(data.library, data.family, strict=True)])
    library = np.char.add(np.char.add(maker, "/"), style).astype("U16")
    ones = (style[:, None] == "async").astype(np.float32)
    return replace(data, x=np.hstack([data.x, ones]), library=library), ("async",)


def library_columns(data: Samples) -> slice:
    """Where the indicators of the libraries stand among the features."""
    last = data.x.shape[1] - len(data.precisions)
    return slice(last - len(LIBRARIES), last)


def with_kernels(data: Samples, kernels: tuple[str, ...] = ()) -> tuple[Samples, tuple[str, ...]]:
    """Samples whose library is "library/kernel", with an indicator for each of ``kernels`` (by default those of the data), and
    the kernels in that order."""
    names, inverse, _ = data.groups
    first = {key: data.family[row] for key, row in zip(names, data.groups[2], strict=True)}
    of_key = [attention_kernel(k.split("|")[1], str(first[k]), k.split("|")[2], data.kind) for k in names]
    kernel = np.array(of_key)[inverse]
    kernels = kernels or tuple(sorted({k for k in of_key if k}))
    ones = (kernel[:, None] == np.array(kernels)).astype(np.float32)
    library = np.char.add(np.char.add(data.library, "/"), kernel).astype("U16")
    return replace(data, x=np.hstack([data.x, ones]), library=library), kernels


def with_expert_kernels(data: Samples, kernels: tuple[str, ...] = ()) -> tuple[Samples, tuple[str, ...]]:
    """Samples of experts, whose library is "library/kernel", with an indicator for each of ``kernels`` (by default those of the
    data); the kernels in that order."""
    kernel = np.char.partition(data.library, "/")[:, 2]
    kernels = kernels or tuple(sorted({str(k) for k in np.unique(kernel)}))
    ones = (kernel[:, None] == np.array(kernels)).astype(np.float32)
    return replace(data, x=np.hstack([data.x, ones])), kernels


def teaching(data: Samples) -> NDArray[Any]:
    """Rows that say something of other kernels. SGLang's latent decode over 8 bits on Hopper takes up to 10 times as long as
    reading the cache, as if it were widened on every call."""
    eight = (data.kind == "mla_decode") & (data.precision == "fp8+fp8")
    return np.asarray(~(eight & (data.library == "sglang") & (data.family == "hopper")))


def measured_elsewhere(data: Samples) -> NDArray[Any]:
    """Rows whose kernel, named in the library, was measured at this precision on another family too."""
    pair = np.char.add(np.char.add(data.library, "|"), data.precision)
    families = {p: set(np.unique(data.family[pair == p])) for p in np.unique(pair)}
    several = np.array([len(families[p]) > 1 for p in pair])
    return several & ~np.char.endswith(data.library, "/")
