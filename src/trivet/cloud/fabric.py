"""Servers and the networks that join their chips: which levels a group of chips crosses, and how wide each is.

A server type (``data/servers``) names its scale-up fabric (NVLink, ICN, Infinity Fabric, ICI, PCIe) and its scale-out
fabric (``data/fabrics``: HPN dual-plane, rail-optimised fat tree, torus pods over a data-centre network). ``levels``
answers, for a group of chips, the levels from the innermost outwards; ``cloud/collectives.py`` turns them into seconds.
"""

from __future__ import annotations

import difflib
import math
import re
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from trivet.chip.catalogue import chip as catalogue_chip
from trivet.chip.catalogue import normalise
from trivet.chip.reading import facts_of, folders, read_yaml
from trivet.chip.spec import Chip
from trivet.errors import DoesNotFit, TrivetError, UnknownName, Unsupported
from trivet.facts import Fact

TOPOLOGIES = ("switch", "mesh", "ring", "torus", "pcie", "tree")
_SERVER_UNITS = {
    "chips": "",
    "domain_chips": "",
    "nic_bandwidth_bytes_per_s": "B/s",
    "host_power_w": "W",
    "host_memory_bytes": "B",
    "sockets": "",
    "ssds": "",
    "rack_power_w": "W",
    "rack_chips": "",
    "link_bandwidth_bytes_per_s": "B/s",
    "active_ports": "",
    "server_usd": "USD",
}
_FABRIC_UNITS = {
    "latency_s": "s",
    "switch_latency_s": "s",
    "switch_bandwidth_bytes_per_s": "B/s",
    "switch_ports": "",
    "degree": "",
    "dimensions": "",
    "usd_per_chip": "USD",
    "power_per_chip_w": "W",
}
_TIER = re.compile(r"tier([1-9])_(chips|latency_s|oversubscription)")


@dataclass(frozen=True, slots=True)
class Fabric:
    """One kind of network. ``topology``: one of TOPOLOGIES; ``facts``: ``latency_s`` of one crossing and, for several
    tiers, ``tierN_chips`` (chips below one unit of the tier), ``tierN_latency_s``, ``tierN_oversubscription``.
    """

    name: str
    title: str
    topology: str
    facts: dict[str, Fact] = field(default_factory=dict)

    def get(self, name: str) -> float | None:
        fact = self.facts.get(name)
        return None if fact is None else fact.value


@dataclass(frozen=True, slots=True)
class Server:
    """A server, rack or pod type: how many chips, the domain that its scale-up links join, its host and its NICs."""

    name: str
    title: str
    scale_up: Fabric
    scale_out: Fabric
    host: str  # CPU of the catalogue
    ssd: str  # drive of the catalogue
    facts: dict[str, Fact] = field(default_factory=dict)

    def get(self, name: str) -> float | None:
        fact = self.facts.get(name)
        return None if fact is None else fact.value

    @property
    def chips(self) -> int:
        """Chips of one server (one host)."""
        return int(self.get("chips") or 1)

    @property
    def domain_chips(self) -> int:
        """Chips that the scale-up fabric joins: a server's, a rack's or a pod's."""
        return int(self.get("domain_chips") or self.chips)


@dataclass(frozen=True, slots=True)
class Level:
    """One level that a group of chips crosses.

    ``members`` units of the level below meet here (chips, at the innermost); ``size`` chips of the group are joined
    when this level has been crossed. ``bandwidth_bytes_per_s`` is what one chip can send (and, at once, receive)
    through this level; ``pair_bandwidth_bytes_per_s`` what it can send to one other chip. ``latency_s`` is one small message.
    ``oversubscription`` >= 1 divides the bandwidth when all chips send at once. ``log_sigma`` is the spread of the
    bandwidth that unpublished fields imply.
    """

    name: str
    topology: str
    members: int
    size: int
    bandwidth_bytes_per_s: float
    pair_bandwidth_bytes_per_s: float
    latency_s: float
    oversubscription: float = 1.0
    degree: int = 0  # direct neighbours of a chip (mesh, ring, torus); 0 = through a switch
    log_sigma: float = 0.0

    @property
    def scale_out(self) -> bool:
        return self.name.startswith("scale-out")


def fabric(name: str) -> Fabric:
    """The fabric of that name (``data/fabrics``); raises UnknownName with the names that exist."""
    path = _file("fabrics", name)
    return _read_fabric(path, path.stat().st_mtime_ns)


def server(name: str) -> Server:
    """The server type of that name (``data/servers``); raises UnknownName with the names that exist."""
    path = _file("servers", name)
    return _read_server(path, path.stat().st_mtime_ns)


def servers() -> tuple[str, ...]:
    """Names of all server types."""
    return tuple(sorted({path.stem for folder in folders("servers") for path in folder.glob("*.yaml")}))


def server_of(chip: Chip, name: str = "") -> Server:
    """The server that holds ``chip``: the one named, or the chip's default."""
    if not name and not chip.server:
        raise Unsupported(f"{chip.name} has no default server", field="server", allowed=servers())
    return server(name or chip.server)


def levels(where: Server | str, chips: int, chip: Chip | str, stride: int = 1) -> tuple[Level, ...]:
    """The levels that a group of ``chips`` crosses, innermost first; a group of one crosses none.

    Args:
        where: server type or its name.
        chips: chips in the group.
        chip: the chip, whose links give the scale-up bandwidth.
        stride: ranks between two members (a data-parallel group beside TP 8 has stride 8): members that lie further
            apart share fewer servers.

    Raises:
        DoesNotFit: chips or stride below one.
    """
    place = server(where) if isinstance(where, str) else where
    part = catalogue_chip(chip) if isinstance(chip, str) else chip
    if chips < 1 or stride < 1:
        raise DoesNotFit(f"chips {chips}, stride {stride}: both must be at least 1", field="group")
    found: list[Level] = []
    inside = min(chips, max(1, place.domain_chips // stride))
    if inside > 1:
        found.append(_scale_up(place, part, inside))
    joined = inside
    tier = 0
    while joined < chips:
        tier += 1
        reach = _tier_chips(place.scale_out, tier)
        size = chips if reach is None else min(chips, max(joined, int(reach // stride)))
        if size > joined:
            found.append(_scale_out(place, part, tier, joined, size))
        joined = size
    return tuple(found)


def kv_level(where: Server | str, chip: Chip | str) -> Level:
    """The level that a transfer between two servers crosses (prefill to decode, checkpoint to peer)."""
    place = server(where) if isinstance(where, str) else where
    part = catalogue_chip(chip) if isinstance(chip, str) else chip
    return _scale_out(place, part, 1, 1, 2)


def _scale_up(place: Server, part: Chip, size: int) -> Level:
    net = place.scale_up
    link = place.facts.get("link_bandwidth_bytes_per_s") or part.facts.get("link_bandwidth_bytes_per_s")
    if link is None and net.topology == "pcie":
        link = part.facts.get("host_bandwidth_bytes_per_s")
    if link is None or link.value is None:
        raise Unsupported(f"{part.name} has no known link bandwidth", field="link_bandwidth_bytes_per_s")
    ports = int(place.get("active_ports") or part.get("link_ports") or 0)
    total_ports = int(part.get("link_ports") or 0)
    bandwidth, pair, degree = link.value, link.value, 0
    if net.topology == "mesh":
        if total_ports and ports < total_ports:
            bandwidth *= ports / total_ports
        # A chip's links are shared out evenly over its neighbours; a smaller group uses only the links inside it.
        wired = int(place.get("active_ports") or net.get("degree") or ports or place.domain_chips - 1)
        neighbours = max(1, min(wired, place.domain_chips - 1))
        degree = min(neighbours, size - 1)
        pair = bandwidth / neighbours
        bandwidth = pair * degree
    elif net.topology in ("ring", "torus"):
        dimensions = int(net.get("dimensions") or (1 if net.topology == "ring" else 2))
        degree = 2 * dimensions
        pair = bandwidth / degree
        used = min(degree, 2 * max(1, math.ceil(math.log2(size) / 2))) if size > 2 else 1
        bandwidth = pair * used
    latency = net.get("latency_s")
    sigma = math.hypot(link.log_sigma, _ports_sigma(place))
    return Level(f"scale-up {net.name}", net.topology, size, size, bandwidth, pair, latency or 2e-6, 1.0, degree, sigma)


def _ports_sigma(place: Server) -> float:
    fact = place.facts.get("active_ports")
    return 0.0 if fact is None else fact.log_sigma


def _scale_out(place: Server, part: Chip, tier: int, below: int, size: int) -> Level:
    net = place.scale_out
    nic = place.facts.get("nic_bandwidth_bytes_per_s")
    if nic is None or nic.value is None:
        raise Unsupported(f"{place.name} has no network card: groups end at {place.domain_chips} chips", field="server")
    names = [n for n in range(1, tier + 1) if f"tier{n}_latency_s" in net.facts]
    latency = net.get(f"tier{names[-1]}_latency_s") if names else net.get("latency_s")
    over = net.get(f"tier{tier}_oversubscription") or 1.0
    return Level(
        f"scale-out {net.name}/{tier}",
        net.topology,
        math.ceil(size / below),
        size,
        nic.value,
        nic.value,
        latency or 5e-6,
        max(1.0, over),
        0,
        nic.log_sigma,
    )


def _tier_chips(net: Fabric, tier: int) -> float | None:
    """Chips below one unit of the tier; None beyond the last one (a network without end)."""
    return net.get(f"tier{tier}_chips")


def _file(kind: str, name: str) -> Path:
    key = normalise(name)
    for folder in folders(kind):
        if (folder / f"{key}.yaml").is_file():
            return folder / f"{key}.yaml"
    known = sorted({path.stem for folder in folders(kind) for path in folder.glob("*.yaml")})
    close = difflib.get_close_matches(key, known, n=4, cutoff=0.5) or known
    raise UnknownName(f"no {kind[:-1]} named {name!r}", field=kind[:-1], allowed=close)


def _fabric_unit(name: str) -> str | None:
    match = _TIER.fullmatch(name)
    if match:
        return "s" if match[2] == "latency_s" else ""
    return _FABRIC_UNITS.get(name)


@cache
def _read_fabric(path: Path, stamp: int) -> Fabric:
    raw = _checked(path, {"title", "topology", "facts"})
    if raw["topology"] not in TOPOLOGIES:
        raise TrivetError(f"{raw['topology']!r}", field=f"{path.stem}: topology", allowed=TOPOLOGIES)
    return Fabric(path.stem, str(raw["title"]), str(raw["topology"]), facts_of(raw["facts"], _fabric_unit, path.stem))


@cache
def _read_server(path: Path, stamp: int) -> Server:
    raw = _checked(path, {"title", "scale_up", "scale_out", "host", "ssd", "facts"})
    facts = facts_of(raw["facts"], _SERVER_UNITS.get, path.stem)
    if facts.get("chips") is None:
        raise TrivetError("missing", field=f"{path.stem}: chips")
    return Server(
        path.stem,
        str(raw["title"]),
        fabric(str(raw["scale_up"])),
        fabric(str(raw["scale_out"])),
        str(raw["host"]),
        str(raw["ssd"]),
        facts,
    )


def _checked(path: Path, keys: set[str]) -> dict[str, Any]:
    raw = read_yaml(path)
    for key in sorted(keys - set(raw)):
        raise TrivetError("missing", field=f"{path.stem}: {key}")
    for key in sorted(set(raw) - keys):
        raise TrivetError(f"unknown key {key!r}", field=path.stem, allowed=sorted(keys))
    return raw
