"""The claim about the loop itself: what one round of codesign on the cloud's own demand does to the cost of a token."""

from __future__ import annotations

from collections.abc import Callable
from statistics import NormalDist

from trivet.chip.catalogue import chip as chip_by_name
from trivet.chip.reading import data_folder, read_yaml
from trivet.loop.claim import Bench, Claim, Figure, verdict
from trivet.loop.claims_chips import SUBJECT
from trivet.loop.codesign import Study
from trivet.loop.codesign_demand import demand
from trivet.loop.codesign_search import best
from trivet.model.config import read as read_model
from trivet.units import Z80

WORTH = -10.0  # per cent: a round of the loop is worth its name if it lowers the cost of a token by at least this


def dividend(bench: Bench) -> Claim:
    """One round: the best successor of the 810E for the cloud's demand, a quarter more area, power and bill allowed."""

    def run() -> tuple[tuple[str, float, float, float, str], ...]:
        workloads = demand(read_yaml(data_folder() / "scenarios" / "codesign.yaml"), read_model)
        found = best(Study(chip_by_name(SUBJECT), workloads, limit=16))
        return tuple((c.metric, c.percent, c.lo, c.hi, c.driver) for c in found.changes if c.workload == "all")

    changes = bench.once("codesign", run)
    figures = []
    probability = 0.0
    driver = ""
    for metric, percent, lo, hi, cause in changes:
        sigma = max((hi - lo) / (2 * Z80), 1e-9)
        chance = NormalDist(percent, sigma).cdf(WORTH) if metric == "cost" else None
        if chance is not None:
            probability, driver = chance, cause
        note = f"driven by {cause}" if cause else ""
        figures.append(Figure(f"{metric} per token, one round", percent, lo, hi, "%", note, chance))
    return Claim(
        "loop", "The chip-cloud-model loop iterates fast, with falling cost",
        f"codesign of the 810E on the cloud's demand; holds if one round lowers the cost of a token by {-WORTH:g}% or more",
        verdict(probability), probability,
        f"{driver or 'the price of silicon'}; the time and design cost of a round, which are left out",
        tuple(figures), "Software, yield and the demand itself are taken to stay as they are.",
    )  # fmt: skip


LOOP_CLAIMS: dict[str, Callable[[Bench], Claim]] = {"loop": dividend}
