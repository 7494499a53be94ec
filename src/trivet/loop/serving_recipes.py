"""Settings of the public benchmark's disaggregated runs of TensorRT-LLM: what a decode worker takes at once, what a prefill
step takes, how many front ends route.

``data/calibration/disagg_recipes.csv`` holds them by model, engine, chip, precision, lengths, layout and clients, from recipes
that the benchmark names (``srt-slurm``, Apache-2.0) and, for runs of 2025, from its own configuration. Settings only.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources
from typing import Any

from trivet.loop.serving_rows import Case


@dataclass(frozen=True, slots=True)
class Recipe:
    """One run. ``slots``: sequences that a rank of a decode worker holds (``max_batch_size``). ``prompt_tokens``: what a step
    of a prefill rank takes at most. ``frontends`` route requests over the decode workers, each in turns of its own."""

    slots: float
    prompt_tokens: float
    frontends: int


def recipe(case: Case) -> Recipe | None:
    """The settings of a disaggregated ``case``; None where no recipe has its layout, lengths and clients."""
    if len(case.pools) < 2 or not case.measured_on:
        return None
    prefill, decode = case.pools
    g, layout = case.group, decode.deployment.layout
    width = "fp4" if "fp4" in g["precision"] else "fp8"
    key = (_kind(g["model"]), g["engine"], g["chip"], width, case.isl, case.osl, prefill.workers, decode.workers, layout.chips,
           layout.attention_dp, case.concurrency)  # fmt: skip
    return _recipes().get(key)


def _kind(model: str) -> str:
    """The name that recipes are under: all checkpoints of DeepSeek V3 and R1 share theirs."""
    name = model.lower()
    return "deepseek" if "deepseek-r1" in name or "deepseek-v3" in name else "gpt-oss" if "gpt-oss" in name else name


@lru_cache(maxsize=1)
def _recipes() -> dict[tuple[Any, ...], Recipe]:
    text = resources.files("trivet.data.calibration").joinpath("disagg_recipes.csv").read_text("utf-8")
    out = {}
    for row in csv.DictReader(text.splitlines()):
        names = tuple(row[name] for name in ("model", "engine", "chip", "precision"))
        load = (float(row["isl"]), float(row["osl"]))
        layout = tuple(int(row[name]) for name in ("prefill_workers", "decode_workers", "decode_chips", "decode_ranks"))
        key = (*names, *load, *layout, float(row["concurrency"]))
        out[key] = Recipe(float(row["slots"]), float(row["prompt_tokens"]), int(row["frontends"]))
    return out
