"""What each feature changes: a scenario with and without it, and the size that a source gives for the difference.

A scenario's ``expect`` lists changes (as ``--set`` takes them) with a number of ``summary.json`` and the range in which its
ratio to the unchanged scenario should lie. ``trivet simulate FILE --expect`` and a test run them all.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from typing import Any

from trivet.errors import TrivetError
from trivet.loop import simulate
from trivet.loop.scenario_schema import changed, parse


def number(summary: Mapping[str, Any], path: str) -> float:
    """A number of a summary by its dotted path; NaN where the summary holds null.

    Raises TrivetError where there is none.
    """
    at: Any = summary
    for part in path.split("."):
        if not isinstance(at, Mapping) or part not in at:
            raise TrivetError(
                f"no number {path!r}", field="expect.metric", allowed=sorted(at) if isinstance(at, Mapping) else None
            )
        at = at[part]
    if at is None:
        return math.nan
    if isinstance(at, bool) or not isinstance(at, int | float):
        raise TrivetError(f"{path!r} is text, no number", field="expect.metric")
    return float(at)


def check(
    raw: Mapping[str, Any],
    read_trace: simulate.ReadTrace,
    read_clients: simulate.ReadClients | None = None,
    report: Callable[[str, int, int], None] = lambda *_: None,
) -> list[dict[str, Any]]:
    """Run every expectation of a scenario.

    Returns:
        Rows with ``feature change metric without with ratio expected holds source``; a ratio to 0 is infinite (None where both
        are 0 or undefined).

    Raises:
        TrivetError: the scenario, a change or a metric is wrong.
    """
    scenario = parse(raw)
    plain = {key: value for key, value in raw.items() if key != "expect"}
    known: dict[str, dict[str, Any]] = {}

    def summary(changes: list[str]) -> dict[str, Any]:
        one = changed(plain, changes)
        key = json.dumps(one, sort_keys=True, default=str)
        if key not in known:
            known[key] = simulate.run(one, read_trace, read_clients=read_clients).summary
        return known[key]

    rows = []
    for done, part in enumerate(scenario.expect):
        report("comparing", done, len(scenario.expect))
        before = number(summary(part.base), part.against or part.metric)
        after = number(summary([*part.base, *part.change]), part.metric)
        ratio = after / before if before else (math.inf if after > 0 else math.nan)
        rows.append(
            {
                "feature": part.feature, "change": " ".join(part.change), "metric": part.metric, "without": before,
                "with": after, "ratio": None if math.isnan(ratio) else ratio, "expected": list(part.ratio),
                "holds": part.ratio[0] <= ratio <= part.ratio[1], "source": part.source,
            }
        )  # fmt: skip
    return rows
