"""Every request of a log: when its first and last token come, from arrivals, lengths and the engine's settings alone."""

from __future__ import annotations

import csv
import io
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trivet.chip.catalogue import chip as find_chip
from trivet.cloud import engine
from trivet.cloud.deployment import Deployment, EngineSettings
from trivet.cloud.engine.profiles import EngineProfile
from trivet.cloud.serving.batching import batching
from trivet.cloud.serving.fleet import Fleet, ReplicaKind, ServingResult, simulate
from trivet.cloud.serving.traffic import Traffic
from trivet.errors import TrivetError
from trivet.model.architecture import Architecture
from trivet.model.config import read as read_model
from trivet.model.parallel import Layout

Floats = NDArray[np.float64]
COLUMNS = ("request_id", "queued_s", "first_token_s", "last_token_s")
_DTYPES = {
    "bfloat16": "bf16",
    "float16": "fp16",
    "half": "fp16",
    "float32": "fp32",
    "auto": "",
    "fp8_e4m3": "fp8",
    "fp8_e5m2": "fp8",
}


@dataclass(frozen=True, slots=True, eq=False)
class Log:
    """Requests in order of arrival, and the measured times where the log has them (seconds from the first arrival)."""

    ids: tuple[str, ...]
    traffic: Traffic
    queued_s: Floats | None = None
    first_token_s: Floats | None = None
    last_token_s: Floats | None = None


def read_log(path: Path) -> Log:
    """A JSONL log: ``request_id input_toks output_toks arrival_time`` and, for validation, ``queued_ts first_token_ts
    last_token_ts``.

    Arrivals are wall-clock and the engine's stamps are of another clock: the two are set against each other by the
    requests that the engine took up soonest (a request is never queued before it arrives).
    """
    rows = _rows(path)
    order = sorted(range(len(rows)), key=lambda i: rows[i]["arrival_time"])
    rows = [rows[i] for i in order]
    arrival = np.array([float(r["arrival_time"]) for r in rows])
    traffic = Traffic(
        arrival - arrival[0],
        np.array([r["input_toks"] for r in rows]),
        np.array([r["output_toks"] for r in rows]),
        name=path.name,
    )
    ids = tuple(str(r["request_id"]) for r in rows)
    if not all(name in row for row in rows for name in ("queued_ts", "first_token_ts", "last_token_ts")):
        return Log(ids, traffic)
    stamps = {
        name: np.array([float(r[name]) for r in rows]) for name in ("queued_ts", "first_token_ts", "last_token_ts")
    }
    offset = float((stamps["queued_ts"] - traffic.arrival_s).min())
    return Log(ids, traffic, *(stamps[name] - offset for name in ("queued_ts", "first_token_ts", "last_token_ts")))


def _rows(path: Path) -> list[dict[str, Any]]:
    try:
        lines = path.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise TrivetError(f"cannot be read: {getattr(error, 'strerror', None) or error}", field=str(path)) from error
    rows = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise TrivetError(f"line {number} is not JSON: {error.msg}", field=str(path)) from None
        for name in ("request_id", "input_toks", "output_toks", "arrival_time"):
            if not isinstance(row, dict) or name not in row:
                raise TrivetError(f"line {number} has no {name}", field=str(path))
            if name != "request_id" and not (isinstance(row[name], int | float) and math.isfinite(row[name])):
                raise TrivetError(f"line {number}: {name} is not a number", field=str(path))
        rows.append(row)
    if not rows:
        raise TrivetError("holds no request", field=str(path))
    return rows


def meta_path(log: Path) -> Path:
    """Where a log's settings lie, if nothing else is said: ``NAME.jsonl`` beside ``NAME.meta.json``."""
    return log.with_name(log.name.removesuffix(".jsonl") + ".meta.json")


def read_meta(path: Path) -> dict[str, Any]:
    try:
        meta = json.loads(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise TrivetError(f"cannot be read: {error}", field=str(path)) from error
    if not isinstance(meta, dict):
        raise TrivetError("holds no mapping", field=str(path))
    return meta


def deployment_of(meta: Mapping[str, Any], chip_name: str, traffic: Traffic) -> tuple[Deployment, tuple[str, ...]]:
    """The deployment that a log's meta file records, and what had to be assumed. Times in it are not used."""
    kwargs = _mapping(meta.get("engine_kwargs"))
    resolved = _mapping(meta.get("resolved_config"))
    cache = {
        **_mapping(resolved.get("cache_config")),
        **{k: v for k, v in _mapping(meta.get("kv_cache")).items() if v is not None},
    }
    scheduler, parallel = _mapping(resolved.get("scheduler_config")), _mapping(resolved.get("parallel_config"))
    name = meta.get("model") or kwargs.get("model")
    if not name:
        raise TrivetError("missing", field="meta: model")
    model, notes = read_model(str(name)), list[str]()
    layout = _layout(model, kwargs, parallel, notes)
    kv = str(kwargs.get("kv_cache_dtype") or cache.get("cache_dtype") or "auto")
    chip = find_chip(chip_name)
    typical = float(traffic.input_tokens.mean() + traffic.output_tokens.mean())
    block_size = int(cache.get("block_size") or kwargs.get("block_size") or 16)
    limits = []
    for label, usual in zip(("max_num_batched_tokens", "max_num_seqs"), engine.vllm_limits(chip), strict=True):
        stated = int(kwargs.get(label) or scheduler.get(label) or 0)
        limits.append(stated or usual)
        if not stated:
            notes.append(f"{label} is not recorded: {usual}, a server's default on this chip")
    method = kwargs.get("quantization") or _mapping(resolved.get("model_config")).get("quantization") or ""
    weights = "" if model.quantisation.default != "bf16" else stored_as(f"{name} {method}")
    if weights:
        notes.append(f"weights taken as {weights}, from what the model is called or loaded with")
    settings = EngineSettings(
        engine="vllm",
        version=str(meta.get("vllm_version") or ""),
        max_num_batched_tokens=limits[0],
        max_num_seqs=limits[1],
        max_model_len=int(kwargs.get("max_model_len") or 0),
        memory_utilization=float(cache.get("gpu_memory_utilization") or kwargs.get("gpu_memory_utilization") or 0.9),
        block_size=block_size,
        num_kv_blocks=whole_blocks(model, int(cache.get("num_gpu_blocks") or 0), block_size, typical),
        kv_dtype=_DTYPES.get(kv, kv),
        weight_dtype=weights,
        prefix_caching=bool(cache.get("enable_prefix_caching", True)),
        all_reduce="nccl" if parallel.get("disable_custom_all_reduce") else "",
    )
    if not settings.num_kv_blocks:
        notes.append("num_gpu_blocks is not recorded: computed from the chip's memory")
    return Deployment(model, chip, layout, settings, "", typical), tuple(notes)


def _layout(
    model: Architecture, kwargs: Mapping[str, Any], parallel: Mapping[str, Any], notes: list[str]
) -> Layout:
    tp = int(kwargs.get("tensor_parallel_size") or parallel.get("tensor_parallel_size") or 1)
    dp = int(kwargs.get("data_parallel_size") or parallel.get("data_parallel_size") or 1)
    pp = int(kwargs.get("pipeline_parallel_size") or parallel.get("pipeline_parallel_size") or 1)
    experts = bool(kwargs.get("enable_expert_parallel"))
    is_moe = model.routed
    attention_dp = dp if is_moe else 1  # experts are cut over the ranks, with or without expert parallelism
    if dp > 1 and attention_dp == 1:
        notes.append(f"data_parallel_size {dp}: independent replicas, least outstanding first")
    wide = tp * attention_dp
    return Layout(
        tp=tp,
        pp=pp,
        attention_dp=attention_dp,
        moe_tp=1 if experts or not is_moe else wide,
        moe_ep=wide if experts and is_moe else 1,
    )


# Words in the name of a checkpoint, or of what it is loaded with -> format of its weights, the first that is found.
_FORMATS = (
    (r"nvfp4", "nvfp4"), (r"mxfp4", "mxfp4"), (r"w4a16|awq|gptq|int4|4bit", "int4_wo"), (r"w8a16", "int8_wo"),
    (r"w8a8|int8", "int8"), (r"(qwen|deepseek-ai|zai-org)/\S*fp8", "fp8_block"), (r"fp8", "fp8"),
)  # fmt: skip


def stored_as(name: str) -> str:
    """The format of the weights by a checkpoint's name, "" where it tells none. The makers named cut theirs into blocks."""
    return next((label for pattern, label in _FORMATS if re.search(pattern, name.lower())), "")


def whole_blocks(model: Architecture, recorded: int, block_size: int, tokens: float) -> int:
    """Blocks of all layers that ``recorded`` ones of vLLM hold for sequences of ``tokens`` tokens.

    Where layers differ in their cache, vLLM cuts them into groups of as many layers each, and a block is of one group
    (``_get_kv_cache_groups_uniform_page_size``): a sequence takes blocks for its tokens in every group of full attention, for
    its window in one of windows, one block for a recurrent state.
    """
    counts: dict[tuple[str, int], int] = {}
    for layer in model.layers:
        mixer = layer.mixer
        if mixer.kind != "none" and not mixer.shared_kv:
            kind = ("state", 0) if mixer.kind == "scan" else ("tokens", mixer.window or mixer.chunk)
            counts[kind] = counts.get(kind, 0) + layer.count
    if len(counts) < 2:
        return recorded
    least, most = min(counts.values()), max(counts.values())
    size = most if most < 1.5 * least else least
    whole = math.ceil(tokens / block_size)
    taken = 0
    for (sort, limit), count in counts.items():
        kept = 1 if sort == "state" else min(whole, math.ceil(limit / block_size) + 1) if limit else whole
        taken += math.ceil(count / size) * kept
    return recorded * whole // max(taken, 1)


def _mapping(raw: Any) -> dict[str, Any]:
    return dict(raw) if isinstance(raw, dict) else {}


@dataclass(frozen=True, slots=True, eq=False)
class Replay:
    """A log's arrivals before the deployment of its meta file, compiled once for any constants of the engine."""

    log: Log
    meta: Mapping[str, Any]
    chip_name: str
    deployment: Deployment = field(init=False)
    notes: tuple[str, ...] = field(init=False)
    parts: engine.Components = field(init=False)

    def __post_init__(self) -> None:
        deployment, notes = deployment_of(self.meta, self.chip_name, self.log.traffic)
        object.__setattr__(self, "deployment", deployment)
        object.__setattr__(self, "notes", notes)
        object.__setattr__(self, "parts", engine.compile_components(deployment))

    def run(self, constants: EngineProfile) -> ServingResult:
        """The log's requests through an engine with these constants. The log's stamps are the engine's own, so nothing is
        added for what happens to a request before and after it."""
        settings, layout = self.deployment.settings, self.deployment.layout
        found = engine.assemble(self.parts, constants, self.blocks(constants), settings.block_size)
        table = replace(found, first_token_overhead_s=0.0)
        rules = replace(batching(settings), asynchronous=self.asynchronous)
        ranks = int(_mapping(self.meta.get("engine_kwargs")).get("data_parallel_size") or 1)
        kind = ReplicaKind(table, settings, ranks, rules=rules, chips=layout.tp * layout.pp)
        return simulate(self._held(constants.cold_s), Fleet((kind,)))

    def _held(self, cold_s: float) -> Traffic:
        """The traffic as an engine meets it whose first step lasts ``cold_s`` longer: who comes meanwhile waits."""
        arrival = self.log.traffic.arrival_s
        return replace(self.log.traffic, arrival_s=np.maximum(arrival, arrival[0] + cold_s)) if cold_s else self.log.traffic

    def blocks(self, constants: EngineProfile) -> int:
        """KV blocks of a rank: those recorded, else what the chip's memory leaves."""
        return engine.room(self.deployment, constants, self.deployment.expected_isl).blocks

    @property
    def asynchronous(self) -> bool:
        """Whether the host prepares a step while the device runs the one before: as the meta file says, or by default."""
        scheduler = _mapping(_mapping(self.meta.get("resolved_config")).get("scheduler_config"))
        stated = scheduler.get("async_scheduling")
        return stated if isinstance(stated, bool) else batching(self.deployment.settings).asynchronous


CAMPAIGNS = ("hopper", "blackwell")  # families of the chips on which engines were measured under load


def constants_of(replay: Replay, own: bool = True) -> EngineProfile:
    """The engine on the log's chip: calibrated on it where it was (unless not ``own``); as campaigns show it on the families
    that they ran on; else one process with its kernels as measured."""
    name, version, chip = replay.deployment.settings.engine, replay.deployment.settings.version, replay.deployment.chip
    found = engine.own_profile(name, chip.name) if own else None
    if found is None and chip.family in CAMPAIGNS:
        return engine.profile(name, version)
    return replace(found or engine.process(name, version), overlap=replay.asynchronous)


def predict(log: Log, meta: Mapping[str, Any], chip_name: str) -> tuple[ServingResult, tuple[str, ...]]:
    """Simulate the log's arrivals. Raises TrivetError for a chip, model or layout that cannot be."""
    replay = Replay(log, meta, chip_name)
    return replay.run(constants_of(replay)), replay.notes


def csv_text(log: Log, result: ServingResult) -> str:
    """One row a request: clock times since the first arrival, in the order of arrival."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(COLUMNS)
    for i, name in enumerate(log.ids):
        times = (result.scheduled_s[i], result.first_token_s[i], result.last_token_s[i])
        writer.writerow([name, *("" if not math.isfinite(t) else f"{t:.6f}" for t in times)])
    return buffer.getvalue()


def figures(traffic: Traffic, first_token_s: Floats, last_token_s: Floats) -> dict[str, float]:
    """The five figures by which a log is judged: seconds, and output tokens a second over the whole run."""
    ttft = first_token_s - traffic.arrival_s
    many = traffic.output_tokens > 1
    tpot = (last_token_s - first_token_s)[many] / (traffic.output_tokens[many] - 1)
    return {
        "ttft_mean_s": float(np.nanmean(ttft)),
        "ttft_p99_s": float(np.nanpercentile(ttft, 99)),
        "tpot_mean_s": float(np.nanmean(tpot)) if many.any() else math.nan,
        "latency_mean_s": float(np.nanmean(last_token_s - traffic.arrival_s)),
        "output_tokens_per_s": float(traffic.output_tokens.sum() / (np.nanmax(last_token_s) - traffic.arrival_s[0])),
    }


def compare(log: Log, result: ServingResult) -> list[dict[str, Any]]:
    """Predicted against measured, one row a figure; raises TrivetError for a log without measured times."""
    if log.first_token_s is None or log.last_token_s is None:
        raise TrivetError("the log has no first_token_ts, last_token_ts", field="validate")
    measured = figures(log.traffic, log.first_token_s, log.last_token_s)
    predicted = figures(log.traffic, result.first_token_s, result.last_token_s)
    return [
        {
            "figure": name,
            "measured": measured[name],
            "predicted": predicted[name],
            "error": predicted[name] / measured[name] - 1,
        }
        for name in measured
    ]


def worst(rows: Sequence[Mapping[str, Any]]) -> float:
    """Largest absolute relative error."""
    return max(abs(float(row["error"])) for row in rows)
