"""Decode attention kernels: what a block of keys costs beyond its reads, and how query heads share it.

A decode kernel gives each sequence and key head a block of threads (split over keys where blocks are few). A block waits for a
chain of dependent reads and for its softmax, so short contexts cost a number of clock cycles a block. How many differs by
kernel: those that fetch the next block's keys while they work on this one (TensorRT-LLM's persistent ones) take a third of those
that do not. Which kernel runs follows the engines' sources:

- TensorRT-LLM stacks up to 32 query heads of a group (``xqa``; ``gen`` on Blackwell); with more, and outside Blackwell with one
  query head a key head, its masked multi-head kernel runs a block for *each query head*, on the vector units;
- SGLang calls FlashInfer's tensor-core kernel for groups of 4 and more or an 8-bit cache, else one on the vector units;
- FlashAttention packs a whole group into tiles of 64 rows, the others into tiles of 16.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trivet.chip.point import ChipPoint

Floats = NDArray[np.float64]
BLOCK_S = 3.9e-6  # FlashAttention 2, and where the kernel is not known: about the same on every chip
STACKED_MOST = 32.0  # query heads of a group that TensorRT-LLM's stacking kernels take


@dataclass(frozen=True, slots=True)
class DecodeKernel:
    """Clock cycles of a block at heads of 128 (0: ``BLOCK_S``), how they grow with the head, the rows of a query tile, and the
    launch floor over the usual one, over caches in 16 and in 8 bits."""

    cycles: float = 0.0
    growth: float = 0.1
    rows: float = 16.0
    floor: float = 1.0
    floor8: float = 1.0


_KERNELS = {
    "fa2": DecodeKernel(rows=64.0),
    "fa3": DecodeKernel(6.0e3, 0.5, 64.0, 1.0, 1.0),
    "fi": DecodeKernel(6.0e3, 0.8, 16.0, 1.0, 1.4),
    "gen": DecodeKernel(2.9e3, 0.7, 16.0, 1.0, 1.0),
    "xqa": DecodeKernel(8.7e3, 0.5, 32.0),
    "xqa8": DecodeKernel(9.5e3, 0.5, 32.0, 1.3, 1.3),
    "xqa8+90": DecodeKernel(2.7e3, 0.5, 16.0, 0.65, 0.65),
    "async": DecodeKernel(4.2e3, 0.5),
}
CAST = 0.5  # launch of SGLang's cast of queries, over the usual floor
TURNED = 20.0  # cycles a key of 128: Hopper multiplies 8 bits in one layout only, so FlashAttention 3 turns values in the unit
PADDED = 12e3  # cycles of SGLang's passes around heads of 192
CAST_CYCLES = 10e3  # cycles of SGLang's cast of a prompt's queries
UNHIDDEN = 6e3  # cycles by which TensorRT-LLM's masked kernel starts later than Hopper's own for 8 bits
_VECTOR = DecodeKernel(2.7e3, 0.1, 1.0)  # a block for each query head
_VECTOR_READS = 25.0  # bytes a unit and cycle that it takes of 16-bit keys, which come from the cache for all heads but one


@dataclass(frozen=True, slots=True, eq=False)
class Blocks:
    """Blocks of a decode call: rows of a query tile, seconds of a wave, seconds of reading for heads that share no tile."""

    rows: Floats
    wave_s: Floats
    key_s: Floats  # of a unit for all keys of a block, beyond what the memory gives it
    before_s: Floats  # by which a kernel starts later than the library's usual one


def per_head(library: str, group: Floats) -> NDArray[Any]:
    """Where TensorRT-LLM runs a block for each query head."""
    name, _, kernel = library.partition("/")
    if name != "trtllm" or not kernel:
        return np.zeros(np.shape(group), bool)
    lone = (group < 1.5) & (kernel != "gen")
    return np.asarray(lone | (group > STACKED_MOST))


def blocks(library: str, eight: bool, point: ChipPoint, group: Floats, head: Floats, keys: Floats) -> Blocks:
    """What the kernel of ``library`` ("library/kernel") makes of groups of query heads; ``eight``: a cache in 8 bits."""
    name, _, kernel = library.partition("/")
    found = _KERNELS.get(kernel.removesuffix("+80"), DecodeKernel())
    wide = head / 128.0
    wave = (found.cycles / point.clock_hz if found.cycles else BLOCK_S) * wide**found.growth
    if name == "sglang" and kernel == "fi" and not eight:
        wave = np.where(group < 3.5, wave * 0.35, wave)
    alone = per_head(library, group)
    vector = _VECTOR.cycles / point.clock_hz * wide**_VECTOR.growth
    per_key = np.where(alone & (group > 1.5), 4.0 * head / _VECTOR_READS, 0.0)  # each head's own reads
    if eight and kernel == "fa3":
        per_key = per_key + TURNED * wide
    before = np.where(alone & (kernel == "xqa8+90"), UNHIDDEN, 0.0)
    return Blocks(
        np.where(alone, 1.0, found.rows), np.where(alone, vector, wave), keys * per_key / point.clock_hz, before / point.clock_hz
    )


def launched(library: str, precision: str) -> float:
    """Launch floor of a decode over the usual one; SGLang narrows queries for an 8-bit cache in a kernel of its own."""
    name, _, kernel = library.partition("/")
    found = _KERNELS.get(kernel.removesuffix("+80"), DecodeKernel())
    eight = precision.endswith("fp8")
    cast = CAST if name == "sglang" and eight and kernel in ("fa3", "gen") else 0.0
    tables = (0.3 if eight else 0.15) if name == "vllm" and kernel == "fa3" else 0.0
    return (found.floor8 if eight else found.floor) + cast + tables


def passes_s(library: str, precision: str, point: ChipPoint, head: Floats) -> Floats:
    """What SGLang runs around its attention kernels: heads of 192 have narrower values, which are padded and cut; queries in 8
    bits are cast for TensorRT-LLM's prompts in a kernel of their own."""
    name, _, kernel = library.partition("/")
    if name != "sglang":
        return np.zeros(np.shape(head))
    cast = CAST_CYCLES if precision == "fp8+fp8" and kernel == "gen" else 0.0
    return (np.where(head == 192.0, PADDED, 0.0) + cast) / point.clock_hz


# Prompts. TensorRT-LLM's kernels for chips without asynchronous copies: time over that of heads of 128, by head and width.
_FMHA = {("bf16", 192.0): 1.55, ("fp8", 64.0): 2.3, ("fp8", 192.0): 1.4, ("fp8", 256.0): 3.3}
NARROW_MATH = 0.5  # time of products in 8 bits over those in 16


def prompt_products(library: str, precision: str, head: Floats) -> Floats:
    """Time of a prompt's products over that at the peak of its queries' precision. Over a cache in 8 bits TensorRT-LLM's
    kernels for Hopper and Blackwell multiply in 8 bits, whatever the queries were."""
    kernel = library.partition("/")[2]
    rate = np.ones(np.shape(head))
    if kernel == "fmha":
        for (width, size), factor in _FMHA.items():
            if precision.startswith(width):
                rate = np.where(head == size, factor, rate)
    if precision == "bf16+fp8" and kernel in ("fmha+90", "gen"):
        rate = rate * NARROW_MATH
    return rate


def softmax_s(pairs: Floats, point: ChipPoint) -> Floats:
    """Time of the exponentials of ``pairs`` (of queries and keys, over all heads): on chips whose matrix units are fast this is
    what bounds small heads."""
    return pairs / (point.exponentials * point.units * point.clock_hz)
