"""What the residual sees of a case: logs of its load and layout, and of what the physics predicts; and its names."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from trivet.cloud.serving.steady import Steady
from trivet.loop.serving_rows import Case

Floats = NDArray[np.float64]

# Continuous features, in octaves.
CONTINUOUS = ("sequences", "isl", "osl", "chips", "expert_ranks", "attention_ranks", "step", "first", "intensity")
# Named ones, compared for equality. ``setup`` joins what an engine build is: engine, version, month.
NAMED = ("engine", "mode", "chip", "family", "model", "kind", "precision", "setup", "layout")


@dataclass(frozen=True, slots=True, eq=False)
class Features:
    """``x`` [rows, CONTINUOUS]; ``names`` [rows, NAMED] as text."""

    x: Floats
    names: NDArray[np.str_]

    def rows(self, index: NDArray[np.int64] | NDArray[np.bool_]) -> Features:
        return Features(self.x[index], self.names[index])


def features(cases: list[Case], physics: list[Steady]) -> Features:
    """Features of each case; ``physics`` is what ``serving_model.steady`` says of it."""
    x = np.array([_numbers(case, steady) for case, steady in zip(cases, physics, strict=True)]).reshape(
        -1, len(CONTINUOUS)
    )
    names = np.array([_names(case) for case in cases], dtype=str).reshape(-1, len(NAMED))
    return Features(x, names)


def _numbers(case: Case, steady: Steady) -> list[float]:
    pool = case.pools[-1]
    layout = pool.deployment.layout
    sequences = case.concurrency / (pool.workers * layout.attention_dp)
    prefill, decode = case.isl / max(float(steady.ttft_s), 1e-6), case.osl * float(steady.tpot_s)
    return [
        math.log2(max(sequences, 0.25)), math.log2(case.isl), math.log2(case.osl), math.log2(layout.chips),
        math.log2(layout.moe_ep), math.log2(layout.attention_dp), math.log2(float(steady.tpot_s) * 1e3),
        math.log2(float(steady.ttft_s) * 1e3), 0.25 * math.log2(prefill * decode),
    ]  # fmt: skip


def _names(case: Case) -> list[str]:
    g = case.group
    architecture = case.pools[-1].deployment.architecture
    experts = any(layer.feed_forward.kind == "moe" for layer in architecture.layers)
    latent = any(layer.mixer.kind == "mla" for layer in architecture.layers)
    kind = ("moe" if experts else "dense") + ("-mla" if latent else "")
    setup = f"{g['engine']} {g['version']} {g['measured_on'][:7]}"
    layout = case.pools[-1].deployment.layout
    shape = f"{layout.tp}x{layout.attention_dp}x{layout.moe_ep} {len(case.pools)} {case.pools[0].workers}"
    return [g["engine"], g["mode"], g["chip"], g["family"], g["model"], kind, g["precision"], setup, shape]
