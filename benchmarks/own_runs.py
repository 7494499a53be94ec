"""What three results of one's own tell of an engine on a chip: every campaign of a table of serving runs left out in turn,
three of its rows taken as the user's, the others predicted with and without them.

    python benchmarks/own_runs.py serving_measured.csv      # three to four minutes of one core
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from trivet.cloud.engine.profiles import from_mapping
from trivet.loop.calibrate_serving import fit_engines, measured_rows, refitted, residuals
from trivet.loop.calibrate_user import Observation, fit
from trivet.loop.serving_model import Compiler, Steady, steady
from trivet.loop.serving_residual import FORMS, fit_process, shipped
from trivet.loop.serving_rows import Case
from trivet.loop.validate_serving import tails
from trivet.units import Z80

QUANTITIES = ("tpot", "ttft")
LEAST_ROWS = 8  # of a campaign that is asked about


def physics_of(case: Case) -> Callable[[Compiler], Steady]:
    return lambda compiler: steady(case, compiler)


class Scores:
    """Log errors and half widths by way of prediction and quantity."""

    def __init__(self) -> None:
        self.errors: dict[tuple[str, str], list[NDArray[np.float64]]] = {}
        self.halves: dict[tuple[str, str], list[NDArray[np.float64]]] = {}

    def add(self, way: str, quantity: str, error: NDArray[np.float64], half: NDArray[np.float64] | float) -> None:
        self.errors.setdefault((way, quantity), []).append(error)
        self.halves.setdefault((way, quantity), []).append(np.broadcast_to(half, error.shape))

    def line(self, way: str, quantity: str) -> str:
        error, half = np.concatenate(self.errors[way, quantity]), np.concatenate(self.halves[way, quantity])
        relative = np.abs(np.expm1(-error))
        return (
            f"{way:28s} {quantity.upper()}  median {np.median(relative):6.1%}  p90 {np.quantile(relative, 0.9):6.1%}  "
            f"in 80% interval {np.mean(np.abs(error) < half):5.1%}  log width {2 * half.mean():.2f}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", type=Path)
    rows, compiler, scores = measured_rows(parser.parse_args().table), Compiler(), Scores()
    fits, processes = fit_engines(rows, compiler, 0), shipped()
    campaigns: dict[tuple[str, ...], list[int]] = {}
    for index, row in enumerate(rows):
        campaigns.setdefault(row.campaign, []).append(index)
    chosen = {key: held for key, held in campaigns.items() if len(held) >= LEAST_ROWS and key[1] == "agg"}
    print(f"{len(chosen)} campaigns, {sum(map(len, chosen.values()))} rows")
    for key, members in sorted(chosen.items()):
        engine = key[0]
        out = np.isin(np.arange(len(rows)), members)
        found, targets = residuals(rows, Compiler(refitted(fits, rows, out), compiler.parts, compiler.rooms))
        order = sorted(members, key=lambda i: (rows[i].case.concurrency, rows[i].case.isl))
        own = [order[len(order) // 6], order[len(order) // 2], order[5 * len(order) // 6]]
        rest = np.array(sorted(set(members) - set(own)))
        observed = [Observation(rows[i].tpot_s, rows[i].ttft_s, physics_of(rows[i].case)) for i in own]
        of_engine = out[[i for i, row in enumerate(rows) if row.case.group["engine"] == engine]]
        user = fit(observed, engine, compiler, fits[engine].without(of_engine))
        calibrated = Compiler({engine: from_mapping(engine, user.constants)}, compiler.parts, compiler.rooms)
        after = [steady(rows[i].case, calibrated) for i in rest]
        for number, name in enumerate(QUANTITIES):
            measured = np.log([getattr(rows[i], f"{name}_s") for i in rest])
            predicted = np.log([float(getattr(one, f"{name}_s")) for one in after])
            scores.add("three measurements", name, measured - predicted, Z80 * user.after[number])
            scores.add("physics, no measurement", name, targets[name][rest], Z80 * user.before[number])
            held, keep = processes[name], ~out
            noise, odd = tails(held, found)
            process = fit_process(
                found.rows(keep), targets[name][keep], FORMS[name], held.logs, noise[keep], odd[keep], held.widths
            )
            part = process.correct(found.rows(np.isin(np.arange(len(rows)), rest)))
            # The interval is around the middle, the error that of the value reported.
            scores.add("residual, no measurement", name, targets[name][rest] - part.value, Z80 * part.deviation)
    for quantity in QUANTITIES:
        for way in ("physics, no measurement", "residual, no measurement", "three measurements"):
            print(scores.line(way, quantity))


if __name__ == "__main__":
    main()
