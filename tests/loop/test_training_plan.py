"""The search against brute force, the exhaustive space against ``train_step``, scenarios, launch lines, the timeline."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from trivet.chip.catalogue import chip
from trivet.cloud.training.job import Overlap, Split, TrainingJob
from trivet.cloud.training.names import architecture
from trivet.cloud.training.profile import shipped
from trivet.cloud.training.run import RunPlan
from trivet.cloud.training.step import train_step
from trivet.errors import DoesNotFit, TrivetError
from trivet.interop import training_launch
from trivet.interop.yaml_files import read_yaml
from trivet.loop import training_plan, training_scenario, training_space, training_summary
from trivet.loop.training_plan import Campaign, plan, search

EXAMPLES = Path(__file__).resolve().parents[2] / "examples" / "training"


def small(**changes: object) -> Campaign:
    base: dict[str, object] = {
        "architecture": architecture("LLAMA3_8B"),
        "chip": chip("h100"),
        "chips": 64,
        "tokens": 1e12,
        "batch_tokens": 2e6,
    }
    return Campaign(**{**base, **changes})  # type: ignore[arg-type]


def test_the_search_finds_what_brute_force_finds() -> None:
    campaign = small()
    best, considered, rejected = search(campaign, keep=1)
    everything = []
    for option in training_plan._options(campaign):
        for kind in ("none", "selective", "full"):
            try:
                job = training_plan._job(campaign, option, kind)
                if job is None:
                    continue
                result = train_step(job)
            except (DoesNotFit, TrivetError):
                continue
            if result.peak.total <= result.capacity_bytes * training_plan.MEMORY_MARGIN:
                everything.append(result.tokens_per_s_per_chip * job.split.chips)
    assert best[0].tokens_per_s == pytest.approx(max(everything))
    assert considered > 100
    assert rejected["memory"] > 0


def test_totals_follow_from_the_rate() -> None:
    p = plan(small())
    assert p.days.value == pytest.approx(1e12 / (p.tokens_per_s.value * p.goodput.share.value) / 86400)
    assert p.usd.value > 0
    assert p.energy_kwh.value > 0
    assert p.days.lo < p.days.value < p.days.hi
    summary = json.loads(json.dumps(training_summary.summary(p), allow_nan=False))
    assert summary["days"]["driver"] == summary["driver"] in p.days.spread


def test_unpublished_fields_widen_the_answer_and_are_named() -> None:
    open_chip, sheet = (plan(small(chip=chip(n), precision="bf16")) for n in ("zhenwu-810e", "h100"))
    assert open_chip.days.log_sigma > sheet.days.log_sigma
    assert any("zhenwu-810e" in name for name in open_chip.days.spread)


def test_fixed_fields_stay_and_impossible_ones_are_refused() -> None:
    best, _, _ = search(small(fixed={"tp": 8, "pp": 1}))
    assert {c.job.split.tp for c in best} == {8}
    with pytest.raises(DoesNotFit, match="none of"):
        search(small(architecture=architecture("deepseek-ai/DeepSeek-V3"), chips=8))
    with pytest.raises(TrivetError, match="unknown field"):
        small(fixed={"wings": 2})


def test_a_count_that_is_no_power_of_two_leaves_few_chips_idle() -> None:
    best, _, _ = search(small(chips=100))
    assert 96 <= best[0].job.split.chips <= 100


# --- the exhaustive space
@pytest.fixture(scope="module")
def space() -> training_space.Space:
    return training_space.Space(architecture("gpt3-13b"), chip("a100-80gb"), 64, 64, 2048, "bf16")


def test_calculons_space_for_gpt3_on_4096_chips_has_its_size() -> None:
    whole = training_space.Space(architecture("gpt3-175b"), chip("a100-80gb"), 4096, 4096, 2048)
    count = sum(
        int(training_space.valid(tp, pp, dp).sum()) * len(micro) for tp, pp, dp, _, micro in training_space.outer(whole)
    )
    assert count == 7_126_368


@pytest.mark.parametrize(
    ("tp", "pp", "dp", "vp", "micro"), [(8, 4, 2, 1, 1), (8, 4, 2, 5, 2), (8, 1, 8, 1, 1), (8, 8, 1, 1, 2)]
)
@pytest.mark.parametrize("recompute", ["none", "full", "attn_only"])
def test_the_grid_agrees_with_train_step(
    space: training_space.Space, tp: int, pp: int, dp: int, vp: int, micro: int, recompute: str
) -> None:
    terms = training_space._Terms(space, shipped())
    step, memory_bytes, _ = training_space.evaluate(terms, tp, pp, dp, vp, micro)
    cell = dict.fromkeys(training_space.AXES, 0)
    overlap = {
        "dp_overlap": int(dp > 1),
        "tp_overlap": 1,
        "sharded": int(dp > 1),
        "pp_net": int(pp > 1),
        "dp_net": int(dp > 1),
    }
    cell |= {
        "recompute": training_space.RECOMPUTE.index(recompute),
        "comm": 2,
        "redo": int(recompute != "full"),
        **overlap,
    }
    index = tuple(cell.values())
    job = TrainingJob(
        space.architecture,
        space.chip,
        Split(tp=tp, pp=pp, dp=dp, vp=vp),
        2048,
        64,
        micro,
        "bf16",
        {"attn_only": "selective"}.get(recompute, recompute),
        overlap=Overlap(),
        zero=1 if dp > 1 else 0,
    )
    result = train_step(job)
    # the grid gathers inputs again only where asked; with full recompute it never does
    assert step[index] == pytest.approx(result.step_s, rel=0.04)
    assert np.broadcast_to(memory_bytes, step.shape)[index] == pytest.approx(result.peak.total, rel=0.02)


def test_the_best_of_the_grid_is_the_best_of_every_cell(space: training_space.Space) -> None:
    found = training_space.search(space)
    terms = training_space._Terms(space, shipped())
    best, cells = 0.0, 0
    capacity = space.chip.get("memory_bytes") or math.inf
    for tp, pp, dp, vp, micros in training_space.outer(space):
        for micro in micros:
            step, chip_bytes, host_bytes = training_space.evaluate(terms, tp, pp, dp, vp, micro)
            ok = training_space.valid(tp, pp, dp)
            cells += int(ok.sum())
            for at in np.argwhere(ok & np.isfinite(step))[::37]:
                cell = tuple(at)
                if (
                    np.broadcast_to(chip_bytes, step.shape)[cell] <= capacity
                    and np.broadcast_to(host_bytes, step.shape)[cell] <= space.host_memory_bytes
                ):
                    best = max(best, (space.max_batch // dp * dp) / step[cell])
    assert cells == found.configurations
    assert best <= found.samples_per_s


# --- scenarios and launches
@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.yaml")), ids=lambda p: p.stem)
def test_every_example_reads(path: Path) -> None:
    assert training_scenario.campaigns(read_yaml(path))


@pytest.mark.parametrize("name", ["megascale_175b", "palm_540b", "llama3_405b_16k", "llama3_405b_8k"])
def test_published_runs_are_met_within_a_quarter(name: str) -> None:
    raw = read_yaml(EXAMPLES / f"{name}.yaml")
    figures = training_scenario.published(raw, plan(training_scenario.campaigns(raw)[0]))
    for row in figures:
        assert 0.75 < row["ratio"] < 1.33, row


def test_a_scenario_with_a_wrong_key_is_refused() -> None:
    good = {"model": "LLAMA3_8B", "chip": "h100", "chips": 8, "tokens": "1B"}
    for bad in (
        {"wheels": 4},
        {"split": {"legs": 3}},
        {"run": {"hope": 1}},
        {"tokens": "many"},
        {"split": 3},
        {"job": {"overlap": {"tp": "yes"}}},
    ):
        with pytest.raises(TrivetError):
            training_scenario.campaigns({**good, **bad})
    with pytest.raises(TrivetError, match="chips"):
        training_scenario.campaigns({k: v for k, v in good.items() if k != "chips"})


def test_launch_lines_carry_the_split() -> None:
    job = TrainingJob(
        architecture("Qwen/Qwen3-235B-A22B"),
        chip("h100"),
        Split(tp=2, pp=8, dp=16, ep=32, vp=4),
        4096,
        8192,
        1,
        "fp8",
        recompute="selective",
    )
    line = training_launch.megatron_lm(job, 36e12)
    for part in (
        "--nnodes=32",
        "--nproc-per-node=8",
        "--tensor-model-parallel-size 2",
        "--pipeline-model-parallel-size 8",
        "--expert-model-parallel-size 32",
        "--num-experts 128",
        "--moe-router-topk 8",
        "--sequence-parallel",
        "--use-distributed-optimizer",
        "--fp8-format hybrid",
        "--account-for-embedding-in-pipeline-split",
        "--recompute-granularity selective",
        f"--train-iters {math.ceil(36e12 / 8192 / 4096)}",
    ):
        assert part in line, part
    bridge = training_launch.megatron_bridge(job)
    assert "model.virtual_pipeline_model_parallel_size=4" in bridge
    assert "mixed_precision=bf16_with_fp8_current_scaling_mixed" in bridge
    assert "fsdp" not in training_launch.launch(job)


def test_fsdp_and_deepspeed_settings() -> None:
    job = TrainingJob(
        architecture("MPT-7b"),
        chip("a100-80gb"),
        Split(dp=64),
        2048,
        512,
        4,
        framework="fsdp",
        zero=3,
        shard_group=8,
        recompute="full",
        offload_optimizer="cpu",
    )
    fsdp = training_launch.fsdp_config(job)
    assert fsdp["fsdp_config"]["sharding_strategy"] == "HYBRID_SHARD"
    assert fsdp["device_train_microbatch_size"] == 4
    deep = training_launch.deepspeed_config(job)
    assert deep["gradient_accumulation_steps"] == 2
    assert deep["zero_optimization"]["offload_optimizer"]["device"] == "cpu"


def test_a_schedule_that_megatron_lacks_is_said() -> None:
    job = TrainingJob(architecture("gpt3-13b"), chip("h100"), Split(tp=2, pp=4, dp=1, schedule="dualpipe"), 2048, 16)
    assert "no dualpipe" in training_launch.launch(job)["megatron_lm"]


def test_the_timeline_opens_in_perfetto_and_ends_with_the_step() -> None:
    job = TrainingJob(architecture("gpt3-13b"), chip("h100"), Split(tp=2, pp=4, dp=2, vp=2), 2048, 32)
    result = train_step(job)
    trace = json.loads(training_launch.timeline_text(job, result))
    boxes = [e for e in trace["traceEvents"] if e["ph"] == "X"]
    assert {e["tid"] for e in boxes} == {0, 1, 2, 3}
    end = max(e["ts"] + e["dur"] for e in boxes) / 1e6
    assert end == pytest.approx(result.step_s, rel=0.03)
    assert trace["otherData"]["micro_batches_shown"] == 16


def test_checkpoint_choices_change_the_days() -> None:
    quick = plan(
        small(
            chips=4096,
            batch_tokens=16e6,
            run=RunPlan("memory", recovery="managed"),
            fixed={"tp": 1, "pp": 1, "micro_batch": 1},
        )
    )
    slow = plan(
        small(
            chips=4096,
            batch_tokens=16e6,
            run=RunPlan("sync", "object_store", recovery="plain"),
            fixed={"tp": 1, "pp": 1, "micro_batch": 1},
        )
    )
    assert slow.days.value > 1.02 * quick.days.value
