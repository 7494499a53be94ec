"""Results appear whole or not at all: files are written beside their place and moved there at the end."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from trivet.errors import TrivetError


@contextmanager
def result_folder(folder: str | Path) -> Iterator[Path]:
    """A temporary folder whose files replace those of the same name in ``folder`` when the block ends without error.

    Raises TrivetError when ``folder`` is a file or cannot be written.
    """
    target = Path(folder)
    if target.exists() and not target.is_dir():
        raise TrivetError(f"{target} is a file", field="-o", allowed="a folder")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    except OSError as error:
        raise TrivetError(f"cannot write beside {target}: {error.strerror}", field="-o") from error
    try:
        yield work
        target.mkdir(exist_ok=True)
        for path in sorted(work.iterdir()):
            place = target / path.name
            if path.is_dir() and place.is_dir():
                shutil.rmtree(place)
            os.replace(path, place)
    finally:
        shutil.rmtree(work, ignore_errors=True)


@contextmanager
def result_file(path: str | Path) -> Iterator[Path]:
    """A temporary path that becomes ``path`` when the block ends without error."""
    target = Path(path)
    if target.is_dir():
        raise TrivetError(f"{target} is a folder", field="-o", allowed="a file")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
    except OSError as error:
        raise TrivetError(f"cannot write beside {target}: {error.strerror}", field="-o") from error
    os.close(handle)
    work = Path(name)
    try:
        yield work
        work.chmod(0o644)
        os.replace(work, target)
    finally:
        work.unlink(missing_ok=True)
