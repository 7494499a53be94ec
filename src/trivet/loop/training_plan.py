"""Which parallelism trains a model on given chips fastest, and what the whole run takes: days, money, energy, failures."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from trivet.chip.estimate import Estimate
from trivet.chip.power import power_w
from trivet.chip.spec import Chip
from trivet.cloud import cost, energy, fabric
from trivet.cloud.training import memory, run, workload
from trivet.cloud.training.job import Split, TrainingJob
from trivet.cloud.training.prepare import prepare
from trivet.cloud.training.profile import Constants, shipped
from trivet.cloud.training.run import Goodput, RunPlan
from trivet.cloud.training.step import CALIBRATED_MAKER, StepResult, finish, train_step
from trivet.errors import DoesNotFit, TrivetError, Unsupported
from trivet.model.architecture import Architecture
from trivet.units import DAY_S, HOUR_S

MEMORY_MARGIN = 0.94  # of the chip's memory that a plan may fill: peaks vary between steps


@dataclass(frozen=True, slots=True)
class Campaign:
    """A training run to plan. Absent choices ("" or 0) are searched or take the usual default."""

    architecture: Architecture
    chip: Chip
    chips: int
    tokens: float
    seq_len: int = 4096
    batch_tokens: float = 0.0  # 0 = 16 million for a hundred billion parameters or more, else 4 million
    precision: str = ""  # "" = fp8 where the chip computes it, else bf16 (fp16 where it lacks that)
    framework: str = "megatron"
    task: str = "pretrain"
    server: str = ""
    fixed: dict[str, Any] = field(default_factory=dict)  # fields of Split or TrainingJob that are not searched
    run: RunPlan = field(default_factory=RunPlan)
    basis: str = "tco_hyperscaler"
    site: str = ""
    node_network_bytes_per_s: float = 0.0

    def __post_init__(self) -> None:
        if self.chips < 1:
            raise TrivetError(f"{self.chips} is not positive", field="chips")
        if not self.tokens > 0:
            raise TrivetError(f"{self.tokens} is not positive", field="tokens")
        known = set(Split.__dataclass_fields__) | set(TrainingJob.__dataclass_fields__)
        for name in self.fixed:
            if name not in known:
                raise TrivetError("unknown field", field=name, allowed=sorted(known))

    @property
    def dtype(self) -> str:
        if self.precision:
            return self.precision
        if self.chip.supports("bf16"):
            return "bf16"
        return "fp16" if self.chip.supports("fp16") else "bf16"

    @property
    def batch(self) -> float:
        """Tokens of one step, wished."""
        return self.batch_tokens or (16e6 if self.architecture.parameters >= 1e11 else 4e6)


@dataclass(frozen=True, slots=True)
class Candidate:
    """One configuration and its step."""

    job: TrainingJob
    result: StepResult

    @property
    def tokens_per_s(self) -> float:
        return self.result.tokens_per_s_per_chip * self.job.split.chips


@dataclass(frozen=True, slots=True)
class TrainingPlan:
    """The answer: the best configuration, the next ones, and the run's totals."""

    campaign: Campaign
    best: Candidate
    others: tuple[Candidate, ...]
    considered: int
    rejected: dict[str, int]
    tokens_per_s: Estimate
    goodput: Goodput
    days: Estimate
    usd: Estimate
    energy_kwh: Estimate
    spares: int
    chip_w: Estimate

    @property
    def chips_paid(self) -> int:
        return max(self.campaign.chips, self.best.job.split.chips + self.spares)


def _options(campaign: Campaign) -> Iterator[dict[str, Any]]:
    """Splits worth trying: powers of two, tensor parallelism inside the scale-up domain, experts over whole groups."""
    arch, fixed = campaign.architecture, campaign.fixed
    place = fabric.server_of(campaign.chip, campaign.server)
    experts = max((layer.feed_forward.experts for layer in arch.layers), default=0)
    layers = arch.num_layers

    def choice(name: str, usual: list[int]) -> list[int]:
        return [int(fixed[name])] if name in fixed else usual

    powers = [2**k for k in range(11)]
    heads = min((layer.mixer.heads for layer in arch.layers if layer.mixer.heads), default=1)
    for tp in choice("tp", [p for p in powers if p <= min(16, place.domain_chips, campaign.chips) and heads % p == 0]):
        for cp in choice("cp", [1] if campaign.seq_len < 32768 else [p for p in powers if p <= 32]):
            for pp in choice("pp", [p for p in powers if p <= min(64, layers) and tp * cp * p <= campaign.chips]):
                each = math.ceil(layers / pp)
                vps = [1] if pp == 1 else sorted({v for v in (1, 2, 4, each) if v <= each and (layers + 2) // pp >= v})
                for vp in choice("vp", vps):
                    for ep in choice(
                        "ep", [1] if not experts else [p for p in powers if p <= min(experts, 128) and experts % p == 0]
                    ):
                        for micro in choice("micro_batch", [1, 2, 4]):
                            yield {"tp": tp, "cp": cp, "pp": pp, "vp": vp, "ep": ep, "micro_batch": micro}


def _job(campaign: Campaign, o: dict[str, Any], recompute: str) -> TrainingJob | None:
    """The job of an option, on as many chips as its groups allow; None where nothing fits the count."""
    group = o["ep"] * int(campaign.fixed.get("etp", 1))
    inner = o["tp"] * o["cp"]
    if "dp" in campaign.fixed:
        dp = int(campaign.fixed["dp"])
    else:
        dp = campaign.chips // (inner * o["pp"])
        need = group // math.gcd(group, inner)
        dp -= dp % need
    if dp < 1 or dp * inner * o["pp"] > campaign.chips:
        return None
    each = o["micro_batch"] * dp
    count = _micro_batches(campaign, each, o["pp"] if o["vp"] > 1 else 1)
    if not count:
        return None
    split_fields = {k: v for k, v in campaign.fixed.items() if k in Split.__dataclass_fields__}
    job_fields = {
        k: v
        for k, v in campaign.fixed.items()
        if k in TrainingJob.__dataclass_fields__ and k not in ("split", "global_batch", "micro_batch")
    }
    split = Split(**{**split_fields, **{k: o[k] for k in ("tp", "cp", "pp", "vp", "ep")}, "dp": dp})
    base: dict[str, Any] = {
        "precision": campaign.dtype,
        "recompute": recompute,
        "framework": campaign.framework,
        "task": campaign.task,
        "server": campaign.server,
        "zero": 3 if campaign.framework == "fsdp" else 1,
        "node_network_bytes_per_s": campaign.node_network_bytes_per_s,
    }
    return TrainingJob(
        campaign.architecture,
        campaign.chip,
        split,
        campaign.seq_len,
        count * each,
        o["micro_batch"],
        **{**base, **job_fields},
    )


def _micro_batches(campaign: Campaign, each: int, multiple: int) -> int:
    """Micro-batches of a rank nearest to the wished batch and at most a quarter above it, in multiples of what interleaving
    asks for; 0 where the replicas alone exceed it."""
    if "global_batch" in campaign.fixed:
        count, rest = divmod(int(campaign.fixed["global_batch"]), each)
        return 0 if rest else count
    wished = campaign.batch / campaign.seq_len / each
    count = max(1, round(wished / multiple)) * multiple
    return count if count <= 1.25 * wished else int(1.25 * wished / multiple) * multiple


def _least_step_s(job: TrainingJob, c: Constants, flops_per_token: float) -> float:
    """A bound no configuration can beat: model FLOPs at the full peak of its precision, plus the schedule's bubble."""
    from trivet.cloud.training import kernels

    dtype = workload.GEMM_DTYPE[job.precision]
    p = kernels.point(job.chip, dtype)
    what = p.math if p.math in ("bf16", "fp8", "fp4", "int8") else "bf16"
    rate = p.peak_flops * min(
        1.0, kernels.sustained_share(p, c, what) * c.gemm.get(what, 1.0) * c.gemm_framework.get(job.framework, 1.0)
    )
    ideal = flops_per_token * job.tokens_per_step / job.split.chips / rate
    waits = (
        (job.split.pp - 1) / job.split.vp / job.micro_batches
        if job.split.pipeline in ("1f1b", "gpipe", "interleaved")
        else 0.0
    )
    return ideal * (1 + waits) * (4 / 3 if job.recompute == "full" and not job.recompute_layers else 1.0)


def search(
    campaign: Campaign,
    constants: Constants | None = None,
    *,
    keep: int = 10,
    report: Callable[[str, int, int], None] | None = None,
) -> tuple[list[Candidate], int, dict[str, int]]:
    """The fastest configurations that fit, best first; how many were considered; why others were dropped.

    Every option is either timed, or dropped because it cannot fit in memory or its bound is worse than the ``keep``-th best.

    Raises:
        DoesNotFit: no option fits.
    """
    c = constants or shipped()
    capacity = (campaign.chip.get("memory_bytes") or math.inf) * MEMORY_MARGIN
    flops = workload.model_flops_per_token(campaign.architecture, campaign.seq_len, campaign.task)
    kinds = [campaign.fixed["recompute"]] if "recompute" in campaign.fixed else ["none", "selective", "full"]
    best: list[Candidate] = []
    rejected: dict[str, int] = {}
    considered = 0
    jobs: list[tuple[float, TrainingJob]] = []

    def drop(reason: str) -> None:
        rejected[reason] = rejected.get(reason, 0) + 1

    for option in _options(campaign):
        for kind in kinds:
            considered += 1
            try:
                job = _job(campaign, option, kind)
                if job is None:
                    drop("chips or batch do not divide")
                    continue
                if memory.peak(job).total > capacity:
                    drop("memory")
                    continue
                jobs.append((_least_step_s(job, c, flops) / job.tokens_per_step, job))
            except (DoesNotFit, Unsupported):
                drop("layout")
                continue
            break  # less recompute that fits is never slower
    jobs.sort(key=lambda pair: pair[0])
    for done, (bound, job) in enumerate(jobs):
        if len(best) == keep and 1.0 / bound <= best[-1].tokens_per_s:
            rejected["bound"] = rejected.get("bound", 0) + len(jobs) - done
            break
        try:
            found = Candidate(job, train_step(job, constants=c))
        except (DoesNotFit, Unsupported):
            drop("layout")
            continue
        best = sorted([*best, found], key=lambda x: -x.tokens_per_s)[:keep]
        if report:
            report("search", done + 1, len(jobs))
    if not best:
        raise DoesNotFit(
            f"{campaign.architecture.name} on {campaign.chips} {campaign.chip.name}: none of {considered} configurations fits "
            f"({', '.join(f'{k}: {v}' for k, v in sorted(rejected.items()))})",
            field="chips",
            allowed="more chips, a larger batch_tokens, or fewer fixed fields",
        )
    return best, considered, rejected


# Facts of a chip that move a step, beside the model's own spread.
_MOVING = (
    "peak_flops_bf16",
    "peak_flops_fp16",
    "peak_flops_fp8",
    "peak_flops_int8",
    "memory_bandwidth_bytes_per_s",
    "link_bandwidth_bytes_per_s",
    "host_launch_s",
)


def step_spread(job: TrainingJob, result: StepResult, constants: Constants | None = None) -> Estimate:
    """Tokens per second of the job, with the model's spread and that of each unpublished field of the chip, by moving it."""
    c = constants or shipped()
    rate = result.tokens_per_s_per_chip * job.split.chips
    spread = {name: -sigma for name, sigma in result.spread.items() if sigma > 0}
    for name in _MOVING:
        fact = job.chip.facts.get(name)
        if fact is None or fact.log_sigma <= 0 or fact.value is None:
            continue
        if name == "host_launch_s" and job.chip.maker == CALIBRATED_MAKER:
            continue  # the measured runs hold it
        moved = replace(fact, value=fact.value * math.exp(fact.log_sigma), lo=None, hi=None)
        chip = replace(job.chip, facts={**job.chip.facts, name: moved})
        other = finish(prepare(job.with_(chip=chip)), c)
        shift = math.log(other.tokens_per_s_per_chip / result.tokens_per_s_per_chip)
        if abs(shift) > 1e-6:
            spread[f"{job.chip.name} {name}"] = shift
    return Estimate(rate, spread)


def chip_watts(candidate: Candidate) -> Estimate:
    """Mean power of a chip in training: arithmetic at the achieved rate (recompute included), memory at what it moves."""
    result, job = candidate.result, candidate.job
    again = 1.0 + (result.breakdown["recompute_s"] / max(result.breakdown["compute_s"], 1e-12))
    dtype = {"mxfp8": "fp8", "nvfp4": "fp4", "fp16": "bf16"}.get(job.precision, job.precision)
    return power_w(
        job.chip,
        flops_per_s=result.model_flops_per_s_per_chip * again,
        bytes_per_s=0.45 * (job.chip.get("memory_bandwidth_bytes_per_s") or 0.0),
        dtype=dtype,
    )


def plan(
    campaign: Campaign, constants: Constants | None = None, *, report: Callable[[str, int, int], None] | None = None
) -> TrainingPlan:
    """Search, then the run's totals.

    Raises:
        DoesNotFit: nothing fits. Unsupported: a field of the chip without which it cannot be timed.
    """
    found, considered, rejected = search(campaign, constants, report=report)
    best = found[0]
    job, server = best.job, fabric.server_of(campaign.chip, campaign.server)
    rate = step_spread(job, best.result, constants)
    setting = run.Setting(
        job.split.chips,
        campaign.architecture.parameters / job.parameter_sharing,
        best.result.step_s,
        max(1, job.split.dp * job.split.cp),
        campaign.chip,
        server,
        max(m.weights + m.optimizer + m.host for m in best.result.memory),
    )
    good = run.goodput(setting, campaign.run)
    seconds = campaign.tokens / (rate * good.share)
    days = seconds * (1 / DAY_S)
    paid = max(campaign.chips, job.split.chips + good.spares)
    hour = cost.chip_hour(campaign.chip, campaign.basis, server, campaign.site)
    watts = chip_watts(best)
    facility = energy.facility_w(campaign.chip, watts, server, campaign.site)
    return TrainingPlan(
        campaign,
        best,
        tuple(found[1:]),
        considered,
        rejected,
        rate,
        good,
        days,
        seconds * (paid / HOUR_S) * hour.usd,
        seconds * facility * (paid / HOUR_S / 1e3),
        good.spares,
        watts,
    )
