"""Claims about the cloud, the models and the loop: clusters, one scheduler for 5,000 servers, M6, customers, capital."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from trivet.chip.catalogue import chip as chip_by_name
from trivet.chip.estimate import Estimate
from trivet.cloud.cluster.nodes import WHOLE, uniform_cluster
from trivet.cloud.cluster.placement import schedule
from trivet.cloud.cluster.tasks import Task
from trivet.cloud.cost import capital_usd
from trivet.cloud.energy import provisioned_facility_w
from trivet.loop import cloud_scenario, cloud_week, training_plan, training_scenario
from trivet.loop.claim import Bench, Claim, Figure, exceeds, verdict
from trivet.loop.claims_chips import SERVED_PER_S, SERVED_TOKENS, SUBJECT, serving
from trivet.model.config import read as read_model
from trivet.units import Z80

RMB_PER_USD = 7.2
CAPITAL_RMB = 380e9
AI_SHARE = Estimate(0.6, {"share of the capital spent on AI servers": 0.25})  # assumed: no breakdown is published
UTILISATION = Estimate(0.5, {"mean use of the fleet": 0.3})  # assumed


def _estimate(name: str, e: Estimate, unit: str, note: str = "") -> Figure:
    return Figure(
        name, e.value, e.lo, e.hi, unit, f"driven by {e.driver}" + (f"; {note}" if note else "") if e.driver else note
    )


def capital(bench: Bench) -> Claim:
    """380 billion RMB as cards, megawatts and tokens a day."""
    usd = CAPITAL_RMB / RMB_PER_USD
    figures = []
    for name in (SUBJECT, "h20"):
        chip = chip_by_name(name)
        cards = (AI_SHARE * usd) / capital_usd(chip)
        megawatts = cards * provisioned_facility_w(chip, site="alibaba") * 1e-6
        chips, sigma = serving(bench, name)
        per_chip = Estimate(SERVED_PER_S * sum(SERVED_TOKENS) / chips * 86400.0, {"timing model": sigma})
        tokens = cards * per_chip * UTILISATION
        figures += [
            _estimate(f"{name}: cards", cards, "cards"),
            _estimate(f"{name}: power at the meter", megawatts, "MW"),
            _estimate(f"{name}: tokens a day of Qwen3-32B (1,200 in, 250 out)", tokens * 1e-12, "trillion"),
        ]
    return Claim(
        "capital", "At least 380 billion RMB in three years", "capital cost of a card with its server and network; power at the "
        "meter; serving under SLO", "quantified", None,
        "the price of an 810E, the share of the capital that buys AI servers, the fleet's mean use", tuple(figures),
        f"The plan itself is published and not tested; these figures say what it buys at {RMB_PER_USD:g} RMB a dollar if "
        "60% of it (an assumption, 80% interval 44-83%) goes into AI servers with their network.",
    )  # fmt: skip


def one_cluster(bench: Bench) -> Claim:
    """5,000 servers under one scheduler: tasks placed a second, and how full the cluster gets."""
    rng = np.random.default_rng(bench.seed)
    servers, chips = 5000, 8
    nodes = uniform_cluster(servers, chips, "server")
    sizes = rng.choice([0, 1, 2, 4, 8], size=30_000, p=[0.2, 0.45, 0.15, 0.1, 0.1])
    shares = np.where(
        (sizes == 1) & (rng.random(len(sizes)) < 0.4), rng.choice([250, 500, 750], size=len(sizes)), WHOLE
    )
    tasks = [
        Task(f"t{i:06d}", int(max(size, 0.5) * 8000), int(max(size, 0.5) * 65536), int(size), int(share) if size else 0)
        for i, (size, share) in enumerate(zip(sizes, shares, strict=True))
    ]
    asked = sum(task.total_milli for task in tasks) / (servers * chips * WHOLE)
    placed = schedule(nodes, tasks, "bestfit", seed=bench.seed)
    full = placed.allocation_percent()
    wanted = min(100.0 * asked, 100.0)
    # A count, not an estimate: the tasks are placed or they are not.
    probability = 1.0 if full >= 0.95 * wanted else 0.0
    return Claim(
        "one-cluster", "Apsara put 5,000 servers into one cluster", "one scheduler over 5,000 servers, 30,000 tasks, BestFit",
        verdict(probability), probability,
        "the control plane's own limits (heartbeats, storage of state), which are not simulated",
        (
            Figure("chips allocated", full, full, full, "%", f"{100 * asked:.0f}% asked for"),
        ),
        "How many placements a second: benchmarks/schedule.py (a duration would differ from run to run).",
    )  # fmt: skip


WORKABLE = 0.9  # effective training time; Llama 3's cluster of 16,384 reported over 90%, ByteRobust's of 9,600 97%


def ten_thousand_cards(bench: Bench) -> Claim:
    """Training Qwen3-235B-A22B on 1,024 and on 10,240 cards: effective training time, and what scaling costs."""

    def planned(chips: int) -> training_plan.TrainingPlan:
        campaign = training_plan.Campaign(read_model("Qwen/Qwen3-235B-A22B"), chip_by_name(SUBJECT), chips, 36e12)
        found: training_plan.TrainingPlan = bench.once(f"training plan {chips}", lambda: training_plan.plan(campaign))
        return found

    small, large = planned(1024), planned(10_240)
    good = large.goodput
    # What is lost is small and spreads like a log-normal; the goodput is its complement.
    lost = 1.0 - good.share.value
    sigma = math.log(max(1.0 - good.lo, 1e-6) / lost) / Z80
    probability = 1.0 - exceeds(math.log(lost), sigma, 1.0 - WORKABLE)
    scaling = large.best.result.tokens_per_s_per_chip / small.best.result.tokens_per_s_per_chip
    hours = good.mean_time_between_failures_s / 3600.0
    return Claim(
        "ten-thousand-cards", "Clusters of 10,000 Zhenwu 810E cards work",
        f"training plan of Qwen3-235B-A22B with failures, checkpoints and restarts: effective time of at least {WORKABLE:g}",
        verdict(probability), probability,
        "the 810E's own failure rate (other chips' are used) and the fabric's congestion at scale",
        (
            Figure("effective training time at 10,240 cards", good.share.value, good.lo, good.hi, "", "", probability),
            Figure("time between failures", hours, hours, hours, "h"),
            Figure("speed of a card at 10,240 over 1,024, the batch of 16 M tokens unchanged", scaling, scaling, scaling, ""),
            _estimate("days for 36 trillion tokens", large.days, "days"),
        ),
    )  # fmt: skip


# arXiv 2110.03888. The pseudo stage shares one layer's weights (parameter sharing); the tokens are not published.
M6 = {
    "model": "m6-10t", "chip": "v100-32gb", "chips": 512, "tokens": "100B", "seq_len": 512, "batch_tokens": "2M",
    "precision": "fp16",
    "shape": {"layers": 48, "hidden": 1024, "heads": 16, "kv_heads": 16, "head_dim": 64, "intermediate": 9984, "gated": False,
              "vocab": 50000, "experts": 10240, "top_k": 1},
    "split": {"tp": 1, "pp": 1, "dp": 512, "ep": 512},
    "job": {"micro_batch": 8, "global_batch": 4096, "parameter_sharing": 48, "optimizer": "adafactor", "offload_optimizer": "cpu",
            "recompute": "full"},
}  # fmt: skip
M6_TOKENS = Estimate(100e9, {"tokens of the run": 0.5})  # assumed: 100 billion, 80% interval 53-190


def m6(bench: Bench) -> Claim:
    """M6: ten trillion parameters on 512 V100-32GB within 10 days."""
    campaign = training_scenario.campaigns(M6)[0]
    plan: training_plan.TrainingPlan = bench.once("m6", lambda: training_plan.plan(campaign))
    days = plan.days * (M6_TOKENS * (1.0 / campaign.tokens))
    fits = plan.best.result.fits
    probability = (1.0 - exceeds(math.log(days.value), days.log_sigma, 10.0)) if fits else 0.0
    parameters = float(campaign.architecture.parameters)
    peak = plan.best.result.peak.total
    return Claim(
        "m6", "M6 reached ten trillion parameters on 512 V100-32GB within 10 days",
        "training plan of the published shape: the shared stage, Adafactor in host memory, full recompute",
        verdict(probability), probability, "the tokens of the run, which the paper does not state",
        (
            Figure("parameters of the published shape", parameters * 1e-12, parameters * 1e-12, parameters * 1e-12, "trillion"),
            _estimate("days for 100 billion tokens, give or take a factor of 1.9", days, "days"),
            Figure("memory of the fullest card", peak * 1e-9, peak * 1e-9, peak * 1e-9, "GB", "of 34 GB"),
        ),
        "The ten trillion are trained shared first; the delinked stage streams its experts from host memory "
        "(examples/training/m6_10t_real.yaml).",
    )  # fmt: skip


def customers(bench: Bench) -> Claim:
    """400 customers of four services on 16,384 cards beside a 235B pre-training job: do the services keep their SLO?"""
    text = "Several clusters of 10,000 cards serve more than 400 customers"
    method = "one day of the cloud on 16,384 Zhenwu 810E: 386 recorded and 14 generated customers, training, jobs, failures"
    change = "the models that the services run (assumed) and the step times of the 810E"
    if bench.clients is None:
        return Claim("customers", text, method, "not computed", None, "a record of customers to compute with")
    read = bench.clients
    scenario = cloud_scenario.parse({**CLOUD_DAY, "seed": bench.seed})
    found: Any = bench.once("cloud day", lambda: cloud_week.run_cloud(scenario, read(scenario.customers), read_model))
    summary = found.summary
    services = summary["services"]
    metered = float(summary["customers"])
    figures = [Figure("customers metered", metered, metered, metered)]
    # The cards that the services need at their peak against those that the cluster has beside its training job.
    room = float(summary["chips"] - sum(spec.chips for spec in scenario.training))
    value, lo, hi = (sum(float(s["chips_at_peak"][k] or math.inf) for s in services) for k in ("value", "lo", "hi"))
    sigma = math.log(hi / lo) / (2 * Z80) if math.isfinite(hi) else 1.0
    probability = 1.0 - exceeds(math.log(value), sigma, room)
    figures.append(
        Figure(
            "cards that the services need at their peak",
            value,
            lo,
            min(hi, 1e9),
            "",
            f"{room:,.0f} are free",
            probability,
        )
    )
    for s in services:
        kept = float(s["slo_attainment"])
        figures.append(Figure(f"{s['service']}: requests within SLO", kept, kept, kept, "", str(s["model_assumed"])))
    return Claim("customers", text, method, verdict(probability), probability, change, tuple(figures))


# As examples/ten_thousand_cards.yaml, one day of it. Which models the services run is assumed.
CLOUD_DAY: dict[str, Any] = {
    "name": "Zhenwu 810E, one day",
    "days": 1,
    "pools": [{"chip": SUBJECT, "servers": 1024, "chips_per_server": 16}],
    "services": {
        "m-small": {"model": "Qwen/Qwen3-30B-A3B", "sold_as": "qwen-flash"},
        "m-mid": {"model": "Qwen/Qwen3-32B", "sold_as": "qwen-plus"},
        "m-large": {"model": "Qwen/Qwen3-235B-A22B", "sold_as": "qwen3-max"},
        "deepseek-r1": {"model": "deepseek-ai/DeepSeek-R1", "sold_as": "qwen3-max", "tpot_s": 0.1},
    },
    "training": [{"name": "pretrain-235b", "model": "Qwen/Qwen3-235B-A22B", "chips": 7680, "tokens": 36e12}],
    "jobs": {"count": 2000, "load": 0.1},
    "generated_customers": 14,
}


def strategy(bench: Bench) -> Claim:
    """Only Alibaba and Google hold all three legs."""
    del bench
    return Claim(
        "full-stack", "Only Alibaba and Google hold chip, cloud and model together; four clouds hold over 80% of the market",
        "not computed: facts of ownership and of the market, not of a stack", "not computed", None,
        "market data, which Trivet does not hold",
    )  # fmt: skip


CLOUD_CLAIMS: dict[str, Callable[[Bench], Claim]] = {
    "ten-thousand-cards": ten_thousand_cards,
    "one-cluster": one_cluster,
    "m6": m6,
    "customers": customers,
    "capital": capital,
    "full-stack": strategy,
}
