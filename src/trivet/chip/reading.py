"""Reading the data files of the catalogue: facts grouped by source, from the package or from a folder of the user's."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from functools import cache
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


def price_sheet(name: str) -> dict[str, Fact]:
    """The price facts of ``data/prices/NAME.yaml``; a folder in $TRIVET_CATALOGUE goes before ours, field by field."""
    sheet: dict[str, Fact] = {}
    for folder in reversed(folders("prices")):
        path = folder / f"{name}.yaml"
        if path.is_file():
            sheet |= _sheet(path, path.stat().st_mtime_ns)
    if not sheet:
        raise TrivetError(f"no price sheet {name!r}", field="prices")
    return sheet


@cache
def _sheet(path: Path, stamp: int) -> dict[str, Fact]:
    return facts_of(read_yaml(path).get("facts"), lambda field: _price_unit(path.stem, field), path.stem)


_PRICE_UNITS = (
    ("wafer_usd", "USD"),
    ("defects_per_cm2", "1/cm2"),
    ("hbm_usd_per_gb", "USD/GB"),
    ("gddr_usd_per_gb", "USD/GB"),
    ("ddr5_usd_per_gb", "USD/GB"),
    ("substrate_usd_per_cm2", "USD/cm2"),
    ("electricity", "USD/kWh"),
    ("facility_usd_per_kw_hour", "USD/kWh"),
    ("nre_usd", "USD"),
    ("bom_usd", "USD"),
    ("cowos_wafer_usd", "USD"),
    ("test_and_other_usd", "USD"),
    ("years", "year"),
)


def _price_unit(sheet: str, field: str) -> str:
    if sheet in ("on-demand", "rent-3-years", "tco-hyperscaler", "tco-neocloud"):
        return "USD/h"
    if sheet == "tokens":
        return "" if field.endswith("cached_input") else "USD/M tokens"
    if sheet == "cards":
        return "" if field.endswith("markup") else "USD"
    if field.endswith("_mm2"):
        return "mm2"
    return next((unit for prefix, unit in _PRICE_UNITS if field.startswith(prefix)), "")
