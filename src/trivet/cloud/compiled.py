"""What the compiled hot loops share: settings of the compiler, and which compiled copies on disk still hold."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

# For functions that only compiled code calls: taking a dozen tuples of arrays apart for a call from Python is most of what many
# of them would have to compile.
INSIDE: dict[str, Any] = {"no_cpython_wrapper": True, "no_cfunc_wrapper": True}


def forget_stale(folder: Path) -> None:
    """Drop compiled copies that are older than any source of the folder's loops, before one is loaded.

    Numba compares a copy with its own file only, but these functions are compiled into each other across files.
    """
    with contextlib.suppress(OSError):
        newest = max(source.stat().st_mtime for source in folder.glob("_loop_*.py"))
        for index in (folder / "__pycache__").glob("_loop_*.nbi"):
            if index.stat().st_mtime < newest:
                index.unlink()
