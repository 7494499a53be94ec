"""Rows of training measurements to jobs, and their prediction: the columns of ``training_measured.csv``."""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from trivet.chip import catalogue as chips
from trivet.cloud import fabric
from trivet.cloud.training import memory, names
from trivet.cloud.training.job import Split, TrainingJob
from trivet.cloud.training.profile import Constants
from trivet.cloud.training.step import StepResult, train_step
from trivet.errors import TrivetError

COLUMNS_OUT = (
    "id",
    "tokens_per_s_per_chip",
    "tokens_per_s_per_chip_lo",
    "tokens_per_s_per_chip_hi",
    "memory_bytes",
    "error",
)
_PRECISIONS = (
    ("nvfp4", "nvfp4"),
    ("fp4", "nvfp4"),
    ("mxfp8", "mxfp8"),
    ("fp8_mx", "mxfp8"),
    ("fp8-mx", "mxfp8"),
    ("fp8", "fp8"),
    ("int8", "int8"),
    ("bf16", "bf16"),
    ("bfloat16", "bf16"),
    ("fp16", "fp16"),
    ("float16", "fp16"),
    ("fp32", "fp32"),
    ("tf32", "fp32"),
)
_EMPTY = {"", "n/a", "na", "none", "null", "nan", "-"}
_VERSION = re.compile(r"\b(\d\d\.\d\d(?:\.\d\d)?)\b")


@dataclass(frozen=True, slots=True)
class Row:
    """A parsed row: the job and what had to be assumed."""

    id: str
    job: TrainingJob
    notes: tuple[str, ...]


def text(row: Mapping[str, str | None], column: str) -> str:
    """A cell without blanks; empty where the column is absent or says that there is nothing."""
    value = (row.get(column) or "").strip()
    return "" if value.lower() in _EMPTY else value


def whole(row: Mapping[str, str | None], column: str, default: int) -> int:
    """A cell as a positive whole number (``4.0`` is 4); the default where empty.

    Raises:
        TrivetError: not a positive whole number.
    """
    value = text(row, column)
    if not value:
        return default
    try:
        number = float(value)
    except ValueError:
        number = 0.0
    if number != int(number) or number < 1:
        raise TrivetError(f"{value!r} is not a positive whole number", field=column)
    return int(number)


def real(row: Mapping[str, str | None], column: str) -> float:
    """A cell as a number; 0 where empty.

    Raises:
        TrivetError: not a finite number, or below zero.
    """
    value = text(row, column)
    try:
        number = float(value) if value else 0.0
    except ValueError:
        number = math.nan
    if not 0.0 <= number < math.inf:
        raise TrivetError(f"{value!r} is not a number", field=column)
    return number


def _precision(raw: str, notes: list[str]) -> str:
    for word, label in _PRECISIONS:
        if word in raw.lower():
            return label
    if raw:
        notes.append(f"precision {raw!r} is not known: bf16")
    return "bf16"


def _sharding(raw: str, source: str, replicas: int, server: int, notes: list[str]) -> tuple[str, int, int]:
    """(framework, ZeRO stage, HSDP group) of the free text in ``sharding``."""
    upper = raw.upper().replace("-", "_").replace(" ", "_")
    torch = "llm-foundry" in source or "fsdp" in source.lower() or "SHARD" in upper
    framework = "deepspeed" if "deepspeed" in source.lower() or "ZERO" in upper else "fsdp" if torch else "megatron"
    if "HYBRID" in upper or "HSDP" in upper:
        return framework, 3, server if replicas % server == 0 and replicas > server else 0
    if "FULL_SHARD" in upper or "ZERO_3" in upper or "ZERO3" in upper or "FSDP" in upper:
        return framework, 3, 0
    if "SHARD_GRAD_OP" in upper or "ZERO2" in upper or "ZERO_2" in upper:
        return framework, 2, 0
    if "NO_SHARD" in upper or upper == "DDP":
        return framework, 0, 0
    if "ZERO1" in upper or "ZERO_1" in upper:
        return framework, 1, 0
    try:
        group = int(float(raw)) if raw else 0
    except ValueError:
        notes.append(f"sharding {raw!r} is not known: the framework's default")
        group = 0
    if group > 1:  # Megatron's FSDP over that many chips
        return "megatron", 3, group if group < replicas and replicas % group == 0 else 0
    return framework, 3 if framework == "fsdp" else 1, 0


def _task(raw: str) -> str:
    lower = raw.lower().replace("-", "").replace("_", "")
    return (
        "lora" if "lora" in lower or "peft" in lower else "sft" if "sft" in lower or "finetun" in lower else "pretrain"
    )


def parse(row: Mapping[str, str | None]) -> Row:
    """One row as a job.

    Raises:
        TrivetError: a column that cannot be understood, an unknown chip or model, or a layout that is impossible.
    """
    notes: list[str] = []
    for column in ("model", "chip"):
        if not text(row, column):
            raise TrivetError("is empty", field=column)
    chip, model = chips.chip(text(row, "chip")), text(row, "model")
    architecture = names.architecture(model, real(row, "params"))
    notes += [f"{model}: {note}" for note in architecture.notes if "derived" in note]
    count = whole(row, "num_chips", 1)
    tp, pp, cp, ep, vp = (whole(row, name, 1) for name in ("tp", "pp", "cp", "ep", "vp"))
    if count % (tp * pp * cp):
        raise TrivetError(f"{count} chips do not divide into tp {tp} x pp {pp} x cp {cp}", field="num_chips")
    dp = count // (tp * pp * cp)
    if ep > 1 and not architecture.routed:
        notes.append(f"ep {ep} has no meaning for a dense model: 1")
        ep = 1
    micro, batch = whole(row, "micro_batch", 1), whole(row, "global_batch", dp)
    rounded = max(1, round(batch / (dp * micro))) * dp * micro
    if rounded != batch:
        notes.append(f"global batch {batch} does not divide into dp {dp} x micro-batch {micro}: {rounded}")
    source = text(row, "source")
    framework, zero, group = _sharding(text(row, "sharding"), source, dp * cp, fabric.server_of(chip).chips, notes)
    of_2023 = "llm-foundry" in source or model.lower().startswith("mpt")
    raw = text(row, "recompute").lower() if (row.get("recompute") or "").strip().lower() != "none" else "none"
    recompute = next((kind for kind in ("none", "selective", "full") if kind in raw), "")
    if raw and not recompute:
        notes.append(f"recompute {raw!r} is not known: the least that fits")
    version = _VERSION.search(source)
    job = TrainingJob(
        architecture,
        chip,
        Split(tp, pp, cp, dp, ep, 1, vp if pp > 1 else 1),
        whole(row, "seq_len", 2048),
        rounded,
        micro,
        _precision(text(row, "precision"), notes),
        recompute or "none",
        framework=framework,
        version=version[1] if version else "2023" if framework == "fsdp" and of_2023 else "",
        zero=zero,
        shard_group=group,
        task=_task(text(row, "task")),
        routed_domains=4 if "deepseek-v3" in architecture.name.lower() else 0,  # its router visits 4 of 8 groups
        # Megatron-Bridge's performance recipes reduce gradients in BF16
        gradient_dtype="bf16" if framework == "fsdp" or "Megatron-Bridge" in source else "",
        node_network_bytes_per_s=real(row, "node_network_gbps") * 1e9 / 8,
        measured_on=text(row, "measured_on"),
    )
    if not recompute:
        job = fitting(job)
        if job.offload_activations:
            notes.append(f"recompute is not given: activations of {job.offload_layers} layers in host memory")
        elif job.recompute != "none":
            notes.append(
                f"recompute is not given: {job.recompute}"
                + (f" in {job.recompute_layers} layers" if job.recompute_layers else "")
            )
    return Row(text(row, "id"), job, tuple(notes))


SUPERCHIP_LINK_BYTES_PER_S = 100e9  # NVLink-C2C and its like; PCIe 5.0 has 63


def fitting(job: TrainingJob) -> TrainingJob:
    """The job with what it takes to fit the chip: no recompute, selective; on superchips, whose host link is as fast as
    a network of chips, activations in host memory; else full recompute in as few layers as need be."""
    capacity = job.chip.get("memory_bytes") or float("inf")
    for kind in ("none", "selective"):
        tried = job.with_(recompute=kind, recompute_layers=0)
        if memory.peak(tried).total <= capacity:
            return tried
    most = max(len(layers) for layers in memory.rank_layers(job))
    if (job.chip.get("host_bandwidth_bytes_per_s") or 0.0) >= SUPERCHIP_LINK_BYTES_PER_S:
        for some in range(1, most + 1):
            tried = job.with_(offload_activations="cpu", offload_layers=some, recompute="none", recompute_layers=0)
            if memory.peak(tried).total <= capacity:
                return tried
    for some in range(1, most + 1):
        tried = job.with_(recompute="full", recompute_layers=some)
        if memory.peak(tried).total <= capacity:
            return tried
    return job.with_(recompute="full", recompute_layers=0)


@dataclass(frozen=True, slots=True)
class Prediction:
    """One row's answer; ``error`` explains a missing one or notes what was assumed."""

    id: str
    result: StepResult | None
    error: str
    job: TrainingJob | None = None


def predict(rows: Iterable[Mapping[str, str | None]], constants: Constants | None = None) -> list[Prediction]:
    """Every row's prediction; a row that cannot be predicted carries its reason."""
    answers = []
    for row in rows:
        try:
            parsed = parse(row)
            result = train_step(parsed.job, constants=constants)
            notes = parsed.notes if result.fits else (*parsed.notes, "it does not fit in memory")
            answers.append(Prediction(parsed.id, result, "; ".join(notes), parsed.job))
        except (ValueError, ArithmeticError) as error:  # TrivetError among them: one row's fault is no other row's
            answers.append(Prediction(text(row, "id"), None, " ".join(str(error).split())))
    return answers


def read_rows(path: Path) -> list[dict[str, str]]:
    """Rows of a CSV file; raises TrivetError when it is not one."""
    try:
        lines = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise TrivetError(f"cannot read {path}: {error}", field="IN.csv") from error
    reader = csv.DictReader(io.StringIO(lines))
    if not reader.fieldnames or "id" not in reader.fieldnames:
        raise TrivetError(f"{path} has no column 'id'", field="IN.csv", allowed="the columns of training_measured.csv")
    return [dict(row) for row in reader]


def csv_text(predictions: Iterable[Prediction]) -> str:
    """The answer file."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(COLUMNS_OUT)
    for p in predictions:
        if p.result is None:
            writer.writerow([p.id, "", "", "", "", p.error])
            continue
        lo, hi = p.result.interval()
        writer.writerow(
            [
                p.id,
                *(f"{v:.6g}" for v in (p.result.tokens_per_s_per_chip, lo, hi)),
                f"{p.result.peak.total:.0f}",
                p.error,
            ]
        )
    return out.getvalue()
