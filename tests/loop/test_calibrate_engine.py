"""The fit of an engine's constants: the same measurements give the same constants, whatever was shipped before."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from trivet.cloud.engine.profiles import stored
from trivet.loop.calibrate_engine import EngineFit, Measured, above_peers, fit_engine
from trivet.loop.calibrate_residual import LeftOut, widths_of
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


def test_a_wide_group_does_not_lean_where_its_tail_does_not_gain() -> None:
    source = np.random.default_rng(1)
    narrow, wide = source.normal(0.0, 0.3, 600), source.normal(0.0, 0.1, 600)
    wide[:150] += 2.5  # a quarter is seen far later than predicted: no value near the rest reaches it
    target = np.concatenate([narrow, wide])
    zeros, groups = np.zeros(1200), np.repeat(["trtllm agg", "sglang agg"], 600)
    found = widths_of(LeftOut(target, zeros, np.full(1200, 0.3), zeros.astype(int) + 1, groups, np.arange(1200) % 60))
    lean = dict(zip(found.groups, found.lean[1], strict=False))
    assert lean["sglang agg"] < 0.2
    assert lean["trtllm agg"] > lean["sglang agg"]


def test_speculation_shows_against_peers() -> None:
    """Each chip's rows against their own: what the physics misses of a model on one chip is no speculation on another."""
    rows = measured()
    chips = np.array([row.case.group["chip"] for row in rows])
    error = np.where(chips == chips[0], -0.3, 0.4)
    error[0] += 0.5
    found = above_peers(rows, error)
    assert found[0] == pytest.approx(0.5)
    assert found[1:] == pytest.approx(0.0)
