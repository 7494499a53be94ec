"""Configurations a second of ``trivet plan``'s search, and its cold time; beside aiconfigurator's where it is installed.

    python benchmarks/plan.py [--json]

A configuration is one (chip, engine, precision, layout, token budget, sequence limit, replica count), evaluated to TTFT,
TPOT, utilisation, cost and energy. The search runs once to warm up and is then timed; ``cold_s`` is the whole command in a
new process with a warm compile cache. ``AICONFIGURATOR_PYTHON`` may name a Python that has aiconfigurator 0.12.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time

CHIPS = ["zhenwu-810e", "h20", "a800", "h100"]

# One evaluation of the peer: a static-batch estimate of the same model on one H100, session reused.
PEER = """
import time, warnings, logging
warnings.filterwarnings("ignore"); logging.disable(logging.CRITICAL)
from aiconfigurator.sdk import config, common
from aiconfigurator.sdk.perf_database import get_database
from aiconfigurator.sdk.models import get_model
from aiconfigurator.sdk.backends.factory import get_backend
from aiconfigurator.sdk.inference_session import InferenceSession
database = get_database(system="h100_sxm", backend="trtllm", version="1.3.0rc20")
model_config = config.ModelConfig(tp_size=2)
session = InferenceSession(get_model("Qwen/Qwen3-32B", model_config, "trtllm"), database, get_backend("trtllm"))
def one(batch):
    return session.run_static(mode="static", runtime_config=config.RuntimeConfig(batch_size=batch, isl=1155, osl=211))
one(1)
started = time.perf_counter()
for batch in range(2, 102):
    one(batch)
print((time.perf_counter() - started) / 100)
"""


def peer_s() -> tuple[float | None, str]:
    """Seconds of one evaluation by aiconfigurator, or None with the reason."""
    python = os.environ.get("AICONFIGURATOR_PYTHON", sys.executable)
    run = subprocess.run([python, "-c", PEER], capture_output=True, text=True)
    if run.returncode:
        lines = run.stderr.strip().splitlines()
        return None, f"aiconfigurator did not run: {lines[-1] if lines else 'no message'}"
    return float(run.stdout.split()[-1]), ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    as_json = parser.parse_args().json

    from trivet.interop.traces import read as read_trace
    from trivet.loop.plan import search
    from trivet.loop.plan_run import PlanRequest
    from trivet.model.config import read as read_model

    request = {"model": "Qwen/Qwen3-32B", "traffic": "azure2023-conv", "chips": CHIPS}
    _, goal, space = PlanRequest.create(request, read_model=read_model, read_trace=read_trace)
    search(goal, space)
    started = time.process_time()
    found = search(goal, space)
    cpu_s = time.process_time() - started
    command = ["plan", "Qwen/Qwen3-32B", "--traffic", "azure2023-conv", "--chips", ",".join(CHIPS), "--slo", "ttft=1s,tpot=50ms"]
    started = time.perf_counter()
    start = [sys.executable, "-c", "from trivet.apps.cli.main import main; main()"]
    subprocess.run([*start, *command], check=True, capture_output=True)
    cold_s = time.perf_counter() - started
    other_s, reason = peer_s()
    rate = found.evaluated / cpu_s
    result = {
        "configurations": found.evaluated,
        "cpu_s": round(cpu_s, 3),
        "configurations_per_s": round(rate),
        "cold_s": round(cold_s, 2),
        "aiconfigurator_evaluations_per_s": None if other_s is None else round(1 / other_s),
        "ratio_to_aiconfigurator": None if other_s is None else round(rate * other_s, 1),
        "note": reason,
    }
    print(json.dumps(result) if as_json else "\n".join(f"{k}: {v}" for k, v in result.items()))


if __name__ == "__main__":
    main()
