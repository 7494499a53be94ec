"""A training scenario file to campaigns, and predicted figures beside published ones."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from trivet.chip import catalogue as chips
from trivet.cloud.training import families, names
from trivet.cloud.training.job import Overlap, Split, TrainingJob
from trivet.cloud.training.run import RunPlan
from trivet.errors import TrivetError
from trivet.loop.training_plan import Campaign, TrainingPlan
from trivet.model.architecture import Architecture

KEYS = (
    "model",
    "chip",
    "chips",
    "tokens",
    "seq_len",
    "batch_tokens",
    "precision",
    "framework",
    "task",
    "server",
    "split",
    "job",
    "run",
    "basis",
    "site",
    "network_gbps",
    "compare",
    "published",
    "title",
    "source",
    "shape",
    "teacher",
)
_SUFFIX = {"k": 1e3, "M": 1e6, "B": 1e9, "G": 1e9, "T": 1e12}
# what of a plan a published figure may be held against: unit and how to read it
FIGURES: dict[str, tuple[str, Callable[[TrainingPlan], float]]] = {
    "model_tflops_per_chip": ("TFLOP/s", lambda p: p.best.result.model_flops_per_s_per_chip / 1e12),
    "mfu": ("share", lambda p: p.best.result.mfu),
    "tokens_per_s_per_chip": ("1/s", lambda p: p.best.result.tokens_per_s_per_chip),
    "days": ("days", lambda p: p.days.value),
    "chip_hours": ("h", lambda p: p.days.value * 24 * p.best.job.split.chips),
    "busy_chip_hours": ("h", lambda p: p.days.value * p.goodput.share.value * 24 * p.best.job.split.chips),
    "goodput": ("share", lambda p: p.goodput.share.value),
    "interruptions_in_54_days": ("", lambda p: 54 * 86400 / p.goodput.mean_time_between_failures_s),
    "memory_bytes": ("B", lambda p: p.best.result.peak.total),
    "step_s": ("s", lambda p: p.best.result.step_s),
}


def number(value: Any, field: str) -> float:
    """A number, or text such as ``36T``."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        result = float(value)
    else:
        text = str(value).strip().replace("_", "")
        scale = _SUFFIX.get(text[-1:], 0.0)
        try:
            result = float(text[:-1]) * scale if scale else float(text)
        except ValueError as error:
            raise TrivetError(f"{value!r} is not a number", field=field, allowed="e.g. 4096, 36T, 16M") from error
    if not math.isfinite(result):
        raise TrivetError(f"{value!r} is not finite", field=field)
    return result


def _mapping(raw: Mapping[str, Any], key: str) -> dict[str, Any]:
    value = raw.get(key) or {}
    if not isinstance(value, dict):
        raise TrivetError("is no mapping", field=key)
    return dict(value)


def _architecture(raw: Mapping[str, Any]) -> Architecture:
    if "shape" in raw:
        shape = _mapping(raw, "shape")
        try:
            return families.decoder(str(raw.get("model", "custom")), **{"gated": False, "vocab": 51200, **shape})
        except TypeError as error:
            raise TrivetError(
                str(error),
                field="shape",
                allowed="layers, hidden, heads, kv_heads, head_dim, intermediate, gated, vocab, experts, top_k",
            ) from error
    if not raw.get("model"):
        raise TrivetError("is missing", field="model")
    return names.architecture(str(raw["model"]))


def _overlap(raw: Mapping[str, Any]) -> Overlap:
    for key, value in raw.items():
        if key not in Overlap.__dataclass_fields__ or not isinstance(value, bool):
            raise TrivetError(
                f"{value!r}",
                field=f"overlap.{key}",
                allowed=f"{', '.join(Overlap.__dataclass_fields__)}: true or false",
            )
    return Overlap(**raw)


def campaigns(raw: Mapping[str, Any]) -> list[Campaign]:
    """The campaign of a scenario, and one more for each chip under ``compare``.

    Raises:
        TrivetError: an unknown key or a value that cannot be understood.
    """
    for key in raw:
        if key not in KEYS:
            raise TrivetError("unknown key", field=str(key), allowed=KEYS)
    for key in ("chip", "chips", "tokens"):
        if key not in raw:
            raise TrivetError("is missing", field=key)
    fixed = {**_mapping(raw, "split"), **_mapping(raw, "job")}
    known = set(Split.__dataclass_fields__) | set(TrainingJob.__dataclass_fields__)
    for key in fixed:
        if key not in known:
            raise TrivetError("unknown field of split or job", field=str(key), allowed=sorted(known))
    if raw.get("teacher"):
        fixed["teacher"] = names.architecture(str(raw["teacher"]))
    if "overlap" in fixed:
        fixed["overlap"] = _overlap(_mapping(fixed, "overlap"))
    run = _mapping(raw, "run")
    for key in run:
        if key not in RunPlan.__dataclass_fields__:
            raise TrivetError("unknown field of run", field=str(key), allowed=sorted(RunPlan.__dataclass_fields__))
    first = Campaign(
        _architecture(raw),
        chips.chip(str(raw["chip"])),
        int(number(raw["chips"], "chips")),
        number(raw["tokens"], "tokens"),
        int(number(raw.get("seq_len", 4096), "seq_len")),
        number(raw.get("batch_tokens", 0), "batch_tokens"),
        str(raw.get("precision", "") or ""),
        str(raw.get("framework", "megatron")),
        str(raw.get("task", "pretrain")),
        str(raw.get("server", "") or ""),
        fixed,
        RunPlan(**run),
        str(raw.get("basis", "tco_hyperscaler")),
        str(raw.get("site", "") or ""),
        number(raw.get("network_gbps", 0), "network_gbps") * 1e9 / 8,
    )
    found = [first]
    for name in raw.get("compare") or []:
        other = chips.chip(str(name))
        found.append(
            Campaign(
                first.architecture,
                other,
                first.chips,
                first.tokens,
                first.seq_len,
                first.batch_tokens,
                first.precision,
                first.framework,
                first.task,
                "",
                fixed,
                first.run,
                first.basis,
                first.site,
                0.0,
            )
        )
    return found


def published(raw: Mapping[str, Any], plan: TrainingPlan) -> list[dict[str, Any]]:
    """Published figures with what was predicted: ``{what, published, predicted, ratio, source}`` each.

    Raises:
        TrivetError: a figure that a plan does not have.
    """
    rows = []
    for entry in raw.get("published") or []:
        what = str(entry.get("what", ""))
        if what not in FIGURES:
            raise TrivetError(f"unknown figure {what!r}", field="published", allowed=sorted(FIGURES))
        unit, read = FIGURES[what]
        value, predicted = number(entry.get("value"), what), read(plan)
        rows.append(
            {
                "what": what,
                "unit": unit,
                "published": value,
                "predicted": predicted,
                "ratio": predicted / value,
                "source": str(entry.get("source", "")),
            }
        )
    return rows
