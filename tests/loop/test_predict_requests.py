"""The deployment that a log's meta file records, with what vLLM does where it records nothing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from trivet.cloud import engine
from trivet.cloud.deployment import Deployment
from trivet.cloud.serving.traffic import Traffic
from trivet.loop.predict_requests import deployment_of, meta_path, read_log, read_meta, whole_blocks
from trivet.model.config import read

TRAFFIC = Traffic(np.array([0.0, 1.0]), np.array([1000, 1000]), np.array([500, 500]))


def of(model: str, chip: str = "rtx-pro-6000", **meta: Any) -> tuple[Deployment, tuple[str, ...]]:
    return deployment_of({"model": model, "vllm_version": "0.19.0", **meta}, chip, TRAFFIC)


@pytest.mark.parametrize("together", [False, True])
def test_data_parallel_ranks_share_the_experts(together: bool) -> None:
    settings = {"data_parallel_size": 2, "tensor_parallel_size": 2, "enable_expert_parallel": together}
    found, notes = of("Qwen/Qwen3-30B-A3B", engine_kwargs=settings)
    layout = found.layout
    assert (layout.tp, layout.attention_dp) == (2, 2)
    assert (layout.moe_tp, layout.moe_ep) == ((1, 4) if together else (4, 1))
    assert not any("independent" in note for note in notes)
    dense, notes = of("Qwen/Qwen3-8B", engine_kwargs=settings)
    assert dense.layout.attention_dp == 1
    assert any("independent" in note for note in notes)


@pytest.mark.parametrize(
    ("chip", "limits"), [("rtx-4090", (2048, 256)), ("rtx-pro-6000", (8192, 1024)), ("h100", (8192, 1024))]
)
def test_limits_that_are_not_recorded(chip: str, limits: tuple[int, int]) -> None:
    found, notes = of("Qwen/Qwen3-4B", chip)
    assert (found.settings.max_num_batched_tokens, found.settings.max_num_seqs) == limits
    assert sum("not recorded" in note for note in notes) == 3
    stated = {"resolved_config": {"scheduler_config": {"max_num_batched_tokens": 4096, "max_num_seqs": 64}}}
    found, notes = of("Qwen/Qwen3-4B", chip, **stated)
    assert (found.settings.max_num_batched_tokens, found.settings.max_num_seqs) == (4096, 64)


@pytest.mark.parametrize(
    ("model", "method", "weights"),
    [
        ("Qwen/Qwen3-8B", "", ""),
        ("Qwen/Qwen3-8B", "fp8", "fp8"),
        ("Qwen/Qwen3-8B-FP8", "", "fp8_block"),
        ("RedHatAI/Meta-Llama-3.1-8B-Instruct-FP8", "compressed-tensors", "fp8"),
        ("Qwen/Qwen3-14B-AWQ", "awq_marlin", "int4_wo"),
        ("Qwen/Qwen3-32B-FP8", "fp8", ""),  # its own configuration says it
    ],
)
def test_formats_that_the_configuration_does_not_tell(model: str, method: str, weights: str) -> None:
    found, notes = of(model, engine_kwargs={"quantization": method or None})
    assert found.settings.weight_dtype == weights
    assert any(f"taken as {weights}" in note for note in notes) is bool(weights)


def test_blocks_of_layers_that_differ() -> None:
    """gpt-oss: 12 layers of full attention and 12 of 128 tokens; Gemma 3 27B: 10 of 62 full, the others 1,024."""
    assert whole_blocks(read("Qwen/Qwen3-8B"), 1000, 16, 1600.0) == 1000
    assert whole_blocks(read("openai/gpt-oss-20b"), 1000, 16, 1600.0) == 1000 * 100 // (100 + 9)
    assert whole_blocks(read("google/gemma-3-27b-it"), 1000, 16, 1600.0) == 1000 * 100 // (100 + 6 * 65)
    assert whole_blocks(read("google/gemma-3-27b-it"), 1000, 16, 160.0) == 1000 * 10 // (10 + 6 * 10)
    # Three groups of gated delta nets keep one state each, beside a group of attention with blocks as large as a state.
    assert whole_blocks(read("Qwen/Qwen3.5-27B"), 1000, 784, 1600.0) == 1000 * 3 // (3 + 3)


def test_the_memory_of_a_log_is_as_vllm_allocated_it(shared_data: Path) -> None:
    path = shared_data / "requests" / "vllm_rtx4090_llama-3.1-8b.jsonl"
    deployment, _ = deployment_of(read_meta(meta_path(path)), "rtx-4090", read_log(path).traffic)
    free = replace(deployment, settings=replace(deployment.settings, num_kv_blocks=0))
    assert engine.room(free, engine.process("vllm"), deployment.expected_isl).blocks == pytest.approx(2588, abs=2)


def test_the_sampler_bounds_the_working_memory_of_small_steps() -> None:
    few, many = (
        of("Qwen/Qwen3-8B", engine_kwargs={"max_num_seqs": n, "max_num_batched_tokens": 2048})[0] for n in (16, 1024)
    )
    rooms = [engine.room(deployment, engine.process("vllm"), 1500.0) for deployment in (few, many)]
    assert rooms[1].activation_bytes == 14.0 * 1024 * 151936
    assert rooms[0].activation_bytes < 0.2 * rooms[1].activation_bytes
