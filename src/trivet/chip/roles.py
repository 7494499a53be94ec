"""What the parts of a full stack that are not GPUs do: an SRAM inference chip, a host CPU, a CPU that serves, a drive.

Each answer is an ``Answer``: what was asked, an estimate with its interval, and the published figure beside it where
there is one, so that the error shows.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from trivet.chip import estimate
from trivet.chip.catalogue import chip as catalogue_chip
from trivet.chip.estimate import Estimate
from trivet.chip.spec import Chip
from trivet.errors import Unsupported
from trivet.operators import WEIGHT_BYTES, Conv, Gemm
from trivet.units import Z80

# What is left of a roofline on a CPU: STREAM over channel peak; BLAS with all cores at the sustained clock.
_DDR_EFFICIENCY = estimate.between(0.60, 0.85, "DDR efficiency")
_CPU_GEMM_EFFICIENCY = estimate.between(0.40, 0.75, "CPU GEMM efficiency")
# An INT8 matrix array pads channels to its rows and columns; 32 to 128 wide arrays are built.
_ARRAY_WIDTHS = (32, 64, 128)
_ARRAY_SCHEDULE = estimate.between(0.75, 0.97, "array scheduling")
_REFERENCE_HOST = "xeon-8480c"


@dataclass(frozen=True, slots=True)
class Answer:
    """One thing that a part does. ``published`` is the maker's figure, None where there is none."""

    what: str
    estimate: Estimate
    unit: str
    published: float | None = None

    @property
    def error(self) -> float | None:
        """Predicted over published, less one."""
        return None if not self.published else self.estimate.value / self.published - 1.0


def answers(chip: Chip) -> tuple[Answer, ...]:
    """What the chip does in its role; empty for an accelerator, which the timing model answers for."""
    if chip.role == "sram_accelerator":
        return (resnet50(chip), resnet50_per_joule(chip), largest_model(chip, "int8"))
    if chip.role == "cpu":
        return (
            host_launch(chip),
            host_memory(chip),
            cpu_decode(chip, 0.6e9, 1.2e9, 1),
            cpu_decode(chip, 4e9, 8e9, 8),
            cpu_embeddings(chip, 0.6e9),
        )
    if chip.role == "ssd_controller":
        return (drive_load(chip, 64e9), drive_write(chip, 64e9))
    return ()


def resnet50_operators(batch: float = 1.0, dtype: str = "int8") -> tuple[Conv | Gemm, ...]:
    """ResNet-50 v1.5 at 224 x 224 as convolutions and its classifier: 4.09 G multiply-adds an image."""
    found: list[Conv | Gemm] = [Conv("conv1", batch, 3, 64, 112, 112, 7, 2, dtype=dtype)]
    incoming = 64
    for stage, (width, blocks, size) in enumerate(((64, 3, 56), (128, 4, 28), (256, 6, 14), (512, 3, 7)), 2):
        out = width * 4
        stride = 1 if stage == 2 else 2
        for block in range(blocks):
            first = block == 0
            step = stride if first else 1
            name = f"conv{stage}.{block}"
            source = incoming if first else out
            found += [
                Conv(f"{name}.reduce", batch, source, width, size * step, size * step, 1, dtype=dtype),
                Conv(f"{name}.spatial", batch, width, width, size, size, 3, step, dtype=dtype),
                Conv(f"{name}.expand", batch, width, out, size, size, 1, dtype=dtype),
            ]
            if first:
                found.append(Conv(f"{name}.shortcut", batch, source, out, size, size, 1, step, dtype=dtype))
        incoming = out
    found.append(Gemm("classifier", batch, 1000, 2048, dtype))
    return tuple(found)


def resnet50(chip: Chip, batch: float = 16.0) -> Answer:
    """Images a second of a chip that holds weights and activations in SRAM.

    Every layer takes the longer of its arithmetic, on an array that pads channels (the spread of the array's
    unpublished width is in the interval), and its bytes through the SRAM.
    """
    if chip.role != "sram_accelerator":
        raise Unsupported(f"{chip.name} is a {chip.role}", field="chip", allowed="a chip that computes from SRAM")
    peak = estimate.of(chip.facts.get("peak_flops_int8"), "peak_flops_int8")
    sram = estimate.of(chip.facts.get("sram_bandwidth_bytes_per_s"), "sram bandwidth")
    layers = resnet50_operators(batch)
    times = [_network_s(layers, width, peak.value, sram.value) for width in _ARRAY_WIDTHS]
    middle = math.exp(sum(math.log(t) for t in times) / len(times))
    width_sigma = math.log(max(times) / min(times)) / (2 * Z80)
    faster = sum(_network_s(layers, w, peak.value * 1.01, sram.value) for w in _ARRAY_WIDTHS) / sum(times)
    share = min(1.0, max(0.0, (1.0 - faster) / 0.0099))  # of the time that is arithmetic
    spread = {name: s * share for name, s in peak.spread.items()}
    spread |= {name: s * (1.0 - share) for name, s in sram.spread.items()} | {"array width": width_sigma}
    images = Estimate(batch / middle, spread) * _ARRAY_SCHEDULE
    return Answer("ResNet-50 INT8 inference", images, "images/s", chip.get("images_per_s_resnet50"))


def resnet50_per_joule(chip: Chip) -> Answer:
    """Images a joule at the board's power in a full run."""
    watts = estimate.of(chip.facts.get("tdp_w"), "tdp_w")
    return Answer(
        "ResNet-50 INT8, energy", resnet50(chip).estimate / watts, "images/J", chip.get("images_per_joule_resnet50")
    )


def largest_model(chip: Chip, dtype: str = "int8") -> Answer:
    """Parameters of the largest language model whose weights fit the SRAM beside a tenth for activations and KV."""
    size = estimate.of(chip.facts.get("sram_bytes"), "sram_bytes") * 0.9
    return Answer(f"largest {dtype} model that fits the SRAM", size / WEIGHT_BYTES[dtype], "parameters")


def fits_sram(chip: Chip, weight_bytes: float, kv_bytes: float = 0.0) -> bool:
    """Whether weights and KV stay inside the chip; without DRAM there is no other place."""
    return weight_bytes + kv_bytes <= 0.9 * (chip.get("sram_bytes") or 0.0)


def host_launch(chip: Chip) -> Answer:
    """Host time of one kernel launch from one thread, and with it the scheduler's step."""
    return Answer("kernel launch as a host", estimate.of(chip.facts.get("host_launch_s"), "host_launch_s"), "s")


def host_slowdown(chip: Chip) -> Estimate:
    """How much longer an engine's host work (scheduling, launching, detokenising) takes than on the reference host."""
    reference = catalogue_chip(_REFERENCE_HOST).get("host_launch_s") or 3e-6
    return estimate.of(chip.facts.get("host_launch_s"), f"{chip.name} host_launch_s") / reference


def host_memory(chip: Chip) -> Answer:
    """Bytes a second of the host's memory tier, all channels of one socket."""
    rate = estimate.of(chip.facts.get("memory_bandwidth_bytes_per_s"), "memory_bandwidth_bytes_per_s") * _DDR_EFFICIENCY
    return Answer("memory tier, one socket", rate, "B/s")


def cpu_decode(chip: Chip, parameters: float, weight_bytes: float, batch: int, kv_bytes: float = 0.0) -> Answer:
    """Tokens a second of a small language model decoding on the CPU from DDR: the longer of bytes and arithmetic.

    ``kv_bytes`` is what one sequence's step reads of its cache.
    """
    bandwidth = host_memory(chip).estimate
    memory_s = (weight_bytes + batch * kv_bytes) / bandwidth
    compute_s = 2.0 * parameters * batch / cpu_flops(chip)
    step = max((memory_s, compute_s), key=lambda e: e.value)
    return Answer(f"decode of a {parameters / 1e9:g}B model, batch {batch}", batch / step, "tokens/s")


def cpu_embeddings(chip: Chip, parameters: float) -> Answer:
    """Tokens a second through an embedding model (arithmetic-bound)."""
    return Answer(f"embedding with a {parameters / 1e9:g}B model", cpu_flops(chip) / (2.0 * parameters), "tokens/s")


def cpu_flops(chip: Chip) -> Estimate:
    """Sustained matrix rate: BF16 instructions where there are any, else FP32: cores x units x lanes x 2 x clock."""
    field = "peak_flops_bf16" if chip.get("peak_flops_bf16") else "peak_flops_fp32"
    return estimate.of(chip.facts.get(field), f"{chip.name} {field}") * _CPU_GEMM_EFFICIENCY


def drive_load(chip: Chip, size_bytes: float) -> Answer:
    """Seconds to read ``size_bytes`` of weights or KV from one drive."""
    rate = estimate.of(chip.facts.get("read_bytes_per_s"), "read_bytes_per_s")
    return Answer(f"read {size_bytes / 1e9:g} GB (a 32B model in BF16)", size_bytes / rate, "s")


def drive_write(chip: Chip, size_bytes: float) -> Answer:
    """Seconds to write ``size_bytes`` of a checkpoint to one drive."""
    rate = estimate.of(chip.facts.get("write_bytes_per_s"), "write_bytes_per_s")
    return Answer(f"write {size_bytes / 1e9:g} GB of a checkpoint", size_bytes / rate, "s")


def _network_s(layers: tuple[Conv | Gemm, ...], width: int, peak: float, sram: float) -> float:
    total = 0.0
    for layer in layers:
        if isinstance(layer, Conv):
            deep, wide = float(layer.in_channels) * float(layer.kernel) ** 2, float(layer.out_channels)
        else:
            deep, wide = float(layer.k), float(layer.n)
        filled = deep / (math.ceil(deep / width) * width) * wide / (math.ceil(wide / width) * width)
        total += max(float(layer.flops) / (peak * filled), float(layer.bytes) / sram)
    return total
