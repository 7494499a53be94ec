"""How each engine behaves: its scheduler, its host, and how far its steps stay from the sum of its kernels.

The constants are data (``data/calibration/engines.json``), fitted by ``loop/calibrate_engine.py``. A version that is not
in the file takes its engine's profile.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from functools import lru_cache
from importlib import resources
from typing import Any

from trivet.cloud.engine.components import KINDS
from trivet.errors import UnknownName


@dataclass(frozen=True, slots=True)
class EngineProfile:
    """Constants of one engine. Weights multiply the kernels' own times, seconds are per step unless named otherwise."""

    engine: str
    mixing: str  # "chunked", "prefill_first", "whole_prompt": see serving/steady.py
    overlap: bool  # the host prepares the next step while the device runs
    weights: dict[str, float]  # by kind of operator, decode steps
    prefill_weights: dict[str, float]  # by kind, steps with a prompt
    floors: dict[str, float]  # by kind, launch floors inside a captured graph
    eager_floor_weight: float  # the same in steps with a prompt, over those in a graph
    graph_s: float  # fixed device time of a decode step
    layer_s: float  # per layer, of a decode step
    host_decode_s: float
    host_mixed_s: float
    host_per_sequence_s: float
    first_token_s: float  # HTTP, tokeniser, scheduler hand-over: once a request
    first_token_steps: float  # decode steps until the first token leaves: tokens are streamed every few steps
    frontend_s: float  # serial part of the above, within a burst
    memory_reserve_bytes: float  # workspace, graphs, context
    memory_utilization: float
    log_sigma: float

    @property
    def prompts_alone(self) -> bool:
        return self.mixing == "prefill_first"


@lru_cache(maxsize=1)
def _raw() -> dict[str, Any]:
    text = resources.files("trivet.data.calibration").joinpath("engines.json").read_text("utf-8")
    loaded: dict[str, Any] = json.loads(text)
    return loaded


def stored() -> dict[str, Any]:
    """Constants by engine as the data file holds them."""
    engines: dict[str, Any] = _raw()["engines"]
    return dict(engines)


def profile(engine: str, version: str = "") -> EngineProfile:
    """The profile of ``engine``. Raises UnknownName for an engine without one."""
    engines = _raw()["engines"]
    if engine not in engines:
        raise UnknownName(f"no profile of {engine!r}", field="engine", allowed=sorted(engines))
    return from_mapping(engine, engines[engine])


def from_mapping(engine: str, raw: dict[str, Any]) -> EngineProfile:
    """A profile from its mapping; kinds that it leaves out weigh 1."""
    values = {f.name: raw[f.name] for f in fields(EngineProfile) if f.name in raw}
    for name in ("weights", "prefill_weights", "floors"):
        values[name] = {kind: float(raw.get(name, {}).get(kind, 1.0)) for kind in KINDS}
    return EngineProfile(engine=engine, **values)
