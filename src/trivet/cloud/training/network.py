"""Where the parallel groups of a job lie on the fabric, and what their collectives take.

Ranks are laid out as Megatron does: tensor parallelism innermost, then context, data, pipeline outermost; experts take
``etp`` innermost, then ``ep``. A group whose members lie ``stride`` chips apart finds ``domain / stride`` of them in a domain.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from trivet.cloud import collectives, fabric
from trivet.cloud.collectives import Level
from trivet.cloud.fabric import Server
from trivet.cloud.training.job import TrainingJob
from trivet.operators import Transfer


@dataclass(frozen=True, slots=True)
class Network:
    """A server type and, where it differs from the catalogue's, the network bandwidth of one chip and direction."""

    server: Server
    chip_bandwidth_bytes_per_s: float = 0.0
    oversubscription: float = 0.0  # of the scale-out network; 0 = the fabric's own

    def levels(self, job: TrainingJob, group: int, stride: int) -> list[Level]:
        """Levels that a group crosses, innermost first, as the collectives' model reads them."""
        found = []
        for level in fabric.levels(self.server, group, job.chip, stride):
            rate = level.bandwidth_bytes_per_s
            over = level.oversubscription
            if level.scale_out:
                rate = self.chip_bandwidth_bytes_per_s or rate
                over = max(over, self.oversubscription)
            found.append(Level(level.size, rate / over, level.latency_s, False, level.log_sigma))
        return found


def of(job: TrainingJob) -> Network:
    """The network of the job's server: named, or the chip's default."""
    server = fabric.server_of(job.chip, job.server)
    return Network(server, job.node_network_bytes_per_s / server.chips)


def strides(job: TrainingJob) -> dict[str, int]:
    """Chips between neighbours of each parallel group."""
    split = job.split
    return {
        "tp": 1,
        "ep": 1,
        "cp": split.tp,
        "dp": split.tp * split.cp,
        "dp_cp": split.tp,
        "expert_dp": split.ep * split.etp,
        "pp": split.tp * split.cp * split.dp,
    }


class Fabric:
    """Collective times of one job; remembers what it was asked."""

    def __init__(self, job: TrainingJob, network: Network):
        self.job, self.network = job, network
        self._strides = strides(job)
        self._known: dict[tuple[str, float, int, str, int], float] = {}

    def seconds(self, kind: str, size: float, group: int, axis: str, apart: int = 1) -> float:
        """One collective of ``size`` bytes (see ``Transfer.bytes``) among ``group`` chips along ``axis``, taking every
        ``apart``-th chip of the axis."""
        if group <= 1 or size <= 0:
            return 0.0
        key = (kind, size, group, axis, apart)
        if key not in self._known:
            levels = self.network.levels(self.job, group, self._strides[axis] * apart)
            found: Any = collectives.time(Transfer(axis, kind, size, group, axis), levels, self.job.chip, "nccl")
            self._known[key] = float(found.value_s)
        return self._known[key]

    def transfer(self, transfer: Transfer) -> float:
        """Seconds of a model's transfer, times its count."""
        return self.seconds(transfer.kind, float(transfer.bytes), transfer.group, transfer.axis) * transfer.count

    def send(self, size: float) -> float:
        """A pipeline boundary: neighbours lie ``tp * cp * dp`` chips apart."""
        return self.seconds("send", size, 2, "pp")

    def exchange(self, row_bytes: float, rows: float, top_k: int) -> float:
        """Dispatch (or combine) of experts: every one of a chip's ``rows`` goes once to each scale-up domain that holds one of
        its ``top_k`` experts, and inside it once to each chip that does (hybrid expert parallelism, DeepEP)."""
        split = self.job.split
        group = split.ep * split.etp
        if group <= 1 or rows <= 0:
            return 0.0
        levels = self.network.levels(self.job, group, 1)
        inside = min(group, levels[0].chips) if len(levels) > 1 or group <= levels[0].chips else 1
        outside = group / inside
        everywhere = group * (1.0 - (1.0 - 1.0 / split.ep) ** top_k) if split.ep > 1 else float(group)
        domains = outside * (1.0 - (1.0 - 1.0 / outside) ** top_k)
        if self.job.routed_domains:
            domains = min(domains, float(self.job.routed_domains))
        near = rows * everywhere * row_bytes * (1.0 - 1.0 / group)
        seconds = self._rate_s(near, levels[0])
        if outside > 1:
            seconds = max(seconds, self._rate_s(rows * domains * row_bytes * (1.0 - 1.0 / outside), levels[-1]))
        return seconds

    def _rate_s(self, size: float, level: Level) -> float:
        found: Any = collectives.time(Transfer("ep", "send", size, 2, "ep"), [level], self.job.chip, "nccl")
        return float(found.value_s)
