"""One optimiser step of a training job: its time, where it goes, and the memory it takes.

    step = pipeline(F, B, W; m, schedule) + visible data-parallel traffic + optimiser + once-a-step work

with ``F, B, W`` a rank's forward, input-gradient and weight-gradient times of one micro-batch, communication that stays
visible included. See ``docs/training.md``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from statistics import NormalDist

import numpy as np

from trivet.cloud.training import kernels, schedule
from trivet.cloud.training.job import TrainingJob
from trivet.cloud.training.memory import RankMemory
from trivet.cloud.training.network import Network
from trivet.cloud.training.prepare import LayerPart, Prepared, RankPart, prepare
from trivet.cloud.training.profile import Constants, shipped

COMPONENTS = (
    "compute_s",
    "recompute_s",
    "host_s",
    "tp_s",
    "cp_s",
    "ep_s",
    "pp_s",
    "bubble_s",
    "dp_s",
    "offload_s",
    "optimizer_s",
    "other_s",
)


# Chips, or their twins in silicon and software, with measured training runs.
CALIBRATED = ("a100-40gb", "a100-80gb", "a800", "h100", "h800", "b200", "gb200")
CALIBRATED_MAKER = "NVIDIA"
# Host time of one operation: the framework's dispatch (5-15 us in PyTorch), and a launch on the calibrated chips.
DISPATCH_S = 10e-6
REFERENCE_LAUNCH_S = 8.83e-6


@dataclass(frozen=True, slots=True)
class RankTimes:
    """Seconds of one micro-batch on one pipeline rank; ``parts`` sum to ``total``."""

    forward: float
    inputs: float
    weights: float
    parts: dict[str, float]

    @property
    def total(self) -> float:
        return self.forward + self.inputs + self.weights


@dataclass(frozen=True, slots=True)
class StepResult:
    """What a step takes. Times in seconds, ``breakdown`` sums to ``step_s``; ``mfu`` is of the BF16 peak."""

    step_s: float
    tokens_per_s_per_chip: float
    model_flops_per_s_per_chip: float
    mfu: float
    spread: dict[str, float]  # cause -> standard deviation of log step time; independent
    breakdown: dict[str, float]
    memory: tuple[RankMemory, ...]
    capacity_bytes: float
    host_capacity_bytes: float = 0.0  # of host memory, a chip; 0 = unknown
    ranks: tuple[RankTimes, ...] = ()
    notes: tuple[str, ...] = field(default=())

    @property
    def peak(self) -> RankMemory:
        return max(self.memory, key=lambda rank: rank.total)

    @property
    def log_sigma(self) -> float:
        return float(np.sqrt(sum(s * s for s in self.spread.values())))

    @property
    def fits(self) -> bool:
        host = max(rank.host for rank in self.memory)
        return self.peak.total <= self.capacity_bytes and host <= (self.host_capacity_bytes or float("inf"))

    def interval(self, share: float = 0.8) -> tuple[float, float]:
        """Interval of tokens/s/chip that holds the truth with probability ``share``."""
        z = NormalDist().inv_cdf(0.5 + share / 2) * self.log_sigma
        return self.tokens_per_s_per_chip * float(np.exp(-z)), self.tokens_per_s_per_chip * float(np.exp(z))


def version_of(text: str) -> tuple[int, int]:
    """(year, month) of a container version such as "26.04.01"; (0, 0) where unknown."""
    parts = text.split(".")[:2]
    return (int(parts[0]), int(parts[1])) if len(parts) == 2 and all(p.isdigit() for p in parts) else (0, 0)


def launch_factor(job: TrainingJob) -> float:
    """Host time of an operation on this chip over that on the calibrated ones (all of one maker's software)."""
    launch = job.chip.get("host_launch_s")
    if job.chip.maker == CALIBRATED_MAKER or not launch:
        return 1.0
    return (DISPATCH_S + launch) / (DISPATCH_S + REFERENCE_LAUNCH_S)


def host_share(job: TrainingJob, c: Constants) -> float:
    """Share of a layer's host time that is left where the framework replays graphs instead of launching kernel by kernel:
    Megatron does on Blackwell since the containers of mid-2026, but for hybrid models."""
    hybrid = any(layer.mixer.kind == "scan" for layer in job.architecture.layers)
    if job.framework != "megatron" or hybrid:
        return 1.0
    return c.host_captured if version_of(job.version) >= (26, 6) and job.chip.family == "blackwell" else 1.0


def software_age(job: TrainingJob) -> float:
    """Months by which Megatron's container is older than 26.04, at most three: identical jobs ran up to a tenth slower
    two months before."""
    year, month = version_of(job.version)
    if job.framework != "megatron" or not year:
        return 0.0
    return float(min(max((26 - year) * 12 + 4 - month, 0), 3))


def _hides_exchange(job: TrainingJob) -> bool:
    """Whether the experts' exchange of one micro-batch runs behind another's compute."""
    return job.overlap.ep or job.split.pipeline == "dualpipe"


def visible_share(job: TrainingJob, c: Constants, axis: str) -> float:
    """Share of an axis's transfers that stays visible."""
    hidden = {
        "tp": (job.overlap.tp, c.exposed_tp),
        "cp": (job.overlap.cp, c.exposed_cp),
        "ep": (_hides_exchange(job), c.exposed_ep),
    }
    on, share = hidden.get(axis, (False, 1.0))
    return (share if on else 1.0) * c.transfer


@dataclass(frozen=True, slots=True)
class _LayerTimes:
    forward: float
    inputs: float
    weights: float
    core: float
    host: float
    forward_comm: dict[str, float]
    backward_comm: dict[str, float]


def _layer_times(part: LayerPart, prepared: Prepared, c: Constants) -> _LayerTimes:
    job, p = prepared.job, prepared.point
    late = 1.0 + c.drift * software_age(job)
    passes = [
        late * kernels.total(x, p, c, job.framework, job.version)
        for x in (part.forward, part.inputs, part.weights, part.core)
    ]
    comm = [
        {axis: s * visible_share(job, c, axis) for axis, s in x.items()}
        for x in (part.forward_comm, part.backward_comm)
    ]
    mixer = {"attention": 0.5 * c.host_dense_s, "scan": c.host_scan_s, "none": 0.0}.get(
        part.mixer, 0.5 * c.host_dense_s
    )
    ffn = {"moe": c.host_expert_s, "dense": 0.5 * c.host_dense_s}.get(part.feed_forward, 0.0)
    host = (mixer + ffn) * host_share(job, c) * launch_factor(job)
    host *= c.host_grace if "grace" in prepared.host else 1.0
    return _LayerTimes(passes[0], passes[1], passes[2], passes[3], host, comm[0], comm[1])


def _rank_times(rank: RankPart, times: list[_LayerTimes], prepared: Prepared, c: Constants) -> RankTimes:
    """One micro-batch on one rank."""
    job = prepared.job
    parts = dict.fromkeys(COMPONENTS, 0.0)
    forward = inputs = weights = recompute = host = forward_comm = backward_comm = 0.0
    work = [(times[k], n) for k, n in rank.layers] + [(_layer_times(e, prepared, c), 1) for e in rank.ends]
    for index, (t, n) in enumerate(work):
        forward, inputs, weights = forward + n * t.forward, inputs + n * t.inputs, weights + n * t.weights
        host += n * t.host if index < len(rank.layers) else 0.0
        recompute += n * t.core if job.recompute == "selective" else 0.0
        for axis, s in t.forward_comm.items():
            forward_comm, parts[f"{axis}_s"] = forward_comm + n * s, parts[f"{axis}_s"] + n * s
        for axis, s in t.backward_comm.items():
            backward_comm, parts[f"{axis}_s"] = backward_comm + n * s, parts[f"{axis}_s"] + n * s
    for k, n in rank.recomputed:
        recompute += n * times[k].forward
        for axis, s in times[k].forward_comm.items():
            backward_comm, parts[f"{axis}_s"] = backward_comm + n * s, parts[f"{axis}_s"] + n * s
    if job.task == "distill" and job.teacher is not None:
        forward += forward * job.teacher.active_parameters / job.architecture.active_parameters
    device = forward + inputs + weights + recompute
    if job.split.ep > 1 and _hides_exchange(job):
        device /= 1.0 - c.overlap_units
    joined = (device**c.host_power + host**c.host_power) ** (1.0 / c.host_power)
    stretch = joined / (forward + inputs + weights + recompute)
    gather = rank.gather_s * c.transfer
    gather = max(gather - joined, 0.0) + c.exposed_fsdp * min(gather, joined) if job.overlap.dp else gather
    offload = max(rank.offload_s - joined, 0.0)
    send = 2.0 * job.split.vp * prepared.send_s * c.transfer * (c.exposed_pp if job.overlap.pp else 1.0)
    parts |= {
        "compute_s": device - recompute,
        "recompute_s": recompute,
        "host_s": joined - device,
        "dp_s": gather,
        "offload_s": offload,
        "pp_s": send,
    }
    f = forward * stretch + forward_comm + gather / 3 + offload / 2 + send / 2
    b = (inputs + recompute) * stretch + backward_comm + gather * 2 / 3 + offload / 2 + send / 2
    return RankTimes(f, b, weights * stretch, parts)


def finish(prepared: Prepared, c: Constants) -> StepResult:
    """Apply the constants to what ``prepare`` found."""
    job = prepared.job
    times = [_layer_times(part, prepared, c) for part in prepared.layers]
    known: dict[int, RankTimes] = {}
    ranks = []
    for r, rank in enumerate(prepared.ranks):
        same = next((q for q in known if prepared.ranks[q] == rank), None)
        known[r] = known[same] if same is not None else _rank_times(rank, times, prepared, c)
        ranks.append(known[r])
    f, b, w = (np.array([getattr(rank, name) for rank in ranks]) for name in ("forward", "inputs", "weights"))
    micro = job.micro_batches
    running = schedule.pipeline_s(job.split.pipeline, job.split.vp, micro, f, b, w)
    slow = max(range(len(ranks)), key=lambda r: ranks[r].total)
    exchange = 0.0
    for rank, t in zip(prepared.ranks, ranks, strict=True):
        whole = rank.exchange_s * c.transfer
        # the last backward and the first forward pass hide it, chunk by chunk
        exchange = max(exchange, max(c.exposed_dp * whole, whole - t.total) if job.overlap.dp else whole)
    update = max(
        r.update_bytes / prepared.point.bandwidth / c.stream * c.optimizer + r.update_host_s for r in prepared.ranks
    )
    breakdown = {name: value * micro for name, value in ranks[slow].parts.items()}
    breakdown["bubble_s"] = running - ranks[slow].total * micro
    breakdown["dp_s"] += exchange
    breakdown["optimizer_s"] = update
    breakdown["other_s"] = c.step_s + job.straggler * (running + exchange)
    step = sum(breakdown.values())
    rate = job.tokens_per_step / step / job.split.chips
    flops = prepared.flops_per_token * rate
    return StepResult(
        step,
        rate,
        flops,
        flops / prepared.point.peak_flops,
        spread(job, prepared, c, breakdown),
        breakdown,
        prepared.memory,
        job.chip.get("memory_bytes") or 0.0,
        0.0 if "nvme" in (job.offload_optimizer, job.offload_weights) else prepared.host_bytes,
        tuple(ranks),
    )


def train_step(job: TrainingJob, net: Network | None = None, constants: Constants | None = None) -> StepResult:
    """Time and memory of one optimiser step.

    Args:
        job: what is trained and how.
        net: the fabric in plain numbers; None = the chip's server and its fabric from the catalogue.
        constants: of the software; None = the shipped calibration.

    Raises:
        DoesNotFit: the split does not divide the model or the fabric. Memory that does not fit is no error: ``fits``.
    """
    return finish(prepare(job, net), constants or shipped())


def sigma_class(job: TrainingJob) -> str:
    """Kind of job whose left-out errors give the spread: "expert", "low" (dense in 8 or 4 bits), "dense"."""
    if job.architecture.routed:
        return "expert"
    return "low" if job.precision in ("fp8", "mxfp8", "nvfp4", "int8") else "dense"


def spread(job: TrainingJob, prepared: Prepared, c: Constants, breakdown: dict[str, float]) -> dict[str, float]:
    """Named causes and their standard deviations of log step time: what calibration left, and what the chip leaves open."""
    p = prepared.point
    busy = (breakdown["compute_s"] + breakdown["recompute_s"]) / sum(breakdown.values())
    found = {"step model": c.sigma.get(sigma_class(job), c.log_sigma)}
    if job.chip.name not in CALIBRATED:
        found["software on a chip without measured runs"] = c.sigma.get("chip", 0.0)
    if not kernels.measured_name(p, c):
        found[f"{job.chip.name} sustained share of the peak"] = busy * (
            0.05 if p.bench[0] > 0 else kernels.UNMEASURED_SIGMA
        )
    if job.framework not in ("megatron", "fsdp"):
        found["framework without measured runs"] = c.sigma.get("framework", 0.0)
    return found
