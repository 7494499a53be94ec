"""The article's claims in order. A claim is a function of a ``Bench`` (what to compute with) that returns a ``Claim``."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from trivet.errors import TrivetError
from trivet.loop.claim import Bench, Claim
from trivet.loop.claims_chips import CHIP_CLAIMS
from trivet.loop.claims_cloud import CLOUD_CLAIMS
from trivet.loop.claims_loop import LOOP_CLAIMS


def compute(bench: Bench, only: Sequence[str] = ()) -> list[Claim]:
    """Every claim, or those of ``only``; raises TrivetError for an unknown id."""
    known: dict[str, Callable[[Bench], Claim]] = {**CHIP_CLAIMS, **CLOUD_CLAIMS, **LOOP_CLAIMS}
    for name in only:
        if name not in known:
            raise TrivetError(f"unknown claim {name!r}", field="claim", allowed=known)
    wanted = [name for name in known if not only or name in only]
    found = []
    for done, name in enumerate(wanted):
        bench.progress(name, done, len(wanted))
        found.append(known[name](bench))
    return found
