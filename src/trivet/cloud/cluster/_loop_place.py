# mypy: disable-error-code="no-untyped-def,no-untyped-call,misc"
"""The hot loop of one-shot placement: the numbers of ``policies.py``, compiled.

Nodes in the same state (CPU left, devices left in any order, what the typical demand may use) share a score, so a score
is computed once per state and task shape and kept; a placement changes one node, which moves to another state.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from trivet.cloud.cluster._loop_jit import entry, inline, jit, merged
from trivet.cloud.cluster._loop_score import (
    WHOLE,
    best_fit_score,
    dot_product_score,
    fgd_score,
    fragmentation,
    gpu_clustering_score,
    gpu_packing_score,
    priced,
)

FGD, BESTFIT, DOTPROD, GPUPACKING, GPUCLUSTERING, RANDOM, FIRSTFIT, FGDCPU = range(8)
CODES = {
    "fgd": FGD, "bestfit": BESTFIT, "dotprod": DOTPROD, "gpupacking": GPUPACKING, "gpuclustering": GPUCLUSTERING,
    "random": RANDOM, "firstfit": FIRSTFIT, "fgdcpu": FGDCPU,
}  # fmt: skip
NODE = np.dtype([
    ("cpu", "i8"), ("mem", "i8"), ("chips", "i8"), ("model", "i8"),
    ("kind", "i8"),  # models that the typical demand cannot tell apart share a kind
    ("total", "i8"), ("whole", "i8"), ("top", "i8"),  # of what is left: sum, devices with 1000, the most on one device
    ("state", "i8"),
])  # fmt: skip
CLASS = np.dtype([("cpu", "i8"), ("mem", "i8"), ("milli", "i8"), ("num", "i8"), ("shape", "i8"), ("affinity", "i8")])
DEMAND = np.dtype([("cpu", "i8"), ("level", "i8"), ("num", "i8"), ("share", "f8")])
STATE = np.dtype([("cpu", "i8"), ("kind", "i8"), ("n", "i8"), ("frag", "f8")])


class Nodes(NamedTuple):
    """Free resources, changed in place."""

    info: Any  # [N] of NODE
    left: Any  # [N, devices] thousandths
    affinity: Any  # [N, kinds of task] placed tasks


class Classes(NamedTuple):
    """What tasks ask."""

    info: Any  # [C] of CLASS
    allowed: Any  # [C, models]


class Typical(NamedTuple):
    """The expected demand."""

    info: Any  # [K] of DEMAND
    access: Any  # [K, kinds of model]
    levels: Any  # distinct thousandths


class Store(NamedTuple):
    """Node states met so far and the scores known of them."""

    table: Any  # open-addressing hash table of state numbers
    info: Any  # [states] of STATE
    left: Any  # [states, devices] sorted
    used: Any  # states numbered, states whose fragmentation is known
    scores: Any  # [shapes, states]


UNKNOWN = np.float32(-np.inf)


@inline
def _draw63(rng):
    tap, feed = (int(rng[607]) - 1) % 607, (int(rng[608]) - 1) % 607
    x = rng[feed] + rng[tap]
    rng[feed] = x
    rng[607], rng[608] = np.uint64(tap), np.uint64(feed)
    return np.int64(x & np.uint64(0x7FFFFFFFFFFFFFFF))


@jit
def _intn(rng, n):
    if n & (n - 1) == 0:
        return (_draw63(rng) >> 32) & (n - 1)
    limit = 2147483647 - 2147483648 % n
    v = _draw63(rng) >> 32
    while v > limit:
        v = _draw63(rng) >> 32
    return v % n


@jit
def find_state(cpu, left, n, kind, store):
    """The number of the state, new or known; -1 when the store is full. ``left`` is copied sorted."""
    table, known_states, s_left, used = store.table, store.info, store.left, store.used
    row = used[0]
    if row >= len(known_states):
        return -1
    for d in range(n):  # insertion sort into the next free row
        x = left[d]
        e = d - 1
        while e >= 0 and s_left[row, e] > x:
            s_left[row, e + 1] = s_left[row, e]
            e -= 1
        s_left[row, e + 1] = x
    h = np.uint64(cpu) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(kind * 64 + n)
    for d in range(n):
        h = (h ^ np.uint64(s_left[row, d])) * np.uint64(0xBF58476D1CE4E5B9)
        h ^= h >> np.uint64(29)
    mask = np.uint64(len(table) - 1)
    slot = h & mask
    while True:
        known = table[slot]
        if known < 0:
            table[slot] = row
            known_states[row].cpu = cpu
            known_states[row].kind = kind
            known_states[row].n = n
            used[0] = row + 1
            return row
        if known_states[known].cpu == cpu and known_states[known].kind == kind and known_states[known].n == n:
            same = True
            for d in range(n):
                if s_left[known, d] != s_left[row, d]:
                    same = False
                    break
            if same:
                return known
        slot = (slot + np.uint64(1)) & mask


@jit
def choose(code, left, n, milli, num, fgd_device_value, rng):
    """Bit mask of the devices that a task gets."""
    mask = np.uint64(0)
    if num == 0:
        return mask
    if num > 1 or milli == WHOLE:
        need = num
        for d in range(n):
            if need > 0 and left[d] == WHOLE:
                mask |= np.uint64(1) << np.uint64(d)
                need -= 1
        return mask
    pick, seen = -1, 0
    for d in range(n):
        if left[d] < milli:
            continue
        seen += 1
        if code == FGD or code == FGDCPU:
            if pick < 0 and left[d] == fgd_device_value:
                pick = d
        elif code == RANDOM:
            if _intn(rng, seen) == 0:
                pick = d
        elif pick < 0 or left[d] < left[pick]:
            pick = d
    return np.uint64(1) << np.uint64(pick)


@jit
def scan(code, c, members, member_count, cpu_price, nodes, classes, typ, store, scratch, feasible):
    """The best of the first ``member_count`` nodes of ``members`` for a task of class ``c``, and how many fit.

    ``feasible`` receives the nodes that fit where the policy draws. One call a task: passing the arrays costs more than
    looking at a node, so they are unpacked here, once.
    """
    info, left, affinity, ask_of = nodes.info, nodes.left, nodes.affinity, classes.info[c]
    cpu_ask, mem_ask, milli, num = ask_of.cpu, ask_of.mem, ask_of.milli, ask_of.num
    allowed, row, known_states, s_left = classes.allowed[c], store.scores[ask_of.shape], store.info, store.left
    kind_of_task = ask_of.affinity
    ask = milli * num
    best, best_score, found, score = -1, -np.inf, 0, 0.0
    for m in range(member_count):
        i = members[m]
        if info[i].cpu < cpu_ask or info[i].mem < mem_ask:
            continue
        if num > 0:
            if num == 1:
                if info[i].top < milli:
                    continue
            elif info[i].whole < num:
                continue
            if not allowed[info[i].model]:
                continue
        if code == FGD or code == FGDCPU:
            s = info[i].state
            known = row[s]
            if known == UNKNOWN:
                now = known_states[s]
                value, _ = fgd_score(
                    code == FGD, now.frag, now.cpu, s_left[s], now.n, now.kind, cpu_ask, milli, num, typ, scratch
                )
                if code == FGDCPU:
                    value = priced(value, now.cpu - cpu_ask, info[i].total - ask, cpu_price)
                known = np.float32(value)
                row[s] = known
            score = float(known)
        elif code == BESTFIT:
            score = 1.0 * best_fit_score(info[i].cpu, info[i].total, cpu_ask, ask)
        elif code == DOTPROD:
            score = 1.0 * dot_product_score(info[i].cpu, info[i].total, cpu_ask, ask)
        elif code == GPUPACKING:
            score = 1.0 * gpu_packing_score(left, i, info[i].chips, info[i].whole, milli, num)
        elif code == GPUCLUSTERING:
            score = 1.0 * gpu_clustering_score(affinity, i, info[i].total, kind_of_task)
        elif code == RANDOM:
            feasible[found] = i
        else:
            return i, 1
        found += 1
        if best < 0 or score > best_score:
            best, best_score = i, score
    return best, found


@jit
def pick_devices(code, i, c, nodes, classes, typ, store, scratch, rng):
    """Bit mask of the devices of node ``i`` that a task of class ``c`` gets."""
    node, left = nodes.info[i], nodes.left[i]
    milli, num, n, value = classes.info[c].milli, classes.info[c].num, node.chips, 0
    if (code == FGD or code == FGDCPU) and num == 1 and milli < WHOLE:
        _, device = fgd_score(code == FGD, store.info[node.state].frag, node.cpu, left, n, node.kind,
                              classes.info[c].cpu, milli, num, typ, scratch)  # fmt: skip
        value = left[device]
    return choose(code, left, n, milli, num, value, rng)


@jit
def change(i, c, mask, sign, nodes, classes):
    """Take (``sign`` -1) or give back (+1) what a task of class ``c`` holds on node ``i``."""
    info, left, ask = nodes.info, nodes.left, classes.info[c]
    milli, num = ask.milli, ask.num
    info[i].cpu += sign * ask.cpu
    info[i].mem += sign * ask.mem
    if num > 0:
        info[i].total += sign * milli * num
        nodes.affinity[i, ask.affinity] -= sign
        highest, full = 0, 0
        for d in range(info[i].chips):
            if (mask >> np.uint64(d)) & np.uint64(1):
                left[i, d] += sign * milli
            highest = max(highest, left[i, d])
            if left[i, d] == WHOLE:
                full += 1
        info[i].top = highest
        info[i].whole = full


@jit
def restate(i, nodes, typ, store, scratch):
    """Number the state that node ``i`` is in now, and know its fragmentation."""
    info, left, used, known_states = nodes.info, nodes.left, store.used, store.info
    s = find_state(info[i].cpu, left[i], info[i].chips, info[i].kind, store)
    if s < 0:  # full: forget all states and number the present ones anew
        store.table[:] = -1
        used[:] = 0
        store.scores[:, :] = UNKNOWN
        for j in range(len(info)):
            info[j].state = find_state(info[j].cpu, left[j], info[j].chips, info[j].kind, store)
        s = info[i].state
    info[i].state = s
    while used[1] < used[0]:
        r = used[1]
        new = known_states[r]
        known_states[r].frag = fragmentation(new.cpu, store.left[r], new.n, new.kind, typ, scratch)
        used[1] = r + 1


@merged
def place(code, c, members, count, cpu_price, nodes, classes, typ, store, scratch, rng, feasible):
    """Place one task of class ``c`` on one of the first ``count`` nodes of ``members``: its node, -1 where none fits, and the
    mask of its devices."""
    best, found = scan(code, c, members, count, cpu_price, nodes, classes, typ, store, scratch, feasible)
    if found == 0:
        return -1, np.uint64(0)
    if code == RANDOM and found > 1:
        best = feasible[_intn(rng, found)]
    mask = pick_devices(code, best, c, nodes, classes, typ, store, scratch, rng)
    change(best, c, mask, -1, nodes, classes)
    if code == FGD or code == FGDCPU:
        restate(best, nodes, typ, store, scratch)
    return best, mask


@entry
def place_range(start, stop, code, cpu_price, nodes, classes, task_class, typ, rng, store, out_where, out_mask):
    """Place tasks ``start`` to ``stop``; all state lives in the arrays, so that a caller may stop and go on."""
    count_n = len(nodes.info)
    scratch = new_scratch(nodes, typ)
    feasible, members = np.empty(count_n, np.int64), np.arange(count_n)
    for k in range(start, stop):
        c = task_class[k]
        best, mask = place(code, c, members, count_n, cpu_price, nodes, classes, typ, store, scratch, rng, feasible)
        if best >= 0:
            out_where[k], out_mask[k] = best, mask


@entry
def new_scratch(nodes, typ):
    levels = len(typ.levels)
    return (np.empty(levels, np.int64), np.empty(levels, np.int64), np.empty(nodes.left.shape[1], np.int64))


@entry
def number_states(nodes, typ, store):
    """States and fragmentation of the empty nodes, before the first task."""
    scratch = new_scratch(nodes, typ)
    for i in range(len(nodes.info)):
        restate(i, nodes, typ, store, scratch)
