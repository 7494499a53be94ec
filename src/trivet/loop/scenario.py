"""From a serving scenario to the traffic and the fleet that it means."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from pydantic import ValidationError

from trivet.chip.catalogue import chip as find_chip
from trivet.cloud import engine, fabric, storage
from trivet.cloud.deployment import Deployment, EngineSettings
from trivet.cloud.engine.lora import lora_cost
from trivet.cloud.engine.vision import encode_table
from trivet.cloud.serving.adapters import Adapters
from trivet.cloud.serving.autoscale import Autoscale, cold_start_s
from trivet.cloud.serving.batching import BATCHING, batching
from trivet.cloud.serving.faults import LinkOutage, Outage, Retries
from trivet.cloud.serving.fleet import Admission, Fleet, ReplicaKind, Transfer
from trivet.cloud.serving.generate import (
    closed_loop,
    conversations,
    open_loop,
    with_adapters,
    with_images,
    with_reasoning,
)
from trivet.cloud.serving.kvcache import Tier
from trivet.cloud.serving.traffic import Traffic
from trivet.errors import DoesNotFit, TrivetError
from trivet.loop.economics import kv_transfer_s
from trivet.loop.scenario_schema import EnginePart, Generate, Group, OutagePart, Scenario, TierPart, TrafficPart
from trivet.model import memory
from trivet.model.architecture import Architecture
from trivet.model.parallel import Layout


def traffic_of(scenario: Scenario, read_trace: Callable[[str, int | None], Traffic]) -> Traffic:
    """The traffic of a scenario; ``read_trace(name or path, limit)`` reads files."""
    part = scenario.traffic
    if bool(part.trace) == bool(part.generate):
        raise TrivetError("name a trace or generate one", field="traffic", allowed="trace: NAME, or generate: {...}")
    if part.trace:
        traffic = read_trace(part.trace, part.limit)
    else:
        traffic = _generated(part.generate, scenario.seed)  # type: ignore[arg-type]
    if part.adapters is not None:
        a = part.adapters
        traffic = with_adapters(traffic, a.count, zipf=a.zipf, share=a.share, seed=scenario.seed)
    if part.rate_scale != 1.0:
        traffic = traffic.scaled(part.rate_scale)
    return _resized(traffic, part)


def _generated(g: Generate, seed: int) -> Traffic:
    traffic = _arrivals(g, seed)
    thinking: Any = g.thinking
    if thinking:
        traffic = with_reasoning(traffic, thinking, seed=seed)
    if g.images is not None:
        tokens: Any = g.images.tokens
        traffic = with_images(traffic, tokens, share=g.images.share, seed=seed)
    if g.urgent_share:
        urgent = np.random.default_rng([seed, 7]).random(len(traffic)) < g.urgent_share
        traffic = replace(traffic, priority=np.where(urgent, 0, 1))
    return traffic


def _arrivals(g: Generate, seed: int) -> Traffic:
    inputs: Any = g.inputs
    outputs: Any = g.outputs
    turns: Any = g.turns
    if g.kind == "closed_loop":
        return closed_loop(g.requests, concurrency=g.concurrency, inputs=inputs, outputs=outputs, seed=seed)
    if g.kind == "conversations":
        return conversations(
            g.requests, rate_per_s=g.rate_per_s, turns=turns, inputs=inputs, outputs=outputs,
            system_tokens=g.system_tokens, think_s=g.think_s, process=g.process, cv=g.cv, seed=seed,
        )  # fmt: skip
    return open_loop(
        g.requests, rate_per_s=g.rate_per_s, inputs=inputs, outputs=outputs, process=g.process, cv=g.cv, seed=seed
    )


def _resized(traffic: Traffic, part: TrafficPart) -> Traffic:
    change: dict[str, Any] = {}
    if part.input_scale != 1.0:
        change["input_tokens"] = np.maximum(np.rint(traffic.input_tokens * part.input_scale), 1).astype(np.int32)
        if traffic.image_tokens is not None:
            images = np.rint(traffic.image_tokens * part.input_scale).astype(np.int32)
            change["image_tokens"] = np.minimum(images, change["input_tokens"])
        if traffic.hash_ids is not None:  # lengths no longer match the hashed blocks
            change |= {"hash_ids": None, "hash_offsets": None, "block_tokens": 0}
    if part.output_scale != 1.0:
        change["output_tokens"] = np.maximum(np.rint(traffic.output_tokens * part.output_scale), 1).astype(np.int32)
    if part.max_concurrency:
        change["max_concurrency"] = part.max_concurrency
    return replace(traffic, **change) if change else traffic


def settings_of(scenario: Scenario, group: Group) -> tuple[EngineSettings, EnginePart]:
    """The engine's settings of one group: the scenario's, changed by the group's own."""
    merged = {**scenario.engine.model_dump(), **group.engine}
    try:
        part = EnginePart.model_validate(merged)
    except ValidationError as error:
        first = error.errors()[0]
        raise TrivetError(
            str(first["msg"]),
            field=f"fleet.engine.{'.'.join(map(str, first['loc']))}",
            allowed=sorted(EnginePart.model_fields),
        ) from None
    if part.name not in BATCHING:
        raise TrivetError(f"unknown engine {part.name!r}", field="engine.name", allowed=BATCHING)
    return EngineSettings(
        engine=part.name, version=part.version, max_num_seqs=part.max_num_seqs,
        max_num_batched_tokens=part.max_num_batched_tokens,
        memory_utilization=part.memory_utilization, block_size=part.block_size, num_kv_blocks=part.num_kv_blocks,
        kv_dtype=part.kv_dtype,
        weight_dtype=part.weight_dtype, moe_dtype=part.moe_dtype, prefix_caching=part.prefix_caching,
        speculative_tokens=part.speculative_tokens, acceptance=part.acceptance, max_loras=part.max_loras,
        max_cpu_loras=part.max_cpu_loras, lora_rank=part.lora_rank, lora_targets=part.lora_targets,
    ), part  # fmt: skip


def deployment_of(scenario: Scenario, group: Group, model: Architecture, typical_tokens: float = 0.0) -> Deployment:
    settings, part = settings_of(scenario, group)
    experts = part.expert_skew
    if experts is not None and group.moe_ep == 1:
        raise TrivetError(
            "experts are not spread over chips", field="engine.expert_skew", allowed="with fleet.moe_ep above 1"
        )
    layout = Layout(
        tp=group.tp,
        pp=group.pp,
        attention_dp=group.attention_dp,
        moe_tp=group.moe_tp,
        moe_ep=group.moe_ep,
        expert_skew=group.expert_skew,
        expert_zipf=None if experts is None else experts.popularity,
        redundant_experts=0 if experts is None else experts.redundant,
    )
    return Deployment(model, find_chip(group.chip), layout, settings, group.server, typical_tokens)


def kind_of(scenario: Scenario, group: Group, deployment: Deployment, images: bool = False) -> ReplicaKind:
    """A group as replicas. Each attention-DP rank batches on its own, so it counts as a replica; the ranks of an engine
    with experts share their steps. ``images``: some prompts hold one (Unsupported where the model has no tower)."""
    _, part = settings_of(scenario, group)
    table = engine.step_table(deployment)
    if part.host_scale != 1.0:
        names = ("host_decode_s", "host_mixed_s", "host_per_sequence_s")
        table = replace(table, **{name: getattr(table, name) * part.host_scale for name in names})
    blocks = int((deployment.settings.num_kv_blocks or table.kv_blocks) * part.kv_scale)
    if blocks < 1:
        raise DoesNotFit("no KV block is left", field="engine.kv_scale", allowed="a larger share")
    settings = replace(deployment.settings, num_kv_blocks=blocks)
    ranks = deployment.layout.attention_dp
    kv_bytes = memory.kv_bytes_per_token(deployment.architecture, deployment.layout, kv_dtype=settings.kv_dtype)
    own = batching(settings)
    rules = replace(
        own,
        asynchronous=own.asynchronous if part.asynchronous is None else part.asynchronous,
        prefill_first=own.prefill_first if part.prefill_first is None else part.prefill_first,
        reserve_output=own.reserve_output if part.reserve_output is None else part.reserve_output,
        swap_block_s=_swap_s(deployment, kv_bytes) if part.preemption == "swap" else 0.0,
    )
    tiers = tuple(_tier(one, deployment, kv_bytes) for one in group.tiers)
    chips = max(deployment.layout.chips // ranks, 1)
    experts = deployment.architecture.routed
    lock_step = experts if part.lock_step is None else part.lock_step
    return ReplicaKind(
        table, settings, group.replicas * ranks, group.role, rules, tiers, chips, deployment.chip.name,
        _adapters(deployment), ranks if lock_step else 1, encode_table(deployment) if images else None,
    )  # fmt: skip


def _adapters(deployment: Deployment) -> Adapters | None:
    settings = deployment.settings
    if not settings.max_loras:
        return None
    cost = lora_cost(deployment, settings.lora_rank, settings.lora_targets)
    return Adapters(
        settings.max_loras, settings.max_cpu_loras, cost.load_s, cost.disk_s, cost.step_s, cost.adapter_s, cost.token_s
    )


def _swap_s(deployment: Deployment, kv_bytes: float) -> float:
    where = fabric.server_of(deployment.chip, deployment.server)
    rate = storage.tier(where, deployment.chip, "host_memory").read_bytes_per_s.value
    return kv_bytes * deployment.settings.block_size / rate


def _tier(part: TierPart, deployment: Deployment, kv_bytes: float) -> Tier:
    """A tier of one replica: every chip keeps its own share of the KV, so sizes and rates are those of one chip."""
    where = fabric.server_of(deployment.chip, deployment.server)
    place = {"host": "host_memory", "nvme": "nvme", "remote": "object_store"}[part.name]
    known = None
    if part.bytes is None or part.bytes_per_s is None or part.latency_s is None:
        known = storage.tier(where, deployment.chip, place)
    chips = deployment.layout.tp * deployment.layout.pp
    if part.name == "remote" and (part.bytes is None or part.bytes_per_s is None):
        raise TrivetError("a remote pool needs bytes and bytes_per_s", field="fleet.tiers")
    size = part.bytes / chips if part.bytes is not None else known.capacity_bytes.value  # type: ignore[union-attr]
    rate = part.bytes_per_s / chips if part.bytes_per_s is not None else known.read_bytes_per_s.value  # type: ignore[union-attr]
    latency = part.latency_s if part.latency_s is not None else known.latency_s.value  # type: ignore[union-attr]
    return Tier(part.name, size / kv_bytes, kv_bytes / rate, latency)


def replicas_down(scenario: Scenario, kinds: Sequence[ReplicaKind], part: OutagePart) -> tuple[int, ...]:
    """Numbers of the replicas of the named servers and racks: replicas fill servers in order, servers fill racks."""
    down = set(part.replicas)
    first, server_number = 0, 0
    for group, kind in zip(scenario.fleet, kinds, strict=True):
        where = fabric.server_of(find_chip(group.chip), group.server)
        each = max(where.chips // kind.chips, 1)
        for at in range(0, kind.count, each):
            if server_number in part.servers or server_number // scenario.servers_per_rack in part.racks:
                down.update(range(first + at, first + min(at + each, kind.count)))
            server_number += 1
        first += kind.count
    unknown = [n for n in part.servers if n >= server_number] + [
        n for n in part.racks if n * scenario.servers_per_rack >= server_number
    ]
    if unknown:
        raise TrivetError(
            f"no number {unknown[0]}",
            field="outages",
            allowed=f"servers 0 to {server_number - 1}, {scenario.servers_per_rack} a rack",
        )
    return tuple(sorted(down))


def links_of(kinds: Sequence[ReplicaKind], part: OutagePart) -> tuple[int, ...]:
    """Numbers of the prefill replicas whose links an outage names."""
    ours = [kind.role == "prefill" for kind in kinds for _ in range(kind.count)]
    if part.factor and not part.links:
        raise TrivetError("only links slow down", field="outages.factor", allowed="with outages.links")
    named = [at for at, sends in enumerate(ours) if sends] if part.links == "all" else part.links
    if part.links and (not any(ours) or any(not 0 <= at < len(ours) or not ours[at] for at in named)):
        raise TrivetError(
            f"{part.links}",
            field="outages.links",
            allowed=f"all, or prefill replicas: {[i for i, x in enumerate(ours) if x]}",
        )
    return tuple(int(at) for at in named)


def fleet_of(scenario: Scenario, model: Architecture, traffic: Traffic) -> tuple[Fleet, tuple[Deployment, ...]]:
    """The fleet of a scenario with compiled step tables, and its deployments, one a group."""
    typical = float(traffic.input_tokens.mean() + traffic.output_tokens.mean()) if len(traffic) else 0.0
    deployments = tuple(deployment_of(scenario, group, model, typical) for group in scenario.fleet)
    images = traffic.image_tokens is not None and bool(traffic.image_tokens.any())
    kinds = tuple(kind_of(scenario, g, d, images) for g, d in zip(scenario.fleet, deployments, strict=True))
    outages, links = [], []
    for part in scenario.outages:
        down, slow = replicas_down(scenario, kinds, part), links_of(kinds, part)
        if not down and not slow:
            raise TrivetError(
                "names nothing that is in the fleet", field="outages", allowed="replicas, servers, racks or links"
            )
        if down:
            outages.append(Outage(part.start_s, part.duration_s, down))
        if slow:
            links.append(LinkOutage(part.start_s, part.duration_s, slow, part.factor))
    return Fleet(
        kinds,
        router=scenario.router,
        transfer=_transfer(scenario, deployments),
        admission=Admission(scenario.admission.max_queue, scenario.admission.max_wait_s),
        retries=Retries(scenario.retries.limit, scenario.retries.delay_s),
        outages=tuple(outages),
        link_outages=tuple(links),
        autoscale=_autoscale(scenario, deployments[0]),
        seed=scenario.seed,
    ), deployments


def _transfer(scenario: Scenario, deployments: Sequence[Deployment]) -> Transfer:
    source = next((d for g, d in zip(scenario.fleet, deployments, strict=True) if g.role == "prefill"), None)
    if source is None:
        return Transfer()
    base, probe = scenario.transfer.base_s, 1e6
    none = kv_transfer_s(source, 0.0)
    per_token = (kv_transfer_s(source, probe) - none) / probe
    if scenario.transfer.bytes_per_s is not None:
        per_chip = memory.kv_bytes_per_token(source.architecture, source.layout, kv_dtype=source.settings.kv_dtype)
        per_token = per_chip * source.layout.tp * source.layout.pp / scenario.transfer.bytes_per_s
    return Transfer(none if base is None else base, per_token)


def _autoscale(scenario: Scenario, deployment: Deployment) -> Autoscale | None:
    part = scenario.autoscale
    if part is None:
        return None
    cold = part.cold_start_s
    if cold is None:
        where = fabric.server_of(deployment.chip, deployment.server)
        weights = memory.weight_bytes(
            deployment.architecture,
            deployment.layout,
            weight_dtype=deployment.settings.weight_dtype,
            moe_dtype=deployment.settings.moe_dtype,
        )
        read = storage.load_weights_s(weights, where, deployment.chip, part.weights_from).value
        cold = cold_start_s(weights, weights / read)
    return Autoscale(part.target_in_flight, part.interval_s, cold, part.minimum, part.maximum)
