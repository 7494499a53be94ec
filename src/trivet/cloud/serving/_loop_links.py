"""Links between prefill and decode replicas in the hot loop: when KV that leaves now has arrived, outages included.

Every function takes ``links`` first; where it is None the compiler drops the body.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from trivet.cloud.serving._loop_jit import seldom

WHOLE = 1024  # a link's rate is counted in such parts of what it does in health


class Links(NamedTuple):
    """The rates of each replica's link over time."""

    offsets: Any  # [R + 1] rows of each replica
    time: Any  # [rows] picoseconds from which on ...
    rate: Any  # [rows] ... the link does so many WHOLEths; WHOLE before the first row, never 0 in the last


@seldom
def arrival_ps(links: Any, replica: int, start: int, took: int) -> int:
    """When a transfer from ``replica`` that starts at ``start`` and takes ``took`` over a healthy link is done.

    What is under way when a link goes down waits and goes on from where it was.
    """
    if links is None:
        return start + took
    if took == 0:  # nothing travels
        return start
    row, last = links.offsets[replica], links.offsets[replica + 1]
    rate = WHOLE
    while row < last and links.time[row] <= start:
        rate = links.rate[row]
        row += 1
    now, left = start, took * WHOLE
    while True:
        need = (left + rate - 1) // rate if rate > 0 else -1
        if row == last or (rate > 0 and now + need <= links.time[row]):
            return int(now + need)
        left -= rate * (links.time[row] - now)
        now, rate = links.time[row], links.rate[row]
        row += 1
