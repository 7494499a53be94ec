"""Order of engine versions by their first numbers, the TensorRT-LLM in a Dynamo, and which kernels came with which version."""

from __future__ import annotations

import re


def numbers(version: str, parts: int = 2) -> tuple[int, ...]:
    """The first ``parts`` numbers of a version."""
    return tuple(int(number) for number in re.findall(r"\d+", version)[:parts])


# Versions of TensorRT-LLM's rows below 0.10 are Dynamo's; what its images hold, from its releases' tables of components.
_DYNAMO: dict[tuple[int, ...], str] = {(0, 5): "1.1", (0, 6): "1.1", (0, 7): "1.2", (0, 8): "1.2", (0, 9): "1.3"}


def inside(version: str) -> str:
    """The version of TensorRT-LLM that ``version`` stands for."""
    return _DYNAMO.get(numbers(version), version) if version[:1].isdigit() else version


def before(version: str, other: str) -> bool:
    """Whether ``version`` is older than ``other``; "" and names that are no number are the newest."""
    return version[:1].isdigit() and numbers(version) < numbers(other)


# Versions from which an engine runs other kernels (``components.Clock`` says which).
_CHANGES = {"trtllm": ("1.1", "1.2"), "vllm": ("0.20",)}


def kernel_changes(engine: str, version: str) -> tuple[str, ...]:
    """Those of its changes of kernels that a version has: all that a deployment's kernels know of the version."""
    found = inside(version) if engine == "trtllm" else version
    return tuple(change for change in _CHANGES.get(engine, ()) if not before(found, change))
