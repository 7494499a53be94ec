"""How the public InferenceX benchmark starts vLLM: what its launch scripts (``benchmarks/*.sh`` at the date of a row) set beside
the engine's defaults, by model, chip and date.

All of them schedule asynchronously: ``async-scheduling: true`` in the configurations of 2025, the engine's default from 0.14 on.
"""

from __future__ import annotations

from dataclasses import replace

from trivet.cloud.deployment import Deployment
from trivet.cloud.engine.scheduling import Schedule
from trivet.model.architecture import Architecture
from trivet.model.parallel import Layout

BLOCK = 128  # a block-scaled weight's tile: an expert's width on a chip is a multiple of it, or vLLM refuses the layout


def launch(plan: Schedule, model: str, chip: str, precision: str, date: str, isl: float) -> Schedule:
    """``plan`` with the script's token budget (default 8,192; later Blackwell scripts take two prompts) and its scheduling."""
    name, blackwell = model.lower(), chip.startswith(("b200", "b300", "gb"))
    twice = ("minimax" in name and blackwell and date >= "2026-04-03") or (
        "kimi" in name and chip.startswith("b200") and precision == "nvfp4" and date >= "2026-04-20"
    )
    return replace(plan, budget_tokens=2.0 * isl if twice else plan.budget_tokens, overlap=True)


def cache_format(model: str, chip: str, precision: str, date: str) -> str:
    """``kv-cache-dtype``: "fp8" where the script says so, else "" (``auto``: the checkpoint's own)."""
    name, blackwell = model.lower(), chip.startswith(("b200", "b300", "gb"))
    if "llama" in name:
        return "fp8"
    if "gpt-oss" in name:
        return "fp8" if blackwell and date >= "2025-12-05" else ""
    if "minimax" in name:
        return "fp8" if (blackwell and date >= "2026-04-03") or (chip == "h200" and date >= "2026-05-26") else ""
    if "kimi" in name:
        return "fp8" if chip.startswith("b200") and precision == "nvfp4" and date >= "2026-04-20" else ""
    return "fp8" if blackwell and date >= "2026-04-20" and precision in ("nvfp4", "fp8", "fp8_block") else ""


def spread_experts(base: Deployment, layout: Layout) -> Layout:
    """The layout with experts spread over the chips where vLLM could not cut them: an expert of block-scaled weights is cut into
    whole blocks (``Fp8MoEMethod.create_weights``), so one of 1,536 is not for eight chips without expert parallelism."""
    width = _expert_width(base.architecture)
    cut = base.settings.engine == "vllm" and base.architecture.quantisation.experts == "fp8_block" and width % BLOCK == 0
    if not cut or (width / layout.moe_tp) % BLOCK == 0:
        return layout
    return replace(layout, moe_tp=1, moe_ep=layout.moe_tp * layout.moe_ep)


def _expert_width(architecture: Architecture) -> int:
    """Intermediate size of a routed expert, 0 where there is none."""
    found = (layer.feed_forward for layer in architecture.layers)
    return next((block.expert_intermediate for block in found if block.kind == "moe"), 0)
