"""LoRA adapters: who may enter the batch, what loading and using one costs, and what their slots take from the KV cache."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from serving_cases import DECODE_S, TOKEN_S, fleet, replicas, table, traffic

from trivet.chip.catalogue import chip
from trivet.cloud.deployment import Deployment, EngineSettings
from trivet.cloud.engine import profile, room
from trivet.cloud.engine.lora import adapter_bytes, lora_cost
from trivet.cloud.serving._loop_lora import C_DISK_LOADS, C_LOADS
from trivet.cloud.serving.adapters import Adapters
from trivet.cloud.serving.fleet import ReplicaKind, ServingResult, simulate
from trivet.cloud.serving.generate import open_loop, with_adapters
from trivet.errors import TrivetError
from trivet.model.config import read
from trivet.model.parallel import Layout


def run(
    adapters: Adapters, arrival: list[float], which: list[int], inputs: int = 100, outputs: int = 11, **more: Any
) -> ServingResult:
    kind = ReplicaKind(
        table(**more), EngineSettings(max_num_batched_tokens=2048), rules=replicas().rules, adapters=adapters
    )
    return simulate(traffic(arrival, inputs, outputs, adapter=np.array(which)), fleet(kind))


def test_a_request_without_a_slot_waits_while_later_ones_pass() -> None:
    """Adapters 0, 1, 0 with one slot: the third request overtakes the second, which starts when both have ended."""
    done = run(Adapters(1), [0.0, 0.0, 0.0], [0, 1, 0])
    assert done.scheduled_s[2] == 0.0
    assert done.scheduled_s[1] == pytest.approx(max(done.last_token_s[[0, 2]]), abs=1e-12)
    both = run(Adapters(2), [0.0, 0.0, 0.0], [0, 1, 0])
    assert both.scheduled_s.tolist() == [0.0, 0.0, 0.0]


def test_the_base_model_needs_no_slot() -> None:
    done = run(Adapters(1), [0.0, 0.0, 0.0], [0, -1, 1])
    assert done.scheduled_s[1] == 0.0 < done.scheduled_s[2]


def test_loading_holds_up_the_step_that_needs_it() -> None:
    """One adapter from host memory: the first token comes 30 ms later; from disk another 50 ms later."""
    plain = run(Adapters(1), [0.0], [0]).first_token_s[0]
    host = run(Adapters(1, load_s=0.03, disk_s=0.05), [0.0], [0]).first_token_s[0]
    assert host - plain == pytest.approx(0.03, abs=1e-12)
    cold = run(Adapters(1, 1, load_s=0.03, disk_s=0.05), [0.0, 1.0], [0, 1])
    assert cold.first_token_s[1] - cold.arrival_s[1] - plain == pytest.approx(0.08, abs=1e-12)


def test_least_recently_used_leaves_first() -> None:
    """Two slots, adapters 0 1 2 0 one after the other: 0 has gone for 2, so there are four loads; with three slots three."""
    order, times = [0, 1, 2, 0], [0.0, 1.0, 2.0, 3.0]
    for slots, loads in ((2, 4), (3, 3)):
        counts = run(Adapters(slots), times, order).adapters
        assert counts is not None and counts[0, C_LOADS] == loads
    counts = run(Adapters(2, 2), times, order).adapters
    assert counts is not None and counts[0, C_DISK_LOADS] == 2  # 2 pushes out 0, then 0 comes from disk again


def test_a_step_takes_a_fixed_part_one_an_adapter_and_one_a_token() -> None:
    """Four sequences of two adapters: each decode step is longer by 1 ms + 2 x 0.5 ms + 4 x 0.1 ms."""
    cost = Adapters(2, step_s=1e-3, adapter_s=5e-4, token_s=1e-4)
    flat: dict[str, Any] = {"decode_attention_s": np.zeros((2, 2))}
    done = run(cost, [0.0] * 4, [0, 1, 0, 1], outputs=101, **flat)
    tpot = (done.last_token_s - done.first_token_s) / 100
    np.testing.assert_allclose(tpot, DECODE_S + 1e-3 + 2 * 5e-4 + 4 * 1e-4, rtol=1e-12)
    prompt = max(400 * TOKEN_S, DECODE_S) + 1e-3 + 2 * 5e-4 + 400 * 1e-4
    assert done.first_token_s[0] == pytest.approx(prompt, rel=1e-12)


def test_the_host_hides_adapters_that_are_shorter() -> None:
    """A step that waits for its host anyway is no longer with adapters, until they outgrow the gap."""
    slow: dict[str, Any] = {"decode_attention_s": np.zeros((2, 2)), "host_decode_s": DECODE_S + 2e-3}
    for extra, step in ((1e-3, DECODE_S + 2e-3), (5e-3, DECODE_S + 5e-3)):
        done = run(Adapters(1, step_s=extra), [0.0], [0], outputs=101, **slow)
        assert (done.last_token_s[0] - done.first_token_s[0]) / 100 == pytest.approx(step, rel=1e-12)


def test_slots_take_memory_from_the_cache() -> None:
    """Llama-3.1-8B, rank 16 on all projections: 41.9 million weights an adapter, 84 MB; each slot costs 40 blocks of 16."""
    model = read("meta-llama/Meta-Llama-3.1-8B")

    def blocks(loras: int) -> int:
        d = Deployment(model, chip("h100"), Layout(), EngineSettings(max_loras=loras))
        return room(d, profile("vllm")).blocks

    d = Deployment(model, chip("h100"), Layout(), EngineSettings())
    assert adapter_bytes(d, 16) == 2 * 41_943_040
    per_block = 16 * 2 * 8 * 128 * 32 * 2
    assert blocks(0) - blocks(8) == pytest.approx(8 * adapter_bytes(d, 16) / per_block, abs=1)
    assert adapter_bytes(d, 64) == 4 * adapter_bytes(d, 16)
    cost = lora_cost(d, 16)
    # 84 MB over a PCIe 5.0 x16 link (63 GB/s at most) and through 3.35 TB/s of HBM (at least 25 us)
    assert 84e6 / 63e9 < cost.load_s < 3e-3 and 84e6 / 3.35e12 < cost.adapter_s < 5e-5


def test_popularity_of_adapters() -> None:
    base = open_loop(20_000, rate_per_s=10.0, inputs=10, outputs=10)
    counts = np.bincount(with_adapters(base, 10, zipf=1.0).adapter, minlength=10)  # type: ignore[arg-type]
    np.testing.assert_allclose(counts / 20_000, (1 / np.arange(1, 11)) / (1 / np.arange(1, 11)).sum(), atol=0.01)
    half = with_adapters(base, 3, share=0.5).adapter
    assert half is not None and (half < 0).mean() == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize(("slots", "host"), [(0, 0), (4, 2)])
def test_impossible_slots_are_refused(slots: int, host: int) -> None:
    with pytest.raises(TrivetError, match="loras"):
        Adapters(slots, host)


def test_adapters_without_slots_are_refused() -> None:
    with pytest.raises(TrivetError, match=r"engine\.max_loras"):
        simulate(traffic([0.0], 10, 10, adapter=np.array([0])), fleet(replicas()))
