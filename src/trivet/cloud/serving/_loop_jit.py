"""The compiler's settings of every function in the hot loop.

No array is made or kept there, so reference counts are switched off: they would cost more than the work itself.
What runs at every event is inlined, since handing a dozen arrays to a function costs more than most of them do; what
runs seldom is not, since inlining costs compile time.
"""

from __future__ import annotations

from pathlib import Path

from numba import njit

from trivet.cloud.compiled import INSIDE, forget_stale

forget_stale(Path(__file__).parent)
# Only ``entry`` is called from Python.
entry = njit(cache=True, error_model="numpy", _nrt=False)
jit = njit(cache=True, error_model="numpy", _nrt=False, forceinline=True, **INSIDE)
seldom = njit(cache=True, error_model="numpy", _nrt=False, **INSIDE)
