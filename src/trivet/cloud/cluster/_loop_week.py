# mypy: disable-error-code="no-untyped-def,no-untyped-call,misc"
"""The hot loop of a cluster over time: arrivals, departures, queues, preemption, failures and repair.

Events are handled in the order of time; at one moment repairs and departures come before failures, failures before
arrivals. After resources came free the queues are walked once; a shape of job that did not fit is not tried again before
more came free.
"""

from __future__ import annotations

import numpy as np

from trivet.cloud.cluster._loop_desk import (
    CHIP,
    DOWN,
    DRF,
    HELD,
    HOST,
    RACK,
    REPAIR,
    RESERVATION_S,
    RUNNING,
    SERVING,
    SOFTWARE,
    SPARE,
    SWITCH,
    account,
    pop,
    push,
)
from trivet.cloud.cluster._loop_jit import entry, jit
from trivet.cloud.cluster._loop_place import FGD, FGDCPU, restate
from trivet.cloud.cluster._loop_score import WHOLE
from trivet.cloud.cluster._loop_start import (
    capacities,
    enqueue,
    evict_for,
    find_group,
    place_job,
    release,
    reserve,
    start,
    unlink,
)


@jit
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


@jit
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


@jit
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
        # A reservation stands: go only if done before it, or within what it leaves.
        late = t + jobs[j].remaining + rules.restart_s > now[0].shadow_t and jobs[j].milli > now[0].shadow_milli
        shape = jobs[j].shape
        if blocked and (late or (desk.tried[shape, 0] == now[0].freed and desk.tried[shape, 1] == now[0].freed)):
            before[q], queue[q, 1] = j, jobs[j].next
            continue
        freed = now[0].freed
        if attempt(
            j, t, code, price, cap, members, feasible, work, desk, site, nodes, classes, typ, store, scratch, rng
        ):
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


@entry
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


@jit
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


@jit
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


@jit
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
    if (kind == HOST or kind == SWITCH) and desk.now[0].spares > 0:
        for i in range(n):
            if flags[i, 1] == HELD:
                flags[i, 1] = SERVING
                desk.now[0].spares -= 1
                desk.now[0].spares_out += 1
                push(desk, t + desk.rules[0].spare_s, i, SPARE)
                break
    if kind != SOFTWARE:
        push(desk, t + repair, e, REPAIR)


@jit
def repaired(e, code, desk, site, nodes, typ, store, scratch):
    """Back into service; a host whose stand-in serves becomes the spare instead."""
    kind, at, device = site.faults[e].kind, site.faults[e].at, site.faults[e].device
    if kind == CHIP:
        set_device(at, device, 1, code, desk, site, nodes, typ, store, scratch)
    elif (kind == HOST or kind == SWITCH) and desk.now[0].spares_out > 0:
        site.flags[at, 1] = HELD
        desk.now[0].spares += 1
        desk.now[0].spares_out -= 1
    elif kind == HOST or kind == SWITCH:
        set_node(at, -1, code, desk, site, nodes, typ, store, scratch)
    else:
        for i in range(len(nodes.info)):
            if site.group[1, i] == at:
                set_node(i, -1, code, desk, site, nodes, typ, store, scratch)


@entry
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
