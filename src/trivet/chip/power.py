"""Power of a chip from what it does: idle, clocks running, arithmetic, memory and links, capped at the power limit.

    P = idle + b * active * limit + e_flop * flops/s + e_byte * bytes/s + e_link * link bytes/s,   P <= limit

``b`` is the share of time that a kernel runs. The energies follow the process and the memory kind; the arithmetic
energy of a chip whose limit leaves less is what its own limit leaves for a GEMM at peak (B200, MI300X run below their
node's median). Intervals are wide because makers publish none of these: the one public check is the provisioned power a
chip (``provisioned_w``) of seven systems, see ``docs/chips.md``.
"""

from __future__ import annotations

from trivet.chip import estimate
from trivet.chip.estimate import Estimate
from trivet.chip.spec import Chip

# Joules of one 16-bit multiply-add pair's FLOP on the matrix units, whole data path, by process: what the limits of
# V100 (12 nm), A100 (7 nm), H100 and L40S (4-5 nm) leave for a GEMM at peak.
_FLOP_J = {16: 2.4e-12, 12: 1.9e-12, 8: 1.2e-12, 7: 0.95e-12, 5: 0.60e-12, 4: 0.58e-12, 3: 0.45e-12}
# Relative energy of an operation by operand width: multiplier area falls with the square, movement with the width.
_DTYPE = {"fp32": 4.0, "tf32": 1.6, "bf16": 1.0, "fp16": 1.0, "fp8": 0.55, "int8": 0.5, "fp4": 0.3}
_HBM_J_PER_BYTE = 8 * 9e-12  # device, PHY and the way through the caches
_GDDR_J_PER_BYTE = 8 * 13e-12
_DDR_J_PER_BYTE = 8 * 22e-12
_LINK_J_PER_BYTE = 8 * 5e-12
_ACTIVE_SHARE = 0.13  # clock tree and leakage above idle while kernels run, of the limit
_GEMM_MEMORY_SHARE = 0.35  # memory utilisation of a large GEMM at peak rate


def power_w(
    chip: Chip,
    *,
    flops_per_s: float = 0.0,
    bytes_per_s: float = 0.0,
    link_bytes_per_s: float = 0.0,
    dtype: str = "bf16",
    busy: float = 1.0,
) -> Estimate:
    """Mean watts of one chip. Rates are means over the time; ``busy`` is the share with a kernel running."""
    idle = estimate.of(chip.facts.get("idle_w"), f"{chip.name} idle_w")
    limit = estimate.of(chip.facts.get("tdp_w"), f"{chip.name} tdp_w")
    arithmetic = flop_j(chip, dtype) * flops_per_s
    memory = byte_j(chip) * bytes_per_s
    links = _factor("energy of a link byte", _LINK_J_PER_BYTE, 0.3) * link_bytes_per_s
    active = limit * (_ACTIVE_SHARE * busy)
    drawn = estimate.total((idle, active, arithmetic, memory, links))
    return drawn if drawn.value < limit.value else limit


def utilised_w(chip: Chip, compute: float, memory: float, link: float = 0.0, dtype: str = "bf16") -> Estimate:
    """Mean watts at shares of the peak rates (each between 0 and 1)."""
    peak = chip.get(f"peak_flops_{dtype}") or chip.get("peak_flops_bf16") or chip.get("peak_flops_fp16") or 0.0
    return power_w(
        chip,
        flops_per_s=compute * peak,
        bytes_per_s=memory * (chip.get("memory_bandwidth_bytes_per_s") or 0.0),
        link_bytes_per_s=link * (chip.get("link_bandwidth_bytes_per_s") or 0.0),
        dtype=dtype,
        busy=1.0 if compute or memory or link else 0.0,
    )


def flop_j(chip: Chip, dtype: str = "bf16") -> Estimate:
    """Joules of one operation on the matrix units at ``dtype``."""
    node = chip.get("process_nm")
    usual = node_energy(node or 7)
    base = usual
    peak = chip.get("peak_flops_bf16") or chip.get("peak_flops_fp16")
    limit = chip.get("tdp_w")
    if peak and limit and chip.role == "accelerator":
        bandwidth = chip.get("memory_bandwidth_bytes_per_s") or 0.0
        left = limit * (1 - _ACTIVE_SHARE) - (chip.get("idle_w") or 0.0)
        left -= _GEMM_MEMORY_SHARE * bandwidth * byte_j(chip).value
        base = min(usual, max(left, 0.2 * limit) / peak)
    unknown_node = chip.facts.get("process_nm")
    doubt = 0.25 if unknown_node is not None and unknown_node.lo is None and node else 0.4
    return _factor(f"{chip.name} energy of an operation", base * _DTYPE.get(dtype, 1.0), doubt)


def node_energy(process_nm: float) -> float:
    """Joules of one 16-bit FLOP that chips of a node usually take."""
    return _FLOP_J[min(_FLOP_J, key=lambda nm: abs(nm - process_nm))]


def byte_j(chip: Chip) -> Estimate:
    """Joules of one byte read from memory."""
    bandwidth = chip.get("memory_bandwidth_bytes_per_s") or 0.0
    if chip.role == "cpu":
        joules = _DDR_J_PER_BYTE
    elif chip.get("memory_stacks") or bandwidth > 2e12:
        joules = _HBM_J_PER_BYTE
    else:
        joules = _GDDR_J_PER_BYTE
    return _factor("energy of a memory byte", joules, 0.2)


def provisioned_w(chip: Chip, host_w_per_chip: Estimate, network_w_per_chip: Estimate, pue: Estimate) -> Estimate:
    """Watts that a site must hold ready for one chip: its limit, its share of host and network, the overhead."""
    limit = estimate.of(chip.facts.get("tdp_w"), f"{chip.name} tdp_w")
    return estimate.total((limit, host_w_per_chip, network_w_per_chip)) * pue


def _factor(name: str, value: float, log_sigma: float) -> Estimate:
    return Estimate(value, {name: log_sigma})
