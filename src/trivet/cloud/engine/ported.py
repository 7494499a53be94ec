"""How far engines run behind the kernels of a maker whose own tables are all that was measured.

AMD's published times are those of kernels tuned for one shape each, and fused where its own engine ATOM fuses them. vLLM and
SGLang run others where a shape is in no table or a fusion is kept to CDNA 4: AITER falls back to defaults of a half to a third of
the speed (aiter issue 3852; pulls 1232, 1930, 3653, 4816), and SGLang's fused latent attention was closed to CDNA 3 until
February 2026 (SGLang pulls 14043, 18242). So decode steps take longer by a factor of the engine and the family. Steps with
prompts do not show it: their products are large, and defaults fit those.

The factors are means of published runs against their prediction, drawn halfway towards 1 where only two speak (SGLang: seven
models on MI300X, after what the same authors' runs on NVIDIA's chips show; docs/accuracy.md). Dense models under vLLM show none.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from trivet.cloud.deployment import Deployment
from trivet.cloud.engine.versions import numbers
from trivet.operators import Transfer

ATOM = "atom"  # as a version of vLLM: AMD's engine, or its plug-in, which runs AITER's fused layers
# (engine, family) -> logarithm of the factor for models with experts, and without.
BEHIND = {
    ("sglang", "cdna3"): (0.55, 0.55),
    ("sglang", "cdna4"): (0.33, 0.33),
    ("vllm", "cdna3"): (0.20, 0.0),
    ("vllm", "cdna4"): (0.10, 0.0),
}

# Block-scaled products under SGLang on CDNA 3, (from, until) version -> what is added: AITER's tuned ones from its first AITER
# release on, Triton's at their defaults from 0.5.6 (pull 13617; the step is 1.3 to 1.5 times as long as tuned, aiter pull 1930,
# whose tables came after 0.5.8).
_BLOCKS = ((((0, 4, 4), (0, 5, 6)), -0.25), (((0, 5, 6), (0, 5, 9)), 0.30))

# Seconds a layer of a decode step beside its kernels. Ascend launches operators one by one even from its graphs: Qwen3-4B,
# 30B-A3B and 32B on four 910B take 0.36, 0.22 and 0.27 ms a layer more at batch 1 than their kernels.
LAUNCHED_S = {"davinci": 0.27e-3}


def launched_s(deployment: Deployment) -> float:
    """Seconds of a decode step that launching its operators takes where graphs do not hide it."""
    return LAUNCHED_S.get(deployment.chip.family, 0.0) * deployment.architecture.num_layers


def behind(deployment: Deployment) -> float:
    """Time of an engine's decode kernels on the deployment's chip over that of the maker's own (collectives apart, whose
    published times are met)."""
    settings = deployment.settings
    if settings.version == ATOM:
        return 1.0
    routed = deployment.architecture.routed
    logs = BEHIND.get((settings.engine, deployment.chip.family), (0.0, 0.0))
    return math.exp(logs[0 if routed else 1] + _blocks(deployment))


def _blocks(deployment: Deployment) -> float:
    """What block-scaled products add to the logarithm, by SGLang's version."""
    settings = deployment.settings
    if settings.engine != "sglang" or deployment.chip.family != "cdna3" or not settings.version[:1].isdigit():
        return 0.0
    if deployment.architecture.quantisation.dense != "fp8_block":
        return 0.0
    version = numbers(settings.version, 3)
    return next((more for (first, until), more in _BLOCKS if first <= version < until), 0.0)


# AMD's QuickReduce in INT4 (``*_QUICK_REDUCE_QUANTIZATION=INT4``): group -> (least bytes, share of the engine's own time that a
# large message takes). MI300X by 2 and 4 (aiter pull 801, vLLM pull 19744), MI355X by 8 (ROCm's blog); least bytes from the
# engines' ``_QR_MIN_SIZE``. Small messages take the floor.
QUICK = "quick_int4"
_QUICK = {2: (2.0**20, 0.32), 4: (2.0**21, 0.46), 8: (2.0**21, 0.65)}
_QUICK_FLOOR_S = 14e-6


def quick_reduced(transfer: Transfer, seconds: Any) -> Any:
    """Seconds of an all-reduce where large messages go by QuickReduce, from those of the engine's own kernels."""
    if transfer.kind != "all_reduce" or transfer.group not in _QUICK:
        return seconds
    least, share = _QUICK[transfer.group]
    own = np.asarray(seconds, float)
    quick = np.minimum(own, _QUICK_FLOOR_S + share * own)
    return np.where(np.asarray(transfer.bytes, float) >= least, quick, own)
