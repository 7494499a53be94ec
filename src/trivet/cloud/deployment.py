"""A deployment: which model runs on which chips, in which layout, under which engine; and the table of its steps."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from trivet.chip.spec import Chip
from trivet.model.architecture import Architecture
from trivet.model.parallel import Layout

ENGINES = ("vllm", "sglang", "trtllm")
Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """What an engine is started with. Defaults are the engine's own (see ``cloud/engine.py``)."""

    engine: str = "vllm"
    version: str = ""
    max_num_seqs: int = 256  # per attention-DP rank
    max_num_batched_tokens: int = 8192  # token budget of a step; chunk size of prefill
    max_model_len: int = 0  # 0 = the model's own
    memory_utilization: float = 0.9
    block_size: int = 16
    num_kv_blocks: int = 0  # 0 = computed from memory
    kv_dtype: str = ""  # "" = the checkpoint's
    weight_dtype: str = ""  # "" = the checkpoint's
    moe_dtype: str = ""
    prefix_caching: bool = True
    chunked_prefill: bool = True
    speculative_tokens: int = 0  # draft tokens a step (MTP, EAGLE)
    acceptance: float = 0.0  # probability that a draft token is accepted, each
    max_loras: int = 0  # different adapters in one batch, each with a slot in device memory; 0 = no adapters
    max_cpu_loras: int = 0  # adapters in host memory; 0 = all
    lora_rank: int = 16
    lora_targets: str = "all"  # "all" or "attention"
    all_reduce: str = ""  # "" = the engine's own kernels, "nccl" where they are turned off, "quick_int4" AMD's of 4 bits


@dataclass(frozen=True, slots=True)
class Deployment:
    """One replica (aggregated). Disaggregated serving is a pair of pools of these."""

    architecture: Architecture
    chip: Chip
    layout: Layout
    settings: EngineSettings
    server: str = ""  # "" = the chip's default
    expected_isl: float = 0.0  # only for choosing engine defaults; 0 = unknown


@dataclass(frozen=True, slots=True, eq=False)
class StepTable:
    """The time of one step of one attention-DP rank, compiled from operators: monotone, piecewise linear, in seconds.

    A step carries ``B`` decode sequences of mean context ``c`` and prefill chunks ``(q_i, p_i)`` of ``q`` new tokens after
    ``p`` cached ones; ``T = B * decode_tokens + sum(q_i)``. Its device time is

        decode only:  graph_s(B)  + decode_attention_s(B, c)
        with prefill: mixed_s(T)  + decode_attention_s(B, c) + sum_i prefill_attention_s(q_i, p_i)

    (linear between knots in each axis, bilinear in two, extrapolated by the last segment), its host time
    ``host_s + host_per_sequence_s * sequences``; ``step = max(device, host)`` where ``overlap`` else ``device + host``.
    """

    tokens: Floats  # [T] knots, tokens in a mixed step
    mixed_s: Floats  # [T]
    sequences: Floats  # [S] knots, decode sequences
    graph_s: Floats  # [S]
    context: Floats  # [C] knots, mean context of the decode sequences
    decode_attention_s: Floats  # [S, C]
    chunk: Floats  # [Q] knots, new tokens of one chunk
    past: Floats  # [P] knots, cached tokens before the chunk
    prefill_attention_s: Floats  # [Q, P]
    host_decode_s: float
    host_mixed_s: float
    host_per_sequence_s: float
    overlap: bool
    log_sigma: float = 0.0  # spread of the whole step, 1 sigma in log
    first_token_overhead_s: float = 0.0  # tokenise, schedule, detokenise, HTTP: once a request
    kv_blocks: int = 0  # blocks that fit on a rank
    block_size: int = 16
    # The part of graph_s and mixed_s that attention-DP ranks do together (experts and exchange, for the mean of their
    # tokens); None where a rank does all of a step alone.
    shared_graph_s: Floats | None = None  # [S]
    shared_mixed_s: Floats | None = None  # [T]
