"""A chip at one precision, as plain numbers: what the timing model needs, with the spread of what is not published."""

from __future__ import annotations

import math
from dataclasses import dataclass

from trivet.chip.spec import Chip
from trivet.errors import Unsupported

# Which peak a matrix dtype runs at, best first; a later entry means that the operands are widened on the way in.
PEAKS = {
    "bf16": ("bf16", "fp16", "fp32"),
    "fp16": ("fp16", "bf16", "fp32"),
    "fp32": ("fp32",),
    "tf32": ("tf32", "fp32"),
    "fp8": ("fp8", "bf16", "fp16", "fp32"),
    "int8": ("int8", "bf16", "fp16", "fp32"),
    "fp4": ("fp4", "bf16", "fp16", "fp32"),
}
# Precision label -> the dtype whose peak the multiply-adds run at where the chip has it.
MATH = {
    "fp32": "fp32", "tf32": "tf32", "bf16": "bf16", "fp16": "fp16", "fp8": "fp8", "fp8_block": "fp8", "mxfp8": "fp8",
    "int8": "int8", "int8_wo": "bf16", "int4_wo": "bf16", "nvfp4": "fp4", "mxfp4": "bf16", "w4a8_mxfp4": "fp8",
}  # fmt: skip
CDNA = ("cdna3", "cdna4")  # families of AMD, where the kernels of its library AITER run under every engine
# Families whose cores run a whole product through systolic arrays, fed by a compiler's copies ahead of time. A core is no unit
# that one tile fills, and what it reads does not wait for a block's chain of addresses: they count as as many units as a GPU of
# their peak has, of UNIT_PEAK_FLOPS each in 16 bits (A100 2.9, H100 7.5, B200 15 TFLOP/s; MI300X 4.3).
SYSTOLIC = ("tpu", "neuron", "gaudi", "davinci")
UNIT_PEAK_FLOPS = 6e12
# Bits an operand has in the matrix unit, for tile shapes.
OPERAND_BYTES = {"fp32": 4.0, "tf32": 4.0, "bf16": 2.0, "fp16": 2.0, "fp8": 1.0, "int8": 1.0, "fp4": 0.5}

# What a power limit allows large products, FLOP/s a watt at USUAL_CYCLE_FLOPS operations a unit and cycle. An instruction that
# does more fetches less an operation, and narrower operands cost less: exponents. From sustained products of nine chips of 4 and
# 5 nm (docs/timing.md), which agree within 10%; A100 at 7 nm stays below.
FLOPS_PER_WATT, USUAL_CYCLE_FLOPS, FETCH_SAVED, NARROW_SAVED = 1.35e12, 4096.0, 0.4, 0.45
EXPONENTIALS = 16.0  # a unit and cycle, on every NVIDIA chip from A100 to B200 (CUDA programming guide: special function units)
STACKED_BANDWIDTH = 1.9e12  # memory as fast as this is stacked, whether the data sheet counts its stacks or not


@dataclass(frozen=True, slots=True)
class Value:
    """A positive number and the standard deviation of its logarithm."""

    value: float
    log_sigma: float = 0.0


@dataclass(frozen=True, slots=True)
class ChipPoint:
    """One chip at one matrix precision; all SI."""

    name: str
    family: str
    math: str  # the dtype the multiply-adds run at
    native: bool  # False: the chip lacks the dtype, weights are widened on the way in
    peak_flops: float
    vector_flops: float
    bandwidth: float
    l2_bytes: float
    units: float
    clock_hz: float
    memory_bytes: float
    link_bandwidth: float
    watts: float
    launch_s: float  # 0 = take the library's
    host_launch_s: float
    sigma_compute: float
    sigma_bandwidth: float
    sigma_cache: float
    bench: tuple[float, float, float]  # measured GEMM, GEMV, tiny GEMM; 0 = not measured
    fed_flops: float = 0.0  # peak that operands can be fed at: halving their width at most doubles it; 0 = the peak
    fine_grained: bool = False  # a CPU: vectors, no tiles that a short product would leave empty
    stacked: bool = False  # memory in stacks on the package (HBM), not on the board
    exponentials: float = EXPONENTIALS  # a unit and cycle
    power_flops: float = 0.0  # rate that the power limit sustains in large products; 0 = none known


def fact_value(chip: Chip, name: str) -> Value | None:
    """Best point and log spread of a field; the geometric middle where only an interval is known."""
    fact = chip.facts.get(name)
    if fact is None:
        return None
    if fact.value is not None:
        return Value(fact.value, fact.log_sigma)
    if fact.lo is not None and fact.hi is not None and fact.lo > 0:
        return Value(math.sqrt(fact.lo * fact.hi), fact.log_sigma)
    return None


def _peak(chip: Chip, wanted: str) -> tuple[Value, str, bool]:
    for index, name in enumerate(PEAKS[wanted]):
        found = fact_value(chip, f"peak_flops_{name}")
        if found is not None and found.value > 0:
            equal = index == 0 or {wanted, name} == {"bf16", "fp16"}
            return found, wanted if equal else name, equal
    allowed = "peak_flops_" + ", peak_flops_".join(PEAKS[wanted])
    raise Unsupported(
        f"{chip.name} has no published or bounded peak for {wanted}", field="peak_flops", allowed=allowed
    )


def _positive(chip: Chip, name: str, fallback: float, sigma: float = 0.0) -> Value:
    found = fact_value(chip, name)
    return found if found is not None and found.value > 0 else Value(fallback, sigma)


_POINTS: dict[tuple[int, str], tuple[Chip, ChipPoint]] = {}


def chip_point(chip: Chip, dtype: str) -> ChipPoint:
    """``chip`` at precision label ``dtype`` (see ``operators.WEIGHT_BYTES``), remembered per chip object.

    Raises Unsupported where neither a peak nor an interval for it, or no memory bandwidth, is known.
    """
    if dtype not in MATH:
        raise Unsupported(f"unknown precision {dtype!r}", field="dtype", allowed=sorted(MATH))
    key = (id(chip), dtype)
    held = _POINTS.get(key)
    if held is not None and held[0] is chip:
        return held[1]
    point = _build(chip, dtype)
    if len(_POINTS) > 4096:
        _POINTS.clear()
    _POINTS[key] = (chip, point)
    return point


def _build(chip: Chip, dtype: str) -> ChipPoint:
    peak, math_dtype, native = _peak(chip, MATH[dtype])
    sram = fact_value(chip, "sram_bytes")
    bandwidth = fact_value(chip, "memory_bandwidth_bytes_per_s") or fact_value(
        chip, "sram_bandwidth_bytes_per_s"
    )
    if bandwidth is None:
        if sram is None:
            raise Unsupported(
                f"{chip.name} has no memory bandwidth",
                field="memory_bandwidth_bytes_per_s",
                allowed="a value or an interval",
            )
        # An SRAM chip feeds its matrix units from memory beside them: about a byte for 16 operations.
        bandwidth = Value(peak.value / 16.0, 0.35)
    # Data sheets give a GDDR board's rate without the check bits that travel with the data.
    share = _positive(chip, "ecc_bandwidth_share", 1.0)
    bandwidth = Value(bandwidth.value * share.value, math.hypot(bandwidth.log_sigma, share.log_sigma))
    # Data sheets of today's accelerators give 1 unit for 3-16 TFLOP/s of BF16 and L2 of 30-130 MB: wide where unknown.
    units = _positive(chip, "compute_units", 128.0, 0.4)
    cache = sram if sram is not None else _positive(chip, "l2_bytes", 48e6, 0.5)
    cores = units  # what one instruction keeps busy: a systolic array fetches little an operation
    if chip.family in SYSTOLIC:
        units = Value(_peak(chip, "bf16")[0].value / UNIT_PEAK_FLOPS, 0.4)
    vector = _positive(chip, "peak_flops_fp32", peak.value / 16.0, 0.3)
    bench = [fact_value(chip, name) for name in ("bench_gemm_4096_s", "bench_gemv_s", "bench_gemm_384_s")]
    wider = fact_value(chip, "peak_flops_fp8") if math_dtype == "fp4" else None
    fed = peak.value if wider is None else min(peak.value, 2.0 * wider.value)
    clock = _positive(chip, "clock_hz", 1.7e9).value
    return ChipPoint(
        name=chip.name, family=chip.family, math=math_dtype, native=native, peak_flops=peak.value, vector_flops=vector.value,
        bandwidth=bandwidth.value, l2_bytes=cache.value, units=max(1.0, units.value),
        clock_hz=clock, memory_bytes=_positive(chip, "memory_bytes", 64e9).value,
        link_bandwidth=_positive(chip, "link_bandwidth_bytes_per_s",
        0.0).value if chip.get("link_bandwidth_bytes_per_s") else 0.0,
        watts=_positive(chip, "tdp_w", 500.0).value, launch_s=chip.get("launch_s") or 0.0,
        host_launch_s=chip.get("host_launch_s") or 0.0, sigma_compute=peak.log_sigma, sigma_bandwidth=bandwidth.log_sigma,
        # mypy does not see that ``bench`` holds three.
        sigma_cache=cache.log_sigma, bench=tuple(0.0 if b is None else b.value for b in bench),  # type: ignore[arg-type]
        fed_flops=fed, fine_grained=chip.role == "cpu",
        stacked=bool(chip.get("memory_stacks")) or bandwidth.value > STACKED_BANDWIDTH,
        exponentials=_positive(chip, "exponentials_per_cycle", EXPONENTIALS).value,
        power_flops=_power_flops(chip, peak.value / max(1.0, cores.value) / clock, math_dtype),
    )  # fmt: skip


def _power_flops(chip: Chip, cycle_flops: float, math_dtype: str) -> float:
    """Matrix rate that the power limit allows; of a limit that is an interval the upper end, so that only what is known binds."""
    limit = chip.facts.get("tdp_w")
    if limit is None or chip.role != "accelerator":
        return 0.0
    watts = limit.hi or limit.value or 0.0
    narrower = (2.0 / OPERAND_BYTES[math_dtype]) ** NARROW_SAVED
    return FLOPS_PER_WATT * watts * (cycle_flops / USUAL_CYCLE_FLOPS) ** FETCH_SAVED * narrower
