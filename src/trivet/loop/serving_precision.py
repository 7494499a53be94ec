"""From a precision label, a checkpoint and a chip to the formats that a run really used."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

from trivet.chip.spec import Chip
from trivet.errors import TrivetError
from trivet.model import config as models
from trivet.model.architecture import Architecture, Quantisation
from trivet.operators import WEIGHT_BYTES

_ALIASES = {
    "bfloat16": "bf16", "float16": "fp16", "half": "fp16", "float32": "fp32", "fp8_e4m3": "fp8", "e4m3": "fp8", "w8a8": "int8",
    "fp4": "nvfp4", "int4": "int4_wo", "awq": "int4_wo", "gptq": "int4_wo", "fp8-block": "fp8_block", "block_fp8": "fp8_block",
    "mxfp4_moe": "mxfp4", "w4a16": "int4_wo", "w8a16": "int8_wo",
}  # fmt: skip
_WIDTH = {"nvfp4": 4, "mxfp4": 4, "int4_wo": 4, "fp8": 8, "fp8_block": 8, "mxfp8": 8, "int8": 8, "int8_wo": 8}


@dataclass(frozen=True, slots=True)
class Precisions:
    """The architecture with the formats that ran, the KV format ("" = the architecture's) and a name for reports."""

    architecture: Architecture
    kv: str
    name: str


def label_of(text: str, field: str, notes: list[str]) -> str:
    """The label as ``operators.WEIGHT_BYTES`` has it; "" where empty or unknown (then noted)."""
    plain = text.strip().lower()
    plain = _ALIASES.get(plain, plain)
    if plain in ("", "auto", "none", "default"):
        return ""
    if plain not in WEIGHT_BYTES:
        notes.append(f"{field} {text!r} is not known: the checkpoint's own is used")
        return ""
    return plain


def resolve_precision(
    architecture: Architecture, written: str, chip: Chip, weights: str, moe_weights: str, notes: list[str]
) -> Precisions:
    """What ran, from what the row says.

    A checkpoint keeps its own format where the label names the same width (``fp8`` for a block-scaled FP8 checkpoint). A
    label of another width means another checkpoint of the model: its published one where the catalogue has it, else every
    product in that format (of latent attention only the feed-forward). Without a label the name as ``written`` may tell
    (``-FP8``, ``-NVFP4``). A chip without FP4 units runs FP4 weights weight-only.
    """
    asked, asked_moe = (
        _as_chip_has(label_of(text, field, notes), chip)
        for text, field in ((weights, "weights"), (moe_weights, "moe_weights"))
    )
    asked_moe = asked_moe or asked
    main = asked_moe or asked or _as_chip_has(_named(written), chip)
    own = _dominant(architecture.quantisation)
    if main and (_WIDTH.get(main, 16) != _WIDTH.get(own, 16) or (own, main) in _CONVERTED):
        if _WIDTH.get(main) == 4 and not chip.supports("fp4") and main != "int4_wo" and _WIDTH.get(own, 16) < 16:
            notes.append(f"{main} on {chip.name}, which has no FP4 units: the checkpoint's {own} is used")
        else:
            other = sibling(architecture.name, main)
            stored = other.quantisation if other is not None else _recast(architecture, main, asked or main)
            architecture = replace(architecture, quantisation=stored)
    name = _dominant(architecture.quantisation)
    if _WIDTH.get(name) == 4 and not chip.supports("fp4") and name != "int4_wo":
        notes.append(f"{name} on {chip.name}, which has no FP4 units: weight-only")
    return Precisions(architecture, kv_format(chip, name, architecture.quantisation), name)


# Checkpoints of one width that are converted to another format, (own, that of the row): integers and floating point.
_CONVERTED = (("int4_wo", "mxfp4"), ("fp8", "int8"), ("fp8_block", "int8"))
_IN_NAMES = {"fp8": "fp8", "nvfp4": "nvfp4", "mxfp4": "mxfp4", "fp4": "nvfp4", "awq": "int4_wo"}


def _named(written: str) -> str:
    """The format that a checkpoint's name tells, "" where it tells none: ``-FP8``, ``-FP8-KV``, ``-MXFP4-Preview``."""
    return next((_IN_NAMES[part] for part in written.lower().split("-")[1:] if part in _IN_NAMES), "")


def _as_chip_has(label: str, chip: Chip) -> str:
    """``label`` as the chip's maker has it: scales of 16 numbers (NVFP4) are NVIDIA's, AMD's FP4 is MXFP4."""
    return "mxfp4" if label == "nvfp4" and chip.maker == "AMD" else label


def _recast(architecture: Architecture, experts: str, dense: str) -> Quantisation:
    stored = architecture.quantisation
    latent = any(layer.mixer.kind == "mla" for layer in architecture.layers)
    attention = "bf16" if latent and _WIDTH.get(dense) == 4 else dense
    return Quantisation(experts, attention, experts, dense, stored.head, stored.kv_cache)


def kv_format(chip: Chip, weights: str, stored: Quantisation) -> str:
    """KV cache format of a run: 8 bits beside quantised weights where the chip has FP8, as serving benchmarks start engines
    (the loads at which their queues begin show it); else the checkpoint's ("")."""
    if stored.kv_cache not in ("bf16", "fp16", "fp32") or not chip.supports("fp8"):
        return ""
    return "fp8" if _WIDTH.get(weights, 16) < 16 else ""


def _dominant(stored: Quantisation) -> str:
    """Format of most weights: the experts' where there are any."""
    return stored.experts if stored.experts not in ("bf16", "fp16", "fp32") else stored.dense


@lru_cache(maxsize=256)
def sibling(name: str, label: str) -> Architecture | None:
    """The published checkpoint of the same model in another format, where the catalogue has one."""
    bare = name.rpartition("/")[2]
    for end in ("-FP8", "-NVFP4", "-BF16", "-MXFP4"):
        bare = bare.removesuffix(end)
    endings = {"nvfp4": ("nvidia/{}-NVFP4",), "fp8": ("nvidia/{}-FP8", "{}-FP8"), "fp8_block": ("{}-FP8",)}.get(
        label, ()
    )
    from trivet.model import catalogue

    known = {n.lower(): n for n in catalogue.names()}
    for ending in endings:
        wanted = ending.format(bare).lower()
        for full in known:
            if full == wanted or full.rpartition("/")[2] == wanted:
                try:
                    found = models.read(known[full])
                except TrivetError:
                    continue
                if _dominant(found.quantisation) == label:
                    return found
    return None
