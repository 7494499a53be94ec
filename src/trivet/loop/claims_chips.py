"""Claims about the chip: above A800, on a par with H20, its links, workload by workload."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from trivet.chip.catalogue import chip as chip_by_name
from trivet.chip.spec import Chip
from trivet.cloud.training.job import Split, TrainingJob
from trivet.cloud.training.step import train_step
from trivet.errors import DoesNotFit
from trivet.loop.claim import Bench, Claim, Figure, exceeds, verdict
from trivet.loop.compare import MIB, timed
from trivet.loop.plan import Goal, Slo, search
from trivet.loop.plan_run import synthetic_traffic
from trivet.loop.space import Space
from trivet.model.config import read as read_model
from trivet.operators import Attention, Gemm, Operator, Transfer

SUBJECT = "zhenwu-810e"
PAR = 0.85  # "on a par": at least this share of the other's speed
MODEL = "Qwen/Qwen3-32B"
SERVED_PER_S, SERVED_TOKENS = 400.0, (1200, 250)  # enough that whole replicas do not round the ratio


@dataclass(frozen=True, slots=True)
class Lead:
    """Speed of the subject over another chip's on one workload: log ratio, its spread, and what drives the spread."""

    workload: str
    log_ratio: float
    log_sigma: float
    note: str = ""

    @property
    def ratio(self) -> float:
        return math.exp(self.log_ratio)


def _against(workload: str, own: tuple[float, float], other: tuple[float, float], note: str = "") -> Lead:
    """From (seconds, log sigma) of each: how much faster the subject is. Errors of two chips are independent (``compare``)."""
    return Lead(workload, math.log(other[0] / own[0]), max(math.hypot(own[1], other[1]), 1e-6), note)


# Representative operators of Qwen3-32B.
OPERATORS: dict[str, Operator] = {
    "gemm": Gemm("up", 8192.0, 25600.0, 5120.0),
    "gemv": Gemm("up", 1.0, 25600.0, 5120.0),
    "decode": Attention("decode", 64.0, 1.0, 4096.0, 64.0, 8.0, 128.0, 128.0),
    "prefill": Attention("prefill", 1.0, 8192.0, 8192.0, 64.0, 8.0, 128.0, 128.0),
    "all_reduce": Transfer("all-reduce", "all_reduce", 64 * MIB, 8, "tp"),
}


def _operator(chip: Chip, kind: str) -> tuple[float, float]:
    """(seconds, log sigma) of one of ``OPERATORS``."""
    found = timed(OPERATORS[kind], chip)
    return found.value_s, found.log_sigma


def serving(bench: Bench, name: str) -> tuple[float, float]:
    """(chips that a fixed traffic needs under its SLO, log sigma): ``SERVED_PER_S`` requests of Qwen3-32B."""

    def run() -> tuple[float, float]:
        goal = Goal(read_model(MODEL), synthetic_traffic(SERVED_PER_S, *SERVED_TOKENS), Slo(1.0, 0.05))
        found = search(goal, Space((name,), modes=("aggregated",), max_chips_per_replica=8))
        if not found.candidates:
            raise DoesNotFit(f"nothing on {name} keeps the SLO", field="slo")
        best = min(found.candidates, key=lambda c: c.chips)
        return float(best.chips), best.compiled.table.log_sigma

    result: tuple[float, float] = bench.once(f"serving {name}", run)
    return result


def _training(bench: Bench, name: str) -> tuple[float, float]:
    """(seconds a token and chip, log sigma) of a dense 32B model on 512 chips, best of a few layouts that fit."""

    def run() -> tuple[float, float]:
        chip, model = chip_by_name(name), read_model(MODEL)
        best: tuple[float, float] | None = None
        for tp in (2, 4, 8):
            for pp in (1, 2, 4):
                job = TrainingJob(
                    model,
                    chip,
                    Split(tp=tp, pp=pp, dp=512 // (tp * pp)),
                    seq_len=4096,
                    global_batch=512,
                    recompute="selective",
                )
                result = train_step(job)
                if result.fits and (best is None or 1 / result.tokens_per_s_per_chip < best[0]):
                    best = (1 / result.tokens_per_s_per_chip, result.log_sigma)
        if best is None:
            raise DoesNotFit(f"no layout tried fits {name}", field="memory")
        return best

    result: tuple[float, float] = bench.once(f"training {name}", run)
    return result


def leads(bench: Bench, other: str) -> tuple[Lead, ...]:
    """The subject against ``other``, workload by workload."""

    def run() -> tuple[Lead, ...]:
        own, peer = chip_by_name(SUBJECT), chip_by_name(other)
        found = [
            _against(f"{title}", _operator(own, kind), _operator(peer, kind))
            for kind, title in (
                ("gemm", "GEMM-bound: 8192 x 25600 x 5120, BF16"),
                ("prefill", "prefill attention: 8,192 tokens"),
                ("gemv", "bandwidth-bound: GEMV 1 x 25600 x 5120"),
                ("decode", "decode attention: 64 sequences of 4,096"),
                ("all_reduce", "communication-bound: all-reduce of 64 MiB on 8 chips"),
            )
        ]
        room = math.log((own.get("memory_bytes") or math.nan) / (peer.get("memory_bytes") or math.nan))
        found.append(Lead("memory of a card", room, 0.0))
        served = _against("serving Qwen3-32B under SLO, a chip", serving(bench, SUBJECT), serving(bench, other))
        found.append(served)
        found.append(
            _against("training a dense 32B on 512 chips, BF16", _training(bench, SUBJECT), _training(bench, other))
        )
        watts = math.log((peer.get("tdp_w") or math.nan) / (own.get("tdp_w") or math.nan))
        found.append(Lead("serving under SLO, a watt of limit", served.log_ratio + watts, served.log_sigma))
        return tuple(found)

    result: tuple[Lead, ...] = bench.once(f"leads {other}", run)
    return result


def _figures(found: tuple[Lead, ...], other: str, threshold: float) -> tuple[Figure, ...]:
    return tuple(
        Figure.of(
            lead.workload,
            lead.ratio,
            lead.log_sigma,
            f"x {other}",
            lead.note,
            exceeds(lead.log_ratio, lead.log_sigma, threshold),
        )
        for lead in found
    )


def _overall(found: tuple[Lead, ...], threshold: float) -> float:
    """P(geometric mean over the workloads > threshold); their errors, the chip's own unknowns, are taken as one."""
    mean = sum(lead.log_ratio for lead in found) / len(found)
    sigma = sum(lead.log_sigma for lead in found) / len(found)
    return exceeds(mean, sigma, threshold)


def _comparison(bench: Bench, name: str, text: str, other: str, threshold: float) -> Claim:
    found = leads(bench, other)
    probability = _overall(found, threshold)
    figures = _figures(found, other, threshold)
    behind = [figure.name for figure in figures if (figure.probability or 0.0) < 0.5]
    note = (f"Behind on: {'; '.join(behind)}. " if behind else "") + (
        "Timing errors of the two chips are taken as independent, as measured between chip families."
    )
    return Claim(
        name, text, "operator timing, plan and training step on both chips; geometric mean over the workloads",
        verdict(probability), probability,
        "the BF16 peak (138-195 TFLOP/s) and the memory bandwidth (2.5-2.83 TB/s) of the 810E, both unpublished", figures, note,
    )  # fmt: skip


def above_a800(bench: Bench) -> Claim:
    """810E above A800."""
    return _comparison(bench, "above-a800", "Zhenwu 810E is above NVIDIA's A800", "a800", 1.0)


def par_with_h20(bench: Bench) -> Claim:
    """810E on a par with H20, over all workloads: at least ``PAR`` of its speed."""
    return _comparison(
        bench, "par-with-h20", f"Zhenwu 810E is on a par with NVIDIA's H20 (at least {PAR:g} of it)", "h20", PAR
    )


def links(bench: Bench) -> Claim:
    """700 GB/s between chips: above A800's 400, below H20's 900; what an all-reduce sees of it."""
    del bench
    own = chip_by_name(SUBJECT)
    figures = []
    for other in ("a800", "h20"):
        peer = chip_by_name(other)
        ratio = (own.get("link_bandwidth_bytes_per_s") or math.nan) / (
            peer.get("link_bandwidth_bytes_per_s") or math.nan
        )
        figures.append(
            Figure.of(
                f"published link bandwidth over {other}'s", ratio, 0.0, f"x {other}", "per direction on both sides"
            )
        )
        lead = _against("all-reduce", _operator(own, "all_reduce"), _operator(peer, "all_reduce"))
        figures.append(
            Figure.of(
                f"all-reduce of 64 MiB on 8 chips against {other}", lead.ratio, lead.log_sigma, f"x {other}",
                "the 8-card mesh uses 5 of 7 links", exceeds(lead.log_ratio, lead.log_sigma),
            )
        )  # fmt: skip
    chance = figures[1].probability
    return Claim(
        "links", "Zhenwu 810E moves 700 GB/s between chips, more than A800", "catalogue; collectives over the ICN mesh",
        verdict(chance), chance,
        "a measured all-reduce: how much of the 350 GB/s per direction a collective reaches in the sparse mesh is not published",
        tuple(figures), "Published by the maker and by the tool that reads the links (50 GB/s a port and direction, 7 ports).",
    )  # fmt: skip


CHIP_CLAIMS: dict[str, Callable[[Bench], Claim]] = {
    "above-a800": above_a800,
    "par-with-h20": par_with_h20,
    "links": links,
}
