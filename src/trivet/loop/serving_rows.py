"""Rows of serving measurements to deployments: what each column means, what an empty one means, what is said when it is odd.

The columns are those of ``serving_measured.csv``. Integers may read ``4.0``, absent columns count as empty.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from trivet.chip import catalogue as chips
from trivet.cloud.deployment import ENGINES, Deployment, EngineSettings
from trivet.cloud.engine.ported import ATOM, QUICK
from trivet.errors import DoesNotFit, TrivetError
from trivet.loop import serving_scripts
from trivet.loop.serving_precision import resolve_precision
from trivet.model import config as models
from trivet.model.architecture import Architecture
from trivet.model.parallel import Layout

_ENGINE_NAMES = {
    "tensorrt-llm": "trtllm", "tensorrt_llm": "trtllm", "trt-llm": "trtllm", "trt": "trtllm", "sglang-jax": "sglang",
    "sgl-jax": "sglang", "vllm-ascend": "vllm", "vllm-gaudi": "vllm", "vllm-tpu": "vllm",
}  # fmt: skip
MODES = ("agg", "disagg")
LENGTHS = (1024.0, 8192.0)  # prompts and answers of InferenceX; dated rows of other lengths come from other clients


@dataclass(frozen=True, slots=True)
class Pool:
    """``workers`` equal replicas of one role."""

    deployment: Deployment
    workers: int
    max_sequences: float  # per attention-DP rank; 0 = not stated


@dataclass(frozen=True, slots=True)
class Case:
    """One row, understood. ``pools`` is (replicas,) or (prefill, decode)."""

    id: str
    pools: tuple[Pool, ...]
    isl: float
    osl: float
    concurrency: float
    measured_on: str
    group: Mapping[str, str]  # model, chip, engine, version, precision: names for calibration and reports
    notes: tuple[str, ...] = ()
    shortest: float = 0.0  # shortest length over the nominal one; 0: as the client of a row of that kind draws them


@dataclass(frozen=True, slots=True)
class Unread:
    """A row that cannot be predicted, and why."""

    id: str
    reason: str


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of a file as text, with what was measured where it is there."""

    rows: list[dict[str, str]] = field(default_factory=list)

    def number(self, index: int, name: str) -> float:
        """A measured column as a number; NaN where absent."""
        return _number(self.rows[index], name, math.nan)


def read_csv(path: Path) -> Table:
    """The rows of a CSV file. Raises TrivetError when it is no CSV with the needed columns."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            names = reader.fieldnames or []
            rows = [{k: (v or "").strip() for k, v in row.items() if k is not None} for row in reader]
    except FileNotFoundError:
        raise TrivetError("no such file", field=str(path)) from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise TrivetError(f"not a readable CSV file: {error}", field=str(path)) from None
    missing = [name for name in ("chip", "model", "isl", "osl") if name not in names]
    if missing:
        raise TrivetError(
            f"column {missing[0]!r} is missing", field=str(path), allowed="the columns of serving_measured.csv"
        )
    return Table(rows)


def understand(row: Mapping[str, str], number: int = 0) -> Case | Unread:
    """A row as a case, or the reason why it cannot be one."""
    name = row.get("id", "") or str(number)
    try:
        return _case(name, row)
    except TrivetError as error:
        return Unread(name, " ".join(str(error).split()))


def _case(name: str, row: Mapping[str, str]) -> Case:
    texts = [row.get(column, "") for column in ("engine", "engine_version", "weights", "moe_weights")]
    base, precision, known = _base(_needed(row, "chip"), _needed(row, "model"), *texts)
    notes = list(known)
    mode = (row.get("mode") or ("disagg" if row.get("prefill_tp") else "agg")).lower()
    if mode not in MODES:
        raise TrivetError(f"{mode!r} is no mode", field="mode", allowed=MODES)
    isl, osl = _count(row, "isl", needed=True), _count(row, "osl", needed=True)
    base = replace(base, expected_isl=isl)
    base = _launched_settings(base, row, precision)
    pools = _aggregated(base, row, notes) if mode == "agg" else _disaggregated(base, row, notes)
    concurrency = _concurrency(row, pools, notes)
    chip, settings = base.chip, base.settings
    group = {
        "model": base.architecture.name,
        "chip": chip.name,
        "family": chip.family,
        "engine": settings.engine,
        "mode": mode,
        "version": settings.version,
        "precision": precision,
        "measured_on": row.get("measured_on", ""),
    }
    low = _number(row, "range_ratio", 0.0)
    if not 0.0 <= low <= 1.0:
        raise TrivetError(f"{low:g} is no share of a length", field="range_ratio", allowed="above 0, up to 1")
    return Case(name, pools, isl, osl, concurrency, row.get("measured_on", ""), group, tuple(notes), low)


def _launched_settings(base: Deployment, row: Mapping[str, str], precision: str) -> Deployment:
    """``base`` with the KV cache's format and the all-reduce that the benchmark's script sets, where the row is from it."""
    date, settings = row.get("measured_on", ""), base.settings
    if not date or {_count(row, "isl"), _count(row, "osl")} - set(LENGTHS):
        return base
    model, chip = base.architecture.name, base.chip.name
    found = serving_scripts.cache_format(settings.engine, model, chip, precision, date)
    if serving_scripts.quick_reduce(model, chip, precision, date):
        base = replace(base, settings=(settings := replace(settings, all_reduce=QUICK)))
    return base if found is None else replace(base, settings=replace(settings, kv_dtype=found))


@lru_cache(maxsize=2048)
def _base(
    chip_name: str, model: str, engine_name: str, version: str, weights: str, moe_weights: str
) -> tuple[Deployment, str, tuple[str, ...]]:
    """What the names of a row stand for (no layout yet), the precision's name, and what was assumed."""
    notes: list[str] = []
    chip, architecture = chips.chip(chip_name), architecture_of(model)
    engine = _engine(engine_name, notes)
    labels = resolve_precision(architecture, model, chip, weights, moe_weights, notes)
    version = ATOM if engine_name.lower() == ATOM else version
    settings = EngineSettings(engine=engine, version=version, kv_dtype=labels.kv)
    return Deployment(labels.architecture, chip, Layout(), settings), labels.name, tuple(notes)


@lru_cache(maxsize=512)
def architecture_of(name: str) -> Architecture:
    """A model by name or path, remembered."""
    return models.read(name)


def _aggregated(base: Deployment, row: Mapping[str, str], notes: list[str]) -> tuple[Pool, ...]:
    batch, concurrency = _count(row, "batch_size"), _count(row, "concurrency")
    layout = _launched_layout(base, row, _layout(base, row, "", notes), notes)
    spread = serving_scripts.spread_experts(base, layout)
    if spread != layout:
        notes.append(f"experts cut {layout.moe_tp} ways are no whole blocks: taken as spread over {spread.moe_ep} chips")
        layout = spread
    ratio = round(concurrency / batch) if batch and concurrency else 1
    workers = 1
    if ratio > layout.attention_dp:
        if base.architecture.routed and ratio == layout.tp and not _count(row, "attention_dp"):
            notes.append(f"batch_size is concurrency / {ratio}: taken as attention data parallel")
            layout = Layout(tp=1, pp=layout.pp, attention_dp=ratio, moe_tp=layout.moe_tp, moe_ep=layout.moe_ep)
        else:
            workers = max(1, ratio // layout.attention_dp)
            notes.append(f"batch_size is concurrency / {ratio}: taken as {workers} replicas")
    return (Pool(_with(base, layout), workers, batch),)


def _launched_layout(base: Deployment, row: Mapping[str, str], layout: Layout, notes: list[str]) -> Layout:
    """The layout that the benchmark's TensorRT-LLM scripts chose by the load until 2025-11-03, when tables began to hold it:
    from some concurrency on DeepSeek and gpt-oss ran attention data parallel and expert parallel (``dsr1_*_trt_slurm.sh``)."""
    model, isl, osl = base.architecture.name.lower(), _count(row, "isl"), _count(row, "osl")
    many, chips = _count(row, "concurrency"), layout.tp
    if (
        not ("" < row.get("measured_on", "") < "2025-11-03" and base.settings.engine == "trtllm")
        or layout.attention_dp > 1
    ):
        return layout
    if {isl, osl} - set(LENGTHS) or layout.pp > 1 or chips == 1:
        return layout
    if "deepseek" in model:
        if "fp4" in base.architecture.quantisation.experts:
            spread = many > (32 if isl > osl or chips == 4 else 8 if isl == osl else 16)
            ranks = many > 32 if isl > osl else many >= 256
        else:
            hopper = base.chip.family == "hopper"
            spread, ranks = True, many > (32 if (isl > osl if hopper else isl == osl) else 64)
    elif "gpt-oss" in model and base.chip.name.startswith("b200"):
        spread = ranks = many >= 256
    else:
        return layout
    if not spread:
        return layout
    notes.append(
        f"experts over {chips} chips{', attention data parallel' if ranks else ''}: as the script of that date chose it"
    )
    return Layout(tp=1 if ranks else chips, attention_dp=chips if ranks else 1, moe_tp=1, moe_ep=chips)


def _disaggregated(base: Deployment, row: Mapping[str, str], notes: list[str]) -> tuple[Pool, ...]:
    pools = []
    for role in ("prefill_", "decode_"):
        workers = _count(row, f"{role}workers")
        if not workers:
            raise TrivetError(
                "a disaggregated row needs its worker counts", field=f"{role}workers", allowed="1 and more"
            )
        layout = _layout(base, row, role, notes)
        pools.append(Pool(_with(base, layout), int(workers), _count(row, f"{role}batch_size")))
    return tuple(pools)


def _with(base: Deployment, layout: Layout) -> Deployment:
    return replace(base, layout=layout)


def _layout(base: Deployment, row: Mapping[str, str], role: str, notes: list[str]) -> Layout:
    ways: dict[str, Any] = {k: int(_count(row, role + k)) or 1 for k in ("tp", "pp", "attention_dp")}
    moe_tp, moe_ep = int(_count(row, role + "moe_tp")), int(_count(row, role + "moe_ep"))
    chips_in_stage = ways["tp"] * ways["attention_dp"]
    if not base.architecture.routed:
        return Layout(**ways)
    if not moe_tp and not moe_ep:
        moe_ep = 1
    if not moe_tp or not moe_ep:
        known = moe_tp or moe_ep
        other = max(1, chips_in_stage // known)
        moe_tp, moe_ep = (moe_tp or other), (moe_ep or other)
    if (
        moe_tp * moe_ep > chips_in_stage
        and moe_tp * moe_ep % chips_in_stage == 0
        and not _count(row, role + "attention_dp")
    ):
        # Experts over more chips than attention: attention is data parallel over the rest.
        ways["attention_dp"] = moe_tp * moe_ep // ways["tp"]
        chips_in_stage = moe_tp * moe_ep
        notes.append(f"{role}attention_dp is empty: {ways['attention_dp']} follows from the experts' layout")
    if role and ways["attention_dp"] > 1 and moe_ep == 1 and ways["tp"] == 1:
        # Pools with attention data parallel run expert parallel (recipes set both flags); tables leave the second at 1, and
        # experts cut by so many ways would be thinner than their scales' blocks.
        moe_tp, moe_ep = 1, chips_in_stage
        notes.append(f"{role}moe_ep is 1 under attention data parallel: taken as {moe_ep}")
    if moe_tp * moe_ep != chips_in_stage:
        experts = next(
            layer.feed_forward.experts for layer in base.architecture.layers if layer.feed_forward.kind == "moe"
        )
        fixed = math.gcd(moe_ep, chips_in_stage) if experts % max(1, math.gcd(moe_ep, chips_in_stage)) == 0 else 1
        notes.append(
            f"{role}moe_tp {moe_tp} x moe_ep {moe_ep} is not {chips_in_stage} chips: taken as {chips_in_stage // fixed} x {fixed}"
        )
        moe_tp, moe_ep = chips_in_stage // fixed, fixed
    return Layout(**ways, moe_tp=moe_tp, moe_ep=moe_ep)


def _concurrency(row: Mapping[str, str], pools: Sequence[Pool], notes: list[str]) -> float:
    concurrency = _count(row, "concurrency")
    if concurrency:
        return concurrency
    last = pools[-1]
    if last.max_sequences:
        notes.append("concurrency is empty: taken as all the sequences that the decode ranks hold")
        return last.max_sequences * last.workers * last.deployment.layout.attention_dp
    raise TrivetError("is empty", field="concurrency", allowed="1 and more")


def _engine(text: str, notes: list[str]) -> str:
    name = text.lower().removesuffix("-rocm")
    name = _ENGINE_NAMES.get(name, name) or "vllm"
    if name == ATOM:
        notes.append("ATOM: vLLM's scheduler and AMD's own fused layers")
        return "vllm"
    if name not in ENGINES:
        notes.append(f"engine {text!r} has no profile: that of vllm is used")
        return "vllm"
    return name


def _needed(row: Mapping[str, str], name: str) -> str:
    if not row.get(name):
        raise TrivetError("is empty", field=name)
    return row[name]


def _number(row: Mapping[str, str], name: str, default: float) -> float:
    text = row.get(name, "")
    if not text:
        return default
    try:
        return float(text)
    except ValueError:
        raise TrivetError(f"{text!r} is not a number", field=name) from None


def _count(row: Mapping[str, str], name: str, needed: bool = False) -> float:
    value = _number(row, name, math.nan)
    if math.isnan(value):
        if needed:
            raise TrivetError("is empty", field=name, allowed="1 and more")
        return 0.0
    if value < 0 or value != int(value) or math.isinf(value) or (needed and value < 1):
        raise DoesNotFit(f"{value:g} is not a whole number", field=name, allowed="1 and more")
    return value
