"""Fluid against simulated, and one week against another: ratios with their spread and what drives it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from trivet.units import Z80


def check_error(checks: Sequence[Mapping[str, Any]]) -> dict[str, float | None]:
    """Fluid against simulated over the sampled hours: median absolute log error of the times, mean difference of attainment."""

    def median(a: str, b: str) -> float | None:
        pairs = [(r[a], r[b]) for r in checks if r[a] and r[b] and math.isfinite(r[a])]
        return float(np.median([abs(math.log(x / y)) for x, y in pairs])) if pairs else None

    differences = [r["simulated_attainment"] - r["fluid_attainment"] for r in checks]
    return {
        "hours": len(checks),
        "ttft_median_abs_log": median("fluid_ttft_s", "simulated_ttft_s"),
        "tpot_median_abs_log": median("fluid_tpot_s", "simulated_tpot_s"),
        "attainment_mean_difference": float(np.mean(differences)) if differences else None,
        "attainment_worst": float(min(differences)) if differences else None,
        "hours_that_hold": sum(r["simulated_attainment"] >= 0.9 for r in checks),
    }


def compare(results: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Each week against the first: ratios with 80% intervals; prices and step times of different chips are independent."""

    def sigma_chips(r: Mapping[str, Any]) -> float:
        """Log spread of the cards that serve, over the services whose SLO stands at both ends of the step times."""
        ends = [s["chips_needed_mean"] for s in r["services"] if s["chips_needed_mean"]["hi"] is not None]
        return math.log(sum(e["hi"] for e in ends) / sum(e["lo"] for e in ends)) / (2 * Z80) if ends else math.inf

    first = results[0]
    rows = []
    for r in results:
        price = [math.log(x["serving_cost_usd"]["hi"] / x["serving_cost_usd"]["lo"]) / (2 * Z80) for x in (first, r)]
        timing = [sigma_chips(first), sigma_chips(r)]
        same = r["pools"] == first["pools"]
        # Where the same services stand on the same cards, what is doubted is the same on both sides and cancels.
        alike = [s["chip"] for s in r["services"]] == [s["chip"] for s in first["services"]]
        sigma_usd = 0.0 if alike else math.sqrt(sum(x * x for x in (*price, *timing)))
        sigma_count = 0.0 if alike else math.hypot(*timing)
        row: dict[str, Any] = {"name": r["name"]}
        for key, value, base, sigma in (
            ("serving_usd", r["serving_cost_usd"]["value"], first["serving_cost_usd"]["value"], sigma_usd),
            (
                "serving_chips",
                sum(s["chips_mean"] for s in r["services"]),
                sum(s["chips_mean"] for s in first["services"]),
                sigma_count,
            ),
            ("joules_per_token", r["serving_joules_per_token"], first["serving_joules_per_token"], sigma_count),
            ("cluster_usd", r["cost_usd"]["value"], first["cost_usd"]["value"], 0.0 if same else math.hypot(*price)),
        ):
            ratio, wide = value / base, math.exp(Z80 * sigma) if sigma < 50 else math.inf
            high = ratio * wide if math.isfinite(wide) else None
            row[key] = {"value": value, "ratio": ratio, "lo": ratio / wide, "hi": high}
        parts = {"price of the chips": math.hypot(*price), "step times": 0.0 if alike else math.hypot(*timing)}
        row["driver"] = "" if same else max(parts, key=lambda k: parts[k])
        row["slo_breaks_with_slow_steps"] = [
            s["service"] for s in r["services"] if s["chips_needed_mean"]["hi"] is None
        ]
        trained = [t["tokens_this_week"] for t in r["training"]]
        base_trained = [t["tokens_this_week"] for t in first["training"]]
        row["training_tokens_ratio"] = (
            trained[0] / base_trained[0] if trained and base_trained and base_trained[0] else None
        )
        rows.append(row)
    return rows
