"""The fit of an engine's constants: the same measurements give the same constants, whatever was shipped before."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from trivet.cloud.engine.profiles import stored
from trivet.loop.calibrate_engine import EngineFit, Measured, fit_engine
from trivet.loop.serving_model import Compiler, steady
from trivet.loop.serving_rows import Case, understand

ROW = {
    "chip": "h200_sxm", "engine": "vllm", "engine_version": "0.19.0", "model": "Qwen/Qwen3-32B", "weights": "fp8", "mode": "agg",
    "isl": "1024", "osl": "256", "tp": "4", "measured_on": "2026-04-22",
}  # fmt: skip
SLOWER = 1.2


def measured() -> list[Measured]:
    """Two campaigns of an engine that takes ``SLOWER`` times as long in every step."""
    rows = []
    for chip in ("h200_sxm", "b200_sxm"):
        for concurrency in ("4", "16", "64"):
            case = understand({**ROW, "chip": chip, "concurrency": concurrency, "batch_size": concurrency})
            assert isinstance(case, Case), case
            found = steady(case, Compiler())
            rows.append(Measured(case, SLOWER * float(found.ttft_s), SLOWER * float(found.tpot_s)))
    return rows


def fitted(raw: dict[str, Any], evaluations: int = 4) -> EngineFit:
    return fit_engine(measured(), "vllm", raw, Compiler(), evaluations)


def test_starts_at_the_priors() -> None:
    raw = stored()["vllm"]
    other = {**raw, "graph_s": 9 * raw["graph_s"], "weights": {kind: 0.5 * w for kind, w in raw["weights"].items()}}
    one, two = fitted(raw), fitted(other)
    assert one.raw == two.raw
    assert one.raw == fitted(raw).raw
    assert one.raw["mixing"] == raw["mixing"]
    kept = fitted(other, evaluations=0)
    assert kept.raw["graph_s"] == pytest.approx(other["graph_s"], rel=1e-3)


def test_follows_the_measurements() -> None:
    """The fit explains most of what a slower engine adds."""
    fit = fitted(stored()["vllm"], evaluations=12)
    compiler = Compiler({"vllm": _profile(fit.raw)})
    ratio = [row.tpot_s / float(steady(row.case, compiler).tpot_s) for row in measured()]
    assert np.abs(np.log(ratio)).max() < 0.6 * np.log(SLOWER)


def _profile(raw: dict[str, Any]) -> Any:
    from trivet.cloud.engine.profiles import from_mapping

    return from_mapping("vllm", raw)
