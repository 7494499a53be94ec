"""One replica: the scheduler's rules, by hand and by the direction that sources give."""

from __future__ import annotations

import numpy as np
import pytest
from serving_cases import CONTEXT_S, DECODE_S, TOKEN_S, fleet, poisson, replicas, table, traffic

from trivet.cloud.deployment import EngineSettings
from trivet.cloud.serving.batching import Batching, batching
from trivet.cloud.serving.fleet import FleetRun, ReplicaKind, simulate
from trivet.cloud.serving.fleet_run import tokens_per_step
from trivet.cloud.serving.metrics import latencies
from trivet.cloud.serving.steptime import compile_tables, interpolate
from trivet.errors import TrivetError


def test_one_request_by_hand() -> None:
    result = simulate(traffic([1.0], 3000, 4), fleet(replicas()))
    first = 1.0 + 2048 * TOKEN_S + DECODE_S  # a chunk of 2,048, then one of 952: as long as a decode step
    assert result.first_token_s[0] == pytest.approx(first, abs=1e-9)
    contexts = np.array([3000, 3001, 3002])
    assert result.last_token_s[0] == pytest.approx(first + (DECODE_S + CONTEXT_S * contexts).sum(), abs=1e-9)


def test_rows_keep_the_table() -> None:
    rng = np.random.default_rng(1)
    knots = np.array([100.0, 1000, 9000, 50000])
    sequences = np.array([1.0, 3, 40, 64])
    attention = np.cumsum(np.cumsum(rng.uniform(1e-5, 2e-4, (4, 4)), 0), 1)
    plain = table(sequences=sequences, graph_s=np.array([1e-3, 1.1e-3, 4e-3, 5e-3]), context=knots, decode_attention_s=attention,
                  host_decode_s=2.5e-3, host_per_sequence_s=1e-5)  # fmt: skip
    rows = compile_tables([plain], [64], [128], [1])
    for batch in range(1, 65):
        graph = float(interpolate(np.array(float(batch)), sequences, plain.graph_s))
        line = interpolate(np.array([float(batch)]), sequences, attention)[0]
        for mean in (100, 333, 1000, 4000, 9000, 20000, 80000):
            expected = max(graph + float(interpolate(np.array(float(mean)), knots, line)), 2.5e-3 + 1e-5 * batch)
            bound, total = rows.decode_bound[0, batch], mean * batch
            j = int(np.argmax(total < bound))
            got = rows.decode_base[0, batch, j] + rows.decode_slope[0, batch, j] * total
            assert got * 1e-12 == pytest.approx(expected, rel=1e-3), (batch, mean)


def test_chunked_prefill_keeps_tokens_coming() -> None:
    """A long prompt in 512-token chunks stretches the gaps of running sequences less than in one piece."""
    crowd = traffic([0.0] * 8 + [0.5], [100] * 8 + [16000], [200] * 8 + [2])
    whole = simulate(crowd, fleet(replicas(max_num_batched_tokens=20000)))
    chunked = simulate(crowd, fleet(replicas(max_num_batched_tokens=512)))
    gap = [r.itl_counts.nonzero()[0].max() for r in (whole, chunked)]
    assert gap[1] < gap[0] - 64  # more than two octaves
    assert chunked.first_token_s[8] > whole.first_token_s[8]


def test_prefill_first_trades_tpot_for_ttft() -> None:
    load = poisson(400, 20, 1200, 60)
    mixed = latencies(simulate(load, fleet(replicas())))
    alone = latencies(simulate(load, fleet(replicas(rules=Batching(prefill_first=True)))))
    assert np.nanmean(alone["tpot"]) > 1.2 * np.nanmean(mixed["tpot"])
    assert np.nanmean(alone["ttft"]) < np.nanmean(mixed["ttft"])


def test_asynchronous_scheduling_looks_one_step_ahead() -> None:
    """A prompt that comes during decoding waits for the step after the running one, and one step more."""
    pair = traffic([0.0, 0.1], 64, [100, 2])
    plain = simulate(pair, fleet(replicas()))
    ahead = simulate(pair, fleet(replicas(rules=Batching(asynchronous=True))))
    assert ahead.first_token_s[1] - plain.first_token_s[1] == pytest.approx(DECODE_S, rel=0.01)
    assert batching(EngineSettings(version="0.13.0")).asynchronous is False
    assert batching(EngineSettings(version="0.19.0")).asynchronous is True


def test_preemption_and_reserve() -> None:
    """Too little KV: vLLM preempts and recomputes; TensorRT-LLM's no-evict scheduler admits fewer and never does."""
    load = traffic(np.zeros(30), 150, 300)
    tight = simulate(load, fleet(replicas(kv_blocks=200, prefix_caching=False)))
    kept = simulate(load, fleet(replicas(kv_blocks=200, prefix_caching=False, rules=Batching(reserve_output=1.0))))
    assert tight.preemptions.sum() > 0
    assert kept.preemptions.sum() == 0
    assert (tight.status == 0).all()
    assert (kept.status == 0).all()


def test_prefix_cache_saves_the_recomputation_of_preempted_requests() -> None:
    load = traffic(np.zeros(30), 800, 300)
    cold = simulate(load, fleet(replicas(kv_blocks=400, prefix_caching=False)))
    warm = simulate(load, fleet(replicas(kv_blocks=400, prefix_caching=True)))
    assert warm.preemptions.sum() > 0
    assert warm.cached_tokens.sum() > 0
    assert cold.cached_tokens.sum() == 0
    assert warm.last_token_s.max() < cold.last_token_s.max()


def test_swap_costs_its_traffic_and_saves_the_prefill() -> None:
    load = traffic(np.zeros(30), 800, 300)
    base = {"kv_blocks": 400, "prefix_caching": False}
    recompute = simulate(load, fleet(replicas(**base)))
    free = simulate(load, fleet(replicas(rules=Batching(swap_block_s=1e-9), **base)))
    slow = simulate(load, fleet(replicas(rules=Batching(swap_block_s=5e-3), **base)))
    assert free.last_token_s.max() < recompute.last_token_s.max() < slow.last_token_s.max()


def test_speculative_decoding() -> None:
    """Tokens a step by Leviathan et al.: (1 - a^(n+1)) / (1 - a)."""
    settings = EngineSettings(speculative_tokens=3, acceptance=0.7)
    assert tokens_per_step(settings) == pytest.approx((1 - 0.7**4) / 0.3)
    load = traffic([0.0], 64, 1001)
    plain = simulate(load, fleet(replicas()))
    drafted = simulate(load, fleet(replicas(speculative_tokens=3, acceptance=0.7)))
    speedup = latencies(plain)["tpot"][0] / latencies(drafted)["tpot"][0]
    assert speedup == pytest.approx(tokens_per_step(settings), rel=0.03)


def test_priorities_overtake() -> None:
    load = traffic(np.linspace(0, 0.1, 60), 1500, 20, priority=np.array([1] * 59 + [0]))
    with_priority = simulate(load, fleet(replicas(max_num_seqs=4)))
    without = simulate(traffic(np.linspace(0, 0.1, 60), 1500, 20), fleet(replicas(max_num_seqs=4)))
    assert with_priority.first_token_s[-1] < 0.3 * without.first_token_s[-1]


def test_closed_loop_keeps_its_concurrency() -> None:
    load = traffic(np.zeros(200), 100, 50, max_concurrency=16)
    result = simulate(load, fleet(replicas()))
    times = np.concatenate([result.arrival_s, result.last_token_s])
    change = np.concatenate([np.ones(200), -np.ones(200)])
    order = np.lexsort((change, times))
    assert np.cumsum(change[order]).max() == 16
    assert (np.diff(np.sort(result.arrival_s)) >= 0).all()
    assert result.arrival_s[16] > 0


def test_sessions_wait_for_their_answers() -> None:
    load = traffic([0.0, 0.0, 0.0], 100, 50, previous=np.array([-1, 0, 1]), think_s=np.array([0.0, 2.0, 3.0]))
    result = simulate(load, fleet(replicas()))
    assert result.arrival_s[1] == pytest.approx(result.last_token_s[0] + 2.0)
    assert result.arrival_s[2] == pytest.approx(result.last_token_s[1] + 3.0)


def test_what_can_never_fit_is_refused() -> None:
    result = simulate(traffic([0.0, 0.0], [100_000, 100], 10), fleet(replicas()))
    assert result.status.tolist() == [1, 0]
    assert np.isnan(result.first_token_s[0])


def test_clear_refusals() -> None:
    load = traffic([0.0], 10, 10)
    with pytest.raises(TrivetError, match="num_kv_blocks"):
        simulate(load, fleet(replicas(kv_blocks=0)))
    with pytest.raises(TrivetError, match="router"):
        simulate(load, fleet(replicas(), router="best"))
    with pytest.raises(TrivetError, match="role"):
        simulate(load, fleet(ReplicaKind(table(), EngineSettings(), role="prefill")))


def test_blocks_of_traffic_give_the_same_as_one() -> None:
    load = poisson(3000, 40, 400, 80)
    whole = FleetRun(fleet(replicas(3))).feed(load)
    run = FleetRun(fleet(replicas(3)))
    parts = [
        run.feed(load.take(np.arange(start, min(start + 700, 3000))), final=start + 700 >= 3000).rows
        for start in range(0, 3000, 700)
    ]
    np.testing.assert_array_equal(whole.rows, np.concatenate(parts))
