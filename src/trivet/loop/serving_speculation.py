"""Whether a row of the public InferenceX benchmark was measured with speculative decoding, which no column says.

The benchmark's configuration of a date says which loads of a model ran with and without multi-token prediction, in which image
and on which layout. ``data/calibration/speculation.csv`` holds that (settings only; drafts 0: none): the engine's build often
tells the two apart, else the day on which a configuration came, the layout or the load. Where both fit, both are likely.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from datetime import date, timedelta
from functools import lru_cache
from importlib import resources
from typing import Any

from trivet.loop.serving_rows import LENGTHS, Case

# Probability that one of the benchmark's draft tokens is accepted, read off TensorRT-LLM's runs of DeepSeek R1 with and without
# (94 with, 104 without): 2.5 tokens a step with three drafts, 1.7 with one.
ACCEPTANCE = 0.7
NEW = timedelta(days=3)  # a configuration is run when it comes or changes


@dataclass(frozen=True, slots=True)
class Speculation:
    """``share``: probability that a row was measured with ``drafts`` draft tokens a step. ``serial``: by SGLang's first worker
    of that kind (its script sets ``SGLANG_ENABLE_SPEC_V2`` but does not export it), whose host waits for the device and handles
    every sequence three times a step: to draft, to verify, to extend the draft."""

    share: float = 0.0
    drafts: int = 0
    serial: bool = False

    @property
    def tokens_a_step(self) -> float:
        """Tokens that a step yields on average: drafts count up to the first that is not accepted."""
        return (1.0 - ACCEPTANCE ** (self.drafts + 1)) / (1.0 - ACCEPTANCE)


@dataclass(frozen=True, slots=True)
class _Setting:
    version: str
    since: date
    until: date
    first: float
    last: float
    drafts: int
    serial: bool


def unstated(case: Case) -> Speculation:
    """What the configuration of that date tells of an aggregated row without stated speculation."""
    pool = case.pools[-1]
    day = _day(case.measured_on)
    if len(case.pools) > 1 or day is None or {case.isl, case.osl} - set(LENGTHS):
        return Speculation()
    if not pool.deployment.architecture.mtp_layers or pool.deployment.settings.speculative_tokens:
        return Speculation()
    g, layout = case.group, pool.deployment.layout
    name = next((name for name in ("deepseek", "qwen3.5", "glm-5") if name in g["model"].lower()), "")
    width = "fp4" if "fp4" in g["precision"] else "fp8" if g["precision"].startswith("fp8") else g["precision"]
    key = (name, g["engine"], g["chip"], width, case.isl, case.osl, layout.chips_per_stage, layout.attention_dp > 1)
    build = g["version"] if g["version"][:1].isdigit() else "nightly" if "nightly" in g["version"] else ""
    fit = [
        s for s in _settings().get(key, ())
        if s.version == build and s.first <= case.concurrency <= s.last and s.since - NEW <= day <= s.until + NEW
    ]  # fmt: skip
    fresh = [s for s in fit if abs(day - s.since) <= NEW]
    found = fresh or fit
    if not found:
        return Speculation()
    share = sum(s.drafts > 0 for s in found) / len(found)
    return Speculation(share, max(s.drafts for s in found), any(s.serial for s in found))


def _day(text: str) -> date | None:
    """The day that ``text`` is; None where it is none (what is asked for without a benchmark)."""
    try:
        return date.fromisoformat(text)
    except ValueError:
        return None


@lru_cache(maxsize=1)
def _settings() -> dict[tuple[Any, ...], list[_Setting]]:
    text = resources.files("trivet.data.calibration").joinpath("speculation.csv").read_text("utf-8")
    out: dict[tuple[Any, ...], list[_Setting]] = {}
    for row in csv.DictReader(text.splitlines()):
        names = tuple(row[name] for name in ("model", "engine", "chip", "precision"))
        key = (*names, float(row["isl"]), float(row["osl"]), int(row["chips"]), row["ranks"] == "1")
        since, until = date.fromisoformat(row["since"]), date.fromisoformat(row["until"])
        load = float(row["first"]), float(row["last"])
        setting = _Setting(row["version"], since, until, *load, int(row["drafts"]), row["serial"] == "1")
        out.setdefault(key, []).append(setting)
    return out
