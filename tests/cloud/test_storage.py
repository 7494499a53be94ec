"""Tiers below a chip's memory."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trivet.chip.catalogue import chip
from trivet.cloud.fabric import server_of
from trivet.cloud.storage import kv_reload_gain, load_weights_s, tier, tiers, write_checkpoint_s
from trivet.errors import TrivetError


@pytest.mark.parametrize("name", ["zhenwu-810e", "h100", "gb200", "tpu-v5e", "mi300x", "yitian-710"])
def test_faster_tiers_come_first_and_none_beats_its_host_link(name: str) -> None:
    one = chip(name)
    found = tiers(server_of(one), one)
    link = one.get("host_bandwidth_bytes_per_s") or 0
    for one_tier in found.values():
        assert 0 < one_tier.read_bytes_per_s.value < link
    assert found["host_memory"].read_bytes_per_s.value >= found["nvme"].read_bytes_per_s.value
    assert found["host_memory"].latency_s.value < found["nvme"].latency_s.value < found["object_store"].latency_s.value


def test_h100_by_hand() -> None:
    one = chip("h100")
    place = server_of(one)
    nvme = tier(place, one, "nvme")
    # Eight drives for eight chips: one drive's 14 GB/s each at 80% of a file system's.
    assert nvme.read_bytes_per_s.value == pytest.approx(14e9 * (0.70 * 0.92) ** 0.5)
    assert load_weights_s(14e9, place, one).value == pytest.approx(1 / (0.70 * 0.92) ** 0.5, rel=1e-3)


@given(st.floats(1e9, 1e13), st.integers(1, 4096))
def test_checkpoints_shrink_with_chips(size: float, chips: int) -> None:
    one = chip("zhenwu-810e")
    place = server_of(one)
    assert write_checkpoint_s(size, chips, place, one).value >= write_checkpoint_s(size, 2 * chips, place, one).value
    assert write_checkpoint_s(size, chips, place, one, "host_memory").value < write_checkpoint_s(size, chips, place, one).value


def test_kv_reload_and_refusals() -> None:
    one = chip("zhenwu-810e")
    place = server_of(one)
    # 128 KiB a token from host memory at 27 GB/s: 200,000 tokens/s against a prefill of 10,000.
    assert kv_reload_gain(131072, 10_000, place, one).value > 10
    with pytest.raises(TrivetError, match="tape"):
        tier(place, one, "tape")
    with pytest.raises(TrivetError, match="chips"):
        write_checkpoint_s(1e9, 0, place, one)
