"""A training plan as plain values: what ``summary.json`` holds."""

from __future__ import annotations

from typing import Any

from trivet.chip.estimate import Estimate
from trivet.cloud.training.job import TrainingJob
from trivet.loop.training_plan import Candidate, TrainingPlan

_OWN = ("step model", "software on a chip without measured runs", "framework without measured runs")


def driving_field(days: Estimate) -> str:
    """The field of the chip or the fleet that widens the answer most, beside the model's own error; "" = none."""
    fields = {name: abs(sigma) for name, sigma in days.spread.items() if name not in _OWN}
    return max(fields, key=lambda name: fields[name], default="")


def split_dict(job: TrainingJob) -> dict[str, Any]:
    """The parallelism as plain values."""
    s = job.split
    return {
        "tp": s.tp,
        "pp": s.pp,
        "cp": s.cp,
        "dp": s.dp,
        "ep": s.ep,
        "etp": s.etp,
        "vp": s.vp,
        "schedule": s.pipeline,
        "zero": job.zero,
        "micro_batch": job.micro_batch,
        "global_batch": job.global_batch,
        "recompute": job.recompute,
        "precision": job.precision,
    }


def candidate_dict(c: Candidate) -> dict[str, Any]:
    """One configuration for ``summary.json``."""
    r = c.result
    return {
        "split": split_dict(c.job),
        "chips": c.job.split.chips,
        "step_s": r.step_s,
        "tokens_per_s": c.tokens_per_s,
        "tokens_per_s_per_chip": r.tokens_per_s_per_chip,
        "mfu": r.mfu,
        "model_flops_per_s_per_chip": r.model_flops_per_s_per_chip,
        "memory_bytes": r.peak.total,
        "memory_capacity_bytes": r.capacity_bytes,
        "breakdown_s": r.breakdown,
    }


def _estimate(e: Estimate) -> dict[str, Any]:
    return {"value": e.value, "lo": e.lo, "hi": e.hi, "driver": e.driver}


def summary(p: TrainingPlan) -> dict[str, Any]:
    """Everything of ``summary.json``."""
    g, c = p.goodput, p.campaign
    return {
        "model": c.architecture.name,
        "chip": c.chip.name,
        "chips": c.chips,
        "chips_working": p.best.job.split.chips,
        "chips_paid": p.chips_paid,
        "spares": p.spares,
        "tokens": c.tokens,
        "seq_len": c.seq_len,
        "task": c.task,
        "framework": c.framework,
        "days": _estimate(p.days),
        "usd": _estimate(p.usd),
        "usd_basis": c.basis,
        "energy_kwh": _estimate(p.energy_kwh),
        "chip_w": _estimate(p.chip_w),
        "tokens_per_s": _estimate(p.tokens_per_s),
        "mfu": p.best.result.mfu,
        "chip_hours": p.days.value * 24 * p.best.job.split.chips,
        "goodput": {
            "value": g.share.value,
            "lo": g.lo,
            "hi": g.hi,
            "driver": g.share.driver,
            "mean_time_between_failures_s": g.mean_time_between_failures_s,
            "checkpoint_interval_s": g.interval_s,
            "young_interval_s": g.young_s,
            "daly_interval_s": g.daly_s,
            "checkpoint_stop_s": g.checkpoint_stop_s,
            "checkpoint_write_s": g.checkpoint_write_s,
            "restart_s": g.restart_s,
            "lost": g.lost,
            "failures_per_day": g.failures_by_component,
        },
        "best": candidate_dict(p.best),
        "others": [candidate_dict(o) for o in p.others],
        "memory_by_rank_bytes": [
            {
                k: getattr(m, k)
                for k in (
                    "rank",
                    "weights",
                    "gradients",
                    "optimizer",
                    "activations",
                    "logits",
                    "working",
                    "host",
                    "total",
                )
            }
            for m in p.best.result.memory
        ],
        "considered": p.considered,
        "rejected": p.rejected,
        "driver": p.days.driver,
        "driver_field": driving_field(p.days),
        "spread": p.days.spread,
    }
