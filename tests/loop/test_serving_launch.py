"""Settings of the benchmark's launch scripts, by engine, model, date and load."""

from __future__ import annotations

import pytest

from trivet.cloud.engine import schedule
from trivet.cloud.engine.scheduling import Schedule
from trivet.loop.serving_launch import launched
from trivet.loop.serving_recipes import recipe
from trivet.loop.serving_rows import Case, understand

ROW = {
    "chip": "b200_sxm", "engine": "trtllm", "model": "meta-llama/Llama-3.1-70B", "weights": "fp8", "mode": "agg", "isl": "1024",
    "osl": "1024", "concurrency": "16", "batch_size": "16", "tp": "4", "measured_on": "2025-10-29",
}  # fmt: skip


def case(**changes: str) -> Case:
    found = understand({**ROW, **changes})
    assert isinstance(found, Case)
    return found


def plan(**changes: str) -> Schedule:
    found = case(**changes)
    return launched(found, schedule(found.pools[0].deployment, found.isl, found.osl, found.concurrency))


def test_prompts_gather_in_one_script_only() -> None:
    assert (plan().gather_steps, plan().gather_share, plan().budget_tokens) == (20.0, 0.9, 16384.0)
    assert plan(tp="8").gather_steps == 0.0
    assert plan(osl="8192").gather_steps == 0.0


def test_rows_of_other_clients_keep_defaults() -> None:
    for changes in ({"measured_on": ""}, {"isl": "4000"}):
        found = case(**changes)
        default = schedule(found.pools[0].deployment, found.isl, found.osl, found.concurrency)
        assert launched(found, default) == default


VLLM = {"engine": "vllm", "engine_version": "0.18.0", "model": "MiniMaxAI/MiniMax-M2.5", "moe_weights": "fp8"}


@pytest.mark.parametrize(
    ("changes", "cache"),
    [
        ({"chip": "h100_sxm", "measured_on": "2026-03-28"}, ""),
        ({"chip": "b200_sxm", "measured_on": "2026-03-28"}, ""),
        ({"chip": "b200_sxm", "measured_on": "2026-04-03"}, "fp8"),
        ({"chip": "h100_sxm", "measured_on": ""}, "fp8"),  # another client: 8 bits beside quantised weights
        ({"model": "openai/gpt-oss-120b", "weights": "", "moe_weights": "", "measured_on": "2026-01-10"}, "fp8"),
        ({"model": "openai/gpt-oss-120b", "weights": "", "moe_weights": "", "chip": "h200_sxm", "measured_on": "2026-01-10"}, ""),
        ({"engine": "trtllm", "model": "openai/gpt-oss-120b", "weights": "", "moe_weights": "", "chip": "h200_sxm"}, ""),
        ({"model": "meta-llama/Llama-3.1-70B", "moe_weights": "", "measured_on": "2025-10-29"}, "fp8"),
    ],
)  # fmt: skip
def test_cache_formats_of_the_scripts(changes: dict[str, str], cache: str) -> None:
    assert case(**{**VLLM, **changes}).pools[0].deployment.settings.kv_dtype == cache


def test_vllm_works_beside_the_device_in_every_script() -> None:
    assert plan(**{**VLLM, "engine_version": "0.11.0", "measured_on": "2025-10-01"}).overlap is True
    assert plan(**{**VLLM, "engine_version": "0.11.0", "measured_on": ""}).overlap is None


@pytest.mark.parametrize(
    ("changes", "budget"),
    [
        ({"measured_on": "2026-04-22"}, 2048.0),
        ({"measured_on": "2026-03-28"}, 8192.0),
        ({"model": "nvidia/Kimi-K2.5-NVFP4", "weights": "nvfp4", "moe_weights": "nvfp4", "measured_on": "2026-04-22"}, 2048.0),
        ({"model": "moonshotai/Kimi-K2.5", "weights": "", "moe_weights": "", "measured_on": "2026-04-22"}, 8192.0),
        ({"model": "openai/gpt-oss-120b", "weights": "", "moe_weights": "", "measured_on": "2026-04-22"}, 8192.0),
    ],
)  # fmt: skip
def test_two_prompts_a_step_in_the_scripts_that_say_so(changes: dict[str, str], budget: float) -> None:
    assert plan(**{**VLLM, **changes}).budget_tokens == budget


def test_vllm_spreads_experts_that_it_cannot_cut_into_blocks() -> None:
    rows = {tp: case(**{**VLLM, "chip": "h200_sxm", "tp": tp, "moe_tp": tp, "moe_ep": "1"}) for tp in ("4", "8")}
    layouts = {tp: found.pools[0].deployment.layout for tp, found in rows.items()}
    assert (layouts["4"].moe_tp, layouts["4"].moe_ep) == (4, 1)  # 384 wide: three blocks
    assert (layouts["8"].moe_tp, layouts["8"].moe_ep) == (1, 8)  # 192 wide: one and a half
    assert "no whole blocks" in " ".join(rows["8"].notes)


def test_trtllm_scripts_that_use_the_whole_cache() -> None:
    qwen = plan(
        model="Qwen/Qwen3.5-397B-A17B",
        weights="nvfp4",
        moe_weights="nvfp4",
        measured_on="2026-06-20",
        moe_tp="4",
        moe_ep="1",
    )
    minimax = plan(model="MiniMaxAI/MiniMax-M2.5", weights="nvfp4", moe_weights="nvfp4", measured_on="2026-06-20")
    assert (qwen.preempts, qwen.gather_steps, qwen.launches) == (True, 50.0, 1.0)
    assert (minimax.preempts, minimax.launches) == (True, 0.0)
    assert not plan().preempts


@pytest.mark.parametrize(
    ("chip", "many", "steps"), [("b200_sxm", "8", 10.0), ("b200_sxm", "16", 30.0), ("h200_sxm", "16", 1.0)]
)
def test_sglang_looks_seldom_on_blackwell(chip: str, many: str, steps: float) -> None:
    model = {
        "engine": "sglang",
        "model": "deepseek-ai/DeepSeek-R1",
        "tp": "8",
        "weights": "fp8_block",
        "moe_weights": "fp8_block",
    }
    found = plan(chip=chip, concurrency=many, batch_size=many, measured_on="2026-03-25", **model)
    assert (found.look_steps, found.budget_tokens) == (steps, 32768.0)


def test_scripts_chose_attention_data_parallel_by_the_load() -> None:
    model = {
        "chip": "h200_sxm",
        "model": "deepseek-ai/DeepSeek-V3",
        "tp": "8",
        "weights": "fp8_block",
        "moe_weights": "fp8_block",
    }
    for many, date, ranks in (("32", "2025-11-02", 1), ("64", "2025-11-02", 8), ("64", "2025-12-15", 1)):
        found = case(isl="8192", concurrency=many, batch_size=many, measured_on=date, **model)
        assert found.pools[0].deployment.layout.attention_dp == ranks
        assert found.pools[0].deployment.layout.moe_ep == (8 if date < "2025-11-03" else 1)


@pytest.mark.parametrize(("engine", "weights", "ranks", "steps"), [
    ("trtllm", "fp8_block", "1", 20.0), ("trtllm", "nvfp4", "1", 0.0),
    ("sglang", "nvfp4", "1", 10.0), ("sglang", "nvfp4", "8", 50.0),
])  # fmt: skip
def test_decode_pools_stream_late(engine: str, weights: str, ranks: str, steps: float) -> None:
    tp = str(8 // int(ranks))
    pools = {"prefill_workers": "1", "prefill_tp": "8", "prefill_moe_ep": "8", "decode_workers": "1", "decode_tp": tp,
             "decode_attention_dp": ranks, "decode_moe_ep": "8", "mode": "disagg", "isl": "8192", "tp": ""}  # fmt: skip
    found = plan(engine=engine, model="deepseek-ai/DeepSeek-V3", weights=weights, measured_on="2026-02-12", **pools)
    assert found.stream_steps == steps


DEEPSEEK = {"engine": "sglang", "model": "deepseek-ai/DeepSeek-R1", "tp": "8"}
FP8, FP4 = ({"weights": p, "moe_weights": p} for p in ("fp8_block", "mxfp4"))


@pytest.mark.parametrize(
    ("changes", "budget"),
    [
        ({"chip": "mi300x", "measured_on": "2025-11-05", **FP8}, 196608.0),
        ({"chip": "mi325x", "measured_on": "2026-02-05", **FP8}, 131072.0),
        ({"chip": "mi355x", "measured_on": "2026-02-05", **FP8}, 196608.0),
        ({"chip": "mi355x", "measured_on": "2026-02-05", "isl": "8192", "concurrency": "64", **FP4}, 32768.0),
        ({"chip": "mi355x", "measured_on": "2026-02-05", "isl": "8192", "concurrency": "32", **FP4}, 196608.0),
    ],
)
def test_scripts_of_amd_prefill_many_prompts_at_once(changes: dict[str, str], budget: float) -> None:
    found = plan(**DEEPSEEK, **changes, batch_size=changes.get("concurrency", "16"))
    assert (found.budget_tokens, found.look_steps) == (budget, 1.0)


def test_llama_on_amd_takes_the_budget_of_its_scripts() -> None:
    assert plan(chip="mi300x", engine="vllm", tp="8").budget_tokens == 131072.0
    gpt = {"model": "openai/gpt-oss-120b", "weights": "bf16", "moe_weights": "mxfp4", "engine": "vllm", "tp": "8"}
    default = schedule(*(lambda c: (c.pools[0].deployment, c.isl, c.osl, c.concurrency))(case(chip="mi300x", **gpt)))
    assert plan(chip="mi300x", **gpt).budget_tokens == default.budget_tokens


@pytest.mark.parametrize(("weights", "date", "seconds"), [
    ("nvfp4", "2025-11-10", 80.0), ("fp8_block", "2025-11-18", 20.0), ("fp8_block", "2025-12-31", 12.0),
    ("nvfp4", "2026-03-25", 0.0),
])  # fmt: skip
def test_servers_were_cold_until_the_client_warmed_them_up(weights: str, date: str, seconds: float) -> None:
    row = {"engine": "sglang", "model": "deepseek-ai/DeepSeek-V3", "tp": "8", "weights": weights, "moe_weights": weights}
    assert plan(measured_on=date, **row).cold_s == seconds
    assert plan(measured_on=date, chip="h200_sxm", **row).cold_s == 0.0


@pytest.mark.parametrize(("model", "tp", "many", "steps", "budget"), [
    ("zai-org/GLM-5-FP8", "8", "32", 1.0, 32768.0), ("Qwen/Qwen3.5-397B-A17B-FP8", "8", "8", 30.0, 16384.0),
    ("Qwen/Qwen3.5-397B-A17B-FP8", "8", "4", 10.0, 16384.0), ("deepseek-ai/DeepSeek-R1", "4", "32", 10.0, 8192.0),
])  # fmt: skip
def test_sglang_scripts_differ_by_model(model: str, tp: str, many: str, steps: float, budget: float) -> None:
    found = plan(engine="sglang", model=model, weights="fp8_block", tp=tp, isl="8192", concurrency=many, batch_size=many,
                 measured_on="2026-03-25")  # fmt: skip
    assert (found.look_steps, found.budget_tokens) == (steps, budget)


def test_recipes_tell_the_slots_of_decode_workers() -> None:
    row = {"engine": "trtllm", "chip": "gb200", "model": "deepseek-ai/DeepSeek-V3", "weights": "fp8_block", "isl": "8192",
           "prefill_workers": "1", "prefill_tp": "1", "prefill_attention_dp": "8", "prefill_moe_ep": "8", "decode_workers": "3",
           "decode_tp": "8", "decode_moe_ep": "8", "mode": "disagg", "tp": "", "measured_on": "2026-02-05"}  # fmt: skip
    known = recipe(case(concurrency="6", **row))
    assert known is not None
    assert (known.slots, known.prompt_tokens, known.frontends) == (1.0, 16384.0, 8)
    assert recipe(case(concurrency="7", **row)) is None
    assert recipe(case(concurrency="6", **{**row, "measured_on": ""})) is None
    assert recipe(case(concurrency="6", **{**row, "model": "Qwen/Qwen3-235B-A22B-FP8"})) is None
    assert recipe(case()) is None
