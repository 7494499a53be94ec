"""The simulator's memory: which column means what, and the arrays that a run carries from block to block.

Times are int64 picoseconds, tokens and blocks whole numbers. Context is counted in *units*: one token is ``UNIT``
units (1, or 16 where speculative decoding advances by a fraction of a token a step), so that sums stay exact.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
INF = 2**62
PS = 10**12

# --- one row a request in flight -------------------------------------------------------------------------------
(
    S_IN, S_OUT, S_GEN, S_CTX, S_CHUNK, S_NEXT, S_PREV, S_PHASE, S_STEP0, S_FIRST, S_SCHED, S_ARR, S_ID, S_BLOCKS,
    S_READY, S_PREEMPT, S_HIT, S_REP, S_TRIES, S_PRIO, S_FLAG, S_GHOST, S_GHOST_FULL, S_GHOST_BLOCKS, S_HASH,
    S_HASHES, S_NREF, S_PREFILL_REP, S_RESERVED, S_DECODING, S_SOURCE, S_ADAPTER,
) = range(32)  # fmt: skip
SLOT_COLUMNS = 32
S_IMAGE = SLOT_COLUMNS  # only where there are images: rows are wider then
IMAGE_SLOT_COLUMNS = 40

# S_FLAG values: how a waiting request enters a replica; and of a slot left behind in the prefill pool: its KV is on its
# way and its seat still held, or only its blocks are, or the KV has arrived before the seat came free
FRESH, PREFILLED, LOADED, BOUNCED, SENDING, PARKED, LANDED = range(7)

# --- one row a replica -----------------------------------------------------------------------------------------
(
    R_END, R_STATE, R_STEPS, R_BATCH, R_CONTEXT, R_STEP, R_ADVANCE, R_FREE, R_RUNNING, R_WAITING, R_RUN_HEAD,
    R_RUN_TAIL, R_NEW_HEAD, R_WAIT_HEAD, R_WAIT_TAIL, R_START, R_D0, R_DS, R_PREFILL_TOKENS, R_STALL, R_HEAP,
    R_QUEUE_HEAD, R_QUEUE_TAIL, R_HOLES, R_HELD_TAIL, R_HELD_RUNS, R_TABLE, R_BLOCKS, R_MAX_SEQS, R_BUDGET,
    R_ROLE, R_UP, R_MODE, R_RESERVE, R_GAIN, R_UNIT, R_BLOCK, R_DECODE_TOKENS, R_ASYNC, R_PREFIX, R_OUTSTANDING,
    R_BACKLOG, R_LOAD_TOKENS, R_BUSY, R_MIXED_BUSY, R_DONE_STEPS, R_DECODED, R_PREFILLED, R_FINISHED, R_EVICTABLE,
    R_LRU, R_SINCE, R_UP_TIME, R_PREFILL_PS, R_TAKEN, R_CHANNEL, R_SWAP, R_FIRST_OVERHEAD, R_KV_TIME,
    R_RESERVED, R_PAUSE, R_HOST,
) = range(62)  # fmt: skip
REPLICA_COLUMNS = 64

IDLE, DECODE, MIXED, WAKE = 0, 1, 2, 3
# R_UP
OFF, ON, DRAINING, DOWN, STARTING = range(5)
ROLE_BOTH, ROLE_PREFILL, ROLE_DECODE = 0, 1, 2
MODE_MIXED, MODE_PREFILL_FIRST = 0, 1

# --- counters of the run ---------------------------------------------------------------------------------------
(
    G_NEXT, G_NOW, G_SLOT_FREE, G_FREE_SLOTS, G_PENDING, G_OUT, G_IN_FLIGHT, G_MAX_CONCURRENCY, G_ROUTER, G_TURN, G_RANDOM,
    G_FAULT, G_ARRIVED, G_BUCKET, G_EVENTS, G_PREEMPTIONS, G_REJECTED, G_FAILED, G_RETRIES, G_MAX_RETRIES,
    G_RETRY_DELAY, G_MAX_QUEUE, G_LEAVES, G_TRANSFER_BASE, G_TRANSFER_TOKEN, G_POOLS, G_SCALE_EVERY, G_SCALE_TARGET,
    G_SCALE_MIN, G_SCALE_MAX, G_COLD_START, G_SCALE_NEXT, G_ACTIVE, G_PRIORITIES, G_HIT_TOKENS, G_PROMPT_TOKENS,
    G_STARTING, G_TRANSFERS, G_LOADED_TOKENS, G_SLO_TTFT, G_HASH_BLOCK,
    G_TURN2, G_SERIAL, G_WATCHED, G_STEP_TIME, G_STEP_TOP,
) = range(46)  # fmt: skip
RUN_COLUMNS = 48

# --- one row a finished request --------------------------------------------------------------------------------
(
    O_ID, O_ARRIVAL, O_SCHEDULED, O_FIRST, O_LAST, O_INPUT, O_OUTPUT, O_HIT, O_PREEMPTIONS, O_REPLICA, O_STATUS,
    O_TRIES, O_PREFILL_REPLICA,
) = range(13)  # fmt: skip
OUT_COLUMNS = 13
DONE, REJECTED, FAILED = 0, 1, 2

# --- one row a time bucket -------------------------------------------------------------------------------------
(T_STEPS, T_BUSY, T_DECODED, T_PREFILLED, T_BATCH_TIME, T_KV_TIME, T_QUEUE_TIME, T_ARRIVED, T_FINISHED) = range(9)
SERIES_COLUMNS = 10

# pending events: kinds
P_READY, P_RELEASE, P_SEND, P_RETRY, P_UP, P_LANDED = range(6)
# routers, in the order of ``router.ROUTERS``
ROUND_ROBIN, LEAST_OUTSTANDING, POWER_OF_TWO, KV_LOAD, PREFIX_AWARE, SLO_AWARE = range(6)

# why the loop came back
LOOP_DONE, NEED_SLOTS, NEED_OUTPUT = 0, 1, 2

MAX_HOLES = 128
ITL_BINS = 2048
ITL_SHIFT = 52 - 6  # 64 bins an octave
ITL_OFFSET = int(np.float64(1e6).view(np.int64)) >> ITL_SHIFT  # the first bin holds 1 us


def itl_edges_s() -> NDArray[np.float64]:
    """Lower edges of the bins of inter-token gaps, in seconds."""
    bits = (np.arange(ITL_BINS + 1, dtype=np.int64) + ITL_OFFSET) << ITL_SHIFT
    return bits.view(np.float64) / PS


PRIORITIES = 4
LEVELS = PRIORITIES + 1  # queues of a replica: first the requests that hold blocks already


class State(NamedTuple):
    """All that changes while the clock runs."""

    run: Array  # [RUN_COLUMNS]
    slots: Array  # [capacity, SLOT_COLUMNS]
    replicas: Array  # [R, REPLICA_COLUMNS]
    heap: Array  # [R, max sequences] finish step << 24 | slot
    phases: Array  # [R, block units] decode sequences by context phase
    holes: Array  # [R, MAX_HOLES, 2] cached blocks taken back out of the free queue: start, length
    event_key: Array  # [leaves] end of the planned steps
    event_tree: Array  # [2 leaves] winner tree over event_key
    load_key: Array  # [leaves] what the router compares, first pool
    load_tree: Array
    load2_key: Array  # the same for the decode pool
    load2_tree: Array
    pending: Array  # [capacity, 4] time, kind, slot or request, serial number: a binary heap
    out: Array  # [capacity, OUT_COLUMNS]
    series: Array  # [buckets, SERIES_COLUMNS]
    itl: Array  # [ITL_BINS] inter-token gaps, log bins from 1 us
    end: Array  # [requests] end of each request where sessions need it, else [0]
    child: Array  # [requests, 2] first waiting follower, next sibling
    waiting: Array  # [R, LEVELS, 2] head and tail of each queue
    lora: Any = None  # adapters: see ``_loop_lora``; None = a run without any
    images: Any = None  # see ``_loop_images``; None = a run without any
    links: Any = None  # outages of links: see ``_loop_links``; None = a run without any
    group: Any = None  # ranks in lock-step: see ``_loop_group``; None = every replica steps alone
    alone: Any = 1  # None where there are groups


class Arrivals(NamedTuple):
    """One block of traffic, in picoseconds and tokens."""

    time: Array  # int64 [n]
    inputs: Array  # int32 [n]
    outputs: Array  # int32 [n]
    priority: Array  # int32 [n] or [0]
    previous: Array  # int64 [n] or [0]
    think: Array  # int64 [n] or [0]
    target: Array  # int32 [n] or [0]: replica chosen outside, -1 = by the router
    hash_offsets: Array  # int64 [n + 1] or [0]
    hash_ids: Array  # int64
    first_id: int
    adapter: Array  # int32 [n] or [0]
    images: Array  # int32 [n] or [0]: tokens of the prompt's image


def new_state(replicas: int, max_seqs: int, block_units: int, *, slots: int, out: int, sessions: int) -> State:
    """Empty arrays for ``replicas`` replicas; the caller fills the rows of ``replicas``."""
    leaves = 1
    while leaves < replicas:
        leaves *= 2
    run = np.zeros(RUN_COLUMNS, np.int64)
    run[G_SLOT_FREE] = -1
    run[G_LEAVES] = leaves
    run[G_RANDOM] = 88172645463325252
    rows = np.zeros((replicas, REPLICA_COLUMNS), np.int64)
    rows[:, [R_RUN_HEAD, R_RUN_TAIL, R_NEW_HEAD, R_WAIT_HEAD, R_WAIT_TAIL, R_LRU]] = -1
    tree = np.zeros(2 * leaves, np.int64)
    tree[leaves:] = np.arange(leaves)
    level = leaves // 2
    while level:
        tree[level : 2 * level] = tree[2 * level : 4 * level : 2]
        level //= 2
    return State(
        run=run,
        slots=np.zeros((slots, SLOT_COLUMNS), np.int64),
        replicas=rows,
        heap=np.zeros((replicas, max_seqs + 1), np.int64),
        phases=np.zeros((replicas, block_units), np.int64),
        holes=np.zeros((replicas, MAX_HOLES, 2), np.int64),
        event_key=np.full(leaves, INF, np.int64),
        event_tree=tree.copy(),
        load_key=np.full(leaves, INF, np.int64),
        load_tree=tree.copy(),
        load2_key=np.full(leaves, INF, np.int64),
        load2_tree=tree.copy(),
        pending=np.zeros((1024, 4), np.int64),
        out=np.zeros((out, OUT_COLUMNS), np.int64),
        series=np.zeros((2048, SERIES_COLUMNS), np.int64),
        itl=np.zeros(ITL_BINS, np.int64),
        end=np.full(sessions, -1, np.int64),
        child=np.full((sessions, 2), -1, np.int64),
        waiting=np.full((replicas, LEVELS, 2), -1, np.int64),
    )
