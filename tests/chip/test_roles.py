"""Hanguang 800, Yitian 710 and Zhenyue 510 in their own roles."""

from __future__ import annotations

import pytest

from trivet.chip.catalogue import chip
from trivet.chip.roles import (
    answers,
    cpu_decode,
    cpu_embeddings,
    fits_sram,
    host_slowdown,
    largest_model,
    resnet50,
    resnet50_operators,
)  # fmt: skip
from trivet.errors import Unsupported
from trivet.operators import Conv


def test_resnet50_is_resnet50() -> None:
    """25.5 M weights and 4.09 G multiply-adds, as the paper's network counts (biases and norms aside)."""
    layers = resnet50_operators()
    weights = sum(
        float(o.in_channels) * float(o.out_channels) * float(o.kernel) ** 2 if isinstance(o, Conv) else float(o.n) * float(o.k)
        for o in layers
    )
    assert weights == pytest.approx(25_502_912, rel=1e-9)
    assert sum(float(o.flops) for o in layers) / 2 == pytest.approx(4.089e9, rel=1e-3)
    assert len(layers) == 54


def test_hanguang_images_beside_the_published_figure() -> None:
    answer = resnet50(chip("hanguang-800"))
    assert answer.published == 78563
    assert answer.estimate.lo < 78563 < answer.estimate.hi
    assert answer.error is not None
    assert abs(answer.error) < 0.1


def test_what_fits_the_sram() -> None:
    hanguang = chip("hanguang-800")
    assert 150e6 < largest_model(hanguang).estimate.value < 192 * 2**20
    assert fits_sram(hanguang, 135e6)  # a 135M model in INT8
    assert not fits_sram(hanguang, 0.6e9)  # the smallest Qwen3 does not
    assert not fits_sram(hanguang, 135e6, kv_bytes=60e6)


def test_yitian_as_host_and_server() -> None:
    yitian = chip("yitian-710")
    assert host_slowdown(yitian).value > 1
    slow, fast = cpu_decode(yitian, 4e9, 8e9, 1).estimate, cpu_decode(yitian, 4e9, 8e9, 8).estimate
    assert fast.value == pytest.approx(8 * slow.value)  # weights are read once a batch: bandwidth-bound
    assert cpu_decode(yitian, 4e9, 8e9, 4096).estimate.value == pytest.approx(cpu_embeddings(yitian, 4e9).estimate.value)
    assert slow.value < 307.2e9 / 8e9


def test_every_role_answers_and_others_refuse() -> None:
    assert len(answers(chip("hanguang-800"))) == 3
    assert len(answers(chip("yitian-710"))) == 5
    read, write = answers(chip("zhenyue-510"))
    assert read.estimate.value == pytest.approx(64e9 / 14e9)
    assert write.estimate.value > read.estimate.value
    assert answers(chip("h100")) == ()
    with pytest.raises(Unsupported):
        resnet50(chip("h100"))
