"""What a fleet is: replicas, what sends requests to them, and the rules of refusing, failing and scaling."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from trivet.cloud.deployment import EngineSettings, StepTable
from trivet.cloud.serving.adapters import Adapters
from trivet.cloud.serving.autoscale import Autoscale
from trivet.cloud.serving.batching import Batching
from trivet.cloud.serving.faults import LinkOutage, Outage, Retries, outage_events
from trivet.cloud.serving.kvcache import Tier
from trivet.cloud.serving.lockstep import whole_groups
from trivet.errors import TrivetError

if TYPE_CHECKING:
    from trivet.cloud.engine.vision import EncodeTable

ROLES = ("both", "prefill", "decode")
LONGEST_TRANSFER_S = 8000.0  # with outages of links: 1,024 times its picoseconds are an int64


@dataclass(frozen=True, slots=True, eq=False)
class ReplicaKind:
    """``count`` equal replicas.

    Args:
        table: step times; its ``kv_blocks`` hold unless ``settings.num_kv_blocks`` is given.
        settings: the engine's settings.
        role: "both", or "prefill" / "decode" in a disaggregated fleet.
        rules: the scheduler; None = the engine's own (``batching``).
        tiers: KV tiers below HBM.
        chips: chips of one replica, for rates a chip.
        name: shown in results.
        adapters: what it knows of LoRA adapters; needed where the traffic names some.
        encode: time to encode an image; needed where the traffic holds some.
        ranks: so many consecutive ones are attention-DP ranks of one engine and share every step (1 = each steps alone).
    """

    table: StepTable
    settings: EngineSettings
    count: int = 1
    role: str = "both"
    rules: Batching | None = None
    tiers: tuple[Tier, ...] = ()
    chips: int = 1
    name: str = ""
    adapters: Adapters | None = None
    ranks: int = 1
    encode: EncodeTable | None = None

    @property
    def kv_blocks(self) -> int:
        return self.settings.num_kv_blocks or self.table.kv_blocks


@dataclass(frozen=True, slots=True)
class Transfer:
    """KV from a prefill to a decode replica: fixed time and time a token of context."""

    base_s: float = 0.0
    per_token_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Admission:
    """When a request is refused on arrival: queue of its replica too long, or time to first token hopeless. 0 = never."""

    max_queue: int = 0
    max_wait_s: float = 0.0


@dataclass(frozen=True, slots=True, eq=False)
class Fleet:
    """Replicas, and what sends requests to them."""

    kinds: tuple[ReplicaKind, ...]
    router: str = "least_outstanding"
    transfer: Transfer = Transfer()
    admission: Admission = Admission()
    retries: Retries = field(default_factory=Retries)
    outages: tuple[Outage, ...] = ()
    link_outages: tuple[LinkOutage, ...] = ()
    autoscale: Autoscale | None = None
    seed: int = 0

    @property
    def replicas(self) -> int:
        return sum(kind.count for kind in self.kinds)

    @property
    def chips(self) -> int:
        return sum(kind.count * kind.chips for kind in self.kinds)

    @property
    def lock_step(self) -> bool:
        """Whether any engine has ranks that share their steps."""
        return any(kind.ranks > 1 for kind in self.kinds)

    @property
    def events(self) -> NDArray[np.int64]:
        """Who goes down and comes up when, the ranks of an engine together."""
        first: list[int] = []
        for kind in self.kinds:
            start = len(first)
            first += [start + i // kind.ranks * kind.ranks for i in range(kind.count)]
        ranks = [kind.ranks for kind in self.kinds for _ in range(kind.count)]
        return outage_events(whole_groups(self.outages, first, ranks), self.replicas)


def check(fleet: Fleet) -> None:
    """Raise a ``TrivetError`` that names the field where the description does not hold together."""
    if not fleet.kinds:
        raise TrivetError("no replicas", field="kinds")
    roles = {kind.role for kind in fleet.kinds}
    for kind in fleet.kinds:
        if kind.role not in ROLES:
            raise TrivetError(f"unknown role {kind.role!r}", field="role", allowed=ROLES)
        if kind.count < 1:
            raise TrivetError(f"{kind.count} replicas", field="count", allowed="1 or more")
        if kind.ranks < 1 or kind.count % kind.ranks:
            raise TrivetError(f"{kind.ranks} do not divide {kind.count} replicas", field="ranks")
        if kind.kv_blocks < 1:
            raise TrivetError(
                f"{kind.kv_blocks} KV blocks: the model leaves no memory", field="num_kv_blocks", allowed="1 or more"
            )
        if kind.settings.max_num_seqs < 1 or kind.settings.max_num_batched_tokens < 1:
            raise TrivetError("must be positive", field="max_num_seqs, max_num_batched_tokens")
    if fleet.lock_step and fleet.autoscale is not None:
        raise TrivetError(
            "ranks in lock-step are not scaled one by one", field="autoscale", allowed="engine.lock_step: false"
        )
    if ("prefill" in roles) != ("decode" in roles) or ("both" in roles and len(roles) > 1):
        raise TrivetError(f"roles {sorted(roles)}", field="role", allowed="all both, or some prefill and some decode")
    if fleet.link_outages and "prefill" not in roles:
        raise TrivetError("no KV travels between replicas", field="outages.links", allowed="prefill and decode apart")
    longest = max(kind.kv_blocks * kind.settings.block_size for kind in fleet.kinds) * fleet.transfer.per_token_s
    if fleet.link_outages and fleet.transfer.base_s + longest > LONGEST_TRANSFER_S:
        raise TrivetError("takes too long", field="transfer", allowed=f"up to {LONGEST_TRANSFER_S:g} s a prompt")
