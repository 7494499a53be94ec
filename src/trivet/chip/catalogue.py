"""The catalogue of chips: data files in, ``Chip`` out.

A chip is one YAML file. Ours are in ``data/chips``; a third party's come from ``$TRIVET_CATALOGUE``, from a path given
as the name, or from an installed package through the entry point group ``trivet.chips``.
"""

from __future__ import annotations

import difflib
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

from trivet.chip.class_intervals import filled
from trivet.chip.fields import NEEDED, unit_of
from trivet.chip.reading import facts_of, folders, read_yaml
from trivet.chip.spec import Chip
from trivet.errors import TrivetError, UnknownName
from trivet.facts import Fact

ROLES = ("accelerator", "sram_accelerator", "cpu", "ssd_controller")
DTYPES = ("fp32", "tf32", "fp16", "bf16", "int8", "fp8", "fp4")
_PREFIXES = ("nvidia-", "amd-", "google-", "aws-", "intel-", "huawei-", "t-head-", "alibaba-", "dgx-", "hgx-")
_SUFFIXES = ("-sxm2", "-sxm4", "-sxm5", "-sxm6", "-sxm", "-oam")


def normalise(name: str) -> str:
    """``H100_SXM`` and ``h100 sxm`` -> ``h100-sxm``."""
    return "-".join(name.strip().lower().replace("_", " ").replace("/", " ").replace("-", " ").split())


def chip(name: str) -> Chip:
    """The chip of that name, alias or YAML path.

    Raises:
        UnknownName: not in the catalogue; the message holds the closest names.
        TrivetError: a file that cannot be read, naming the field.
    """
    if name.endswith((".yaml", ".yml")):
        return read_chip(Path(name))
    places = folders("chips")
    path = _find(normalise(name), places)
    if path is not None:
        return _cached(path, path.stat().st_mtime_ns)
    third_party = _registered()
    for key in _spellings(normalise(name)):
        if key in third_party:
            return third_party[key]
    known = sorted({*_index(places), *third_party})
    close = difflib.get_close_matches(normalise(name), known, n=4, cutoff=0.5) or list(names())
    raise UnknownName(f"no chip named {name!r}", field="chip", allowed=close)


def names() -> tuple[str, ...]:
    """Every chip's own name, sorted."""
    own = {path.stem for folder in folders("chips") for path in folder.glob("*.yaml")}
    return tuple(sorted(own | {found.name for found in _registered().values()}))


def read_chip(path: Path) -> Chip:
    """A chip from its YAML file; the name is the file's unless it states one."""
    raw = read_yaml(path)
    name = normalise(str(raw.get("name", path.stem)))
    unknown = set(raw) - {"name", "title", "maker", "family", "role", "dtypes", "server", "aliases", "facts"}
    if unknown:
        raise TrivetError(f"unknown key {sorted(unknown)[0]!r}", field=name, allowed="title, maker, family, role, ...")
    for key in ("title", "maker", "family", "role", "facts"):
        if key not in raw:
            raise TrivetError("missing", field=f"{name}: {key}")
    if raw["role"] not in ROLES:
        raise TrivetError(f"{raw['role']!r}", field=f"{name}: role", allowed=ROLES)
    dtypes = tuple(str(d) for d in raw.get("dtypes", ()))
    for dtype in dtypes:
        if dtype not in DTYPES:
            raise TrivetError(f"{dtype!r}", field=f"{name}: dtypes", allowed=DTYPES)
    facts = facts_of(raw["facts"], unit_of, name)
    for field_name, fact in facts.items():
        _check_positive(fact, f"{name}: {field_name}")
    if raw["role"] == "accelerator":
        facts = filled(facts)
    return Chip(
        name,
        str(raw["title"]),
        str(raw["maker"]),
        str(raw["family"]),
        str(raw["role"]),
        facts,
        dtypes,
        str(raw.get("server", "")),
        tuple(normalise(str(a)) for a in raw.get("aliases", ())),
    )


def unknown_fields(found: Chip) -> tuple[str, ...]:
    """Fields that every accelerator needs and that this chip has no published, reported or measured value for."""
    if found.role != "accelerator":
        return tuple(n for n, fact in found.facts.items() if not fact.known or fact.lo is not None)
    missing = []
    for name in NEEDED:
        fact = found.facts.get(name)
        if name == "peak_flops_bf16" and not found.supports("bf16"):
            continue
        if fact is None or not fact.known or fact.lo is not None:
            missing.append(name)
    return tuple(missing)


def _check_positive(fact: Fact, field: str) -> None:
    for number in (fact.value, fact.lo, fact.hi):
        if number is not None and number < 0:
            raise TrivetError(f"{number} is negative", field=field)


def _spellings(key: str) -> tuple[str, ...]:
    """The key, and the key without a maker's prefix or a board's suffix."""
    forms = [key]
    forms.extend(key[len(prefix) :] for prefix in _PREFIXES if key.startswith(prefix))
    for form in tuple(forms):
        forms.extend(form[: -len(suffix)] for suffix in _SUFFIXES if form.endswith(suffix))
    return tuple(dict.fromkeys(forms))


def _find(key: str, places: tuple[Path, ...]) -> Path | None:
    forms = _spellings(key)
    for folder in places:
        for form in forms[:1]:
            if (folder / f"{form}.yaml").is_file():
                return folder / f"{form}.yaml"
    index = _index(places)
    return next((index[form] for form in forms if form in index), None)


def _index(places: tuple[Path, ...]) -> dict[str, Path]:
    files = tuple(sorted(path for folder in places for path in folder.glob("*.yaml")))
    order = {folder: rank for rank, folder in enumerate(places)}
    index: dict[str, Path] = {}
    for path in sorted(files, key=lambda p: -order[p.parent]):
        for alias in _aliases(path, path.stat().st_mtime_ns):
            index[alias] = path
    for path in sorted(files, key=lambda p: -order[p.parent]):
        index[path.stem] = path
    return index


@cache
def _aliases(path: Path, stamp: int) -> tuple[str, ...]:
    """Aliases from the head of a file, without reading its facts."""
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("facts:"):
            break
        if line.startswith("aliases:"):
            listed = line.split(":", 1)[1].strip()
            if listed.startswith("[") and listed.endswith("]"):
                return tuple(normalise(a.strip(" '\"")) for a in listed[1:-1].split(",") if a.strip())
            return read_chip(path).aliases
    return ()


@cache
def _cached(path: Path, stamp: int) -> Chip:
    return read_chip(path)


@lru_cache(maxsize=1)
def _registered() -> dict[str, Chip]:
    """Chips of installed packages: an entry point is a Chip, a list of them, a path, or a function that returns one."""
    from importlib.metadata import entry_points

    found: dict[str, Chip] = {}
    for entry in entry_points(group="trivet.chips"):
        loaded: Any = entry.load()
        if callable(loaded) and not isinstance(loaded, Chip):
            loaded = loaded()
        for item in loaded if isinstance(loaded, list | tuple) else (loaded,):
            one = item if isinstance(item, Chip) else read_chip(Path(str(item)))
            for key in (one.name, *one.aliases):
                found[normalise(key)] = one
    return found
