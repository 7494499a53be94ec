"""Fleets: disaggregation, failures, admission, scale, growth of the cost."""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np
import pytest
from serving_cases import DECODE_S, fleet, poisson, replicas, table, traffic

from trivet.cloud.deployment import EngineSettings
from trivet.cloud.serving import _loop_state as k
from trivet.cloud.serving.batching import Batching
from trivet.cloud.serving.faults import LinkOutage, Outage, Retries, link_rates, outage_events
from trivet.cloud.serving.fleet import Admission, ReplicaKind, Transfer, simulate
from trivet.cloud.serving.metrics import latencies
from trivet.errors import TrivetError


def pools(prefill: int, decode: int) -> tuple[ReplicaKind, ReplicaKind]:
    settings = EngineSettings(max_num_batched_tokens=2048)
    return (
        ReplicaKind(table(20_000), settings, prefill, "prefill", Batching()),
        ReplicaKind(table(20_000), settings, decode, "decode", Batching()),
    )


def test_disaggregation_steadies_tokens() -> None:
    """DistServe (arXiv 2401.09670): decode without prompts beside it; the first token costs the transfer later on."""
    load = poisson(600, 22, 6000, 60)
    together = latencies(simulate(load, fleet(replicas(4, kv_blocks=20_000))))
    apart = latencies(simulate(load, fleet(*pools(2, 2), transfer=Transfer(1e-3, 1e-7))))
    assert np.nanpercentile(apart["tpot"], 99) < 0.8 * np.nanpercentile(together["tpot"], 99)


def test_transfer_by_hand() -> None:
    result = simulate(traffic([0.0], 1000, 11), fleet(*pools(1, 1), transfer=Transfer(0.5, 1e-3)))
    assert result.first_token_s[0] == pytest.approx(0.010)
    assert result.last_token_s[0] - result.first_token_s[0] == pytest.approx(0.5 + 1.0 + 10 * 0.010, rel=1e-3)
    assert result.prefill_replica[0] == 0
    assert result.replica[0] == 1


def test_outages_lose_nothing() -> None:
    load = poisson(800, 40, 300, 80)
    calm = simulate(load, fleet(replicas(4)))
    broken = simulate(load, fleet(replicas(4), outages=(Outage(5.0, 4.0, (0, 1)), Outage(8.0, float("inf"), (2,)))))
    assert broken.arrival_s.size == 800
    assert (broken.status == 0).all()
    assert broken.tries.sum() > 0
    assert latencies(broken)["e2e"].mean() > latencies(calm)["e2e"].mean()
    down = (broken.replica == 2) & (broken.last_token_s > 8.0)
    assert not down.any()


def test_retries_run_out() -> None:
    load = traffic([0.0, 0.0], 100, 400)
    result = simulate(load, fleet(replicas(1), outages=(Outage(1.0, 1.0, (0,)),), retries=Retries(0)))
    assert (result.status == 2).all()
    forever = simulate(load, fleet(replicas(1), outages=(Outage(1.0, float("inf"), (0,)),)))
    assert (forever.status == 2).all()


def test_outages_merge() -> None:
    rows = outage_events([Outage(1.0, 2.0, (0,)), Outage(2.0, 5.0, (0,))], 1)
    assert rows.tolist() == [[k.PS, 0, 0], [7 * k.PS, 0, 1]]
    with pytest.raises(TrivetError, match="0 to 0"):
        outage_events([Outage(1.0, 2.0, (3,))], 1)


def test_admission_control_protects_the_others() -> None:
    """Overload: refusing some keeps the first token of the rest, without it the queue grows for all."""
    load = poisson(1500, 300, 1500, 60)
    free = simulate(load, fleet(replicas(2)))
    guarded = simulate(load, fleet(replicas(2), admission=Admission(max_wait_s=1.0)))
    assert (free.status == 0).all()
    assert (guarded.status == 1).any()
    assert np.nanpercentile(latencies(guarded)["ttft"], 99) < 0.5 * np.nanpercentile(latencies(free)["ttft"], 99)
    queued = simulate(load, fleet(replicas(2), admission=Admission(max_queue=5)))
    assert (queued.status == 1).any()


def test_mixed_chips_share_by_speed() -> None:
    slow = ReplicaKind(
        table(graph_s=np.full(2, 40e-3), mixed_s=table().mixed_s * 4),
        EngineSettings(max_num_batched_tokens=2048),
        2,
        rules=Batching(),
    )
    result = simulate(poisson(2000, 30, 400, 80), fleet(replicas(2), slow, router="least_outstanding"))
    share = np.bincount(result.replica, minlength=4)
    assert share[:2].sum() > 1.5 * share[2:].sum()


def test_cost_is_linear_in_requests() -> None:
    def cpu_s(count: int) -> float:
        load = poisson(count, 40, 300, 60)
        best = 1e9
        for _ in range(3):
            start = time.process_time()
            simulate(load, fleet(replicas(4)))
            best = min(best, time.process_time() - start)
        return best

    cpu_s(2000)
    assert cpu_s(160_000) / cpu_s(20_000) < 8 * 1.6


def test_work_a_request_grows_slowly_with_replicas() -> None:
    """The same load a replica on 8 and on 512 replicas: as many events a request."""
    events = []
    for count in (8, 512):
        result = simulate(poisson(200 * count, 5.0 * count, 300, 60), fleet(replicas(count)))
        events.append(result.run[k.G_EVENTS] / (200 * count))
    assert events[1] == pytest.approx(events[0], rel=0.1)


def test_same_seed_same_bytes() -> None:
    load = poisson(500, 40, 300, 60)
    a, b, c = (simulate(load, fleet(replicas(4), router="power_of_two", seed=s)) for s in (1, 1, 2))
    assert a.last_token_s.tobytes() == b.last_token_s.tobytes()
    assert a.replica.tobytes() != c.replica.tobytes()


def test_prefill_blocks_are_held_until_the_kv_has_arrived() -> None:
    """Room for one prompt, KV half a second on its way: the second prompt starts when the first one's KV has arrived."""
    prompt, travel = 320, 0.5
    room = prompt // 16 + 1
    kinds = (replace(replicas(kv_blocks=room), role="prefill"), replace(replicas(), role="decode"))
    starts = []
    for base_s in (0.0, travel):
        done = simulate(traffic([0.0, 0.0], prompt, 10), fleet(*kinds, transfer=Transfer(base_s, 0.0)))
        assert (done.status == 0).all()
        starts.append(done.scheduled_s[1] - done.first_token_s[0])
    assert starts[0] == pytest.approx(0.0, abs=1e-9) and starts[1] == pytest.approx(travel, abs=1e-9)


def test_kv_under_way_is_lost_with_its_prefill_replica() -> None:
    """The prefill replica dies half a second into a transfer of a second: the prompt is computed again."""
    kinds = (replace(replicas(2), role="prefill"), replace(replicas(), role="decode"))
    done = simulate(
        traffic([0.0], 320, 10),
        fleet(*kinds, transfer=Transfer(1.0, 0.0), outages=(Outage(0.5, 9.0, (0,)),), retries=Retries(3, 0.0)),
    )
    assert done.status[0] == 0 and done.tries[0] == 1 and done.prefill_replica[0] == 1
    assert done.first_token_s[0] == pytest.approx(0.5 + DECODE_S)  # starts again at the failure


def test_kv_waits_for_a_link_that_is_down() -> None:
    """A transfer of a second from 0.01 s on; the link is down from 0.51 to 2.51 s, or does a quarter in that time."""
    for factor, extra in ((0.0, 2.0), (0.25, 1.5), (0.75, 0.0)):
        gone = (LinkOutage(0.51, 2.0, (0,), factor),)
        done = simulate(traffic([0.0], 320, 10), fleet(*pools(1, 1), transfer=Transfer(1.0, 0.0), link_outages=gone))
        wait = done.last_token_s[0] - done.first_token_s[0] - 9 * DECODE_S - 1.0
        assert done.first_token_s[0] == pytest.approx(DECODE_S) and done.tries[0] == 0
        assert wait == pytest.approx(extra or 0.5 / 0.75 - 0.5, abs=1e-4)


def test_a_lost_link_loses_nobody() -> None:
    load = poisson(300, 20, 600, 40)
    calm = fleet(*pools(2, 2), transfer=Transfer(1e-3, 1e-6))
    broken = replace(calm, link_outages=(LinkOutage(3.0, 4.0, (0, 1)), LinkOutage(6.0, 4.0, (1,), 0.01)))
    a, b = simulate(load, calm), simulate(load, replace(broken, outages=(Outage(4.0, 2.0, (0,)),)))
    assert (b.status == 0).all() and b.arrival_s.size == 300
    assert latencies(b)["tpot"].max() > 10 * latencies(a)["tpot"].max()
    only = simulate(load, broken)
    assert only.tries.sum() == 0 < b.tries.sum()


def test_link_outages_by_hand() -> None:
    links = link_rates([LinkOutage(1.0, 2.0, (1,), 0.5), LinkOutage(2.0, 3.0, (1,))], 2)
    assert links.offsets.tolist() == [0, 0, 4]
    assert (links.time // k.PS).tolist() == [1, 2, 3, 5] and links.rate.tolist() == [512, 0, 0, 1024]
    with pytest.raises(TrivetError, match="for ever"):
        LinkOutage(1.0, float("inf"), (0,))
    with pytest.raises(TrivetError, match="0 to 1"):
        link_rates([LinkOutage(1.0, 2.0, (5,))], 2)
    with pytest.raises(TrivetError, match=r"outages\.links"):
        simulate(traffic([0.0], 10, 10), fleet(replicas(), link_outages=(LinkOutage(1.0, 2.0, (0,)),)))
