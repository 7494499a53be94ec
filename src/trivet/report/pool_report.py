"""The report of many models on one fleet: chips by policy, and how the requests fare."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from trivet.report.charts import Section, bar_chart, cdf_chart, html_table, kpis, number, page, percent, seconds

_NAMES = {
    "dedicated": "dedicated", "multiplexed": "multiplexed", "scale_to_zero": "scale to zero", "token_level": "token level"
}  # fmt: skip


def rows(summary: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A row for each policy."""
    table = []
    for name, told in summary["policies"].items():
        if summary["kind"] == "marketplace":
            chips, driven = told["chips"], told["driven_by"]
            table.append(
                {
                    "policy": _NAMES[name], "chips": f"{chips['value']:,.0f} [{chips['lo']:,.0f}, {chips['hi']:,.0f}]",
                    "published": told["published"],
                    "driven by": ", ".join(f"{d['name'].replace('_', ' ')} {d['rank_correlation']:+.2f}" for d in driven[:3]),
                }
            )  # fmt: skip
            continue
        slo = told["slo"]
        table.append(
            {
                "policy": _NAMES[name], "chips": told["chips"], "closed form": told["chips_in_closed_form"],
                "mean chips": told["chips_mean"], "TTFT mean": _time(told["ttft_s"]["mean"]),
                "TTFT p99": _time(told["ttft_s"]["p99"]), "TPOT mean": _time(told["tpot_s"]["mean"]),
                "SLO kept": percent(slo["attainment"]),
                "stream on time": percent(slo["stream"]),
                "cold": told["requests"]["cold"], "switching": percent(told["switching_share"]),
            }
        )  # fmt: skip
    if summary["kind"] == "marketplace":
        cold = summary["cold_chips_share"]
        table.append(
            {
                "policy": "chips under the coldest models",
                "published": "–" if cold["published"] is None else percent(cold["published"]),
                "chips": f"{cold['value']:.1%} [{cold['lo']:.1%}, {cold['hi']:.1%}]", "driven by": "",
            }
        )  # fmt: skip
    return table


def _time(value: float | None) -> str:
    return "–" if value is None else seconds(value)


def html(summary: Mapping[str, Any], requests: Mapping[str, Any] | None) -> str:
    """One page; ``requests`` are the columns of ``requests.parquet``, None for marketplaces."""
    drawn = summary["kind"] == "marketplace"
    names = [_NAMES[p] for p in summary["policies"]]
    if drawn:
        chips = [p["chips"] for p in summary["policies"].values()]
        errors = {"": ([c["lo"] for c in chips], [c["hi"] for c in chips])}
        figure = bar_chart(
            names, {"": [c["value"] for c in chips]}, errors=errors, title="Chips for the same demand",
            value_label=f"{summary['chip']} cards, median and 80% interval",
        )  # fmt: skip
        head = {"draws": number(float(summary["draws"]))}
        charts = [figure]
    else:
        bars = {
            "held": [p["chips"] for p in summary["policies"].values()],
            "mean over time": [p["chips_mean"] for p in summary["policies"].values()],
        }
        charts = [bar_chart(names, bars, title="Chips for the same requests", value_label=f"{summary['chip']} cards")]
        head = {
            "models": number(float(summary["models"])), "requests": number(float(summary["requests"])),
            "simulated": seconds(summary["duration_s"]),
        }  # fmt: skip
        if requests is not None:
            charts += _curves(summary, requests)
    sections = [
        Section("", kpis(head)),
        Section("Policies", charts, columns=True),
        Section("Numbers", html_table(rows(summary))),
        Section("Assumptions", text="\n\n".join(summary["notes"])),
    ]
    whole: str = page(summary["title"] or "Many models on one fleet", sections)
    return whole


def _curves(summary: Mapping[str, Any], requests: Mapping[str, Any]) -> list[str]:
    policy = np.asarray(requests["policy"])
    arrival, first, last = (np.asarray(requests[n], float) for n in ("arrival_s", "first_token_s", "last_token_s"))
    outputs = np.asarray(requests["output_tokens"], float)
    ttft, tpot = {}, {}
    for name in summary["policies"]:
        mine = policy == name
        ttft[_NAMES[name]] = np.maximum((first - arrival)[mine], 1e-3)
        many = mine & (outputs > 1)
        tpot[_NAMES[name]] = np.maximum(((last - first) / np.maximum(outputs - 1, 1))[many], 1e-4)
    slo = summary["slo"]
    return [
        cdf_chart(ttft, title="Time to first token", x_label="seconds", x_log=True, x_format=seconds, limit=slo["ttft_s"]),
        cdf_chart(tpot, title="Time per output token", x_label="seconds a token", x_log=True, x_format=seconds,
            limit=slo["tpot_s"]),
    ]  # fmt: skip
