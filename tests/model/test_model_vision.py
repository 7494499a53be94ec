"""Vision towers: operators hold the parameters that the reader counts, and cost grows as attention says."""

from __future__ import annotations

import numpy as np
import pytest

from trivet.errors import Unsupported
from trivet.model.config import read
from trivet.model.vision import tower_of, tower_operators
from trivet.operators import Attention, Gemm, Transfer


@pytest.mark.parametrize(
    "name",
    ["Qwen/Qwen3-VL-30B-A3B-Instruct", "Qwen/Qwen3-VL-2B-Instruct", "moonshotai/Kimi-K2.5", "google/gemma-4-26B-A4B"],
)
def test_products_hold_the_counted_weights(shared_data, name: str) -> None:  # type: ignore[no-untyped-def]
    """What products multiply by is the tower's count but for position tables, biases and norms (at most 5%)."""
    model = read(shared_data / "configs" / f"{name.replace('/', '--')}_config.json")
    found = tower_operators(tower_of(model), 256.0)
    held = sum(float(o.n) * float(o.k) * o.count for o in found if isinstance(o, Gemm))
    counted = model.components["vision"] + model.components.get("projector", 0)
    assert 0.95 * counted < held < counted


def test_tensor_parallel_shares_the_work(shared_data) -> None:  # type: ignore[no-untyped-def]
    tower = tower_of(read(shared_data / "configs" / "Qwen--Qwen3-VL-30B-A3B-Instruct_config.json"))

    def block_flops(tp: int) -> float:
        found = tower_operators(tower, 1024.0, tp=tp)
        return sum(
            float(o.flops) * o.count for o in found if isinstance(o, Gemm | Attention) and o.name != "vision_patches"
        )

    assert block_flops(4) == pytest.approx(block_flops(1) / 4)
    assert any(isinstance(o, Transfer) for o in tower_operators(tower, 1024.0, tp=4))
    # 16 heads are not cut over three chips: each encodes whole.
    assert block_flops(3) == pytest.approx(block_flops(1))


def test_attention_is_quadratic_in_one_image_and_linear_in_images(shared_data) -> None:  # type: ignore[no-untyped-def]
    tower = tower_of(read(shared_data / "configs" / "Qwen--Qwen3-VL-30B-A3B-Instruct_config.json"))

    def core(tokens: float, images: float) -> float:
        return float(
            np.sum(
                [
                    float(o.flops) * o.count
                    for o in tower_operators(tower, tokens, images=images)
                    if isinstance(o, Attention)
                ]
            )
        )

    assert core(512.0, 1.0) == pytest.approx(4.0 * core(256.0, 1.0))
    assert core(256.0, 3.0) == pytest.approx(3.0 * core(256.0, 1.0))


def test_a_model_without_a_tower_says_so(shared_data) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(Unsupported, match="takes no images"):
        tower_of(read(shared_data / "configs" / "Qwen--Qwen3-32B_config.json"))
