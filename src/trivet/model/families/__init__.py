"""Families of models: for each ``model_type`` a function that reads its fields into a ``Blueprint``."""

from __future__ import annotations

from collections.abc import Callable

from trivet.model.blueprint import Blueprint
from trivet.model.fields import Fields

Reader = Callable[[Fields], Blueprint]

from trivet.model.families import dense, experts, latent  # noqa: E402

FAMILIES: dict[str, Reader] = {**dense.FAMILIES, **experts.FAMILIES, **latent.FAMILIES}
