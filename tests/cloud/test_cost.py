"""Chip-hours and tokens: quotes where published, derived elsewhere, the derivation near what is published."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import pytest

from trivet.chip import estimate
from trivet.chip.catalogue import chip, names
from trivet.chip.estimate import Estimate
from trivet.cloud.cost import annuity, card_usd, chip_hour, owner_hour_usd, revenue_usd, usd_per_million_tokens
from trivet.errors import TrivetError, UnknownName
from trivet.units import Z80

PUBLISHED = {"h100": 1.30, "h200": 1.41, "b200": 1.95, "gb200": 2.21, "mi300x": 1.12, "mi355x": 1.48}


def test_quotes_are_used() -> None:
    for name, usd in PUBLISHED.items():
        hour = chip_hour(chip(name))
        assert hour.usd.value == usd
        assert not hour.derived
    assert chip_hour(chip("h100"), "rent_3_years").usd.value == 1.30
    rent = chip_hour(chip("h100"), "on_demand")
    assert rent.usd.lo <= 2.96
    assert rent.usd.hi >= 9.9


def test_the_derivation_against_published_owners_costs() -> None:
    """Nothing in the derivation was fitted to these six: mean error below 15%, each in or near its interval."""
    errors = []
    for name, usd in PUBLISHED.items():
        ours = owner_hour_usd(chip(name))
        errors.append(abs(ours.value / usd - 1))
        assert ours.lo * 0.95 <= usd <= ours.hi * 1.05, name
    assert sum(errors) / len(errors) < 0.15


@pytest.mark.parametrize("name", ["zhenwu-810e", "h20", "a800", "zhenwu-m890", "ascend-910b", "tpu-v7"])
def test_unknown_prices_are_intervals_with_a_driver(name: str) -> None:
    hour = chip_hour(chip(name))
    assert hour.derived
    assert hour.usd.lo < hour.usd.value < hour.usd.hi
    assert hour.usd.driver


def test_every_chip_has_a_cost() -> None:
    for name in names():
        one = chip(name)
        if one.server:
            for basis in ("tco_hyperscaler", "on_demand", "owner"):
                assert 0.005 < chip_hour(one, basis).usd.value < 60, (name, basis)


def test_own_chips_are_cheaper_than_merchants_of_like_bill() -> None:
    assert card_usd(chip("zhenwu-810e")).value < card_usd(chip("h20")).value


def test_annuity_by_hand() -> None:
    assert annuity(Estimate(5.0), Estimate(0.09)).value == pytest.approx(0.25709, abs=1e-5)
    spread = annuity(estimate.between(4, 6, "years"), Estimate(0.09)).spread["years"]
    assert spread < 0
    assert abs(spread) == pytest.approx(math.log(6 / 4) / 2 / Z80 * 0.79, rel=0.05)


def test_tokens_by_hand() -> None:
    cost = usd_per_million_tokens(Estimate(2.0, {"x": 0.1}), 8, 10_000)
    assert cost.value == pytest.approx(8 * 2.0 / 3600 / 10_000 * 1e6)
    assert usd_per_million_tokens(Estimate(2.0), 8, 10_000, busy=0.5).value == pytest.approx(2 * cost.value)
    with pytest.raises(TrivetError):
        usd_per_million_tokens(Estimate(2.0), 8, 0)


def test_revenue_and_refusals() -> None:
    assert revenue_usd("qwen-plus", 1e6, 1e6) == pytest.approx(0.4 + 1.2)
    assert revenue_usd("qwen-plus", 1e6, 0, cached_tokens=1e6) == pytest.approx(0.4 * 0.2)
    with pytest.raises(UnknownName, match="qwen-plus"):
        revenue_usd("qwen-pluss", 1, 1)
    with pytest.raises(TrivetError, match="cached"):
        revenue_usd("qwen-plus", 1, 1, 2)
    with pytest.raises(TrivetError, match="basis"):
        chip_hour(chip("h100"), "barter")


def test_the_sheets_hold_the_shared_prices(shared_data: Path) -> None:
    from trivet.chip.reading import price_sheet

    with (shared_data / "prices.csv").open() as rows:
        for row in csv.DictReader(rows):
            if row["kind"] in ("token_input", "token_output"):
                fact = price_sheet("tokens")[f"{row['item']}/{row['kind'].split('_')[1]}"]
                assert fact.value == pytest.approx(float(row["value"]))
            if row["kind"] == "pue" and row["item"] == "Alibaba":
                assert price_sheet("site")["pue_alibaba"].value == pytest.approx(float(row["value"]))
