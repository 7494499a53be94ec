"""An engine as one process runs it on a card of its own: about its kernels, and a fixed time between them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from trivet.cloud.engine.components import KINDS
from trivet.cloud.engine.profiles import EngineProfile, profile

FACTORS = ("products", "prompt_products", "attention")
STEP_S = 1.0e-3  # of every step, not hidden behind the device: between those of the two cards whose logs were at hand
COLD_S = 0.15  # of a server just started: between 0.06 and 0.35 s of those two
# What vLLM's sampler holds of a logit when it is profiled (``_dummy_sampler_run``): the logit in 16 and in 32 bits, its
# probability and a random number.
LOGIT_BYTES = 14.0
# Kinds of products -> how much of what a log shows of them counts, in the logarithm. Part of it is the card (clocks, memory),
# part the kernel: experts and block-scaled products run on others than the dense ones of the logs at hand.
_PRODUCTS = {"gemm": 1.0, "head": 1.0, "experts": 0.5, "block_gemm": 0.5}


def process(
    engine: str,
    version: str = "",
    logs: NDArray[np.float64] | None = None,
    step_s: float = STEP_S,
    cold_s: float = COLD_S,
) -> EngineProfile:
    """The constants of ``engine`` with its kernels as measured, times exp of ``logs`` (in the order of ``FACTORS``), and
    ``step_s`` a step between them; the first step of all takes ``cold_s`` more.

    Raises UnknownName for an engine without a profile."""
    decode, prompt, attention = (float(v) for v in np.exp(np.zeros(3) if logs is None else logs))
    core = dict.fromkeys(KINDS, 1.0) | {"attention": attention, "latent": attention}
    # What else one process of vLLM spends between kernels: a layer, and the host's work, which asynchronous scheduling puts
    # beside the device's. The reserve is that of vLLM 0.19 on a 4090, from the blocks that it allocated.
    return replace(
        profile(engine, version), overlap=True, floors=dict.fromkeys(KINDS, 1.0), graph_s=step_s,
        weights=core | {kind: decode**share for kind, share in _PRODUCTS.items()},
        prefill_weights=core | {kind: prompt**share for kind, share in _PRODUCTS.items()},
        eager_floor_weight=1.0, layer_s=3.29e-6, host_decode_s=6.28e-4, host_mixed_s=1.312e-3, host_per_sequence_s=7.0e-6,
        routed_layer_s=0.0, latent_layer_s=0.0, memory_reserve_bytes=1.234e9,
        logit_bytes=LOGIT_BYTES, cold_s=cold_s,
    )  # fmt: skip
