"""The generator behind Go's ``math/rand``, so that a published protocol's shuffles and draws come out the same.

The protocol of Weng et al. (ATC 2023) shuffles tasks, draws clones and orders nodes with ``math/rand`` seeded 42 to 51;
with this generator one seed here is the same experiment there. The generator is an additive lagged Fibonacci sequence,
``x[k] = x[k-607] + x[k-273] (mod 2**64)`` (Mitchell and Reeds), its start state a linear congruential sequence XORed
with the state of the same recurrence after 7.8e12 steps. That state is computed here by raising the companion polynomial
to that power, not stored.
"""

from __future__ import annotations

from collections.abc import MutableSequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

LENGTH, TAP = 607, 273
_WARM_UP = 7_800_000_000_000
_LEHMER, _MERSENNE = 48271, (1 << 31) - 1
_MASK64, _MASK63 = (1 << 64) - 1, (1 << 63) - 1

Words = NDArray[np.uint64]


def _seed_words(seed: int, high: int, low: int) -> Words:
    """607 words, each three Lehmer draws shifted by ``high``, ``low`` and 0 bits; twenty draws are thrown away first."""
    words = np.empty(LENGTH, np.uint64)
    x = seed
    for i in range(-20, LENGTH):
        x = _LEHMER * x % _MERSENNE
        if i < 0:
            continue
        word = x << high
        x = _LEHMER * x % _MERSENNE
        word ^= x << low
        x = _LEHMER * x % _MERSENNE
        words[i] = (word ^ x) & _MASK64
    return words


def _reduce(polynomial: Words) -> Words:
    """The remainder modulo ``t**607 - t**334 - 1`` with coefficients modulo 2**64."""
    p = polynomial.copy()
    while len(p) > LENGTH:
        # Fold the top block at once; it is short enough not to reach itself (334 < 607).
        top = min(len(p) - LENGTH, TAP)
        head, p = p[-top:].copy(), p[:-top]
        start = len(p) - LENGTH
        p[start : start + top] += head
        p[start + LENGTH - TAP : start + LENGTH - TAP + top] += head
    return p


@lru_cache(maxsize=1)
def warm_state() -> Words:
    """The state of the recurrence, seeded with 1, after 7.8e12 steps (Go's ``rngCooked``)."""
    start = _seed_words(1, 20, 10)
    slot = (LENGTH - TAP - 1 - np.arange(LENGTH)) % LENGTH  # the slot that step k overwrites
    history = np.concatenate([start[slot], np.zeros(LENGTH, np.uint64)])
    for begin in range(LENGTH, 2 * LENGTH, TAP):
        end = min(begin + TAP, 2 * LENGTH)
        history[begin:end] = history[begin - LENGTH : end - LENGTH] + history[begin - TAP : end - TAP]
    power = np.zeros(LENGTH, np.uint64)
    power[0] = 1
    for bit in f"{_WARM_UP:b}":
        power = _reduce(np.convolve(power, power))
        if bit == "1":
            power = _reduce(np.concatenate([np.zeros(1, np.uint64), power]))
    values = np.array([(power * history[i : i + LENGTH]).sum(dtype=np.uint64) for i in range(LENGTH)], np.uint64)
    state = np.empty(LENGTH, np.uint64)
    state[(LENGTH - TAP - 1 - (_WARM_UP - LENGTH + np.arange(LENGTH))) % LENGTH] = values
    return state


class GoRandom:
    """``rand.New(rand.NewSource(seed))`` with the draws that schedulers use."""

    def __init__(self, seed: int) -> None:
        seed %= _MERSENNE
        self._words = [int(w) for w in _seed_words(seed or 89482311, 40, 20) ^ warm_state()]
        self._tap, self._feed = 0, LENGTH - TAP

    def uint64(self) -> int:
        self._tap = (self._tap - 1) % LENGTH
        self._feed = (self._feed - 1) % LENGTH
        x = (self._words[self._feed] + self._words[self._tap]) & _MASK64
        self._words[self._feed] = x
        return x

    def int63(self) -> int:
        return self.uint64() & _MASK63

    def intn(self, n: int) -> int:
        """A whole number below ``n`` (1 <= n < 2**31), Go's ``Intn``."""
        if n & (n - 1) == 0:
            return (self.int63() >> 32) & (n - 1)
        limit = _MERSENNE - (1 << 31) % n
        v = self.int63() >> 32
        while v > limit:
            v = self.int63() >> 32
        return v % n

    def _below(self, n: int) -> int:
        """Lemire's bounded draw, Go's private ``int31n``: what ``Shuffle`` uses."""
        product = ((self.int63() >> 31) & 0xFFFFFFFF) * n
        if product & 0xFFFFFFFF < n:
            threshold = ((1 << 32) - n) % n
            while product & 0xFFFFFFFF < threshold:
                product = ((self.int63() >> 31) & 0xFFFFFFFF) * n
        return product >> 32

    def shuffle(self, items: MutableSequence[Any]) -> None:
        for i in range(len(items) - 1, 0, -1):
            j = self._below(i + 1)
            items[i], items[j] = items[j], items[i]

    def perm(self, n: int) -> list[int]:
        out = [0] * n
        for i in range(n):
            j = self.intn(i + 1)
            out[i] = out[j]
            out[j] = i
        return out

    def state(self) -> Words:
        """Words, then tap and feed: what the jitted loop continues from."""
        return np.array([*self._words, self._tap, self._feed], np.uint64)
