"""How a model is split over chips, and the batch that one step carries."""

from __future__ import annotations

from dataclasses import dataclass

from trivet.errors import DoesNotFit
from trivet.operators import Number


@dataclass(frozen=True, slots=True)
class Layout:
    """Parallelism of one replica. ``chips = pp * cp * attention_dp * tp``; experts are split ``moe_tp * moe_ep`` over
    the ``tp * attention_dp * cp`` chips of a stage. ``dcp`` (decode-context parallel) reuses the chips of ``tp``.
    """

    tp: int = 1
    pp: int = 1
    attention_dp: int = 1
    moe_tp: int = 1
    moe_ep: int = 1
    cp: int = 1
    dcp: int = 1
    sequence_parallel: bool = False
    expert_skew: float = 1.0  # hottest chip's expert load over the mean

    def __post_init__(self) -> None:
        for name in ("tp", "pp", "attention_dp", "moe_tp", "moe_ep", "cp", "dcp"):
            value = getattr(self, name)
            if value < 1 or value != int(value):
                raise DoesNotFit(f"{value} is not a positive whole number", field=name)
        if self.expert_skew < 1.0:
            raise DoesNotFit(f"{self.expert_skew} is below 1", field="expert_skew")

    @property
    def chips(self) -> int:
        return self.tp * self.pp * self.attention_dp * self.cp

    @property
    def chips_per_stage(self) -> int:
        return self.tp * self.attention_dp * self.cp


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """One step of one attention-DP rank; every field may be an array (a grid of batches).

    Prefill: ``prefill_sequences`` chunks of ``prefill_tokens`` new tokens each, after ``prefill_past`` cached tokens.
    Decode: ``decode_sequences`` with a mean of ``decode_context`` cached tokens, ``decode_tokens`` new ones each
    (1, or 1 + draft length when speculating). ``logits``: rows that go through the head (default: one per sequence).
    """

    prefill_sequences: Number = 0.0
    prefill_tokens: Number = 0.0
    prefill_past: Number = 0.0
    decode_sequences: Number = 0.0
    decode_context: Number = 0.0
    decode_tokens: Number = 1.0
    logits: Number | None = None

    @property
    def tokens(self) -> Number:
        return self.prefill_sequences * self.prefill_tokens + self.decode_sequences * self.decode_tokens

    @property
    def head_rows(self) -> Number:
        return self.prefill_sequences + self.decode_sequences * self.decode_tokens if self.logits is None else self.logits
