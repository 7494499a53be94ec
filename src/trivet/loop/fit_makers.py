"""Offsets of other makers' kernels from a table of their published times: what ``chip/makers.py`` reads.

AMD's AITER library ships a CSV of tuned kernels with the time that each took (``aiter/configs``, MIT): products and expert
products of CDNA 3 and CDNA 4. A sample of it and a few published sustained peaks make one table, times of attention kernels from
pull requests of the same library another. For every family, kind of
kernel, library and precision three offsets (compute, memory, floor) are fitted in log space on top of what is believed of a
typical chip: Huber's loss, every size of batch counts alike, a normal prior around the offsets of the maker's other family (or
zero). A library's shapes differ, so each is fitted on its own; AMD's engines all run the same kernels.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trivet.chip import catalogue, residual
from trivet.chip.centre import believed
from trivet.chip.experts import KERNELS as EXPERTS
from trivet.chip.features import floor_seconds
from trivet.chip.kernels import kind_of, precision_of
from trivet.chip.point import chip_point
from trivet.chip.spec import Chip
from trivet.chip.terms import quantise_s
from trivet.chip.timing import predict_flat
from trivet.errors import TrivetError
from trivet.operators import Attention, Gemm, GroupedGemm

Floats = NDArray[np.float64]
LIBRARIES = ("vllm", "sglang")
COLUMNS = ("chip", "kind", "precision", "rows", "columns", "depth", "experts", "top_k", "us")
ATTENTION = ("sequences", "q_tokens", "kv_tokens", "heads", "kv_heads", "qk_head_dim", "v_head_dim", "causal", "us")
PRIOR = np.array([0.4, 0.3, 0.5])  # log spread of the offsets before the fit
# A precision with few rows (published peaks, of shapes chosen to show them) stays near the maker's other family. Not near the
# same units' other format: kernels of block-scaled FP8 wait for their scales where those of one scale wait for power.
FEW, FEW_PRIOR = 20, np.array([0.15, 0.15, 0.25])
HUBER = 0.25
ROUNDS = 30
POWERS = (1.0, 1.25, 1.5, 2.0, 2.5, 4.0)
KERNELS = {"gemm": POWERS, "moe": POWERS, "prefill": (residual.SOFT_MAX_POWER,), "mla": (residual.SOFT_MAX_POWER,)}
# Long questions of latent attention: the typical kernel is a tenth as fast as the best, so little is known beforehand.
LATENT_PRIOR = np.array([2.0, 0.3, 0.5])
# Never asked for: vLLM's measured block-scaled products wait for their host, engines take SGLang's (``cloud/engine``).
HOSTED = (("gemm_narrow", "vllm", "fp8_block"),)
# What a family's kernels do not tell of another chip of it, or of the next release of the library: MI300X and MI325X sustain
# 49-58% of the FP8 peak and 54-64% of the BF16 peak.
LEAST = np.array([0.12, 0.08, 0.15])
PUBLISHED_LAUNCHES = 2.0  # AITER's times of experts are those of the two products: us = us1 + us2


@dataclass(frozen=True, slots=True)
class Sample:
    """Kernels of one chip, kind and precision: ``shape`` [rows, 5] (rows, columns, depth, experts, top_k), seconds; of an
    attention [rows, 8] as ``ATTENTION`` names them."""

    chip: str
    kind: str
    precision: str
    shape: Floats
    seconds: Floats

    def operator(self) -> Gemm | GroupedGemm | Attention:
        """All rows as one operator."""
        if self.kind not in ("gemm", "moe"):
            kind, dtype, cache = self.kind.split("+")
            sequences, q, kv, heads, kv_heads, qk, v, masked = self.shape.T
            causal = bool(masked[0])
            return Attention("published", sequences, q, kv, heads, kv_heads, qk, v, 0.0, dtype, cache, kind, causal)
        rows, columns, depth, experts, top_k = self.shape.T
        if self.kind == "gemm":
            return Gemm("published", rows, columns, depth, self.precision)
        return GroupedGemm("published", rows, depth, columns, experts, experts, top_k, self.precision)


def whole_seconds(sample: Sample, chip: Chip) -> Floats:
    """Seconds of all kernels: of products, with the pass that quantises activations ahead of the published kernel; of experts,
    with a floor each for routing, sorting and quantising."""
    operator = sample.operator()
    if isinstance(operator, Gemm):
        return np.asarray(sample.seconds + quantise_s(operator, chip_point(chip, sample.precision)))
    if not isinstance(operator, GroupedGemm):
        return sample.seconds
    launches = EXPERTS["aiter"].launched(sample.precision)
    floor = floor_seconds(chip_point(chip, sample.precision), "moe", "vllm/aiter", sample.precision)
    return np.asarray(sample.seconds + (1.0 - PUBLISHED_LAUNCHES / launches) * floor)


def read(path: Path) -> list[Sample]:
    """The table's rows by chip, kind and precision. Raises TrivetError naming the file and the column."""
    groups: dict[tuple[str, str, str], list[list[float]]] = {}
    try:
        with path.open(newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                numbers = [float(row[name] or 0.0) for name in COLUMNS[3:]]
                if row["kind"] not in ("gemm", "moe") or not all(math.isfinite(v) for v in numbers) or numbers[-1] <= 0:
                    raise TrivetError(f"no kernel: {row}", field=str(path), allowed="gemm or moe with a positive time")
                groups.setdefault((row["chip"], row["kind"], row["precision"]), []).append(numbers)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise TrivetError(f"cannot be read: {error}", field=str(path)) from error
    except (KeyError, TypeError, ValueError) as error:
        raise TrivetError(f"no table of kernels: {error}", field=str(path), allowed=", ".join(COLUMNS)) from error
    out = []
    for key, found in sorted(groups.items()):
        table = np.array(found)
        out.append(Sample(*key, table[:, :5], table[:, 5] * 1e-6))
    return out


def read_attention(path: Path) -> list[Sample]:
    """Times of attention kernels: one sample for each chip, kind, precision, question of one token or many, mask and kind of
    head."""
    groups: dict[tuple[str, str, bool, bool, bool], list[list[float]]] = {}
    try:
        with path.open(newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                numbers = [float(row[name]) for name in ATTENTION]
                if row["kind"] not in ("gqa", "mla") or not all(math.isfinite(v) for v in numbers) or numbers[-1] <= 0:
                    raise TrivetError(f"no kernel: {row}", field=str(path), allowed="gqa or mla with a positive time")
                kind = f"{row['kind']}+{row['dtype']}+{row['kv_dtype']}"
                same_head = numbers[5] == numbers[6]
                groups.setdefault((row["chip"], kind, numbers[1] > 1, bool(numbers[7]), same_head), []).append(numbers)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise TrivetError(f"cannot be read: {error}", field=str(path)) from error
    except (KeyError, TypeError, ValueError) as error:
        raise TrivetError(f"no table of attention: {error}", field=str(path), allowed=", ".join(ATTENTION)) from error
    out = []
    for (chip, kind, *_), found in sorted(groups.items()):
        table = np.array(found)
        out.append(Sample(chip, kind, "", table[:, :8], table[:, 8] * 1e-6))
    return out


def fit(samples: Sequence[Sample]) -> dict[str, Any]:
    """Family -> "kind|library|precision" -> offset, sigma, power, rows and the median error left. Newer families come first:
    what they tell is where an older one's fit starts from. One power holds for all products, one for all expert products."""
    parts: dict[tuple[str, str, str, str], list[tuple[Sample, Chip]]] = {}
    for sample in samples:
        chip = catalogue.chip(sample.chip)
        for library in LIBRARIES:
            operator = sample.operator()
            kind, precision = kind_of(operator, library), precision_of(operator)
            if (kind, library, precision) not in HOSTED:
                parts.setdefault((chip.family, kind, library, precision), []).append((sample, chip))
    best: dict[str, tuple[float, dict[str, dict[str, Any]]]] = {}
    for kernels, powers in KERNELS.items():
        own = {key: found for key, found in parts.items() if key[1].startswith(kernels)}
        tried = [_families(own, power) for power in powers] if own else []
        if tried:
            best[kernels] = min(tried, key=lambda found: found[0])
    families: dict[str, dict[str, Any]] = {}
    for _, found in best.values():
        for family, names in found.items():
            families.setdefault(family, {}).update(names)
    return {"families": {family: dict(sorted(names.items())) for family, names in sorted(families.items())}}


def _families(
    parts: Mapping[tuple[str, str, str, str], Sequence[tuple[Sample, Chip]]], power: float
) -> tuple[float, dict[str, dict[str, Any]]]:
    """(loss of all, family -> name -> what was fitted) where compute and memory join with ``power``."""
    families: dict[str, dict[str, Any]] = {}
    total = 0.0
    newest = sorted(parts.items(), key=lambda part: (part[0][0], _rows(part[1]), part[0]), reverse=True)
    for (family, kind, library, precision), found in newest:
        name, few = f"{kind}|{library}|{precision}", _rows(found) < FEW
        others = [names.get(name) for known, names in families.items() if known != family]
        start = next((held["offset"] for held in others if held), None)
        wide = LATENT_PRIOR if kind == "mla_prefill" else PRIOR
        prior = (np.array(start or [0.0] * 3), FEW_PRIOR if few and start else wide)
        loss, fitted = _fitted(found, kind, library, precision, prior, power)
        families.setdefault(family, {})[name] = fitted
        total += loss
    return total, families


def _rows(found: Sequence[tuple[Sample, Chip]]) -> int:
    return int(sum(len(sample.seconds) for sample, _ in found))


def _fitted(
    found: Sequence[tuple[Sample, Chip]],
    kind: str,
    library: str,
    precision: str,
    prior: tuple[Floats, Floats],
    power: float,
) -> tuple[float, dict[str, Any]]:
    start, width = prior
    delta = start.copy()
    for _ in range(ROUNDS):
        gaps, slopes, weights = _linearised(found, kind, library, precision, delta, power)
        robust = weights * np.minimum(1.0, HUBER / np.maximum(np.abs(gaps), 1e-9))
        normal = (slopes.T * robust) @ slopes + np.diag(width**-2)
        step = np.linalg.solve(normal, (slopes.T * robust) @ gaps - (delta - start) / width**2)
        delta = delta + np.clip(step, -0.3, 0.3)
    gaps, slopes, weights = _linearised(found, kind, library, precision, delta, power)
    size = np.abs(gaps)
    loss = weights @ np.where(size < HUBER, gaps**2 / 2.0, HUBER * (size - HUBER / 2.0))
    loss += (((delta - start) / width) ** 2).sum() / 2.0
    spread = np.median(size) * 1.4826
    covariance = np.linalg.inv((slopes.T * weights) @ slopes / max(spread, 0.05) ** 2 * 0.25 + np.diag(width**-2))
    return float(loss), {
        "offset": [round(float(v), 4) for v in delta],
        "sigma": [round(float(v), 4) for v in np.hypot(np.sqrt(np.diag(covariance)), LEAST)],
        "power": power,
        "rows": _rows(found),
        "median_error": round(float(np.median(np.abs(np.expm1(-gaps)))), 4),
    }


def _linearised(
    found: Sequence[tuple[Sample, Chip]], kind: str, library: str, precision: str, delta: Floats, power: float
) -> tuple[Floats, Floats, Floats]:
    """(log measured / predicted, its slopes [rows, 3] in the offsets, weights: every octave and a half of rows as one)."""
    kinds = residual.shipped()
    gaps, slopes, weights = [], [], []
    for sample, chip in found:
        operator = sample.operator()
        point = chip_point(chip, operator.dtype)
        held, named = residual.with_kernel(kinds, kind, library, point.family, precision)
        learned = kinds[held]
        offset, _, _, _ = believed(learned, point, point, held, named, precision)
        parts = predict_flat(learned, operator, point, kind, named, offset + delta, False, bounded=False, power=power)
        gaps.append(np.log(whole_seconds(sample, chip) / parts[0]))
        slopes.append(np.column_stack(parts[1:4]))
        size = np.floor(np.log2(np.maximum(sample.shape[:, 0], 1.0)) / 1.5)
        _, where, count = np.unique(size, return_inverse=True, return_counts=True)
        weights.append(4.0 / count[where])
    return np.concatenate(gaps), np.vstack(slopes), np.concatenate(weights)


def text(table: Mapping[str, Any]) -> str:
    """``table`` as ``data/calibration/makers.json`` has it."""
    lines = []
    for family, names in table["families"].items():
        inner = ",\n".join(f"   {json.dumps(name)}: {json.dumps(found)}" for name, found in names.items())
        lines.append(f"  {json.dumps(family)}: {{\n{inner}\n  }}")
    return '{"families": {\n' + ",\n".join(lines) + "\n}}\n"
