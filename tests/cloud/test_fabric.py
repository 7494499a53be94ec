"""Levels that groups cross."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trivet.chip.catalogue import chip, names
from trivet.cloud.fabric import levels, server, server_of, servers
from trivet.errors import DoesNotFit, UnknownName, Unsupported

_hosted = [name for name in names() if chip(name).server]


@given(st.sampled_from(_hosted), st.integers(1, 20_000), st.integers(1, 64))
def test_levels_join_the_group(name: str, chips: int, stride: int) -> None:
    place = server_of(chip(name))
    found = levels(place, chips, name, stride)
    size = 1
    for level in found:
        assert level.size > size
        assert level.members == -(-level.size // size)
        size = level.size
        assert 0 < level.pair_bandwidth_bytes_per_s <= level.bandwidth_bytes_per_s * (1 + 1e-9)
        assert level.latency_s > 0
        assert level.oversubscription >= 1
    assert size == chips


def test_every_server_reads_and_names_a_cpu_and_a_drive() -> None:
    for name in servers():
        place = server(name)
        assert chip(place.host).role == "cpu"
        assert chip(place.ssd).role == "ssd_controller"
        assert place.chips <= place.domain_chips
        assert place.facts["host_power_w"].value


def test_h100_by_hand() -> None:
    (inside, leaf) = levels("hgx-h100", 16, "h100")
    assert (inside.size, inside.bandwidth_bytes_per_s, inside.topology) == (8, 450e9, "switch")
    assert (leaf.members, leaf.size, leaf.bandwidth_bytes_per_s) == (2, 16, 50e9)
    assert levels("hgx-h100", 1, "h100") == ()
    (across,) = levels("hgx-h100", 16, "h100", stride=8)
    assert across.scale_out
    assert across.members == 16


def test_meshes_give_a_pair_its_own_links() -> None:
    (pair,) = levels("oam-mi300x", 2, "mi300x")
    (all_,) = levels("oam-mi300x", 8, "mi300x")
    assert pair.bandwidth_bytes_per_s == pytest.approx(64e9)
    assert all_.bandwidth_bytes_per_s == pytest.approx(448e9)
    (ppu,) = levels("ppu-16", 8, "zhenwu-810e")
    assert ppu.pair_bandwidth_bytes_per_s == pytest.approx(50e9)
    assert ppu.bandwidth_bytes_per_s < 350e9  # not all ports are wired
    assert ppu.log_sigma > 0  # how many is not published


def test_hpn_tiers() -> None:
    found = levels("ppu-16", 16_384, "zhenwu-810e")
    assert [level.size for level in found] == [16, 1024, 15_000, 16_384]
    assert found[-1].oversubscription == 15
    assert server("ppu-16").scale_out.facts["tier2_chips"].conflicts[0].value == 8192


def test_refusals() -> None:
    with pytest.raises(UnknownName, match="hgx-h100"):
        server("hgx-h10")
    with pytest.raises(DoesNotFit):
        levels("hgx-h100", 0, "h100")
    with pytest.raises(Unsupported):
        server_of(chip("xeon-8480c").__class__("x", "x", "x", "x", "cpu"))
