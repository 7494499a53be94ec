"""Money and power of a deployment's chips as plain numbers, for arrays of candidates."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from trivet.chip.power import power_w
from trivet.chip.spec import Chip
from trivet.cloud.cost import chip_hour
from trivet.cloud.deployment import Deployment
from trivet.cloud.energy import facility_w
from trivet.cloud.fabric import kv_level, server_of
from trivet.errors import Unsupported
from trivet.model.memory import kv_bytes_per_token, weight_bytes

Floats = NDArray[np.float64]
_PROBE_FLOPS, _PROBE_BYTES = 1e12, 1e10  # small enough to stay below the power limit of any chip


@dataclass(frozen=True, slots=True)
class Economics:
    """One chip's price and power. Power at the meter of the site: ``(chip + host + network) * PUE``, the chip's part being
    ``min(limit, idle + active * busy + joules * rate)``, affine in what it does."""

    usd_per_chip_s: float
    price_log_sigma: float
    price_derived: bool
    idle_w: float
    active_w: float
    limit_w: float
    flop_j: float
    byte_j: float
    beside_w: float  # host and network, a chip
    pue: float
    power_log_sigma: float

    def watts(self, busy: Floats, flops_per_s: Floats | float = 0.0, bytes_per_s: Floats | float = 0.0) -> Floats:
        """Site watts a chip at these mean rates; arrays broadcast."""
        drawn = self.idle_w + self.active_w * np.asarray(busy) + self.flop_j * flops_per_s + self.byte_j * bytes_per_s
        return (np.minimum(drawn, self.limit_w) + self.beside_w) * self.pue


@functools.lru_cache(maxsize=256)
def _economics(chip_name: str, basis: str, site: str, holder: _Holder) -> Economics:
    chip = holder.chip
    hour = chip_hour(chip, basis, site=site)
    idle = power_w(chip, busy=0.0)
    running = power_w(chip, busy=1.0)
    where = server_of(chip)
    typical = power_w(
        chip,
        busy=1.0,
        flops_per_s=0.3 * (chip.get("peak_flops_bf16") or chip.get("peak_flops_fp16") or 0.0),
        bytes_per_s=0.5 * (chip.get("memory_bandwidth_bytes_per_s") or 0.0),
    )
    site_idle, site_running, site_typical = (facility_w(chip, part, where, site) for part in (idle, running, typical))
    pue = (site_running.value - site_idle.value) / max(running.value - idle.value, 1e-9)
    return Economics(
        hour.usd.value / 3600.0, hour.usd.log_sigma, hour.derived, idle.value, running.value - idle.value,
        chip.get("tdp_w") or typical.value, (power_w(chip, flops_per_s=_PROBE_FLOPS).value - running.value) / _PROBE_FLOPS,
        (power_w(chip, bytes_per_s=_PROBE_BYTES).value - running.value) / _PROBE_BYTES, site_idle.value / pue - idle.value, pue,
        site_typical.log_sigma,
    )  # fmt: skip


class _Holder:
    """Lets a chip, whose facts are a dict, travel through a cache keyed by its name and identity."""

    __slots__ = ("chip",)

    def __init__(self, chip: Chip):
        self.chip = chip

    def __hash__(self) -> int:
        return hash(self.chip.name)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Holder) and other.chip is self.chip


def economics(chip: Chip, basis: str = "tco_hyperscaler", site: str = "") -> Economics:
    """Price and power of a chip; raises TrivetError where a fact that they need is unknown."""
    return _economics(chip.name, basis, site, _Holder(chip))


def kv_transfer_s(deployment: Deployment, tokens: float) -> float:
    """Seconds that a prompt's KV cache takes from a prefill to a decode server, all chips of the replica sending at once."""
    layout, settings = deployment.layout, deployment.settings
    per_chip = kv_bytes_per_token(deployment.architecture, layout, kv_dtype=settings.kv_dtype) * tokens
    try:
        level = kv_level(server_of(deployment.chip, deployment.server), deployment.chip)
    except Unsupported:
        return 0.0
    return level.latency_s + per_chip / max(level.bandwidth_bytes_per_s / level.oversubscription, 1.0)


@dataclass(frozen=True, slots=True)
class Work:
    """What a deployment's chip moves: for its power."""

    flops_per_token: float  # of one chip
    weight_bytes: float  # of one chip
    kv_bytes_per_token: float  # of one chip


def work(deployment: Deployment) -> Work:
    """Per-chip work of a token through a deployment (2 FLOPs a weight that the token touches)."""
    settings = deployment.settings
    weights = weight_bytes(
        deployment.architecture, deployment.layout, weight_dtype=settings.weight_dtype, moe_dtype=settings.moe_dtype
    )
    kv = kv_bytes_per_token(deployment.architecture, deployment.layout, kv_dtype=settings.kv_dtype)
    chips = deployment.layout.tp * deployment.layout.pp
    return Work(2.0 * deployment.architecture.active_parameters / chips, weights, kv)
