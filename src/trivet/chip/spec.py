"""A chip as its data sheet gives it: every field a Fact."""

from __future__ import annotations

from dataclasses import dataclass, field

from trivet.facts import Fact


@dataclass(frozen=True, slots=True)
class Chip:
    """One accelerator, CPU or controller of the catalogue (``data/chips/NAME.yaml``).

    ``facts`` holds every sourced field by name. Names used by the timing model, all SI:
    ``peak_flops_{bf16,fp16,fp32,fp8,int8,fp4}`` (dense), ``memory_bytes``, ``memory_bandwidth_bytes_per_s``,
    ``ecc_bandwidth_share`` (what error correction that is stored in the memory itself leaves of it),
    ``sram_bytes`` (on-chip memory of an SRAM chip), ``l2_bytes``, ``compute_units``, ``clock_hz``,
    ``link_bandwidth_bytes_per_s`` (scale-up, per direction), ``host_bandwidth_bytes_per_s`` (per direction),
    ``tdp_w``, ``idle_w``, ``launch_s`` (device-side launch floor), ``host_launch_s``, ``die_area_m2``, ``transistors``.
    An absent or unknown fact is None in ``get`` and an interval in ``facts``.
    """

    name: str
    title: str
    maker: str
    family: str  # architecture family: "hopper", "blackwell", "ppu", "cdna3", "tpu"; leave-one-family-out splits by it
    role: str  # "accelerator", "sram_accelerator", "cpu", "ssd_controller"
    facts: dict[str, Fact] = field(default_factory=dict)
    dtypes: tuple[str, ...] = ()  # dtypes with hardware peaks
    server: str = ""  # default server in data/servers
    aliases: tuple[str, ...] = ()
    like: Chip | None = None  # a variant's origin: its kernels' corrections are the origin's, its physics its own

    def get(self, name: str) -> float | None:
        """Best point value of a field, or None when unknown (also when absent)."""
        fact = self.facts.get(name)
        return None if fact is None else fact.value

    def supports(self, dtype: str) -> bool:
        return dtype in self.dtypes
