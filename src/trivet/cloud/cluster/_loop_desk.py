# mypy: disable-error-code="no-untyped-def,no-untyped-call,misc"
"""What the loop over time keeps: jobs, the scheduler's desk, the site; its heap of events and its accounts.

State lives in few structured arrays: passing many to a compiled function costs more than its work.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from trivet.cloud.cluster._loop_jit import jit

FUTURE, QUEUED, RUNNING, DONE = range(4)
FIFO, FAIR, DRF = range(3)
CHIP, HOST, RACK, SOFTWARE, SWITCH = range(5)  # kinds of failure
DOWN = 1 << 40  # CPU taken away from a node that is down, so that nothing fits
RESERVATION_S = 300.0  # a reservation of backfill is computed anew after this long
REPAIR, SPARE = -2, -3  # versions that mark events of the heap that are not departures
NORMAL, HELD, SERVING = range(3)  # what a node is as a spare

JOB = np.dtype([
    # asked, never changed
    ("arrival", "f8"), ("work", "f8"),  # seconds at full speed; inf = a service
    ("workers", "i8"), ("cls", "i8"), ("tenant", "i8"), ("priority", "i8"),
    ("level", "i8"),  # 0 anywhere, 1 one rack, 2 one domain, 3 one pod
    ("checkpoint", "f8"),  # seconds between checkpoints, 0 = starts again from nothing
    ("kind", "i8"), ("shape", "i8"),  # what fails for one of a shape fails for all
    ("first", "i8"), ("milli", "i8"),  # place of its workers; thousandths of all of them
    # what became of it
    ("status", "i8"), ("remaining", "f8"), ("started", "f8"), ("version", "i8"), ("next", "i8"), ("first_start", "f8"),
    ("finish", "f8"), ("restarts", "i8"), ("evictions", "i8"), ("lost", "f8"), ("chip_seconds", "f8"), ("borrowed", "i8"),
    ("at", "i8"), ("model", "i8"),
])  # fmt: skip
EVENT = np.dtype([("t", "f8"), ("j", "i8"), ("v", "i8")])
FAULT = np.dtype([("t", "f8"), ("kind", "i8"), ("at", "i8"), ("device", "i8"), ("repair", "f8")])
RULES = np.dtype([
    ("order", "i8"), ("backfill", "i8"), ("depth", "i8"), ("preempt", "i8"), ("quota", "i8"), ("borrow", "i8"),
    ("compact", "i8"), ("restart_s", "f8"), ("spare_s", "f8"),
])  # fmt: skip
DESK = np.dtype([
    ("heap", "i8"), ("running", "i8"), ("freed", "i8"), ("arrived", "i8"), ("failed", "i8"), ("queued", "i8"),
    ("spares", "i8"), ("spares_out", "i8"), ("clock", "f8"), ("queued_milli", "f8"), ("down_milli", "f8"),
    ("shadow_t", "f8"), ("shadow_milli", "f8"), ("shadow_of", "i8"), ("shadow_made", "f8"),  # reservation of a blocked job
])  # fmt: skip


class Work(NamedTuple):
    """Jobs and where their workers are."""

    jobs: Any  # [J] of JOB, by arrival
    node: Any  # [workers]
    mask: Any  # [workers] devices
    running: Any  # [J] list of running jobs, as long as desk.running


class Desk(NamedTuple):
    """The scheduler's own state and the rules it follows."""

    rules: Any  # [1] of RULES
    now: Any  # [1] of DESK
    heap: Any  # of EVENT
    queue: Any  # [queues, 2] first job, cursor
    tried: Any  # [shapes, 2] freed counter at which a start, an eviction last failed
    usage: Any  # [tenants, models + 2] thousandths by model, CPU, memory
    held: Any  # [kinds] thousandths
    integral: Any  # [hours, kinds + 3] thousandth-seconds held by kind, queued, down; running job-seconds


class Site(NamedTuple):
    """Groups, quotas, capacities, failures, what is out of service."""

    group: Any  # [4, N] group of each node by level
    quota: Any  # [tenants, models + 1] thousandths; last: 1000 x weight
    capacity: Any  # [models + 2]
    faults: Any  # [F] of FAULT, by time
    flags: Any  # [N, 2] reasons to be down, spare
    device_down: Any  # [N, D]
    counts: Any  # [5] failures that hit, by kind


@jit
def push(desk, t, j, v):
    """Add an event to the binary heap; equal times go by number."""
    heap, now = desk.heap, desk.now
    k = now[0].heap
    now[0].heap = k + 1
    while k > 0:
        p = (k - 1) >> 1
        if heap[p].t < t or (heap[p].t == t and heap[p].j <= j):
            break
        heap[k].t, heap[k].j, heap[k].v = heap[p].t, heap[p].j, heap[p].v
        k = p
    heap[k].t, heap[k].j, heap[k].v = t, j, v


@jit
def pop(desk):
    heap, now = desk.heap, desk.now
    j0, v0 = heap[0].j, heap[0].v
    n = now[0].heap - 1
    now[0].heap = n
    lt, lj, lv = heap[n].t, heap[n].j, heap[n].v
    k = 0
    while True:
        c = 2 * k + 1
        if c >= n:
            break
        if c + 1 < n and (heap[c + 1].t < heap[c].t or (heap[c + 1].t == heap[c].t and heap[c + 1].j < heap[c].j)):
            c += 1
        if lt < heap[c].t or (lt == heap[c].t and lj <= heap[c].j):
            break
        heap[k].t, heap[k].j, heap[k].v = heap[c].t, heap[c].j, heap[c].v
        k = c
    heap[k].t, heap[k].j, heap[k].v = lt, lj, lv
    return j0, v0


@jit
def account(desk, until):
    """Add what is held, queued and down to the hours since the last moment."""
    now, held, integral = desk.now, desk.held, desk.integral
    t, kinds = now[0].clock, len(held)
    while t < until:
        h = int(t // 3600.0)
        end = min(until, (h + 1) * 3600.0)
        if h < integral.shape[0]:
            dt = end - t
            for k in range(kinds):
                integral[h, k] += held[k] * dt
            integral[h, kinds] += now[0].queued_milli * dt
            integral[h, kinds + 1] += now[0].down_milli * dt
            integral[h, kinds + 2] += now[0].running * dt
        t = end
    now[0].clock = until
