"""The configs that ship with the package, by name."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Mapping
from functools import cache
from importlib import resources
from typing import Any

_SAME_ORGANISATION = {
    "zhipuai": "zai-org",
    "thudm": "zai-org",
    "mistral-ai": "mistralai",
    "meta": "meta-llama",
}
# Endings that name a variant of the same shape; dropped one after another where the full name does not match.
_ENDINGS = re.compile(
    r"-(instruct|chat|it|base|thinking|hf|bf16|fp16|fp8|fp8-block|fp8-dynamic|fp8-static-pertensor|kv|nvfp4|fp4|mxfp4|awq|gptq|"
    r"int4|int8|w4a16|w8a8|w4afp8|gptq-int4|gptq-int8|preview|v\d+(\.\d+)?|\d{4}|\d{6}|\d{8}|\d{4}-\d{2}-\d{2})$"
)

_MIDDLE = re.compile(r"-(instruct|chat|it|base|thinking|hf)(?=-)")


@cache
def _models() -> dict[str, dict[str, Any]]:
    loaded: dict[str, dict[str, Any]] = json.loads(
        resources.files("trivet.data.models").joinpath("catalogue.json").read_text("utf-8")
    )
    return loaded


def names() -> tuple[str, ...]:
    """All names of the catalogue."""
    return tuple(_models())


def config(name: str) -> Mapping[str, Any]:
    """The config of an exact name of the catalogue."""
    return _models()[name]


def _plain(name: str) -> str:
    organisation, _, model = name.lower().replace("_", "-").rpartition("/")
    return f"{_SAME_ORGANISATION.get(organisation, organisation)}/{model}" if organisation else model


def _stems(name: str) -> list[str]:
    """The name, then without a variant word in its middle, then with one variant ending fewer at a time."""
    stems = [name]
    if (cut := _MIDDLE.sub("", name)) != name:
        stems.append(cut)
    while (cut := _ENDINGS.sub("", stems[-1])) != stems[-1]:
        stems.append(cut)
    return stems


@cache
def _index() -> tuple[dict[str, str], dict[str, str], dict[str, str]]:
    full: dict[str, str] = {}
    bare: dict[str, str] = {}
    stems: dict[str, str] = {}
    for name in sorted(_models(), key=lambda n: (len(n), n)):
        plain = _plain(name)
        model = plain.rpartition("/")[2]
        full.setdefault(plain, name)
        bare.setdefault(model, name)
        for alias in (model.removeprefix("meta-"), model.removeprefix("nvidia-")):
            bare.setdefault(alias, name)
        for stem in _stems(model):
            stems.setdefault(stem, name)
            stems.setdefault(stem.removeprefix("meta-").removeprefix("nvidia-"), name)
    return full, bare, stems


def find(name: str) -> tuple[str, Mapping[str, Any]] | None:
    """The catalogue's own name and config for a name as people write it, or None.

    Case does not matter; organisation and endings such as ``-Instruct``, ``-FP8`` or a date are ignored where the name as
    it stands is not there.
    """
    full, bare, stems = _index()
    plain = _plain(name.strip())
    model = plain.rpartition("/")[2]
    found = full.get(plain) or bare.get(model)
    if found is None:
        for stem in _stems(model):
            found = bare.get(stem) or stems.get(stem)
            if found:
                break
    return None if found is None else (found, _models()[found])


def similar(name: str) -> list[str]:
    """Up to three names of the catalogue that look like ``name``."""
    full, _, _ = _index()
    return [full[match] for match in difflib.get_close_matches(_plain(name), list(full), 3, 0.5)]
