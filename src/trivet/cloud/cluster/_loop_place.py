"""The hot loop of one-shot placement: the numbers of ``policies.py``, compiled.

Nodes in the same state (CPU left, devices left in any order, what the typical demand may use) share a score, so a score
is computed once per state and task shape and kept; a placement changes one node, which moves to another state.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit

FGD, BESTFIT, DOTPROD, GPUPACKING, GPUCLUSTERING, RANDOM, FIRSTFIT, FGDCPU = range(8)
CODES = {
    "fgd": FGD, "bestfit": BESTFIT, "dotprod": DOTPROD, "gpupacking": GPUPACKING, "gpuclustering": GPUCLUSTERING,
    "random": RANDOM, "firstfit": FIRSTFIT, "fgdcpu": FGDCPU,
}  # fmt: skip
WHOLE = 1000
MAX_CPU, MAX_CHIP = 128_000, 8_000
STEP, PRICE = 80.0, 100.0
UNKNOWN = np.float32(-np.inf)


@njit(cache=True, inline="always")
def _draw63(rng):
    tap, feed = (int(rng[607]) - 1) % 607, (int(rng[608]) - 1) % 607
    x = rng[feed] + rng[tap]
    rng[feed] = x
    rng[607], rng[608] = np.uint64(tap), np.uint64(feed)
    return np.int64(x & np.uint64(0x7FFFFFFFFFFFFFFF))


@njit(cache=True)
def _intn(rng, n):
    if n & (n - 1) == 0:
        return (_draw63(rng) >> 32) & (n - 1)
    limit = 2147483647 - 2147483648 % n
    v = _draw63(rng) >> 32
    while v > limit:
        v = _draw63(rng) >> 32
    return v % n


@njit(cache=True)
def fragmentation(cpu, left, n, kind, t_cpu, t_level, t_num, t_share, t_access, levels, count, lost):
    """``policies.fragmentation`` of ``left[:n]``; ``count`` and ``lost`` are scratch of the length of ``levels``."""
    total = 0
    for d in range(n):
        total += left[d]
    if total == 0:
        return 0.0
    for u in range(len(levels)):
        c, x = 0, 0
        for d in range(n):
            if left[d] >= levels[u]:
                c += 1
            else:
                x += left[d]
        count[u], lost[u] = c, x
    lack_both = lack_chip = lack_cpu = cpu_fits = cpu_lacks = no_access = 0.0
    for k in range(len(t_cpu)):
        share = t_share[k]
        cpu_ok = cpu >= t_cpu[k]
        if t_num[k] == 0:
            if cpu_ok:
                cpu_fits += share * total
            else:
                cpu_lacks += share * total
        elif not t_access[k, kind]:
            no_access += share * total
        elif count[t_level[k]] >= t_num[k]:
            if cpu_ok:
                lack_chip += share * lost[t_level[k]]
            else:
                lack_cpu += share * total
        elif cpu_ok:
            lack_chip += share * total
        else:
            lack_both += share * total
    return lack_both + lack_chip + lack_cpu + cpu_fits + cpu_lacks + no_access


@njit(cache=True, inline="always")
def fgd_whole(drop):
    return float(int(1.0 / (1.0 + math.exp(-(drop / 1000.0))) * 100.0))


@njit(cache=True)
def fgd_score(rounded, before, cpu, left, n, kind, cpu_ask, milli, num, typ, scratch):
    """Score and device (position in ``left``; -1 for whole chips) of one task on one node."""
    t_cpu, t_level, t_num, t_share, t_access, levels = typ
    count, lost, rest = scratch
    for d in range(n):
        rest[d] = left[d]
    if num == 1 and milli < WHOLE:
        best, device = 0.0, -1
        for d in range(n):
            if left[d] < milli:
                continue
            seen = False  # an equal device gives an equal score, and the first one wins
            for e in range(d):
                if left[e] == left[d]:
                    seen = True
                    break
            if seen:
                continue
            rest[d] = left[d] - milli
            after = fragmentation(cpu - cpu_ask, rest, n, kind, t_cpu, t_level, t_num, t_share, t_access, levels, count, lost)
            rest[d] = left[d]
            score = fgd_whole(before - after) if rounded else before - after
            if device < 0 or score > best:
                best, device = score, d
        return best, device
    need = num
    for d in range(n):
        if need > 0 and left[d] == WHOLE:
            rest[d] = 0
            need -= 1
    after = fragmentation(cpu - cpu_ask, rest, n, kind, t_cpu, t_level, t_num, t_share, t_access, levels, count, lost)
    return fgd_whole(before - after) if rounded else before - after, -1


@njit(cache=True, inline="always")
def priced(drop, cpu_rest, chip_rest, cpu_price):
    """``policies.fgd_cpu`` from the raw drop."""
    rest = cpu_rest / MAX_CPU + chip_rest / MAX_CHIP
    step = STEP * (1.0 - cpu_price)
    if step > 0.0:
        drop = math.floor(drop / step + 1e-9) * step
    return drop - PRICE * cpu_price * rest


@njit(cache=True)
def find_state(cpu, left, n, kind, table, s_cpu, s_kind, s_n, s_left, s_used):
    """The number of the state, new or known; -1 when the store is full. ``left`` is copied sorted."""
    row = s_used[0]
    if row >= len(s_cpu):
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
            s_cpu[row], s_kind[row], s_n[row] = cpu, kind, n
            s_used[0] = row + 1
            return row
        if s_cpu[known] == cpu and s_kind[known] == kind and s_n[known] == n:
            same = True
            for d in range(n):
                if s_left[known, d] != s_left[row, d]:
                    same = False
                    break
            if same:
                return known
        slot = (slot + np.uint64(1)) & mask


@njit(cache=True, inline="always")
def best_fit_score(cpu, total, cpu_ask, ask):
    rest = (cpu - cpu_ask) / MAX_CPU * 0.5
    rest += (total - ask) / MAX_CHIP * 0.5
    return int((1.0 - rest) * 100.0)


@njit(cache=True, inline="always")
def dot_product_score(cpu, total, cpu_ask, ask):
    dot = (cpu / MAX_CPU) * (cpu_ask / MAX_CPU)
    dot += (total / MAX_CHIP) * (ask / MAX_CHIP)
    return int(100.0 * (1.0 - dot / 2.0))


@njit(cache=True)
def gpu_packing_score(left, n, whole, milli, num):
    if num == 0:
        return 0
    if whole == n:
        return max(33 - whole, whole)
    if num > 1 or milli == WHOLE:
        return max(50 - num, 33)
    tight = WHOLE
    for d in range(n):
        if milli <= left[d] < tight:
            tight = left[d]
    if tight == WHOLE:
        return 49
    return max(100 - tight * 100 // WHOLE // 10, 50)


@njit(cache=True)
def gpu_clustering_score(affinity, total, kind):
    if kind < 0:
        return 0
    kinds = 0
    for k in range(len(affinity)):
        if affinity[k] > 0:
            kinds += 1
    if affinity[kind] > 0:
        base = 75 if kinds == 1 else 50
    else:
        base = 25 if kinds == 0 else 0
    return int(25 * (MAX_CHIP - total) / MAX_CHIP) + base


@njit(cache=True)
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


@njit(cache=True)
def place_range(start, stop, code, cpu_price, nodes, classes, typ, rng, store, out_where, out_mask):
    """Place tasks ``start`` to ``stop``; all state lives in the arrays, so that a caller may stop and go on."""
    cpu, mem, left, n_chips, model, kind, total, whole, top, affinity, state, frag_known = nodes
    c_cpu, c_mem, c_milli, c_num, c_allowed, c_shape, c_affinity, task_class = classes
    t_cpu, t_level, t_num, t_share, t_access, levels = typ
    table, s_cpu, s_kind, s_n, s_left, s_used, s_frag, scores = store
    count_n = len(cpu)
    scratch = (np.empty(len(levels), np.int64), np.empty(len(levels), np.int64), np.empty(left.shape[1], np.int64))
    feasible = np.empty(count_n, np.int64)
    for k in range(start, stop):
        c = task_class[k]
        cpu_ask, mem_ask, milli, num, shape = c_cpu[c], c_mem[c], c_milli[c], c_num[c], c_shape[c]
        ask = milli * num
        best, best_score, found = -1, -np.inf, 0
        row = scores[shape]
        for i in range(count_n):
            if cpu[i] < cpu_ask or mem[i] < mem_ask:
                continue
            if num > 0:
                if num == 1:
                    if top[i] < milli:
                        continue
                elif whole[i] < num:
                    continue
                if not c_allowed[c, model[i]]:
                    continue
            if code == FGD or code == FGDCPU:
                s = state[i]
                known = row[s]
                if known == UNKNOWN:
                    value, _ = fgd_score(code == FGD, s_frag[s], s_cpu[s], s_left[s], s_n[s], s_kind[s], cpu_ask, milli,
                                         num, typ, scratch)  # fmt: skip
                    if code == FGDCPU:
                        value = priced(value, s_cpu[s] - cpu_ask, total[i] - ask, cpu_price)
                    known = np.float32(value)
                    row[s] = known
                score = float(known)
            elif code == BESTFIT:
                score = 1.0 * best_fit_score(cpu[i], total[i], cpu_ask, ask)
            elif code == DOTPROD:
                score = 1.0 * dot_product_score(cpu[i], total[i], cpu_ask, ask)
            elif code == GPUPACKING:
                score = 1.0 * gpu_packing_score(left[i], n_chips[i], whole[i], milli, num)
            elif code == GPUCLUSTERING:
                score = 1.0 * gpu_clustering_score(affinity[i], total[i], c_affinity[c])
            elif code == RANDOM:
                feasible[found] = i
                score = 0.0
            else:
                best, found = i, 1
                break
            found += 1
            if best < 0 or score > best_score:
                best, best_score = i, score
        if found == 0:
            continue
        if code == RANDOM and found > 1:
            best = feasible[_intn(rng, found)]
        i = best
        n = n_chips[i]
        value = 0
        if (code == FGD or code == FGDCPU) and num == 1 and milli < WHOLE:
            s = state[i]
            _, device = fgd_score(code == FGD, s_frag[s], cpu[i], left[i], n, kind[i], cpu_ask, milli, num, typ, scratch)
            value = left[i, device]
        mask = choose(code, left[i], n, milli, num, value, rng)
        cpu[i] -= cpu_ask
        mem[i] -= mem_ask
        total[i] -= ask
        if num > 0:
            affinity[i, c_affinity[c]] += 1
            highest, full = 0, 0
            for d in range(n):
                if (mask >> np.uint64(d)) & np.uint64(1):
                    left[i, d] -= milli
                highest = max(highest, left[i, d])
                if left[i, d] == WHOLE:
                    full += 1
            top[i], whole[i] = highest, full
        if code == FGD or code == FGDCPU:
            s = find_state(cpu[i], left[i], n, kind[i], table, s_cpu, s_kind, s_n, s_left, s_used)
            if s < 0:  # full: forget all states and number the present ones anew
                table[:] = -1
                s_used[0] = 0
                frag_known[0] = 0
                scores[:, :] = UNKNOWN
                for j in range(count_n):
                    state[j] = find_state(cpu[j], left[j], n_chips[j], kind[j], table, s_cpu, s_kind, s_n, s_left, s_used)
                s = state[i]
            state[i] = s
            while frag_known[0] < s_used[0]:
                r = frag_known[0]
                s_frag[r] = fragmentation(s_cpu[r], s_left[r], s_n[r], s_kind[r], t_cpu, t_level, t_num, t_share, t_access,
                                          levels, scratch[0], scratch[1])  # fmt: skip
                frag_known[0] = r + 1
        out_where[k], out_mask[k] = i, mask


@njit(cache=True)
def number_states(nodes, typ, store):
    """States and fragmentation of the empty nodes, before the first task."""
    cpu, mem, left, n_chips, model, kind, total, whole, top, affinity, state, frag_known = nodes
    t_cpu, t_level, t_num, t_share, t_access, levels = typ
    table, s_cpu, s_kind, s_n, s_left, s_used, s_frag, scores = store
    count, lost = np.empty(len(levels), np.int64), np.empty(len(levels), np.int64)
    for i in range(len(cpu)):
        state[i] = find_state(cpu[i], left[i], n_chips[i], kind[i], table, s_cpu, s_kind, s_n, s_left, s_used)
    for r in range(s_used[0]):
        s_frag[r] = fragmentation(s_cpu[r], s_left[r], s_n[r], s_kind[r], t_cpu, t_level, t_num, t_share, t_access, levels, count, lost)
    frag_known[0] = s_used[0]
