"""Progress on a terminal: shown after a second, on stderr, gone at the end."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # rich is imported when a bar is drawn
    from rich.progress import Progress, TaskID


@contextmanager
def progress(enabled: bool = True, delay_s: float = 1.0) -> Iterator[Callable[[str, int, int], None]]:
    """A callable ``report(what, done, total)``; draws nothing off a terminal or before ``delay_s``."""
    started = time.monotonic()
    bar: Progress | None = None
    task: TaskID | None = None

    def report(what: str, done: int, total: int) -> None:
        nonlocal bar, task
        if not enabled or not sys.stderr.isatty() or time.monotonic() - started < delay_s:
            return
        if bar is None or task is None:
            from rich.console import Console
            from rich.progress import Progress

            bar = Progress(console=Console(stderr=True), transient=True)
            bar.start()
            task = bar.add_task(what, total=total)
        bar.update(task, description=what, completed=done, total=total)

    try:
        yield report
    finally:
        if bar is not None:
            bar.stop()
