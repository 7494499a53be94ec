"""What pooling does for a marketplace of tens of models: Aegaeon's published facts rebuilt, with spread.

    python examples/marketplace.py [--draws 40] [--chip h20] [-o marketplace.html]

Prints chips by policy (median and 80% interval) next to what was published, and writes a picture.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from trivet.chip.catalogue import chip
from trivet.cloud.deployment import Deployment, EngineSettings
from trivet.cloud.serving.marketplace import Draw, Published, customer_series, rebuild, spread
from trivet.cloud.serving.pooling import POLICIES, Pool, PooledModel, from_deployment
from trivet.interop.clients import read_clients
from trivet.model.config import read
from trivet.model.parallel import Layout
from trivet.report.charts import Section, bar_chart, html_table, page
from trivet.report.tables import cell_text, print_table

SMALL = ("Qwen/Qwen3-1.7B", "Qwen/Qwen3-8B")  # one chip each
LARGE = ("Qwen/Qwen3-32B", "meta-llama/Meta-Llama-3.1-70B")  # four chips each
INPUT_TOKENS, OUTPUT_TOKENS = 330.0, 250.0  # of chat requests


def models(names: tuple[str, ...], chip_name: str, tp: int) -> list[PooledModel]:
    return [
        from_deployment(
            Deployment(read(n), chip(chip_name), Layout(tp=tp), EngineSettings()), INPUT_TOKENS, OUTPUT_TOKENS
        )
        for n in names
    ]


def rows(draws: list[Draw]) -> list[dict[str, object]]:
    known = Published()
    published = {"dedicated": known.dedicated_chips, "token_level": known.pooled_chips}
    table: list[dict[str, object]] = [
        {"policy": p, "chips": spread(draws, p), "published": published.get(p)} for p in POLICIES
    ]
    shares = sorted(d.cold_chips_share for d in draws)
    ends = [shares[round(q * (len(shares) - 1))] for q in (0.1, 0.5, 0.9)]
    cold = {"value": ends[1], "lo": ends[0], "hi": ends[2]}
    table.append(
        {
            "policy": "share of chips under models with 1.35% of requests",
            "chips": cold,
            "published": known.cold_chips_share,
        }
    )
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=40)
    parser.add_argument("--chip", default="h20")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("-o", "--output", type=Path)
    options = parser.parse_args()
    card = chip(options.chip)
    memory, link = card.get("memory_bytes"), card.get("host_bandwidth_bytes_per_s")
    if memory is None or link is None:
        sys.exit(f"{card.name}: memory or host link unknown")
    draws = rebuild(
        models(SMALL, options.chip, 1), models(LARGE, options.chip, 4), customer_series(read_clients()),
        Pool(0.9 * memory, link), draws=options.draws, seed=options.seed,
        progress=lambda n: print(f"\r{n}/{options.draws}", end="", file=sys.stderr),
    )  # fmt: skip
    print(file=sys.stderr)
    table = rows(draws)
    print_table(
        table,
        title=f"Marketplace of {min(d.models for d in draws)}-{max(d.models for d in draws)} models on {card.title}",
    )
    if options.output:
        shown = {p: spread(draws, p) for p in POLICIES}
        figure = bar_chart(
            [p.replace("_", " ") for p in shown], {"": [v["value"] for v in shown.values()]},
            errors={"": ([v["lo"] for v in shown.values()], [v["hi"] for v in shown.values()])},
            title="Chips for the same demand", value_label=f"{card.title} cards, median and 80% interval",
        )  # fmt: skip
        flat = [r | {"chips": cell_text(r["chips"])} for r in table]
        text = page("Pooling many models", [Section("", [figure]), Section("Numbers", html_table(flat))])
        options.output.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
