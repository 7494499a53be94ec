"""How each engine behaves: its scheduler, its host, and how far its steps stay from the sum of its kernels.

The constants are data (``data/calibration/engines.json``), fitted by ``loop/calibrate_engine.py``. A version that is not
in the file takes its engine's profile. Profiles of a user's own (``engines/*.json`` in ``$TRIVET_CATALOGUE``, written by
``trivet calibrate --bench``) come first, for the engine and the chip that they name.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import Any

from trivet.chip.reading import data_folder, folders
from trivet.cloud.engine.components import KINDS
from trivet.cloud.engine.versions import numbers
from trivet.errors import TrivetError, UnknownName


@dataclass(frozen=True, slots=True)
class EngineProfile:
    """Constants of one engine. Weights multiply the kernels' own times, seconds are per step unless named otherwise."""

    engine: str
    mixing: str  # "chunked", "prefill_first", "whole_prompt": see serving/steady.py
    overlap: bool  # the host prepares the next step while the device runs (but see ``serial_builds``)
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
    tpot_sigma: float = 0.0  # log spread of TPOT where a user's own results calibrated the engine; 0: they did not
    ttft_sigma: float = 0.0
    routed_layer_s: float = 0.0  # the host's time to launch a layer's experts in a step with a prompt
    latent_layer_s: float = 0.0  # the same of attention over latents
    slow_until: str = ""  # version before which both took twice as long (below 0.10, versions are Dynamo's)
    slow_chips: tuple[str, ...] = ()  # the chips, by how their names begin, on whose servers they did; (): all
    logit_bytes: float = 0.0  # that the sampler holds of one logit at most; 0: within the reserve
    cold_s: float = 0.0  # what the first step of a log takes longer: kernels are loaded and compiled when they first run
    serial_builds: tuple[str, ...] = ()  # (from, until) versions whose host worked between two steps all the same

    def build(self, version: str, chip: str = "") -> EngineProfile:
        """The constants of ``version`` on ``chip``; "" and names that are no number are the newest version."""
        if not version[:1].isdigit():
            return self
        slow = self.slow_until and numbers("0.10") <= numbers(version) < numbers(self.slow_until)
        found = self.launching(2.0) if slow and self.slow_on(chip) else self
        if not self.serial_builds:
            return found
        first, until = (numbers(text) for text in self.serial_builds)
        return replace(found, overlap=self.overlap and not first <= numbers(version) < until)

    def slow_on(self, chip: str) -> bool:
        """Whether ``chip`` has one of the hosts on which builds before ``slow_until`` launched slowly."""
        return not self.slow_chips or chip.startswith(self.slow_chips)

    def launching(self, factor: float) -> EngineProfile:
        """The same engine whose host takes ``factor`` times as long to launch steps with prompts."""
        routed, latent = factor * self.routed_layer_s, factor * self.latent_layer_s
        return replace(self, routed_layer_s=routed, latent_layer_s=latent)

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


def profile(engine: str, version: str = "", chip: str = "") -> EngineProfile:
    """The profile of ``engine`` in the build ``version``, a user's own for ``chip`` first.

    Raises:
        UnknownName: an engine without a profile.
        TrivetError: a user's profile that cannot be read.
    """
    engines = _raw()["engines"]
    if engine not in engines:
        raise UnknownName(f"no profile of {engine!r}", field="engine", allowed=sorted(engines))
    found = own_profile(engine, chip) or from_mapping(engine, engines[engine])
    return found.build(version, chip)


def own_profile(engine: str, chip: str) -> EngineProfile | None:
    """What ``engine`` was calibrated to on ``chip`` itself: by the user, or by a log of requests that we ship the outcome of."""
    found = _own_profiles().get((engine, chip))
    return found or _shipped_on_chips().get((engine, chip))


def _own_profiles() -> dict[tuple[str, str], EngineProfile]:
    """(engine, chip) -> profile of the catalogue folders of the user, the first folder first."""
    found: dict[tuple[str, str], EngineProfile] = {}
    if not os.environ.get("TRIVET_CATALOGUE"):
        return found
    for folder in folders("engines")[:-1]:
        for path in sorted(folder.glob("*.json")):
            own = read_profile(path, path.stat().st_mtime_ns)
            found.setdefault(own[0], own[1])
    return found


@lru_cache(maxsize=1)
def _shipped_on_chips() -> dict[tuple[str, str], EngineProfile]:
    return dict(read_profile(path) for path in sorted((data_folder() / "engines").glob("*.json")))


@lru_cache(maxsize=64)
def read_profile(path: Path, stamp: int = 0) -> tuple[tuple[str, str], EngineProfile]:
    """((engine, chip), profile) of a file that ``trivet calibrate --bench`` wrote; ``stamp`` tells its states apart.

    Raises TrivetError naming the file and the field.
    """
    try:
        raw = json.loads(path.read_text("utf-8"))
        key = (str(raw["engine"]), str(raw["chip"]))
        return key, from_mapping(key[0], raw["constants"])
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise TrivetError(f"cannot be read: {error}", field=str(path)) from error
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise TrivetError(f"no engine profile: {error}", field=str(path), allowed="engine, chip, constants") from error


def from_mapping(engine: str, raw: dict[str, Any]) -> EngineProfile:
    """A profile from its mapping; kinds that it leaves out weigh 1."""
    values = {f.name: raw[f.name] for f in fields(EngineProfile) if f.name in raw}
    for name in ("weights", "prefill_weights", "floors"):
        values[name] = {kind: float(raw.get(name, {}).get(kind, 1.0)) for kind in KINDS}
    for name in ("serial_builds", "slow_chips"):
        values[name] = tuple(values.get(name, ()))
    return EngineProfile(engine=engine, **values)
