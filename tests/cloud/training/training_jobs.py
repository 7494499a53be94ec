"""Jobs that the tests start from."""

from __future__ import annotations

from typing import Any

from trivet.chip.catalogue import chip
from trivet.cloud.training.job import Split, TrainingJob
from trivet.cloud.training.names import architecture


def make_job(
    model: str = "gpt3-175b", part: str = "a100-80gb", split: Split | None = None, **changes: Any
) -> TrainingJob:
    base: dict[str, Any] = {"seq_len": 2048, "global_batch": 1536, "micro_batch": 1}
    where = split or Split(tp=8, pp=8, dp=16)
    return TrainingJob(architecture(model), chip(part), where, **{**base, **changes})
