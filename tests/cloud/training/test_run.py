"""Goodput under failures: the closed form against simulation, the best interval, published fleets."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trivet.chip.catalogue import chip
from trivet.cloud.fabric import server_of
from trivet.cloud.training.run import (
    RunPlan,
    Setting,
    best_interval_s,
    chip_failure_rate,
    daly_interval_s,
    failure_rates,
    goodput,
    segment_share,
    spares_needed,
)
from trivet.errors import TrivetError


def setting(chips: int = 16384) -> Setting:
    part = chip("h100")
    return Setting(chips, 405e9, 5.0, 128, part, server_of(part))


@settings(max_examples=60)
@given(rate=st.floats(1e-6, 1e-2), stop=st.floats(0.1, 300.0))
def test_the_exact_interval_beats_its_neighbours_and_youngs(rate: float, stop: float) -> None:
    best = best_interval_s(rate, stop)
    share = segment_share(rate, best, stop, 100.0)
    for other in (best * 0.8, best * 1.25, math.sqrt(2 * stop / rate), daly_interval_s(rate, stop)):
        assert segment_share(rate, max(other, 1e-3), stop, 100.0) <= share * (1 + 1e-9)


def test_young_and_daly_meet_the_exact_interval_where_failures_are_rare() -> None:
    exact = best_interval_s(1e-6, 1.0)
    assert exact == pytest.approx(math.sqrt(2 * 1.0 / 1e-6), rel=2e-3)
    assert exact == pytest.approx(daly_interval_s(1e-6, 1.0), rel=1e-4)


def test_the_closed_form_meets_a_simulation() -> None:
    rng = np.random.default_rng(1)
    rate, interval, stop, recover = 1 / 5000.0, 900.0, 30.0, 400.0
    clock = work = 0.0
    fails = rng.exponential(1 / rate)
    while work < 4e7:
        end = clock + interval + stop
        if fails >= end:
            clock, work = end, work + interval
            continue
        clock = fails
        while True:  # a failure during recovery starts it again
            fails = clock + rng.exponential(1 / rate)
            if fails >= clock + recover:
                clock += recover
                break
            clock = fails
    assert work / clock == pytest.approx(segment_share(rate, interval, stop, recover), rel=0.01)


def test_llama_3_failed_every_three_hours_and_the_fleets_agree() -> None:
    # arXiv 2407.21783: 419 unexpected interruptions in 54 days on 16,384 chips
    own = sum(failure_rates().values()) * 16384
    assert 54 * 86400 * own == pytest.approx(419)
    rate = chip_failure_rate()
    assert rate.lo <= sum(failure_rates().values()) <= rate.hi
    # Meta RSC (arXiv 2410.21680): 1.8 hours projected for 16,384 chips
    assert 1.0 < 1 / (rate.hi * 16384) / 3600 < 1.9


def test_a_large_run_with_managed_recovery_trains_over_90_percent() -> None:
    found = goodput(setting(), RunPlan("memory", recovery="managed"))
    assert 0.90 < found.share.value < 0.97
    assert found.lo < found.share.value < found.hi < 1
    assert found.share.driver == "failure rate of a chip"


def test_plain_recovery_and_synchronous_checkpoints_cost_time() -> None:
    managed, plain = (goodput(setting(), RunPlan("memory", recovery=r)).share.value for r in ("managed", "plain"))
    assert managed - plain > 0.05
    object_store = [
        goodput(setting(512), RunPlan(c, "object_store", recovery="managed")) for c in ("sync", "async", "memory")
    ]
    assert object_store[0].checkpoint_stop_s > object_store[1].checkpoint_stop_s > object_store[2].checkpoint_stop_s
    assert object_store[0].share.value <= object_store[1].share.value <= object_store[2].share.value


def test_too_few_spares_stop_the_job_and_elastic_goes_on() -> None:
    enough = goodput(setting(), RunPlan(spares=-1)).share.value
    none = goodput(setting(), RunPlan(spares=0)).share.value
    elastic = goodput(setting(), RunPlan(spares=0, elastic=True)).share.value
    assert none < 0.1 < elastic < enough
    assert elastic > 0.8


def test_spares_follow_poissons_tail() -> None:
    assert spares_needed(0.0, 8) == 0
    mean, count = 6.0, spares_needed(6.0, 8) // 8
    tail = 1 - sum(math.exp(-mean) * mean**k / math.factorial(k) for k in range(count + 1))
    assert tail <= 0.001


def test_more_chips_fail_more_often_in_proportion() -> None:
    a, b = (goodput(setting(n), RunPlan()).mean_time_between_failures_s for n in (1024, 16384))
    assert a / b == pytest.approx(16)


def test_unknown_choices_are_refused() -> None:
    with pytest.raises(TrivetError, match="checkpoint"):
        RunPlan("sometimes")
    with pytest.raises(TrivetError, match="recovery"):
        goodput(setting(), RunPlan(recovery="magic"))
