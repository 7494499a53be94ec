"""A cluster over time: what must hold at every moment, and each rule by a case small enough to know the answer."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from trivet.cloud.cluster.faults import Failure, draw, llama3_faults, mttf_s, rsc_table
from trivet.cloud.cluster.jobs import Job, Tenant
from trivet.cloud.cluster.nodes import Node, uniform_cluster
from trivet.cloud.cluster.week import Cluster, Rules, as_task, describe, run_week
from trivet.errors import TrivetError, UnknownName

ONE, TWO, FOUR = (as_task("w", n) for n in (1, 2, 4))
PLAIN = Rules(restart_s=0.0)


def job(name: str, at: float, lasts: float, worker=ONE, workers: int = 1, **more) -> Job:  # type: ignore[no-untyped-def]
    return Job(name, more.pop("tenant", "a"), at, lasts, worker, workers, **more)


def started(week, name: str) -> float:  # type: ignore[no-untyped-def]
    return float(week.first_start_s[next(i for i, j in enumerate(week.jobs) if j.name == name)])


def ended(week, name: str) -> float:  # type: ignore[no-untyped-def]
    return float(week.finish_s[next(i for i, j in enumerate(week.jobs) if j.name == name)])


def test_fifo_waits_its_turn_and_backfill_goes_round_without_delaying_it() -> None:
    nodes = uniform_cluster(1, 4, "x")
    jobs = [job("long", 0, 100, TWO), job("wide", 1, 50, FOUR), job("short", 2, 90, TWO), job("late", 3, 200, TWO)]
    strict = run_week(nodes, jobs, Rules(backfill=False, restart_s=0.0), horizon_s=1000)
    assert [started(strict, n) for n in ("long", "wide", "short", "late")] == [0, 100, 150, 150]
    easy = run_week(nodes, jobs, PLAIN, horizon_s=1000)
    assert started(easy, "short") == 2  # done at 92, before the reservation of "wide" at 100
    assert started(easy, "wide") == 100
    assert started(easy, "late") == 150  # would have held "wide" up


def test_a_gang_starts_whole_or_not_at_all_and_in_its_group() -> None:
    nodes = uniform_cluster(4, 2, "x", servers_per_rack=2)
    jobs = [job("a", 0, 10, TWO), job("gang", 1, 10, TWO, 2, topology="rack"), job("pair", 2, 10, ONE, 3)]
    cluster = Cluster(nodes, jobs, PLAIN, horizon_s=100)
    cluster.advance(5)
    homes = {cluster.jobs[j].name: {i for i, _ in cluster.workers_of(j)} for j in cluster.running()}
    assert len({nodes[i].rack for i in homes["gang"]}) == 1
    assert nodes[next(iter(homes["a"]))].rack != nodes[next(iter(homes["gang"]))].rack
    assert "pair" not in homes  # two chips are left, it needs three
    cluster.advance(100)
    assert started(cluster.result(), "pair") == 10


def test_types_and_shares_are_respected() -> None:
    nodes = [Node("a", 8000, 8000, 1, "A"), Node("b", 8000, 8000, 1, "B")]
    jobs = [
        job("b1", 0, 10, as_task("w", 1, types=("B",))),
        job("b2", 0, 10, as_task("w", 1, types=("B",))),
        job("s1", 0, 10, as_task("w", 1, milli=600)),
        job("s2", 0, 10, as_task("w", 1, milli=400)),
    ]
    week = run_week(nodes, jobs, PLAIN, horizon_s=100)
    assert (started(week, "b1"), started(week, "b2")) == (0, 10)
    assert (started(week, "s1"), started(week, "s2")) == (0, 0)


def test_preemption_frees_the_cheapest_domain_and_keeps_checkpoints() -> None:
    nodes = uniform_cluster(4, 2, "x", servers_per_rack=2)
    jobs = [job(f"low{i}", 0, 100, TWO, checkpoint_s=10.0) for i in range(3)]
    jobs += [job("tiny", 0, 100, ONE, checkpoint_s=30.0), job("urgent", 45, 20, TWO, 2, priority=5, topology="rack")]
    week = run_week(nodes, jobs, PLAIN, horizon_s=1000)
    assert started(week, "urgent") == 45
    evicted = {week.jobs[i].name for i in np.flatnonzero(week.evictions)}
    assert evicted == {"low2", "tiny"}, "the rack with three chips in use, not the one with four"
    # 45 s in: low2 keeps 40 of 100, tiny 30; both wait until the urgent job leaves at 65.
    assert ended(week, "low2") == pytest.approx(65 + 60)
    assert ended(week, "tiny") == pytest.approx(45 + 70 if started(week, "tiny") == 45 else 65 + 70)
    assert week.lost_s.sum() == pytest.approx(5 + 15)


def test_no_preemption_without_the_rule() -> None:
    nodes = uniform_cluster(1, 2, "x")
    jobs = [job("low", 0, 100, TWO), job("urgent", 5, 10, TWO, priority=5), job("next", 1, 10, TWO)]
    week = run_week(nodes, jobs, Rules(preempt=False, restart_s=0.0), horizon_s=1000)
    assert (started(week, "urgent"), started(week, "next")) == (100, 110)


def test_quota_is_guaranteed_borrowed_and_reclaimed() -> None:
    nodes = uniform_cluster(2, 2, "x")
    tenants = [Tenant("a", (("x", 2),)), Tenant("b", (("x", 2),))]
    jobs = [
        job("a1", 0, 100, TWO, tenant="a"),
        job("a2", 0, 100, TWO, tenant="a", checkpoint_s=1.0),
        job("b1", 30, 20, TWO, tenant="b"),
    ]
    week = run_week(nodes, jobs, Rules(quotas=True, restart_s=0.0), tenants, horizon_s=1000)
    assert started(week, "a2") == 0, "borrowed while idle"
    assert started(week, "b1") == 30, "reclaimed at once"
    assert (ended(week, "a1"), ended(week, "a2")) == (100, 120)
    fixed = run_week(nodes, jobs, Rules(quotas=True, borrow=False, restart_s=0.0), tenants, horizon_s=1000)
    assert started(fixed, "a2") == 100


def test_fair_share_and_drf_take_turns() -> None:
    nodes = uniform_cluster(1, 4, "x", cpu_milli=16_000)
    jobs = [job(f"a{i}", 0, 10, TWO, tenant="a") for i in range(6)] + [
        job(f"b{i}", 0, 10, TWO, tenant="b") for i in range(2)
    ]
    fifo = run_week(nodes, jobs, PLAIN, horizon_s=1000)
    assert started(fifo, "b0") == 30
    fair = run_week(nodes, jobs, Rules(queue="fair", restart_s=0.0), horizon_s=1000)
    assert (started(fair, "b0"), started(fair, "b1")) == (10, 20), "a holds both places until 10, then they take turns"
    # Under DRF the CPU counts: "c" holds one chip and most of the CPU, so "d" with its two chips goes next.
    heavy, light = as_task("c", 1, cpu_milli=10_000), as_task("d", 1, cpu_milli=1_000)
    more = [
        job("c0", 0, 100, heavy, tenant="c"),
        job("d0", 0, 100, light, tenant="d"),
        job("d1", 0, 100, light, tenant="d"),
        job("first", 0, 10, light, tenant="e"),
        job("c1", 1, 10, light, tenant="c"),
        job("d2", 2, 10, light, tenant="d"),
    ]
    by_queue = {q: run_week(nodes, more, Rules(queue=q, restart_s=0.0), horizon_s=1000) for q in ("fair", "drf")}
    assert (started(by_queue["fair"], "c1"), started(by_queue["fair"], "d2")) == (10, 20)
    assert (started(by_queue["drf"], "c1"), started(by_queue["drf"], "d2")) == (20, 10)


def test_failures_restart_jobs_repair_nodes_and_spares_step_in() -> None:
    nodes = uniform_cluster(2, 2, "x")
    jobs = [job("a", 0, 100, TWO, checkpoint_s=10.0)]
    host = [Failure(25.0, "host", 0, 0, 50.0)]
    alone = run_week(nodes[:1], jobs, Rules(restart_s=5.0), failures=host, horizon_s=1000)
    assert ended(alone, "a") == pytest.approx(75 + 5 + 80)  # 20 of 25 s kept
    assert (alone.restarts[0], alone.lost_s[0]) == (1, 5)
    spare = run_week(nodes, jobs, Rules(restart_s=5.0, spares=1, spare_s=10.0), failures=host, horizon_s=1000)
    assert ended(spare, "a") == pytest.approx(35 + 5 + 80)
    chip = run_week(nodes[:1], jobs, Rules(restart_s=0.0), failures=[Failure(25.0, "chip", 0, 1, 50.0)], horizon_s=1000)
    assert ended(chip, "a") == pytest.approx(75 + 80)
    soft = run_week(
        nodes[:1], jobs, Rules(restart_s=0.0), failures=[Failure(25.0, "software", 0, 0, 0.0)], horizon_s=1000
    )
    assert ended(soft, "a") == pytest.approx(25 + 80)
    rack = run_week(nodes, jobs, Rules(restart_s=0.0), failures=[Failure(25.0, "rack", 0, 0, 30.0)], horizon_s=1000)
    assert ended(rack, "a") == pytest.approx(55 + 80)
    assert rack.failures["rack"] == 1
    cable = run_week(
        nodes[:1], jobs, Rules(restart_s=0.0), failures=[Failure(25.0, "switch", 0, 0, 30.0)], horizon_s=1000
    )
    assert ended(cable, "a") == pytest.approx(55 + 80)


JOBS = st.lists(
    st.tuples(
        st.floats(0, 500),
        st.floats(1, 200),
        st.sampled_from([(1, 1000), (1, 300), (2, 1000), (4, 1000), (0, 0)]),
        st.integers(1, 3),
        st.integers(0, 2),
        st.sampled_from(["", "", "rack", "pod"]),
        st.sampled_from([0.0, 20.0]),
        st.sampled_from(["a", "b", "c"]),
        st.sampled_from([(), ("A",), ("B",)]),
    ),
    min_size=1,
    max_size=40,
)
RULES = st.builds(
    Rules,
    policy=st.sampled_from(["bestfit", "fgd", "fgdcpu", "gpupacking", "firstfit", "random"]),
    queue=st.sampled_from(["fifo", "fair", "drf"]),
    backfill=st.booleans(),
    preempt=st.booleans(),
    quotas=st.booleans(),
    borrow=st.booleans(),
    compact=st.booleans(),
    restart_s=st.sampled_from([0.0, 7.0]),
    spares=st.integers(0, 1),
    depth=st.sampled_from([1, 64]),
)
FAILS = st.lists(
    st.tuples(
        st.floats(0, 600),
        st.sampled_from(["chip", "host", "rack", "software", "switch"]),
        st.integers(0, 1),
        st.integers(0, 3),
        st.floats(1, 100),
    ),
    max_size=5,
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(JOBS, RULES, FAILS)
def test_nothing_is_given_twice_and_no_work_is_lost_from_sight(jobs, rules, fails) -> None:  # type: ignore[no-untyped-def]
    nodes = [Node(f"n{i}", 64_000, 1000, 4, "AB"[i % 2], i // 2, i, i // 4) for i in range(6)]
    listed = [
        Job(
            f"j{i}",
            tenant,
            at,
            lasts,
            as_task("w", n, milli=m, cpu_milli=1000, types=types),
            workers,
            priority,
            topology,
            checkpoint,
        )
        for i, (at, lasts, (n, m), workers, priority, topology, checkpoint, tenant, types) in enumerate(jobs)
    ]
    cluster = Cluster(
        nodes,
        listed,
        rules,
        [Tenant("a", (("A", 4), ("B", 2)), 2.0), Tenant("b", (("A", 4),))],
        [Failure(*f) for f in fails],
        horizon_s=5000,
    )
    for until in (50, 200, 500, 900, 5000):
        cluster.advance(until)
        cluster.check_integrity()
        for j in cluster.running():
            places, asked = cluster.workers_of(j), cluster.jobs[j]
            for level in ("rack", "pod"):
                if asked.topology == level:
                    assert len({getattr(nodes[i], level) for i, _ in places}) == 1
            types = asked.worker.chip_types
            assert not asked.worker.num_chips or not types or all(nodes[i].model in types for i, _ in places)
    week = cluster.result()
    for i in np.flatnonzero(week.status == 3):
        asked = week.jobs[i]
        # Chip-seconds held = work + what was done twice + restarts.
        stops = week.restarts[i] + week.evictions[i]
        ran = week.chip_seconds[i] / (asked.chip_milli / 1000) if asked.chip_milli else None
        if ran is not None:
            low = asked.duration_s + week.lost_s[i]
            assert low - 1e-6 <= ran <= low + stops * rules.restart_s + 1e-6
    held = float(week.hourly[:, : len(week.kinds)].sum()) * 3600
    span = np.clip(week.horizon_s - 3600 * np.arange(len(week.hourly)), 0, 3600) / 3600
    held = float((week.hourly[:, : len(week.kinds)].sum(axis=1) * span).sum()) * 3600
    assert held == pytest.approx(float(week.chip_seconds.sum()), abs=1e-3)


def test_the_same_seed_gives_the_same_week() -> None:
    nodes = uniform_cluster(16, 8, "x")
    rng = np.random.default_rng(1)
    jobs = [job(f"j{i}", float(t), 4000.0, TWO) for i, t in enumerate(np.sort(rng.uniform(0, 80_000, 400)))]
    failures = draw(nodes, llama3_faults(), 86_400, 3, scale=200)
    runs = [run_week(nodes, jobs, Rules("random"), failures=failures, horizon_s=86_400, seed=5) for _ in range(2)]
    assert np.array_equal(runs[0].finish_s, runs[1].finish_s)
    assert describe(runs[0]) == describe(runs[1])


def test_drawn_failures_come_at_their_rates() -> None:
    nodes = uniform_cluster(2048, 8, "x")
    failures = draw(nodes, llama3_faults(), 54 * 86_400, 0)
    chips = sum(f.kind == "chip" for f in failures)
    assert abs(chips - 268) < 4 * math.sqrt(268)  # as many as Llama 3's 54 days on 16,384
    assert llama3_faults().chip_per_day.value == pytest.approx(268 / (16_384 * 54))
    assert llama3_faults().rack_per_day.status == "unpublished"


def test_metas_law_from_8_to_131072_gpus() -> None:
    rows = {r["gpus"]: r for r in rsc_table()}
    assert sorted(rows) == [8, 1024, 16_384, 131_072]
    assert rows[16_384]["ratio"] == pytest.approx(1.0, abs=0.02)
    assert rows[131_072]["ratio"] == pytest.approx(1.0, abs=0.03)
    assert rows[1024]["ratio"] == pytest.approx(1.0, abs=0.15)
    assert rows[131_072]["rate_is"] == "RSC-1's node failures"
    assert rows[8]["rate_is"].startswith("implied")
    assert mttf_s(8, 6.5) == pytest.approx(1000 / 6.5 * 86_400)


@pytest.mark.parametrize(
    ("make", "error"),
    [
        (lambda: job("j", 0, -1), TrivetError),
        (lambda: job("j", 0, 1, topology="planet"), TrivetError),
        (lambda: Rules("nope"), UnknownName),
        (lambda: Rules(queue="nope"), UnknownName),
        (lambda: Cluster(uniform_cluster(2, 2, "x"), [], PLAIN), TrivetError),
        (lambda: Cluster(uniform_cluster(2, 2, "x"), [job("j", 0, 1)], Rules(spares=2)), TrivetError),
        (lambda: Cluster(uniform_cluster(2, 2, "x"), [job("j", 0, 1)], PLAIN, [Tenant("a", (("y", 1),))]), UnknownName),
        (
            lambda: Cluster(uniform_cluster(2, 2, "x"), [job("j", 0, 1)], PLAIN, (), [Failure(0, "host", 9, 0, 1)]),
            TrivetError,
        ),
    ],
)
def test_bad_input_is_refused(make, error) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(error):
        make()
