"""The compiler's settings of every function in the hot loop.

No array is made or kept there, so reference counts are switched off: they would cost more than the work itself.
What runs at every event is inlined, since handing a dozen arrays to a function costs more than most of them do; what
runs seldom is not, since inlining costs compile time.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

from numba import njit

MODULES = (
    "state",
    "jit",
    "time",
    "queue",
    "cache",
    "blocks",
    "lora",
    "images",
    "links",
    "group",
    "admit",
    "replica",
    "route",
    "fleet",
    "sketch",
)


def forget_stale(folder: Path) -> None:
    """Drop compiled copies that are older than any source of the loop.

    Numba compares a copy with its own file only, but these functions are inlined into each other across files.
    """
    with contextlib.suppress(OSError):
        newest = max((folder / f"_loop_{name}.py").stat().st_mtime for name in MODULES)
        for name in MODULES:
            for index in (folder / "__pycache__").glob(f"_loop_{name}.*.nbi"):
                if index.stat().st_mtime < newest:
                    index.unlink()


forget_stale(Path(__file__).parent)
# Only ``entry`` is called from Python: taking a state of twenty arrays apart for a call from there is most of what a function
# would have to compile.
_INSIDE: dict[str, Any] = {"no_cpython_wrapper": True, "no_cfunc_wrapper": True}
entry = njit(cache=True, error_model="numpy", _nrt=False)
jit = njit(cache=True, error_model="numpy", _nrt=False, forceinline=True, **_INSIDE)
seldom = njit(cache=True, error_model="numpy", _nrt=False, **_INSIDE)
