"""How fast a fleet is simulated, against Dynamo's offline replay on the same requests in the same run.

    python benchmarks/simulate.py [--json] [--requests 10000] [--peer-python PATH]

Three cases, each the best of several runs with the compile cache warm: the Azure 2023 conversation trace on one H100
under vLLM (Llama-3.1-8B, 2,048 tokens and 256 sequences a step), 16,000 of its requests over 8 replicas behind a router,
and the Mooncake conversation trace with prefix cache and KV tiers. Times are CPU seconds of the whole call, from arrays
of arrivals to arrays of results.

The peer (PyPI ``ai-dynamo`` and ``ai-dynamo-runtime``) lives in an environment of its own: ``--peer-python`` names its
interpreter; without it one is made in the cache folder, and the ratio is null where that fails.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from trivet.cloud.serving.fleet import Fleet, simulate
from trivet.cloud.serving.traffic import Traffic
from trivet.interop.traces import read
from trivet.loop.scenario import fleet_of
from trivet.loop.scenario_schema import parse
from trivet.model.config import read as read_model

PEER = ("ai-dynamo==1.6.1", "ai-dynamo-runtime==1.6.1")
PEER_CODE = """
import json, sys, time
from dynamo._core import run_mocker_trace_replay as run
args = {"engine": {"backend": "vllm", "num_gpu_blocks": int(sys.argv[2]), "block_size": 16, "max_num_seqs": 256,
        "max_num_batched_tokens": 2048, "enable_prefix_caching": False}}
start = time.process_time()
result = run([sys.argv[1]], extra_engine_args=args, num_workers=1, trace_block_size=512, capture_planner_details=False)
spent = time.process_time() - start
done = dict(result.summary)
print(json.dumps({"requests": done["completed_requests"], "cpu_s": spent}))
"""


def scenario(**changes: Any) -> dict[str, Any]:
    return {
        "model": "meta-llama/Meta-Llama-3.1-8B",
        "traffic": {"trace": "azure2023-conv"},
        "fleet": [{"chip": "h100"}],
        "engine": {"name": "vllm", "max_num_batched_tokens": 2048, "max_num_seqs": 256},
        **changes,
    }


def fleet(traffic: Traffic, **changes: Any) -> Fleet:
    checked = parse(scenario(**changes))
    return fleet_of(checked, read_model(checked.model), traffic)[0]


def best_cpu_s(call: Callable[[], Any], runs: int = 9) -> float:
    call()
    spent = []
    for _ in range(runs):
        start = time.process_time()
        call()
        spent.append(time.process_time() - start)
    return min(spent)


def peer_python(given: str) -> tuple[str | None, str]:
    """The peer's interpreter, or None with the reason."""
    if given:
        return given, ""
    home = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "trivet-peer-dynamo"
    python = home / "bin" / "python"
    if not python.exists():
        try:
            subprocess.run([sys.executable, "-m", "venv", str(home)], check=True, capture_output=True)
            pip = [str(python), "-m", "pip", "install", "-q"]
            subprocess.run([*pip, PEER[1]], check=True, capture_output=True, timeout=600)
            subprocess.run([*pip, "--no-deps", PEER[0]], check=True, capture_output=True, timeout=600)
        except (subprocess.SubprocessError, OSError) as error:
            return None, f"the peer does not install: {error}"
    return str(python), ""


def peer(python: str, traffic: Traffic, kv_blocks: int) -> dict[str, Any]:
    """Dynamo's offline replay of the same requests; its own mocker times the steps."""
    with tempfile.TemporaryDirectory() as folder:
        trace, code = Path(folder) / "trace.jsonl", Path(folder) / "peer.py"
        first = 0
        with trace.open("w") as file:
            for arrival, inputs, outputs in zip(
                traffic.arrival_s, traffic.input_tokens, traffic.output_tokens, strict=True
            ):
                blocks = -(-int(inputs) // 512)
                row = {
                    "timestamp": round(float(arrival) * 1e3, 3),
                    "input_length": int(inputs),
                    "output_length": int(outputs),
                }
                file.write(json.dumps({**row, "hash_ids": list(range(first, first + blocks))}) + "\n")
                first += blocks
        code.write_text(PEER_CODE)
        done = subprocess.run(
            [python, str(code), str(trace), str(kv_blocks)], capture_output=True, text=True, timeout=600
        )
    if done.returncode:
        raise RuntimeError(done.stderr.strip().splitlines()[-1])
    answer: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return answer


def run(requests: int, given_python: str) -> dict[str, Any]:
    azure = read("azure2023-conv", limit=requests)
    one = fleet(azure)
    out: dict[str, Any] = {"requests_per_cpu_s": requests / best_cpu_s(lambda: simulate(azure, one))}
    many = read("azure2023-conv", limit=16_000).scaled(8.0)
    eight = fleet(many, fleet=[{"chip": "h100", "replicas": 8}])
    out["requests_per_cpu_s_8_replicas"] = len(many) / best_cpu_s(lambda: simulate(many, eight))
    mooncake = read("mooncake-conversation")
    tiers = [{"name": "host"}, {"name": "nvme"}]
    cached = fleet(mooncake, router="prefix_aware", fleet=[{"chip": "h100", "replicas": 8, "tiers": tiers}])
    out["requests_per_cpu_s_prefix_cache"] = len(mooncake) / best_cpu_s(lambda: simulate(mooncake, cached), 5)
    out["ratio_to_dynamo"], out["reason"] = None, ""
    python, out["reason"] = peer_python(given_python)
    if python:
        try:
            answer = peer(python, azure, one.kinds[0].kv_blocks)
            out["dynamo_requests_per_cpu_s"] = answer["requests"] / answer["cpu_s"]
            out["ratio_to_dynamo"] = out["requests_per_cpu_s"] / out["dynamo_requests_per_cpu_s"]
        except (RuntimeError, subprocess.SubprocessError, OSError, ValueError, KeyError) as error:
            out["reason"] = f"the peer does not run: {error}"
    return out


def scaling(each: int = 2000) -> list[dict[str, float]]:
    """Cost a request by replicas, ``each`` requests and the same load on every one; and by requests on eight."""
    rows = []
    for replicas, share in ((1, each), (8, each), (64, each), (512, each // 4), (8, each // 4), (8, each * 4)):
        count = replicas * share
        source = read("azure2023-conv", limit=min(count, 16_000))
        copies = -(-count // len(source))
        traffic = Traffic(
            np.sort(np.concatenate([source.arrival_s + source.duration_s * i for i in range(copies)])[:count]) ,
            np.tile(source.input_tokens, copies)[:count], np.tile(source.output_tokens, copies)[:count],
        ).scaled(0.75 * replicas)  # fmt: skip
        these = fleet(source, fleet=[{"chip": "h100", "replicas": replicas}])
        spent = best_cpu_s(lambda load=traffic, many=these: simulate(load, many), 3)  # type: ignore[misc]
        rows.append({"replicas": replicas, "requests": count, "us_per_request": 1e6 * spent / count})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--peer-python", default="")
    parser.add_argument("--scaling", action="store_true", help="cost by replicas and by requests instead")
    given = parser.parse_args()
    if given.scaling:
        table = scaling()
        if given.json:
            print(json.dumps(table))
        for row in [] if given.json else table:
            print(
                f"{row['replicas']:5.0f} replicas {row['requests']:9,.0f} requests {row['us_per_request']:7.2f} us a request"
            )
        return
    found = run(given.requests, given.peer_python)
    if given.json:
        print(json.dumps(found))
        return
    for name, value in found.items():
        if value not in ("", None):
            print(f"{name:34s} {value:,.0f}" if isinstance(value, float | np.floating) else f"{name:34s} {value}")


if __name__ == "__main__":
    main()
