"""Tokens to experts and back: dispatch and combine of mixture-of-experts layers over expert-parallel ranks.

Each rank sends its tokens to the ranks that hold their experts, and gets the experts' outputs back. Low-latency kernels send a
copy for every chosen expert, high-throughput kernels one for every rank reached (DeepEP; of ``g`` ranks ``g (1 - (1 - 1/g)^k)``
under uniform choice of ``k`` experts). With ``t`` tokens a rank of ``h`` numbers of ``w`` bytes over a link of ``b`` bytes/s:

    seconds = floor + per_expert experts + per_token t + inefficiency copies t h w (g - 1) / (g b)

The four constants of each back end and phase are fitted (``loop/calibrate_dispatch.py``); the spread is that of chips left out.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trivet.chip.timing import Seconds
from trivet.errors import TrivetError

Floats = NDArray[np.float64]
PHASES = ("dispatch", "combine")
WIDTHS = {"nvfp4": 0.5625, "fp4": 0.5625, "fp8": 1.0, "fp8_block": 1.0, "bf16": 2.0, "bfloat16": 2.0, "fp16": 2.0}
# What rows call a back end that has no constants of its own -> the nearest one.
NEAREST = {"deepep": "deepep_ll", "vllm": "deepep_ll", "sglang": "deepep_low_latency", "trtllm": "trtllm_deepep_ll"}


@dataclass(frozen=True, slots=True)
class Constants:
    """Of one back end and phase; ``log_sigma`` of a chip that was not in the fit, ``chips`` how many were."""

    floor_s: float
    per_expert_s: float
    per_token_s: float
    inefficiency: float
    log_sigma: float
    chips: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class Exchange:
    """Loads of one phase; arrays broadcast. ``tokens`` are one rank's; ``width_bytes`` of one number."""

    tokens: Any
    hidden: Any
    top_k: Any
    experts: Any
    ranks: Any
    width_bytes: float


def low_latency(backend: str) -> bool:
    """Whether a back end's kernels send a copy for each expert."""
    return any(word in backend for word in ("_ll", "low_latency", "generation"))


def width(dtype: str, backend: str, phase: str) -> float:
    """Bytes of a number on the wire; not told, low-latency kernels dispatch in FP8 and everything else is 16-bit."""
    found = WIDTHS.get(dtype.strip().lower())
    return found or (1.0 if low_latency(backend) and phase == "dispatch" else 2.0)


def terms(load: Exchange, backend: str, bandwidth: float) -> tuple[Floats, Floats, Floats]:
    """(experts, tokens of a rank, seconds of the bytes at the link's rate), of one shape."""
    tokens, hidden, k, experts, g = (
        np.asarray(v, np.float64) for v in (load.tokens, load.hidden, load.top_k, load.experts, load.ranks)
    )
    copies = k if low_latency(backend) else g * (1.0 - (1.0 - 1.0 / g) ** k)
    link = copies * tokens * hidden * load.width_bytes * (g - 1.0) / g / bandwidth
    experts, tokens, link = np.broadcast_arrays(experts, tokens, link)
    return experts, tokens, link


def time(load: Exchange, backend: str, phase: str, bandwidth: float) -> Seconds:
    """Seconds of one phase over links of ``bandwidth`` bytes/s a chip and direction. An unknown back end takes the nearest
    one and says so. Raises TrivetError for an unknown phase."""
    if phase not in PHASES:
        raise TrivetError(f"unknown phase {phase!r}", field="phase", allowed=PHASES)
    name = backend if f"{backend}|{phase}" in shipped() else NEAREST.get(backend, "deepep_ll")
    held = shipped()[f"{name}|{phase}"]
    experts, tokens, link = terms(load, name, bandwidth)
    moved = held.inefficiency * link
    value = held.floor_s + held.per_expert_s * experts + held.per_token_s * tokens + moved
    share = moved / value
    sigma = np.full_like(value, held.log_sigma)
    note = "" if name == backend else f"{backend or 'an unnamed back end'} taken like {name}"
    return Seconds(value, sigma, 0.0, 0.0, 1.0 - share, share, np.full_like(value, held.floor_s), note, sigma)


@lru_cache(maxsize=1)
def shipped() -> dict[str, Constants]:
    """``backend|phase`` -> constants, as the package holds them."""
    text = resources.files("trivet.data.calibration").joinpath("dispatch.json").read_text("utf-8")
    return {name: Constants(**raw) for name, raw in json.loads(text)["constants"].items()}
