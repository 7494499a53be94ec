"""Images in the hot loop: the step that computes the first chunk of a prompt with an image runs the vision tower first.

Every function takes ``images`` first; where it is None the compiler drops the body, so that a run without images pays nothing.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from trivet.cloud.serving._loop_jit import jit
from trivet.cloud.serving._loop_state import R_TABLE, S_CTX, S_IMAGE

I_ENCODES, I_TIME = range(2)


class Images(NamedTuple):
    """What an image takes, and what was encoded."""

    encode_ps: Any  # [tables, tokens] time to encode an image of so many tokens of the language model
    counts: Any  # [R, 2] images encoded, picoseconds spent on them


@jit
def set_image(images: Any, s: Any, tokens: Any, request: int) -> None:
    if images is not None:
        s[S_IMAGE] = tokens[request] if tokens.size > 0 else 0


@jit
def encode_ps(images: Any, row: Any, replica: int, s: Any) -> int:
    """Time by which a prompt's first chunk holds up its step: 0 where its image is cached already, or has none.

    The encoder's output is kept until the prompt is done; after a preemption it is computed again.
    """
    if images is None:
        return 0
    if s[S_CTX] >= s[S_IMAGE]:
        return 0
    took = images.encode_ps[row[R_TABLE], s[S_IMAGE]]
    images.counts[replica, I_ENCODES] += 1
    images.counts[replica, I_TIME] += took
    return int(took)
