"""Order of engine versions by their first two numbers."""

from __future__ import annotations

import re


def numbers(version: str) -> tuple[int, ...]:
    """The first two numbers of a version."""
    return tuple(int(number) for number in re.findall(r"\d+", version)[:2])


def before(version: str, other: str) -> bool:
    """Whether ``version`` is older than ``other``; "" and names that are no number are the newest."""
    return version[:1].isdigit() and numbers(version) < numbers(other)
