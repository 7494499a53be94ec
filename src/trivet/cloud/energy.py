"""Watts and joules of a deployment: chips, their share of host and network, and the site's overhead (PUE)."""

from __future__ import annotations

from trivet.chip import estimate
from trivet.chip.estimate import Estimate
from trivet.chip.power import provisioned_w
from trivet.chip.reading import price_sheet
from trivet.chip.spec import Chip
from trivet.cloud.fabric import Server, server_of
from trivet.errors import TrivetError

HOST_IDLE_SHARE = 0.55  # of a server's own power when its chips idle: fans and switches run on


def site_pue(site: str = "") -> Estimate:
    """Power usage effectiveness: of a named operator (alibaba, google, meta, aws, microsoft) or the usual interval."""
    sheet = price_sheet("site")
    key = f"pue_{site.lower()}" if site else "pue"
    if key not in sheet:
        allowed = sorted(name[4:] for name in sheet if name.startswith("pue_"))
        raise TrivetError(f"no PUE for {site!r}", field="site", allowed=allowed)
    return estimate.of(sheet[key], "PUE")


def host_w_per_chip(where: Server, load: float = 1.0) -> Estimate:
    """A chip's share of the server's own power (CPUs, memory, fans, switches, NICs); ``load`` between 0 and 1."""
    if not 0.0 <= load <= 1.0:
        raise TrivetError(f"{load} is not between 0 and 1", field="load")
    share = HOST_IDLE_SHARE + (1.0 - HOST_IDLE_SHARE) * load
    return estimate.of(where.facts.get("host_power_w"), f"{where.name} host_power_w") * (share / where.chips)


def network_w_per_chip(where: Server) -> Estimate:
    """A chip's share of the switches and optics of the scale-out network."""
    fact = where.scale_out.facts.get("power_per_chip_w")
    return Estimate(0.0) if fact is None else estimate.of(fact, f"{where.scale_out.name} power_per_chip_w")


def facility_w(
    chip: Chip, chip_w: Estimate, where: Server | None = None, site: str = "", load: float = 1.0
) -> Estimate:
    """What the meter of the site shows for one chip that draws ``chip_w``."""
    place = where or server_of(chip)
    return estimate.total((chip_w, host_w_per_chip(place, load), network_w_per_chip(place))) * site_pue(site)


def provisioned_facility_w(chip: Chip, where: Server | None = None, site: str = "") -> Estimate:
    """What the site must hold ready for one chip at its limit."""
    place = where or server_of(chip)
    return provisioned_w(chip, host_w_per_chip(place), network_w_per_chip(place), site_pue(site))


def joules_per_token(
    chip: Chip,
    chip_w: Estimate,
    chips: int,
    tokens_per_s: float,
    where: Server | None = None,
    site: str = "",
    load: float = 1.0,
) -> Estimate:
    """Energy of one token of a deployment of ``chips`` chips that makes ``tokens_per_s``; host and PUE included."""
    if tokens_per_s <= 0:
        raise TrivetError(f"{tokens_per_s} is not positive", field="tokens_per_s")
    return facility_w(chip, chip_w, where, site, load) * (chips / tokens_per_s)
