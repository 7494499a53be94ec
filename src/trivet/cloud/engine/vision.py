"""Time to encode one image: the vision tower's operators on the chips of a replica, as a small table over image tokens.

Engines run the tower eagerly, in the step that computes the first chunk of the prompt that holds the image.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from trivet.cloud.deployment import Deployment
from trivet.cloud.engine.components import KINDS, Clock, kind_index
from trivet.cloud.engine.profiles import profile
from trivet.model.vision import tower_of, tower_operators

Floats = NDArray[np.float64]
IMAGE_TOKENS = np.array([4, 16, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384], float)


@dataclass(frozen=True, slots=True, eq=False)
class EncodeTable:
    """Seconds to encode one image of so many language-model tokens: linear between knots, extended by the last segment."""

    tokens: Floats  # [K]
    seconds: Floats  # [K]

    def seconds_of(self, tokens: NDArray[np.integer] | Floats) -> Floats:
        """[N] seconds of images of ``tokens``; 0 where there is no image."""
        wanted = np.asarray(tokens, float)
        inside = np.interp(wanted, self.tokens, self.seconds)
        slope = (self.seconds[-1] - self.seconds[-2]) / (self.tokens[-1] - self.tokens[-2])
        return np.where(wanted > 0, inside + np.maximum(wanted - self.tokens[-1], 0.0) * slope, 0.0)


def encode_table(deployment: Deployment) -> EncodeTable:
    """Compile the tower of ``deployment``'s model on the chips of one tensor-parallel group, in bf16 as engines keep it.

    Raises Unsupported where the model has no tower with operators.
    """
    tower = tower_of(deployment.architecture)
    constants = profile(deployment.settings.engine, deployment.settings.version, deployment.chip.name)
    clock = Clock(deployment)
    total = np.zeros(IMAGE_TOKENS.size)
    for operator in tower_operators(tower, IMAGE_TOKENS, tp=deployment.layout.tp):
        kind = KINDS[kind_index(operator)]
        time = clock.seconds(operator)
        floor = np.asarray(time.floor_s, float)
        busy = np.maximum(np.asarray(time.value_s, float) - floor, 0.0)
        total += operator.count * (constants.prefill_weights[kind] * busy + constants.floors[kind] * floor)
    return EncodeTable(IMAGE_TOKENS, np.maximum.accumulate(total))
