"""Pooling: what sharing saves, in the direction and size that sources give; closed form against turns one by one."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from trivet.cloud.deployment import StepTable
from trivet.cloud.serving.generate import open_loop
from trivet.cloud.serving.marketplace import Unknowns, customer_series, rebuild, spread
from trivet.cloud.serving.pool_turns import simulate_turns
from trivet.cloud.serving.pooling import Demand, Pool, PooledModel, _distribution, capacity, compare, latency_s
from trivet.cloud.serving.traffic import Traffic, merge
from trivet.errors import DoesNotFit, TrivetError
from trivet.interop.clients import read_clients

POOL = Pool(memory_bytes=72e9, link_bytes_per_s=40e9)


def model(gigabytes: float = 15.0, chips: int = 1, base_s: float = 0.01) -> PooledModel:
    """A model whose step is linear: base + 20 us a sequence."""
    sequences, tokens = np.array([1.0, 64, 256]), np.array([1.0, 512, 8192])
    context, past = np.array([1.0, 1000, 32000]), np.array([0.0, 8192, 32000])
    table = StepTable(
        tokens, base_s + tokens * 4e-5, sequences, base_s + sequences * 2e-5, context, np.outer(sequences, context) * 2e-9,
        tokens, past, np.outer(tokens, past + 1) * 1e-12, 1e-3, 2e-3, 1e-5, True, kv_blocks=20000,
    )  # fmt: skip
    return PooledModel("m", table, chips, gigabytes * 1e9, 130e3, 300, 250)


def steady(models: int, rate: float, cv: float = 1.0) -> Demand:
    return Demand(np.full((models, 1), rate), np.full((models, 1), cv))


def traffic(models: int, rate: float, seconds: float) -> Traffic:
    lengths = {"inputs": {"kind": "lognormal", "median": 200}, "outputs": {"kind": "exponential", "mean": 250}}
    return merge([open_loop(int(rate * seconds), rate_per_s=rate, seed=i, **lengths) for i in range(models)])  # type: ignore[arg-type]


def test_rare_models_pool_best() -> None:
    """100 rare models: one chip each, a third of that together in memory, less in turns."""
    needs = compare([model()] * 100, steady(100, 0.037), POOL)
    assert needs["dedicated"].chips == 100
    assert 20 <= needs["multiplexed"].chips <= 50  # two to five models fit a chip
    assert needs["token_level"].chips < needs["multiplexed"].chips
    assert not needs["scale_to_zero"].meets_ttft


def test_busy_models_have_nothing_to_share() -> None:
    needs = compare([model()] * 4, steady(4, 300.0), POOL, ("dedicated", "token_level"))
    assert needs["token_level"].chips == pytest.approx(needs["dedicated"].chips, rel=0.25)


@pytest.mark.parametrize(("mean", "dispersion"), [(0.3, 1.0), (5.0, 3.0), (0.5, 400.0), (250.0, 30.0), (5000.0, 20.0)])
def test_number_in_service_has_its_moments(mean: float, dispersion: float) -> None:
    n, p = _distribution(mean, dispersion)
    assert n @ p == pytest.approx(mean, rel=0.01)
    assert (n - mean) ** 2 @ p == pytest.approx(mean * dispersion, rel=0.05)
    if mean < 300:
        exact = stats.poisson(mean) if dispersion == 1 else stats.nbinom(mean / (dispersion - 1), 1 / dispersion)
        assert p[0] == pytest.approx(exact.pmf(0), rel=1e-3)


def test_active_models_as_the_source_counts_them() -> None:
    """Aegaeon: 100 models at 0.037 requests/s that take 16.79 s each have 46.55 in use on average."""
    held = replace(POOL, cold_start_s=0.0, keep_alive_s=16.79 - 1e-9, confidence=0.5, busy=1.0)
    instant = replace(model(base_s=1e-9), output_tokens=0.0, input_tokens=1e-9)
    chips = compare([instant] * 100, steady(100, 0.037), held, ("scale_to_zero",))["scale_to_zero"].chips
    assert chips == pytest.approx(46.55, abs=1.5)


def test_more_of_everything_needs_more_chips() -> None:
    base = compare([model()] * 30, steady(30, 0.1), POOL)
    for name, need in base.items():
        assert compare([model()] * 30, steady(30, 0.3), POOL)[name].chips >= need.chips
        if name in (
            "dedicated",
            "multiplexed",
        ):  # where models share time, a burst is a batch, and long pauses cost nothing
            assert compare([model()] * 30, steady(30, 0.1, cv=9.0), POOL)[name].chips >= need.chips
    slow = compare([model()] * 30, steady(30, 0.1), replace(POOL, prefetched=0.0, switch_base_s=1.0))
    assert slow["token_level"].chips > base["token_level"].chips
    assert slow["dedicated"].chips == base["dedicated"].chips


@pytest.mark.parametrize("rate", [0.037, 0.1])
def test_closed_form_against_turns(rate: float) -> None:
    """The models a chip that the closed form allows are served on time turn by turn; twice as many are not."""
    models = [model()] * 60
    pool = replace(POOL, confidence=0.9)
    chips = compare(models, steady(60, rate), pool, ("token_level",))["token_level"].chips
    fits = int(60 / chips)
    assert fits >= 2
    served = simulate_turns(traffic(fits, rate, 3600), models[:fits], pool)
    crowded = simulate_turns(traffic(3 * fits, rate, 3600), models[: 3 * fits], pool)
    assert served.on_time > 0.9
    assert served.ttft_on_time > 0.95
    assert crowded.on_time < served.on_time - 0.2


def test_turns_lose_no_token() -> None:
    arrived = traffic(5, 0.1, 1200)
    result = simulate_turns(arrived, [model()] * 5, POOL)
    assert result.tokens == int(arrived.output_tokens.sum())
    assert result.requests == len(arrived)
    assert 0 < result.busy + result.switching <= 1


def test_one_model_alone_switches_once_and_is_on_time() -> None:
    result = simulate_turns(traffic(1, 0.1, 1200), [model()], POOL)
    assert result.switches == 1
    assert result.on_time == 1.0


def test_marketplace_is_deterministic_and_hits_its_anchor() -> None:
    series = customer_series(read_clients(), every=63)
    small, large = [model(3.5, base_s=0.006), model(16)], [model(17, 4, 0.015), model(35, 4, 0.02)]
    draws = rebuild(small, large, series, Pool(86e9, 64e9), draws=1, seed=1)
    again = rebuild(small, large, series, Pool(86e9, 64e9), draws=1, seed=1)
    assert [d.chips for d in draws] == [d.chips for d in again]
    for draw in draws:
        assert draw.chips["dedicated"] == pytest.approx(1192, rel=0.02)
        assert draw.chips["token_level"] < draw.chips["dedicated"]
        assert Unknowns().models[0] <= draw.models <= Unknowns().models[1]
    band = spread(draws, "token_level")
    assert band["lo"] <= band["value"] <= band["hi"]


def test_refusals() -> None:
    with pytest.raises(DoesNotFit, match="slower than"):
        capacity(model(base_s=0.2), POOL)
    with pytest.raises(DoesNotFit, match="no room"):
        capacity(model(gigabytes=80), POOL)
    with pytest.raises(TrivetError, match="policies: unknown 'magic'"):
        compare([model()], steady(1, 1.0), POOL, ("magic",))
    with pytest.raises(TrivetError, match="1 rows for 2 models"):
        compare([model()] * 2, steady(1, 1.0), POOL)
    with pytest.raises(TrivetError, match=r"prefetched: 1\.5"):
        Pool(1e9, 1e9, prefetched=1.5)
    with pytest.raises(TrivetError, match="rate_per_s"):
        Demand(np.full((1, 1), -1.0), np.ones((1, 1)))
    with pytest.raises(TrivetError, match=r"traffic\.model"):
        simulate_turns(open_loop(3, rate_per_s=1, inputs=5, outputs=5), [model()], POOL)
    assert latency_s(model(), 0.1) == pytest.approx(25.0, rel=0.01)
