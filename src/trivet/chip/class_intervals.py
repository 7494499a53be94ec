"""Intervals for what a data sheet leaves out: the range of the catalogue's accelerators of like peak and power.

A chip file may give as little as a peak and a memory; timing, power and cost need more. What is missing is filled with an
interval that says so (status ``unpublished``), never with a bare number, so that it goes through to the answer as a spread.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from trivet.chip.fields import FIELDS
from trivet.facts import Fact

_SOURCE = "not in the chip's file: an interval, with its reason"
# Field -> lo, hi, reason.
_RANGES: dict[str, tuple[float, float, str]] = {
    "l2_bytes": (32e6, 256e6, "last-level caches of the catalogue's data-centre accelerators"),
    "compute_units": (24.0, 152.0, "compute units of the catalogue's accelerators"),
    "clock_hz": (1.0e9, 2.4e9, "clocks of the catalogue's accelerators"),
    "host_bandwidth_bytes_per_s": (31.5e9, 63e9, "PCIe 4.0 x16 to 5.0 x16"),
    "launch_s": (1.5e-6, 6e-6, "the smallest measured GEMM takes 1.5-2.5 us on nine chips"),
    "host_launch_s": (3e-6, 26e-6, "3 us on a fast x86 host with CUDA, 26 us reported for Zhenwu 810E"),
    "process_nm": (4.0, 7.0, "nodes of the catalogue's accelerators since 2020"),
}


def filled(facts: Mapping[str, Fact]) -> dict[str, Fact]:
    """``facts`` of an accelerator with an interval for each needed field that is missing."""
    found = dict(facts)
    for name in ("peak_flops_bf16", "peak_flops_fp16"):
        other = found.get("peak_flops_fp16" if name.endswith("bf16") else "peak_flops_bf16")
        if name == "peak_flops_fp16" and name not in found and other is not None and other.value:
            lo, hi = (other.lo, other.hi) if other.lo else (0.999 * other.value, 1.001 * other.value)
            found[name] = _fact(
                name, lo or 0.0, hi or 0.0, "taken as BF16's, as on every chip that states both", other.value
            )
    peak = next((found[n].value for n in ("peak_flops_bf16", "peak_flops_fp16") if n in found and found[n].value), None)
    for name, (lo, hi, reason) in _RANGES.items():
        if name not in found:
            found[name] = _fact(name, lo, hi, reason)
    if peak:
        if "peak_flops_fp32" not in found:
            found["peak_flops_fp32"] = _fact(
                "peak_flops_fp32", peak / 16, peak / 4, "a sixteenth to a quarter of the 16-bit peak"
            )
        if "tdp_w" not in found:
            lo, hi = max(70.0, peak / 2.6e12), min(1800.0, peak / 0.75e12)
            found["tdp_w"] = _fact("tdp_w", min(lo, hi), max(lo, hi), "0.75-2.6 TFLOP/s a watt")
    limit = found["tdp_w"].value if "tdp_w" in found else None
    if limit and "idle_w" not in found:
        found["idle_w"] = _fact("idle_w", 0.08 * limit, 0.22 * limit, "8-22% of the power limit")
    if "link_bandwidth_bytes_per_s" not in found and found["host_bandwidth_bytes_per_s"].value:
        host = found["host_bandwidth_bytes_per_s"]
        reason = "no scale-up links named: the host link"
        found["link_bandwidth_bytes_per_s"] = _fact(
            "link_bandwidth_bytes_per_s", host.lo or host.value or 0.0, host.hi or host.value or 0.0, reason, host.value
        )
    return found


def _fact(name: str, lo: float, hi: float, reason: str, value: float | None = None) -> Fact:
    middle = math.sqrt(lo * hi) if value is None else value
    return Fact(middle, FIELDS[name].unit, "unpublished", _SOURCE, lo=lo, hi=hi, note=reason)
