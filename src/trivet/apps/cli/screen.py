"""Progress on a terminal: shown after a second, on stderr, gone at the end."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def progress(enabled: bool = True, delay_s: float = 1.0) -> Iterator[Callable[[str, int, int], None]]:
    """A callable ``report(what, done, total)``; draws nothing off a terminal or before ``delay_s``."""
    started = time.monotonic()
    state: dict[str, object] = {}

    def report(what: str, done: int, total: int) -> None:
        if not enabled or not sys.stderr.isatty() or time.monotonic() - started < delay_s:
            return
        if "bar" not in state:
            from rich.console import Console
            from rich.progress import Progress

            bar = Progress(console=Console(stderr=True), transient=True)
            bar.start()
            state["bar"], state["task"] = bar, bar.add_task(what, total=total)
        state["bar"].update(state["task"], description=what, completed=done, total=total)  # type: ignore[attr-defined]

    try:
        yield report
    finally:
        if "bar" in state:
            state["bar"].stop()  # type: ignore[attr-defined]
