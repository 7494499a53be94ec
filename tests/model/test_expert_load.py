"""Expert load by popularity and tokens, against sampling; and what it does to a step."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from trivet.chip.catalogue import chip
from trivet.cloud.deployment import Deployment, EngineSettings
from trivet.cloud.engine import step_table
from trivet.errors import DoesNotFit
from trivet.model import memory
from trivet.model.config import read
from trivet.model.expert_load import inclusion, placements, skew
from trivet.model.parallel import Layout


def sampled(experts: int, top_k: int, chips: int, tokens: int, zipf: float, redundant: int) -> float:
    """The same by drawing: every token takes the ``top_k`` of the popularities under Gumbel noise."""
    rng = np.random.default_rng(1)
    chosen = inclusion(experts, top_k, zipf)
    logits = -zipf * np.log(np.arange(1.0, experts + 1.0))
    most = []
    for order, _ in placements(chosen, chips, redundant):
        places = [np.argwhere(order == expert)[:, 0] for expert in range(experts)]
        alone = [e for e, where in enumerate(places) if where.size == 1]
        shared = [e for e, where in enumerate(places) if where.size > 1]
        for _ in range(max(1200 // tokens, 8)):
            noisy = logits + rng.gumbel(size=(tokens, experts))
            counts = np.bincount(np.argpartition(-noisy, top_k - 1, axis=1)[:, :top_k].ravel(), minlength=experts)
            load = np.bincount([places[e][0] for e in alone], counts[alone], chips)
            for expert in shared:
                where = places[expert]
                np.add.at(load, where, rng.multinomial(counts[expert], np.full(where.size, 1 / where.size)))
            most.append(load.max())
    return float(np.mean(most)) / (tokens * top_k / chips)


@pytest.mark.parametrize(
    ("experts", "top_k", "chips", "zipf", "redundant"),
    [(64, 6, 8, 0.0, 0), (64, 6, 8, 0.8, 0), (64, 6, 8, 0.8, 8), (128, 8, 32, 0.5, 0)],
)
@pytest.mark.parametrize("tokens", [4, 64, 512])
def test_against_sampling(experts: int, top_k: int, chips: int, zipf: float, redundant: int, tokens: int) -> None:
    found = float(skew(experts, top_k, chips, np.array([float(tokens)]), zipf, redundant)[0])
    assert found == pytest.approx(sampled(experts, top_k, chips, tokens, zipf, redundant), rel=0.1)


def test_limits() -> None:
    """Many tokens of equally popular experts are even; of unequal ones as uneven as the popularity; EPLB mends that."""
    many, few = np.array([1e6]), np.array([1.0])
    assert skew(256, 8, 32, many, 0.0)[0] == pytest.approx(1.0, abs=0.01)
    assert skew(256, 8, 32, few, 0.0)[0] > 4.0  # eight copies, at least one chip has one: 32 / 8
    assert skew(256, 8, 32, many, 0.6)[0] > 1.8 > 1.2 > skew(256, 8, 32, many, 0.6, 32)[0]
    assert skew(256, 8, 1, few, 1.0)[0] == 1.0
    curve = skew(256, 8, 32, np.array([1.0, 8, 64, 512, 4096]), 0.6)
    assert (np.diff(curve) < 0).all()


def test_the_step_takes_as_much_longer_as_its_experts_do() -> None:
    """DeepSeek-R1 over 32 ranks: a hot chip makes long prompts' steps longer, redundant experts take most of that back and
    some memory."""
    model, layout = read("deepseek-ai/DeepSeek-R1"), Layout(attention_dp=32, moe_ep=32, expert_zipf=0.0)
    deployment = Deployment(model, chip("h200"), layout, EngineSettings())
    even = step_table(deployment)
    hot = step_table(replace(deployment, layout=replace(layout, expert_zipf=0.6)))
    mended = step_table(replace(deployment, layout=replace(layout, expert_zipf=0.6, redundant_experts=32)))
    assert hot.mixed_s[-1] > 1.1 * even.mixed_s[-1]
    assert mended.mixed_s[-1] == pytest.approx(even.mixed_s[-1], rel=0.03)
    assert hot.shared_mixed_s is not None and even.shared_mixed_s is not None
    grown = (hot.mixed_s - even.mixed_s)[-1]
    assert grown == pytest.approx((hot.shared_mixed_s - even.shared_mixed_s)[-1], rel=1e-6)
    assert mended.kv_blocks < even.kv_blocks == hot.kv_blocks
    extra = memory.weight_bytes(model, replace(layout, redundant_experts=32)) - memory.weight_bytes(model, layout)
    assert extra == pytest.approx(58 * 3 * 7168 * 2048, rel=0.01)  # one more expert a chip and layer, in FP8


def test_experts_that_do_not_divide_are_refused() -> None:
    with pytest.raises(DoesNotFit, match="moe_ep"):
        memory.weight_bytes(read("deepseek-ai/DeepSeek-R1"), Layout(attention_dp=32, moe_ep=32, redundant_experts=5))
