"""A chip that does not exist: one with a parameter changed, and what the change does to area, power and cost.

``vary`` scales a parameter's fields, then moves die area by the ratio that the area model gives (so that a chip with a
published die keeps its anchor) and the power limit and idle power by what the changed part draws at full use.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from trivet.chip import silicon
from trivet.chip.power import byte_j, flop_j, node_energy
from trivet.chip.spec import Chip
from trivet.errors import TrivetError
from trivet.facts import Fact

_MATRIX = tuple(f"peak_flops_{d}" for d in ("bf16", "fp16", "tf32", "fp8", "int8", "fp4"))
# Parameter -> the fields that it scales together.
PARAMETERS: dict[str, tuple[str, ...]] = {
    "matrix": _MATRIX,
    "vector": ("peak_flops_fp32",),
    "clock": ("clock_hz", "peak_flops_fp32", *_MATRIX),
    "units": ("compute_units", "peak_flops_fp32", *_MATRIX),
    "memory_bandwidth": ("memory_bandwidth_bytes_per_s", "memory_clock_hz"),
    "memory_capacity": ("memory_bytes",),
    "memory_stacks": ("memory_stacks", "memory_bandwidth_bytes_per_s", "memory_bytes"),
    "cache": ("l2_bytes",),
    "links": ("link_bandwidth_bytes_per_s",),
    "host_link": ("host_bandwidth_bytes_per_s",),
    "power_limit": ("tdp_w",),
    "launch": ("launch_s",),
    "host_launch": ("host_launch_s",),
}
_BENCHMARK = {
    "matrix": "bench_gemm_4096_s", "clock": "bench_gemm_4096_s", "units": "bench_gemm_4096_s",
    "memory_bandwidth": "bench_gemv_s", "memory_stacks": "bench_gemv_s",
}  # fmt: skip
_LINK_W_PER_BYTE_PER_S = 2 * 8 * 5e-12  # both directions at 5 pJ a bit


def vary(chip: Chip, parameter: str, factor: float) -> Chip:
    """``chip`` with ``parameter`` (a key of PARAMETERS, or one field) times ``factor``.

    Latencies (``launch``, ``host_launch``) scale like any field: 0.9 is a faster launch. Intervals scale too.

    Raises:
        TrivetError: an unknown parameter, a factor that is not positive, or a chip that lacks the fields.
    """
    changed = compose(chip, {parameter: factor})
    return replace(changed, name=f"{chip.name}+{parameter}x{factor:g}")


def compose(chip: Chip, factors: Mapping[str, float]) -> Chip:
    """``chip`` with several parameters scaled at once, area and power settled once; name and the rest stay."""
    facts = dict(chip.facts)
    for parameter, factor in factors.items():
        if factor <= 0:
            raise TrivetError(f"{factor} is not positive", field="factor")
        present = [name for name in PARAMETERS.get(parameter, (parameter,)) if name in facts]
        if not present:
            raise TrivetError(f"{chip.name} has no {parameter!r}", field="parameter", allowed=PARAMETERS)
        for name in present:
            facts[name] = scaled(facts[name], factor, f"{parameter} x {factor:g}")
        # A measured benchmark is the base's: the variant's runs faster by as much as the part that governs it.
        bench = _BENCHMARK.get(parameter, "")
        if bench in facts:
            facts[bench] = scaled(facts[bench], 1.0 / factor, f"{parameter} x {factor:g}")
    return settle(chip, replace(chip, facts=facts, aliases=()), keep_power="power_limit" in factors)


def ported(chip: Chip, process_nm: float) -> Chip:
    """The same design on another node: area by the density, arithmetic power by the energy of an operation there."""
    facts = dict(chip.facts)
    if "process_nm" not in facts:
        raise TrivetError("the node is not known", field=f"{chip.name}: process_nm")
    facts["process_nm"] = replace(
        facts["process_nm"], value=process_nm, lo=None, hi=None, status="derived", note="ported", conflicts=()
    )
    moved = replace(chip, facts=facts, aliases=())
    if "die_area_m2" in facts:
        ratio = silicon.area_mm2(moved).value / silicon.area_mm2(chip).value
        facts["die_area_m2"] = scaled(facts["die_area_m2"], ratio, "ported")
    peak = chip.get("peak_flops_bf16") or chip.get("peak_flops_fp16") or 0.0
    limit = chip.get("tdp_w") or 0.0
    if limit and peak:
        saved = peak * flop_j(chip).value * (1.0 - node_energy(process_nm) / node_energy(chip.get("process_nm") or 7.0))
        facts["tdp_w"] = scaled(facts["tdp_w"], max(0.2, 1.0 - saved / limit), "ported")
    return replace(moved, facts=facts)


def settle(base: Chip, changed: Chip, keep_power: bool = False) -> Chip:
    """Area and power limit of ``changed`` moved from ``base``'s by what the models say of the difference."""
    facts = dict(changed.facts)
    note = "moved by the area and power models"
    ratio = silicon.area_mm2(changed).value / silicon.area_mm2(base).value
    if "die_area_m2" in facts:
        facts["die_area_m2"] = scaled(facts["die_area_m2"], ratio, note)
    if not keep_power and "tdp_w" in facts:
        more = full_use_w(changed, base) - full_use_w(base, base)
        limit = facts["tdp_w"].value or 0.0
        facts["tdp_w"] = scaled(facts["tdp_w"], max(0.2, 1.0 + more / limit), note)
        if "idle_w" in facts:
            facts["idle_w"] = scaled(facts["idle_w"], max(0.2, ratio), note)
    return replace(changed, facts=facts)


def full_use_w(chip: Chip, energies_of: Chip) -> float:
    """Watts of arithmetic, a third of the memory rate and links at full use, at the energies of another chip.

    A higher clock takes a higher voltage: energy grows with its square, about with the clock.
    """
    peak = chip.get("peak_flops_bf16") or chip.get("peak_flops_fp16") or 0.0
    memory = 0.35 * (chip.get("memory_bandwidth_bytes_per_s") or 0.0) * byte_j(energies_of).value
    links = (chip.get("link_bandwidth_bytes_per_s") or 0.0) * _LINK_W_PER_BYTE_PER_S
    leakage = 0.04 * silicon.area_mm2(chip).value
    voltage = (chip.get("clock_hz") or 1.0) / (energies_of.get("clock_hz") or 1.0)
    return peak * flop_j(energies_of).value * voltage + memory + links + leakage


def scaled(fact: Fact, factor: float, note: str) -> Fact:
    """The fact times ``factor``, interval and all, marked derived."""

    def times(number: float | None) -> float | None:
        return None if number is None else number * factor

    return replace(
        fact, value=times(fact.value), lo=times(fact.lo), hi=times(fact.hi), status="derived", note=note, conflicts=()
    )
