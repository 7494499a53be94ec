"""What the launch scripts of the public InferenceX benchmark (``benchmarks/*.sh`` at the date of a row) set of a deployment
beside an engine's defaults: vLLM's scheduling and token budget, the format of the KV cache; and layouts that vLLM refuses."""

from __future__ import annotations

from dataclasses import replace

from trivet.cloud.deployment import Deployment
from trivet.cloud.engine.scheduling import Schedule
from trivet.model.architecture import Architecture
from trivet.model.parallel import Layout

BLOCK = 128  # a block-scaled weight's tile: an expert's width on a chip is a multiple of it, or vLLM refuses the layout
BLACKWELL = ("b200", "b300", "gb200", "gb300")


def vllm_schedule(plan: Schedule, model: str, chip: str, precision: str, date: str, isl: float) -> Schedule:
    """``plan`` with the script's token budget (default 8,192; later Blackwell scripts take two prompts) and its scheduling: the
    host works beside the device in all of them (``async-scheduling: true`` in 2025, the engine's default from 0.14 on)."""
    name = model.lower()
    twice = ("minimax" in name and chip in BLACKWELL and date >= "2026-04-03") or (
        "kimi" in name and chip == "b200" and precision == "nvfp4" and date >= "2026-04-20"
    )
    return replace(plan, budget_tokens=2.0 * isl if twice else plan.budget_tokens, overlap=True)


def cache_format(engine: str, model: str, chip: str, precision: str, date: str) -> str | None:
    """``kv-cache-dtype``: "fp8" where the script says so, "" where it does not (``auto``: the checkpoint's own), None for models
    whose scripts are not known here."""
    name, blackwell = model.lower(), chip in BLACKWELL
    if chip.startswith("mi3"):
        return _amd_cache(engine, name, chip, precision, date)
    if engine == "trtllm":
        return None if "gpt-oss" not in name else "fp8" if blackwell and date >= "2025-10-20" else ""
    if engine != "vllm":
        return None
    if "llama" in name:
        return "fp8"
    if "gpt-oss" in name:
        return "fp8" if blackwell and date >= "2025-12-05" else ""
    if "minimax" in name:
        return "fp8" if (blackwell and date >= "2026-04-03") or (chip == "h200" and date >= "2026-05-26") else ""
    if "kimi" in name:
        return "fp8" if chip == "b200" and precision == "nvfp4" and date >= "2026-04-20" else ""
    return None


def _amd_cache(engine: str, name: str, chip: str, precision: str, date: str) -> str | None:
    """The same of the scripts for AMD's chips; a checkpoint whose cache is in 8 bits keeps it."""
    since = ""  # "" not set, else from that date on
    if "deepseek-r1" in name or "deepseek-v3" in name:
        since = "2026-01-22" if not chip.startswith("mi35") else "2025-12-16" if "fp4" in precision else "2026-03-05"
    elif "minimax" in name:
        since = "2026-04-05" if chip.startswith("mi35") else "9"
    elif "kimi" in name:
        since = "2026-07-30" if chip.startswith("mi35") and "fp4" in precision else "9"
    elif "glm-5" in name:
        since = "2026-04-17" if chip.startswith("mi35") else ""
    elif "gpt-oss" in name or "qwen3.5" in name:
        since = "9"
    elif "llama" in name and engine == "vllm":
        return "fp8"
    return None if not since else "fp8" if date >= since else ""


def quick_reduce(model: str, chip: str, precision: str, date: str) -> bool:
    """Whether the script turns AMD's QuickReduce in INT4 on."""
    name, newer = model.lower(), chip.startswith("mi35")
    if not chip.startswith("mi3"):
        return False
    if "gpt-oss" in name:
        return True
    if "deepseek" in name:
        return newer and date >= ("2025-12-16" if "fp4" in precision else "2026-01-05")
    since = next((day for part, day in _QUICK_SINCE if part in name), "9")
    return newer and date >= since


_QUICK_SINCE = (("minimax", "2026-04-05"), ("glm-5", "2026-04-17"), ("kimi", "2026-07-30"))


def spread_experts(base: Deployment, layout: Layout) -> Layout:
    """The layout with experts spread over the chips where vLLM could not cut them: an expert of block-scaled weights is cut into
    whole blocks (``Fp8MoEMethod.create_weights``), so one of 1,536 is not for eight chips without expert parallelism."""
    width = _expert_width(base.architecture)
    scaled = base.settings.engine == "vllm" and base.architecture.quantisation.experts == "fp8_block"
    if not scaled or width % BLOCK or (width / layout.moe_tp) % BLOCK == 0:
        return layout
    return replace(layout, moe_tp=1, moe_ep=layout.moe_tp * layout.moe_ep)


def _expert_width(architecture: Architecture) -> int:
    """Intermediate size of a routed expert, 0 where there is none."""
    found = (layer.feed_forward for layer in architecture.layers)
    return next((block.expert_intermediate for block in found if block.kind == "moe"), 0)
