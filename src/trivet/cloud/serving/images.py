"""Images in prompts: what encoding one takes on each kind of replica, as the loop's arrays."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from trivet.cloud.serving import _loop_state as k
from trivet.cloud.serving._loop_images import Images
from trivet.errors import TrivetError

if TYPE_CHECKING:
    from trivet.cloud.engine.vision import EncodeTable
    from trivet.cloud.serving.traffic import Traffic

NONE = np.zeros(0, np.int32)


def image_tokens(traffic: Traffic, most: int) -> NDArray[np.int32]:
    """[requests] tokens of each prompt's image, or [0] where there is none; ``most``: a larger prompt fits no replica."""
    tokens = traffic.image_tokens
    if tokens is None or not tokens.any():
        return NONE
    return np.minimum(tokens, most).astype(np.int32)


def with_images(state: k.State, tables: Sequence[EncodeTable | None], tokens: NDArray[np.int32]) -> k.State:
    """``state`` that can hold images of ``tokens``: the same where it can already.

    Args:
        state: of a run that may be under way.
        tables: time to encode an image on each kind of replica.
        tokens: [requests] of the next block of traffic.

    Raises:
        TrivetError: a kind of replica cannot encode images.
    """
    most = int(tokens.max(initial=0))
    old = state.images
    if not most or (old is not None and most < old.encode_ps.shape[1]):
        return state
    encode = np.zeros((len(tables), most + 1), np.int64)
    for row, table in zip(encode, tables, strict=True):
        if table is None:
            raise TrivetError(
                "the traffic holds images, a replica has no vision tower", field="image_tokens", allowed="encode tables"
            )
        row[:] = np.rint(table.seconds_of(np.arange(most + 1)) * k.PS)
    if old is not None:
        return state._replace(images=Images(encode, old.counts))
    slots = np.zeros((state.slots.shape[0], k.IMAGE_SLOT_COLUMNS), np.int64)
    slots[:, : k.SLOT_COLUMNS] = state.slots
    counts = np.zeros((state.replicas.shape[0], 2), np.int64)
    return state._replace(slots=slots, images=Images(encode, counts))
