"""A chip sharpened by a user's three microbenchmarks, and how much the spread of its kernels shrank."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from typing import Any

from trivet.chip.catalogue import chip as catalogue_chip
from trivet.chip.spec import Chip
from trivet.chip.timing import time
from trivet.errors import TrivetError
from trivet.facts import Fact
from trivet.operators import Attention, Compute, Gemm, GroupedGemm

BENCHMARKS = ("bench_gemm_4096_s", "bench_gemv_s", "bench_gemm_384_s")
# What the change is shown on: a decode and a prompt product, attention of both, experts.
SHOWN: tuple[Compute, ...] = (
    Gemm("decode product 16 x 5120 x 5120", 16.0, 5120.0, 5120.0),
    Gemm("prompt product 4096 x 5120 x 5120", 4096.0, 5120.0, 5120.0),
    Attention("decode attention, 32 x 4096 keys", 32.0, 1.0, 4096.0, 32.0, 8.0, 128.0, 128.0),
    Attention("prompt attention, 4096 tokens", 1.0, 4096.0, 4096.0, 32.0, 8.0, 128.0, 128.0),
    GroupedGemm("128 experts, 64 tokens", 64.0, 2048.0, 768.0, 128.0, 128.0, 8.0),
)


@dataclass(frozen=True, slots=True)
class Change:
    """One operator before and after."""

    operator: str
    before_s: float
    after_s: float
    before_sigma: float
    after_sigma: float

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Calibrated:
    """The chip with its benchmarks as facts, and what they changed."""

    chip: Chip
    benchmarks: dict[str, float]
    changes: tuple[Change, ...]


def calibrate_chip(name: str, measured: dict[str, float]) -> Calibrated:
    """The catalogue's chip with measured seconds of the benchmarks (names of ``BENCHMARKS``; one is enough).

    Raises TrivetError when none is given or one is unknown or not positive.
    """
    if not measured:
        raise TrivetError("no measurement given", field="calibrate --chip", allowed="--gemm, --gemv, --tiny")
    for key, value in measured.items():
        if key not in BENCHMARKS:
            raise TrivetError(f"unknown benchmark {key!r}", field="benchmarks", allowed=BENCHMARKS)
        if not value > 0:
            raise TrivetError(f"{value} is not positive", field=key)
    found = catalogue_chip(name)
    bare = replace(found, facts={k: f for k, f in found.facts.items() if k not in BENCHMARKS})
    today = datetime.now(UTC).date().isoformat()
    facts = {k: Fact(v, "s", "measured", "the user's microbenchmark", today) for k, v in measured.items()}
    # Under a name of its own: the kernels that the calibration holds of the catalogue's chip are not this device's.
    sharp = replace(bare, name=f"{found.name}-calibrated", facts={**bare.facts, **facts})
    blunt = replace(bare, name=f"{found.name}-sheet")
    changes = []
    for operator in SHOWN:
        a, b = time(operator, blunt), time(operator, sharp)
        changes.append(
            Change(operator.name, float(a.value_s), float(b.value_s), float(a.log_sigma), float(b.log_sigma))
        )
    return Calibrated(sharp, measured, tuple(changes))


def entry_text(done: Calibrated) -> str:
    """The chip as a catalogue file (YAML)."""
    chip = done.chip
    lines = [
        f'title: "{chip.title} (calibrated)"', f"maker: {chip.maker}", f"family: {chip.family}", f"role: {chip.role}",
        f"dtypes: [{', '.join(chip.dtypes)}]", *([f"server: {chip.server}"] if chip.server else []), "facts:",
    ]  # fmt: skip
    groups: dict[tuple[str, str, str], list[str]] = {}
    for name, fact in sorted(chip.facts.items()):
        parts = [f"{k}: {v:.9g}" for k, v in (("value", fact.value), ("lo", fact.lo), ("hi", fact.hi)) if v is not None]
        groups.setdefault((fact.source, fact.status, fact.date), []).append(f"      {name}: {{{', '.join(parts)}}}")
    for (source, status, date), rows in groups.items():
        quoted = source.replace('"', "'")
        lines += [
            f'  - source: "{quoted}"',
            f"    status: {status}",
            *([f'    date: "{date}"'] if date else []),
            "    values:",
            *rows,
        ]
    return "\n".join(lines) + "\n"
