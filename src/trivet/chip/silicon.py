"""A parametric chip: die area from its units, caches and PHYs; yield; bill of materials.

Area (mm2) of all compute dies::

    A = [ a_m * matrix FLOP per clock + a_v * vector FLOP per clock ] / density(node)
        + sram(node) * last-level cache + 10.45 * HBM stacks (or 60 a TB/s of GDDR) + links + PCIe + base * dies

``density`` is logic relative to 7 nm. ``a_m``, ``a_v`` and ``base`` are fitted to the dies whose area is published
(``fit_area``); the constants below are its result and a test refits them. Wafers, yield, HBM and packaging come from
``data/prices/silicon.yaml``. Yield is negative binomial, Y = (1 + D A / c)^-c, with c the critical level; dies with a
defect are partly salvaged with units switched off.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from trivet.chip import estimate
from trivet.chip.catalogue import chip as catalogue_chip
from trivet.chip.estimate import Estimate
from trivet.chip.reading import price_sheet
from trivet.chip.spec import Chip
from trivet.errors import Unsupported
from trivet.units import Z80

KNOWN_DIES = (
    "p100",
    "v100",
    "t4",
    "a10",
    "a100-80gb",
    "h100",
    "l4",
    "l40s",
    "rtx-4090",
    "rtx-pro-6000",
    "b200",
    "tpu-v4",
    "mi300x",
    "b60",
)
# Million transistors a mm2 that large accelerators reach at a node, over the 65 of 7 nm.
_DENSITY = {16: 0.385, 12: 0.4, 8: 0.69, 7: 1.0, 5: 1.69, 4: 1.69, 3: 2.3}
_SRAM_MM2_PER_MIB = {16: 1.6, 12: 1.6, 8: 0.75, 7: 0.65, 5: 0.50, 4: 0.50, 3: 0.48}  # bit cells at 45% efficiency
_GDDR_MM2_PER_TBPS = 60.0  # 384 bits of GDDR6X at 1 TB/s on AD102
_DDR_CHANNEL_MM2 = 8.0
AREA_SIGMA = 0.14  # log standard deviation of the fit on families left out
COEFFICIENTS = (108.19, 134.66, 144.85)  # mm2 at 7 nm: 1e5 matrix FLOP a clock, 1e4 vector FLOP a clock, a die's base
RETICLE_MM2 = 858.0
_HBM2_BYTES_PER_S, _HBM3_BYTES_PER_S = 0.41e12, 0.67e12  # one stack of HBM2e (A100), of HBM3 (H100)


@dataclass(frozen=True, slots=True)
class Bill:
    """What one packaged chip costs to make, USD, part by part."""

    parts: dict[str, Estimate]
    dies: int
    yield_: Estimate  # share of dies that are sold

    @property
    def total(self) -> Estimate:
        return estimate.total(self.parts.values())


def area_mm2(chip: Chip) -> Estimate:
    """Modelled area of all compute dies together, with the fit's error and the spread of unknown fields."""
    parts = area_parts(chip)
    total = estimate.total(parts.values())
    return Estimate(total.value, {**total.spread, "area model": AREA_SIGMA})


def area_parts(chip: Chip) -> dict[str, Estimate]:
    """Modelled area by what it is for: matrix, vector, cache, memory PHY, links, PCIe, base."""
    matrix, vector = _per_clock(chip)
    logic = _by_node(chip, _DENSITY, "density of the node")
    a_m, a_v, base = COEFFICIENTS
    parts = {
        "matrix": matrix * (a_m / 1e5) / logic,
        "vector": vector * (a_v / 1e4) / logic,
        "base": Estimate(base * dies(chip)),
    }
    return {**parts, **_fixed_parts(chip)}


def die_area_mm2(chip: Chip) -> Estimate:
    """Area to build: the published one where there is one, else the model's."""
    fact = chip.facts.get("die_area_m2")
    if fact is not None and fact.value and fact.lo is None:
        return Estimate(fact.value * 1e6)
    return area_mm2(chip)


def dies(chip: Chip) -> int:
    """Compute dies in the package: as published, else as few as the reticle allows."""
    known = chip.get("dies")
    return int(known) if known else 1


def fit_area(names: Iterable[str] = KNOWN_DIES) -> tuple[float, float, float]:
    """Least squares of relative error, coefficients not below zero, over published dies; see COEFFICIENTS."""
    import numpy as np
    from scipy.optimize import nnls

    rows, left = [], []
    for name in names:
        chip = catalogue_chip(name)
        published = (chip.get("die_area_m2") or 0.0) * 1e6
        matrix, vector = _per_clock(chip)
        density = _DENSITY[_nearest(chip.get("process_nm") or 7, _DENSITY)]
        fixed = sum(part.value for part in _fixed_parts(chip).values())
        rows.append(
            [matrix.value / 1e5 / density / published, vector.value / 1e4 / density / published, dies(chip) / published]
        )
        left.append((published - fixed) / published)
    solution, _ = nnls(np.array(rows), np.array(left))
    return float(solution[0]), float(solution[1]), float(solution[2])


def die_yield(area: Estimate, node: float, chip_name: str = "") -> Estimate:
    """Share of dies without a defect, negative binomial; ``area`` of one die, mm2."""
    sheet = price_sheet("silicon")
    defects = estimate.of(sheet[f"defects_per_cm2_{_nearest(node, _wafer_nodes())}"], "defect density")
    critical = sheet["yield_critical_level"].value or 10.0
    mean = defects.value * area.value / 100.0
    value = (1.0 + mean / critical) ** -critical
    # d log Y / d log(D A) = -mean / (1 + mean / c)
    slope = -mean / (1.0 + mean / critical)
    spread = {name: slope * s for name, s in (defects * area).spread.items()}
    return Estimate(value, spread)


def dies_per_wafer(area: float, diameter: float = 300.0) -> float:
    """Gross dies of ``area`` mm2 on a round wafer of ``diameter`` mm, the edge's loss taken off."""
    return math.pi * (diameter / 2) ** 2 / area - math.pi * diameter / math.sqrt(2 * area)


def bill_of_materials(chip: Chip) -> Bill:
    """Wafers, memory, packaging, test of one good chip; USD with intervals.

    Raises:
        Unsupported: a chip without area facts (a drive).
    """
    if chip.role == "ssd_controller":
        raise Unsupported("a drive has no bill of materials here", field=chip.name)
    sheet = price_sheet("silicon")
    node = chip.get("process_nm") or 7.0
    count = dies(chip)
    whole = die_area_mm2(chip)
    one = whole / max(count, math.ceil(whole.value / RETICLE_MM2))
    pieces = whole.value / one.value
    clean = die_yield(one, node, chip.name)
    salvage = estimate.of(sheet["salvage"], "share of defective dies that is salvaged")
    sold = Estimate(
        clean.value + (1 - clean.value) * salvage.value,
        {
            **{name: s * clean.value * (1 - salvage.value) for name, s in clean.spread.items()},
            **{name: s * (1 - clean.value) * salvage.value for name, s in salvage.spread.items()},
        },
    )
    wafer = estimate.of(sheet[f"wafer_usd_{_nearest(node, _wafer_nodes())}"], "wafer price")
    logic = wafer * (pieces / dies_per_wafer(one.value)) / sold
    logic = Estimate(logic.value, {**logic.spread, **{n: logic.spread.get(n, 0.0) + s for n, s in one.spread.items()}})
    parts = {"logic": logic, "memory": _memory_usd(chip), **_packaging_usd(chip, whole)}
    return Bill(parts, int(pieces), sold)


def _memory_usd(chip: Chip) -> Estimate:
    sheet = price_sheet("silicon")
    size = chip.get("memory_bytes") or 0.0
    if size <= 0:
        return Estimate(0.0)
    gigabytes = estimate.of(chip.facts.get("memory_bytes"), f"{chip.name} memory_bytes") / 2**30
    if chip.role == "cpu":
        return gigabytes * estimate.of(sheet["ddr5_usd_per_gb"], "DDR5 price")
    stacks, bandwidth = chip.get("memory_stacks"), chip.get("memory_bandwidth_bytes_per_s") or 0.0
    if not stacks and bandwidth < 2e12:
        return gigabytes * estimate.of(sheet["gddr_usd_per_gb"], "GDDR price")
    per_stack = bandwidth / (stacks or max(1.0, bandwidth / 0.8e12))
    old, new = (estimate.of(sheet[f"hbm_usd_per_gb_{g}"], "HBM price") for g in (2, 3))
    # HBM2e (0.41 TB/s a stack) and HBM3 (0.67) are the two prices known; between them in proportion of logarithms,
    # above with the cube root: the price of faster pins within a generation is not published.
    step = math.log(per_stack / _HBM2_BYTES_PER_S) / math.log(_HBM3_BYTES_PER_S / _HBM2_BYTES_PER_S)
    share = min(1.0, max(0.0, step))
    price = Estimate(
        old.value ** (1 - share) * new.value**share, {"HBM price": (1 - share) * old.log_sigma + share * new.log_sigma}
    )
    return gigabytes * price * float(max(1.0, per_stack / _HBM3_BYTES_PER_S) ** (1 / 3))


def _packaging_usd(chip: Chip, area: Estimate) -> dict[str, Estimate]:
    sheet = price_sheet("silicon")
    substrate = estimate.of(sheet["substrate_usd_per_cm2"], "substrate and assembly")
    test = estimate.of(sheet["test_and_other_usd"], "test and other")
    stacks = chip.get("memory_stacks") or 0.0
    if chip.role == "cpu" or not stacks:
        # No interposer; test scales with the die.
        return {"packaging": substrate * (area * 2.0 / 100.0), "test and other": test * (area / 814.0)}
    footprint = (area + 110.0 * stacks) * 1.15  # an HBM stack covers 110 mm2
    wafer = estimate.of(sheet["cowos_wafer_usd"], "interposer wafer")
    bond = estimate.of(sheet["interposer_bond_yield"], "bonding yield")
    interposer = wafer * footprint * (1.0 / (0.75 * math.pi * 150.0**2)) / bond
    board = substrate * (footprint * 2.2 / 100.0)
    # One bad bond loses die and memory: the scrap is charged with the interposer.
    return {"packaging": interposer + board, "test and other": test * (0.7 + 0.3 * area / 814.0)}


def _per_clock(chip: Chip) -> tuple[Estimate, Estimate]:
    """Matrix and vector FLOP a clock of all dies."""
    clock = estimate.of(chip.facts.get("clock_hz"), f"{chip.name} clock_hz")
    field = "peak_flops_bf16" if chip.get("peak_flops_bf16") else "peak_flops_fp16"
    if chip.role == "sram_accelerator" and chip.get("peak_flops_int8"):
        # Horowitz (ISSCC 2014): an INT8 multiply-add takes a seventh to a tenth of the area of a 16-bit one.
        matrix = estimate.of(chip.facts.get("peak_flops_int8"), f"{chip.name} peak_flops_int8") / 8.0
    elif chip.role == "cpu":
        matrix = Estimate(0.0)
    else:
        matrix = estimate.of(chip.facts.get(field), f"{chip.name} {field}")
    vector_fact = chip.facts.get("peak_flops_fp32")
    vector = estimate.of(vector_fact, f"{chip.name} peak_flops_fp32") if vector_fact else Estimate(0.0)
    if chip.family == "tpu":
        vector = clock * 4096.0  # two cores of 128 lanes x 8 sublanes x 2: the interval of other chips does not apply
    return matrix / clock, vector / clock


def _fixed_parts(chip: Chip) -> dict[str, Estimate]:
    sheet = price_sheet("silicon")
    sram = _by_node(chip, _SRAM_MM2_PER_MIB, "SRAM density")
    cache_fact = chip.facts.get("sram_bytes") or chip.facts.get("l2_bytes")
    cache = estimate.of(cache_fact, f"{chip.name} cache") if cache_fact else Estimate(0.0)
    stacks_fact = chip.facts.get("memory_stacks")
    bandwidth = chip.get("memory_bandwidth_bytes_per_s") or 0.0
    if stacks_fact is not None and chip.role != "cpu":
        phy = estimate.of(stacks_fact, f"{chip.name} memory_stacks") * (sheet["hbm_phy_mm2"].value or 0.0)
    elif chip.role == "cpu":
        phy = Estimate((chip.get("memory_stacks") or 0.0) * _DDR_CHANNEL_MM2)
    else:
        phy = Estimate(bandwidth / 1e12 * _GDDR_MM2_PER_TBPS)
    # NVLink 4 takes 0.965 mm2 for 25 GB/s a direction; links below PCIe speed are PCIe's own lanes.
    link = chip.get("link_bandwidth_bytes_per_s") or 0.0
    scale_up = link if chip.get("link_ports") or link > 70e9 else 0.0
    lanes = chip.get("pcie_lanes") or 16.0
    return {
        "cache": sram * cache * (1.0 / 2**20),
        "memory PHY": phy,
        "links": Estimate(scale_up / 25e9 * (sheet["nvlink4_mm2"].value or 0.0)),
        "PCIe": Estimate(lanes * (sheet["pcie5_lane_mm2"].value or 0.0)),
    }


def _by_node(chip: Chip, table: dict[int, float], name: str) -> Estimate:
    """A node's entry; an unknown node spreads it over its interval."""
    fact = chip.facts.get("process_nm")
    if fact is None or fact.value is None:
        return estimate.between(min(table.values()), max(table.values()), f"{chip.name} process_nm")
    value = table[_nearest(fact.value, table)]
    if fact.lo is None or fact.hi is None:
        return Estimate(value)
    ends = sorted((table[_nearest(fact.lo, table)], table[_nearest(fact.hi, table)]))
    sigma = math.log(ends[1] / ends[0]) / (2 * Z80)
    # Denser logic and denser SRAM are the same doubt: the node. Density falls as the SRAM cell grows.
    sign = 1.0 if name.startswith("density") else -1.0
    return Estimate(value, {f"{chip.name} process_nm": sign * sigma} if sigma else {})


def _nearest(node: float, table: Iterable[int]) -> int:
    return min(table, key=lambda nm: abs(math.log(nm / node)))


def _wafer_nodes() -> tuple[int, ...]:
    return (3, 4, 5, 7, 10, 12, 16)
