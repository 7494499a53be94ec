"""Families of models: for each ``model_type`` a function that reads its fields into a ``Blueprint``."""

from __future__ import annotations

from collections.abc import Callable

from trivet.model.blueprint import Blueprint
from trivet.model.families import (
    dense,
    encoders,
    experts,
    further,
    hybrid,
    latent,
    mixtures,
    more_multimodal,
    multimodal,
    plain,
    rare,
    recurrent,
    special,
    state_space,
    vision_language,
)
from trivet.model.fields import Fields

Reader = Callable[[Fields], Blueprint]

FAMILIES: dict[str, Reader] = {
    **plain.FAMILIES,
    **dense.FAMILIES,
    **experts.FAMILIES,
    **latent.FAMILIES,
    **mixtures.FAMILIES,
    **hybrid.FAMILIES,
    **special.FAMILIES,
    **state_space.FAMILIES,
    **recurrent.FAMILIES,
    **vision_language.FAMILIES,
    **more_multimodal.FAMILIES,
    **encoders.FAMILIES,
    **further.FAMILIES,
    **rare.FAMILIES,
    **multimodal.FAMILIES,
}
