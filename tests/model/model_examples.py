"""Models of every layer kind, for the property tests."""

from __future__ import annotations

from trivet.errors import DoesNotFit
from trivet.model.architecture import Architecture
from trivet.model.config import from_mapping, read
from trivet.model.parallel import Layout, resolve

MODELS = {
    "gqa": read("Qwen/Qwen3-32B"), "moe": read("Qwen/Qwen3-30B-A3B"), "windowed": read("openai/gpt-oss-20b"),
    "mla": read("deepseek-ai/DeepSeek-V3"), "sparse": read("deepseek-ai/DeepSeek-V3.2"), "shared": read("zai-org/GLM-5.2"),
    "delta": read("Qwen/Qwen3.5-35B-A3B"), "mamba": read("nvidia/NVIDIA-Nemotron-3-Super-120B-A12B-FP8"),
    "chunked": read("meta-llama/Llama-4-Scout-17B-16E-Instruct"), "v2-lite": from_mapping({
        "model_type": "deepseek_v2", "q_lora_rank": None, "hidden_size": 2048, "num_hidden_layers": 4, "vocab_size": 1024,
        "first_k_dense_replace": 1, "num_experts_per_tok": 6, "moe_intermediate_size": 1408, "n_routed_experts": 64,
        "n_shared_experts": 2, "num_attention_heads": 16, "num_key_value_heads": 16, "intermediate_size": 10944,
    }),
    "compressed": read("deepseek-ai/DeepSeek-V4-Flash"),
    "kda": from_mapping({"model_type": "kimi_linear"}), "short_conv": from_mapping({
        "model_type": "lfm2", "num_hidden_layers": 4, "hidden_size": 1024, "num_attention_heads": 16, "num_key_value_heads": 8,
        "vocab_size": 1024, "layer_types": ["conv", "full_attention", "conv", "conv"],
    }),
}  # fmt: skip


def fitting(architecture: Architecture, layout: Layout) -> Layout | None:
    try:
        return resolve(architecture, layout)
    except DoesNotFit:
        return None
