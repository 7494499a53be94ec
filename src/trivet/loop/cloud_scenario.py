"""What a cloud's week is made of: pools of servers, services and their SLO, training, other jobs, customers, faults."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from trivet.cloud.cluster.policies import POLICIES
from trivet.cloud.serving.tenants_traffic import ASSUMED_MODELS
from trivet.errors import TrivetError


@dataclass(frozen=True, slots=True)
class Pool:
    """``servers`` equal servers of ``chips_per_server`` chips."""

    chip: str
    servers: int
    chips_per_server: int


@dataclass(frozen=True, slots=True)
class ServiceSpec:
    """One service: the model that it is assumed to run, the priced model that it is assumed to be sold as, its SLO."""

    name: str
    model: str
    sold_as: str
    ttft_s: float = 2.0
    tpot_s: float = 0.05
    percentile: float = 0.9
    max_chips_per_replica: int = 16


@dataclass(frozen=True, slots=True)
class TrainingSpec:
    """A training job: ``chips`` of one pool, all in one network pod."""

    name: str
    model: str
    chips: int
    tokens: float
    seq_len: int = 4096
    chip: str = ""  # "" = the largest pool's


@dataclass(frozen=True, slots=True)
class JobMix:
    """Other jobs: Poisson arrivals, log-normal durations, sizes drawn from ``sizes`` with ``weights``.

    An assumption, not a trace: ``load`` is their work over the cluster's chip-hours.
    """

    count: int = 12_000
    load: float = 0.15
    median_s: float = 1800.0
    sigma: float = 1.6
    sizes: tuple[float, ...] = (0.25, 0.5, 1, 2, 4, 8, 16, 64, 256)
    weights: tuple[float, ...] = (0.12, 0.13, 0.38, 0.1, 0.1, 0.1, 0.05, 0.015, 0.005)
    low_priority_share: float = 0.3


@dataclass(frozen=True, slots=True)
class CloudScenario:
    """One week of one cloud."""

    name: str
    pools: tuple[Pool, ...]
    services: tuple[ServiceSpec, ...]
    training: tuple[TrainingSpec, ...] = ()
    jobs: JobMix = JobMix()
    customers: str = "bailian"
    generated_customers: int = 14
    days: int = 7
    first_day: int = 0
    sample: float = 0.01  # share of the requests that is drawn and metered
    headroom: float = 0.1  # replicas beyond the hour's need, as a share
    policy: str = "bestfit"
    queue: str = "fifo"
    spares: int = 8
    servers_per_rack: int = 8
    servers_per_pod: int = 512
    fault_scale: float = 1.0
    price_basis: str = "tco_hyperscaler"
    site: str = "alibaba"
    checks_per_service: int = 3
    seed: int = 0

    @property
    def chips(self) -> int:
        return sum(p.servers * p.chips_per_server for p in self.pools)


_NESTED = {"pools": Pool, "services": ServiceSpec, "training": TrainingSpec, "jobs": JobMix}


def _make(kind: type[Any], raw: Any, where: str) -> Any:
    """A dataclass from a mapping, types checked, unknown keys refused."""
    if not isinstance(raw, Mapping):
        raise TrivetError(f"{raw!r} is not a mapping", field=where)
    known = {f.name: f for f in fields(kind)}
    values = {}
    for key, value in raw.items():
        if key not in known:
            raise TrivetError("unknown key", field=f"{where}.{key}", allowed=sorted(known))
        values[key] = _typed(value, str(known[key].type), f"{where}.{key}")
    try:
        return kind(**values)
    except TypeError as error:
        raise TrivetError(str(error).split(") ")[-1], field=where, allowed=sorted(known)) from error


def _typed(value: Any, kind: str, where: str) -> Any:
    if kind.startswith("tuple[float"):
        if not isinstance(value, (list, tuple)) or not value:
            raise TrivetError(f"{value!r}", field=where, allowed="a list of numbers")
        return tuple(_typed(v, "float", where) for v in value)
    if kind == "str":
        if not isinstance(value, str):
            raise TrivetError(f"{value!r}", field=where, allowed="a text")
        return value
    if isinstance(value, str):  # 36e12 is a text in YAML 1.2
        try:
            value = float(value)
        except ValueError as error:
            raise TrivetError(f"{value!r}", field=where, allowed="a number") from error
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < 1e18:
        raise TrivetError(f"{value!r}", field=where, allowed="a finite number >= 0")
    if kind == "int":
        if value != int(value):
            raise TrivetError(f"{value!r}", field=where, allowed="a whole number")
        return int(value)
    return float(value)


def parse(raw: Mapping[str, Any]) -> CloudScenario:
    """A scenario from a YAML mapping. Raises TrivetError naming the key and what is allowed."""
    top = dict(raw)
    nested: dict[str, Any] = {}
    for key in ("pools", "training"):
        entries = top.pop(key, [])
        if not isinstance(entries, (list, tuple)):
            raise TrivetError(f"{entries!r}", field=key, allowed="a list")
        nested[key] = tuple(_make(_NESTED[key], e, f"{key}[{i}]") for i, e in enumerate(entries))
    services = top.pop("services", {})
    if not isinstance(services, Mapping):
        raise TrivetError(f"{services!r}", field="services", allowed="a mapping by service name")
    nested["services"] = tuple(
        _make(ServiceSpec, {"name": name, "model": ASSUMED_MODELS.get(name, ""), **(spec or {})}, f"services.{name}")
        for name, spec in services.items()
    )
    if "jobs" in top:
        nested["jobs"] = _make(JobMix, top.pop("jobs"), "jobs")
    known = {f.name: f for f in fields(CloudScenario)}
    for key, value in top.items():
        if key not in known or key in _NESTED:
            raise TrivetError("unknown key", field=key, allowed=sorted(known))
        nested[key] = _typed(value, str(known[key].type), key)
    nested.setdefault("name", "cloud")
    return _checked(CloudScenario(**nested))


def _checked(s: CloudScenario) -> CloudScenario:
    def need(ok: bool, what: str, field: str, allowed: str) -> None:
        if not ok:
            raise TrivetError(what, field=field, allowed=allowed)

    need(bool(s.pools), "none", "pools", "at least one")
    need(bool(s.services), "none", "services", "at least one")
    for i, p in enumerate(s.pools):
        need(p.servers > 0 and 0 < p.chips_per_server <= 64, f"{p.servers} servers of {p.chips_per_server} chips", f"pools[{i}]",
             "1 or more servers of 1 to 64 chips")  # fmt: skip
    for service in s.services:
        need(bool(service.model), "is missing", f"services.{service.name}.model", "a model")
        need(service.ttft_s > 0 and service.tpot_s > 0 and 0.5 <= service.percentile < 1, "SLO out of range",
             f"services.{service.name}", "times above 0, percentile 0.5 to 0.999")  # fmt: skip
    need(1 <= s.days <= 14, f"{s.days}", "days", "1 to 14")
    need(0 < s.sample <= 1, f"{s.sample}", "sample", "above 0, at most 1")
    need(len(s.jobs.sizes) == len(s.jobs.weights), "sizes and weights differ", "jobs", "one weight a size")
    need(s.jobs.count == 0 or (s.jobs.load > 0 and s.jobs.median_s > 0), "no work", "jobs", "load and median_s above 0")
    need(s.policy in POLICIES, f"{s.policy!r}", "policy", ", ".join(POLICIES))
    need(
        0 <= s.headroom <= 2 and s.servers_per_rack > 0 and s.servers_per_pod > 0, "out of range", "cluster", "positive"
    )
    return s
