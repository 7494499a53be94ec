"""A week of a whole cloud: services, training and other jobs of many customers on one cluster that fails and is repaired.

The way: each service gets a deployment and hourly replicas (``cloud_services.py``), each training job its layout (``training
plan``); all of them become jobs of one scheduler (``cloud/cluster``) with drawn failures; what then ran gives SLO attainment,
power, cost and tokens; drawn requests give each customer's bill (``cloud_customers.py``).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trivet.chip.catalogue import chip as chip_by_name
from trivet.chip.estimate import Estimate, total
from trivet.cloud.cluster.faults import draw, llama3_faults
from trivet.cloud.cluster.jobs import Job
from trivet.cloud.cluster.week import Rules, Week, as_task, describe, run_week
from trivet.cloud.cost import chip_hour, revenue_usd
from trivet.cloud.serving.tenants_traffic import Service
from trivet.errors import DoesNotFit, TrivetError, UnknownName
from trivet.loop import training_plan
from trivet.loop.cloud_compare import check_error
from trivet.loop.cloud_customers import Meter, bills, meter, with_generated
from trivet.loop.cloud_jobs import (
    CPU_MILLI_A_CHIP,
    MEMORY_MIB_A_CHIP,
    TRAINING_PRIORITY,
    mixed_jobs,
    nodes_of,
    pool_of,
    service_jobs,
    workers_of,
)
from trivet.loop.cloud_scenario import CloudScenario, TrainingSpec
from trivet.loop.cloud_services import Sized, attainment, check_hours, size
from trivet.loop.economics import economics
from trivet.loop.training_summary import split_dict
from trivet.units import DAY_S, HOUR_S

Floats = NDArray[np.float64]
Told = Callable[[str, int, int], None]
ReadModel = Callable[[str], Any]


@dataclass(frozen=True, slots=True, eq=False)
class CloudWeek:
    """The result: ``summary`` for ``summary.json``, tables for Parquet files."""

    summary: dict[str, Any]
    hourly: dict[str, Floats]
    customers: list[dict[str, Any]]


def _training(
    spec: TrainingSpec, scenario: CloudScenario, read_model: ReadModel
) -> tuple[Job, training_plan.TrainingPlan]:
    largest = max(scenario.pools, key=lambda p: p.servers * p.chips_per_server)
    name = spec.chip or largest.chip
    if name not in {p.chip for p in scenario.pools}:
        raise UnknownName(
            f"no pool of {name!r}", field=f"training.{spec.name}.chip", allowed=[p.chip for p in scenario.pools]
        )
    pool = pool_of(scenario, name)
    campaign = training_plan.Campaign(
        read_model(spec.model),
        chip_by_name(name),
        spec.chips,
        spec.tokens,
        spec.seq_len,
        basis=scenario.price_basis,
        site=scenario.site,
    )
    plan = training_plan.plan(campaign)
    workers, each = workers_of(spec.chips, pool)
    worker = as_task(
        spec.name, each, cpu_milli=CPU_MILLI_A_CHIP * each, memory_mib=MEMORY_MIB_A_CHIP * each, types=(pool.chip,)
    )
    topology = "pod" if workers <= scenario.servers_per_pod else ""
    job = Job(
        spec.name,
        "training",
        0.0,
        spec.tokens / plan.tokens_per_s.value,
        worker,
        workers,
        TRAINING_PRIORITY,
        topology,
        plan.goodput.interval_s,
        spec.name,
    )
    return job, plan


def _sized(services: Mapping[str, Service], scenario: CloudScenario, read_model: ReadModel, told: Told) -> list[Sized]:
    """Each service on the pool where its week costs least; pools fill from the largest service on."""
    by_cost = []
    for spec in scenario.services:
        options = []
        failure: TrivetError | None = None
        for pool in scenario.pools:
            try:
                s = size(services[spec.name], spec, pool.chip, read_model(spec.model), scenario, told)
                workers_of(s.chips_per_replica, pool)
            except DoesNotFit as error:
                failure = error
                continue
            usd = float(s.replicas.mean()) * s.chips_per_replica * s.candidate.compiled.economics.usd_per_chip_s
            options.append((usd, pool, s))
        if not options:
            raise failure or DoesNotFit("fits no pool", field=f"services.{spec.name}")
        by_cost.append(sorted(options, key=lambda o: o[0]))
    left = {p.chip: 0.9 * p.servers * p.chips_per_server for p in scenario.pools}
    chosen: dict[str, Sized] = {}
    for options in sorted(by_cost, key=lambda o: -o[0][0]):
        for _, pool, s in options:
            need = float(s.replicas.max()) * s.chips_per_replica
            if need <= left[pool.chip]:
                left[pool.chip] -= need
                chosen[s.spec.name] = s
                break
        else:
            s = options[0][2]
            raise DoesNotFit(
                f"needs {s.replicas.max() * s.chips_per_replica} chips at its peak",
                field=f"services.{s.spec.name}",
                allowed=f"at most {max(left.values()):.0f} left in a pool",
            )
    return [chosen[spec.name] for spec in scenario.services]


def _service_entry(s: Sized, running: Floats, kept: Floats, watts: Floats) -> dict[str, Any]:
    d = s.candidate.compiled.deployment
    each = s.chips_per_replica
    weight = s.rate_per_s / max(float(s.rate_per_s.sum()), 1e-12)

    def interval(middle: float, fast: float, slow: float) -> dict[str, float | None]:
        return {"value": middle, "lo": fast, "hi": slow if math.isfinite(slow) else None}

    own = s.replicas * float(each)
    return {
        "service": s.spec.name,
        "model_assumed": s.spec.model,
        "sold_as_assumed": s.spec.sold_as,
        "chip": s.chip,
        "layout": {
            "tp": d.layout.tp,
            "pp": d.layout.pp,
            "attention_dp": d.layout.attention_dp,
            "moe_tp": d.layout.moe_tp,
            "moe_ep": d.layout.moe_ep,
        },
        "weights": d.settings.weight_dtype or d.architecture.quantisation.default,
        "max_num_batched_tokens": s.candidate.token_budget,
        "max_num_seqs": s.candidate.max_num_seqs,
        "chips_per_replica": each,
        "slo": {"ttft_s": s.spec.ttft_s, "tpot_s": s.spec.tpot_s, "percentile": s.spec.percentile},
        "requests_per_s": float(s.rate_per_s.mean()),
        "busiest_requests_per_s": float(s.busiest_per_s.max()),
        "replicas_min": int(s.replicas.min()),
        "replicas_mean": float(s.replicas.mean()),
        "replicas_max": int(s.replicas.max()),
        "chips_at_peak": interval(float(own.max()), float(s.fast_chips.max()), float(s.slow_chips.max())),
        "chips_needed_mean": interval(float(own.mean()), float(s.fast_chips.mean()), float(s.slow_chips.mean())),
        "chips_mean": float(running.mean()) * each,
        "fluid_correction_mean": float(s.correction.mean()),
        "slo_attainment": float((weight * kept).sum()),
        "hours_below_slo": int((kept < s.spec.percentile).sum()),
        "watts_a_chip": float((watts * running).sum() / max(float(running.sum()), 1e-9)),
    }


def _training_entry(job: Job, plan: training_plan.TrainingPlan, week: Week) -> dict[str, Any]:
    j = next(i for i, x in enumerate(week.jobs) if x.name == job.name)
    chips = job.chip_milli / 1000.0
    ran_s = float(week.chip_seconds[j]) / chips
    lost_s, stops = float(week.lost_s[j]), int(week.restarts[j] + week.evictions[j])
    good = plan.goodput
    writing = 1.0 + good.checkpoint_stop_s / good.interval_s if good.interval_s > 0 else 1.0
    useful = max(ran_s - lost_s - stops * Rules().restart_s, 0.0) / writing
    return {
        "name": job.name,
        "model": plan.campaign.architecture.name,
        "chip": plan.campaign.chip.name,
        "chips": int(chips),
        "layout": split_dict(plan.best.job),
        "mfu": plan.best.result.mfu,
        "tokens_per_s": {
            "value": plan.tokens_per_s.value,
            "lo": plan.tokens_per_s.lo,
            "hi": plan.tokens_per_s.hi,
            "driver": plan.tokens_per_s.driver,
        },
        "tokens_this_week": useful * plan.tokens_per_s.value,
        "tokens_wanted": plan.campaign.tokens,
        "stops": stops,
        "redone_s": lost_s,
        "goodput": useful / week.horizon_s if week.horizon_s else 0.0,
        "goodput_of_plan": plan.goodput.share.value,
        "days_to_finish": plan.days.value,
    }


def _power(
    scenario: CloudScenario,
    week: Week,
    sized: Sequence[Sized],
    watts: Mapping[str, Floats],
    plans: Sequence[tuple[Job, training_plan.TrainingPlan]],
) -> tuple[dict[str, Floats], float]:
    """Site watts by hour and kind, and the log spread of power. Chips that are down draw nothing, free ones idle."""
    hours = len(week.hourly)
    column = {k: week.hourly[:, i] for i, k in enumerate(week.kinds)}
    out: dict[str, Floats] = {}
    largest = max(scenario.pools, key=lambda p: p.servers * p.chips_per_server)
    base = economics(chip_by_name(largest.chip), scenario.price_basis, scenario.site)
    idle_w = float(base.watts(np.array(0.0)))
    for s in sized:
        out[s.spec.name] = column.get(s.spec.name, np.zeros(hours)) * watts[s.spec.name]
    for job, plan in plans:
        own = economics(plan.campaign.chip, scenario.price_basis, scenario.site)
        out[job.name] = column.get(job.name, np.zeros(hours)) * (plan.chip_w.value + own.beside_w) * own.pue
    # Other jobs: as busy as training where there is some, else at the power limit (an upper bound).
    busy_w = (plans[0][1].chip_w.value + base.beside_w) * base.pue if plans else float(base.watts(np.array(1.0), 1e18))
    out["other jobs"] = column.get("other jobs", np.zeros(hours)) * busy_w
    down = week.hourly[:, len(week.kinds) + 1]
    out["idle"] = np.maximum(week.total_chips - week.used_chips() - down, 0.0) * idle_w
    return out, base.power_log_sigma


def _money(scenario: CloudScenario, hours: float) -> tuple[Estimate, dict[str, Estimate]]:
    """What the whole cluster costs, used or not, and a chip-hour by chip."""
    by_chip = {
        p.chip: chip_hour(chip_by_name(p.chip), scenario.price_basis, site=scenario.site).usd for p in scenario.pools
    }
    return total(by_chip[p.chip] * float(p.servers * p.chips_per_server * hours) for p in scenario.pools), by_chip


def _estimate(e: Estimate) -> dict[str, Any]:
    return {"value": e.value, "lo": e.lo, "hi": e.hi, "driver": e.driver}


def run_cloud(
    scenario: CloudScenario, recorded: Mapping[str, Service], read_model: ReadModel, told: Told = lambda *_: None
) -> CloudWeek:
    """The week. ``recorded``: services by name with their customers. Raises TrivetError naming the field at fault."""
    for spec in scenario.services:
        if spec.name not in recorded:
            raise UnknownName(f"no record of {spec.name!r}", field="services", allowed=sorted(recorded))
        revenue_usd(spec.sold_as, 0.0, 0.0)  # an unknown price ends here, not after minutes
    names = [spec.name for spec in scenario.services]
    services = with_generated(recorded, names, scenario.generated_customers, scenario.seed)
    sized = _sized(services, scenario, read_model, told)
    plans = []
    for k, t in enumerate(scenario.training):
        told(f"training plan of {t.name}", k, len(scenario.training))
        plans.append(_training(t, scenario, read_model))
    customers = [f"{n}/{int(c)}" for n in names for c in services[n].clients]
    nodes = nodes_of(scenario)
    jobs = [j for s in sized for j in service_jobs(s, pool_of(scenario, s.chip))] + [j for j, _ in plans]
    jobs += mixed_jobs(scenario, customers)
    horizon = scenario.days * DAY_S
    failures = draw(nodes, llama3_faults(), horizon, scenario.seed, scenario.fault_scale)
    week = run_week(
        nodes,
        jobs,
        Rules(policy=scenario.policy, queue=scenario.queue, spares=scenario.spares),
        failures=failures,
        horizon_s=horizon,
        seed=scenario.seed,
        progress=lambda a, b: told("the week", a, b),
    )
    return _assemble(scenario, services, sized, plans, week, told)


def _assemble(
    scenario: CloudScenario,
    services: Mapping[str, Service],
    sized: Sequence[Sized],
    plans: Sequence[tuple[Job, training_plan.TrainingPlan]],
    week: Week,
    told: Told,
) -> CloudWeek:
    hours = float(scenario.days * 24)
    running = {s.spec.name: week.hourly[:, week.kinds.index(s.spec.name)] / s.chips_per_replica for s in sized}
    kept, watts, checks, entries = {}, {}, [], []
    for k, s in enumerate(sized):
        told("attainment and checks", k, len(sized))
        kept[s.spec.name], watts[s.spec.name], _ = attainment(s, running[s.spec.name])
        checks += check_hours(s, services[s.spec.name], scenario)
        entries.append(_service_entry(s, running[s.spec.name], kept[s.spec.name], watts[s.spec.name]))
    cost, by_chip = _money(scenario, hours)
    rows, metered = [], {}
    for s in sized:
        measured = meter(services[s.spec.name], scenario, told)
        metered[s.spec.name] = measured
        usd = float(running[s.spec.name].sum()) * s.chips_per_replica * by_chip[s.chip].value
        rows += bills(services[s.spec.name], measured, s, usd, scenario)
    power, sigma = _power(scenario, week, sized, watts, plans)
    site_w = np.sum(list(power.values()), axis=0)
    energy_kwh = Estimate(float(site_w.sum()) / 1e3, {"power": sigma})
    revenue = sum(r["revenue_usd"] for r in rows)
    serving = total(by_chip[s.chip] * float(running[s.spec.name].sum() * s.chips_per_replica) for s in sized)
    tokens = sum(r["input_tokens"] + r["output_tokens"] for r in rows) / scenario.sample
    serving_w = np.sum([power[s.spec.name] for s in sized], axis=0)
    summary = {
        "name": scenario.name,
        "chips": scenario.chips,
        "servers": sum(p.servers for p in scenario.pools),
        "pools": [
            {"chip": p.chip, "servers": p.servers, "chips_per_server": p.chips_per_server} for p in scenario.pools
        ],
        "days": scenario.days,
        "customers": len(rows),
        "customers_with_pooled_lengths": sum(not r["own_lengths"] for r in rows),
        "services": entries,
        "training": [_training_entry(j, p, week) for j, p in plans],
        "jobs": describe(week),
        "use": float(week.used_chips().mean()) / scenario.chips,
        "use_by_kind": {k: float(week.hourly[:, i].mean()) / scenario.chips for i, k in enumerate(week.kinds)},
        "power_mw_mean": float(site_w.mean()) / 1e6,
        "power_mw_peak": float(site_w.max()) / 1e6,
        "energy_kwh": _estimate(energy_kwh),
        "cost_usd": _estimate(cost),
        "serving_cost_usd": _estimate(serving),
        "serving_revenue_usd": revenue,
        "serving_margin": 1.0 - serving.value / revenue if revenue else None,
        "serving_tokens": tokens,
        "serving_usd_per_million_tokens": _estimate(serving * (1e6 / max(tokens, 1.0))),
        "serving_joules_per_token": float(serving_w.sum()) * HOUR_S / max(tokens, 1.0),
        "metering": _metering(scenario, metered.values()),
        "checks": checks,
        "check_error": check_error(checks),
        "seed": scenario.seed,
    }
    hourly = _hourly(week)
    hourly |= {f"watts: {k}": v for k, v in power.items()} | {f"slo: {k}": v for k, v in kept.items()}
    hourly |= {f"requests_per_s: {s.spec.name}": s.rate_per_s for s in sized}
    return CloudWeek(summary, hourly, sorted(rows, key=lambda r: -r["revenue_usd"]))


def _metering(scenario: CloudScenario, metered: Collection[Meter]) -> dict[str, Any]:
    if not all(m.adds_up for m in metered):
        raise TrivetError("the customers' tokens are not the stream's", field="metering")
    return {
        "share_of_requests_drawn": scenario.sample,
        "requests": sum(m.drawn_requests for m in metered),
        "input_tokens": sum(m.drawn_input_tokens for m in metered),
        "output_tokens": sum(m.drawn_output_tokens for m in metered),
        "adds_up_to_the_last_token": True,
    }


def _hourly(week: Week) -> dict[str, Floats]:
    """Chips by kind of job, and jobs, hour by hour."""
    hourly: dict[str, Floats] = {"hour": np.arange(len(week.hourly), dtype=float)}
    for i, kind in enumerate((*week.kinds, "queued", "down", "running jobs")):
        hourly[f"chips: {kind}" if kind != "running jobs" else kind] = week.hourly[:, i]
    return hourly
