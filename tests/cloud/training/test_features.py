"""Each feature in one case where it changes the answer, in the direction (and where there is one, by the size) of a source."""

from __future__ import annotations

from dataclasses import replace

import pytest
from training_jobs import make_job

from trivet.chip.catalogue import chip
from trivet.cloud.fabric import server_of
from trivet.cloud.training import kernels, memory, network, workload
from trivet.cloud.training.families import decoder
from trivet.cloud.training.job import Overlap, Split, TrainingJob
from trivet.cloud.training.names import architecture
from trivet.cloud.training.network import Network
from trivet.cloud.training.profile import shipped
from trivet.cloud.training.step import StepResult, train_step
from trivet.operators import Gemm


@pytest.fixture
def gpt3() -> TrainingJob:
    return make_job()


def rate(job: TrainingJob, net: Network | None = None) -> float:
    return train_step(job, net).tokens_per_s_per_chip


def test_the_breakdown_sums_to_the_step(gpt3: TrainingJob) -> None:
    result = train_step(gpt3)
    assert sum(result.breakdown.values()) == pytest.approx(result.step_s)
    assert 0.3 < result.mfu < 0.65


# --- recompute
def test_full_recompute_costs_about_a_third_of_compute_and_selective_little(gpt3: TrainingJob) -> None:
    # Korthikanti et al. (arXiv 2205.05198): full recompute 30-40% of the step, selective 2.7-7% with 5x less memory
    none, selective, full = (train_step(gpt3.with_(recompute=r)) for r in ("none", "selective", "full"))
    assert 1.25 < full.step_s / none.step_s < 1.45
    assert 1.0 < selective.step_s / none.step_s < 1.10
    assert none.peak.activations > selective.peak.activations > 3 * full.peak.activations


def test_recompute_of_some_layers_lies_between(gpt3: TrainingJob) -> None:
    some = train_step(gpt3.with_(recompute="full", recompute_layers=6))
    full, none = train_step(gpt3.with_(recompute="full")), train_step(gpt3)
    assert none.step_s < some.step_s < full.step_s
    assert full.peak.total < some.peak.total < none.peak.total


# --- parallelism
def test_sequence_parallelism_saves_activation_memory(gpt3: TrainingJob) -> None:
    # Korthikanti et al., table 2: 34 sbh over t with it, 10 sbh whole without
    without = gpt3.with_(split=replace(gpt3.split, sequence_parallel=False), tp_comm="all_reduce")
    assert memory.peak(without).activations > 1.5 * memory.peak(gpt3).activations


def test_virtual_stages_shrink_the_bubble_and_add_sends(gpt3: TrainingJob) -> None:
    # Narayanan et al. (SC 2021), figure 12: interleaving gains most at small batches, over 10% there
    small = gpt3.with_(global_batch=128)
    one, four = train_step(small), train_step(small.with_(split=replace(small.split, vp=4)))
    assert four.breakdown["bubble_s"] == pytest.approx(one.breakdown["bubble_s"] / 4, rel=0.15)
    assert four.breakdown["pp_s"] > one.breakdown["pp_s"]
    assert 1.05 < one.step_s / four.step_s < 1.6


@pytest.mark.parametrize("name", ["zero_bubble", "dualpipe"])
def test_newer_schedules_beat_1f1b(gpt3: TrainingJob, name: str) -> None:
    small = gpt3.with_(global_batch=256)
    assert train_step(small.with_(split=replace(small.split, schedule=name))).step_s < train_step(small).step_s


def test_uneven_stages_move_time_from_the_ranks_with_the_ends() -> None:
    # a large vocabulary loads the last rank; fewer layers there help (Megatron's account-for-loss option)
    job = make_job("LLAMA3_8B", "h100", Split(pp=4, dp=2), seq_len=8192, global_batch=64, precision="bf16")
    uneven = job.with_(split=replace(job.split, stage_layers=(9, 9, 8, 6)))
    assert train_step(uneven).step_s < train_step(job).step_s


def test_more_micro_batches_fill_the_pipeline(gpt3: TrainingJob) -> None:
    assert rate(gpt3.with_(global_batch=1536)) > 1.1 * rate(gpt3.with_(global_batch=128))


def test_tensor_parallelism_across_servers_is_slow(gpt3: TrainingJob) -> None:
    # Narayanan et al. (SC 2021), takeaway 1: tensor parallelism up to the server, pipeline beyond
    across = gpt3.with_(split=Split(tp=32, pp=2, dp=16))
    assert rate(gpt3) > 1.3 * rate(across)


@pytest.mark.parametrize("kind", ["ring", "all_gather", "ulysses"])
def test_context_parallelism_makes_long_sequences_fit(kind: str) -> None:
    job = make_job("LLAMA3_8B", "h100", Split(tp=2, dp=4), seq_len=131072, global_batch=8, recompute="selective")
    cut = job.with_(split=Split(tp=2, cp=4, cp_kind=kind), global_batch=8)
    assert not train_step(job).fits
    assert memory.peak(cut).activations < 0.3 * memory.peak(job).activations
    assert train_step(cut).breakdown["cp_s"] > 0


def test_ulysses_moves_less_than_gathering_for_many_query_heads_a_key_head() -> None:
    # Jacobs et al. (arXiv 2309.14509): all-to-all volume falls with the group, all-gather's does not
    base = make_job("gpt3-13b", "h100", Split(cp=8), seq_len=65536, global_batch=8)
    gather, ulysses = (
        train_step(base.with_(split=Split(cp=8, cp_kind=k))).breakdown["cp_s"] for k in ("all_gather", "ulysses")
    )
    assert ulysses < gather


def test_expert_parallelism_trades_memory_for_exchange() -> None:
    few = make_job("Qwen3_30B_a3B", "h100", Split(dp=16, ep=2), seq_len=4096, global_batch=512, precision="bf16")
    many = few.with_(split=Split(dp=16, ep=16))
    assert train_step(many).peak.weights < train_step(few).peak.weights / 3
    assert train_step(many).breakdown["ep_s"] > train_step(few).breakdown["ep_s"]


def test_expert_tensor_parallelism_cuts_experts_too() -> None:
    plain = make_job("mistralai/Mixtral-8x7B-v0.1", "h100", Split(tp=4, dp=4, ep=4), seq_len=4096, global_batch=64)
    both = plain.with_(split=Split(tp=4, dp=4, ep=4, etp=4))
    assert memory.peak(both).weights < 0.5 * memory.peak(plain).weights


def test_group_limited_routing_and_fp8_dispatch_shorten_the_exchange() -> None:
    # DeepSeek-V3 (arXiv 2412.19437), sections 2.1.2 and 3.2.2: at most four servers a token, dispatch in FP8
    job = make_job(
        "deepseek-ai/DeepSeek-V3", "h800", Split(pp=16, dp=64, ep=64), seq_len=4096, global_batch=1024, precision="fp8"
    )
    free, limited, cast = (
        train_step(j).breakdown["ep_s"]
        for j in (job, job.with_(routed_domains=4), job.with_(routed_domains=4, dispatch_dtype="fp8"))
    )
    assert cast < limited < free
    hidden = train_step(job.with_(split=replace(job.split, schedule="dualpipe")))
    assert hidden.breakdown["ep_s"] < 0.4 * free


def test_an_uneven_router_costs_the_hottest_chip() -> None:
    job = make_job("Qwen3_30B_a3B", "h100", Split(dp=16, ep=8), seq_len=4096, global_batch=512)
    assert rate(job.with_(expert_skew=1.5)) < rate(job)


# --- data parallelism and sharding
def test_zero_stages_shard_memory_step_by_step(gpt3: TrainingJob) -> None:
    # Rajbhandari et al. (SC 2020), figure 1
    peaks = [memory.peak(gpt3.with_(zero=z)) for z in (0, 1, 2, 3)]
    assert [p.optimizer < peaks[0].optimizer / 10 for p in peaks] == [False, True, True, True]
    assert peaks[2].gradients < peaks[1].gradients / 2
    assert peaks[3].weights < peaks[2].weights / 2


def test_fsdp_needs_bandwidth_and_hsdp_keeps_gathers_in_the_server() -> None:
    # Zhao et al. (arXiv 2304.11277), section 3.2.2: hybrid sharding trades memory for traffic between servers
    job = make_job("MPT-7b", "a100-80gb", Split(dp=128), framework="fsdp", zero=3, global_batch=512, micro_batch=1)
    slow = job.with_(node_network_bytes_per_s=12.5e9)
    hybrid = slow.with_(shard_group=8)
    assert rate(slow) < rate(job)
    assert rate(hybrid) > 1.5 * rate(slow)
    assert memory.peak(hybrid).total > memory.peak(slow).total


def test_overlap_hides_traffic(gpt3: TrainingJob) -> None:
    bare = gpt3.with_(overlap=Overlap(tp=False, dp=False, pp=False, cp=False))
    assert train_step(bare).breakdown["tp_s"] > train_step(gpt3).breakdown["tp_s"]
    assert train_step(bare).breakdown["dp_s"] > 1.3 * train_step(gpt3).breakdown["dp_s"]


def test_offloading_frees_the_chip_and_costs_time(gpt3: TrainingJob) -> None:
    # Rajbhandari et al. (arXiv 2104.07857): ZeRO-Infinity; NVMe is slower than host memory
    plain, cpu, nvme = (train_step(gpt3.with_(zero=1, offload_optimizer=o)) for o in ("", "cpu", "nvme"))
    assert cpu.peak.total < plain.peak.total
    assert cpu.peak.host > 0
    assert plain.step_s < cpu.step_s < nvme.step_s
    acts = train_step(gpt3.with_(offload_activations="cpu"))
    assert acts.peak.activations < plain.peak.activations
    weights = train_step(gpt3.with_(offload_weights="cpu"))
    assert weights.peak.weights < plain.peak.weights


# --- precision
def test_low_precision_is_faster_but_by_less_than_the_peaks() -> None:
    base = make_job("LLAMA3_70B", "gb200", Split(tp=2, pp=4, dp=8, vp=5), seq_len=8192, global_batch=256)
    bf16, fp8, mxfp8, nvfp4 = (rate(base.with_(precision=p)) for p in ("bf16", "fp8", "mxfp8", "nvfp4"))
    assert bf16 < mxfp8 < fp8 < nvfp4
    assert 1.2 < fp8 / bf16 < 1.9
    assert nvfp4 / fp8 < 1.7


def test_low_precision_without_hardware_gains_nothing() -> None:
    base = make_job("gpt3-13b", "a100-80gb", Split(tp=2, dp=8), global_batch=128)
    assert rate(base.with_(precision="fp8")) <= 1.02 * rate(base)


# --- attention
def test_sliding_windows_and_packing_shorten_attention() -> None:
    job = make_job("LLAMA3_8B", "h100", Split(tp=2, dp=4), seq_len=32768, global_batch=8, recompute="full")
    packed = job.with_(document_tokens=2048)
    assert rate(packed) > 1.3 * rate(job)
    layer = job.architecture.layers[0]
    windowed = replace(job.architecture, layers=(replace(layer, mixer=replace(layer.mixer, window=4096)),))
    assert rate(job.with_(architecture=windowed)) > 1.2 * rate(job)


def test_sparse_attention_grows_slower_with_context() -> None:
    dense, sparse = architecture("deepseek-ai/DeepSeek-V3"), architecture("deepseek-ai/DeepSeek-V3.2")

    def grows(arch: object) -> float:
        job = make_job(
            "deepseek-ai/DeepSeek-V3", "h800", Split(pp=16, dp=64, ep=64), seq_len=4096, global_batch=1024
        ).with_(architecture=arch)
        long = job.with_(seq_len=65536, global_batch=64 * 16)
        return rate(job) / rate(long)

    assert grows(sparse) < 0.8 * grows(dense)


@pytest.mark.parametrize(
    "name",
    [
        "nvidia/NVIDIA-Nemotron-3-Nano-30B-A3B-BF16",
        "Qwen3_Next_80B_a3B",
        "deepseek-ai/DeepSeek-V3",
        "openai/gpt-oss-120b",
    ],
)
def test_every_kind_of_model_trains(name: str) -> None:
    job = make_job(name, "h100", Split(dp=32, ep=16), seq_len=4096, global_batch=512, recompute="full")
    result = train_step(job)
    assert 0.01 < result.mfu < 0.6


# --- tasks
def test_lora_skips_weight_gradients_and_their_memory() -> None:
    full = make_job("LLAMA3_70B", "h100", Split(tp=4, pp=2, dp=4), seq_len=4096, global_batch=64, precision="fp8")
    lora = full.with_(task="lora")
    # a frozen model: 4 of 6 products are left (Hu et al., arXiv 2106.09685)
    assert 1.1 < rate(lora) / rate(full) < 1.5  # the adapters' thin products take back some of it
    assert memory.peak(lora).optimizer < 0.05 * memory.peak(full).optimizer


def test_distillation_adds_the_teachers_forward_pass() -> None:
    student = make_job("LLAMA3_8B", "h100", Split(dp=16), seq_len=4096, global_batch=64, zero=3)
    taught = student.with_(task="distill", teacher=architecture("LLAMA3_70B"))
    more = train_step(taught).step_s / train_step(student).step_s
    assert 2.0 < more < 5.0  # a forward pass of 70B beside 3 of 8B: 1 + 70 / (3 x 8) = 3.9 at equal rates


def test_sharing_parameters_shrinks_weights_not_compute(gpt3: TrainingJob) -> None:
    # M6-10T (arXiv 2110.03888): the "pseudo" stage trains layers that share one set of weights
    shared = gpt3.with_(parameter_sharing=12)
    assert memory.peak(shared).weights < 0.3 * memory.peak(gpt3).weights
    assert train_step(shared).breakdown["compute_s"] == pytest.approx(train_step(gpt3).breakdown["compute_s"])


def test_m6_needs_host_memory_for_its_real_stage_and_pays_for_it() -> None:
    # M6-10T (arXiv 2110.03888): 10 trillion parameters on 512 V100-32GB by sharing, then by granular CPU offloading
    shape = decoder("m6-10t", 48, 1024, 16, 16, 64, 9984, gated=False, vocab=50000, experts=10240, top_k=1)
    assert shape.parameters == pytest.approx(1e13, rel=0.01)
    real = TrainingJob(
        shape,
        chip("v100-32gb"),
        Split(dp=512, ep=512),
        512,
        4096,
        8,
        "fp16",
        "full",
        optimizer="adafactor",
        gradient_dtype="bf16",
        zero=2,
    )
    off = real.with_(offload_optimizer="cpu", offload_weights="cpu")
    pseudo = real.with_(parameter_sharing=48)
    assert not train_step(real).fits
    assert train_step(off).fits
    assert train_step(pseudo).fits
    assert train_step(off).step_s > 5 * train_step(pseudo).step_s
    assert not train_step(
        off.with_(optimizer="adam", gradient_dtype="fp32")
    ).fits  # 140 TB of states beside 33 TB of host memory


def test_optimisers_differ_in_what_they_keep(gpt3: TrainingJob) -> None:
    adam, half, factored = (memory.peak(gpt3.with_(optimizer=o)).optimizer for o in ("adam", "adam_bf16", "adafactor"))
    assert factored < 0.05 * adam
    assert half == pytest.approx(adam * 2 / 3)


def test_a_slow_host_launch_costs_where_the_host_is_waited_for() -> None:
    job = make_job(
        "Qwen3_30B_a3B", "zhenwu-810e", Split(dp=16, ep=16), seq_len=4096, global_batch=512, precision="bf16"
    )
    quick = replace(job.chip, facts={k: v for k, v in job.chip.facts.items() if k != "host_launch_s"})
    slow, fast = train_step(job), train_step(job.with_(chip=quick))
    assert slow.breakdown["host_s"] > 1.3 * fast.breakdown["host_s"]


# --- fabrics
def test_the_fabric_changes_the_answer(gpt3: TrainingJob) -> None:
    own = network.of(gpt3)
    oversubscribed = Network(own.server, own.chip_bandwidth_bytes_per_s, oversubscription=8.0)
    far = gpt3.with_(zero=3)
    assert rate(far, oversubscribed) < rate(far, own)


def test_a_rack_wide_domain_beats_servers_of_eight_for_wide_expert_groups() -> None:
    job = make_job(
        "Qwen3_235B_a22B", "gb200", Split(pp=4, dp=64, ep=64), seq_len=4096, global_batch=1024, precision="mxfp8"
    )
    small = job.with_(server="hgx-b200")
    assert train_step(job).breakdown["ep_s"] < train_step(small).breakdown["ep_s"]


def test_a_mesh_of_sixteen_cards_gives_a_pair_less_than_the_whole() -> None:
    part = chip("zhenwu-810e")
    job = make_job("LLAMA3_8B", "zhenwu-810e", Split(tp=8, dp=2), seq_len=4096, global_batch=64, precision="bf16")
    assert server_of(part).domain_chips == 16
    switch = job.with_(server="panjiu-al128")
    assert train_step(job).breakdown["tp_s"] != train_step(switch).breakdown["tp_s"]


def test_stragglers_slow_everybody(gpt3: TrainingJob) -> None:
    assert train_step(gpt3.with_(straggler=0.05)).step_s == pytest.approx(1.05 * train_step(gpt3).step_s, rel=0.005)


def test_scaling_from_512_to_8192_h100_loses_little_and_evenly() -> None:
    job = make_job(
        "LLAMA3_70B", "h100", Split(tp=4, pp=8, dp=16, vp=5), seq_len=8192, global_batch=1024, precision="bf16"
    )
    rates: list[StepResult] = [
        train_step(job.with_(split=replace(job.split, dp=16 * k), global_batch=1024 * k)) for k in (1, 4, 16)
    ]
    values = [r.tokens_per_s_per_chip for r in rates]
    assert values[0] >= values[1] >= values[2] > 0.93 * values[0]


def test_old_containers_are_slower_and_moe_graphs_faster() -> None:
    job = make_job(
        "Qwen3_30B_a3B", "gb200", Split(dp=8, ep=8), seq_len=4096, global_batch=512, micro_batch=4, precision="mxfp8"
    )
    older, old, new = (rate(job.with_(version=v)) for v in ("26.02", "26.04", "26.06"))
    assert older <= old < new


def test_model_flops_are_six_a_parameter_and_token() -> None:
    arch = architecture("LLAMA3_70B")
    # Chowdhery et al. (arXiv 2204.02311), appendix B: 6 N + 12 L H Q T, causal half
    per_token = workload.model_flops_per_token(arch, 8192)
    matrix = 6.0 * (arch.parameters - arch.vocab * arch.hidden)
    attention = 0.5 * 12 * 80 * 64 * 128 * 8192
    assert per_token == pytest.approx(matrix + attention, rel=0.01)
    assert workload.model_flops_per_token(arch, 8192, "lora") == pytest.approx(2 / 3 * per_token)


def test_shares_of_unmeasured_chips_follow_power_and_meet_the_measured_ones() -> None:
    # every chip with measured kernels, predicted from its data sheet alone; L40S runs far below its limit
    c = shipped()
    misses = []
    for name in c.sustained:
        p = kernels.point(chip(name), "bf16")
        misses.append(kernels.typical_share(p, "bf16") / kernels.sustained_share(p, c, "bf16") - 1.0)
    assert sorted(abs(m) for m in misses)[len(misses) // 2] < 0.06
    assert sum(abs(m) > 0.15 for m in misses) <= 1


def test_a_power_limit_counts_once() -> None:
    # large kernels were measured under it: ideal times that knew it too would count it twice
    h100 = chip("h100")
    point = kernels.point(h100, "bf16")
    assert point.power_flops == 0.0
    side = 16384.0
    (found,) = kernels.ideal([Gemm("product", m=side, n=side, k=side, dtype="bf16")], h100)
    rate = 2.0 * side**3 / found.compute_s * kernels.sustained_share(point, shipped(), "bf16")
    assert rate == pytest.approx(shipped().sustained["h100"]["bf16"], rel=0.05)
