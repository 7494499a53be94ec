"""What an engine's scheduler allows, by engine: token budget, sequence limits, how prompts share steps.

Sources: vLLM ``EngineArgs`` (V1 defaults by memory of the device), SGLang ``ServerArgs`` (chunk size by memory of the
device), TensorRT-LLM ``TorchLlmArgs``. What the scripts of a benchmark set beyond these: ``loop/serving_launch.py``.
"""

from __future__ import annotations

from dataclasses import dataclass

from trivet.chip.spec import Chip
from trivet.cloud.deployment import Deployment


@dataclass(frozen=True, slots=True)
class Schedule:
    """Limits of one attention-DP rank. ``mixing`` as in ``serving/steady.py``."""

    mixing: str
    budget_tokens: float
    max_sequences: float
    look_steps: float = 1.0  # decode steps between two looks at the queue of new requests
    wait_steps: float = 0.0  # steps that a prompt may wait for the other ranks to have one too
    gather_steps: float = 0.0  # steps that prompts may wait until they fill a share of the token budget
    gather_share: float = 0.0
    launches: float = 1.0  # of steps with prompts by the host, over the engine's usual; 0: captured graphs
    overlap: bool | None = None  # whether the host works beside the device; None: as the build of the engine does
    preempts: bool = False  # a request enters when its prompt's KV fits, not when its whole answer's does
    stream_steps: float = 0.0  # decode steps until a worker of a decode pool streams its first token
    cold_s: float = 0.0  # once: kernels compiled at the first step that fills the budget


def vllm_limits(chip: Chip) -> tuple[int, int]:
    """(tokens of a step, sequences) of a vLLM server where nothing is set (``EngineArgs.get_batch_defaults``)."""
    large = (chip.get("memory_bytes") or 0.0) >= 70 * 2**30 and not chip.name.startswith("a100")
    return (8192, 1024) if large else (2048, 256)


def schedule(deployment: Deployment, isl: float, osl: float, concurrency: float) -> Schedule:
    """The scheduler as ``concurrency`` clients with ``isl`` / ``osl`` tokens meet it where nothing else is said.

    vLLM: 8,192 tokens and 1,024 sequences on chips of 70 GiB and more, 2,048 and 256 on smaller ones and on any A100
    (``EngineArgs.get_batch_defaults``); a request enters when its prompt fits. SGLang: chunks of 8,192, on large chips 16,384.
    TensorRT-LLM: a prompt at a time (``max_num_tokens`` is sized to the load), and with attention-DP a prompt waits up to 60
    steps for the other ranks.
    """
    settings, ranks = deployment.settings, deployment.layout.attention_dp
    memory = deployment.chip.get("memory_bytes") or 0.0
    large = memory > 170e9
    if settings.engine == "vllm":
        budget, sequences = vllm_limits(deployment.chip)
        return Schedule("chunked", budget, sequences, preempts=True)
    if settings.engine == "sglang":
        return Schedule("prefill_first", 16384.0 if large else 8192.0, 1024.0)
    needed = max(isl + osl + 200.0, 1024.0) + concurrency / ranks
    return Schedule("whole_prompt", needed, 2048.0, wait_steps=60.0 if ranks > 1 else 0.0)
