# mypy: disable-error-code="no-untyped-def,no-untyped-call,misc"
"""The hot loop of a cluster over time: arrivals, departures, queues, preemption, failures and repair.

Events are handled in the order of time; at one moment repairs and departures come before failures, failures before
arrivals. After resources came free the queues are walked once; a shape of job that did not fit is not tried again before
more came free. State lives in few structured arrays: passing many to a compiled function costs more than its work.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import njit

from trivet.cloud.cluster._loop_place import FGD, FGDCPU, RANDOM, WHOLE, _intn, change, pick_devices, restate, scan

FUTURE, QUEUED, RUNNING, DONE = range(4)
FIFO, FAIR, DRF = range(3)
CHIP, HOST, RACK, SOFTWARE = range(4)  # kinds of failure
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
    counts: Any  # [4] failures that hit, by kind


@njit(cache=True)
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


@njit(cache=True)
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


@njit(cache=True)
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


@njit(cache=True, inline="always")
def room_of(i, ask, allowed, most, info, left):
    """How many workers that ask ``ask``, at most ``most``, node ``i`` has room for; none on a node that is down."""
    room = most
    if ask.cpu > 0:
        room = min(room, info[i].cpu // ask.cpu)
    elif info[i].cpu < 0:
        room = 0
    if ask.mem > 0:
        room = min(room, info[i].mem // ask.mem)
    if ask.num > 0 and room > 0:
        if not allowed[info[i].model]:
            room = 0
        elif ask.milli == WHOLE:
            room = min(room, info[i].whole // ask.num)
        else:
            slots = 0
            for d in range(info[i].chips):
                slots += left[i, d] // ask.milli
            room = min(room, slots)
    return max(room, 0)


@njit(cache=True)
def fill_room(c, most, info, left, classes, cap):
    """``room_of`` every node for a worker of class ``c``."""
    ask, allowed = classes.info[c], classes.allowed[c]
    for i in range(len(info)):
        cap[i] = room_of(i, ask, allowed, most, info, left)


@njit(cache=True)
def give_back(i, mask, ask, info, left):
    """What a worker holds, added to copies of the free resources."""
    info[i].cpu += ask.cpu
    info[i].mem += ask.mem
    for d in range(info[i].chips):
        if (mask >> np.uint64(d)) & np.uint64(1):
            left[i, d] += ask.milli
            info[i].whole += left[i, d] == WHOLE


@njit(cache=True)
def capacities(j, within, cap, work, nodes, classes, desk, site):
    """Workers of job ``j`` that fit on each node now; ``within``: only on models where its tenant keeps its quota."""
    job = work.jobs[j]
    info = nodes.info
    fill_room(job.cls, job.workers, info, nodes.left, classes, cap)
    if within and job.milli > 0:
        usage, quota = desk.usage[job.tenant], site.quota[job.tenant]
        for i in range(len(cap)):
            if usage[info[i].model] + job.milli > quota[info[i].model]:
                cap[i] = 0


@njit(cache=True)
def find_group(j, cap, compact, work, site, members):
    """Nodes to place job ``j`` on: the tightest group of its level that holds it, as a list; its length, 0 = none.

    Without a need for a level a gang prefers one rack, then one pod, then anywhere (``compact``).
    """
    need, level, group = work.jobs[j].workers, work.jobs[j].level, site.group
    first, last = level, level
    if level == 0 and need > 1 and compact:
        first, last = 1, 3
    if first > 0:
        for lv in range(first, last + 1):
            if level == 0 and lv == 2:
                continue
            sums = np.zeros(group[lv].max() + 1, np.int64)
            for i in range(len(cap)):
                sums[group[lv, i]] += cap[i]
            best = -1
            for g in range(len(sums)):
                if sums[g] >= need and (best < 0 or sums[g] < sums[best]):
                    best = g
            if best >= 0:
                k = 0
                for i in range(len(cap)):
                    if cap[i] > 0 and group[lv, i] == best:
                        members[k] = i
                        k += 1
                return k
        if level > 0:
            return 0
    k, total = 0, 0
    for i in range(len(cap)):
        if cap[i] > 0:
            members[k] = i
            k += 1
            total += cap[i]
    return k if total >= need else 0


@njit(cache=True)
def place_job(j, code, price, members, count, work, nodes, classes, typ, store, scratch, rng, feasible):
    """Place all workers of job ``j`` on the listed nodes; the caller knows that a gang fits. False: a lone one does not."""
    c, w0, workers = work.jobs[j].cls, work.jobs[j].first, work.jobs[j].workers
    for w in range(workers):
        best, found = scan(code, c, members, count, price, nodes, classes, typ, store, scratch, feasible)
        if found == 0:
            return False
        if code == RANDOM and found > 1:
            best = feasible[_intn(rng, found)]
        mask = pick_devices(code, best, c, nodes, classes, typ, store, scratch, rng)
        change(best, c, mask, -1, nodes, classes)
        if code == FGD or code == FGDCPU:
            restate(best, nodes, typ, store, scratch)
        work.node[w0 + w], work.mask[w0 + w] = best, mask
    return True


@njit(cache=True)
def book(j, sign, work, desk, nodes, classes):
    """Count what a job holds for (+1) or no longer for (-1) its tenant and kind."""
    jobs, usage, info = work.jobs, desk.usage, nodes.info
    ask, tenant, models = classes.info[jobs[j].cls], jobs[j].tenant, usage.shape[1] - 2
    for w in range(jobs[j].first, jobs[j].first + jobs[j].workers):
        usage[tenant, info[work.node[w]].model] += sign * ask.milli * ask.num
    usage[tenant, models] += sign * ask.cpu * jobs[j].workers
    usage[tenant, models + 1] += sign * ask.mem * jobs[j].workers
    desk.held[jobs[j].kind] += sign * jobs[j].milli


@njit(cache=True)
def start(j, t, over, work, desk, nodes, classes):
    """Book a placed job as running."""
    book(j, 1, work, desk, nodes, classes)
    jobs, now = work.jobs, desk.now
    jobs[j].status = RUNNING
    jobs[j].started = t
    jobs[j].borrowed = over
    jobs[j].model = nodes.info[work.node[jobs[j].first]].model
    if jobs[j].first_start < 0:
        jobs[j].first_start = t
    jobs[j].at = now[0].running
    work.running[now[0].running] = j
    now[0].running += 1
    jobs[j].version += 1
    extra = desk.rules[0].restart_s if jobs[j].restarts + jobs[j].evictions > 0 else 0.0
    if jobs[j].remaining < np.inf:
        push(desk, t + extra + jobs[j].remaining, j, jobs[j].version)


@njit(cache=True)
def release(j, t, finished, code, work, desk, nodes, classes, typ, store, scratch):
    """Give back what job ``j`` holds; unless ``finished``, keep the work up to its last checkpoint and queue it."""
    jobs, now = work.jobs, desk.now
    for w in range(jobs[j].first, jobs[j].first + jobs[j].workers):
        change(work.node[w], jobs[j].cls, work.mask[w], 1, nodes, classes)
        if code == FGD or code == FGDCPU:
            restate(work.node[w], nodes, typ, store, scratch)
    book(j, -1, work, desk, nodes, classes)
    jobs[j].chip_seconds += jobs[j].milli * (t - jobs[j].started) / WHOLE
    last = work.running[now[0].running - 1]
    work.running[jobs[j].at] = last
    jobs[last].at = jobs[j].at
    now[0].running -= 1
    now[0].freed += 1
    jobs[j].version += 1
    if finished:
        jobs[j].status = DONE
        jobs[j].finish = t
        jobs[j].remaining = 0.0
        return
    extra = desk.rules[0].restart_s if jobs[j].restarts + jobs[j].evictions > 0 else 0.0
    done = max(t - jobs[j].started - extra, 0.0)
    kept = np.floor(done / jobs[j].checkpoint) * jobs[j].checkpoint if jobs[j].checkpoint > 0 else 0.0
    if jobs[j].remaining < np.inf:
        jobs[j].remaining -= kept
        jobs[j].lost += done - kept
    enqueue(j, work, desk)


@njit(cache=True)
def enqueue(j, work, desk):
    """Into its queue, by priority, then by number (arrival)."""
    jobs, queue, now = work.jobs, desk.queue, desk.now
    q = jobs[j].tenant if desk.rules[0].order != FIFO else 0
    p, before = queue[q, 0], -1
    while p >= 0 and (jobs[p].priority > jobs[j].priority or (jobs[p].priority == jobs[j].priority and p < j)):
        before, p = p, jobs[p].next
    jobs[j].next = p
    if before < 0:
        queue[q, 0] = j
    else:
        jobs[before].next = j
    jobs[j].status = QUEUED
    now[0].queued_milli += jobs[j].milli
    now[0].queued += 1


@njit(cache=True)
def unlink(j, before, work, desk):
    jobs, now = work.jobs, desk.now
    q = jobs[j].tenant if desk.rules[0].order != FIFO else 0
    if before < 0:
        desk.queue[q, 0] = jobs[j].next
    else:
        jobs[before].next = jobs[j].next
    jobs[j].next = -1
    now[0].queued_milli -= jobs[j].milli
    now[0].queued -= 1


@njit(cache=True)
def mark_victims(j, reclaim, work, desk, site, mark):
    """Mark the running jobs that may be evicted for job ``j``; how many."""
    jobs, usage, quota = work.jobs, desk.usage, site.quota
    count, tenant, priority = 0, jobs[j].tenant, jobs[j].priority
    for k in range(desk.now[0].running):
        r = work.running[k]
        if reclaim:
            t, m = jobs[r].tenant, jobs[r].model
            mark[k] = jobs[r].borrowed == 1 and t != tenant and usage[t, m] > quota[t, m]
        else:
            mark[k] = jobs[r].priority < priority
        count += mark[k]
    return count


@njit(cache=True)
def evict_for(j, t, reclaim, code, cap, members, work, desk, site, nodes, classes, typ, store, scratch):
    """Evict until job ``j`` fits: jobs of lower priority, or (``reclaim``) jobs on borrowed quota of other tenants.

    Of the groups of its level that would hold the job, the one where the least is evicted is freed, on as few nodes as
    needed; victims go lowest priority first, latest started first. Returns the number of nodes listed, 0 = impossible.
    """
    jobs, job = work.jobs, work.jobs[j]
    n, need, level = len(cap), job.workers, job.level
    mark = np.zeros(desk.now[0].running, np.bool_)
    if mark_victims(j, reclaim, work, desk, site, mark) == 0:
        return 0
    info, left, gain = nodes.info.copy(), nodes.left.copy(), np.zeros(n, np.int64)
    for k in range(len(mark)):
        if not mark[k]:
            continue
        r = work.running[k]
        ask = classes.info[jobs[r].cls]
        for w in range(jobs[r].first, jobs[r].first + jobs[r].workers):
            i, mask = work.node[w], work.mask[w]
            give_back(i, mask, ask, info, left)
            gain[i] += ask.milli * max(ask.num, 1)
    fill_room(job.cls, need, info, left, classes, cap)
    if reclaim:
        for i in range(n):
            if desk.usage[job.tenant, info[i].model] + job.milli > site.quota[job.tenant, info[i].model]:
                cap[i] = 0
    order = np.argsort(gain, kind="mergesort")
    group = site.group[level]
    got, cost = np.zeros(group.max() + 1, np.int64), np.zeros(group.max() + 1, np.int64)
    for k in range(n):
        i = order[k]
        if cap[i] > 0 and got[group[i]] < need:
            got[group[i]] += cap[i]
            cost[group[i]] += gain[i]
    best = -1
    for g in range(len(got)):
        if got[g] >= need and (best < 0 or cost[g] < cost[best]):
            best = g
    if best < 0:
        return 0
    count, total = 0, 0
    chosen = np.zeros(n, np.bool_)
    for k in range(n):
        i = order[k]
        if group[i] == best and cap[i] > 0 and total < need:
            chosen[i] = True
            members[count] = i
            count += 1
            total += cap[i]
    return clear_nodes(j, t, reclaim, code, cap, members, count, chosen, work, desk, site, nodes, classes, typ, store, scratch)


@njit(cache=True)
def clear_nodes(j, t, reclaim, code, cap, members, count, chosen, work, desk, site, nodes, classes, typ, store, scratch):
    """Evict from the chosen nodes, one job at a time, until job ``j`` fits on them."""
    jobs = work.jobs
    need, cls = jobs[j].workers, jobs[j].cls
    mark = np.zeros(desk.now[0].running, np.bool_)
    while True:
        fill_room(cls, need, nodes.info, nodes.left, classes, cap)
        have = 0
        for k in range(count):
            have += cap[members[k]]
        if have >= need:
            return count
        mark_victims(j, reclaim, work, desk, site, mark)
        worst = -1
        for k in range(desk.now[0].running):
            if not mark[k]:
                continue
            r = work.running[k]
            if worst >= 0 and (jobs[r].priority > jobs[worst].priority
                               or (jobs[r].priority == jobs[worst].priority and jobs[r].started <= jobs[worst].started)):  # fmt: skip
                continue
            for w in range(jobs[r].first, jobs[r].first + jobs[r].workers):
                if chosen[work.node[w]]:
                    worst = r
                    break
        if worst < 0:
            return 0
        release(worst, t, False, code, work, desk, nodes, classes, typ, store, scratch)
        jobs[worst].evictions += 1


@njit(cache=True)
def reserve(j, t, cap, work, desk, site, nodes, classes):
    """When the first blocked job could start, and what others may use until then and beyond (EASY backfill).

    Running jobs give back what they hold in the order of their ends until the job fits in a group of its level; what is
    then free beyond its need, in thousandths of chips that it accepts, others may hold longer.
    """
    jobs, job, now = work.jobs, work.jobs[j], desk.now
    info, left, group = nodes.info.copy(), nodes.left.copy(), site.group[job.level]
    ask, allowed, need = classes.info[job.cls], classes.allowed[job.cls], job.workers
    fill_room(job.cls, need, info, left, classes, cap)
    sums = np.zeros(group.max() + 1, np.int64)
    for i in range(len(cap)):
        sums[group[i]] += cap[i]
    n = now[0].running
    ends = np.empty(n, np.float64)
    for k in range(n):
        r = work.running[k]
        ends[k] = jobs[r].started + jobs[r].remaining
    order = np.argsort(ends, kind="mergesort")
    for k in range(n):
        r = work.running[order[k]]
        given = classes.info[jobs[r].cls]
        for w in range(jobs[r].first, jobs[r].first + jobs[r].workers):
            i = work.node[w]
            give_back(i, work.mask[w], given, info, left)
            room = room_of(i, ask, allowed, need, info, left)
            sums[group[i]] += room - cap[i]
            cap[i] = room
            if sums[group[i]] >= need:
                free = 0
                for e in range(len(info)):
                    if info[e].cpu >= 0 and (ask.num == 0 or allowed[info[e].model]):
                        for d in range(info[e].chips):
                            free += left[e, d]
                now[0].shadow_t = max(ends[order[k]], t)
                now[0].shadow_milli = float(free - job.milli)
                return
    now[0].shadow_t = np.inf
    now[0].shadow_milli = 0.0


@njit(cache=True)
def attempt(j, t, code, price, cap, members, feasible, work, desk, site, nodes, classes, typ, store, scratch, rng):
    """Try to start job ``j``: within its quota, on borrowed quota, or by eviction. True when it runs."""
    job, rules, tried = work.jobs[j], desk.rules[0], desk.tried
    shape = job.shape
    if tried[shape, 0] != desk.now[0].freed:
        if job.workers == 1 and job.level == 0 and rules.quota == 0:
            for i in range(len(cap)):
                members[i] = i
            if place_job(j, code, price, members, len(cap), work, nodes, classes, typ, store, scratch, rng, feasible):
                start(j, t, 0, work, desk, nodes, classes)
                return True
        else:
            for over in range(2):
                if over == 1 and (rules.quota == 0 or rules.borrow == 0):
                    break
                capacities(j, rules.quota > 0 and over == 0, cap, work, nodes, classes, desk, site)
                count = find_group(j, cap, rules.compact > 0, work, site, members)
                if count > 0:
                    place_job(j, code, price, members, count, work, nodes, classes, typ, store, scratch, rng, feasible)
                    start(j, t, over, work, desk, nodes, classes)
                    return True
        tried[shape, 0] = desk.now[0].freed
    if tried[shape, 1] == desk.now[0].freed:
        return False
    for way in range(2):
        if (way == 0 and rules.quota == 0) or (way == 1 and (rules.preempt == 0 or job.priority <= 0)):
            continue
        count = evict_for(j, t, way == 0, code, cap, members, work, desk, site, nodes, classes, typ, store, scratch)
        if count > 0:
            place_job(j, code, price, members, count, work, nodes, classes, typ, store, scratch, rng, feasible)
            start(j, t, 0, work, desk, nodes, classes)
            return True
    tried[shape, 1] = desk.now[0].freed
    return False


@njit(cache=True)
def next_queue(work, desk, site):
    """The queue whose turn it is: the highest priority waiting, then the least share per weight; -1 = all done.

    A share is the largest of the chips by type over what there is; under DRF CPU and memory count too.
    """
    queue, jobs, usage, capacity = desk.queue, work.jobs, desk.usage, site.capacity
    if len(queue) == 1:
        return 0 if queue[0, 1] >= 0 else -1
    columns = usage.shape[1] if desk.rules[0].order == DRF else usage.shape[1] - 2
    best, best_share, best_priority = -1, np.inf, 0
    for q in range(len(queue)):
        j = queue[q, 1]
        if j < 0:
            continue
        share = 0.0
        for m in range(columns):
            if capacity[m] > 0:
                share = max(share, usage[q, m] / capacity[m])
        share /= site.quota[q, -1]
        if best < 0 or jobs[j].priority > best_priority or (jobs[j].priority == best_priority and share < best_share):
            best, best_share, best_priority = q, share, jobs[j].priority
    return best


@njit(cache=True)
def walk(t, code, price, cap, members, feasible, work, desk, site, nodes, classes, typ, store, scratch, rng):
    """Walk the queues once, in order, starting what may start."""
    jobs, queue, now, rules = work.jobs, desk.queue, desk.now, desk.rules[0]
    before = np.full(len(queue), -1, np.int64)
    queue[:, 1] = queue[:, 0]
    blocked = False
    for _ in range(rules.depth):
        q = next_queue(work, desk, site)
        if q < 0:
            return
        j = queue[q, 1]
        # A reservation stands: go only if done before it, or within what it leaves. Higher priority has no such limit.
        late = t + jobs[j].remaining + rules.restart_s > now[0].shadow_t and jobs[j].milli > now[0].shadow_milli
        if blocked and (late or (desk.tried[jobs[j].shape, 0] == now[0].freed and desk.tried[jobs[j].shape, 1] == now[0].freed)):
            before[q], queue[q, 1] = j, jobs[j].next
            continue
        freed = now[0].freed
        if attempt(j, t, code, price, cap, members, feasible, work, desk, site, nodes, classes, typ, store, scratch, rng):
            if now[0].freed != freed:  # evictions put jobs into the queues: find the place before j again
                before[q] = -1
                p = queue[q, 0]
                while p != j:
                    before[q], p = p, jobs[p].next
            follow = jobs[j].next
            unlink(j, before[q], work, desk)
            queue[q, 1] = follow
            if now[0].freed != freed:
                return  # the queues changed: the caller walks again
            if blocked and late:
                now[0].shadow_milli -= jobs[j].milli
            continue
        if rules.backfill == 0:
            if len(queue) == 1:
                return
            queue[q, 1] = -1  # this tenant waits; others go on
            continue
        if not blocked:
            blocked = True
            # A reservation holds for a while: departures that it counted on do not change it.
            if now[0].shadow_of != j or t >= now[0].shadow_t or t > now[0].shadow_made + RESERVATION_S:
                reserve(j, t, cap, work, desk, site, nodes, classes)
                now[0].shadow_of = j
                now[0].shadow_made = t
        before[q], queue[q, 1] = j, jobs[j].next


@njit(cache=True)
def set_node(i, step, code, desk, site, nodes, typ, store, scratch):
    """One more (+1) or one less (-1) reason for node ``i`` to be down."""
    flags, info, now = site.flags, nodes.info, desk.now
    was = flags[i, 0]
    flags[i, 0] = was + step
    if was == 0 and step > 0:
        info[i].cpu -= DOWN
        now[0].down_milli += info[i].chips * WHOLE
    elif was == 1 and step < 0:
        info[i].cpu += DOWN
        now[0].down_milli -= info[i].chips * WHOLE
        now[0].freed += 1
    if code == FGD or code == FGDCPU:
        restate(i, nodes, typ, store, scratch)


@njit(cache=True)
def set_device(i, d, sign, code, desk, site, nodes, typ, store, scratch):
    """Take one whole free chip out of service (-1) or put it back (+1)."""
    info, left, now = nodes.info, nodes.left, desk.now
    site.device_down[i, d] = sign < 0
    left[i, d] += sign * WHOLE
    info[i].total += sign * WHOLE
    top, whole = 0, 0
    for e in range(info[i].chips):
        top = max(top, left[i, e])
        whole += left[i, e] == WHOLE
    info[i].top = top
    info[i].whole = whole
    now[0].down_milli -= sign * WHOLE
    if sign > 0:
        now[0].freed += 1
    if code == FGD or code == FGDCPU:
        restate(i, nodes, typ, store, scratch)


@njit(cache=True)
def kill(hit, devices, t, code, work, desk, nodes, classes, typ, store, scratch):
    """End the runs of all jobs with a worker on a node of ``hit`` that uses one of ``devices`` (0 = any)."""
    jobs, now, k = work.jobs, desk.now, 0
    while k < now[0].running:
        r = work.running[k]
        dead = False
        for w in range(jobs[r].first, jobs[r].first + jobs[r].workers):
            if hit[work.node[w]] and (devices == 0 or work.mask[w] & devices):
                dead = True
                break
        if dead:
            release(r, t, False, code, work, desk, nodes, classes, typ, store, scratch)
            jobs[r].restarts += 1
        else:
            k += 1


@njit(cache=True)
def fail(e, t, code, work, desk, site, nodes, classes, typ, store, scratch):
    """Handle failure ``e``: jobs end, hardware goes, a spare comes, the repair is set."""
    kind, at, device, repair = site.faults[e].kind, site.faults[e].at, site.faults[e].device, site.faults[e].repair
    flags, n = site.flags, len(nodes.info)
    hit = np.zeros(n, np.bool_)
    if kind == RACK:
        for i in range(n):
            hit[i] = site.group[1, i] == at
    elif flags[at, 0] > 0:
        return  # it is already out
    else:
        hit[at] = True
    if kind == CHIP:
        if device >= nodes.info[at].chips or site.device_down[at, device] > 0:
            return
        kill(hit, np.uint64(1) << np.uint64(device), t, code, work, desk, nodes, classes, typ, store, scratch)
        set_device(at, device, -1, code, desk, site, nodes, typ, store, scratch)
    else:
        kill(hit, np.uint64(0), t, code, work, desk, nodes, classes, typ, store, scratch)
        if kind != SOFTWARE:
            for i in range(n):
                if hit[i]:
                    set_node(i, 1, code, desk, site, nodes, typ, store, scratch)
    site.counts[kind] += 1
    if kind == HOST and desk.now[0].spares > 0:
        for i in range(n):
            if flags[i, 1] == HELD:
                flags[i, 1] = SERVING
                desk.now[0].spares -= 1
                desk.now[0].spares_out += 1
                push(desk, t + desk.rules[0].spare_s, i, SPARE)
                break
    if kind != SOFTWARE:
        push(desk, t + repair, e, REPAIR)


@njit(cache=True)
def repaired(e, code, desk, site, nodes, typ, store, scratch):
    """Back into service; a host whose stand-in serves becomes the spare instead."""
    kind, at, device = site.faults[e].kind, site.faults[e].at, site.faults[e].device
    if kind == CHIP:
        set_device(at, device, 1, code, desk, site, nodes, typ, store, scratch)
    elif kind == HOST and desk.now[0].spares_out > 0:
        site.flags[at, 1] = HELD
        desk.now[0].spares += 1
        desk.now[0].spares_out -= 1
    elif kind == HOST:
        set_node(at, -1, code, desk, site, nodes, typ, store, scratch)
    else:
        for i in range(len(nodes.info)):
            if site.group[1, i] == at:
                set_node(i, -1, code, desk, site, nodes, typ, store, scratch)


@njit(cache=True)
def advance(until, code, price, work, desk, site, nodes, classes, typ, store, scratch, rng):
    """Handle every event up to ``until`` (seconds); returns the number of events."""
    n, jobs, now, faults = len(nodes.info), work.jobs, desk.now, site.faults
    cap, members, feasible = np.empty(n, np.int64), np.empty(n, np.int64), np.empty(n, np.int64)
    events = 0
    while True:
        t_heap = desk.heap[0].t if now[0].heap > 0 else np.inf
        t_fail = faults[now[0].failed].t if now[0].failed < len(faults) else np.inf
        t_arrive = jobs[now[0].arrived].arrival if now[0].arrived < len(jobs) else np.inf
        t = min(t_heap, t_fail, t_arrive)
        if t > until or t == np.inf:
            break
        events += 1
        freed = now[0].freed
        account(desk, t)
        if t_heap <= t:
            j, v = pop(desk)
            if v == REPAIR:
                repaired(j, code, desk, site, nodes, typ, store, scratch)
            elif v == SPARE:
                set_node(j, -1, code, desk, site, nodes, typ, store, scratch)
            elif jobs[j].version == v and jobs[j].status == RUNNING:
                release(j, t, True, code, work, desk, nodes, classes, typ, store, scratch)
        elif t_fail <= t:
            now[0].failed += 1
            fail(now[0].failed - 1, t, code, work, desk, site, nodes, classes, typ, store, scratch)
        else:
            j = now[0].arrived
            now[0].arrived += 1
            enqueue(j, work, desk)
            shape = jobs[j].shape
            if desk.tried[shape, 0] == now[0].freed and desk.tried[shape, 1] == now[0].freed:
                continue  # its like did not fit, and nothing came free since
            freed = -1
        if freed != now[0].freed:
            for _ in range(64):
                if now[0].queued == 0:
                    break
                mark = now[0].freed
                walk(t, code, price, cap, members, feasible, work, desk, site, nodes, classes, typ, store, scratch, rng)
                if now[0].freed == mark:
                    break
    account(desk, until)
    return events
