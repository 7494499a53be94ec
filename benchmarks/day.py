"""One day of all four Model Studio services, request by request: generated and simulated block by block.

    python benchmarks/day.py [--json] [-o DIR] [--day 13] [--hours 24] [--workers 2] [--chip zhenwu-810e]

Every request of the day (about 280 million) arrives, queues, is batched, decoded and leaves on a fleet that is sized for
the day's peak. A service is one simulation; services run side by side in two processes. Memory holds one block of ten
minutes and what is in flight, whatever the length of the day. Bars: under 300 s and 8 GB on two cores, warm cache.

The services' models are not published; those assumed are printed.
"""

from __future__ import annotations

import argparse
import json
import math
import resource
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

import numpy as np
import polars as pl

from trivet.chip.catalogue import chip
from trivet.cloud.deployment import Deployment, EngineSettings, StepTable
from trivet.cloud.engine import step_table
from trivet.cloud.serving import _loop_state as k
from trivet.cloud.serving.fleet import Fleet, FleetRun, ReplicaKind
from trivet.cloud.serving.metrics import columns, summary_streamed
from trivet.cloud.serving.rate import load, open_loop
from trivet.cloud.serving.sketches import merged
from trivet.cloud.serving.stream import on_clock, simulate_stream
from trivet.cloud.serving.tenants_traffic import ASSUMED_MODELS, DAY_WINDOWS, WINDOW_S, stream
from trivet.cloud.serving.traffic import Traffic
from trivet.interop.clients import read_clients
from trivet.model.config import read
from trivet.model.parallel import Layout

LAYOUTS = {
    "m-small": Layout(tp=1),
    "m-mid": Layout(tp=2),
    "m-large": Layout(tp=4, attention_dp=2, moe_ep=8),
    "deepseek-r1": Layout(tp=16, moe_ep=16),
}
TTFT_SLO_S, TPOT_SLO_S = 2.0, 0.1


def deployment(service: str, chip_name: str) -> Deployment:
    """The assumed model on the chip, as one engine instance."""
    return Deployment(read(ASSUMED_MODELS[service]), chip(chip_name), LAYOUTS[service], EngineSettings())


def replicas(service: str, table: StepTable, settings: EngineSettings, day: int, ranks: int) -> int:
    """Instances that keep 95% of the day's requests within the SLO; each attention rank is a loop replica.

    The closed form at the busiest ten minutes gives the first guess; a part of the day's traffic on as small a part of the
    fleet (eight instances or more) decides. It stops where more instances no longer help: some prompts are too long.
    """
    source = read_clients()[service]
    windows = np.arange(day * DAY_WINDOWS, (day + 1) * DAY_WINDOWS)
    rates = source.rate_per_s()[windows % source.windows]
    busiest = int(windows[rates.argmax()])
    few = min(1.0, 300.0 / rates.max())
    peak = next(stream(source, start_s=busiest * WINDOW_S, end_s=(busiest + 1) * WINDOW_S, rate=few, seed=1))
    shape = load(peak.arrival_s, peak.input_tokens, peak.output_tokens)
    grid = np.geomspace(0.01, 200.0, 400)
    budget, limit = np.array(float(settings.max_num_batched_tokens)), np.array(float(settings.max_num_seqs))
    point = open_loop(table, shape, grid, budget, limit, 0.9)
    good = (point.limit == 0) & (point.ttft_s <= TTFT_SLO_S) & (point.tpot_s <= TPOT_SLO_S)
    guess = rates.max() / (float(grid[good].max()) if good.any() else float(grid[0])) / ranks
    count = min(math.ceil(guess), 8)
    thin, before = min(1.0, count / guess), 0.0
    while True:
        fleet = FleetRun(Fleet((ReplicaKind(table, settings, count * ranks, ranks=ranks),)))
        begin, end = windows[0] * WINDOW_S, (windows[-1] + 1) * WINDOW_S
        met = total = 0
        for part in stream(source, start_s=begin, end_s=end, rate=thin, seed=1):
            met += int(np.count_nonzero(within_slo(fleet.feed(part, final=False).rows)))
            total += len(part)
        share = met / max(total, 1)
        if share >= 0.95 or share < before + 0.005:
            return math.ceil(count / thin)
        before, count = share, math.ceil(1.2 * count)


def within_slo(rows: np.ndarray) -> np.ndarray:
    """Which of the finished requests met both limits."""
    first = (rows[:, k.O_FIRST] - rows[:, k.O_ARRIVAL]) / k.PS
    each = (rows[:, k.O_LAST] - rows[:, k.O_FIRST]) / k.PS / np.maximum(rows[:, k.O_OUTPUT] - 1, 1)
    return (rows[:, k.O_STATUS] == k.DONE) & (first <= TTFT_SLO_S) & (each <= TPOT_SLO_S)


def run(
    service: str, chip_name: str, day: int, hours: float, seed: int, spare: float, scale: float, out: Path | None
) -> dict[str, object]:
    """Simulate one service's day; see the module."""
    begin, cpu = time.perf_counter(), time.process_time()
    dep = deployment(service, chip_name)
    table = step_table(dep)
    instances = math.ceil(spare * scale * replicas(service, table, dep.settings, day, dep.layout.attention_dp))
    ranks = instances * dep.layout.attention_dp
    fleet = Fleet(
        (
            ReplicaKind(
                table,
                dep.settings,
                ranks,
                chips=dep.layout.chips // dep.layout.attention_dp,
                ranks=dep.layout.attention_dp,
            ),
        )
    )
    start, early, seen = day * 86400.0, 0, 0
    end = start + int(hours * 3600 / WINDOW_S) * WINDOW_S

    def watched() -> Iterator[Traffic]:
        nonlocal early, seen
        for block in on_clock(stream(read_clients()[service], start_s=start, end_s=end, seed=seed, rate=scale), start):
            seen += len(block)
            if block.arrival_s.size and block.arrival_s[0] <= (end - start) / 4:
                early = peak_bytes()
            yield block

    found = simulate_stream(watched(), fleet, service=service, ttft_slo_s=TTFT_SLO_S, tpot_slo_s=TPOT_SLO_S)
    told, count = summary_streamed(found), found.sketches.counters()
    if out is not None:
        pl.DataFrame(found.sketches.table()).write_parquet(out / f"{service}.sketches.parquet")
        pl.DataFrame(columns(found.sample, found.ids)).write_parquet(out / f"{service}.requests.parquet")
    return {
        "service": service, "model": ASSUMED_MODELS[service], "chip": chip_name, "instances": instances,
        "chips": instances * dep.layout.chips, "requests": seen, "finished": count["requests"],
        "output_tokens": count["output_tokens"], "ttft_p50_s": told["ttft_s"]["p50"], "ttft_p99_s": told["ttft_s"]["p99"],
        "tpot_p50_s": told["tpot_s"]["p50"], "tpot_p99_s": told["tpot_s"]["p99"], "itl_p99_s": told["itl_s"]["p99"],
        "e2e_p99_s": told["e2e_s"]["p99"], "within_slo": told["slo"]["attainment"], "sampled": int(found.ids.size),
        "wall_s": time.perf_counter() - begin,
        "cpu_s": time.process_time() - cpu, "peak_bytes": peak_bytes(), "peak_bytes_at_a_quarter": early,
    }  # fmt: skip


def peak_bytes() -> int:
    """Largest resident size of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--day", type=int, default=13, help="day of the two recorded weeks, 0-13")
    parser.add_argument("--hours", type=float, default=24.0)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--chip", default="zhenwu-810e")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--spare", type=float, default=1.0, help="times the instances that the peak needs")
    parser.add_argument("--scale", type=float, default=1.0, help="times the traffic and the fleet")
    parser.add_argument(
        "-o", "--output", type=Path, help="folder for sketches.parquet of all and each service's sample"
    )
    parser.add_argument("--services", nargs="*", default=["m-mid", "m-small", "m-large", "deepseek-r1"])
    options = parser.parse_args()
    if not options.json:
        for service in options.services:
            print(f"assumed: {service} is {ASSUMED_MODELS[service]}", file=sys.stderr)
    if options.output is not None:
        options.output.mkdir(parents=True, exist_ok=True)
    begin = time.perf_counter()
    rows = []
    with ProcessPoolExecutor(options.workers) as pool:
        fixed = (options.chip, options.day, options.hours, options.seed, options.spare, options.scale, options.output)
        jobs = [pool.submit(run, s, *fixed) for s in options.services]
        for job in as_completed(jobs):
            row = job.result()
            rows.append(row)
            if not options.json:
                print(json.dumps(row), file=sys.stderr)
    if options.output is not None:
        parts = [
            pl.read_parquet(options.output / f"{s}.sketches.parquet").to_dict(as_series=False) for s in options.services
        ]
        pl.DataFrame(merged(parts, by=("service", "group", "hour"))).write_parquet(options.output / "sketches.parquet")
    wall = time.perf_counter() - begin
    children = sorted((int(r["peak_bytes"]) for r in rows), reverse=True)[: options.workers]
    lost = sum(int(r["requests"]) - int(r["finished"]) for r in rows)
    result = {
        "requests": sum(int(r["requests"]) for r in rows), "wall_s": wall, "peak_bytes": sum(children) + peak_bytes(),
        "cpu_s": sum(float(r["cpu_s"]) for r in rows), "chips": sum(int(r["chips"]) for r in rows), "lost": lost,
        "ratio_to_bar_wall": 300.0 * options.hours / 24.0 / wall, "services": rows,
    }  # fmt: skip
    print(json.dumps(result, indent=None if options.json else 1))
    if lost:
        sys.exit(f"{lost} requests neither ended nor were refused")


if __name__ == "__main__":
    main()
