"""Claims: the verdict follows from the probability, the figures carry spreads, and a second run gives the same."""

from __future__ import annotations

import dataclasses
import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trivet.chip.catalogue import chip as chip_by_name
from trivet.errors import TrivetError
from trivet.facts import Fact
from trivet.loop import claims_chips
from trivet.loop.claim import SURE, Bench, Claim, Figure, exceeds, verdict
from trivet.loop.claims import compute
from trivet.report.claims_report import html, markdown

LIGHT = ("above-a800", "par-with-h20", "links", "one-cluster", "capital", "full-stack")


@pytest.fixture(scope="module")
def found() -> list[Claim]:
    return compute(Bench(), LIGHT)


def test_verdicts_follow_from_probabilities(found: list[Claim]) -> None:
    assert [claim.id for claim in found] == list(LIGHT)
    for claim in found:
        if claim.probability is None:
            assert claim.verdict in ("quantified", "not computed")
        else:
            assert 0 <= claim.probability <= 1
            assert claim.verdict == verdict(claim.probability)
        assert claim.would_change
        for figure in claim.figures:
            assert figure.lo <= figure.value <= figure.hi, figure


def test_same_seed_same_bytes(found: list[Claim]) -> None:
    again = compute(Bench(), LIGHT)
    assert json.dumps([c.to_dict() for c in again]) == json.dumps([c.to_dict() for c in found])


def test_a_faster_subject_moves_the_verdict(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the BF16 peak and the bandwidth that the press once claimed, the 810E is far above A800."""
    real = chip_by_name("zhenwu-810e")
    known = {
        "peak_flops_bf16": Fact(787e12, "FLOP/s", "reported", "press"),
        "peak_flops_fp16": Fact(787e12, "FLOP/s", "reported", "press"),
        "peak_flops_int8": Fact(1574e12, "OP/s", "reported", "press"),
        "memory_bandwidth_bytes_per_s": Fact(4e12, "B/s", "reported", "press"),
    }
    bench_free = {k: v for k, v in real.facts.items() if not k.startswith("bench_")}
    faster = dataclasses.replace(real, name="zhenwu-press", facts={**bench_free, **known})
    monkeypatch.setattr(claims_chips, "chip_by_name", lambda name: faster if name == "zhenwu-810e" else chip_by_name(name))
    gemm = claims_chips._against(
        "gemm", claims_chips._operator(faster, "gemm"), claims_chips._operator(chip_by_name("a800"), "gemm")
    )
    peer = claims_chips._operator(chip_by_name("a800"), "gemm")
    slow = claims_chips._against("gemm", claims_chips._operator(real, "gemm"), peer)
    assert gemm.log_ratio > 0 > slow.log_ratio


@given(st.floats(-2, 2), st.floats(0.01, 1), st.floats(0.5, 2))
def test_exceeds_is_a_probability_that_falls_with_the_threshold(m: float, s: float, t: float) -> None:
    assert 0 <= exceeds(m, s, t * 1.1) <= exceeds(m, s, t) <= 1


def test_exceeds_at_the_median_is_a_half() -> None:
    assert exceeds(math.log(1.3), 0.2, 1.3) == pytest.approx(0.5)
    assert verdict(SURE) == "holds"
    assert verdict(0.5) == "open"
    assert verdict(0.1) == "does not hold"
    assert verdict(None) == "not computed"


def test_figure_interval_holds_80_percent() -> None:
    figure = Figure.of("x", 2.0, 0.1)
    assert exceeds(math.log(2.0), 0.1, figure.hi) == pytest.approx(0.1, abs=1e-6)


def test_unknown_claim() -> None:
    with pytest.raises(TrivetError, match="allowed"):
        compute(Bench(), ["moon-base"])


def test_reports_hold_every_claim(found: list[Claim]) -> None:
    rows = [claim.to_dict() for claim in found]
    for text in (markdown(rows), html(rows)):
        for claim in found:
            assert claim.verdict in text
