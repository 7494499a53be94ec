"""A scenario, simulated: the numbers of ``summary.json`` with money and energy, and all that the files are made from."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from trivet.cloud.deployment import Deployment
from trivet.cloud.serving import _loop_state as k
from trivet.cloud.serving import metrics
from trivet.cloud.serving.adapters import adapters_of
from trivet.cloud.serving.fleet import Fleet, ServingResult, simulate
from trivet.cloud.serving.stream import SAMPLE, Streamed, blocks_of, on_clock, simulate_stream
from trivet.cloud.serving.tenants_traffic import WINDOW_S, Service, stream
from trivet.cloud.serving.traffic import Traffic
from trivet.errors import TrivetError
from trivet.loop.economics import economics, work
from trivet.loop.scenario import fleet_of, traffic_of
from trivet.loop.scenario_schema import Scenario, parse
from trivet.model.config import read as read_model

ReadTrace = Callable[[str, int | None], Traffic]
ReadClients = Callable[[str], Mapping[str, Service]]
MOST_ROWS = 10_000_000  # above so many requests: sketches, and one request in SAMPLE
TYPICAL = 20_000  # requests that stand for a long traffic where its mean lengths are asked for


@dataclass(frozen=True, slots=True, eq=False)
class Simulated:
    """What one run brings; ``streamed`` where there were too many requests to keep, and ``result`` is a sample of them."""

    scenario: Scenario
    summary: dict[str, Any]
    result: ServingResult
    deployments: tuple[Deployment, ...]
    notes: tuple[str, ...]
    streamed: Streamed | None = None


def run(
    raw: Mapping[str, Any],
    read_trace: ReadTrace,
    told: Callable[[str], None] = lambda _: None,
    *,
    read_clients: ReadClients | None = None,
    most_rows: int = MOST_ROWS,
    report: Callable[[str, int, int], None] = lambda *_: None,
) -> Simulated:
    """Simulate one scenario.

    Args:
        raw: the scenario as its file holds it.
        read_trace: reads the trace that it names.
        told: gets a line when something takes its time (the first run compiles the loop).
        read_clients: reads the statistics of customers that it names.
        most_rows: above so many requests there are sketches and a sample.
        report: (what, done, total) of a long run.

    Raises:
        TrivetError: naming the field of the scenario that is wrong.
    """
    scenario = parse(raw)
    model = read_model(scenario.model)
    source = _source(scenario, read_trace, read_clients)
    fleet, deployments = fleet_of(scenario, model, source.typical)
    say_if_compiling(told)
    streamed = None
    if source.count > most_rows:
        streamed = simulate_stream(
            source.blocks(), fleet, service=source.typical.name, every=SAMPLE, ttft_slo_s=scenario.slo.ttft_s,
            tpot_slo_s=scenario.slo.tpot_s, adapters=adapters_of(source.typical),
            report=lambda sent: report("simulating", sent, source.count),
        )  # fmt: skip
        result, summary = streamed.sample, metrics.summary_streamed(streamed)
        outputs = streamed.sketches.counters()["output_tokens"]
    else:
        traffic = source.whole()
        result = simulate(traffic, fleet)
        summary = metrics.summary(result, scenario.slo.ttft_s, scenario.slo.tpot_s)
        if traffic.priority is not None:
            summary["priorities"] = metrics.by_priority(result, traffic.priority)
        outputs = int(result.output_tokens[result.status == k.DONE].sum())
    money = money_and_energy(result, deployments, scenario.price_basis, scenario.site, outputs)
    notes = _notes(scenario, deployments)
    head = _head(scenario, source.typical.name, model.name, fleet, deployments)
    whole = {**head, **summary, **money, "notes": list(notes)}
    return Simulated(scenario, whole, result, deployments, notes, streamed)


@dataclass(frozen=True, slots=True, eq=False)
class _Source:
    """Traffic that may be too long to hold: how many requests, some that stand for all, and all of them in blocks."""

    count: int
    typical: Traffic
    blocks: Callable[[], Iterator[Traffic]]
    whole: Callable[[], Traffic]


def _source(scenario: Scenario, read_trace: ReadTrace, read_clients: ReadClients | None) -> _Source:
    part = scenario.traffic.customers
    if part is None:
        traffic = traffic_of(scenario, read_trace)
        return _Source(len(traffic), traffic, lambda: blocks_of(traffic), lambda: traffic)
    others = scenario.traffic.model_dump(exclude={"customers", "rate_scale"}, exclude_defaults=True)
    if others:
        raise TrivetError(
            "does not go with customers", field=f"traffic.{next(iter(others))}", allowed="customers, rate_scale"
        )
    if read_clients is None:
        raise TrivetError("no statistics of customers here", field="traffic.customers")
    services = read_clients(part.source)
    if part.service not in services:
        raise TrivetError(f"unknown {part.service!r}", field="traffic.customers.service", allowed=sorted(services))
    service, rate, seed = services[part.service], scenario.traffic.rate_scale, scenario.seed
    start = part.day * 86400.0 + part.start_h * 3600.0
    span = {"start_s": start, "end_s": start + part.hours * 3600.0, "seed": seed}

    def blocks(factor: float = rate) -> Iterator[Traffic]:
        return on_clock(stream(service, rate=factor, **span), start)  # type: ignore[arg-type]

    windows = np.arange(round(start / WINDOW_S), round(span["end_s"] / WINDOW_S)) % service.windows
    count = round(float(service.requests[:, windows].sum()) * rate)
    thin = _joined(blocks(rate * min(1.0, TYPICAL / max(count, 1))))
    return _Source(count, thin, blocks, lambda: _joined(blocks()))


def _joined(blocks: Iterator[Traffic]) -> Traffic:
    """Blocks of customers' traffic as one."""
    parts = list(blocks)
    names = ("arrival_s", "input_tokens", "output_tokens", "client")
    columns: dict[str, Any] = {name: np.concatenate([getattr(p, name) for p in parts]) for name in names}
    return replace(parts[0], **columns)


def _head(
    scenario: Scenario, traffic: str, model: str, fleet: Fleet, deployments: tuple[Deployment, ...]
) -> dict[str, Any]:
    return {
        "title": scenario.title, "model": model, "traffic": traffic, "router": scenario.router,
        "replicas": [_kind(d, kind) for d, kind in zip(deployments, fleet.kinds, strict=True)],
    }  # fmt: skip


_told: Callable[[str], None] | None = None  # who hears of the next compilation; None until somebody asked


def say_if_compiling(told: Callable[[str], None]) -> None:
    """From now on ``told`` gets a line whenever a form of the loop has no compiled copy on this machine yet."""
    global _told
    if _told is None:
        from numba.core import event

        event.register("numba:compile", _listener(event.Listener))
    _told = told


def _listener(base: Any) -> Any:
    class Compiling(base):  # type: ignore[misc]
        def on_start(self, event: Any) -> None:
            function = getattr(event.data["dispatcher"], "py_func", None)
            if _told is not None and getattr(function, "__name__", "") == "advance":
                _told("compiling the event loop, once on this machine for what this scenario needs: about 15 s")

        def on_end(self, event: Any) -> None:
            pass

    return Compiling()


def _kind(deployment: Deployment, kind: Any) -> dict[str, Any]:
    layout = deployment.layout
    return {
        "chip": deployment.chip.name, "role": kind.role, "replicas": kind.count, "chips_per_replica": kind.chips,
        "engine": deployment.settings.engine, "tp": layout.tp, "pp": layout.pp,
        "attention_dp": layout.attention_dp, "moe_ep": layout.moe_ep,
        "kv_blocks": kind.kv_blocks, "kv_tokens": kind.kv_blocks * kind.settings.block_size,
        "max_num_seqs": kind.settings.max_num_seqs, "max_num_batched_tokens": kind.settings.max_num_batched_tokens,
        "step_log_sigma": kind.table.log_sigma,
    }  # fmt: skip


def money_and_energy(
    result: ServingResult, deployments: tuple[Deployment, ...], basis: str, site: str, output_tokens: float
) -> dict[str, Any]:
    """Cost of the chips while they were up, and energy at the site's meter from what they did."""
    usd, joules, price_sigma, power_sigma = 0.0, 0.0, 0.0, 0.0
    number = metrics.kind_of(result)
    for at, (deployment, kind) in enumerate(zip(deployments, result.fleet.kinds, strict=True)):
        rows = result.replicas[number == at]
        up_s = float(rows[:, k.R_UP_TIME].sum()) / k.PS
        busy_s = float(rows[:, k.R_BUSY].sum()) / k.PS
        money, task = economics(deployment.chip, basis, site), work(deployment)
        usd += up_s * kind.chips * money.usd_per_chip_s
        tokens = float(rows[:, k.R_DECODED].sum() + rows[:, k.R_PREFILLED].sum())
        # Every step reads the weights once, and every decoded token the context of its sequence.
        kv_tokens = (
            float(rows[:, k.R_KV_TIME].sum())
            * kind.settings.block_size
            / max(float(rows[:, k.R_BUSY].sum()) / 1e6, 1e-12)
        )
        steps = float(rows[:, k.R_DONE_STEPS].sum())
        moved = steps * (task.weight_bytes + kv_tokens * task.kv_bytes_per_token)
        time_s = max(up_s, 1e-12)
        watts = float(money.watts(np.asarray(busy_s / time_s), tokens * task.flops_per_token / time_s, moved / time_s))
        joules += watts * up_s * kind.chips
        price_sigma, power_sigma = max(price_sigma, money.price_log_sigma), max(power_sigma, money.power_log_sigma)
    outputs = output_tokens
    per_million = 1e6 / outputs if outputs else None
    return {
        "cost": {
            "usd": usd, "usd_per_million_output_tokens": None if per_million is None else usd * per_million,
            "basis": basis, "log_sigma": price_sigma,
        },
        "energy": {
            "joules": joules, "joules_per_output_token": joules / outputs if outputs else None, "log_sigma": power_sigma,
        },
    }  # fmt: skip


def _notes(scenario: Scenario, deployments: tuple[Deployment, ...]) -> tuple[str, ...]:
    notes = []
    if scenario.outages and any(part.racks for part in scenario.outages):
        notes.append(f"A rack is taken as {scenario.servers_per_rack} servers (servers_per_rack).")
    if any(d.layout.attention_dp > 1 for d in deployments):
        notes.append(
            "Attention-DP ranks are simulated as replicas that wait for nobody (engine.lock_step: false)."
            if scenario.engine.lock_step is False
            else "The attention-DP ranks of an engine with experts share every step: all wait for the slowest."
        )
    if len({d.settings.engine for d in deployments}) == 1 and deployments[0].settings.speculative_tokens:
        notes.append("Speculative decoding advances every sequence by the expected tokens of a step.")
    return tuple(notes)
