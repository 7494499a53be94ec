"""Autoscaling: it follows the load, pays for cold starts, and loses nothing."""

from __future__ import annotations

import numpy as np
import pytest
from serving_cases import fleet, replicas, traffic

from trivet.cloud.serving.autoscale import Autoscale, cold_start_s
from trivet.cloud.serving.fleet import simulate
from trivet.cloud.serving.metrics import latencies, summary
from trivet.cloud.serving.traffic import Traffic
from trivet.errors import TrivetError


def tide() -> Traffic:
    """Quiet, then ten times as much, then quiet."""
    rng = np.random.default_rng(0)
    gaps = np.concatenate([rng.exponential(0.5, 200), rng.exponential(0.02, 5000), rng.exponential(0.5, 400)])
    return traffic(np.cumsum(gaps), 300, 120)


def test_it_follows_the_load() -> None:
    load = tide()
    scaled = simulate(load, fleet(replicas(8, max_num_seqs=16), autoscale=Autoscale(12, 5.0, 10.0, 1)))
    fixed = simulate(load, fleet(replicas(8, max_num_seqs=16)))
    small = simulate(load, fleet(replicas(1, max_num_seqs=16)))
    assert all((r.status == 0).all() for r in (scaled, fixed, small))
    hours = [summary(r)["use"]["chip_hours"] for r in (scaled, fixed)]
    assert hours[0] < 0.7 * hours[1]
    wait = [latencies(r)["ttft"].mean() for r in (fixed, scaled, small)]
    assert wait[0] < wait[1] < wait[2]


def test_cold_starts_cost_latency() -> None:
    load = tide()
    times = [
        latencies(simulate(load, fleet(replicas(8, max_num_seqs=16), autoscale=Autoscale(12, 5.0, cold, 1))))[
            "ttft"
        ].max()
        for cold in (1.0, 60.0)
    ]
    assert times[1] > times[0] + 20


def test_cold_start_time() -> None:
    assert cold_start_s(16e9, 8e9, 30.0) == pytest.approx(32.0)
    with pytest.raises(TrivetError, match="bandwidth"):
        cold_start_s(1.0, 0.0)


def test_refusals() -> None:
    with pytest.raises(TrivetError, match="target_in_flight"):
        Autoscale(0)
    with pytest.raises(TrivetError, match="minimum"):
        Autoscale(4, minimum=3, maximum=2)
