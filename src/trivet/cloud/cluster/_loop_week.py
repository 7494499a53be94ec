# mypy: disable-error-code="no-untyped-def,no-untyped-call,misc"
"""The hot loop of a cluster over time: arrivals, departures, queues, preemption, failures and repair.

Events are handled in the order of time; at one moment repairs and departures come before failures, failures before
arrivals. After resources came free the queue is walked once; a shape of job that did not fit is not tried again before
more came free.
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


class Jobs(NamedTuple):
    """What jobs ask [J], sorted by arrival. Never changed."""

    arrival: Any
    work: Any  # seconds at full speed; inf = a service
    workers: Any
    cls: Any
    tenant: Any
    priority: Any
    level: Any  # 0 anywhere, 1 one rack, 2 one domain, 3 one pod
    checkpoint: Any  # seconds between checkpoints, 0 = starts again from nothing
    kind: Any  # for accounting
    shape: Any  # jobs of one class, size, level and tenant group: what fails for one fails for all
    first: Any  # offset of its workers in the placement arrays


class Runs(NamedTuple):
    """What became of the jobs [J] and where their workers are [W]."""

    status: Any
    remaining: Any
    started: Any
    version: Any
    next: Any  # queue links
    first_start: Any
    finish: Any
    restarts: Any  # by failure
    evictions: Any
    lost: Any  # seconds of work done twice
    chip_seconds: Any  # held
    borrowed: Any
    node: Any  # [W]
    mask: Any  # [W]
    running: Any  # list of running jobs
    at: Any  # place in that list
    model: Any  # model of the first worker


class Desk(NamedTuple):
    """The scheduler's own state."""

    heap_t: Any
    heap_j: Any
    heap_v: Any
    head: Any  # first queued job by queue
    cursor: Any
    tried: Any  # [shapes] freed counter at which the shape last failed
    tried_evict: Any
    shadow: Any  # [0] time, [1] spare milli, [2] for job, [3] counter
    count: Any  # [0] heap, [1] running, [2] freed counter, [3] next arrival, [4] next failure, [5] queued, [6] spares left, [7] in service
    usage: Any  # [tenants, models] thousandths held
    use_cpu: Any  # [tenants]
    use_mem: Any
    held: Any  # [kinds] thousandths held now
    clock: Any  # [0] last accounted time
    integral: Any  # [hours, kinds + 4]: thousandth-seconds held by kind; queued, down, running job-seconds, tries


class Site(NamedTuple):
    """What does not change: groups, quotas, capacities, failures, options."""

    group: Any  # [4, N] group of each node by level
    groups: Any  # [4] number of groups
    quota: Any  # [tenants, models]
    weight: Any  # [tenants]
    capacity: Any  # [models] thousandths, then CPU, then memory
    fail_t: Any
    fail_kind: Any
    fail_at: Any  # node, or rack
    fail_device: Any
    fail_repair: Any
    down: Any  # [N] nesting of reasons to be down
    device_down: Any  # [N, D]
    spare: Any  # [N] 1 = held back
    options: Any  # see ``OPTIONS``


OPTIONS = ("order", "backfill", "depth", "preempt", "quota", "borrow", "compact", "restart_s", "spare_s")
ORDER, BACKFILL, DEPTH, PREEMPT, QUOTA, BORROW, COMPACT, RESTART, SPARE_S = range(9)


@njit(cache=True)
def push(desk, t, j, v):
    """Add an event to the binary heap; equal times go by job number."""
    k = desk.count[0]
    desk.count[0] = k + 1
    while k > 0:
        p = (k - 1) >> 1
        if desk.heap_t[p] < t or (desk.heap_t[p] == t and desk.heap_j[p] <= j):
            break
        desk.heap_t[k], desk.heap_j[k], desk.heap_v[k] = desk.heap_t[p], desk.heap_j[p], desk.heap_v[p]
        k = p
    desk.heap_t[k], desk.heap_j[k], desk.heap_v[k] = t, j, v


@njit(cache=True)
def pop(desk):
    t, j, v = desk.heap_t[0], desk.heap_j[0], desk.heap_v[0]
    n = desk.count[0] - 1
    desk.count[0] = n
    lt, lj, lv = desk.heap_t[n], desk.heap_j[n], desk.heap_v[n]
    k = 0
    while True:
        c = 2 * k + 1
        if c >= n:
            break
        if c + 1 < n and (desk.heap_t[c + 1] < desk.heap_t[c] or (desk.heap_t[c + 1] == desk.heap_t[c] and desk.heap_j[c + 1] < desk.heap_j[c])):
            c += 1
        if lt < desk.heap_t[c] or (lt == desk.heap_t[c] and lj <= desk.heap_j[c]):
            break
        desk.heap_t[k], desk.heap_j[k], desk.heap_v[k] = desk.heap_t[c], desk.heap_j[c], desk.heap_v[c]
        k = c
    if n > 0:
        desk.heap_t[k], desk.heap_j[k], desk.heap_v[k] = lt, lj, lv
    return t, j, v


@njit(cache=True)
def account(desk, site, nodes, now):
    """Add what is held, queued and down to the hours since the last moment."""
    t = desk.clock[0]
    kinds = len(desk.held)
    hours = desk.integral.shape[0]
    while t < now:
        h = int(t // 3600.0)
        end = min(now, (h + 1) * 3600.0)
        if h < hours:
            dt = end - t
            for k in range(kinds):
                desk.integral[h, k] += desk.held[k] * dt
            desk.integral[h, kinds] += desk.clock[1] * dt  # thousandths queued
            desk.integral[h, kinds + 1] += desk.clock[2] * dt  # thousandths down
            desk.integral[h, kinds + 2] += desk.count[1] * dt
        t = end
    desk.clock[0] = now


@njit(cache=True)
def room(i, c, cpu, mem, left, whole, nodes, classes):
    """How many tasks of class ``c`` fit on node ``i`` with these free resources."""
    milli, num = classes.milli[c], classes.num[c]
    most = 1 << 30
    if classes.cpu[c] > 0:
        most = min(most, cpu // classes.cpu[c])
    if classes.mem[c] > 0:
        most = min(most, mem // classes.mem[c])
    if num > 0:
        if not classes.allowed[c, nodes.model[i]]:
            return 0
        if milli == WHOLE:
            most = min(most, whole // num)
        else:
            slots = 0
            for d in range(nodes.chips[i]):
                slots += left[d] // milli
            most = min(most, slots)
    return max(most, 0)


@njit(cache=True)
def place_job(j, code, price, members, member_count, jobs, runs, nodes, classes, typ, store, scratch, rng, feasible):
    """Place all workers of job ``j`` on the listed nodes; the caller knows that a gang fits. False: a lone one does not."""
    c, w0 = jobs.cls[j], jobs.first[j]
    for w in range(jobs.workers[j]):
        best, found = scan(code, c, members, member_count, price, nodes, classes, typ, store, scratch, feasible)
        if found == 0:
            return False
        if code == RANDOM and found > 1:
            best = feasible[_intn(rng, found)]
        mask = pick_devices(code, best, c, nodes, classes, typ, store, scratch, rng)
        change(best, c, mask, -1, nodes, classes)
        if code == FGD or code == FGDCPU:
            restate(best, nodes, typ, store, scratch)
        runs.node[w0 + w], runs.mask[w0 + w] = best, mask
    return True


@njit(cache=True)
def find_group(j, cap, jobs, site, members):
    """Nodes to place job ``j`` on: the tightest group of its level that holds it, as a list; its length, 0 = none.

    Without a need for a level a gang prefers one rack, then one pod, then anywhere (option ``compact``).
    """
    count_n, need, level = len(cap), jobs.workers[j], jobs.level[j]
    first, last = level, level
    if level == 0 and need > 1 and site.options[COMPACT] > 0:
        first, last = 1, 3
    if first > 0:
        for lv in range(first, last + 1):
            if level == 0 and lv == 2:
                continue
            sums = np.zeros(site.groups[lv], np.int64)
            for i in range(count_n):
                sums[site.group[lv, i]] += cap[i]
            best = -1
            for g in range(len(sums)):
                if sums[g] >= need and (best < 0 or sums[g] < sums[best]):
                    best = g
            if best >= 0:
                k = 0
                for i in range(count_n):
                    if cap[i] > 0 and site.group[lv, i] == best:
                        members[k] = i
                        k += 1
                return k
        if level > 0:
            return 0
    k, total = 0, 0
    for i in range(count_n):
        if cap[i] > 0:
            members[k] = i
            k += 1
            total += cap[i]
    return k if total >= need else 0


@njit(cache=True)
def capacities(j, within, cap, jobs, nodes, classes, desk, site):
    """Workers of job ``j`` that fit on each node now; ``within``: only on models where its tenant keeps its quota."""
    c, tenant = jobs.cls[j], jobs.tenant[j]
    ask = classes.milli[c] * classes.num[c] * jobs.workers[j]
    for i in range(len(cap)):
        m = nodes.model[i]
        if within and ask > 0 and desk.usage[tenant, m] + ask > site.quota[tenant, m]:
            cap[i] = 0
        else:
            cap[i] = min(room(i, c, nodes.cpu[i], nodes.mem[i], nodes.left[i], nodes.whole[i], nodes, classes), jobs.workers[j])


@njit(cache=True)
def start(j, now, over, jobs, runs, desk, site, nodes, classes):
    """Book a placed job as running."""
    c, tenant = jobs.cls[j], jobs.tenant[j]
    ask = classes.milli[c] * classes.num[c]
    for w in range(jobs.workers[j]):
        desk.usage[tenant, nodes.model[runs.node[jobs.first[j] + w]]] += ask
    desk.use_cpu[tenant] += classes.cpu[c] * jobs.workers[j]
    desk.use_mem[tenant] += classes.mem[c] * jobs.workers[j]
    desk.held[jobs.kind[j]] += ask * jobs.workers[j]
    runs.status[j], runs.started[j], runs.borrowed[j] = RUNNING, now, over
    runs.model[j] = nodes.model[runs.node[jobs.first[j]]]
    if runs.first_start[j] < 0:
        runs.first_start[j] = now
    runs.at[j] = desk.count[1]
    runs.running[desk.count[1]] = j
    desk.count[1] += 1
    runs.version[j] += 1
    extra = site.options[RESTART] if runs.restarts[j] + runs.evictions[j] > 0 else 0.0
    if runs.remaining[j] < np.inf:
        push(desk, now + extra + runs.remaining[j], j, runs.version[j])


@njit(cache=True)
def release(j, now, finished, jobs, runs, desk, site, nodes, classes, typ, store, scratch, code):
    """Give back what job ``j`` holds; unless ``finished``, keep the work up to its last checkpoint."""
    c, tenant = jobs.cls[j], jobs.tenant[j]
    ask = classes.milli[c] * classes.num[c]
    for w in range(jobs.workers[j]):
        i, mask = runs.node[jobs.first[j] + w], runs.mask[jobs.first[j] + w]
        change(i, c, mask, 1, nodes, classes)
        if code == FGD or code == FGDCPU:
            restate(i, nodes, typ, store, scratch)
        desk.usage[tenant, nodes.model[i]] -= ask
    desk.use_cpu[tenant] -= classes.cpu[c] * jobs.workers[j]
    desk.use_mem[tenant] -= classes.mem[c] * jobs.workers[j]
    desk.held[jobs.kind[j]] -= ask * jobs.workers[j]
    runs.chip_seconds[j] += ask * jobs.workers[j] * (now - runs.started[j]) / WHOLE
    last = runs.running[desk.count[1] - 1]
    runs.running[runs.at[j]] = last
    runs.at[last] = runs.at[j]
    desk.count[1] -= 1
    desk.count[2] += 1
    runs.version[j] += 1
    if finished:
        runs.status[j], runs.finish[j], runs.remaining[j] = DONE, now, 0.0
        return
    extra = site.options[RESTART] if runs.restarts[j] + runs.evictions[j] > 0 else 0.0
    done = max(now - runs.started[j] - extra, 0.0)
    kept = np.floor(done / jobs.checkpoint[j]) * jobs.checkpoint[j] if jobs.checkpoint[j] > 0 else 0.0
    if runs.remaining[j] < np.inf:
        runs.remaining[j] -= kept
        runs.lost[j] += done - kept
    enqueue(j, jobs, runs, desk, site, classes)


@njit(cache=True)
def enqueue(j, jobs, runs, desk, site, classes):
    """Into its queue, by priority, then by number (arrival)."""
    q = jobs.tenant[j] if site.options[ORDER] != FIFO else 0
    p, before = desk.head[q], -1
    while p >= 0 and (jobs.priority[p] > jobs.priority[j] or (jobs.priority[p] == jobs.priority[j] and p < j)):
        before, p = p, runs.next[p]
    runs.next[j] = p
    if before < 0:
        desk.head[q] = j
    else:
        runs.next[before] = j
    runs.status[j] = QUEUED
    c = jobs.cls[j]
    desk.clock[1] += classes.milli[c] * classes.num[c] * jobs.workers[j]
    desk.count[5] += 1


@njit(cache=True)
def unlink(j, before, jobs, runs, desk, site, classes):
    q = jobs.tenant[j] if site.options[ORDER] != FIFO else 0
    if before < 0:
        desk.head[q] = runs.next[j]
    else:
        runs.next[before] = runs.next[j]
    runs.next[j] = -1
    c = jobs.cls[j]
    desk.clock[1] -= classes.milli[c] * classes.num[c] * jobs.workers[j]
    desk.count[5] -= 1


@njit(cache=True)
def evict_for(j, now, reclaim, cap, members, jobs, runs, desk, site, nodes, classes, typ, store, scratch, code):
    """Evict until job ``j`` fits: jobs of lower priority, or (``reclaim``) jobs on borrowed quota of other tenants.

    Of the groups of its level that would hold the job, the one where the least is evicted is freed, on as few nodes as
    needed; victims go lowest priority first, latest started first. Returns the number of nodes listed, 0 = impossible.
    """
    n, c, need, level = len(cap), jobs.cls[j], jobs.workers[j], jobs.level[j]
    cpu, mem, left, whole = nodes.cpu.copy(), nodes.mem.copy(), nodes.left.copy(), nodes.whole.copy()
    gain, anyone = np.zeros(n, np.int64), False
    for k in range(desk.count[1]):
        r = runs.running[k]
        if not victim(r, j, reclaim, jobs, runs, desk, site, nodes):
            continue
        anyone = True
        rc = jobs.cls[r]
        for w in range(jobs.workers[r]):
            i, mask = runs.node[jobs.first[r] + w], runs.mask[jobs.first[r] + w]
            cpu[i] += classes.cpu[rc]
            mem[i] += classes.mem[rc]
            gain[i] += classes.milli[rc] * max(classes.num[rc], 1)
            for d in range(nodes.chips[i]):
                if (mask >> np.uint64(d)) & np.uint64(1):
                    left[i, d] += classes.milli[rc]
                    if left[i, d] == WHOLE:
                        whole[i] += 1
    if not anyone:
        return 0
    tenant = jobs.tenant[j]
    ask = classes.milli[c] * classes.num[c] * need
    for i in range(n):
        cap[i] = min(room(i, c, cpu[i], mem[i], left[i], whole[i], nodes, classes), need)
        if reclaim and desk.usage[tenant, nodes.model[i]] + ask > site.quota[tenant, nodes.model[i]]:
            cap[i] = 0
    order = np.argsort(gain, kind="mergesort")
    groups = site.groups[level] if level > 0 else 1
    got, cost = np.zeros(groups, np.int64), np.zeros(groups, np.int64)
    for k in range(n):
        i = order[k]
        g = site.group[level, i] if level > 0 else 0
        if cap[i] > 0 and got[g] < need:
            got[g] += cap[i]
            cost[g] += gain[i]
    best = -1
    for g in range(groups):
        if got[g] >= need and (best < 0 or cost[g] < cost[best]):
            best = g
    if best < 0:
        return 0
    count, sum_cap = 0, 0
    chosen = np.zeros(n, np.bool_)
    for k in range(n):
        i = order[k]
        g = site.group[level, i] if level > 0 else 0
        if g == best and cap[i] > 0 and sum_cap < need:
            chosen[i] = True
            members[count] = i
            count += 1
            sum_cap += cap[i]
    while True:
        have = 0
        for k in range(count):
            i = members[k]
            have += min(room(i, c, nodes.cpu[i], nodes.mem[i], nodes.left[i], nodes.whole[i], nodes, classes), need)
        if have >= need:
            return count
        worst = -1
        for k in range(desk.count[1]):
            r = runs.running[k]
            if not victim(r, j, reclaim, jobs, runs, desk, site, nodes):
                continue
            here = False
            for w in range(jobs.workers[r]):
                if chosen[runs.node[jobs.first[r] + w]]:
                    here = True
                    break
            if here and (worst < 0 or jobs.priority[r] < jobs.priority[worst]
                         or (jobs.priority[r] == jobs.priority[worst] and runs.started[r] > runs.started[worst])):  # fmt: skip
                worst = r
        if worst < 0:
            return 0
        release(worst, now, False, jobs, runs, desk, site, nodes, classes, typ, store, scratch, code)
        runs.evictions[worst] += 1


@njit(cache=True)
def victim(r, j, reclaim, jobs, runs, desk, site, nodes):
    """May job ``r`` be evicted for job ``j``?"""
    if not reclaim:
        return jobs.priority[r] < jobs.priority[j]
    t = jobs.tenant[r]
    return runs.borrowed[r] == 1 and t != jobs.tenant[j] and desk.usage[t, runs.model[r]] > site.quota[t, runs.model[r]]


@njit(cache=True)
def reserve(j, now, cap, jobs, runs, desk, site, nodes, classes):
    """When the first blocked job could start, and what others may use until then and beyond (EASY backfill).

    Counts thousandths of the models that the job accepts, in its best group where it needs one; a bound, since pieces
    that come free need not lie together.
    """
    c, level = jobs.cls[j], jobs.level[j]
    each = max(classes.milli[c] * classes.num[c], 1)
    need = each * jobs.workers[j]
    group, free = -1, 0
    capacities(j, False, cap, jobs, nodes, classes, desk, site)
    if level > 0:
        sums = np.zeros(site.groups[level], np.int64)
        for i in range(len(cap)):
            sums[site.group[level, i]] += cap[i]
        group = np.argmax(sums)
        free = sums[group] * each
    else:
        free = cap.sum() * each
    n = desk.count[1]
    ends = np.empty(n, np.float64)
    for k in range(n):
        r = runs.running[k]
        ends[k] = runs.started[r] + runs.remaining[r]
    order = np.argsort(ends, kind="mergesort")
    for k in range(n):
        r = runs.running[order[k]]
        i = runs.node[jobs.first[r]]
        if classes.num[c] > 0 and not classes.allowed[c, nodes.model[i]]:
            continue
        if level > 0 and site.group[level, i] != group:
            continue
        free += classes.milli[jobs.cls[r]] * classes.num[jobs.cls[r]] * jobs.workers[r]
        if free >= need:
            desk.shadow[0], desk.shadow[1] = max(ends[order[k]], now), float(free - need)
            return
    desk.shadow[0], desk.shadow[1] = np.inf, 0.0


@njit(cache=True)
def attempt(j, now, code, price, cap, members, feasible, jobs, runs, desk, site, nodes, classes, typ, store, scratch, rng):
    """Try to start job ``j``: within its quota, on borrowed quota, or by eviction. True when it runs."""
    options = site.options
    shape = jobs.shape[j]
    if desk.tried[shape] != desk.count[2]:
        if jobs.workers[j] == 1 and jobs.level[j] == 0 and options[QUOTA] == 0:
            for i in range(len(cap)):
                members[i] = i
            if place_job(j, code, price, members, len(cap), jobs, runs, nodes, classes, typ, store, scratch, rng, feasible):
                start(j, now, 0, jobs, runs, desk, site, nodes, classes)
                return True
        else:
            for over in range(2):
                if over == 1 and (options[QUOTA] == 0 or options[BORROW] == 0):
                    break
                capacities(j, options[QUOTA] > 0 and over == 0, cap, jobs, nodes, classes, desk, site)
                count = find_group(j, cap, jobs, site, members)
                if count > 0:
                    place_job(j, code, price, members, count, jobs, runs, nodes, classes, typ, store, scratch, rng, feasible)
                    start(j, now, over, jobs, runs, desk, site, nodes, classes)
                    return True
        desk.tried[shape] = desk.count[2]
    if desk.tried_evict[shape] == desk.count[2]:
        return False
    for way in range(2):
        if way == 0 and options[QUOTA] == 0:
            continue
        if way == 1 and (options[PREEMPT] == 0 or jobs.priority[j] <= 0):
            continue
        count = evict_for(j, now, way == 0, cap, members, jobs, runs, desk, site, nodes, classes, typ, store, scratch, code)
        if count > 0:
            place_job(j, code, price, members, count, jobs, runs, nodes, classes, typ, store, scratch, rng, feasible)
            start(j, now, 0, jobs, runs, desk, site, nodes, classes)
            return True
    desk.tried_evict[shape] = desk.count[2]
    return False


@njit(cache=True)
def share_of(q, desk, site):
    """The share by which queues take turns: chips per weight, or the dominant of chips by model, CPU and memory."""
    models = desk.usage.shape[1]
    if site.options[ORDER] == FAIR:
        used = 0.0
        for m in range(models):
            if site.capacity[m] > 0:
                used = max(used, desk.usage[q, m] / site.capacity[m])
        return used / site.weight[q]
    top = max(desk.use_cpu[q] / site.capacity[models], desk.use_mem[q] / site.capacity[models + 1])
    for m in range(models):
        if site.capacity[m] > 0:
            top = max(top, desk.usage[q, m] / site.capacity[m])
    return top / site.weight[q]


@njit(cache=True)
def walk(now, code, price, cap, members, feasible, jobs, runs, desk, site, nodes, classes, typ, store, scratch, rng):
    """Walk the queues once, in order, starting what may start."""
    queues = len(desk.head)
    before = np.full(queues, -1, np.int64)
    desk.cursor[:] = desk.head
    blocked, steps = -1, 0
    depth = site.options[DEPTH]
    while steps < depth:
        q, best_share = -1, np.inf
        for k in range(queues):
            j = desk.cursor[k]
            if j < 0:
                continue
            if queues == 1:
                q = k
                break
            share = share_of(k, desk, site)
            if q < 0 or jobs.priority[j] > jobs.priority[desk.cursor[q]] or (
                jobs.priority[j] == jobs.priority[desk.cursor[q]] and share < best_share
            ):
                q, best_share = k, share
        if q < 0:
            return
        j = desk.cursor[q]
        steps += 1
        follow = runs.next[j]
        if blocked >= 0 and not may_backfill(j, now, jobs, runs, desk, site, classes):
            before[q], desk.cursor[q] = j, follow
            continue
        freed = desk.count[2]
        if attempt(j, now, code, price, cap, members, feasible, jobs, runs, desk, site, nodes, classes, typ, store, scratch, rng):
            if desk.count[2] != freed:
                # Evictions put jobs into the queues: find the place before j again.
                before[q] = -1
                p = desk.head[q]
                while p != j:
                    before[q], p = p, runs.next[p]
            unlink(j, before[q], jobs, runs, desk, site, classes)
            desk.cursor[q] = desk.head[q] if before[q] < 0 else runs.next[before[q]]
            if desk.count[2] != freed:
                return  # the queues changed: the caller walks again
            if blocked >= 0:
                c = jobs.cls[j]
                desk.shadow[1] -= classes.milli[c] * classes.num[c] * jobs.workers[j]
            continue
        if site.options[BACKFILL] == 0:
            if queues == 1:
                return
            desk.cursor[q] = -1  # this tenant waits; others go on
            continue
        if blocked < 0:
            blocked = j
            reserve(j, now, cap, jobs, runs, desk, site, nodes, classes)
        before[q], desk.cursor[q] = j, follow


@njit(cache=True)
def may_backfill(j, now, jobs, runs, desk, site, classes):
    """Ends before the reservation, or uses no more than it leaves."""
    c = jobs.cls[j]
    ask = classes.milli[c] * classes.num[c] * jobs.workers[j]
    return now + runs.remaining[j] + site.options[RESTART] <= desk.shadow[0] or ask <= desk.shadow[1]


@njit(cache=True)
def set_node(i, step, now, desk, site, nodes, typ, store, scratch, code):
    """One more (+1) or one less (-1) reason for node ``i`` to be down."""
    was = site.down[i]
    site.down[i] = was + step
    if was == 0 and step > 0:
        nodes.cpu[i] -= DOWN
        desk.clock[2] += nodes.chips[i] * WHOLE
    elif was == 1 and step < 0:
        nodes.cpu[i] += DOWN
        desk.clock[2] -= nodes.chips[i] * WHOLE
        desk.count[2] += 1
    if code == FGD or code == FGDCPU:
        restate(i, nodes, typ, store, scratch)


@njit(cache=True)
def set_device(i, d, sign, desk, site, nodes, typ, store, scratch, code):
    """Take one whole free chip out of service (-1) or put it back (+1)."""
    nodes.left[i, d] += sign * WHOLE
    nodes.total[i] += sign * WHOLE
    top, whole = 0, 0
    for e in range(nodes.chips[i]):
        top = max(top, nodes.left[i, e])
        if nodes.left[i, e] == WHOLE:
            whole += 1
    nodes.top[i], nodes.whole[i] = top, whole
    desk.clock[2] -= sign * WHOLE
    if sign > 0:
        desk.count[2] += 1
    if code == FGD or code == FGDCPU:
        restate(i, nodes, typ, store, scratch)


@njit(cache=True)
def kill(hit, device_node, device, now, jobs, runs, desk, site, nodes, classes, typ, store, scratch, code):
    """End the runs of all jobs with a worker on a node of ``hit`` (or on one device)."""
    k = 0
    while k < desk.count[1]:
        r = runs.running[k]
        dead = False
        for w in range(jobs.workers[r]):
            i = runs.node[jobs.first[r] + w]
            if device_node >= 0:
                if i == device_node and (runs.mask[jobs.first[r] + w] >> np.uint64(device)) & np.uint64(1):
                    dead = True
                    break
            elif hit[i]:
                dead = True
                break
        if dead:
            release(r, now, False, jobs, runs, desk, site, nodes, classes, typ, store, scratch, code)
            runs.restarts[r] += 1
        else:
            k += 1


@njit(cache=True)
def fail(e, now, counts, jobs, runs, desk, site, nodes, classes, typ, store, scratch, code):
    """Handle failure ``e``: jobs end, hardware goes, a spare comes, the repair is set."""
    kind, at, device = site.fail_kind[e], site.fail_at[e], site.fail_device[e]
    n = len(nodes.cpu)
    hit = np.zeros(n, np.bool_)
    if kind == RACK:
        for i in range(n):
            hit[i] = site.group[1, i] == at
    else:
        hit[at] = True
        if site.down[at] > 0:
            return  # it is already out
    if kind == CHIP:
        if device >= nodes.chips[at] or site.device_down[at, device] > 0:
            return
        kill(hit, at, device, now, jobs, runs, desk, site, nodes, classes, typ, store, scratch, code)
        site.device_down[at, device] = 1
        set_device(at, device, -1, desk, site, nodes, typ, store, scratch, code)
    else:
        kill(hit, -1, 0, now, jobs, runs, desk, site, nodes, classes, typ, store, scratch, code)
        if kind != SOFTWARE:
            for i in range(n):
                if hit[i]:
                    set_node(i, 1, now, desk, site, nodes, typ, store, scratch, code)
    counts[kind] += 1
    if kind == HOST and desk.count[6] > 0:
        for i in range(n):
            if site.spare[i] == 1:
                site.spare[i] = 2
                desk.count[6] -= 1
                desk.count[7] += 1
                push(desk, now + site.options[SPARE_S], i, -3)
                break
    if kind != SOFTWARE:
        push(desk, now + site.fail_repair[e], e, -2)


@njit(cache=True)
def repaired(e, now, desk, site, nodes, typ, store, scratch, code):
    kind, at, device = site.fail_kind[e], site.fail_at[e], site.fail_device[e]
    if kind == CHIP:
        site.device_down[at, device] = 0
        set_device(at, device, 1, desk, site, nodes, typ, store, scratch, code)
    elif kind == HOST and desk.count[7] > 0:
        site.spare[at] = 1  # its stand-in stays in service, and it becomes the spare
        desk.count[6] += 1
        desk.count[7] -= 1
    elif kind == HOST:
        set_node(at, -1, now, desk, site, nodes, typ, store, scratch, code)
    else:
        for i in range(len(nodes.cpu)):
            if site.group[1, i] == at:
                set_node(i, -1, now, desk, site, nodes, typ, store, scratch, code)


@njit(cache=True)
def advance(until, code, price, jobs, runs, desk, site, nodes, classes, typ, store, scratch, rng, counts):
    """Handle every event up to ``until`` (seconds); returns the number of events."""
    n = len(nodes.cpu)
    cap, members, feasible = np.empty(n, np.int64), np.empty(n, np.int64), np.empty(n, np.int64)
    events = 0
    while True:
        t_heap = desk.heap_t[0] if desk.count[0] > 0 else np.inf
        t_fail = site.fail_t[desk.count[4]] if desk.count[4] < len(site.fail_t) else np.inf
        t_arrive = jobs.arrival[desk.count[3]] if desk.count[3] < len(jobs.arrival) else np.inf
        now = min(t_heap, t_fail, t_arrive)
        if now > until or now == np.inf:
            break
        events += 1
        freed = desk.count[2]
        account(desk, site, nodes, now)
        if t_heap <= now:
            _, j, v = pop(desk)
            if v == -2:
                repaired(j, now, desk, site, nodes, typ, store, scratch, code)
            elif v == -3:
                set_node(j, -1, now, desk, site, nodes, typ, store, scratch, code)
            elif runs.version[j] == v and runs.status[j] == RUNNING:
                release(j, now, True, jobs, runs, desk, site, nodes, classes, typ, store, scratch, code)
        elif t_fail <= now:
            desk.count[4] += 1
            fail(desk.count[4] - 1, now, counts, jobs, runs, desk, site, nodes, classes, typ, store, scratch, code)
        else:
            j = desk.count[3]
            desk.count[3] += 1
            alone = desk.count[5] == 0
            enqueue(j, jobs, runs, desk, site, classes)
            if not alone and site.options[BACKFILL] == 0 and site.options[ORDER] == FIFO and jobs.priority[j] <= 0:
                continue
            if desk.tried[jobs.shape[j]] == desk.count[2] and desk.tried_evict[jobs.shape[j]] == desk.count[2]:
                continue
            freed = -1
        if freed != desk.count[2] and desk.count[5] > 0:
            for _ in range(64):
                mark = desk.count[2]
                walk(now, code, price, cap, members, feasible, jobs, runs, desk, site, nodes, classes, typ, store, scratch, rng)
                if desk.count[2] == mark:
                    break
    if until < np.inf:
        account(desk, site, nodes, until)
    return events
