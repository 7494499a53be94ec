"""Attention-DP ranks in lock-step: every rank waits for the slowest, and all do the experts' part together."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from serving_cases import CONTEXT_S, DECODE_S, fleet, poisson, replicas, table, traffic

from trivet.chip.catalogue import chip
from trivet.cloud.deployment import Deployment, EngineSettings
from trivet.cloud.engine import step_table
from trivet.cloud.serving.autoscale import Autoscale
from trivet.cloud.serving.faults import Outage
from trivet.cloud.serving.fleet import ReplicaKind, simulate
from trivet.errors import TrivetError
from trivet.model.config import read
from trivet.model.parallel import Layout

SHARED_S = 4e-3  # of a decode step's 10 ms, one sequence a rank; 1 us a sequence more


def ranks(count: int, size: int, **changes: Any) -> ReplicaKind:
    plain = table(**changes)
    slope = 1e-6 * (plain.sequences - 1.0)
    shared = replace(
        plain, graph_s=plain.graph_s + slope, shared_graph_s=SHARED_S + slope, shared_mixed_s=0.4 * plain.mixed_s
    )
    return ReplicaKind(shared, EngineSettings(max_num_batched_tokens=2048), count, rules=replicas().rules, ranks=size)


def tpot(result: Any) -> Any:
    return (result.last_token_s - result.first_token_s) / (result.output_tokens - 1)


def test_the_short_one_waits_for_the_long_one() -> None:
    """Contexts of 100,000 and 10 tokens on two ranks: both take the long one's steps; apart the short one is faster."""
    load = traffic([0.0, 0.0], [100_000, 10], [3000, 1000])
    rest = {"kv_blocks": 10_000}
    together, apart = simulate(load, fleet(ranks(2, 2, **rest))), simulate(load, fleet(ranks(2, 1, **rest)))
    assert tpot(apart)[1] == pytest.approx(DECODE_S + CONTEXT_S * 510, rel=1e-3)
    assert tpot(together)[0] == pytest.approx(DECODE_S + CONTEXT_S * 101_500, rel=1e-3)
    # The long prompt takes 49 steps, in 48 of which the short one decodes; 951 tokens are left then.
    late = together.last_token_s[1] - together.first_token_s[0]
    assert late == pytest.approx(951 * (DECODE_S + CONTEXT_S * (100_000 + 951 / 2)), rel=1e-5)


def test_the_experts_see_the_tokens_of_all_ranks() -> None:
    """Three sequences on one rank, one on the other, flat attention: own part of three, shared part at a mean of two."""
    flat: dict[str, Any] = {"decode_attention_s": np.zeros((2, 2))}
    load = traffic([0.0] * 4, 10, 200)
    kind = ranks(2, 2, **flat)
    kind = replace(kind, table=replace(kind.table, graph_s=kind.table.graph_s + 1e-3 * (kind.table.sequences - 1.0)))
    done = simulate(load, fleet(kind, router="round_robin"))
    assert sorted(np.bincount(done.replica).tolist()) == [2, 2]
    own = DECODE_S - SHARED_S + 1e-3 * 1.0
    np.testing.assert_allclose(tpot(done), own + SHARED_S + 1e-6, rtol=1e-6)
    alone = simulate(traffic([0.0], 10, 200), fleet(kind))  # the other rank runs empty steps: a mean of one
    np.testing.assert_allclose(tpot(alone), DECODE_S, rtol=1e-9)


def test_a_prompt_on_one_rank_holds_up_the_others() -> None:
    """A prompt of 2,000 tokens comes to one rank: the other's sequence waits for it, by about the prompt's step."""
    load = traffic([0.0, 1.0], [10, 2000], [400, 2])
    together, apart = simulate(load, fleet(ranks(2, 2))), simulate(load, fleet(ranks(2, 1)))
    wait = together.last_token_s[0] - apart.last_token_s[0]
    prompt = apart.first_token_s[1] - 1.0
    # Its own part of the step in full; the experts' part for half as many tokens a rank.
    assert 0.7 * prompt - 2 * DECODE_S < wait < prompt + DECODE_S


def test_groups_of_one_are_replicas() -> None:
    """The lock-step form with ranks that wait for nobody gives what the plain form gives."""
    load = poisson(300, 20.0, 300, 60)
    plain = simulate(load, fleet(replicas(3)))
    mixed = simulate(load, fleet(replicas(3), replace(ranks(2, 2), role="both"), router="round_robin"))
    assert (mixed.status == 0).all() and plain.status.sum() == 0
    from trivet.cloud.serving.fleet import FleetRun, result_of

    one = replicas(3)
    tagged = FleetRun(fleet(one, replace(ranks(2, 2), count=2)))
    assert tagged.state.group is not None and tagged.state.group.first.tolist() == [0, 1, 2, 3, 3]
    assert len(result_of(tagged, tagged.feed(load)).status) == 300


def test_a_rank_that_fails_stops_its_engine() -> None:
    load = poisson(400, 40.0, 200, 60)
    done = simulate(load, fleet(ranks(4, 2), outages=(Outage(3.0, 2.0, (1,)),)))
    assert (done.status == 0).all() and done.tries.sum() > 0
    down = (done.scheduled_s > 3.0) & (done.scheduled_s < 5.0)
    assert down.any() and set(done.replica[down]) <= {2, 3}


def test_what_is_impossible_is_refused() -> None:
    with pytest.raises(TrivetError, match="ranks"):
        simulate(traffic([0.0], 10, 10), fleet(ranks(3, 2)))
    with pytest.raises(TrivetError, match="lock_step"):
        simulate(traffic([0.0], 10, 10), fleet(ranks(2, 2), autoscale=Autoscale(8, 1.0, 1.0, 1, 2)))


def test_the_step_table_knows_what_ranks_share() -> None:
    """DeepSeek-R1 on eight H200: experts and exchange are a good part of a step, never all of it."""
    deployment = Deployment(
        read("deepseek-ai/DeepSeek-R1"), chip("h200"), Layout(attention_dp=8, moe_ep=8), EngineSettings()
    )
    found = step_table(deployment)
    assert found.shared_graph_s is not None and found.shared_mixed_s is not None
    share = found.shared_graph_s / found.graph_s
    assert (share > 0.2).all() and (share < 0.95).all()
    own = found.mixed_s - found.shared_mixed_s
    assert (own > 0).all() and (np.diff(found.shared_graph_s) >= 0).all()
    one = step_table(replace(deployment, layout=Layout(tp=8, moe_ep=8)))
    assert one.shared_graph_s is None
