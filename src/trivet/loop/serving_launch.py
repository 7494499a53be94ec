"""How the public InferenceX benchmark starts engines: settings that its rows do not hold and that shape the first token.

From its launch scripts (``benchmarks/*.sh`` at the date of a row) and the recipes of its disaggregated runs (``srt-slurm``).
What an engine does with a setting is from its source: SGLang's ``SchedulerRecvSkipper`` counts a decode step as one and a
prompt step as enough, its ``stream_output`` streams tokens 1, 1 + k, 1 + 2k, ...; TensorRT-LLM's ``_waiting_requests`` holds
prompts back until they fill a share of ``max_num_tokens``, its ``_balance_adp_requests`` until every rank has one.
"""

from __future__ import annotations

import math
from dataclasses import replace

from trivet.cloud.engine.scheduling import Schedule
from trivet.loop import serving_scripts
from trivet.loop.serving_rows import LENGTHS, Case


def launched(case: Case, plan: Schedule, drafts: int = 0) -> Schedule:
    """``plan`` with what the benchmark's script sets for this case; ``plan`` itself where the row is not from it. ``drafts``:
    draft tokens a step, of the scripts that speculate."""
    if not case.measured_on or case.isl not in LENGTHS or case.osl not in LENGTHS:
        return plan
    found = {"vllm": _vllm, "sglang": _sglang, "trtllm": _trtllm}[case.group["engine"]](case, plan)
    return _drafting(case, found, drafts) if drafts else found


def _drafting(case: Case, plan: Schedule, drafts: int) -> Schedule:
    """Scripts with multi-token prediction: TensorRT-LLM's budget is a prompt and the sequences of a rank with their drafts, and
    no prompt is gathered; SGLang's chunk is 16,384 tokens."""
    if case.group["engine"] != "trtllm":
        return replace(plan, budget_tokens=16384.0) if "deepseek" in case.group["model"].lower() else plan
    rank = math.ceil(case.concurrency / case.pools[0].deployment.layout.attention_dp)
    budget = math.ceil(((drafts + 1.0) * rank + case.isl + 64.0) / 64.0) * 64.0
    return replace(plan, budget_tokens=budget, gather_steps=0.0)


def _vllm(case: Case, plan: Schedule) -> Schedule:
    """As the scripts have it; on AMD's chips 131,072 tokens for Llama."""
    if _amd(case) and "llama" in case.group["model"].lower():
        return replace(plan, budget_tokens=131072.0)
    g = case.group
    return serving_scripts.vllm_schedule(plan, g["model"], g["chip"], g["precision"], case.measured_on, case.isl)


def _sglang(case: Case, plan: Schedule) -> Schedule:
    """Chunk size, the interval of looks at the queue, and what the first full chunk compiles, by the model's script."""
    if _amd(case):
        return _sglang_amd(case, plan)
    if len(case.pools) > 1:
        return replace(plan, stream_steps=_streamed_every(case))
    model, precision, layout = case.group["model"].lower(), case.group["precision"], case.pools[0].deployment.layout
    eight_bit, blackwell = precision.startswith("fp8"), case.group["family"] == "blackwell"
    often, budget = 30.0 if case.concurrency >= 16 else 10.0, 32768.0 if eight_bit else 16384.0
    if "glm-5" in model:
        often, budget = 1.0 if eight_bit else 10.0, 32768.0 if blackwell else plan.budget_tokens
    elif "qwen3.5" in model:
        wide = precision == "bf16"
        often, budget = 10.0 if case.concurrency <= 4 else often if wide else 30.0, 32768.0 if wide else 16384.0
    elif eight_bit and blackwell and layout.chips == 4:
        often, budget = 10.0, 8192.0
    if not blackwell or layout.attention_dp > 1:
        often = 1.0
    cold = _compiling(case.measured_on, eight_bit) if blackwell else 0.0
    return replace(plan, budget_tokens=budget, look_steps=often, cold_s=cold)


def _compiling(date: str, eight_bit: bool) -> float:
    """Seconds for which SGLang compiles kernels when a step first fills the chunk, within the run: the client sends requests to
    warm the server up only since 2026-01-21. Longest in version 0.5.5, of November 2025."""
    if date >= "2026-01-21":
        return 0.0
    return (20.0 if eight_bit else 80.0) if "2025-11-10" <= date < "2025-12-01" else 12.0


def _amd(case: Case) -> bool:
    return case.group["chip"].startswith("mi3")


def _sglang_amd(case: Case, plan: Schedule) -> Schedule:
    """Chunks of 196,608 tokens, since 23 January 2026 131,072 on MI300X and MI325X; 32,768 for FP4 with long prompts and
    more than 32 clients. The scripts ask for four continuous decode steps, which SGLang since 0.4 does not heed. Workers of
    disaggregated runs stream every token."""
    if len(case.pools) > 1:
        return replace(plan, stream_steps=1.0)
    if not case.group["chip"].startswith("mi35"):
        return replace(plan, budget_tokens=131072.0 if case.measured_on >= "2026-01-23" else 196608.0)
    crowded = case.isl > case.osl and case.concurrency > 32.0 and not case.group["precision"].startswith("fp8")
    return replace(plan, budget_tokens=32768.0 if crowded else 196608.0)


def _streamed_every(case: Case) -> float:
    """The decode workers' ``stream-interval``: the prefill pool's token is their first, so theirs comes an interval later."""
    if case.group["chip"].startswith("h100"):
        return 1.0
    ranks = case.pools[-1].deployment.layout.attention_dp
    return 50.0 if ranks > 1 and case.group["family"] == "blackwell" else 10.0


def _trtllm(case: Case, plan: Schedule) -> Schedule:
    """``max_num_tokens`` and the waits of prompts, by the model and the date of its script."""
    old = not case.group["version"][:1].isdigit() and case.measured_on < "2026-01-22"
    if old and case.group["family"] == "hopper":
        plan = replace(plan, launches=2.0)  # builds before 1.2
    if len(case.pools) > 1:
        # Recipes of FP8 stream every 20 tokens, and the client's first comes that late; those of NVFP4 have workers for
        # post-processing, and their first token comes at once.
        return replace(plan, stream_steps=20.0) if case.group["precision"].startswith("fp8") else plan
    model, layout = case.group["model"].lower(), case.pools[0].deployment.layout
    even = case.isl == case.osl == 1024.0
    fitted = math.ceil((case.concurrency + case.isl + 64.0) / 64.0) * 64.0
    balance = 60.0 if layout.attention_dp > 1 else 0.0
    if "deepseek" in model:
        budget = max(fitted, 8192.0) if case.measured_on >= "2026-01-22" else fitted
        return _deepseek(case, replace(plan, budget_tokens=budget, wait_steps=balance), even)
    if "llama" in model:
        plan = replace(plan, budget_tokens=16384.0)
        return replace(plan, gather_steps=20.0, gather_share=0.9) if even and layout.tp < 8 else plan
    if "qwen3.5" in model:
        budget = 32768.0 if case.isl == 8192.0 else 16384.0
        plan = replace(plan, preempts=True)  # capacity_scheduler_policy: MAX_UTILIZATION
        if balance:
            return replace(plan, budget_tokens=budget, wait_steps=500.0)
        return replace(plan, budget_tokens=budget, gather_steps=50.0, gather_share=0.45)
    if "minimax" in model:  # MAX_UTILIZATION, enable_piecewise_cuda_graph
        plan = replace(plan, preempts=True, launches=0.0)
    budget = 20000.0 if "gpt-oss" in model else 16384.0
    return replace(plan, budget_tokens=budget, wait_steps=50.0 if balance else 0.0)


def _deepseek(case: Case, plan: Schedule, even: bool) -> Schedule:
    """Since the end of January 2026 its B200 scripts capture steps with prompts, FP8 at high load also gathers prompts."""
    if not case.group["chip"].startswith("b200"):
        return plan
    layout = case.pools[0].deployment.layout
    if case.group["precision"].startswith("fp8"):
        many = case.concurrency >= (128.0 if case.osl > case.isl else 64.0)
        if case.measured_on < "2026-01-29" or not many:
            return plan
        plan = replace(plan, launches=0.0) if layout.attention_dp == 1 or case.osl <= case.isl else plan
        return replace(plan, gather_steps=40.0, gather_share=0.8) if even else plan
    chips = layout.tp * layout.attention_dp
    captured = case.measured_on >= "2026-02-03" and even and chips == 8 and layout.moe_ep == 8
    return replace(plan, launches=0.0) if captured else plan
