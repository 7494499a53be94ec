"""From a model's name as tables of results write it to its architecture."""

from __future__ import annotations

import re
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

from trivet.cloud.training import families
from trivet.errors import UnknownName
from trivet.model import catalogue, config
from trivet.model.architecture import Architecture

_PIECE = re.compile(r"a?\d+x\d+b|a?\d+(?:\.\d+)?[mbt](?![a-z])|v\d+(?:\.\d+)?|k\d+(?:\.\d+)?|\d+(?:\.\d+)?|[a-z]+")
_SIZE = re.compile(r"^a?\d+(\.\d+)?[mbt]$|^\d+x\d+b$")
_NOISE = {
    "meta",
    "nvidia",
    "instruct",
    "base",
    "chat",
    "it",
    "hf",
    "bf",
    "fp",
    "nvfp",
    "thinking",
    "static",
    "pertensor",
    "preview",
}


def pieces(name: str) -> tuple[str, ...]:
    """Words, versions and sizes of a name, in order: "LLAMA3_70B" -> llama, 3, 70b."""
    plain = re.sub(r"([a-z])v(\d)", r"\1-v\2", name.lower().rpartition("/")[2].replace("_", "-"))
    return tuple(_PIECE.findall(plain))


def _compact(name: str) -> str:
    return "".join(p for p in pieces(name) if p not in _NOISE)


def _version_matches(asked: str, found: str) -> bool:
    """ "3" is met by "3" and by a later minor release such as "3.1"."""
    return asked == found or found.startswith(asked + ".")


def _score(asked: tuple[str, ...], found: tuple[str, ...]) -> float | None:
    """How well a catalogue name answers; None if it is another model. Less is better."""
    want, have = list(asked), list(found)
    for piece in [p for p in want if p not in _NOISE]:
        match = next((h for h in have if h == piece), None) or next(
            (h for h in have if _version_matches(piece, h)), None
        )
        if match is None:
            return None
        have.remove(match)
    rest = [h for h in have if h not in _NOISE]
    if any(_SIZE.match(p) for p in want) and any(_SIZE.match(h) and not h.startswith("a") for h in rest):
        return None
    return sum(2.0 if h not in ("bf", "fp", "nvfp") and not h.isdigit() else 1.0 for h in rest) + 0.1 * len(have)


@lru_cache(maxsize=256)
def architecture(name: str, parameters: float = 0.0) -> Architecture:
    """The model of that name: a path, a catalogue name (loosely written), or a published or derived decoder shape.

    Args:
        name: e.g. ``Qwen/Qwen3-30B-A3B``, ``LLAMA3_70B``, ``MPT-30b``.
        parameters: of the model where a table gives them; used only for shapes derived from a size.

    Raises:
        UnknownName: nothing fits and the name holds no size.
    """
    if Path(name).exists() or catalogue.find(name):
        return trainable(config.read(name))
    if families.known(name):
        return families.named(name, parameters)
    asked = pieces(name)
    scored = [(s, len(n), n) for n in catalogue.names() if (s := _score(asked, pieces(n))) is not None]
    if not scored:
        scored = [(0.0, len(n), n) for n in catalogue.names() if _compact(n).startswith(_compact(name))]
    if scored:
        return trainable(config.read(min(scored)[2]))
    try:
        return families.named(name, parameters)
    except UnknownName as error:
        raise UnknownName(
            f"no model named {name!r}", field="model", allowed=catalogue.similar(name) or sorted(families.SHAPES)
        ) from error


def trainable(found: Architecture) -> Architecture:
    """The same model without its checkpoint's quantisation: training stores BF16."""
    return replace(
        found,
        quantisation=replace(
            found.quantisation,
            default="bf16",
            attention="bf16",
            experts="bf16",
            dense="bf16",
            head="bf16",
            kv_cache="bf16",
        ),
    )
