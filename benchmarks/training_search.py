"""GPT-3 175B on 4,096 A100: every configuration of Calculon's space, timed; and the ratio to Calculon where it is installed.

    python benchmarks/training_search.py --json

Calculon's command for the same space: ``calculon llm-optimal-execution gpt3-175B.json 4096 4096 float16 a100_80e.json``.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import time
from typing import Any

from trivet.chip.catalogue import chip
from trivet.cloud.training.names import architecture
from trivet.loop.training_space import Space, search


def ours(chips: int, batch: int) -> dict[str, Any]:
    started = time.perf_counter()
    found = search(Space(architecture("gpt3-175b"), chip("a100-80gb"), chips, batch, 2048))
    wall = time.perf_counter() - started
    return {
        "configurations": found.configurations,
        "feasible": found.feasible,
        "wall_s": round(wall, 3),
        "configurations_per_s": round(found.configurations / wall),
        "samples_per_s": round(found.samples_per_s, 3),
        "step_s": round(found.step_s, 4),
        "memory_gb": round(found.memory_bytes / 1e9, 1),
        "best": found.best,
    }


def calculon_rate(seconds: float = 10.0) -> float | None:
    """Configurations a second of Calculon on one core, over an even sample of the same space; None where not installed."""
    if importlib.util.find_spec("calculon") is None:
        return None
    import logging

    from calculon.llm import Llm
    from calculon.llm.all_executions import AllExecutions
    from calculon.system import System

    app = Llm.Application(
        {
            "name": "gpt3-175B",
            "hidden": 12288,
            "feedforward": 49152,
            "seq_size": 2048,
            "attn_heads": 96,
            "attn_size": 128,
            "num_blocks": 96,
        }
    )
    steps = [[100, 0.9], [10, 0.75], [1, 0.6], [0, 0.3]]
    network = {
        "efficiency": 0.65,
        "latency": 1e-5,
        "ops": {"p2p": [1.0, None], "reduce_scatter": [1.5, -1], "all_gather": [1.5, -1], "all_reduce": [2.0, -1]},
    }
    system = System(
        {
            "matrix": {"float16": {"tflops": 312, "gflops_efficiency": [[128, 0.95], [16, 0.9], [1, 0.6], [0, 0.1]]}},
            "vector": {"float16": {"tflops": 78, "gflops_efficiency": [[16, 0.95], [1, 0.5], [0, 0.1]]}},
            "mem1": {"GiB": 80, "GBps": 2048, "MB_efficiency": steps},
            "mem2": {"GiB": 512, "GBps": 32, "MB_efficiency": steps},
            "processing_mode": "no_overlap",
            "networks": [
                {**network, "bandwidth": 300, "size": 8, "must_be_filled": True, "processor_usage": 0.15},
                {**network, "bandwidth": 25, "size": 65536, "must_be_filled": False, "processor_usage": 0.02},
            ],
        }
    )
    every = AllExecutions.all_executions(app, system, 4096, 4096, "float16", [True])
    done, started = 0, time.perf_counter()
    for index, execution in enumerate(every):
        if index % 997:
            continue
        try:
            model = Llm(app, logging.getLogger("calculon"))
            model.compile(system, Llm.Execution(*execution))
            model.run(system)
        except Llm.Error:
            pass
        done += 1
        if time.perf_counter() - started > seconds:
            break
    return done / (time.perf_counter() - started)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--chips", type=int, default=4096)
    parser.add_argument("--batch", type=int, default=4096, help="largest global batch, sequences")
    options = parser.parse_args()
    result = ours(options.chips, options.batch)
    peer = calculon_rate()
    result["calculon_configurations_per_s_per_core"] = None if peer is None else round(peer, 1)
    result["ratio_to_calculon"] = None if peer is None else round(result["configurations_per_s"] / peer, 1)
    if options.json:
        print(json.dumps(result))
        return
    for key, value in result.items():
        print(f"{key:42} {value}")


if __name__ == "__main__":
    main()
