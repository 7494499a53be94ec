"""A table of kernels and collectives in, latencies with 80% intervals out."""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from trivet.chip.catalogue import chip as catalogue_chip
from trivet.chip.kernels import profile
from trivet.chip.spec import Chip
from trivet.chip.timing import Seconds, time
from trivet.cloud import collectives, dispatch
from trivet.errors import TrivetError
from trivet.loop.operator_rows import Columns, operator, operator_name, precision
from trivet.loop.operator_tables import TEXT_COLUMNS, kernel_library
from trivet.operators import Transfer

PRECISION_NAMES = ("gemm_dtype", "moe_dtype", "attn_dtype", "mla_dtype", "nccl_dtype", "allreduce_dtype", "comm_dtype")
EXCHANGES = ("moe_all_to_all", "deepep_low_latency")  # tokens to experts and back
KINDS = {
    "attention_context": "prefill", "attention_generation": "decode", "mla_context": "mla_prefill",
    "mla_generation": "mla_decode",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Answer:
    """One row's latency, or the reason why there is none; ``note`` says what was assumed."""

    id: str
    value_s: float | None = None
    lo_s: float | None = None
    hi_s: float | None = None
    note: str = ""


def read_csv(path: Path) -> list[dict[str, str]]:
    """Rows of a CSV file with a header; raises TrivetError when it cannot be read or has no ``op`` column."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as stream:
            reader = csv.DictReader(stream)
            rows = [{str(k).strip(): (v or "").strip() for k, v in row.items() if k is not None} for row in reader]
            names = [str(n).strip() for n in reader.fieldnames or ()]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise TrivetError(f"cannot be read: {error}", field=str(path)) from error
    if not {"op", "op_name"} & set(names):
        raise TrivetError("no column op", field=str(path), allowed="id, chip, engine, op, dtype and shape columns")
    return rows


def predict(rows: list[dict[str, str]], report: Callable[[str, int, int], None] | None = None) -> list[Answer]:
    """An answer to every row, in order. Rows that share all but numbers are timed in one call."""
    answers: dict[int, Answer] = {}
    groups: dict[tuple[str, ...], list[int]] = {}
    for index, row in enumerate(rows):
        try:
            groups.setdefault(_key(row), []).append(index)
        except TrivetError as error:
            answers[index] = Answer(_id(row, index), note=str(error))
    done = 0
    for key, members in groups.items():
        try:
            found = _group(key, [rows[i] for i in members])
        except TrivetError as error:
            found = (
                [Answer("", note=str(error))] * len(members) if len(members) == 1 else _one_by_one(key, rows, members)
            )
        for index, answer in zip(members, found, strict=True):
            answers[index] = Answer(_id(rows[index], index), answer.value_s, answer.lo_s, answer.hi_s, answer.note)
        done += len(members)
        if report is not None:
            report("operators", done, len(rows))
    return [answers[i] for i in range(len(rows))]


def csv_text(answers: list[Answer]) -> str:
    """``id,latency_us,latency_us_lo,latency_us_hi,error``."""
    lines = ["id,latency_us,latency_us_lo,latency_us_hi,error"]
    for a in answers:
        numbers = ",".join("" if v is None else f"{v * 1e6:.6g}" for v in (a.value_s, a.lo_s, a.hi_s))
        lines.append(f"{_quoted(a.id)},{numbers},{_quoted(a.note)}")
    return "\n".join(lines) + "\n"


def _quoted(text: str) -> str:
    return '"' + text.replace('"', '""') + '"' if any(c in text for c in ',"\n') else text


def _id(row: Mapping[str, str], index: int) -> str:
    return row.get("id") or str(index)


def _key(row: Mapping[str, str]) -> tuple[str, ...]:
    op = operator_name(row.get("op") or row.get("op_name") or "")
    name = next((row[n] for n in ("dtype", *PRECISION_NAMES) if row.get(n)), "")
    dtype = precision("bf16" if name == "default" else name)
    kv = precision(row["kv_cache_dtype"]) if row.get("kv_cache_dtype") else dtype if dtype == "fp8" else "bf16"
    if op.startswith("mla"):
        dtype = kv  # the latent is multiplied at the precision of the cache
    label = "comm_backend" if op in EXCHANGES else "backend"
    texts = [row.get(n, "") for n in ("distribution", "phase", "kernel_source", label, "comm_dtype")]
    group = _whole(row.get("num_gpus", "")) if op in collectives.KINDS else ""
    if op in EXCHANGES:
        group = _whole(row.get("ep_size") or "8")
    return (row.get("chip", ""), row.get("engine", ""), row.get("engine_version", ""), op, dtype, kv, group, *texts)


def _whole(text: str) -> str:
    try:
        return str(int(float(text)))
    except (ValueError, OverflowError) as error:
        raise TrivetError(f"{text!r} is not a whole number", field="num_gpus") from error


def _number(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        return float("nan")
    return value if np.isfinite(value) else float("nan")


def _one_by_one(key: tuple[str, ...], rows: list[dict[str, str]], members: list[int]) -> list[Answer]:
    found = []
    for index in members:
        try:
            found += _group(key, [rows[index]])
        except TrivetError as error:
            found.append(Answer("", note=str(error)))
    return found


def _group(key: tuple[str, ...], rows: list[dict[str, str]]) -> list[Answer]:
    chip_name, engine, version, op, dtype, kv, group, distribution, phase, source, backend, comm = key
    if not chip_name:
        raise TrivetError("missing", field="chip")
    chip = catalogue_chip(chip_name)
    names = {n for n in rows[0] if n not in ("id", "chip", "engine", "op", "op_name", "dtype")}
    numbers: dict[str, Any] = {n: np.array([_number(r.get(n, "")) for r in rows]) for n in names}
    _check(numbers)
    if op in EXCHANGES:
        name = "deepep_low_latency" if op == "deepep_low_latency" else backend or source or engine
        return _exchange(chip, Columns(numbers, len(rows)), name, phase, comm, int(group))
    text = {"distribution": distribution, "phase": phase, "kernel_source": source, "comm_dtype": comm}
    built = operator(op, dtype, kv, Columns(numbers, len(rows)), text if op in TEXT_COLUMNS else {})
    if isinstance(built, Transfer):
        levels = collectives.levels_of(chip, int(group))
        label = collectives.backend(engine, source, backend)
        return _answers(collectives.time(built, levels, chip, label, version), len(rows), "")
    library = profile(engine, version)
    used = kernel_library(op, library.library, dtype, source, chip.family)
    if op == "linear_attention_gdn" and not phase:
        raise TrivetError("missing", field="phase", allowed="context, generation")
    found = time(built, chip, used, version, isolated=True, kind=KINDS.get(op, ""))
    return _answers(found, len(rows), library.note)


def _exchange(chip: Chip, c: Columns, backend: str, phase: str, dtype: str, ranks: int) -> list[Answer]:
    """Dispatch or combine over ``ranks`` chips; a row without a phase asks for both, one after the other."""
    bandwidth = collectives.levels_of(chip, ranks)[0].bandwidth_bytes_per_s
    tokens, k = c("num_tokens", "num_token"), c("topk", "num_topk")
    found = []
    for one in (phase,) if phase else dispatch.PHASES:
        wide = dispatch.width("" if dtype == "default" else dtype, backend, one)
        load = dispatch.Exchange(tokens, c("hidden_size"), k, c("num_experts"), float(ranks), wide)
        found.append(dispatch.time(load, backend, one, bandwidth))
    if len(found) == 1:
        return _answers(found[0], len(tokens), "")
    value = found[0].value_s + found[1].value_s
    sigma = (found[0].value_s * found[0].log_sigma + found[1].value_s * found[1].log_sigma) / value
    return _answers(Seconds(value, sigma, note=found[0].note), len(tokens), "no phase: dispatch and combine together")


def _check(numbers: Mapping[str, Any]) -> None:
    for name, values in numbers.items():
        known = values[~np.isnan(values)]
        zero_is_fine = name in ("step", "window_size", "num_key_value_heads", "latency", "power", "sms")
        if (known.size and (known < 0).any()) or (
            known.size and not zero_is_fine and (known == 0).any() and name in _POSITIVE
        ):
            raise TrivetError(f"{float(known.min()):g} is not positive", field=name)


_POSITIVE = (
    "m", "n", "k", "batch_size", "isl", "num_heads", "head_dim", "num_tokens", "hidden_size", "inter_size", "topk",
    "num_experts", "moe_tp_size", "moe_ep_size", "num_gpus", "message_size",
    "ep_size", "num_token", "num_topk", "seq_len", "num_v_heads", "head_k_dim", "head_v_dim",
)  # fmt: skip


def _answers(found: Seconds, rows: int, note: str) -> list[Answer]:
    value, lo, hi = (
        np.broadcast_to(np.asarray(v, dtype=np.float64), (rows,)) for v in (found.value_s, found.lo_s, found.hi_s)
    )
    said = "; ".join(n for n in dict.fromkeys((note, found.note)) if n)
    return [Answer("", float(a), float(b), float(c), said) for a, b, c in zip(value, lo, hi, strict=True)]
