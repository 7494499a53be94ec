"""Steady state: laws that any queue obeys, and a plain step-by-step loop beside the compiled one."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trivet.cloud.deployment import StepTable
from trivet.cloud.serving.steady import Policy, Split, closed_loop, closed_loop_split, drawn, open_loop
from trivet.errors import TrivetError

KNOTS = np.array([1.0, 8, 64, 512, 8192, 65536])


def table(step_s: float = 5e-3, token_s: float = 1e-5, context_s: float = 1e-9, overhead_s: float = 0.0) -> StepTable:
    """A step of ``step_s`` + ``token_s`` a prompt token, + ``context_s`` a cached token of each decode sequence."""
    context = np.array([1.0, 1000, 10000])
    return StepTable(
        KNOTS, step_s + token_s * KNOTS, KNOTS, step_s + 1e-5 * KNOTS, context, context_s * KNOTS[:, None] * context, KNOTS,
        KNOTS,
        np.zeros((6, 6)), 0.0, 0.0, 0.0, True, first_token_overhead_s=overhead_s,
    )  # fmt: skip


def plain_loop(t: StepTable, isl: float, osl: float, clients: int, waves: int, budget: float) -> tuple[float, float]:
    """Chunked prefill, one decode step at a time, in plain Python: mean TTFT and TPOT."""
    count = max(32, clients * waves)
    inputs, outputs = drawn(isl, osl, count, 0.8)
    now, issued = 0.0, min(clients, count)
    waiting = [(i, 0.0, 0.0) for i in range(issued)]  # request, arrival, done so far
    running: dict[int, list[float]] = {}  # request -> [tokens left, context, first token at]
    ttft, tpot = np.zeros(count), np.zeros(count)
    while waiting or running:
        left, prompts, ended = budget - len(running), 0.0, []
        while waiting and left > 0:
            i, arrival, done = waiting[0]
            size = min(inputs[i] - done, left)
            prompts += size
            left -= size
            if done + size < inputs[i]:
                waiting[0] = (i, arrival, done + size)
                break
            waiting.pop(0)
            ended.append((i, arrival))
        b = len(running)
        mean = np.mean([c for _, c, _ in running.values()]) if b else 0.0
        attention = (
            float(np.interp(mean, t.context, [np.interp(b, t.sequences, t.decode_attention_s[:, k]) for k in range(3)]))
            if b
            else 0.0
        )
        step = (
            float(np.interp(prompts + b, t.tokens, t.mixed_s))
            if prompts
            else float(np.interp(b, t.sequences, t.graph_s))
        )
        now += step + attention
        for i in list(running):
            running[i][0] -= 1
            running[i][1] += 1
            if running[i][0] <= 0:
                tpot[i] = (now - running.pop(i)[2]) / max(outputs[i] - 1, 1)
                if issued < count:
                    waiting.append((issued, now, 0.0))
                    issued += 1
        for i, arrival in ended:
            ttft[i] = now - arrival
            running[i] = [outputs[i] - 1, inputs[i] + 1, now]
    return float(ttft.mean()), float(tpot.mean())


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 24), st.integers(40, 3000), st.integers(8, 120), st.sampled_from([512.0, 2048.0, 8192.0]))
def test_compiled_equals_plain_loop(clients: int, isl: int, osl: int, budget: float) -> None:
    t = table()
    fast = closed_loop(t, isl, osl, clients, Policy(budget_tokens=budget), waves=4)
    ttft, tpot = plain_loop(t, isl, osl, clients, 4, budget)
    assert float(fast.ttft_s) == pytest.approx(ttft, rel=0.03)
    assert float(fast.tpot_s) == pytest.approx(tpot, rel=0.01)


def test_one_client_waits_for_nobody() -> None:
    t = table(overhead_s=0.02)
    found = closed_loop(t, 1000, 100, 1)
    prompts = drawn(1000, 100, 32, 0.8)[0]
    assert float(found.ttft_s) == pytest.approx(0.02 + np.mean(5e-3 + 1e-5 * prompts), rel=1e-6)
    assert 5e-3 < float(found.tpot_s) < 5.1e-3


@given(st.integers(1, 4), st.integers(1, 4000))
@settings(max_examples=20, deadline=None)
def test_more_clients_serve_more_and_wait_longer(least: int, isl: int) -> None:
    loads = [least * 3**k for k in range(5)]
    found = closed_loop(table(), isl, 256, loads)
    assert np.all(np.diff(found.tpot_s) >= -1e-4 * found.tpot_s[:-1])
    assert np.all(np.diff(found.output_tokens_per_s) > 0)


def test_littles_law() -> None:
    found = closed_loop(table(), 1024, 512, 64, waves=40)
    life = float(found.ttft_s) + 0.9 * 512 * float(found.tpot_s)
    assert float(found.requests_per_s) * life == pytest.approx(64, rel=0.05)


def test_kv_limit_queues() -> None:
    free = closed_loop(table(), 1000, 500, 64)
    tight = closed_loop(table(), 1000, 500, 64, Policy(kv_tokens=16 * 1500.0))
    assert float(tight.ttft_s) > 20 * float(free.ttft_s)
    assert float(tight.tpot_s) < float(free.tpot_s)


def preempting_loop(t: StepTable, isl: float, osl: float, clients: int, waves: int, kv: float) -> tuple[float, float]:
    """A scheduler that lets a prompt in when it fits and sends the youngest back when answers grow too long, one step at a time
    and with a budget for every prompt that fits: mean TTFT and TPOT."""
    count = max(32, clients * waves)
    inputs, outputs = drawn(isl, osl, count, 0.8)
    now, issued = 0.0, min(clients, count)
    waiting = [(i, 0.0, 0) for i in range(issued)]  # request, arrival, tokens that it had
    running: list[list[float]] = []  # request, tokens it has, in the order in which they came in
    first, ttft, tpot = np.zeros(count), np.zeros(count), np.zeros(count)
    while waiting or running:
        while len(running) > 1 and sum(inputs[int(i)] + n for i, n in running) + len(running) > kv:
            i, had = running.pop()
            waiting.insert(0, (int(i), 0.0, int(had)))
        used, prompts, entering = sum(inputs[int(i)] + n for i, n in running), 0.0, []
        while waiting and (used + inputs[waiting[0][0]] + waiting[0][2] <= kv or not (running or entering)):
            i, arrival, had = waiting.pop(0)
            used, prompts = used + inputs[i] + had, prompts + inputs[i] + had
            entering.append((i, arrival, had))
        b = len(running)
        now += (
            float(np.interp(prompts + b, t.tokens, t.mixed_s))
            if prompts
            else float(np.interp(b, t.sequences, t.graph_s))
        )
        for sequence in running:
            sequence[1] += 1
        for i, arrival, had in entering:
            if not had:
                ttft[i], first[i] = now - arrival, now
            running.append([i, max(had, 1)])
        for i, n in [s for s in running if s[1] >= outputs[int(s[0])]]:
            running.remove([i, n])
            tpot[int(i)] = (now - first[int(i)]) / max(outputs[int(i)] - 1, 1)
            if issued < count:
                waiting.append((issued, now, 0))
                issued += 1
    return float(ttft.mean()), float(tpot.mean())


@pytest.mark.parametrize("kv", [9000.0, 16000.0, 1e9])
def test_preemption_equals_plain_loop(kv: float) -> None:
    t = table(context_s=0.0)
    found = closed_loop(t, 300, 900, 16, Policy(budget_tokens=1e6, kv_tokens=kv, preempts=True), waves=4)
    ttft, tpot = preempting_loop(t, 300, 900, 16, 4, kv)
    assert float(found.ttft_s) == pytest.approx(ttft, rel=0.05, abs=2e-3)
    assert float(found.tpot_s) == pytest.approx(tpot, rel=0.02)


def test_preemption_answers_sooner_than_room_for_whole_answers() -> None:
    policy = Policy(kv_tokens=9000.0)
    kept = closed_loop(table(), 300, 900, 16, policy)
    stopped = closed_loop(table(), 300, 900, 16, replace(policy, preempts=True))
    assert float(stopped.ttft_s) < 0.8 * float(kept.ttft_s)
    assert float(stopped.tpot_s) > float(kept.tpot_s)


def ranks_loop(
    t: StepTable, isl: float, osl: float, clients: int, ranks: int, wait: int, budget: float
) -> tuple[float, float]:
    """Attention data parallelism one step at a time: a queue and a budget per rank, prompts held until every rank has one or
    ``wait`` steps are counted: mean TTFT and TPOT."""
    count = max(32, clients * 4)
    inputs, outputs = drawn(isl, osl, count, 0.8)
    now, issued, counted = 0.0, min(clients, count), 0
    arrivals = [(i, 0.0) for i in range(issued)]
    queues: list[list[tuple[int, float]]] = [[] for _ in range(ranks)]
    running: list[dict[int, float]] = [{} for _ in range(ranks)]
    first, ttft, tpot = np.zeros(count), np.zeros(count), np.zeros(count)
    while arrivals or any(queues) or any(running):
        for i, arrival in arrivals:
            loads = [len(q) + len(r) for q, r in zip(queues, running, strict=True)]
            queues[int(np.argmin(loads))].append((i, arrival))
        arrivals = []
        entering: list[list[tuple[int, float]]] = [[] for _ in range(ranks)]
        if any(queues) and (all(queues) or not all(running) or counted >= wait):
            for k in range(ranks):
                left = budget - len(running[k])
                while queues[k] and (inputs[queues[k][0][0]] <= left or not entering[k]):
                    left -= inputs[queues[k][0][0]]
                    entering[k].append(queues[k].pop(0))
        a_rank = sum(len(r) for r in running) / ranks
        if any(entering):
            counted = 0
            longest = max(sum(inputs[i] for i, _ in e) for e in entering)
            now += float(np.interp(longest + a_rank, t.tokens, t.mixed_s))
        else:
            counted = counted + 1 if any(queues) else (counted + 1) % wait
            now += float(np.interp(a_rank, t.sequences, t.graph_s))
        for k in range(ranks):
            for i in list(running[k]):
                running[k][i] -= 1
                if running[k][i] <= 0:
                    running[k].pop(i)
                    tpot[i] = (now - first[i]) / max(outputs[i] - 1, 1)
                    if issued < count:
                        arrivals.append((issued, now))
                        issued += 1
            for i, arrival in entering[k]:
                ttft[i], first[i] = now - arrival, now
                running[k][i] = outputs[i] - 1
    return float(ttft.mean()), float(tpot.mean())


@pytest.mark.parametrize(("clients", "ranks", "budget"), [(16, 4, 1300.0), (64, 8, 1300.0), (64, 8, 4000.0)])
def test_ranks_equal_plain_loop(clients: int, ranks: int, budget: float) -> None:
    t = table(context_s=0.0)
    policy = Policy("whole_prompt", budget_tokens=budget, ranks=ranks, wait_steps=60.0)
    found = closed_loop(t, 1000, 300, clients, policy, waves=4)
    ttft, tpot = ranks_loop(t, 1000, 300, clients, ranks, 60, budget)
    assert float(found.ttft_s) == pytest.approx(ttft, rel=0.05)
    assert float(found.tpot_s) == pytest.approx(tpot, rel=0.02)


def test_prompts_first_spare_ttft_and_cost_tpot() -> None:
    chunked = closed_loop(table(), 4000, 200, 32, Policy("chunked", 1024))
    first = closed_loop(table(), 4000, 200, 32, Policy("prefill_first", 8192))
    assert float(first.ttft_s) < float(chunked.ttft_s)


def test_looking_seldom_delays_the_first_token() -> None:
    often = closed_loop(table(), 500, 500, 16)
    seldom = closed_loop(table(), 500, 500, 16, Policy(look_steps=30.0))
    gap = (float(seldom.ttft_s) - float(often.ttft_s)) / float(seldom.tpot_s)
    assert 8 < gap < 25


def test_a_client_that_asks_again_at_once_keeps_groups_apart() -> None:
    """Answers of one length that began a step apart end a step apart: each new prompt then finds the queue empty, unless the way
    to the scheduler takes longer than a step and the groups meet there."""
    policy = Policy("whole_prompt", budget_tokens=1000.0)
    late, soon = (
        closed_loop(table(overhead_s=0.05), 1000, 200, 8, replace(policy, turnaround=share), low=1.0)
        for share in (1.0, 0.0)
    )
    assert float(soon.ttft_s) < 0.7 * float(late.ttft_s)
    assert float(soon.tpot_s) == pytest.approx(float(late.tpot_s), rel=0.05)


def test_prompts_wait_until_they_fill_a_step() -> None:
    """At two clients no prompt finds company, so each waits the whole time; where nothing decodes, none waits."""
    at_once = closed_loop(table(), 500, 500, 2)
    waits = closed_loop(table(), 500, 500, 2, Policy(gather_steps=20.0, gather_tokens=4000.0))
    gap = (float(waits.ttft_s) - float(at_once.ttft_s)) / float(waits.tpot_s)
    assert 15 < gap < 21
    enough = closed_loop(table(), 500, 500, 2, Policy(gather_steps=20.0, gather_tokens=300.0))
    assert float(enough.ttft_s) == pytest.approx(float(at_once.ttft_s), rel=1e-9)
    alone = closed_loop(table(), 500, 500, 1, Policy(gather_steps=20.0, gather_tokens=4000.0))
    assert float(alone.ttft_s) == pytest.approx(float(closed_loop(table(), 500, 500, 1).ttft_s), rel=1e-9)


def test_ranks_open_every_so_many_steps() -> None:
    """A prompt whose rank is alone waits for the next opening: half the interval on average."""
    at_once = closed_loop(table(), 500, 500, 4, Policy(ranks=4))
    waits = closed_loop(table(), 500, 500, 4, Policy(ranks=4, wait_steps=60.0))
    gap = (float(waits.ttft_s) - float(at_once.ttft_s)) / float(waits.tpot_s)
    assert 18 < gap < 40


def test_lengths_as_the_client_draws_them() -> None:
    source = np.random.RandomState(0)
    inputs, outputs = drawn(1024, 8192, 40, 0.8)
    assert np.array_equal(inputs, source.randint(819, 1025, 40))
    assert np.array_equal(outputs, source.randint(6553, 8193, 40))
    assert set(drawn(1.0, 2.0, 50, 0.8)[0]) == {1.0}


def test_open_loop_meets_closed_loop_at_its_rate() -> None:
    closed = closed_loop(table(), 512, 256, 32, waves=40)
    opened = open_loop(table(), 0.9 * float(closed.requests_per_s), 512, 256)
    assert float(opened.requests_per_s) == pytest.approx(0.9 * float(closed.requests_per_s), rel=0.1)
    assert float(opened.tpot_s) == pytest.approx(float(closed.tpot_s), rel=0.2)


def test_split_pools() -> None:
    t = table()
    one = closed_loop_split(t, t, 2000, 200, 8, Split(decode_slots=64))
    more = closed_loop_split(t, t, 2000, 200, 8, Split(prefill_workers=4, decode_slots=64))
    assert float(more.ttft_s) < float(one.ttft_s)
    few = closed_loop_split(t, t, 2000, 200, 8, Split(decode_workers=4, decode_slots=2, routing="round_robin"))
    even = closed_loop_split(t, t, 2000, 200, 8, Split(decode_workers=4, decode_slots=2))
    assert float(few.ttft_s) > float(even.ttft_s)


def test_fewer_slots_than_clients_queue_by_the_share_that_is_left_out() -> None:
    """Six clients on three slots: every second one waits, for as long as an answer takes."""
    t = table()
    found = closed_loop_split(t, t, 500, 500, 6, Split(decode_workers=3, decode_slots=1, routing="round_robin"))
    answer = 450 * float(found.tpot_s)
    assert float(found.ttft_s) == pytest.approx(answer, rel=0.2)


def test_several_front_ends_route_unevenly() -> None:
    """Each takes turns of its own, so that slots stand empty while requests wait; the work stays the same."""
    t = table()
    few = Split(decode_workers=4, decode_slots=2, routing="round_robin")
    one, many = (closed_loop_split(t, t, 500, 500, 8, replace(few, frontends=n)) for n in (1, 8))
    assert float(many.ttft_s) > 2 * float(one.ttft_s)
    assert float(many.requests_per_s) < float(one.requests_per_s)
    room = Split(decode_workers=4, decode_slots=8, routing="round_robin", frontends=8)
    assert float(closed_loop_split(t, t, 500, 500, 8, room).ttft_s) < 0.1 * float(many.ttft_s)


def test_a_cold_server_compiles_once_when_a_step_first_fills() -> None:
    """Where the first wave fits a step nothing is compiled; else all but the first request of the first wave wait for it, a
    tenth of the run's requests."""
    first = Policy("prefill_first", 8192)
    cold = replace(first, cold_s=50.0)
    assert float(closed_loop(table(), 1000, 500, 4, cold).ttft_s) == float(
        closed_loop(table(), 1000, 500, 4, first).ttft_s
    )
    warm, late = (closed_loop(table(), 1000, 500, 32, policy) for policy in (first, cold))
    assert float(late.ttft_s) - float(warm.ttft_s) == pytest.approx(50.0 * 31 / 320, rel=0.1)


def test_long_runs_are_cut_without_bias() -> None:
    t = table(overhead_s=0.01)
    from trivet.cloud.serving import steady

    cut = closed_loop(t, 256, 64, 900)
    most, steady.MAX_REQUESTS = steady.MAX_REQUESTS, 10**6
    try:
        whole = closed_loop(t, 256, 64, 900)
    finally:
        steady.MAX_REQUESTS = most
    assert float(cut.ttft_s) == pytest.approx(float(whole.ttft_s), rel=0.05)
    assert float(cut.tpot_s) == pytest.approx(float(whole.tpot_s), rel=0.03)


def test_refuses_no_clients() -> None:
    with pytest.raises(TrivetError, match="at least 1"):
        closed_loop(table(), 100, 100, 0)


@pytest.mark.parametrize("clients", [1, 7, 32])
@pytest.mark.parametrize("mixing", ["chunked", "prefill_first"])
def test_agrees_with_the_simulator_of_fleets(clients: int, mixing: str) -> None:
    """The same clients, lengths and table through the request-level simulator: within 3%."""
    from trivet.cloud.deployment import EngineSettings
    from trivet.cloud.serving.batching import Batching
    from trivet.cloud.serving.fleet import Fleet, ReplicaKind, simulate
    from trivet.cloud.serving.traffic import Traffic

    count = 20 * clients + 32
    t = replace(table(), kv_blocks=10**6)
    inputs, outputs = drawn(1500, 200, count, 0.8)
    kind = ReplicaKind(
        t,
        EngineSettings(max_num_batched_tokens=2048, max_num_seqs=1024),
        rules=Batching(prefill_first=mixing == "prefill_first"),
    )
    done = simulate(
        Traffic(np.zeros(count), inputs.astype(int), outputs.astype(int), max_concurrency=clients), Fleet((kind,))
    )
    found = closed_loop(t, 1500, 200, clients, Policy(mixing, 2048.0), waves=count / clients)
    ttft = float(np.mean(done.first_token_s - done.arrival_s))
    tpot = float(np.mean((done.last_token_s - done.first_token_s) / (done.output_tokens - 1)))
    assert float(found.ttft_s) == pytest.approx(ttft, rel=0.03)
    assert float(found.tpot_s) == pytest.approx(tpot, rel=0.03)
