"""The schema of a serving scenario's file, and one-line changes to it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from trivet.errors import TrivetError

Length = int | float | dict[str, Any]
SERVERS_A_RACK = 4  # an assumption: a 40 kW rack of 8-chip servers


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=False)


class ImagesPart(_Strict):
    """An image in front of a ``share`` of the prompts, of so many tokens of the language model, on top of ``inputs``."""

    tokens: Length = 1024
    share: float = Field(1.0, ge=0, le=1)


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
    thinking: Length = 0  # tokens before the answer, of reasoning models
    urgent_share: float = Field(0.0, ge=0, le=1)  # of the requests, served before the others
    images: ImagesPart | None = None


class CustomersPart(_Strict):
    """Many customers of one service by their statistics; see ``cloud/serving/tenants_traffic.py``."""

    service: str
    source: str = "bailian"
    day: int = Field(0, ge=0)
    start_h: float = Field(0.0, ge=0)
    hours: float = Field(24.0, gt=0)


class AdaptersPart(_Strict):
    """Which LoRA adapter each request asks for: the i-th of ``count`` as popular as ``i ** -zipf``."""

    count: int = Field(ge=1)
    zipf: float = Field(1.0, ge=0)
    share: float = Field(1.0, ge=0, le=1)  # of the requests; the others use the model itself


class TrafficPart(_Strict):
    """A trace (a shipped one's name, or a file), generated traffic or a service's customers, and how it is changed."""

    trace: str = ""
    generate: Generate | None = None
    customers: CustomersPart | None = None
    limit: int | None = Field(None, ge=1)
    rate_scale: float = Field(1.0, gt=0)
    input_scale: float = Field(1.0, gt=0)
    output_scale: float = Field(1.0, gt=0)
    max_concurrency: int = Field(0, ge=0)
    adapters: AdaptersPart | None = None


class ExpertsPart(_Strict):
    """How unevenly experts are chosen: popularity of the i-th as ``i ** -popularity``; more copies of popular ones."""

    popularity: float = Field(0.0, ge=0)
    redundant: int = Field(0, ge=0)


class EnginePart(_Strict):
    """Engine settings; what is left out is the engine's own."""

    name: str = "vllm"
    version: str = ""
    max_num_seqs: int = Field(256, ge=1)
    max_num_batched_tokens: int = Field(8192, ge=1)
    block_size: int = Field(16, ge=1)
    num_kv_blocks: int = Field(0, ge=0)
    kv_scale: float = Field(1.0, gt=0)
    host_scale: float = Field(1.0, ge=0)  # times the engine's own host time: a slower or faster CPU
    kv_dtype: str = ""
    weight_dtype: str = ""
    moe_dtype: str = ""
    memory_utilization: float = Field(0.9, gt=0, le=1)
    prefix_caching: bool = True
    speculative_tokens: int = Field(0, ge=0)
    acceptance: float = Field(0.0, ge=0, le=1)
    preemption: Literal["recompute", "swap"] = "recompute"
    max_loras: int = Field(0, ge=0)
    max_cpu_loras: int = Field(0, ge=0)
    lora_rank: int = Field(16, ge=1)
    lora_targets: Literal["all", "attention"] = "all"
    expert_skew: ExpertsPart | None = None  # None = as routers load them on benchmarks' prompts
    lock_step: bool | None = None  # attention-DP ranks share every step; None = where the model has experts
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
    """What is down, from when, for how long: replicas by number, or whole servers or racks by number.

    ``links``: those of prefill replicas by number, or of all; they do ``factor`` of their rate meanwhile.
    """

    start_s: float = Field(ge=0)
    duration_s: float = Field(gt=0)
    replicas: list[int] = Field(default_factory=list)
    servers: list[int] = Field(default_factory=list)
    racks: list[int] = Field(default_factory=list)
    links: list[int] | Literal["all"] = Field(default_factory=list)
    factor: float = Field(0.0, ge=0, lt=1)


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


class ExpectPart(_Strict):
    """What a change to the scenario should do: a number of ``summary.json`` over its value without the change.

    ``base`` is set in both.
    """

    feature: str
    base: list[str] = Field(default_factory=list)
    change: list[str] = Field(min_length=1)
    metric: str
    against: str = ""  # the number of the unchanged scenario, where it is another one
    ratio: tuple[float, float]
    source: str


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
    expect: list[ExpectPart] = Field(default_factory=list)


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


_FAIL = re.compile(r"(replica|server|rack|link)(?:#(\d+))?:([0-9.]+)(s|m|min|h)?(?:@([0-9.]+)(s|m|min|h)?)?")
_UNIT = {None: 1.0, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}


def outage_text(text: str, traffic_s: float) -> dict[str, Any]:
    """``rack:600s`` (the first rack for ten minutes, from the middle of the traffic on), ``server#2:5m@1h``."""
    match = _FAIL.fullmatch(text)
    if not match:
        raise TrivetError(
            f"{text!r}", field="--fail", allowed="replica|server|rack|link[#NUMBER]:DURATION[@START], e.g. rack:600s"
        )
    kind, number, length, unit, start, start_unit = match.groups()
    begin = traffic_s / 2 if start is None else float(start) * _UNIT[start_unit]
    return {"start_s": begin, "duration_s": float(length) * _UNIT[unit], f"{kind}s": [int(number or 0)]}
