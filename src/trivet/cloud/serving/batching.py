"""How engines form a batch: one row of settings an engine; ``_loop_replica.schedule`` acts on them.

Sources: vLLM ``v1/core/sched/scheduler.py`` (running requests first, then waiting; preemption by recompute of the
last admitted; one step decided ahead with asynchronous scheduling, the default since 0.14); SGLang
``managers/scheduler.py`` (a new prefill batch goes before decoding; the overlap scheduler decides one step ahead);
TensorRT-LLM's ``GUARANTEED_NO_EVICT`` capacity scheduler (blocks for the whole output are kept at admission).
"""

from __future__ import annotations

from dataclasses import dataclass

from trivet.cloud.deployment import EngineSettings
from trivet.errors import UnknownName


@dataclass(frozen=True, slots=True)
class Batching:
    """The scheduler's rules.

    Args:
        prefill_first: prompts run alone and before decoding (else they share a step with it).
        reserve_output: share of the outputs still to come for which blocks are kept at admission.
        asynchronous: a step is decided when the one before it starts.
        swap_block_s: time to move one KV block to host memory or back; 0 = preempted requests are recomputed.
    """

    prefill_first: bool = False
    reserve_output: float = 0.0
    asynchronous: bool = False
    swap_block_s: float = 0.0


BATCHING: dict[str, Batching] = {
    "vllm": Batching(asynchronous=True),
    "sglang": Batching(prefill_first=True, reserve_output=0.1, asynchronous=True),
    "trtllm": Batching(reserve_output=1.0, asynchronous=True),
}


def _version(text: str) -> tuple[int, ...]:
    parts = []
    for piece in text.split(".")[:2]:
        digits = "".join(c for c in piece if c.isdigit())
        parts.append(int(digits) if digits else 0)
    return tuple(parts)


def batching(settings: EngineSettings) -> Batching:
    """The rules of an engine at its version; no version means the current one."""
    if settings.engine not in BATCHING:
        raise UnknownName(f"unknown engine {settings.engine!r}", field="engine", allowed=BATCHING)
    rules = BATCHING[settings.engine]
    if settings.engine == "vllm" and settings.version and _version(settings.version) < (0, 14):
        return Batching()
    return rules
