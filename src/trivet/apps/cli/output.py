"""The end of a command: its files, whole or not at all, then JSON or a table on the screen."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any


def deliver(
    summary: Any,
    out: Path | None,
    as_json: bool,
    show: Callable[[str], None],
    pages: Mapping[str, Callable[[], str]] | None = None,
    also: Callable[[Path], None] | None = None,
) -> None:
    """Write and print what a command found.

    Args:
        summary: what ``summary.json`` holds and ``--json`` prints.
        out: the folder of ``-o``; nothing is written without it.
        show: prints the result for people; is told the folder ("" without one).
        pages: text files of the folder by name, made only where there is one.
        also: writes what else goes into the folder.
    """
    text = json.dumps(summary, indent=1, allow_nan=False) + "\n"
    if out is not None:
        from trivet.interop.results import result_folder

        with result_folder(out) as folder:
            (folder / "summary.json").write_text(text, encoding="utf-8")
            for name, page in (pages or {}).items():
                (folder / name).write_text(page(), encoding="utf-8")
            if also is not None:
                also(folder)
    if as_json:
        sys.stdout.write(text)
    else:
        show(str(out) if out else "")


def write_file(out: Path | None, text: str) -> None:
    """Write the file of ``-o``, whole or not at all; without one nothing."""
    if out is not None:
        from trivet.interop.results import result_file

        with result_file(out) as place:
            place.write_text(text, encoding="utf-8")


def tell(outcome: Mapping[str, Any], out: Path | None, as_json: bool, show: Callable[[], None]) -> None:
    """Print what a command found and where it wrote it: one line of JSON, or what ``show`` prints."""
    if as_json:
        sys.stdout.write(json.dumps({**outcome, "out": str(out or "")}) + "\n")
    else:
        show()
