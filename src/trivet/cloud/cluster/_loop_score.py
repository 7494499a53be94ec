# mypy: disable-error-code="no-untyped-def,no-untyped-call,misc"
"""What a task on a node is worth: the numbers of ``policies.py``, compiled."""

from __future__ import annotations

import math

from trivet.cloud.cluster._loop_jit import inline, jit

WHOLE = 1000
MAX_CPU, MAX_CHIP = 128_000, 8_000
STEP, PRICE = 80.0, 100.0


@jit
def fragmentation(cpu, left, n, kind, typ, scratch):
    """``policies.fragmentation`` of ``left[:n]``."""
    demand, access, levels = typ.info, typ.access, typ.levels
    count, lost, _ = scratch
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
    for k in range(len(demand)):
        share = demand[k].share
        cpu_ok = cpu >= demand[k].cpu
        if demand[k].num == 0:
            if cpu_ok:
                cpu_fits += share * total
            else:
                cpu_lacks += share * total
        elif not access[k, kind]:
            no_access += share * total
        elif count[demand[k].level] >= demand[k].num:
            if cpu_ok:
                lack_chip += share * lost[demand[k].level]
            else:
                lack_cpu += share * total
        elif cpu_ok:
            lack_chip += share * total
        else:
            lack_both += share * total
    return lack_both + lack_chip + lack_cpu + cpu_fits + cpu_lacks + no_access


@inline
def fgd_whole(drop):
    return float(int(1.0 / (1.0 + math.exp(-(drop / 1000.0))) * 100.0))


@jit
def fgd_score(rounded, before, cpu, left, n, kind, cpu_ask, milli, num, typ, scratch):
    """Score and device (position in ``left``; -1 for whole chips) of one task on one node."""
    rest = scratch[2]
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
            after = fragmentation(cpu - cpu_ask, rest, n, kind, typ, scratch)
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
    after = fragmentation(cpu - cpu_ask, rest, n, kind, typ, scratch)
    return fgd_whole(before - after) if rounded else before - after, -1


@inline
def priced(drop, cpu_rest, chip_rest, cpu_price):
    """``policies.fgd_cpu`` from the raw drop."""
    rest = cpu_rest / MAX_CPU + chip_rest / MAX_CHIP
    if cpu_price < 0.5:
        drop = math.floor(drop / STEP + 1e-9) * STEP
    return drop - PRICE * cpu_price * rest


@inline
def best_fit_score(cpu, total, cpu_ask, ask):
    rest = (cpu - cpu_ask) / MAX_CPU * 0.5
    rest += (total - ask) / MAX_CHIP * 0.5
    return int((1.0 - rest) * 100.0)


@inline
def dot_product_score(cpu, total, cpu_ask, ask):
    dot = (cpu / MAX_CPU) * (cpu_ask / MAX_CPU)
    dot += (total / MAX_CHIP) * (ask / MAX_CHIP)
    return int(100.0 * (1.0 - dot / 2.0))


@jit
def gpu_packing_score(left, i, n, whole, milli, num):
    if num == 0:
        return 0
    if whole == n:
        return max(33 - whole, whole)
    if num > 1 or milli == WHOLE:
        return max(50 - num, 33)
    tight = WHOLE
    for d in range(n):
        if milli <= left[i, d] < tight:
            tight = left[i, d]
    if tight == WHOLE:
        return 49
    return max(100 - tight * 100 // WHOLE // 10, 50)


@jit
def gpu_clustering_score(affinity, i, total, kind):
    if kind < 0:
        return 0
    kinds = 0
    for k in range(affinity.shape[1]):
        if affinity[i, k] > 0:
            kinds += 1
    if affinity[i, kind] > 0:
        base = 75 if kinds == 1 else 50
    else:
        base = 25 if kinds == 0 else 0
    return int(25 * (MAX_CHIP - total) / MAX_CHIP) + base
