"""Reading the data files of the catalogue: facts grouped by source, from the package or from a folder of the user's."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from trivet.errors import TrivetError
from trivet.facts import Fact


def data_folder() -> Path:
    """The package's own ``data/`` folder."""
    import trivet.data

    return Path(next(iter(trivet.data.__path__)))


def folders(kind: str) -> tuple[Path, ...]:
    """Folders that may hold files of ``kind`` (chips, servers, ...): those of $TRIVET_CATALOGUE first, then ours.

    $TRIVET_CATALOGUE is one or more folders (separated as in $PATH), each with ``kind/*.yaml`` or the files themselves.
    """
    found: list[Path] = []
    for text in os.environ.get("TRIVET_CATALOGUE", "").split(os.pathsep):
        if not text:
            continue
        root = Path(text)
        if not root.is_dir():
            raise TrivetError(f"{text} is not a folder", field="TRIVET_CATALOGUE")
        found.append(root / kind if (root / kind).is_dir() else root)
    return (*found, data_folder() / kind)


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML file as a mapping; raises TrivetError that names the file and the line."""
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    try:
        raw = YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise TrivetError(f"cannot read {path}: {error.strerror}") from error
    except (YAMLError, UnicodeDecodeError) as error:
        raise TrivetError(f"{path.name} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(raw, dict):
        raise TrivetError(f"{path.name} holds no mapping")
    return raw


def facts_of(groups: Any, unit_of: Callable[[str], str | None], where: str) -> dict[str, Fact]:
    """Facts from the ``facts`` list of a file: groups of ``{source, status, date, values: {field: number or fact}}``.

    A value is a number, or a mapping with any of ``value lo hi unit note conflicts`` and, where they differ from the
    group's, ``source status date``. The unit comes from ``unit_of`` unless the file states the same or a new field's.
    """
    if not isinstance(groups, list):
        raise TrivetError("a list of groups is needed", field=f"{where}: facts", allowed="source, status, date, values")
    facts: dict[str, Fact] = {}
    for group in groups:
        if not isinstance(group, Mapping) or not isinstance(group.get("values"), Mapping):
            raise TrivetError("a group needs source, status and values", field=f"{where}: facts")
        for name, raw in group["values"].items():
            field = f"{where}: {name}"
            entry = dict(raw) if isinstance(raw, Mapping) else {"value": raw}
            unit = unit_of(name)
            if unit is None and "unit" not in entry:
                raise TrivetError("a field that the catalogue does not know needs a unit", field=field)
            if unit is not None and entry.setdefault("unit", unit) != unit:
                raise TrivetError(f"unit {entry['unit']!r}", field=field, allowed=unit or "no unit")
            for key in ("source", "status", "date"):
                if key in group:
                    entry.setdefault(key, group[key])
            if name in facts:
                raise TrivetError("given twice", field=field)
            facts[name] = Fact.from_mapping(entry, field=field)
    return facts
