"""Routers: each does what its name says, and pays where the literature says it does."""

from __future__ import annotations

import numpy as np
import pytest
from serving_cases import fleet, poisson, replicas, traffic

from trivet.cloud.serving.fleet import simulate
from trivet.cloud.serving.metrics import latencies
from trivet.cloud.serving.router import PYTHON_ROUTERS, ROUTERS, ReplicaLoad
from trivet.errors import TrivetError


def test_round_robin_takes_turns() -> None:
    result = simulate(poisson(40, 5, 100, 10), fleet(replicas(4), router="round_robin"))
    assert result.replica.tolist() == [i % 4 for i in range(40)]


def test_least_outstanding_beats_power_of_two_beats_round_robin_in_the_tail() -> None:
    """Mitzenmacher 2001: two choices take most of the way from blind to full knowledge. Uneven work, many replicas."""
    rng = np.random.default_rng(3)
    arrival = np.cumsum(rng.exponential(1 / 250, 8000))
    load = traffic(arrival, 200, np.where(rng.random(8000) < 0.05, 900, 30))
    base = {
        name: simulate(load, fleet(replicas(16, max_num_seqs=8), router=name))
        for name in ("round_robin", "power_of_two", "least_outstanding")
    }
    tail = {name: np.percentile(latencies(r)["ttft"], 99) for name, r in base.items()}
    assert tail["least_outstanding"] < tail["power_of_two"] < tail["round_robin"]


def test_kv_load_follows_tokens_not_requests() -> None:
    """One huge context and small ones: by tokens, the small ones keep off the replica that holds the huge one."""
    load = traffic(np.concatenate([[0.0], np.linspace(0.5, 0.6, 12)]), [30000] + [100] * 12, [2000] + [50] * 12)
    result = simulate(load, fleet(replicas(2), router="kv_load"))
    assert (result.replica[1:] == 1 - result.replica[0]).all()


def test_slo_aware_keeps_off_long_prompts() -> None:
    load = traffic([0.0, 0.001, 0.002, 0.003], [20000, 100, 100, 100], 20)
    result = simulate(load, fleet(replicas(2), router="slo_aware"))
    assert (result.replica[1:] != result.replica[0]).all()


def test_prefix_aware_finds_the_blocks() -> None:
    count, block = 300, 64
    rng = np.random.default_rng(0)
    family = rng.integers(0, 20, count)
    ids = np.concatenate(
        [np.concatenate([1000 * f + np.arange(20), 100_000 + i * 4 + np.arange(4)]) for i, f in enumerate(family)]
    )
    load = traffic(
        np.cumsum(rng.exponential(0.05, count)), 24 * block, 20,
        hash_ids=np.unique(ids, return_inverse=True)[1], hash_offsets=np.arange(count + 1) * 24, block_tokens=block,
    )  # fmt: skip
    aware = simulate(load, fleet(replicas(4, kv_blocks=900), router="prefix_aware"))
    blind = simulate(load, fleet(replicas(4, kv_blocks=900), router="round_robin"))
    assert aware.cached_tokens.sum() > 1.3 * blind.cached_tokens.sum()
    assert latencies(aware)["ttft"].mean() < latencies(blind)["ttft"].mean()


@pytest.mark.parametrize("name", ROUTERS)
def test_no_request_is_lost(name: str) -> None:
    result = simulate(poisson(500, 60, 300, 60), fleet(replicas(5), router=name, seed=4))
    assert (result.status == 0).all()
    assert np.isfinite(result.last_token_s).all()


def test_a_router_in_python() -> None:
    seen: list[int] = []

    def least(request: int, time_s: float, load: ReplicaLoad) -> int:
        seen.append(request)
        return int(np.argmin(np.where(load.up, load.outstanding, 1 << 40)))

    PYTHON_ROUTERS["mine"] = least
    try:
        load = poisson(200, 60, 300, 60)
        mine = simulate(load, fleet(replicas(3), router="mine"))
        own = simulate(load, fleet(replicas(3), router="least_outstanding"))
        np.testing.assert_array_equal(mine.replica, own.replica)
        np.testing.assert_array_equal(mine.last_token_s, own.last_token_s)
        assert seen == list(range(200))
        PYTHON_ROUTERS["mine"] = lambda request, time_s, load: 7
        with pytest.raises(TrivetError, match="0 to 2"):
            simulate(load, fleet(replicas(3), router="mine"))
    finally:
        del PYTHON_ROUTERS["mine"]
