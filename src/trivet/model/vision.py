"""The vision tower as operators: what one chip does to turn the patches of images into tokens of the language model.

A tower is a transformer without a cache: every patch attends to the patches of its own image (or of its window), and a
projector joins ``merge`` x ``merge`` patches into one token. It runs once an image, before the prompt that holds it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from trivet.errors import Unsupported
from trivet.model.architecture import Architecture, Tower
from trivet.operators import Attention, Gemm, Number, Operator, Stream, Transfer

Raw = Mapping[str, Any]


def _side(value: Any) -> int:
    """One side of a square given as a number or as a pair."""
    return int(value[0]) if isinstance(value, list | tuple) else int(value)


def _tower(v: Raw, hidden: int, *, gated: bool = False, joints: tuple[tuple[int, int], ...] = (), **more: Any) -> Tower:
    """From the usual names of a ``vision_config``; ``vt_*`` are Kimi's."""

    def first(*names: str) -> Any:
        return next(v[name] for name in names if v.get(name) is not None)

    width = int(more.pop("width", 0) or first("hidden_size", "vt_hidden_size"))
    heads = int(first("num_heads", "num_attention_heads", "vt_num_attention_heads"))
    inner = more.pop("intermediate", 0) or first("intermediate_size", "vt_intermediate_size")
    return Tower(
        hidden=width, layers=int(first("depth", "num_hidden_layers", "vt_num_hidden_layers")), heads=heads,
        head_dim=int(v.get("head_dim") or width // heads), intermediate=int(inner), gated=gated,
        patch_pixels=_side(v["patch_size"]), joints=joints or ((width * more["merge"] ** 2, hidden),), **more,
    )  # fmt: skip


def _qwen3(raw: Raw, hidden: int) -> Tower:
    v = raw["vision_config"]
    merge = int(v["spatial_merge_size"])
    merged = int(v["hidden_size"]) * merge**2
    one = ((merged, merged), (merged, int(v["out_hidden_size"])))
    deep = len(v.get("deepstack_visual_indexes") or [])
    return _tower(v, hidden, merge=merge, frames=int(v["temporal_patch_size"]), joints=one * (1 + deep))


def _qwen2(raw: Raw, hidden: int) -> Tower:
    v = raw["vision_config"]
    merge, width = int(v["spatial_merge_size"]), int(v["embed_dim"])
    merged, inner = width * merge**2, int(width * float(v["mlp_ratio"]))
    joints = ((merged, merged), (merged, hidden))
    return _tower(v, hidden, width=width, intermediate=inner, merge=merge, frames=2, joints=joints)


def _qwen2_5(raw: Raw, hidden: int) -> Tower:
    v = raw["vision_config"]
    merge, patch = int(v["spatial_merge_size"]), int(v["patch_size"])
    merged = int(v["hidden_size"]) * merge**2
    window = (int(v.get("window_size", 112)) // patch) ** 2
    whole = len(v.get("fullatt_block_indexes") or [7, 15, 23, 31])
    joints = ((merged, merged), (merged, int(v["out_hidden_size"])))
    return _tower(v, hidden, gated=True, merge=merge, frames=2, window=window, whole_layers=whole, joints=joints)


def _kimi(raw: Raw, hidden: int) -> Tower:
    v = raw["vision_config"]
    merge = _side(v["merge_kernel_size"])
    merged = int(v.get("vt_hidden_size") or v["hidden_size"]) * merge**2
    return _tower(v, hidden, merge=merge, joints=((merged, merged), (merged, hidden)))


def _gemma3(raw: Raw, hidden: int) -> Tower:
    v = raw["vision_config"]
    side = int(v["image_size"]) // int(v["patch_size"])
    merge = side // int(float(raw.get("mm_tokens_per_image", 256)) ** 0.5)  # patches are averaged, then projected
    return _tower(v, hidden, merge=merge, joints=((int(v["hidden_size"]), hidden),))


def _gemma4(raw: Raw, hidden: int) -> Tower:
    v = raw["vision_config"]
    return _tower(v, hidden, gated=True, merge=int(v["pooling_kernel_size"]), joints=((int(v["hidden_size"]), hidden),))


def _mistral3(raw: Raw, hidden: int) -> Tower:
    v, merge = raw["vision_config"], int(raw.get("spatial_merge_size", 2))
    width = int(v["hidden_size"])
    joints = ((width * merge**2, width), (width, hidden), (hidden, hidden))
    return _tower(v, hidden, gated=True, merge=merge, joints=joints)


def _internvl(raw: Raw, hidden: int) -> Tower:
    v, merge = raw["vision_config"], round(1.0 / float(raw.get("downsample_ratio", 0.5)))
    return _tower(v, hidden, merge=merge, joints=((int(v["hidden_size"]) * merge**2, hidden), (hidden, hidden)))


def _llava(raw: Raw, hidden: int) -> Tower:
    v = raw["vision_config"]
    return _tower(v, hidden, merge=1, joints=((int(v["hidden_size"]), hidden), (hidden, hidden)))


READERS: dict[str, Callable[[Raw, int], Tower]] = {
    "qwen3_vl": _qwen3,
    "qwen3_vl_moe": _qwen3,
    "qwen3_5": _qwen3,
    "qwen3_5_moe": _qwen3,
    "qwen2_vl": _qwen2,
    "qwen2_5_vl": _qwen2_5,
    "kimi_k25": _kimi,
    "gemma3": _gemma3,
    "gemma4": _gemma4,
    "mistral3": _mistral3,
    "internvl": _internvl,
    "llava": _llava,
}


def read_tower(model_type: str, raw: Raw, hidden: int) -> Tower | None:
    """The vision tower of a config; None where it has none, leaves out its sizes, or is of a kind without operators here."""
    if model_type not in READERS or not isinstance(raw.get("vision_config"), Mapping):
        return None
    try:
        return READERS[model_type](raw, hidden)
    except (KeyError, StopIteration):  # sizes left to the class: parameters are counted, operators are not made
        return None


def tower_of(architecture: Architecture) -> Tower:
    """The tower, or Unsupported that says so."""
    if architecture.tower is None:
        raise Unsupported(
            f"{architecture.name} takes no images, or its vision tower has no operators",
            field="image_tokens",
            allowed=f"models of the types {', '.join(READERS)}",
        )
    return architecture.tower


def tower_operators(
    tower: Tower, tokens: Number, *, images: Number = 1.0, tp: int = 1, dtype: str = "bf16"
) -> tuple[Operator, ...]:
    """Operators of one chip that encodes ``images`` images of ``tokens`` language-model tokens each (arrays broadcast).

    Heads and columns are cut over ``tp`` chips where it divides the heads; else every chip encodes whole (as engines do).
    """
    ways = tp if tower.heads % tp == 0 else 1
    patches = np.asarray(tokens, float) * tower.merge**2
    rows, width = patches * images, float(tower.hidden)
    attention = tower.heads * tower.head_dim / ways
    columns = tower.intermediate / ways
    size = 2.0 * rows * width
    join: list[Operator] = (
        [Transfer("vision_all_reduce", "all_reduce", size, ways, "tp", count=2.0 * tower.layers)] if ways > 1 else []
    )
    n = float(tower.layers)
    found: list[Operator] = [
        Gemm("vision_patches", rows, width, 3.0 * tower.frames * tower.patch_pixels**2, dtype),
        Stream("vision_norms", 8.0 * rows * width, count=2.0 * n),
        Gemm("vision_qkv", rows, 3.0 * attention, width, dtype, count=n),
        *_attention(tower, patches, images, tower.heads / ways, dtype),
        Gemm("vision_out", rows, width, attention, dtype, count=n),
        Gemm("vision_up", rows, columns * (2.0 if tower.gated else 1.0), width, dtype, count=n),
        Stream("vision_activation", rows * columns * (6.0 if tower.gated else 4.0), count=n),
        Gemm("vision_down", rows, width, columns, dtype, count=n),
        *join,
    ]
    joined = np.asarray(tokens, float) * images
    for number, (inputs, outputs) in enumerate(tower.joints):
        found.append(Gemm(f"vision_join_{number}", joined, outputs / ways, float(inputs), dtype))
    return tuple(found)


def _attention(tower: Tower, patches: Number, images: Number, heads: float, dtype: str) -> list[Operator]:
    """Layers over the whole image, and layers in windows where the tower has them."""

    def core(name: str, sequences: Number, length: Number, layers: int) -> Attention:
        return Attention(
            name, sequences, length, length, heads, heads, float(tower.head_dim), float(tower.head_dim), dtype=dtype,
            kv_dtype=dtype, causal=False, count=float(layers),
        )  # fmt: skip

    if not tower.window:
        return [core("vision_attention", images, patches, tower.layers)]
    length = np.minimum(patches, float(tower.window))
    return [
        core("vision_attention", images, patches, tower.whole_layers),
        core("vision_window", np.asarray(images) * patches / length, length, tower.layers - tower.whole_layers),
    ]
