"""What training software reaches on a chip: the few constants of the step model, with where each came from.

They are shares and factors of physical terms; ``loop/calibrate_training.py`` fits them to measured runs and the result
lies in ``data/calibration/training.json``. Nothing here belongs to one model or one run.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, fields, replace
from functools import lru_cache
from importlib import resources
from typing import Any

from trivet.errors import TrivetError


@dataclass(frozen=True, slots=True)
class Constants:
    """The constants; every share is in (0, 1] of an ideal term, every factor multiplies one."""

    # FLOP/s that large kernels sustain on a chip, measured one by one: matrix products by dtype, "attention" forward (BF16)
    sustained: dict[str, dict[str, float]] = field(default_factory=dict)
    # training's products over those, by what the multiply-adds run at
    gemm: dict[str, float] = field(default_factory=lambda: {"bf16": 1.0, "fp8": 1.0, "fp4": 1.0, "int8": 1.0})
    # what the power limit leaves of a generation's matrix rate in hours of training; benchmarks run for milliseconds
    throttle: dict[str, float] = field(default_factory=lambda: {"hopper": 0.9, "blackwell": 0.9})
    gemm_framework: dict[str, float] = field(default_factory=lambda: {"fsdp": 1.0})
    grouped: float = 0.8  # grouped products over plain ones
    attention_forward: float = 1.0
    attention_backward: float = 0.8  # over the forward pass's rate
    attention_framework: dict[str, float] = field(
        default_factory=lambda: {"fsdp-2023": 0.7, "fsdp-2023.hopper": 0.7}
    )  # kernels of 2023
    scan: float = 0.2  # share of the peak in chunked scans
    scan_passes: float = 12.0  # over the values: cumulative sums, chunk states, their passing, outputs
    stream: float = 0.8  # share of the memory bandwidth
    stream_factor: dict[str, float] = field(default_factory=lambda: {"megatron": 1.0, "fsdp": 1.3, "deepspeed": 1.3})
    cast_factor: dict[str, float] = field(default_factory=lambda: {"fp8": 1.0, "mxfp8": 1.3, "nvfp4": 2.0, "int8": 1.0})
    # host time of one layer's forward and backward passes, seconds
    host_dense_s: float = 1.0e-3  # half for attention, half for a dense feed-forward
    host_scan_s: float = 2.0e-3
    host_expert_s: float = 8.0e-3
    host_grace: float = 0.8  # hosts of Grace superchips over x86 ones
    host_captured: float = 0.2  # what graph capture leaves of it
    host_power: float = 1.5  # how host and device times join: (h^p + d^p)^(1/p)
    # share of a transfer that stays visible although the framework overlaps it
    exposed_tp: float = 0.5
    exposed_cp: float = 0.2
    exposed_ep: float = 0.25  # where another micro-batch's compute hides the exchange (DualPipe, 1F1B overlap)
    overlap_units: float = 0.15  # of the chip's units that such an overlap takes (20 of 132 in DeepSeek-V3)
    exposed_pp: float = 0.5
    exposed_dp: float = 0.2
    exposed_fsdp: float = 0.5
    transfer: float = 1.0  # time of collectives over the fabric model's
    optimizer: float = 1.5  # over the compulsory traffic of the update
    drift: float = (
        0.01  # time lost a month by containers older than the newest calibrated spring (26.04), at most three
    )
    step_s: float = 5e-3  # data loading, clipping, logging: once a step
    log_sigma: float = 0.08  # what is left on models and shapes that were not calibrated
    sigma: dict[str, float] = field(default_factory=dict)  # extra spread where a job leaves what was calibrated

    def with_(self, **changes: Any) -> Constants:
        return replace(self, **changes)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, raw: dict[str, Any]) -> Constants:
        known = {f.name for f in fields(cls)}
        unknown = sorted(set(raw) - known)
        if unknown:
            raise TrivetError(f"unknown constants {unknown}", field="training.json", allowed=sorted(known))
        return cls(**raw)


@lru_cache(maxsize=1)
def shipped() -> Constants:
    """The constants of ``data/calibration/training.json``."""
    text = (resources.files("trivet.data") / "calibration" / "training.json").read_text(encoding="utf-8")
    return Constants.from_dict(json.loads(text)["constants"])
