"""The compiler's settings of the cluster's loops. Only ``entry`` is called from Python."""

from __future__ import annotations

from pathlib import Path

from numba import njit

from trivet.cloud.compiled import INSIDE, forget_stale

forget_stale(Path(__file__).parent)
entry = njit(cache=True)
jit = njit(cache=True, **INSIDE)
inline = njit(cache=True, inline="always")
# Inlined by LLVM: for what runs at every task, where a call costs 6% and numba's own inlining 9%.
merged = njit(cache=True, forceinline=True, **INSIDE)
