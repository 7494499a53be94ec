"""Codesign: a demand on a chip, what a tenth more of each parameter does, the best chip, the check of method."""

from __future__ import annotations

import math

import pytest

from trivet.chip.catalogue import chip
from trivet.chip.reading import data_folder, read_yaml
from trivet.chip.variant import compose, ported, vary
from trivet.errors import DoesNotFit, TrivetError
from trivet.loop.codesign import Study, doubts, sensitivities, used
from trivet.loop.codesign_check import check, place
from trivet.loop.codesign_demand import MAX_LOAD, Price, demand, rate
from trivet.loop.codesign_result import CodesignRequest, run_codesign
from trivet.loop.codesign_search import best
from trivet.model.config import read

SMALL = {
    "title": "small",
    "workloads": {
        "decode": {"kind": "decode", "share": 1, "model": "Qwen/Qwen3-32B", "context": 4096, "tpot_s": 0.05},
        "prefill": {"kind": "prefill", "share": 1, "model": "Qwen/Qwen3-32B", "prompt": 8192, "ttft_s": 5},
        "training": {
            "kind": "training", "share": 1, "model": "Qwen/Qwen3-8B", "seq_len": 4096, "global_batch": 256, "chips": 64
        },
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def study() -> Study:
    return Study(chip("zhenwu-810e"), demand(SMALL, read))


@pytest.fixture(scope="module")
def found(study: Study) -> dict[tuple[str, str, str], float]:
    rows, _ = sensitivities(study)
    return {(r.workload, r.parameter, r.metric): r.percent for r in rows}


def test_the_shipped_demands_read() -> None:
    for name in ("codesign", "codesign_2020"):
        workloads = demand(read_yaml(data_folder() / "scenarios" / f"{name}.yaml"), read)
        assert sum(w.share for w in workloads) == pytest.approx(1.0)
    mix = next(w for w in demand(read_yaml(data_folder() / "scenarios" / "codesign.yaml"), read) if w.kind == "mix")
    assert len(mix.services) == 8
    assert sum(tokens for part, tokens in mix.services if part.kind == "prefill") == pytest.approx(
        1196.4 * 115 + 1867.9 * 313 + 195.8 * 930 + 16.0 * 1576
    )


def test_the_slo_holds_and_binds(study: Study) -> None:
    decode = study.workloads[0]
    choice = study.choices["decode"]
    tight = demand({"workloads": {"decode": {**SMALL["workloads"]["decode"], "tpot_s": 0.03}}}, read)[0]  # type: ignore[index]
    assert rate(study.chip, tight, choice).tokens_per_s <= rate(study.chip, decode, choice).tokens_per_s
    never = demand({"workloads": {"decode": {**SMALL["workloads"]["decode"], "tpot_s": 0.0001}}}, read)[0]  # type: ignore[index]
    with pytest.raises(DoesNotFit, match="step takes"):
        rate(study.chip, never, choice)


def test_a_later_ttft_allows_more_load(study: Study) -> None:
    choice = study.choices["prefill"]
    loads = []
    for ttft in (3, 5, 20, 1000):
        raw = {"workloads": {"prefill": {**SMALL["workloads"]["prefill"], "ttft_s": ttft}}}  # type: ignore[index]
        try:
            loads.append(rate(study.chip, demand(raw, read)[0], choice).tokens_per_s)
        except DoesNotFit:
            loads.append(0.0)
    assert loads == sorted(loads)
    assert loads[-1] / loads[-2] < 1 / MAX_LOAD


def test_each_workload_answers_to_its_own_parameter(found: dict[tuple[str, str, str], float]) -> None:
    """Training and prefill are arithmetic, decode reads memory; more of what is not used costs money."""
    for workload in ("prefill", "training"):
        assert found[workload, "matrix", "cards"] < -5
        assert found[workload, "matrix", "cards"] < found[workload, "memory_bandwidth", "cards"]
    assert found["decode", "memory_bandwidth", "cards"] < 3 * found["training", "memory_bandwidth", "cards"] < 0
    assert found["training", "memory_capacity", "cost"] > 0
    assert found["prefill", "vector", "cost"] > 0
    for (workload, _, metric), percent in found.items():
        if metric == "cards" and workload != "all":
            # Nothing gains more than it grew, but a prefill pool may also run at a higher load within its TTFT, and a
            # decode pool with a larger batch within its TPOT; nothing gets slower with more.
            assert (-12 if workload == "training" else -25) < percent < 0.5


def test_cost_is_cards_times_price(study: Study, found: dict[tuple[str, str, str], float]) -> None:
    variant = compose(study.chip, {"matrix": 1.1})
    dearer = study.price.usd_per_hour(variant).value / study.price.hour.value
    assert dearer > 1
    for workload in ("decode", "prefill", "training"):
        cards = 1 + found[workload, "matrix", "cards"] / 100
        assert 1 + found[workload, "matrix", "cost"] / 100 == pytest.approx(cards * dearer)


def test_every_figure_has_an_interval_and_a_driver(study: Study) -> None:
    rows, silicon = sensitivities(study, parameters=("matrix", "links"))
    for row in rows:
        assert row.lo <= row.percent <= row.hi
        assert (row.hi > row.lo) == bool(row.driver)
        assert row.percent * row.less_percent <= 1e-9 or abs(row.percent) < 0.1  # less does the opposite of more
    assert silicon[0].area > 0
    assert silicon[0].bill > 0
    assert {name for name, _ in doubts(study.chip)} >= {
        "zhenwu-810e peak_flops_bf16", "zhenwu-810e memory_bandwidth_bytes_per_s", "kernels: compute",
    }  # fmt: skip


def test_the_base_price_is_the_quote_and_variants_scale_it() -> None:
    h100 = chip("h100")
    price = Price.of(h100)
    assert price.usd_per_hour(h100).value == 1.30
    assert price.usd_per_hour(compose(h100, {"matrix": 1.0})).value == pytest.approx(1.30)
    assert price.usd_per_hour(compose(h100, {"memory_stacks": 1.2})).value > 1.31


def test_the_best_chip_keeps_its_budget_and_pays(study: Study) -> None:
    searched = best(study, rounds=6)
    for name, limit in searched.budget.items():
        assert searched.used[name] <= limit * 1.003
    whole = {c.metric: c for c in searched.changes if c.workload == "all"}
    assert whole["cost"].percent < -3
    assert whole["cost"].lo < whole["cost"].percent < whole["cost"].hi
    assert whole["cost"].driver
    # More room cannot be worse.
    wider = best(study, {n: 2 * v for n, v in used(study.chip).items()}, rounds=6)
    wide = next(c.percent for c in wider.changes if (c.workload, c.metric) == ("all", "cost"))
    assert wide <= whole["cost"].percent + 0.5


def test_a_budget_that_holds_nothing_and_bad_ones(study: Study) -> None:
    with pytest.raises(TrivetError, match="budget"):
        best(study, {"price": 1.0})
    with pytest.raises(DoesNotFit, match="budget"):
        best(study, {"power_w": 20.0}, rounds=3)


def test_another_node_is_denser_and_cooler() -> None:
    old = chip("a100")
    new = ported(old, 4)
    assert used(new)["area_mm2"] < 0.8 * used(old)["area_mm2"]
    assert used(new)["power_w"] < used(old)["power_w"]
    assert new.get("peak_flops_bf16") == old.get("peak_flops_bf16")


def test_a_variant_keeps_its_benchmarks_in_step() -> None:
    faster = vary(chip("zhenwu-810e"), "matrix", 1.1)
    assert faster.get("bench_gemm_4096_s") == pytest.approx(1.038975e-3 / 1.1)
    assert faster.get("bench_gemv_s") == pytest.approx(0.471567e-3)


def test_m890_beside_the_810e(study: Study) -> None:
    placed = place(study, chip("zhenwu-m890"))
    assert placed.factors["memory capacity"]["value"] == pytest.approx(144e9 / (98304 * 2**20))
    assert set(placed.ratios) | set(placed.refused) == {"decode", "prefill", "training"}
    for ratios in placed.ratios.values():
        assert ratios["cards"]["value"] < 1
        assert ratios["cards"]["lo"] < ratios["cards"]["value"] < ratios["cards"]["hi"]


def test_the_check_gives_every_step() -> None:
    raw = {"workloads": {k: v for k, v in SMALL["workloads"].items() if k != "training"}}  # type: ignore[attr-defined]
    result = check(demand(raw, read), successors=("h100",))
    (step,) = result.steps
    assert step.actual["matrix"] == pytest.approx(989.4 / 312, rel=1e-3)
    assert result.compared == len(step.actual) == len(step.found)
    assert -1 <= result.rank_correlation <= 1
    assert all(math.isfinite(v) for v in step.found.values())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "oven"}, "kind"), ({"tpot_s": -1}, "tpot_s"), ({"context": "long"}, "context"), ({"model": "no/such"}, "no"),
        ({"colour": "red"}, "colour"), ({"share": 0}, "share"),
    ],
)  # fmt: skip
def test_a_bad_demand_is_refused_with_the_field(change: dict[str, object], message: str) -> None:
    raw = {"workloads": {"decode": {**SMALL["workloads"]["decode"], **change}}}  # type: ignore[index]
    with pytest.raises(TrivetError, match=message):
        demand(raw, read)


def test_requests_are_checked() -> None:
    with pytest.raises(TrivetError, match="step"):
        run_codesign(CodesignRequest("h100", SMALL, step=0.0), read)
    with pytest.raises(TrivetError, match="yitian-710 is a cpu"):
        run_codesign(CodesignRequest("yitian-710", SMALL), read)


def test_the_same_bytes_twice() -> None:
    import json

    from trivet.report.codesign_report import html

    raw = {"title": "t", "workloads": {"decode": SMALL["workloads"]["decode"]}}  # type: ignore[index]
    request = CodesignRequest("h20", raw, place=("a800",))
    first, second = (json.dumps(run_codesign(request, read)) for _ in range(2))
    assert first == second
    text = html(json.loads(first))
    assert text == html(json.loads(second))
    for part in ("tornado", "memory bandwidth", "a800 placed beside h20", "80% interval"):
        assert part in text or part == "tornado"
    assert text.count("<svg") >= 5
