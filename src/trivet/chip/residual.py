"""What calibration learned: offsets of a library's kernels on a chip, a small network over shapes, and the spread left.

For one kind of kernel, with ideal times ``compute`` and ``memory`` and a floor of a fixed number of cycles,

    log time = log( floor e^f + ((compute e^c)^p + (memory e^m)^p)^(1/p) ),    (c, m, f) = offsets + network(features)

``offsets`` belong to (chip, library, precision): measured for chips in the calibration; for any other chip, predicted from
library, precision, architecture family and covariates of the data sheet by a shrunken linear model. The network sees
dimensionless features only, so that it transfers. The uncertainty of the three offsets is shared by all kernels of a chip:
these are the latent factors (compute, bandwidth, launch); what remains is each shape's own.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from trivet.chip.experts import alike as alike_kernels
from trivet.chip.experts import expert_kernel, nearest_kernel, stand_in, taken_as
from trivet.chip.kernels import (
    LIBRARIES,
    attention_kernel,
    attention_style,
    feature_library,
    latent_maker,
    nearest_precision,
)
from trivet.errors import TrivetError

Floats = NDArray[np.float64]
SOFT_MAX_POWER = 4.0
BENCHMARKED = 0.05  # added to the log spread of a microbenchmarked chip
KNOWN = "_known"  # suffix of a kind fitted with the kernel that each library runs on a family
FACTORS = ("compute", "bandwidth", "launch")
COEFFICIENTS = Path(__file__).resolve().parents[1] / "data" / "calibration" / "operators.npz"


@dataclass(frozen=True, eq=False)
class Kind:
    """Coefficients of one kind of kernel."""

    precisions: tuple[str, ...]  # indicator order
    weights: tuple[NDArray[np.float32], ...]
    biases: tuple[NDArray[np.float32], ...]
    mean: NDArray[np.float32]
    scale: NDArray[np.float32]
    group: dict[str, Floats]  # "library|precision" -> [3], an unseen chip's offsets before covariates
    covariate: Floats  # [covariates, 3]
    centre: Floats  # [covariates]
    family: dict[str, Floats]  # family -> [3]
    chip: dict[str, Floats]  # chip -> [3], on top of its family
    measured: dict[str, Floats]  # "chip|library|precision" -> [3], all in all
    sigma_new: Floats  # [3] spread of the offsets of a chip of an unseen family
    sigma_family: Floats  # [3] of an unseen chip of a known family
    spread: Floats  # [3, 5] log spread of a shape (measured, new, benchmarked chip), see ``own_sigma``
    adjust: dict[str, float] = field(default_factory=dict)  # "row|precision" -> shift of the log spread
    centred: bool = False  # offsets but those measured are of a typical shape: less what the network says there (``centre.py``)
    kernels: tuple[str, ...] = ()  # indicator order of a kind that knows which kernel a library runs ("library/kernel")


def network(kind: Kind, x: NDArray[np.float32]) -> Floats:
    """``[rows, 3]`` corrections from ``[rows, features]`` (indicators included)."""
    hidden = (x - kind.mean) / kind.scale
    last = len(kind.weights) - 1
    for index, (weight, bias) in enumerate(zip(kind.weights, kind.biases, strict=True)):
        hidden = hidden @ weight + bias
        if index < last:
            np.tanh(hidden, out=hidden)
    return hidden.astype(np.float64)


def indicators(
    kind_precisions: tuple[str, ...], library: str, precision: str, kernels: tuple[str, ...] = ()
) -> NDArray[np.float32]:
    """Ones for library, precision and kernel, ``[libraries + precisions + kernels]``."""
    name = feature_library(library)
    kernel = library.partition("/")[2]
    kernel = kernel if kernel in kernels else nearest_kernel(kernel, precision, kernels)
    wanted = nearest_precision(taken_as(f"{name}/{kernel}", precision), kind_precisions)
    ones = [name == lib for lib in LIBRARIES] + [wanted == p for p in kind_precisions]
    ones += [kernel == k for k in kernels]
    return np.asarray(ones, np.float32)


def known_group(kind: Kind, library: str, precision: str) -> tuple[str, str]:
    """The measured (library, precision) nearest to what is asked; the second word notes what was assumed."""
    base, _, kernel = library.partition("/")
    others = ("vllm", "sglang", "trtllm", "nccl")
    alike = [f"{name}/{k}" for k in alike_kernels(kernel, precision) for name in (base, *others)]
    for name in (library, *alike, base, *others):
        measured = {key.split("|")[1] for key in kind.group if key.split("|")[0] == name}
        if measured:
            used = nearest_precision(taken_as(name, precision), tuple(sorted(measured)))
            if name.partition("/")[0] != base:
                return f"{name}|{used}", f"no {base} kernels of this kind measured: {name.partition('/')[0]}'s used"
            return f"{name}|{used}", "" if used == precision else f"{precision} kernels taken like {used}"
    raise TrivetError("the calibration holds no library", field="operators.npz")


def with_kernel(
    kinds: dict[str, Kind], kind: str, library: str, family: str, precision: str
) -> tuple[str, str]:
    """(kind, library) to time an attention with: the kind that knows its kernel, where that was measured, else as given."""
    if kind == "moe":
        library = library.replace("trtllm_min", "trtllm/min")
        if not kinds[kind].kernels or "/" in library:
            return kind, library if kinds[kind].kernels else library.partition("/")[0]
        return kind, f"{library}/{expert_kernel(library, family, precision)}"
    known = kinds.get(kind + KNOWN)
    kernel = "" if known is None else attention_kernel(library, family, precision, kind)
    if known is not None and kernel and f"{library}/{kernel}|{precision}" in known.group:
        return kind + KNOWN, f"{library}/{kernel}"
    maker = latent_maker(library, family, kind)
    return kind, f"{maker}/{attention_style(family)}" if kinds[kind].kernels else library


class Named(Protocol):
    """Anything with a chip's name and family."""

    @property
    def name(self) -> str: ...

    @property
    def family(self) -> str: ...


def offsets(
    kind: Kind, point: Named, library: str, precision: str, covariates: Floats
) -> tuple[Floats, Floats, str, str]:
    """(offsets [3], their log spread [3], how the chip is known, note)."""
    key, note = known_group(kind, library, precision)
    shift, more = stand_in(key.partition("|")[0], precision)
    exact = kind.measured.get(f"{point.name}|{key}")
    if exact is not None:
        return exact + shift, np.hypot(0.03, more), "measured", note
    base = kind.group[key] + (covariates - kind.centre) @ kind.covariate + shift
    near, new = np.hypot(kind.sigma_family, more), np.hypot(kind.sigma_new, more)
    if point.name in kind.chip:
        return base + kind.family.get(point.family, 0.0) + kind.chip[point.name], near, "family", note
    if point.family in kind.family:
        return base + kind.family[point.family], near, "family", note
    return base, new, "new", note


def combine(
    compute_s: Floats,
    memory_s: Floats,
    floor_s: float,
    correction: Floats,
    power: float = SOFT_MAX_POWER,
    join: float = 1.0,
) -> tuple[Floats, Floats, Floats, Floats, Floats]:
    """(seconds, shares of compute, bandwidth, launch; floor seconds) under ``correction`` [rows, 3]. ``power``: how well a kernel
    multiplies while it reads (1: one after the other); ``join``: likewise how the floor joins the rest (larger: side by side)."""
    grown = np.exp(np.clip(correction, -4.0, 4.0))
    compute = np.maximum(compute_s, 1e-13) * grown[:, 0]
    memory = np.maximum(memory_s, 1e-13) * grown[:, 1]
    floor = floor_s * grown[:, 2]
    larger = np.maximum(compute, memory)
    a, b = (compute / larger) ** power, (memory / larger) ** power
    busy = larger * (a + b) ** (1.0 / power)
    total = floor + busy if join == 1.0 else (floor**join + busy**join) ** (1.0 / join)
    share = (busy / total) ** join
    weight = a / (a + b)
    return total, share * weight, share * (1.0 - weight), (floor / total) ** join, floor


def spread_columns(shares: Floats, size: Floats) -> Floats:
    """What the spread of a shape depends on: its shares of compute and memory, and its size over the floor."""
    size = np.clip(size, 0.0, 6.0)
    return np.column_stack([np.ones(len(size)), shares[:, 0], shares[:, 1], size, size**2])


def own_sigma(kind: Kind, shares: Floats, size: Floats, known: str, precision: str = "") -> Floats:
    """Log spread of a shape's own residual: ``exp`` of a linear form in its shares and its size over the floor."""
    columns = spread_columns(shares, size)
    row = {"measured": 0, "benchmarked": 2}.get(known, 1)
    rows = (1, 2) if row == 2 else (row,)  # benchmarks never widen what is believed without them
    shapes = [columns @ kind.spread[r] + kind.adjust.get(f"{r}|{precision}", 0.0) for r in rows]
    # The lesser of two spreads covers 78%; BENCHMARKED brings left-out families back to 80%.
    return np.exp(np.clip(np.min(shapes, axis=0) + (BENCHMARKED if row == 2 else 0.0), -4.5, 0.5))


def pack(kinds: dict[str, Kind]) -> dict[str, NDArray[Any]]:
    """Arrays for ``np.savez``; the inverse of ``unpack``."""
    out: dict[str, NDArray[Any]] = {}
    for name, kind in kinds.items():
        out[f"{name}/precisions"] = np.array(kind.precisions)
        for index, (weight, bias) in enumerate(zip(kind.weights, kind.biases, strict=True)):
            out[f"{name}/w{index}"], out[f"{name}/b{index}"] = weight, bias
        for part in ("mean", "scale", "covariate", "centre", "sigma_new", "sigma_family", "spread"):
            out[f"{name}/{part}"] = getattr(kind, part)
        for part in ("group", "family", "chip", "measured"):
            table = getattr(kind, part)
            out[f"{name}/{part}/names"] = np.array(sorted(table))
            out[f"{name}/{part}/values"] = np.array([table[key] for key in sorted(table)]).reshape(-1, 3)
        if kind.centred:
            out[f"{name}/centred"] = np.array(True)
        if kind.kernels:
            out[f"{name}/kernels"] = np.array(kind.kernels)
        out[f"{name}/adjust/names"] = np.array(sorted(kind.adjust), dtype=str)
        out[f"{name}/adjust/values"] = np.array([kind.adjust[key] for key in sorted(kind.adjust)], dtype=np.float64)
    return out


def unpack(arrays: Any) -> dict[str, Kind]:
    """Coefficients from the arrays of ``pack``."""
    kinds = {}
    for name in sorted({key.split("/")[0] for key in arrays}):

        def table(part: str, prefix: str = name) -> dict[str, Any]:
            keys, values = arrays[f"{prefix}/{part}/names"], arrays[f"{prefix}/{part}/values"]
            return {str(k): v for k, v in zip(keys, values, strict=True)}

        depth = sum(key.startswith(f"{name}/w") for key in arrays)
        kinds[name] = Kind(
            tuple(str(p) for p in arrays[f"{name}/precisions"]),
            tuple(arrays[f"{name}/w{i}"] for i in range(depth)),
            tuple(arrays[f"{name}/b{i}"] for i in range(depth)),
            arrays[f"{name}/mean"], arrays[f"{name}/scale"], table("group"), arrays[f"{name}/covariate"],
            arrays[f"{name}/centre"], table("family"), table("chip"), table("measured"), arrays[f"{name}/sigma_new"],
            arrays[f"{name}/sigma_family"], arrays[f"{name}/spread"],
            {k: float(v) for k, v in table("adjust").items()}, f"{name}/centred" in arrays,
            tuple(str(k) for k in arrays[f"{name}/kernels"]) if f"{name}/kernels" in arrays else (),
        )  # fmt: skip
    return kinds


@cache
def shipped() -> dict[str, Kind]:
    """The coefficients that come with Trivet."""
    if not COEFFICIENTS.is_file():
        raise TrivetError(f"{COEFFICIENTS.name} is missing from the package", field="data/calibration")
    with np.load(COEFFICIENTS, allow_pickle=False) as arrays:
        return unpack({key: arrays[key] for key in arrays.files})
