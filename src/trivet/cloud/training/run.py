"""The long run: checkpoints, failures, recovery, and what share of the time trains.

With failures at rate ``L`` (a Poisson process over all chips), a checkpoint that stops training for ``d`` seconds every
``T`` seconds of work, and a recovery of ``R`` seconds, the expected time of a segment is (Daly, FGCS 22 (2006), eq. 13)

    E(T) = (1/L) e^(L R) (e^(L (T + d)) - 1)        goodput = T / E(T)

Its exact optimum solves ``e^(L (T + d)) (1 - L T) = 1``: ``L T = 1 + W(-e^(-1 - L d))`` (W: Lambert's function).
Young's ``sqrt(2 d / L)`` (CACM 17 (1974)) and Daly's estimate are its approximations for ``L d << 1``.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, replace
from functools import lru_cache
from importlib import resources
from typing import Any

import numpy as np

from trivet.chip.estimate import Estimate, between
from trivet.chip.spec import Chip
from trivet.cloud import storage
from trivet.cloud.fabric import Server
from trivet.errors import TrivetError
from trivet.units import DAY_S, HOUR_S, Z80

CHECKPOINTS = ("sync", "async", "memory")
TARGETS = ("nvme", "object_store")
# Barrier, serialisation and book-keeping that stop training whatever the bytes: PyTorch's asynchronous distributed
# checkpoints stop a 7B job 6.3 s (PyTorch blog, 2024), in-memory ones about a second.
_FIXED_STOP = {
    "sync": between(3.0, 12.0, "fixed stop of a checkpoint"),
    "async": between(3.0, 12.0, "fixed stop of a checkpoint"),
    "memory": between(0.5, 3.0, "fixed stop of a checkpoint"),
}
CHECKPOINT_BYTES = 14.0  # a parameter: BF16 weight, FP32 master and two moments


@lru_cache(maxsize=1)
def _failures() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(
        (resources.files("trivet.data") / "calibration" / "training_failures.json").read_text("utf-8")
    )
    return found


def failure_rates() -> dict[str, float]:
    """Unexpected interruptions a chip and second by component (Llama 3's table)."""
    return {r["component"]: r["count"] / r["chip_days"] / DAY_S for r in _failures()["rates"]}


def component_kinds() -> dict[str, str]:
    """component -> chip, host, network or software."""
    return {r["component"]: r["kind"] for r in _failures()["rates"]}


def chip_failure_rate() -> Estimate:
    """Interruptions a chip and second: the geometric middle of three published fleets, their range as the interval."""
    totals = [t["per_chip_day"] / DAY_S for t in _failures()["totals"]]
    middle = math.exp(float(np.mean(np.log(totals))))
    return between(min(totals), max(totals), "failure rate of a chip", middle)


@dataclass(frozen=True, slots=True)
class Recovery:
    """What follows a failure, seconds."""

    detection_s: Estimate
    localisation_s: Estimate
    restart_s: Estimate

    @property
    def total_s(self) -> Estimate:
        return self.detection_s + self.localisation_s + self.restart_s


def recovery(kind: str) -> Recovery:
    """A published practice: "managed" (watchdogs, standby machines) or "plain" (time-outs and a rescheduled job)."""
    known = _failures()["recovery"]
    if kind not in known:
        raise TrivetError(f"unknown recovery {kind!r}", field="recovery", allowed=sorted(known))
    raw = known[kind]

    def part(name: str) -> Estimate:
        lo, hi = raw[f"{name}_s"]
        return between(float(lo), float(hi), f"{name} after a failure")

    return Recovery(part("detection"), part("localisation"), part("restart"))


@dataclass(frozen=True, slots=True)
class RunPlan:
    """How a long run protects itself.

    ``checkpoint``: "sync" stops until the bytes are on the target; "async" stops for the copy to host memory, the rest
    goes on behind; "memory" is async with a peer's host memory to restart from. ``interval_s`` 0 = the best one.
    ``spares`` are chips that stand by (warm, not paid as working); ``elastic`` goes on with fewer replicas when they run out.
    """

    checkpoint: str = "async"
    target: str = "nvme"
    interval_s: float = 0.0
    recovery: str = "managed"
    spares: int = -1  # -1 = enough for 99.9% of the time
    elastic: bool = False
    repair_s: float = 24 * HOUR_S  # until a failed server is back
    planned_share: float = 0.002  # planned stops: 47 of 54 days' 466 interruptions at minutes each

    def __post_init__(self) -> None:
        for name, allowed in (("checkpoint", CHECKPOINTS), ("target", TARGETS)):
            if getattr(self, name) not in allowed:
                raise TrivetError(f"unknown value {getattr(self, name)!r}", field=name, allowed=allowed)


@dataclass(frozen=True, slots=True)
class Goodput:
    """Share of the time that trains, and its parts. Times in seconds."""

    share: Estimate
    mean_time_between_failures_s: float
    interval_s: float
    young_s: float
    daly_s: float
    checkpoint_stop_s: float
    checkpoint_write_s: float
    restart_s: float
    spares: int
    lo: float  # 80% interval of the share: its complement is what spreads
    hi: float
    lost: dict[str, float]  # share of the time: checkpoints, recovery, lost work, waiting, planned
    failures_by_component: dict[str, float]  # expected a day


def best_interval_s(rate_per_s: float, stop_s: float) -> float:
    """Work between checkpoints that maximises goodput, exact; infinite without failures, and the limit 0 without a stop."""
    if rate_per_s <= 0:
        return math.inf
    if stop_s <= 0:
        return 0.0
    a = rate_per_s * stop_s
    # solve g(x) = x + log(1 - x) + a = 0 for x = L T in (0, 1); concave, Newton from Young's estimate
    x = min(math.sqrt(2 * a), 0.999)
    for _ in range(100):
        step = (x + math.log1p(-x) + a) / (-x / (1 - x))
        new = min(max(x - step, x / 4), 1 - (1 - x) / 4)
        if abs(new - x) < 1e-14:
            break
        x = new
    return x / rate_per_s


def daly_interval_s(rate_per_s: float, stop_s: float) -> float:
    """Daly's higher-order estimate (2006, eq. 37)."""
    m = 1.0 / rate_per_s
    if stop_s >= 2 * m:
        return m
    ratio = stop_s / (2 * m)
    return math.sqrt(2 * stop_s * m) * (1 + math.sqrt(ratio) / 3 + ratio / 9) - stop_s


def segment_share(rate_per_s: float, interval_s: float, stop_s: float, recovery_s: float) -> float:
    """Goodput of work ``interval_s`` between stops of ``stop_s`` under failures."""
    if rate_per_s <= 0:
        return interval_s / (interval_s + stop_s)
    expected = (
        math.exp(min(rate_per_s * recovery_s, 500.0))
        / rate_per_s
        * math.expm1(min(rate_per_s * (interval_s + stop_s), 500.0))
    )
    return interval_s / expected


def spares_needed(failed_mean: float, group: int, share: float = 0.999) -> int:
    """Spare chips, in whole servers of ``group``, that suffice ``share`` of the time when ``failed_mean`` servers are
    under repair on average (Poisson)."""
    total = term = math.exp(-failed_mean)
    count = 0
    while total < share and count < 10_000:
        count += 1
        term *= failed_mean / count
        total += term
    return count * group


def _shortage(failed_mean: float, servers: int) -> tuple[float, float]:
    """(probability that more than ``servers`` are under repair, mean number beyond them)."""
    term, below, beyond = math.exp(-failed_mean), 0.0, failed_mean - servers
    for k in range(servers + 1):
        below += term
        beyond += (servers - k) * term
        term *= failed_mean / (k + 1)
    return max(0.0, 1.0 - below), max(0.0, beyond)


@dataclass(frozen=True, slots=True)
class Setting:
    """What the run's protection needs to know of the job."""

    chips: int
    parameters: float
    step_s: float
    replicas: int
    chip: Chip
    server: Server
    held_bytes: float = 0.0  # states that one chip reads when it restarts; 0 = an even share of every replica's copy


def goodput(setting: Setting, plan: RunPlan) -> Goodput:
    """Expected share of effective training time, with the spread of rates, recovery and storage."""
    base = _evaluate(setting, plan, {})
    names = {
        **chip_failure_rate().spread,
        **recovery(plan.recovery).total_s.spread,
        **_write_s(setting, plan).spread,
        **_FIXED_STOP[plan.checkpoint].spread,
    }
    fixed = replace(plan, interval_s=base.interval_s)  # spares follow the rate that the fleet shows
    spread = {}
    for name in names:
        up, down = (_evaluate(setting, fixed, {name: z}).share.value for z in (1.0, -1.0))
        if up > 0 and down > 0:
            spread[name] = math.log(up / down) / 2
    share = Estimate(base.share.value, {n: s for n, s in spread.items() if abs(s) > 1e-9})
    lost = 1.0 - share.value
    widen = math.exp(Z80 * share.log_sigma * share.value / lost) if lost > 0 else 1.0
    return replace(base, share=share, lo=max(0.0, 1.0 - lost * widen), hi=1.0 - lost / widen)


def _moved(e: Estimate, shift: dict[str, float]) -> float:
    """The estimate with named factors moved by some of their standard deviations."""
    return e.value * math.exp(sum(e.spread.get(name, 0.0) * z for name, z in shift.items()))


def _write_s(setting: Setting, plan: RunPlan) -> Estimate:
    size = CHECKPOINT_BYTES * setting.parameters
    # one replica's states are written once, all chips sharing the work
    return storage.write_checkpoint_s(size, setting.chips, setting.server, setting.chip, plan.target)


def _evaluate(setting: Setting, plan: RunPlan, shift: dict[str, float]) -> Goodput:
    per_chip = _moved(chip_failure_rate(), shift)
    rate = per_chip * setting.chips
    after = recovery(plan.recovery)
    size = CHECKPOINT_BYTES * setting.parameters
    write = _moved(_write_s(setting, plan), shift)
    copy = _moved(storage.write_checkpoint_s(size, setting.chips, setting.server, setting.chip, "host_memory"), shift)
    stop = (write if plan.checkpoint == "sync" else copy) + _moved(_FIXED_STOP[plan.checkpoint], shift)
    # every replica reads its own copy; in memory a peer's host holds it
    held = setting.held_bytes or size * setting.replicas / setting.chips
    source = "host_memory" if plan.checkpoint == "memory" else plan.target
    read = _moved(storage.load_weights_s(held, setting.server, setting.chip, source), shift)
    recover = _moved(after.total_s, shift) + read
    least = 0.0 if plan.checkpoint == "sync" else copy + (0.0 if plan.checkpoint == "memory" else write)
    interval = plan.interval_s or max(best_interval_s(rate, stop), least, setting.step_s)
    # an asynchronous checkpoint is safe only when its bytes have landed: a failure loses that much more
    behind = write if plan.checkpoint == "async" else 0.0
    share = segment_share(rate, interval, stop, recover + behind)
    hardware = sum(r for c, r in failure_rates().items() if component_kinds()[c] != "software") / sum(
        failure_rates().values()
    )
    failed_mean = rate * hardware * plan.repair_s
    group = setting.server.chips
    spares = plan.spares if plan.spares >= 0 else spares_needed(failed_mean, group)
    chance, beyond = _shortage(failed_mean, spares // group)
    waiting = chance
    if plan.elastic:
        # a replica that lacks one server rests; the others take its share of the batch
        per_replica = setting.chips / setting.replicas
        waiting = min(1.0, math.ceil(beyond) * max(per_replica, group) / setting.chips * chance if beyond else 0.0)
    available = share * (1 - waiting) * (1 - plan.planned_share)
    young = math.sqrt(2 * stop / rate) if rate else math.inf
    stops = stop / (interval + stop)
    recovering = rate * recover
    lost = {
        "checkpoints": stops,
        "recovery": recovering,
        "lost work": max(0.0, 1 - share - stops - recovering),
        "waiting for servers": waiting,
        "planned": plan.planned_share,
    }
    scale = per_chip / sum(failure_rates().values()) * setting.chips * DAY_S
    return Goodput(
        Estimate(available),
        1 / rate if rate else math.inf,
        interval,
        young,
        daly_interval_s(rate, stop) if rate else math.inf,
        stop,
        write,
        recover,
        spares,
        available,
        available,
        lost,
        {c: r * scale for c, r in failure_rates().items()},
    )
