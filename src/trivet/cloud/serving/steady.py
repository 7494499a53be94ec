"""Mean TTFT and TPOT of one deployment in its steady state, for many loads at once.

Closed loop: ``concurrency`` clients start together, each sends its next request when one ends; lengths are uniform in
0.8 to 1.0 of the nominal ones, as serving benchmarks draw them. TTFT there is queueing, so the loop itself is followed,
event by event, on the compiled ``StepTable`` (``_loop_closed.py``): first wave, desynchronisation and drain included.
Long runs are cut: what lies between the first and the last wave repeats itself, and is weighted by the waves it stands for.

Open: the same replay under Poisson arrivals of a rate.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from trivet.cloud.deployment import StepTable
from trivet.errors import TrivetError

Floats = NDArray[np.float64]
Load = tuple[float, float, float]  # isl, osl, concurrency
MIXING = {"chunked": 0, "prefill_first": 1, "whole_prompt": 2}
_GOLDEN, _PLASTIC = 0.6180339887498949, 0.7548776662466927
MIN_REQUESTS, MAX_REQUESTS = 32, 3000


@dataclass(frozen=True, slots=True)
class Policy:
    """What a scheduler allows, per attention-DP rank.

    ``mixing``: "chunked" (prompts share steps with decode, cut to the budget), "prefill_first" (prompt steps run alone,
    before decode), "whole_prompt" (prompts share steps, uncut). ``tokens_a_step``: tokens that one decode step yields
    per sequence (> 1 when speculating); ``decode_tokens``: tokens it computes.
    """

    mixing: str = "chunked"
    budget_tokens: float = 8192.0
    max_sequences: float = 256.0
    kv_tokens: float = np.inf
    ranks: int = 1
    tokens_a_step: float = 1.0
    decode_tokens: float = 1.0
    preempts: bool = False  # a request enters when its prompt fits; the youngest leaves where answers grow too long
    frontend_s: float = 0.0  # front end's serial time per request of a burst
    look_steps: float = 1.0  # steps between two looks at the queue of new requests
    wait_steps: float = 0.0  # steps that a prompt may wait until every rank has one
    gather_steps: float = 0.0  # steps that prompts may wait until they and the running make gather_tokens
    gather_tokens: float = 0.0
    first_token_steps: float = 0.0  # decode steps until the first token is streamed out (interval of streaming)
    cold_s: float = 0.0  # once: kernels are compiled at the first step that fills the budget
    turnaround: float = 1.0  # share of the overhead of a first token that lies before the scheduler sees the request


@dataclass(frozen=True, slots=True, eq=False)
class Steady:
    """Seconds and rates per load, arrays of one shape. Throughput is of the whole deployment."""

    ttft_s: Floats
    tpot_s: Floats
    ttft_median_s: Floats
    tpot_median_s: Floats
    requests_per_s: Floats
    output_tokens_per_s: Floats


def lengths(nominal: float, count: int, low: float, step: float) -> Floats:
    """``count`` lengths spread evenly over ``low`` to 1 of ``nominal``, in an order without pattern; at least 1."""
    return np.maximum(1.0, np.floor(nominal * _spread(count, low, step) + 0.5))


@lru_cache(maxsize=256)
def _spread(count: int, low: float, step: float) -> Floats:
    """[count] shares of a nominal length, read only."""
    spread: Floats = low + (1.0 - low) * ((0.5 + step * np.arange(count, dtype=np.float64)) % 1.0)
    spread.flags.writeable = False
    return spread


@lru_cache(maxsize=128)
def drawn(isl: float, osl: float, count: int, low: float) -> tuple[Floats, Floats]:
    """``count`` prompt and answer lengths as ``benchmark_serving.py`` draws them (its seed, 0, and its order), read only."""
    source = np.random.RandomState(0)
    pair = []
    for nominal in (isl, osl):
        least = max(1, int(nominal * low))
        pair.append(source.randint(least, max(least, round(nominal)) + 1, size=count).astype(np.float64))
        pair[-1].flags.writeable = False
    return pair[0], pair[1]


def closed_loop(
    table: StepTable,
    isl: ArrayLike,
    osl: ArrayLike,
    concurrency: ArrayLike,
    policy: Policy | None = None,
    *,
    waves: float = 10.0,
    low: float = 0.8,
) -> Steady:
    """Steady state of ``concurrency`` clients; the three loads broadcast.

    Args:
        table: the compiled step of one attention-DP rank.
        isl, osl: nominal tokens in and out. concurrency: clients of the whole deployment (all ranks).
        policy: the scheduler; default chunked prefill of 8,192 tokens within the table's KV blocks.
        waves: requests per client. low: shortest length over the nominal one.
    """
    policy = policy or Policy(kv_tokens=_kv_tokens(table))
    shape, points = _loads(isl, osl, concurrency)
    out = np.array([_closed(table, policy, *point, waves, low) for point in points])
    return Steady(*out.T.reshape(6, *shape))


def open_loop(
    table: StepTable,
    rate_per_s: ArrayLike,
    isl: ArrayLike,
    osl: ArrayLike,
    policy: Policy | None = None,
    *,
    requests: int = 2000,
    low: float = 0.8,
    seed: int = 0,
) -> Steady:
    """The same under Poisson arrivals at ``rate_per_s`` (of the whole deployment). An overloaded rate shows as a TTFT that
    grows with ``requests``. ``requests_per_s`` is what was served."""
    policy = policy or Policy(kv_tokens=_kv_tokens(table))
    loads = np.broadcast_arrays(*(np.asarray(v, float) for v in (isl, osl, rate_per_s)))
    if any(np.any(load <= 0) for load in loads):
        raise TrivetError("lengths and rate are positive", field="isl/osl/rate")
    gaps = np.random.default_rng(seed).exponential(1.0, requests)
    out = np.empty((6, *loads[0].shape))
    for index in np.ndindex(loads[0].shape):
        inputs, outputs, rate = (float(v[index]) for v in loads)
        run = _run(table, policy, lengths(inputs, requests, low, _GOLDEN), lengths(outputs, requests, low, _PLASTIC),
                   np.cumsum(gaps) / rate, 0)  # fmt: skip
        weights = np.ones(requests)
        weights[: requests // 20] = 0.0  # the empty system at the start
        out[(slice(None), *index)] = _summary(run, weights, requests)
    return Steady(*out)


@dataclass(frozen=True, slots=True)
class Split:
    """A pair of pools. ``decode_slots`` and ``decode_kv_tokens`` are of one decode worker. ``routing``: "least_loaded" or
    "round_robin" over decode workers. A prompt's KV takes ``transfer_s + tokens x transfer_token_s``."""

    prefill_workers: int = 1
    prefill_ranks: int = 1
    prefill_budget_tokens: float = 8192.0
    decode_workers: int = 1
    decode_ranks: int = 1
    decode_slots: float = 1024.0
    decode_kv_tokens: float = np.inf
    routing: str = "least_loaded"
    transfer_s: float = 0.0
    transfer_token_s: float = 0.0
    tokens_a_step: float = 1.0
    frontend_s: float = 0.0
    first_token_steps: float = 0.0
    frontends: int = 1  # that route in turns of their own; requests reach them by chance


def closed_loop_split(
    prefill: StepTable,
    decode: StepTable,
    isl: ArrayLike,
    osl: ArrayLike,
    concurrency: ArrayLike,
    split: Split,
    *,
    waves: float = 10.0,
    low: float = 0.8,
) -> Steady:
    """Steady state of ``concurrency`` clients on prefill and decode pools; arguments as in ``closed_loop``."""
    shape, points = _loads(isl, osl, concurrency)
    out = np.array([_closed_split(prefill, decode, split, *point, waves, low) for point in points])
    return Steady(*out.T.reshape(6, *shape))


def _loads(isl: ArrayLike, osl: ArrayLike, concurrency: ArrayLike) -> tuple[tuple[int, ...], list[Load]]:
    """The common shape of the loads, and each of them (C order)."""
    given = (isl, osl, concurrency)
    if all(isinstance(value, int | float) for value in given):
        shape: tuple[int, ...] = ()
        # ``all`` narrows no type.
        points: list[Load] = [(float(isl), float(osl), float(concurrency))]  # type: ignore[arg-type]
    else:
        arrays = np.broadcast_arrays(*(np.asarray(value, float) for value in given))
        shape = arrays[0].shape
        points = list(zip(*(array.ravel().tolist() for array in arrays), strict=True))
    if not all(value >= 1 for point in points for value in point):
        raise TrivetError("lengths and concurrency are at least 1", field="isl/osl/concurrency")
    return shape, points


def _closed_split(
    prefill: StepTable,
    decode: StepTable,
    split: Split,
    isl: float,
    osl: float,
    concurrency: float,
    waves: float,
    low: float,
) -> tuple[float, ...]:
    from trivet.cloud.serving._loop_split import replay_split

    clients, count, weights = _plan(concurrency, waves)
    inputs, outputs = drawn(isl, osl, count, low)
    ttft, tpot, finished = (np.zeros(count) for _ in range(3))
    overhead = prefill.first_token_overhead_s
    hosts = [np.array([t.host_decode_s, t.host_mixed_s, t.host_per_sequence_s]) for t in (prefill, decode)]
    replay_split(
        prefill.tokens, prefill.mixed_s, prefill.chunk, prefill.past, prefill.prefill_attention_s, hosts[0], prefill.overlap,
        int(split.prefill_workers), float(split.prefill_ranks), float(split.prefill_budget_tokens),
        decode.sequences, decode.graph_s, decode.context, decode.decode_attention_s, hosts[1], decode.overlap,
        int(split.decode_workers), float(split.decode_ranks), float(split.decode_slots), float(split.decode_kv_tokens),
        0 if split.routing == "round_robin" else 1, int(split.frontends), float(split.transfer_token_s), float(split.transfer_s),
        float(split.tokens_a_step), inputs, outputs, clients, float(overhead), float(split.frontend_s), ttft, tpot, finished,
    )  # fmt: skip
    return _summary((ttft + overhead + split.first_token_steps * tpot, tpot, finished, outputs), weights, count)


def _plan(concurrency: float, waves: float) -> tuple[int, int, Floats]:
    """Clients, requests to follow, and how many each of them stands for."""
    clients = max(1, round(concurrency))
    whole = max(MIN_REQUESTS, round(clients * waves))
    count = min(whole, max(MAX_REQUESTS, 4 * clients))
    weights = np.ones(count)
    if whole > count > 2 * clients:
        weights[clients : count - clients] = (whole - 2.0 * clients) / (count - 2.0 * clients)
    return clients, count, weights


def _kv_tokens(table: StepTable) -> float:
    return float(table.kv_blocks * table.block_size) or np.inf


def _closed(
    table: StepTable, policy: Policy, isl: float, osl: float, concurrency: float, waves: float, low: float
) -> tuple[float, ...]:
    clients, count, weights = _plan(concurrency, waves)
    run = _run(table, policy, *drawn(isl, osl, count, low), np.zeros(count), clients)
    return _summary(run, weights, count)


def _run(
    table: StepTable, policy: Policy, inputs: Floats, outputs: Floats, arrivals: Floats, clients: int
) -> tuple[Floats, ...]:
    """Per request: TTFT, TPOT, finish; and lengths, arrivals."""
    from trivet.cloud.serving._loop_closed import replay
    from trivet.cloud.serving._loop_ranks import replay_ranks

    ttft, tpot, finished = (np.zeros(len(inputs)) for _ in range(3))
    host = np.array([table.host_decode_s, table.host_mixed_s, table.host_per_sequence_s])
    client_s = float(policy.turnaround * table.first_token_overhead_s)
    if policy.mixing == "whole_prompt" and policy.ranks > 1:
        replay_ranks(
            table.tokens, table.mixed_s, table.sequences, table.graph_s, table.context, table.decode_attention_s, table.chunk,
            table.past, table.prefill_attention_s, host, table.overlap, float(policy.budget_tokens),
            float(policy.max_sequences), float(policy.kv_tokens), int(policy.ranks), float(policy.tokens_a_step),
            float(policy.decode_tokens), float(policy.wait_steps), inputs, outputs, arrivals, clients,
            client_s, float(policy.frontend_s), ttft, tpot, finished,
        )  # fmt: skip
        return ttft + table.first_token_overhead_s + policy.first_token_steps * tpot, tpot, finished, outputs
    replay(
        table.tokens, table.mixed_s, table.sequences, table.graph_s, table.context, table.decode_attention_s, table.chunk,
        table.past, table.prefill_attention_s, host, table.overlap, policy.preempts, MIXING[policy.mixing],
        float(policy.budget_tokens),
        float(policy.max_sequences * policy.ranks), float(policy.kv_tokens * policy.ranks), float(policy.ranks),
        float(policy.tokens_a_step), float(policy.decode_tokens), float(policy.look_steps), float(policy.wait_steps),
        float(policy.gather_steps), float(policy.gather_tokens), float(policy.cold_s), inputs, outputs, arrivals, clients,
        client_s, float(policy.frontend_s), ttft, tpot, finished,
    )  # fmt: skip
    return ttft + table.first_token_overhead_s + policy.first_token_steps * tpot, tpot, finished, outputs


def _summary(run: tuple[Floats, ...], weights: Floats, count: int) -> tuple[float, ...]:
    ttft, tpot, finished, outputs = run
    total = weights.sum()
    if total == count:  # every request stands for itself
        middle = (count + 1) // 2 - 1
        median = float(np.partition(ttft, middle)[middle])
    else:
        order = np.argsort(ttft)
        middle = int(np.searchsorted(np.cumsum(weights[order]), 0.5 * total))
        median = float(ttft[order[min(middle, count - 1)]])
    upper, lower = count // 2, (count - 1) // 2
    halves = np.partition(tpot, (lower, upper) if lower < upper else upper)
    span = float(finished.max()) or 1.0
    rate = count / span
    return (
        float((ttft * weights).sum() / total), float((tpot * weights).sum() / total), median,
        0.5 * float(halves[lower] + halves[upper]), rate, rate * float(outputs.sum()) / count,
    )  # fmt: skip


def as_dict(steady: Steady) -> dict[str, Any]:
    """Plain lists, for printing."""
    return {name: np.asarray(getattr(steady, name)).tolist() for name in Steady.__dataclass_fields__}
