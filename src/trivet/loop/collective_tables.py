"""Measured collectives (``nccl``, ``allreduce_custom``) as training arrays; message sizes there are in elements."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from trivet.chip.catalogue import chip as catalogue_chip
from trivet.chip.residual import indicators
from trivet.cloud.collectives import (
    COVARIATES,
    LEARNED,
    backend,
    collective_features,
    collective_floor,
    collective_group,
    collective_label,
    floor_join,
    levels_of,
    memory_rate,
    reduced_in_switch,
)
from trivet.errors import TrivetError
from trivet.loop.operator_rows import operator_name
from trivet.loop.operator_tables import Samples


def _frames(folder: Path) -> Any:
    import polars as pl

    parts = []
    for name, dtype in (("nccl", "nccl_dtype"), ("allreduce_custom", "allreduce_dtype")):
        path = folder / f"{name}.parquet"
        if not path.is_file():
            raise TrivetError(f"{path} is not there", field="data folder")
        frame = pl.read_parquet(path)
        if "backend" not in frame.columns:
            frame = frame.with_columns(pl.lit("").alias("backend"))
        width = pl.when(pl.col(dtype) == "int8").then(1).otherwise(2)
        keys = ["chip", "op_name", "kernel_source", "backend", "engine", "num_gpus", "width"]
        frame = frame.with_columns(
            width.alias("width"),
            (pl.col("message_size").cast(pl.Int64) * width).alias("bytes"), pl.col("backend").fill_null("")
        )
        # Runs of several versions repeat a size: the median of them is one row.
        parts.append(
            frame.group_by([*keys, "bytes"], maintain_order=True).agg(pl.col("latency").median()).sort([*keys, "bytes"])
        )
    joined = pl.concat(parts)
    # Eight L40S span two sockets without peer access (about 1 GB/s): a fault of that host, not of the chip.
    return joined.filter(~((pl.col("chip") == "l40s") & (pl.col("num_gpus") == 8)) & (pl.col("latency") > 0))


def load_collectives(folder: Path) -> Samples:
    """Samples of the kind "collective"; chips whose server has no known links are left out."""
    found: list[Samples] = []
    special = {collective_label("all_reduce", "vllm_eager")} | {
        collective_label(kind, "nccl", "int8") for kind in LEARNED
    }
    precisions = tuple(sorted({*LEARNED, *special}))
    keys = ["chip", "op_name", "kernel_source", "backend", "engine", "num_gpus", "width"]
    for values, part in _frames(folder).group_by(keys, maintain_order=True):
        name, op, source, label, engine, n, width = (v if isinstance(v, int) else str(v) for v in values)
        chip = catalogue_chip(str(name))
        kind, library = (
            operator_name(str(op)),
            backend(str(engine) if "NCCL" not in str(source) else "nccl", str(source), str(label)),
        )
        bandwidth = levels_of(chip, int(n))[0].bandwidth_bytes_per_s
        rows, called = len(part), collective_label(kind, library, "int8" if width == 1 else "bf16")
        size, in_switch = part["bytes"].to_numpy().astype(np.float64), reduced_in_switch(called, chip)
        floor_s = collective_floor(library, chip)
        base, x = collective_features(kind, size, int(n), bandwidth, library, in_switch, floor_s, memory_rate(chip))
        ones = np.broadcast_to(indicators(precisions, library, called), (rows, 3 + len(precisions)))
        found.append(
            Samples(
                "collective", precisions, np.hstack([x, ones]), base, part["latency"].cast(float).to_numpy() * 1e-3,
                np.full(rows, chip.name, "U32"), np.full(rows, chip.family, "U24"),
                np.full(rows, collective_group(library, bandwidth, chip), "U20"), np.full(rows, called, "U20"),
                np.broadcast_to(COVARIATES, (rows, len(COVARIATES))).copy(), np.full(rows, floor_join(library)),
            )
        )  # fmt: skip
    joined = {
        field: np.concatenate([getattr(part, field) for part in found])
        for field in ("x", "base", "seconds", "chip", "family", "library", "precision", "covariate", "join")
    }
    return Samples("collective", precisions, **joined)
