"""Reading YAML scenarios: small, plain, finite."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from trivet.errors import TrivetError

MAX_BYTES = 1_000_000
MAX_ALIASES = 100  # a scenario needs few; nested aliases grow without end
MAX_DEPTH = 100  # the time to read brackets within brackets grows with the square of their number


def read_yaml(path: str | Path) -> dict[str, Any]:
    """The mapping that a scenario file holds.

    Raises TrivetError for a file that is absent, too large, not YAML (with its line), not a mapping, nested deeply or full of
    aliases.
    """
    place = Path(path)
    try:
        if place.stat().st_size > MAX_BYTES:
            raise TrivetError(f"{place.stat().st_size} bytes", field=str(place), allowed=f"at most {MAX_BYTES} bytes")
        text = place.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise TrivetError(f"cannot be read: {getattr(error, 'strerror', None) or error}", field=str(place)) from error
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError
    from ruamel.yaml.events import AliasEvent, CollectionEndEvent, CollectionStartEvent

    try:
        aliases = depth = 0
        for event in YAML(typ="safe", pure=True).parse(text):
            aliases += isinstance(event, AliasEvent)
            depth += isinstance(event, CollectionStartEvent) - isinstance(event, CollectionEndEvent)
            if depth > MAX_DEPTH:
                raise TrivetError("nested too deeply", field=str(place), allowed=f"at most {MAX_DEPTH} levels")
        if aliases > MAX_ALIASES:
            raise TrivetError(f"{aliases} aliases", field=str(place), allowed=f"at most {MAX_ALIASES}")
        content = YAML(typ="safe", pure=True).load(text)
    except YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" in line {mark.line + 1}" if mark else ""
        raise TrivetError(f"not YAML{where}: {getattr(error, 'problem', None) or error}", field=str(place)) from error
    except RecursionError as error:
        raise TrivetError("nested too deeply", field=str(place)) from error
    if not isinstance(content, dict):
        raise TrivetError("holds no mapping", field=str(place), allowed="key: value lines")
    return content
