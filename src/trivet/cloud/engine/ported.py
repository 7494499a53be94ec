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

from trivet.cloud.deployment import Deployment

ATOM = "atom"  # as a version of vLLM: AMD's engine, or its plug-in, which runs AITER's fused layers
# (engine, family) -> logarithm of the factor for models with experts, and without.
BEHIND = {
    ("sglang", "cdna3"): (0.55, 0.55),
    ("sglang", "cdna4"): (0.33, 0.33),
    ("vllm", "cdna3"): (0.20, 0.0),
    ("vllm", "cdna4"): (0.10, 0.0),
}

# Seconds a layer of a decode step beside its kernels. Ascend launches operators one by one even from its graphs: Qwen3-4B, 30B-A3B
# and 32B on four 910B take 0.36, 0.22 and 0.27 ms a layer more at batch 1 than their kernels.
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
    routed = any(layer.feed_forward.kind == "moe" for layer in deployment.architecture.layers)
    logs = BEHIND.get((settings.engine, deployment.chip.family), (0.0, 0.0))
    return math.exp(logs[0 if routed else 1])
