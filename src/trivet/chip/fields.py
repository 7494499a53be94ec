"""The fields that a chip may have: name -> unit and meaning. Everything is SI; peaks are dense."""

from __future__ import annotations

from typing import NamedTuple


class Field(NamedTuple):
    """Unit and meaning of a catalogue field; ``needed`` by the timing, power or cost of every accelerator."""

    unit: str
    meaning: str
    needed: bool = False


FIELDS: dict[str, Field] = {
    "peak_flops_bf16": Field("FLOP/s", "dense matrix peak, BF16 with FP32 accumulation", True),
    "peak_flops_fp16": Field("FLOP/s", "dense matrix peak, FP16 with FP32 accumulation", True),
    "peak_flops_fp32": Field("FLOP/s", "vector peak, FP32", True),
    "peak_flops_fp8": Field("FLOP/s", "dense matrix peak, FP8"),
    "peak_flops_int8": Field("FLOP/s", "dense matrix peak, INT8 (operations)"),
    "peak_flops_fp4": Field("FLOP/s", "dense matrix peak, FP4"),
    "memory_bytes": Field("B", "device memory that the driver shows", True),
    "memory_bandwidth_bytes_per_s": Field("B/s", "device memory bandwidth", True),
    "memory_stacks": Field("", "HBM stacks (or DDR channels)"),
    "sram_bytes": Field("B", "on-chip memory of a chip that computes from SRAM"),
    "sram_bandwidth_bytes_per_s": Field("B/s", "bandwidth of that on-chip memory"),
    "l2_bytes": Field("B", "last-level on-chip cache or scratchpad", True),
    "compute_units": Field("", "SMs, CUs, cores", True),
    "clock_hz": Field("Hz", "clock at which the peak is quoted", True),
    "memory_clock_hz": Field("Hz", "memory clock"),
    "link_bandwidth_bytes_per_s": Field(
        "B/s", "scale-up links in total, per direction (PCIe where there are none)", True
    ),
    "link_ports": Field("", "scale-up ports"),
    "host_bandwidth_bytes_per_s": Field("B/s", "link to the host, per direction", True),
    "tdp_w": Field("W", "power limit of the module", True),
    "idle_w": Field("W", "power when idle, driver loaded", True),
    "ecc_bandwidth_share": Field("", "share of the memory bandwidth that is left where check bits are kept in the same memory"),
    "launch_s": Field("s", "device-side floor of one kernel inside a graph", True),
    "host_launch_s": Field("s", "host time of one kernel launch without a graph", True),
    "process_nm": Field("nm", "process node by the foundry's name"),
    "die_area_m2": Field("m2", "silicon of all compute dies"),
    "dies": Field("", "compute dies in the package"),
    "transistors": Field("", "transistors of the package"),
    "images_per_s_resnet50": Field("1/s", "ResNet-50 v1.5 inference, published by the maker"),
    "images_per_joule_resnet50": Field("1/J", "ResNet-50 images per joule, published by the maker"),
    "vector_bits": Field("bit", "width of one vector unit of a CPU core"),
    "vector_units": Field("", "vector units of a CPU core"),
    "pcie_lanes": Field("", "PCIe lanes"),
    "specint_rate": Field("", "SPECrate 2017 integer, published"),
    "read_bytes_per_s": Field("B/s", "sequential read of one drive"),
    "write_bytes_per_s": Field("B/s", "sequential write of one drive"),
    "read_iops": Field("1/s", "random 4 KiB reads of one drive"),
    "read_latency_s": Field("s", "latency of one 4 KiB read"),
    "controller_latency_s": Field("s", "latency that a drive's controller adds"),
    "claim_over_810e": Field("", "the maker's claim of speed over Zhenwu 810E"),
}

NEEDED = tuple(name for name, field in FIELDS.items() if field.needed)


def unit_of(name: str) -> str | None:
    """Unit of a field; ``bench_*`` fields carry seconds; None for a field that the table does not know."""
    if name.startswith("bench_"):
        return "B/s" if name.endswith("_bytes_per_s") else "s"
    field = FIELDS.get(name)
    return None if field is None else field.unit
