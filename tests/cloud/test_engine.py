"""Step tables: monotone, consistent with their parts, and what fits."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from trivet.chip import timing
from trivet.chip.catalogue import chip
from trivet.cloud import collectives
from trivet.cloud.deployment import ENGINES, Deployment, EngineSettings
from trivet.cloud.engine import assemble, compile_components, profile, room, schedule, speculating, step_table
from trivet.cloud.engine.components import KINDS, SEQUENCES, Clock, hottest
from trivet.cloud.engine.versions import before, inside
from trivet.errors import DoesNotFit, UnknownName
from trivet.model.config import read
from trivet.model.layers import operators
from trivet.model.parallel import Batch, Layout
from trivet.operators import Gemm, GroupedGemm, Transfer


def deployment(
    model: str = "Qwen/Qwen3-32B", part: str = "h100", tp: int = 4, engine: str = "vllm", **layout: int
) -> Deployment:
    return Deployment(read(model), chip(part), Layout(tp=tp, **layout), EngineSettings(engine=engine))


@pytest.mark.parametrize("engine", ENGINES)
def test_monotone_and_positive(engine: str) -> None:
    t = step_table(deployment(engine=engine))
    assert np.all(np.diff(t.graph_s) >= 0)
    assert np.all(np.diff(t.mixed_s) >= 0)
    for surface in (t.decode_attention_s, t.prefill_attention_s):
        assert np.all(np.diff(surface, axis=0) >= 0)
        assert np.all(np.diff(surface, axis=1) >= 0)
    assert t.graph_s[0] > 0
    assert t.mixed_s[0] > 0
    assert t.kv_blocks > 0


def test_no_faster_than_the_memory_bus() -> None:
    """One sequence reads every weight once: 16.4 GB a chip at 3.35 TB/s."""
    t = step_table(deployment())
    assert t.graph_s[0] > 65.5e9 / 4 / 3.352e12


def test_attention_grows_linearly_with_context() -> None:
    t = step_table(deployment())
    slopes = np.diff(t.decode_attention_s[-1]) / np.diff(t.context)
    assert slopes[-1] == pytest.approx(slopes[-2], rel=0.15)


def test_components_add_up() -> None:
    d = deployment()
    parts = compile_components(d)
    constants = profile("vllm")
    double = replace(constants, weights={k: 2 * v for k, v in constants.weights.items()})
    one, two = assemble(parts, constants), assemble(parts, double)
    fixed = (
        sum(constants.floors[k] * parts.decode_floor[i] for i, k in enumerate(KINDS))
        + constants.graph_s
        + constants.layer_s * 64
    )
    assert two.graph_s - fixed == pytest.approx(2 * (one.graph_s - fixed))
    assert two.decode_attention_s == pytest.approx(2 * one.decode_attention_s)
    assert two.mixed_s == pytest.approx(one.mixed_s)


def test_more_chips_are_faster_and_leave_more_room() -> None:
    two, eight = step_table(deployment(tp=2)), step_table(deployment(tp=8))
    assert eight.graph_s[-1] < two.graph_s[-1]
    assert eight.kv_blocks > 3 * two.kv_blocks


def test_room_accounts_for_every_byte() -> None:
    d = deployment(tp=2)
    r = room(d, profile("vllm"))
    used = r.weight_bytes + r.activation_bytes + r.reserve_bytes + r.blocks * 16 * r.bytes_per_token
    assert used <= 0.9 * r.memory_bytes
    assert used > 0.899 * r.memory_bytes
    assert r.weight_bytes == pytest.approx(65.5e9 / 2, rel=0.02)
    assert r.bytes_per_token == pytest.approx(64 * 8 * 128 * 2 * 2 / 2)


def test_trtllm_takes_a_fraction_of_what_is_free() -> None:
    d = deployment(tp=2, engine="trtllm")
    r = room(d, profile("trtllm"))
    free = r.memory_bytes - r.weight_bytes - r.activation_bytes - r.reserve_bytes
    assert r.kv_bytes == pytest.approx(0.9 * free)


def test_what_does_not_fit_says_so() -> None:
    with pytest.raises(DoesNotFit, match="leave nothing"):
        step_table(deployment("deepseek-ai/DeepSeek-R1", tp=1))


def test_given_blocks_are_taken() -> None:
    d = deployment(tp=2)
    assert step_table(replace(d, settings=replace(d.settings, num_kv_blocks=2588))).kv_blocks == 2588


def test_experts_under_attention_data_parallel() -> None:
    d = deployment("deepseek-ai/DeepSeek-R1", "h200", 1, "sglang", attention_dp=8, moe_ep=8)
    t = step_table(d)
    assert t.graph_s[-1] > t.graph_s[0]


def test_unknown_engine() -> None:
    with pytest.raises(UnknownName, match="engine"):
        profile("tgi")


def test_schedules() -> None:
    assert schedule(deployment(), 1024, 1024, 64).mixing == "chunked"
    alone = schedule(deployment(engine="sglang", part="b200"), 1024, 1024, 64)
    assert (alone.mixing, alone.look_steps) == ("prefill_first", 1.0)
    ranks = deployment("deepseek-ai/DeepSeek-R1", "b200", 1, "trtllm", attention_dp=8, moe_ep=8)
    assert schedule(ranks, 1024, 1024, 64).wait_steps > 0


def test_data_sheet_chip() -> None:
    """A chip that nobody measured has a table too, and a wider spread."""
    known, sheet = step_table(deployment()), step_table(deployment(part="mi300x"))
    assert sheet.log_sigma >= known.log_sigma


@pytest.mark.parametrize(
    ("version", "overlap"),
    [("1.0.0rc3", False), ("0.21.0", False), ("1.2.0rc6.post2", True), ("0.8.1.post1", True), ("", True)],
)
def test_old_builds_let_the_device_wait_for_the_host(version: str, overlap: bool) -> None:
    """TensorRT-LLM before 1.1; versions below 0.10 are Dynamo's."""
    assert profile("trtllm", version).overlap is overlap


@pytest.mark.parametrize(
    ("version", "chip", "factor"),
    [("1.1.0", "h200_sxm", 2.0), ("1.1.0", "b200_sxm", 1.0), ("1.2.0", "h200_sxm", 1.0), ("", "h200_sxm", 1.0)],
)
def test_old_builds_launch_slowly_on_the_hosts_of_hopper(version: str, chip: str, factor: float) -> None:
    assert profile("trtllm", version, chip).latent_layer_s == pytest.approx(factor * profile("trtllm").latent_layer_s)


def test_latent_attention_has_weights_of_its_own() -> None:
    for model, tp, core, other in (
        ("deepseek-ai/DeepSeek-R1", 8, "latent", "attention"),
        ("Qwen/Qwen3-32B", 4, "attention", "latent"),
    ):
        parts = compile_components(deployment(model, "h200", tp))
        constants = profile("vllm")
        double = replace(constants, weights={**constants.weights, core: 2 * constants.weights[core]})
        same = replace(constants, weights={**constants.weights, other: 2 * constants.weights[other]})
        once = assemble(parts, constants).decode_attention_s
        assert assemble(parts, double).decode_attention_s == pytest.approx(2 * once)
        assert assemble(parts, same).decode_attention_s == pytest.approx(once)


def test_the_hottest_chip_of_an_expert_group() -> None:
    """Few tokens fall unevenly; many leave only the experts' popularity; no chip has more experts than it holds."""
    tokens = np.array([1.0, 4.0, 64.0, 65536.0])[:, None]
    even = GroupedGemm("experts", tokens, 7168, 2048, 256, 32, 8, "fp8_block")
    hot = hottest(even, 8)
    load = np.asarray(hot.local_rows / even.local_rows)[:, 0]
    assert np.all(np.diff(load) < 0)
    assert 1.0 < load[-1] < 1.25
    assert load[0] > 2.0
    assert np.all(np.asarray(hot.active_experts) <= 32 * (1 + 1e-9))


def test_popular_experts_leave_others_unmet() -> None:
    """One token meets ``top_k`` experts whatever their popularity, very many meet nearly all, and no row is lost."""
    tokens = np.array([1.0, 8.0, 32.0, 128.0, 1e6])[:, None]
    even = GroupedGemm("experts", tokens, 7168, 2048, 256, 256, 8, "fp8_block")
    found = hottest(even, 1)
    ratio = np.asarray(found.active_experts / even.active_experts)[:, 0]
    assert ratio[0] == pytest.approx(1.0)
    assert np.all(ratio[1:4] < 0.97)
    assert ratio[-1] > 0.99
    assert np.asarray(found.local_rows) == pytest.approx(np.asarray(even.local_rows))


@pytest.mark.parametrize("chip_name", ["l40s", "rtx-pro-6000", "h100"])
def test_all_reduces_take_what_the_fabric_was_measured_to_take(chip_name: str) -> None:
    transfer = Transfer(name="x", kind="all_reduce", bytes=2.0**20, group=4, axis="tp")
    given = deployment(part=chip_name)
    for all_reduce, library in (("", "vllm"), ("nccl", "nccl")):
        found = Clock(replace(given, settings=replace(given.settings, all_reduce=all_reduce))).seconds(transfer)
        wanted = collectives.time(transfer, collectives.levels_of(given.chip, 4), given.chip, library)
        assert found.value_s == wanted.value_s


@pytest.mark.parametrize(
    ("part", "budget", "sequences"),
    [("h100", 8192.0, 1024.0), ("b200", 8192.0, 1024.0), ("a100-80gb", 2048.0, 256.0), ("l40s", 2048.0, 256.0)],
)
def test_vllm_sizes_its_steps_by_the_chip(part: str, budget: float, sequences: float) -> None:
    small = Deployment(read("Qwen/Qwen3-8B"), chip(part), Layout(), EngineSettings(engine="vllm"))
    found = schedule(small, 1024, 1024, 8)
    assert (found.budget_tokens, found.max_sequences, found.preempts) == (budget, sequences, True)


def test_vllm_schedules_beside_the_device_since_0_14() -> None:
    assert [profile("vllm", version).overlap for version in ("0.12.0", "0.14.1", "0.19.0", "", "nightly-1")] == [
        False, True, True, True, True,
    ]  # fmt: skip


def test_trtllm_generated_experts_on_blackwell() -> None:
    def experts(name: str, part: str, version: str, ranks: int = 1) -> float:
        layout = Layout(tp=8 // ranks, attention_dp=ranks, moe_tp=1, moe_ep=8)
        settings = EngineSettings(engine="trtllm", version=version)
        parts = compile_components(Deployment(read(name), chip(part), layout, settings))
        return float(parts.decode[KINDS.index("experts")][5])

    four, eight = "nvidia/DeepSeek-V3.1-NVFP4", "deepseek-ai/DeepSeek-V3"
    assert experts(four, "b200", "1.1.0") < 0.8 * experts(four, "b200", "1.1.0", ranks=8)
    assert experts(eight, "b200", "1.2.0") < 0.95 * experts(eight, "b200", "1.1.0")
    assert experts(eight, "h200", "1.2.0") == experts(eight, "h200", "1.1.0")


def test_vllm_ran_triton_for_wide_experts_until_0_20() -> None:
    def kernels(part: str, version: str, ranks: int = 1, dtype: str = "bf16", engine: str = "vllm") -> str:
        layout = Layout(tp=2 // ranks, attention_dp=ranks, moe_ep=2)
        settings = EngineSettings(engine=engine, version=version)
        clock = Clock(Deployment(read("Qwen/Qwen3-30B-A3B"), chip(part), layout, settings))
        return clock.kernels(GroupedGemm("experts", 64.0, 2048.0, 768.0, 128.0, 64.0, 8.0, dtype))

    assert kernels("rtx-pro-6000", "0.19.0") == kernels("b200", "0.19.0") == "vllm/triton"
    assert kernels("rtx-pro-6000", "0.20.0") == kernels("b200", "") == kernels("b200", "0.20.0", ranks=2) == "vllm"
    assert kernels("rtx-pro-6000", "0.20.0", ranks=2) == "vllm/triton"
    assert kernels("rtx-pro-6000", "0.19.0", dtype="fp8") == kernels("rtx-4090", "0.19.0") == "vllm"
    assert kernels("rtx-pro-6000", "0.19.0", engine="sglang") == "sglang"


def test_triton_reads_experts_apart_from_flashinfer() -> None:
    """On an RTX PRO 6000 Mixtral's prompts were slower under FlashInfer's CUTLASS than under any other kernel measured."""
    part = chip("rtx-pro-6000")
    prompt = GroupedGemm("experts", 2048.0, 4096.0, 7168.0, 8.0, 8.0, 2.0)
    triton, usual = (float(timing.time(prompt, part, library).value_s) for library in ("vllm/triton", "vllm"))
    assert triton < 0.8 * usual


def test_mxfp4_experts_meet_eight_bits_on_blackwell_and_are_widened_on_hopper() -> None:
    def experts(part: str, engine: str) -> np.ndarray:
        parts, kind = (
            compile_components(deployment("openai/gpt-oss-120b", part, 2, engine, moe_tp=2)),
            KINDS.index("experts"),
        )
        return parts.decode[kind] + parts.decode_floor[kind]

    many = list(SEQUENCES).index(64)
    blackwell, hopper = {e: experts("b200", e)[many] for e in ENGINES}, {e: experts("h200", e)[many] for e in ENGINES}
    assert max(blackwell.values()) < 1.25 * min(blackwell.values())  # the same generated kernels in all three
    assert max(hopper.values()) > 1.3 * max(blackwell.values())  # weights widened, on slower units


def test_inputs_that_a_fused_kernel_quantised_cost_no_pass() -> None:
    """Llama's all-reduces quantise where there are more chips than one; attention and SwiGLU always do, in FP8 alone."""
    one, two = (Clock(deployment("meta-llama/Llama-3.1-70B", "b200", tp, "trtllm")) for tp in (1, 2))
    up, down = (Gemm(name, 8.0, 8192.0, 8192.0, "fp8") for name in ("ffn_gate_up", "ffn_down"))
    assert [one.fused(up), two.fused(up), one.fused(down), two.fused(down)] == [False, True, True, True]
    assert not two.fused(replace(up, dtype="bf16"))
    assert not two.fused(replace(down, dtype="nvfp4"))
    assert not Clock(deployment("Qwen/Qwen3-32B", "b200", 2, "trtllm")).fused(up)
    assert not Clock(deployment("meta-llama/Llama-3.1-70B", "b200", 2, "vllm")).fused(up)
    assert float(two.seconds(up).value_s) < float(one.seconds(up).value_s)


def test_a_norm_over_all_heads_reduces_over_the_chips() -> None:
    def reductions(model: str, tp: int) -> int:
        found = operators(read(model), Batch(decode_sequences=4.0, decode_context=1024.0), Layout(tp=tp))
        return sum(isinstance(o, Transfer) and o.name == "qk_norm_all_reduce" for o in found)

    assert [reductions("MiniMaxAI/MiniMax-M2", tp) for tp in (1, 4)] == [0, 1]
    assert reductions("Qwen/Qwen3-32B", 4) == 0


def test_speculating_computes_more_and_drafts_first() -> None:
    plain = deployment("deepseek-ai/DeepSeek-R1", "h200", 8, "sglang", moe_ep=8)
    wide = replace(plain, settings=replace(plain.settings, speculative_tokens=3))
    parts, constants = compile_components(plain), profile("sglang")
    step, checking = assemble(parts, constants), assemble(compile_components(wide), constants)
    found = speculating(checking, step, parts, 3)
    assert np.all(found.graph_s > checking.graph_s)
    assert np.all(found.graph_s < checking.graph_s + 0.2 * step.graph_s)  # three layers of 61, three vocabulary products
    assert np.all(found.decode_attention_s >= checking.decode_attention_s)


def test_a_dynamo_is_as_new_as_what_it_holds() -> None:
    assert not before(inside("0.8.1.post2"), "1.2")
    assert before(inside("0.5.1-rc0.pre3"), "1.2")
    assert before(inside("1.1.0rc2"), "1.2")
    assert not before(inside(""), "1.2")
