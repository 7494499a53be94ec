"""Where bytes rest beside the chips: host memory, NVMe drives (Zhenyue 510 among them), an object store.

Bandwidths are what one chip gets when all chips of its server read or write at once. Sources: the server's drives and
memory channels (``data/servers``, ``data/chips``), the chip's host link, the server's network.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from trivet.chip import estimate
from trivet.chip.catalogue import chip as catalogue_chip
from trivet.chip.estimate import Estimate
from trivet.chip.spec import Chip
from trivet.errors import TrivetError, Unsupported
from trivet.facts import Fact

TIERS = ("host_memory", "nvme", "object_store")
# Share of a sequential rating that a file system and many readers get: O_DIRECT tests on RAID-0 of enterprise drives.
_FILE_EFFICIENCY = estimate.between(0.70, 0.92, "file system efficiency")
_DMA_EFFICIENCY = estimate.between(0.80, 0.92, "host link efficiency")
_MEMORY_EFFICIENCY = estimate.between(0.60, 0.85, "DDR efficiency")
# Throughput of one server against an object store: 25-200 Gb/s of storage network; small objects do far worse.
_OBJECT_PER_SERVER = estimate.between(2e9, 16e9, "object store bandwidth of a server")
_OBJECT_LATENCY_S = estimate.between(0.02, 0.15, "object store latency")


class Host(Protocol):
    """What storage needs of a server; ``cloud.fabric.Server`` is one."""

    @property
    def name(self) -> str: ...
    @property
    def chips(self) -> int: ...
    @property
    def host(self) -> str: ...
    @property
    def ssd(self) -> str: ...
    @property
    def facts(self) -> dict[str, Fact]: ...


@dataclass(frozen=True, slots=True)
class Tier:
    """One place for bytes, as one chip sees it with all its neighbours busy. Bytes, bytes/s, seconds."""

    name: str
    capacity_bytes: Estimate
    read_bytes_per_s: Estimate
    write_bytes_per_s: Estimate
    latency_s: Estimate

    def read_s(self, size_bytes: float) -> Estimate:
        return self.latency_s + size_bytes / self.read_bytes_per_s

    def write_s(self, size_bytes: float) -> Estimate:
        return self.latency_s + size_bytes / self.write_bytes_per_s


def tiers(host: Host, chip: Chip) -> dict[str, Tier]:
    """The tiers below a chip's own memory, by name (see TIERS); a server without drives has no ``nvme``."""
    link = estimate.of(chip.facts.get("host_bandwidth_bytes_per_s"), "host link bandwidth") * _DMA_EFFICIENCY
    found = {"host_memory": _host_memory(host, link)}
    drives = host.facts.get("ssds")
    if drives is not None and drives.value:
        found["nvme"] = _nvme(host, link)
    share = _OBJECT_PER_SERVER / host.chips
    rate = estimate.least((share, link))
    found["object_store"] = Tier("object_store", Estimate(1e18), rate, rate, _OBJECT_LATENCY_S)
    return found


def tier(host: Host, chip: Chip, name: str) -> Tier:
    """One tier by name; raises TrivetError with the tiers that this server has."""
    found = tiers(host, chip)
    if name not in found:
        raise TrivetError(f"no tier {name!r} on {host.name}", field="tier", allowed=tuple(found))
    return found[name]


def load_weights_s(weight_bytes_per_chip: float, host: Host, chip: Chip, source: str = "nvme") -> Estimate:
    """Seconds until every chip of a server holds its weights, each reading its own shard from ``source``.

    A shard passes through host memory, so the slower of the two governs; both run in a pipeline.
    """
    read = tier(host, chip, source).read_s(weight_bytes_per_chip)
    through = tiers(host, chip)["host_memory"].read_s(weight_bytes_per_chip)
    return max((read, through), key=lambda e: e.value)


def write_checkpoint_s(checkpoint_bytes: float, chips: int, host: Host, chip: Chip, target: str = "nvme") -> Estimate:
    """Seconds that ``chips`` chips take to write a sharded checkpoint together.

    To ``host_memory`` it is the copy that stops training; to ``nvme`` or ``object_store`` the part behind it.
    """
    if chips < 1:
        raise TrivetError(f"{chips} is below 1", field="chips")
    return tier(host, chip, target).write_s(checkpoint_bytes / chips)


def kv_reload_gain(
    kv_bytes_per_token: float, prefill_tokens_per_s: float, host: Host, chip: Chip, source: str = "host_memory"
) -> Estimate:
    """How many times faster cached KV comes from ``source`` than prefill makes it anew (below 1: do not bother)."""
    rate = tier(host, chip, source).read_bytes_per_s / kv_bytes_per_token
    return rate / prefill_tokens_per_s


def _host_memory(host: Host, link: Estimate) -> Tier:
    cpu = catalogue_chip(host.host)
    memory = estimate.of(cpu.facts.get("memory_bandwidth_bytes_per_s"), f"{cpu.name} memory bandwidth")
    share = memory * estimate.of(host.facts.get("sockets"), "sockets") * _MEMORY_EFFICIENCY / host.chips
    rate = estimate.least((link, share))
    size = estimate.of(host.facts.get("host_memory_bytes"), "host memory")
    return Tier("host_memory", size / host.chips, rate, rate, estimate.between(5e-6, 20e-6, "DMA set-up"))


def _nvme(host: Host, link: Estimate) -> Tier:
    drive = catalogue_chip(host.ssd)
    if drive.role != "ssd_controller":
        raise Unsupported(f"{drive.name} is a {drive.role}, not a drive", field=f"{host.name}: ssd")
    per_chip = estimate.of(host.facts.get("ssds"), "number of drives") / host.chips

    def rate(field: str) -> Estimate:
        one = estimate.of(drive.facts.get(field), f"{drive.name} {field}")
        return estimate.least((one * per_chip * _FILE_EFFICIENCY, link))

    latency_fact = drive.facts.get("read_latency_s")
    latency = estimate.of(latency_fact, f"{drive.name} latency") if latency_fact else Estimate(80e-6)
    capacity = estimate.of(drive.facts.get("memory_bytes"), f"{drive.name} capacity")
    return Tier("nvme", capacity * per_chip, rate("read_bytes_per_s"), rate("write_bytes_per_s"), latency)
