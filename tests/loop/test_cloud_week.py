"""The cloud's week: scenarios, customers metered to the last token, services by the hour, jobs, comparison."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trivet.cloud.serving.rate import Load
from trivet.cloud.serving.tenants_traffic import Service, generate
from trivet.errors import TrivetError
from trivet.interop.clients import read_clients
from trivet.loop.cloud_compare import check_error, compare
from trivet.loop.cloud_customers import meter, with_generated
from trivet.loop.cloud_jobs import mixed_jobs, nodes_of, service_jobs
from trivet.loop.cloud_scenario import CloudScenario, Pool, parse
from trivet.loop.cloud_services import _Mixtures, split_load, thinned, week_windows

RAW: dict[str, Any] = {
    "pools": [{"chip": "zhenwu-810e", "servers": 32, "chips_per_server": 16}],
    "services": {"deepseek-r1": {"sold_as": "qwen3-max"}},
}


@pytest.fixture(scope="module")
def recorded() -> dict[str, Service]:
    return read_clients()


def scenario(**more: Any) -> CloudScenario:
    return parse({**RAW, **more})


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"pools": []}, "pools"),
        ({"pools": [{"chip": "h20", "servers": 0, "chips_per_server": 8}]}, "pools[0]"),
        ({"pools": [{"chip": "h20", "servers": 2}]}, "pools[0]"),
        ({"services": {}}, "services"),
        ({"services": {"mine": {"sold_as": "x"}}}, "services.mine.model"),
        ({"services": {"m-mid": {"sold_as": "x", "ttft_s": 0}}}, "services.m-mid"),
        ({"days": 99}, "days"),
        ({"sample": 0}, "sample"),
        ({"seed": "many"}, "seed"),
        ({"policy": "best"}, "policy"),
        ({"colour": "red"}, "colour"),
        ({"jobs": {"sizes": [1, 2], "weights": [1]}}, "jobs"),
        ({"training": [{"name": "t", "model": "m", "chips": 1, "tokens": "-3"}]}, "training[0].tokens"),
    ],
)
def test_a_scenario_that_cannot_be_is_refused_by_name(change: dict[str, Any], field: str) -> None:
    with pytest.raises(TrivetError) as caught:
        scenario(**change)
    assert caught.value.field == field


def test_yaml_numbers_with_exponents_are_numbers() -> None:
    spec = scenario(training=[{"name": "t", "model": "m", "chips": 8, "tokens": "36e12"}]).training[0]
    assert spec.tokens == 36e12


def test_400_customers_386_recorded_55_of_them_with_pooled_lengths(recorded: dict[str, Service]) -> None:
    names = sorted(recorded)
    grown = with_generated(recorded, names, 14, seed=0)
    assert sum(len(recorded[n].clients) for n in names) == 386
    assert sum(int((~recorded[n].measured_lengths).sum()) for n in names) == 55
    assert sum(len(grown[n].clients) for n in names) == 400
    assert all(len(set(grown[n].clients.tolist())) == len(grown[n].clients) for n in names)
    for n in names:
        assert grown[n].requests[: len(recorded[n].clients)].tolist() == recorded[n].requests.tolist()


def test_metering_adds_up_to_the_last_token_and_repeats(recorded: dict[str, Service]) -> None:
    s = scenario(days=1, sample=0.02)
    one, two = (meter(recorded["deepseek-r1"], s, lambda *_: None) for _ in range(2))
    assert one.adds_up
    assert one.drawn_requests > 10_000
    assert one.output_tokens.tolist() == two.output_tokens.tolist()
    expected = recorded["deepseek-r1"].requests.sum() * 0.02
    assert one.drawn_requests == pytest.approx(expected, rel=0.03)
    broken = replace(one, drawn_output_tokens=one.drawn_output_tokens + 1)
    assert not broken.adds_up


def test_a_one_day_service_repeats_its_day(recorded: dict[str, Service]) -> None:
    windows = week_windows(recorded["deepseek-r1"], scenario(days=3))
    assert windows.reshape(3, -1).tolist() == [windows[:144].tolist()] * 3


def test_mixed_lengths_are_those_of_drawn_requests(recorded: dict[str, Service]) -> None:
    service = recorded["m-large"]
    column = int(service.requests.sum(axis=0).argmax())
    drawn = generate(service, start_s=column * 600.0, end_s=(column + 1) * 600.0, seed=1)
    load = _Mixtures(service).load(column, 1.0, 1.0)
    assert load is not None
    assert load.input_mean == pytest.approx(float(drawn.input_tokens.mean()), rel=0.03)
    assert load.output_mean == pytest.approx(float(drawn.output_tokens.mean()), rel=0.03)
    assert load.output_square_mean == pytest.approx(float((drawn.output_tokens.astype(float) ** 2).mean()), rel=0.08)
    points = np.quantile(drawn.input_tokens, [0.5, 0.833])
    assert load.input_quantiles[4] == pytest.approx(points[0], rel=0.1)


def test_splitting_a_stream_thins_its_bursts(recorded: dict[str, Service]) -> None:
    demand = Load(100.0, 100.0, np.ones(9), 10.0, 200.0, 0.1, 41.0)
    assert split_load(demand, 100.0, 5.0).arrival_dispersion == pytest.approx(1 + 40 * 0.05)
    window = generate(recorded["deepseek-r1"], start_s=36_000.0, end_s=36_600.0, seed=0)
    part = thinned(window, 0.25, seed=3)
    assert part.arrival_s.size == pytest.approx(0.25 * window.arrival_s.size, rel=0.06)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 6), min_size=2, max_size=48), st.sampled_from([4, 16, 32]))
def test_service_jobs_hold_exactly_the_replicas_of_each_hour(need: list[int], chips: int) -> None:
    pool = Pool("zhenwu-810e", 8, 16)
    sized: Any = SimpleNamespace(
        spec=SimpleNamespace(name="s"), chips_per_replica=chips, replicas=np.array([max(need[0], 1), *need[1:]])
    )
    jobs = service_jobs(sized, pool)
    for hour, count in enumerate(sized.replicas):
        running = [j for j in jobs if j.arrival_s <= hour * 3600 < j.arrival_s + j.duration_s]
        assert len(running) == count
        assert sum(j.chip_milli for j in running) == count * chips * 1000


def test_other_jobs_ask_for_their_load_and_the_cluster_has_its_groups() -> None:
    s = scenario(
        pools=[
            {"chip": "h20", "servers": 64, "chips_per_server": 8},
            {"chip": "a800", "servers": 16, "chips_per_server": 8},
        ],
        jobs={"count": 4000, "load": 0.3},
        servers_per_pod=32,
        servers_per_rack=4,
    )
    jobs = mixed_jobs(s, ["a", "b"])
    asked = sum(j.chip_milli / 1000 * j.duration_s for j in jobs)
    assert asked / (s.chips * s.days * 86_400) == pytest.approx(0.3, rel=0.1)  # durations are cut at the week
    nodes = nodes_of(s)
    assert len({n.name for n in nodes}) == 80
    assert {n.pod for n in nodes if n.model == "a800"}.isdisjoint({n.pod for n in nodes if n.model == "h20"})
    assert max(n.pod for n in nodes) == 2


def _week(name: str, usd: float, wide: float, chips: float) -> dict[str, Any]:
    return {
        "name": name,
        "pools": [name],
        "serving_cost_usd": {"value": usd, "lo": usd / wide, "hi": usd * wide},
        "cost_usd": {"value": 2 * usd, "lo": usd, "hi": 4 * usd},
        "serving_joules_per_token": 1.0,
        "training": [],
        "services": [
            {
                "chip": name,
                "chips_mean": chips,
                "chips_needed_mean": {"value": chips, "lo": chips / 1.1, "hi": chips * 1.1},
            }
        ],
    }


def test_comparison_is_a_ratio_with_the_spread_of_both_sides() -> None:
    rows = compare([_week("a", 100.0, 1.2, 10.0), _week("b", 150.0, 1.5, 20.0)])
    assert (rows[0]["serving_usd"]["lo"], rows[0]["serving_usd"]["hi"]) == (1.0, 1.0)
    assert rows[1]["serving_usd"]["ratio"] == 1.5
    sigma = math.sqrt(math.log(1.2) ** 2 + math.log(1.5) ** 2 + 2 * math.log(1.1) ** 2)
    assert rows[1]["serving_usd"]["hi"] == pytest.approx(1.5 * math.exp(sigma))
    assert rows[1]["driver"] == "price of the chips"


def test_check_error_names_the_worst_hour() -> None:
    row = {
        "fluid_ttft_s": 1.0,
        "simulated_ttft_s": 2.0,
        "fluid_tpot_s": 0.1,
        "simulated_tpot_s": 0.1,
        "fluid_attainment": 0.95,
    }
    error = check_error([{**row, "simulated_attainment": 0.97}, {**row, "simulated_attainment": 0.85}])
    assert error["attainment_worst"] == pytest.approx(-0.10)
    assert error["ttft_median_abs_log"] == pytest.approx(math.log(2))
    assert error["hours_that_hold"] == 1
