"""Finished requests into the bins of ``sketches``: one pass, no copies."""

from __future__ import annotations

from typing import Any

import numpy as np

from trivet.cloud.serving._loop_jit import entry, jit
from trivet.cloud.serving._loop_state import *


@jit
def put(counts: Any, sums_us: Any, value_ps: int) -> None:
    bits = np.float64(max(value_ps, 1)).view(np.int64)
    index = min(max((bits >> ITL_SHIFT) - ITL_OFFSET + 1, 0), counts.size - 1)
    counts[index] += 1
    sums_us[index] += (max(value_ps, 0) + 500000) // 1000000


@entry
def fill(
    rows: Any, group: Any, late_ps: Any, first_hour: int, hour_ps: int, ttft_ps: int, tpot_ps: int, counts: Any,
    sums_us: Any, counters: Any,
) -> None:  # fmt: skip
    """``counts`` and ``sums_us`` [hours, groups, metrics, bins] and ``counters`` [hours, groups, COUNTERS] grow by ``rows``."""
    for i in range(rows.shape[0]):
        r = rows[i]
        replica = r[O_PREFILL_REPLICA] if r[O_PREFILL_REPLICA] >= 0 else r[O_REPLICA]
        g = group[replica] if replica >= 0 else 0
        h = r[O_ARRIVAL] // hour_ps - first_hour
        c = counters[h, g]
        c[0] += 1
        c[8] += r[O_PREEMPTIONS]
        c[9] += r[O_TRIES]
        if r[O_STATUS] != DONE:
            c[2 if r[O_STATUS] == REJECTED else 3] += 1
            continue
        late = late_ps[replica] if replica >= 0 else 0
        ttft = r[O_FIRST] - r[O_ARRIVAL] + late
        put(counts[h, g, 0], sums_us[h, g, 0], ttft)
        good = ttft <= ttft_ps
        if r[O_OUTPUT] > 1:
            spent = r[O_LAST] - r[O_FIRST]
            put(counts[h, g, 1], sums_us[h, g, 1], spent // (r[O_OUTPUT] - 1))
            good = good and (tpot_ps >= INF or spent <= tpot_ps * (r[O_OUTPUT] - 1))
        put(counts[h, g, 2], sums_us[h, g, 2], r[O_LAST] - r[O_ARRIVAL] + late)
        put(counts[h, g, 3], sums_us[h, g, 3], r[O_SCHEDULED] - r[O_ARRIVAL])
        c[1] += 1
        c[4] += 1 if good else 0
        c[5] += r[O_INPUT]
        c[6] += r[O_OUTPUT]
        c[7] += r[O_HIT]
