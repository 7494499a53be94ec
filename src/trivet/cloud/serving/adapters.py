"""LoRA adapters of a replica: how many, where they rest, what loading and using one takes; and the loop's arrays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from trivet.cloud.serving import _loop_lora as c
from trivet.cloud.serving._loop_state import PS
from trivet.cloud.serving.traffic import Traffic
from trivet.errors import TrivetError

MOST_ENTRIES = 1 << 26  # adapters x replicas that a run keeps


@dataclass(frozen=True, slots=True)
class Adapters:
    """What one replica knows of its adapters.

    Args:
        slots: different adapters that one batch, and the device, may hold (vLLM's ``max_loras``).
        host_slots: adapters that host memory holds, those on the device included (``max_cpu_loras``); 0 = all.
        load_s: one adapter from host memory to the device; the step that needs it waits.
        disk_s: the same from disk to host memory.
        step_s: added to a step in which any request uses an adapter (launches).
        adapter_s: added for each different adapter of the batch (its weights are read).
        token_s: added for each token that uses one.
    """

    slots: int
    host_slots: int = 0
    load_s: float = 0.0
    disk_s: float = 0.0
    step_s: float = 0.0
    adapter_s: float = 0.0
    token_s: float = 0.0

    def __post_init__(self) -> None:
        if self.slots < 1:
            raise TrivetError(f"{self.slots}", field="max_loras", allowed="1 or more")
        if self.host_slots and self.host_slots < self.slots:
            raise TrivetError(
                f"{self.host_slots} is below max_loras {self.slots}",
                field="max_cpu_loras",
                allowed="0 (all) or as many",
            )
        for field in ("load_s", "disk_s", "step_s", "adapter_s", "token_s"):
            if not getattr(self, field) >= 0:
                raise TrivetError(f"{getattr(self, field)} is below 0", field=f"adapters.{field}")


def adapters_of(traffic: Traffic) -> int:
    """How many adapters a traffic may name: one more than its highest number; 0 = none."""
    return 0 if traffic.adapter is None else int(traffic.adapter.max(initial=-1)) + 1


def new_lora(count: int, replicas: Sequence[Adapters | None]) -> c.Lora:
    """Adapters at the start: none on any device, the first (the most used) in host memory.

    Args:
        count: different adapters in the traffic.
        replicas: the adapters of each replica. Every one must have some.
    """
    if any(one is None for one in replicas):
        raise TrivetError("the traffic names adapters", field="engine.max_loras", allowed="1 or more on every replica")
    if count * len(replicas) > MOST_ENTRIES:
        raise TrivetError(
            f"{count} adapters on {len(replicas)} replicas", field="adapters", allowed=f"a product up to {MOST_ENTRIES}"
        )
    lora = c.Lora(
        of=np.zeros((len(replicas), count, 4), np.int64),
        ends=np.full((len(replicas), 3, 2), -1, np.int64),
        limits=np.zeros((len(replicas), c.LIMIT_COLUMNS), np.int64),
        counts=np.zeros((len(replicas), c.COUNT_COLUMNS), np.int64),
    )
    for number, one in enumerate(replicas):
        assert one is not None
        lora.limits[number, c.L_SLOTS] = one.slots
        lora.limits[number, c.L_HOST_SLOTS] = one.host_slots or max(count, one.slots)
        for column, seconds in (
            (c.L_LOAD_PS, one.load_s), (c.L_DISK_PS, one.disk_s), (c.L_STEP_PS, one.step_s),
            (c.L_ADAPTER_PS, one.adapter_s), (c.L_TOKEN_PS, one.token_s),
        ):  # fmt: skip
            lora.limits[number, column] = round(seconds * PS)
    held = np.minimum(count, lora.limits[:, c.L_HOST_SLOTS])
    lora.counts[:, c.C_REGISTERED] = held
    for number, size in enumerate(held.tolist()):  # the first is the most recently used
        part = lora.of[number, :size]
        part[:, c.A_PLACE] = c.HOST
        part[:, c.A_NEXT] = np.arange(-1, size - 1)
        part[:, c.A_PREV] = np.arange(1, size + 1)
        part[-1:, c.A_PREV] = -1
        if size:
            lora.ends[number, c.HOST] = size - 1, 0
    return lora
