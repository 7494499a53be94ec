"""Three microbenchmarks of the machine at hand: a large product, a matrix-vector product, a tiny product."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from trivet.errors import TrivetError

SHAPES = {
    "bench_gemm_4096_s": (4096, 4096, 4096),
    "bench_gemv_s": (1, 128256, 4096),
    "bench_gemm_384_s": (384, 384, 384),
}


@dataclass(frozen=True, slots=True)
class Measured:
    """Median seconds of each benchmark, and where they ran."""

    device: str
    backend: str
    dtype: str
    seconds: dict[str, float]
    memory_bytes: float
    threads: int


def _median_seconds(call: Callable[[], Any], wait: Callable[[], None], budget_s: float) -> float:
    """Median of repeated calls within a budget; short calls are timed in batches so that the clock does not count."""
    call()
    wait()
    start = time.perf_counter()
    call()
    wait()
    once = max(time.perf_counter() - start, 1e-7)
    batch = max(1, int(1e-3 / once))
    rounds = int(min(30, max(3, budget_s / (once * batch))))
    found = []
    for _ in range(rounds):
        start = time.perf_counter()
        for _ in range(batch):
            call()
        wait()
        found.append((time.perf_counter() - start) / batch)
    return float(np.median(found))


def _numpy_calls() -> tuple[str, str, dict[str, Callable[[], Any]], Callable[[], None]]:
    rng = np.random.default_rng(0)
    calls: dict[str, Callable[[], Any]] = {}
    for name, (m, n, k) in SHAPES.items():
        left = rng.standard_normal((m, k), dtype=np.float32)
        right = rng.standard_normal((k, n), dtype=np.float32)
        out = np.empty((m, n), np.float32)
        calls[name] = partial(np.matmul, left, right, out=out)
    return "numpy", "fp32", calls, lambda: None


def _torch_calls(device: str) -> tuple[str, str, dict[str, Callable[[], Any]], Callable[[], None]]:
    import torch

    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    calls: dict[str, Callable[[], Any]] = {}
    for name, (m, n, k) in SHAPES.items():
        left, right = torch.randn(m, k, dtype=dtype, device=device), torch.randn(n, k, dtype=dtype, device=device)
        calls[name] = partial(torch.nn.functional.linear, left, right)
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    return "torch", "bf16" if device == "cuda" else "fp32", calls, wait


def _device() -> tuple[str, str]:
    """(what runs: cuda, torch or numpy; the name of the device)."""
    try:
        import torch
    except ImportError:
        return "numpy", _cpu_name()
    return ("cuda", str(torch.cuda.get_device_name(0))) if torch.cuda.is_available() else ("torch", _cpu_name())


def _cpu_name() -> str:
    path = Path("/proc/cpuinfo")
    if path.is_file():
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.lower().startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def measure(
    backend: str = "", budget_s: float = 10.0, report: Callable[[str, int, int], None] | None = None
) -> Measured:
    """Run the three microbenchmarks; ``backend``: "numpy", "torch", "cuda" or "" for the best there is.

    Raises TrivetError for a back end that is not there.
    """
    found, name = _device()
    wanted = backend or found
    if wanted not in ("numpy", "torch", "cuda"):
        raise TrivetError(f"unknown back end {backend!r}", field="backend", allowed="numpy, torch, cuda")
    if wanted != "numpy" and (found == "numpy" or (wanted == "cuda" and found != "cuda")):
        raise TrivetError(
            f"{wanted} is not available here", field="backend", allowed="numpy" if found == "numpy" else "numpy, torch"
        )
    label, dtype, calls, wait = (
        _numpy_calls() if wanted == "numpy" else _torch_calls("cuda" if wanted == "cuda" else "cpu")
    )
    seconds = {}
    for index, (key, call) in enumerate(calls.items()):
        if report is not None:
            report(key, index, len(calls))
        seconds[key] = _median_seconds(call, wait, budget_s / len(calls))
    memory = float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")) if hasattr(os, "sysconf") else 0.0
    if wanted == "cuda":
        import torch

        memory = float(torch.cuda.get_device_properties(0).total_memory)
        name = str(torch.cuda.get_device_name(0))
    threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return Measured(name, label, dtype, seconds, memory, threads)


def catalogue_entry(found: Measured, title: str = "") -> str:
    """A catalogue file (YAML) of the measured device: rates that the benchmarks bound, with their intervals."""
    gemm, gemv, tiny = (found.seconds[n] for n in SHAPES)
    size = 2.0 if found.dtype == "bf16" else 4.0
    rate = 2.0 * 4096.0**3 / gemm
    stream = 128256.0 * 4096.0 * size / gemv
    launch = max(tiny - 2.0 * 384.0**3 / rate, 0.2e-6)
    role = "cpu" if found.backend == "numpy" or found.dtype == "fp32" else "accelerator"
    today = datetime.now(UTC).date().isoformat()
    lines = [
        f"title: {_quoted(title or found.device)}", "maker: local", "family: local", f"role: {role}",
        f"dtypes: [{found.dtype}]", "facts:",
        f"  - source: {_quoted(f'three microbenchmarks with {found.backend}, {found.threads} threads, on this machine')}",
        "    status: measured", f"    date: {_quoted(today)}", "    values:",
        *(f"      {name}: {found.seconds[name]:.6e}" for name in SHAPES),
        '  - source: "the benchmarks over the share of its peak that a chip usually reaches there"', "    status: derived",
        f"    date: {_quoted(today)}", "    values:",
        f"      peak_flops_{found.dtype}: {{value: {rate / 0.82:.4e}, lo: {rate / 0.97:.4e}, hi: {rate / 0.66:.4e}}}",
        f"      memory_bandwidth_bytes_per_s: {{value: {stream / 0.85:.4e}, lo: {stream / 0.98:.4e}, hi: {stream / 0.72:.4e}}}",
        f"      launch_s: {{value: {launch:.4e}, lo: {launch / 2:.4e}, hi: {max(tiny, launch):.4e}}}",
        '  - source: "the operating system"', "    status: measured", f"    date: {_quoted(today)}", "    values:",
        f"      memory_bytes: {found.memory_bytes:.0f}", f"      compute_units: {found.threads}",
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', "'") + '"'
