"""A serving scenario: its file's schema, one-line changes to it, and the traffic and fleet that it means."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from trivet.chip.catalogue import chip as find_chip
from trivet.cloud import engine, fabric, storage
from trivet.cloud.deployment import Deployment, EngineSettings
from trivet.cloud.serving.autoscale import Autoscale, cold_start_s
from trivet.cloud.serving.batching import BATCHING, batching
from trivet.cloud.serving.faults import Outage, Retries
from trivet.cloud.serving.fleet import Admission, Fleet, ReplicaKind, Transfer
from trivet.cloud.serving.generate import closed_loop, conversations, open_loop
from trivet.cloud.serving.kvcache import Tier
from trivet.cloud.serving.traffic import Traffic
from trivet.errors import DoesNotFit, TrivetError
from trivet.loop.economics import kv_transfer_s
from trivet.model import memory
from trivet.model.architecture import Architecture
from trivet.model.parallel import Layout

Length = float | dict[str, Any]
SERVERS_A_RACK = 4  # an assumption: a 40 kW rack of 8-chip servers


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=False)


class Generate(_Strict):
    """Traffic from settings; see ``cloud/serving/generate.py``."""

    kind: Literal["open_loop", "closed_loop", "conversations"] = "open_loop"
    requests: int = Field(1000, ge=1)
    rate_per_s: float = Field(1.0, gt=0)
    process: str = "poisson"
    cv: float = Field(1.0, gt=0)
    concurrency: int = Field(0, ge=0)
    inputs: Length = 1024
    outputs: Length = 256
    turns: Length = 4
    system_tokens: int = Field(0, ge=0)
    think_s: float = Field(10.0, ge=0)


class TrafficPart(_Strict):
    """A trace (the name of a shipped one, or a file) or generated traffic, and how it is changed."""

    trace: str = ""
    generate: Generate | None = None
    limit: int | None = Field(None, ge=1)
    rate_scale: float = Field(1.0, gt=0)
    input_scale: float = Field(1.0, gt=0)
    output_scale: float = Field(1.0, gt=0)
    max_concurrency: int = Field(0, ge=0)


class EnginePart(_Strict):
    """Engine settings; what is left out is the engine's own."""

    name: str = "vllm"
    version: str = ""
    max_num_seqs: int = Field(256, ge=1)
    max_num_batched_tokens: int = Field(8192, ge=1)
    block_size: int = Field(16, ge=1)
    num_kv_blocks: int = Field(0, ge=0)
    kv_scale: float = Field(1.0, gt=0)
    kv_dtype: str = ""
    weight_dtype: str = ""
    moe_dtype: str = ""
    memory_utilization: float = Field(0.9, gt=0, le=1)
    prefix_caching: bool = True
    speculative_tokens: int = Field(0, ge=0)
    acceptance: float = Field(0.0, ge=0, le=1)
    preemption: Literal["recompute", "swap"] = "recompute"
    asynchronous: bool | None = None
    prefill_first: bool | None = None
    reserve_output: float | None = Field(None, ge=0, le=1)


class TierPart(_Strict):
    """A KV tier below HBM: sizes left out are the server's own."""

    name: Literal["host", "nvme", "remote"]
    bytes: float | None = Field(None, gt=0)
    bytes_per_s: float | None = Field(None, gt=0)
    latency_s: float | None = Field(None, ge=0)


class Group(_Strict):
    """Equal replicas."""

    chip: str
    replicas: int = Field(1, ge=1)
    role: Literal["both", "prefill", "decode"] = "both"
    tp: int = Field(1, ge=1)
    pp: int = Field(1, ge=1)
    attention_dp: int = Field(1, ge=1)
    moe_tp: int = Field(1, ge=1)
    moe_ep: int = Field(1, ge=1)
    expert_skew: float = Field(1.0, ge=1)
    server: str = ""
    engine: dict[str, Any] = Field(default_factory=dict)
    tiers: list[TierPart] = Field(default_factory=list)


class OutagePart(_Strict):
    """What is down, from when, for how long: replicas by number, or whole servers or racks by number."""

    start_s: float = Field(ge=0)
    duration_s: float = Field(gt=0)
    replicas: list[int] = Field(default_factory=list)
    servers: list[int] = Field(default_factory=list)
    racks: list[int] = Field(default_factory=list)


class AutoscalePart(_Strict):
    target_in_flight: int = Field(ge=1)
    interval_s: float = Field(30.0, gt=0)
    minimum: int = Field(1, ge=0)
    maximum: int = Field(0, ge=0)
    cold_start_s: float | None = Field(None, ge=0)
    weights_from: str = "nvme"


class AdmissionPart(_Strict):
    max_queue: int = Field(0, ge=0)
    max_wait_s: float = Field(0.0, ge=0)


class RetryPart(_Strict):
    limit: int = Field(3, ge=0)
    delay_s: float = Field(1.0, ge=0)


class TransferPart(_Strict):
    base_s: float | None = Field(None, ge=0)
    bytes_per_s: float | None = Field(None, gt=0)


class SloPart(_Strict):
    ttft_s: float | None = Field(None, gt=0)
    tpot_s: float | None = Field(None, gt=0)


class Scenario(_Strict):
    """One file: who asks, what serves, what goes wrong, what is wanted."""

    title: str = ""
    model: str
    traffic: TrafficPart
    fleet: list[Group] = Field(min_length=1)
    engine: EnginePart = Field(default_factory=lambda: EnginePart())
    router: str = "least_outstanding"
    transfer: TransferPart = Field(default_factory=lambda: TransferPart())
    admission: AdmissionPart = Field(default_factory=lambda: AdmissionPart())
    retries: RetryPart = Field(default_factory=lambda: RetryPart())
    outages: list[OutagePart] = Field(default_factory=list)
    autoscale: AutoscalePart | None = None
    slo: SloPart = Field(default_factory=lambda: SloPart())
    servers_per_rack: int = Field(SERVERS_A_RACK, ge=1)
    price_basis: str = "tco_hyperscaler"
    site: str = ""
    seed: int = 0


def parse(raw: Mapping[str, Any]) -> Scenario:
    """Check a scenario; the first mistake is told in one line with the path of its field."""
    try:
        return Scenario.model_validate(raw)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "scenario"
        known = _fields_at(first["loc"][:-1]) if first["type"] == "extra_forbidden" else None
        text = "unknown key" if known else str(first["msg"])
        raise TrivetError(text, field=where, allowed=known) from None


def _fields_at(path: Sequence[int | str]) -> list[str]:
    model: Any = Scenario
    for part in path:
        if isinstance(part, int) or part not in getattr(model, "model_fields", {}):
            continue
        inside = model.model_fields[part].annotation
        options = [inside, *getattr(inside, "__args__", ())]
        model = next((o for o in options if isinstance(o, type) and issubclass(o, BaseModel)), model)
    return sorted(model.model_fields)


def changed(raw: Mapping[str, Any], changes: Sequence[str]) -> dict[str, Any]:
    """A copy with ``path=value`` changes, e.g. ``traffic.rate_scale=2`` or ``fleet.0.replicas=4``.

    Values are YAML; ``engine.kv_scale=0.5`` halves the KV memory.
    """
    import copy

    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    out = copy.deepcopy(dict(raw))
    for change in changes:
        path, equals, text = change.partition("=")
        if not equals or not path:
            raise TrivetError(f"{change!r}", field="--set", allowed="path=value, e.g. traffic.rate_scale=2")
        try:
            value = YAML(typ="safe", pure=True).load(text)
        except YAMLError as error:
            raise TrivetError(f"{text!r} is not a value", field=f"--set {path}") from error
        at: Any = out
        parts = path.split(".")
        for part in parts[:-1]:
            at = _child(at, part, path)
        _put(at, parts[-1], value, path)
    return out


def _child(at: Any, part: str, path: str) -> Any:
    if isinstance(at, list):
        if not part.isdigit() or int(part) >= len(at):
            raise TrivetError(f"no entry {part!r}", field=f"--set {path}", allowed=f"0 to {len(at) - 1}")
        return at[int(part)]
    if not isinstance(at, dict):
        raise TrivetError(f"{part!r} is below a plain value", field=f"--set {path}")
    if at.get(part) is None:
        at[part] = {}
    return at[part]


def _put(at: Any, part: str, value: Any, path: str) -> None:
    if isinstance(at, list):
        if not part.isdigit() or int(part) >= len(at):
            raise TrivetError(f"no entry {part!r}", field=f"--set {path}", allowed=f"0 to {len(at) - 1}")
        at[int(part)] = value
    elif isinstance(at, dict):
        at[part] = value
    else:
        raise TrivetError(f"{part!r} is below a plain value", field=f"--set {path}")


_FAIL = re.compile(r"(replica|server|rack)(?:#(\d+))?:([0-9.]+)(s|m|min|h)?(?:@([0-9.]+)(s|m|min|h)?)?")
_UNIT = {None: 1.0, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}


def outage_text(text: str, traffic_s: float) -> dict[str, Any]:
    """``rack:600s`` (the first rack for ten minutes, from the middle of the traffic on), ``server#2:5m@1h``."""
    match = _FAIL.fullmatch(text)
    if not match:
        raise TrivetError(f"{text!r}", field="--fail", allowed="replica|server|rack[#NUMBER]:DURATION[@START], e.g. rack:600s")
    kind, number, length, unit, start, start_unit = match.groups()
    begin = traffic_s / 2 if start is None else float(start) * _UNIT[start_unit]
    return {"start_s": begin, "duration_s": float(length) * _UNIT[unit], f"{kind}s": [int(number or 0)]}


def traffic_of(scenario: Scenario, read_trace: Callable[[str, int | None], Traffic]) -> Traffic:
    """The traffic of a scenario; ``read_trace(name or path, limit)`` reads files."""
    part = scenario.traffic
    if bool(part.trace) == bool(part.generate):
        raise TrivetError("name a trace or generate one", field="traffic", allowed="trace: NAME, or generate: {...}")
    if part.trace:
        traffic = read_trace(part.trace, part.limit)
    else:
        traffic = _generated(part.generate, scenario.seed)  # type: ignore[arg-type]
    if part.rate_scale != 1.0:
        traffic = traffic.scaled(part.rate_scale)
    return _resized(traffic, part)


def _generated(g: Generate, seed: int) -> Traffic:
    if g.kind == "closed_loop":
        return closed_loop(g.requests, concurrency=g.concurrency, inputs=g.inputs, outputs=g.outputs, seed=seed)
    if g.kind == "conversations":
        return conversations(
            g.requests, rate_per_s=g.rate_per_s, turns=g.turns, inputs=g.inputs, outputs=g.outputs,
            system_tokens=g.system_tokens, think_s=g.think_s, process=g.process, cv=g.cv, seed=seed,
        )  # fmt: skip
    return open_loop(g.requests, rate_per_s=g.rate_per_s, inputs=g.inputs, outputs=g.outputs, process=g.process, cv=g.cv, seed=seed)


def _resized(traffic: Traffic, part: TrafficPart) -> Traffic:
    change: dict[str, Any] = {}
    if part.input_scale != 1.0:
        change["input_tokens"] = np.maximum(np.rint(traffic.input_tokens * part.input_scale), 1).astype(np.int32)
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
        raise TrivetError(str(first["msg"]), field=f"fleet.engine.{'.'.join(map(str, first['loc']))}", allowed=sorted(EnginePart.model_fields)) from None
    if part.name not in BATCHING:
        raise TrivetError(f"unknown engine {part.name!r}", field="engine.name", allowed=BATCHING)
    return EngineSettings(
        engine=part.name, version=part.version, max_num_seqs=part.max_num_seqs, max_num_batched_tokens=part.max_num_batched_tokens,
        memory_utilization=part.memory_utilization, block_size=part.block_size, num_kv_blocks=part.num_kv_blocks, kv_dtype=part.kv_dtype,
        weight_dtype=part.weight_dtype, moe_dtype=part.moe_dtype, prefix_caching=part.prefix_caching,
        speculative_tokens=part.speculative_tokens, acceptance=part.acceptance,
    ), part  # fmt: skip


def deployment_of(scenario: Scenario, group: Group, model: Architecture, typical_tokens: float = 0.0) -> Deployment:
    layout = Layout(
        tp=group.tp, pp=group.pp, attention_dp=group.attention_dp, moe_tp=group.moe_tp, moe_ep=group.moe_ep, expert_skew=group.expert_skew
    )
    settings, _ = settings_of(scenario, group)
    return Deployment(model, find_chip(group.chip), layout, settings, group.server, typical_tokens)


def kind_of(scenario: Scenario, group: Group, deployment: Deployment) -> ReplicaKind:
    """A group as replicas. Each attention-DP rank batches on its own, so it counts as a replica."""
    _, part = settings_of(scenario, group)
    table = engine.step_table(deployment)
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
    return ReplicaKind(table, settings, group.replicas * ranks, group.role, rules, tiers, chips, deployment.chip.name)


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
    unknown = [n for n in part.servers if n >= server_number] + [n for n in part.racks if n * scenario.servers_per_rack >= server_number]
    if unknown:
        raise TrivetError(f"no number {unknown[0]}", field="outages", allowed=f"servers 0 to {server_number - 1}, {scenario.servers_per_rack} a rack")
    return tuple(sorted(down))


def fleet_of(scenario: Scenario, model: Architecture, traffic: Traffic) -> tuple[Fleet, tuple[Deployment, ...]]:
    """The fleet of a scenario with compiled step tables, and its deployments, one a group."""
    typical = float(traffic.input_tokens.mean() + traffic.output_tokens.mean()) if len(traffic) else 0.0
    deployments = tuple(deployment_of(scenario, group, model, typical) for group in scenario.fleet)
    kinds = tuple(kind_of(scenario, g, d) for g, d in zip(scenario.fleet, deployments, strict=True))
    outages = []
    for part in scenario.outages:
        down = replicas_down(scenario, kinds, part)
        if not down:
            raise TrivetError("names nothing that is in the fleet", field="outages", allowed="replicas, servers or racks")
        outages.append(Outage(part.start_s, part.duration_s, down))
    return Fleet(
        kinds,
        router=scenario.router,
        transfer=_transfer(scenario, deployments),
        admission=Admission(scenario.admission.max_queue, scenario.admission.max_wait_s),
        retries=Retries(scenario.retries.limit, scenario.retries.delay_s),
        outages=tuple(outages),
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
            deployment.architecture, deployment.layout, weight_dtype=deployment.settings.weight_dtype, moe_dtype=deployment.settings.moe_dtype
        )
        read = storage.load_weights_s(weights, where, deployment.chip, part.weights_from).value
        cold = cold_start_s(weights, weights / read)
    return Autoscale(part.target_in_flight, part.interval_s, cold, part.minimum, part.maximum)
