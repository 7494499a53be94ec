"""Watts a site holds ready, joules a token."""

from __future__ import annotations

import pytest

from trivet.chip.catalogue import chip
from trivet.chip.estimate import Estimate
from trivet.cloud.energy import facility_w, host_w_per_chip, joules_per_token, provisioned_facility_w, site_pue
from trivet.cloud.fabric import server_of
from trivet.errors import TrivetError

# Provisioned kW of one chip, all in, of the published owner's costs.
PUBLISHED_KW = {"h100": 1.73, "h200": 1.73, "b200": 2.17, "gb200": 2.10, "mi300x": 1.79, "mi355x": 2.65}


def test_provisioned_power_against_the_published() -> None:
    errors = []
    for name, kilowatts in PUBLISHED_KW.items():
        ours = provisioned_facility_w(chip(name)).value / 1e3
        errors.append(abs(ours / kilowatts - 1))
    assert sum(errors) / len(errors) < 0.14
    assert max(errors) < 0.21


def test_parts_add_up() -> None:
    one = chip("h100")
    place = server_of(one)
    whole = facility_w(one, Estimate(600.0), site="alibaba")
    parts = 600.0 + host_w_per_chip(place).value + (place.scale_out.get("power_per_chip_w") or 0)
    assert whole.value == pytest.approx(parts * 1.247)
    assert joules_per_token(one, Estimate(600.0), 8, 4000, site="alibaba").value == pytest.approx(whole.value * 8 / 4000)


def test_an_idle_host_still_draws() -> None:
    place = server_of(chip("h100"))
    assert 0.4 < host_w_per_chip(place, 0.0).value / host_w_per_chip(place, 1.0).value < 0.7


def test_refusals() -> None:
    with pytest.raises(TrivetError, match="site"):
        site_pue("moon")
    with pytest.raises(TrivetError, match="load"):
        host_w_per_chip(server_of(chip("h100")), 2.0)
    with pytest.raises(TrivetError, match="tokens_per_s"):
        joules_per_token(chip("h100"), Estimate(1.0), 1, 0)
