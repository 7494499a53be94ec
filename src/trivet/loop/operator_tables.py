"""The measured kernel tables as training arrays: stratified samples, known traps left out, one set a kind of kernel."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trivet.chip.catalogue import chip as catalogue_chip
from trivet.chip.experts import expert_kernel
from trivet.chip.features import covariates, features, floor_seconds
from trivet.chip.kernels import KINDS, WIDE, precision_of
from trivet.chip.point import chip_point
from trivet.chip.residual import indicators
from trivet.chip.terms import terms
from trivet.errors import TrivetError
from trivet.loop.operator_rows import Columns, operator, precision

Floats = NDArray[np.float64]
FILES = {
    "gemm": ("gemm",),
    "gemm_narrow": ("gemm",),
    "moe": ("moe",),
    "prefill": ("attention_context",),
    "decode": ("attention_generation",),
    "mla_prefill": ("mla_context",),
    "mla_decode": ("mla_generation",),
    "scan": ("linear_attention_gdn",),
}
PRECISION_COLUMNS = {
    "gemm": ("gemm_dtype",), "moe": ("moe_dtype",), "attention_context": ("attn_dtype", "kv_cache_dtype"),
    "attention_generation": ("attn_dtype", "kv_cache_dtype"), "mla_context": ("mla_dtype", "kv_cache_dtype"),
    "mla_generation": ("mla_dtype", "kv_cache_dtype"), "linear_attention_gdn": (),
}  # fmt: skip
TEXT_COLUMNS = {"moe": ("distribution", "kernel_source"), "linear_attention_gdn": ("phase", "kernel_source")}


@dataclass(frozen=True, eq=False)
class Samples:
    """Rows of one kind: ``x`` features with indicators, ``base`` ideal compute, memory and floor seconds, measured seconds."""

    kind: str
    precisions: tuple[str, ...]
    x: NDArray[np.float32]
    base: Floats  # [rows, 3]
    seconds: Floats
    chip: NDArray[Any]
    family: NDArray[Any]
    library: NDArray[Any]
    precision: NDArray[Any]
    covariate: Floats  # [rows, covariates]
    join: Floats | None = None  # how the floor joins the rest: 1 (or none) one after the other, larger side by side

    @cached_property
    def key(self) -> NDArray[Any]:
        """``chip|library|precision`` of each row."""
        return np.char.add(np.char.add(self.chip, "|"), np.char.add(np.char.add(self.library, "|"), self.precision))

    @cached_property
    def groups(self) -> tuple[list[str], NDArray[np.intp], NDArray[np.intp]]:
        """(distinct keys, sorted; the key of each row as an index; the first row of each key)."""
        names, first, inverse = np.unique(self.key, return_index=True, return_inverse=True)
        return [str(n) for n in names], inverse, first

    def take(self, rows: NDArray[Any]) -> Samples:
        """The rows of a mask or an index."""
        return Samples(
            self.kind, self.precisions, self.x[rows], self.base[rows], self.seconds[rows], self.chip[rows],
            self.family[rows], self.library[rows], self.precision[rows], self.covariate[rows],
            None if self.join is None else self.join[rows],
        )  # fmt: skip


def kernel_library(op: str, engine: str, dtype: str, source: str, family: str = "") -> str:
    """The profile of a row. vLLM's block-FP8 products are apart, timed with their host cost (tens to hundreds of us); experts
    belong to "engine/kernel"."""
    if op == "gemm" and engine == "vllm" and dtype == "fp8_block":
        return "vllm_host"
    return f"{engine}/{expert_kernel(engine, family, dtype, source)}" if op == "moe" else engine


def _clean(op: str, frame: Any, pl: Any) -> Any:
    """Rows that measure what they say. A100's decode under TensorRT-LLM 1.0.0 implies more than the peak of its memory."""
    frame = frame.filter(pl.col("latency") > 0)
    if op == "attention_generation":
        trap = (pl.col("chip") == "a100_sxm") & (pl.col("engine") == "trtllm")
        frame = frame.filter(~(trap & (pl.col("num_key_value_heads") < pl.col("num_heads"))))
    return frame


def read(folder: Path, op: str, per_group: int, seed: int = 7) -> Any:
    """A polars frame of at most ``per_group`` rows for each chip, engine and precision; rows in a fixed order.

    The kernels inside keep the shares that they have in the table (they follow the shapes that an engine gives them).
    """
    import polars as pl

    path = folder / f"{op}.parquet"
    if not path.is_file():
        raise TrivetError(f"{path} is not there", field="data folder")
    frame = _clean(op, pl.read_parquet(path), pl)
    keys = ["chip", "engine", *(PRECISION_COLUMNS[op] or ("kernel_source",))]
    frame = frame.with_columns(pl.int_range(pl.len()).shuffle(seed=seed).over(keys).alias("_rank"))
    return frame.filter(pl.col("_rank") < per_group).drop("_rank")


def samples(kind: str, frames: dict[str, Any]) -> Samples:
    """Training arrays of one kind from frames by operator name (see ``read``)."""
    precisions = sorted({p for op, frame in frames.items() for p in _precisions(op, frame)})
    found: list[Samples] = []
    for op, frame in frames.items():
        keys = ["chip", "engine", *PRECISION_COLUMNS[op], *TEXT_COLUMNS.get(op, ("kernel_source",))]
        for values, part in frame.group_by(keys, maintain_order=True):
            group = dict(zip(keys, (str(v) for v in values), strict=True))
            found.append(_part(kind, op, group, part, tuple(precisions)))
    joined = {
        name: np.concatenate([getattr(part, name) for part in found])
        for name in ("x", "base", "seconds", "chip", "family", "library", "precision", "covariate")
    }
    return Samples(kind, tuple(precisions), **joined)


def _labels(op: str, group: dict[str, str]) -> tuple[str, str]:
    names = [precision(group[column]) for column in PRECISION_COLUMNS[op]]
    if op.startswith("mla"):
        names[0] = names[1]  # the latent is multiplied at the precision of the cache
    return (names[0] if names else "bf16"), (names[1] if len(names) > 1 else "bf16")


def _precisions(op: str, frame: Any) -> set[str]:
    if op == "linear_attention_gdn":
        return {"scan", "conv"}
    columns = list(PRECISION_COLUMNS[op])
    found = set()
    for row in frame.select(columns).unique().iter_rows():
        labels = _labels(op, dict(zip(columns, row, strict=True)))
        found.add("+".join(labels) if len(columns) == 2 else labels[0])
    return found


def _part(kind: str, op: str, group: dict[str, str], part: Any, precisions: tuple[str, ...]) -> Samples:
    part_chip = catalogue_chip(group["chip"])
    dtype, kv_dtype = _labels(op, group)
    columns = Columns(
        {name: part[name].to_numpy() for name in part.columns if part[name].dtype.is_numeric()}, len(part)
    )
    found = operator(op, dtype, kv_dtype, columns, group)
    point = chip_point(part_chip, found.dtype)
    library = kernel_library(op, group["engine"], dtype, group.get("kernel_source", ""), part_chip.family)
    ideal = terms(found, point, True, library)
    label = precision_of(found)
    rows = len(part)
    ones = np.broadcast_to(indicators(precisions, library, label), (rows, 3 + len(precisions)))
    base = np.column_stack([ideal.compute_s, ideal.memory_s, np.full(rows, floor_seconds(point, kind, library, label))])
    return Samples(
        kind, precisions, np.hstack([features(kind, found, ideal, point, library), ones]), base,
        part["latency"].cast(float).to_numpy() * 1e-3, np.full(rows, part_chip.name, "U32"),
        np.full(rows, part_chip.family, "U24"), np.full(rows, library, "U24"), np.full(rows, label, "U16"),
        np.tile(covariates(point, kind), (rows, 1)),
    )  # fmt: skip


def load(folder: Path, kind: str, per_group: int, seed: int = 7) -> Samples:
    """Samples of one of ``KINDS`` from a folder of kernel tables."""
    if kind not in KINDS:
        raise TrivetError(f"unknown kind {kind!r}", field="kind", allowed=KINDS)
    return samples(kind, {op: _share(kind, op, read(folder, op, per_group, seed)) for op in FILES[kind]})


def _share(kind: str, op: str, frame: Any) -> Any:
    """The rows of a table that are of a kind: products of narrow weights are apart."""
    if kind not in ("gemm", "gemm_narrow"):
        return frame
    labels = {name: precision(name) for name in frame[PRECISION_COLUMNS[op][0]].unique().to_list()}
    mine = [name for name, label in labels.items() if (label in WIDE) == (kind == "gemm")]
    return frame.filter(frame[PRECISION_COLUMNS[op][0]].is_in(mine))
