# mypy: disable-error-code="no-untyped-def,no-untyped-call,misc"
"""Starting and stopping jobs: room, groups, gangs, books, queues, eviction, reservations."""

from __future__ import annotations

import numpy as np

from trivet.cloud.cluster._loop_desk import DONE, FIFO, QUEUED, RUNNING, push
from trivet.cloud.cluster._loop_jit import inline, jit
from trivet.cloud.cluster._loop_place import FGD, FGDCPU, change, place, restate
from trivet.cloud.cluster._loop_score import WHOLE


@inline
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


@jit
def fill_room(c, most, info, left, classes, cap):
    """``room_of`` every node for a worker of class ``c``."""
    ask, allowed = classes.info[c], classes.allowed[c]
    for i in range(len(info)):
        cap[i] = room_of(i, ask, allowed, most, info, left)


@jit
def give_back(i, mask, ask, info, left):
    """What a worker holds, added to copies of the free resources."""
    info[i].cpu += ask.cpu
    info[i].mem += ask.mem
    for d in range(info[i].chips):
        if (mask >> np.uint64(d)) & np.uint64(1):
            left[i, d] += ask.milli
            info[i].whole += left[i, d] == WHOLE


@jit
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


@jit
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


@jit
def place_job(j, code, price, members, count, work, nodes, classes, typ, store, scratch, rng, feasible):
    """Place all workers of job ``j`` on the listed nodes; the caller knows that a gang fits. False: a lone one does not."""
    c, w0, workers = work.jobs[j].cls, work.jobs[j].first, work.jobs[j].workers
    for w in range(workers):
        best, mask = place(code, c, members, count, price, nodes, classes, typ, store, scratch, rng, feasible)
        if best < 0:
            return False
        work.node[w0 + w], work.mask[w0 + w] = best, mask
    return True


@jit
def book(j, sign, work, desk, nodes, classes):
    """Count what a job holds for (+1) or no longer for (-1) its tenant and kind."""
    jobs, usage, info = work.jobs, desk.usage, nodes.info
    ask, tenant, models = classes.info[jobs[j].cls], jobs[j].tenant, usage.shape[1] - 2
    for w in range(jobs[j].first, jobs[j].first + jobs[j].workers):
        usage[tenant, info[work.node[w]].model] += sign * ask.milli * ask.num
    usage[tenant, models] += sign * ask.cpu * jobs[j].workers
    usage[tenant, models + 1] += sign * ask.mem * jobs[j].workers
    desk.held[jobs[j].kind] += sign * jobs[j].milli


@jit
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


@jit
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


@jit
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


@jit
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


@jit
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


@jit
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
    return clear_nodes(
        j, t, reclaim, code, cap, members, count, chosen, work, desk, site, nodes, classes, typ, store, scratch
    )


@jit
def clear_nodes(
    j, t, reclaim, code, cap, members, count, chosen, work, desk, site, nodes, classes, typ, store, scratch
):
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
            if worst >= 0:
                above = jobs[r].priority - jobs[worst].priority
                if above > 0 or (above == 0 and jobs[r].started <= jobs[worst].started):
                    continue
            for w in range(jobs[r].first, jobs[r].first + jobs[r].workers):
                if chosen[work.node[w]]:
                    worst = r
                    break
        if worst < 0:
            return 0
        release(worst, t, False, code, work, desk, nodes, classes, typ, store, scratch)
        jobs[worst].evictions += 1


@jit
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
