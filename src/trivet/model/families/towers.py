"""Vision and audio towers: their parameters. They run once an image or clip, so no operators are made of them."""

from __future__ import annotations

from trivet.model.fields import Fields


def linear(inputs: int, outputs: int, bias: bool = True) -> int:
    return inputs * outputs + (outputs if bias else 0)


def encoder_block(hidden: int, intermediate: int, *, bias: bool = True, norm: int | None = None) -> int:
    """Attention, two-matrix feed-forward and two layer norms."""
    norms = 2 * (2 * hidden if norm is None else norm)
    return (
        4 * linear(hidden, hidden, bias)
        + linear(hidden, intermediate, bias)
        + linear(intermediate, hidden, bias)
        + norms
    )


def area(value: object) -> int:
    """Cells of a patch or kernel given as one number or as a pair."""
    if isinstance(value, list | tuple):
        return int(value[0]) * int(value[1])
    return int(value) ** 2  # type: ignore[call-overload, no-any-return]


def qwen3_vl(f: Fields) -> int:
    """Qwen3-VL and Qwen3.5: patch embedding in space and time, position table, blocks, merger, deepstack mergers."""
    hidden, depth = f.positive("hidden_size"), f.positive("depth")
    patch = f.positive("in_channels") * f.positive("temporal_patch_size") * f.positive("patch_size") ** 2
    merged = hidden * f.positive("spatial_merge_size") ** 2
    out = f.positive("out_hidden_size")
    heads = linear(merged, merged) + linear(merged, out)
    deep = len(f.many("deepstack_visual_indexes"))
    f.get("num_heads", None)
    return (
        linear(patch, hidden)
        + f.positive("num_position_embeddings") * hidden
        + depth * encoder_block(hidden, f.positive("intermediate_size"))
        + heads
        + 2 * hidden
        + deep * (heads + 2 * merged)
    )


def gemma4_vision(f: Fields) -> int:
    hidden, layers, heads = (
        f.positive("hidden_size"),
        f.positive("num_hidden_layers"),
        f.positive("num_attention_heads"),
    )
    dim, kv, width = f.positive("head_dim"), f.positive("num_key_value_heads"), f.positive("intermediate_size")
    for field in (
        "standardize",
        "use_clipped_linears",
        "pooling_kernel_size",
        "max_position_embeddings",
        "attention_bias",
        "global_head_dim",
    ):
        f.get(field, None)
    block = 2 * hidden * dim * (heads + kv) + 3 * hidden * width + 4 * hidden + 2 * dim
    return (
        3 * f.positive("patch_size") ** 2 * hidden + 2 * f.positive("position_embedding_size") * hidden + layers * block
    )


def gemma4_audio(f: Fields) -> int:
    hidden, layers, heads = (
        f.positive("hidden_size"),
        f.positive("num_hidden_layers"),
        f.positive("num_attention_heads"),
    )
    dim = hidden // heads
    first, second = f.many("subsampling_conv_channels")
    out = f.positive("output_proj_dims")
    f.read.update(f.raw)
    attention = 3 * hidden * heads * dim + hidden * hidden + hidden * heads * dim + dim
    feed_forward = 8 * hidden * hidden + 2 * hidden
    conv = 3 * hidden * hidden + hidden * f.positive("conv_kernel_size") + 2 * hidden
    subsample = 9 * first + first + 9 * first * second + second + first // 4 * second * hidden
    return subsample + layers * (attention + 2 * feed_forward + conv + 3 * hidden) + linear(hidden, out)


def kimi_vision(f: Fields) -> int:
    """MoonViT: learned 2-D position table, blocks, final norm. Hub configs name the sizes ``vt_*``."""

    def size(name: str, vt: str) -> int:
        return f.positive(vt) if vt in f.raw else f.positive(name)

    hidden = size("hidden_size", "vt_hidden_size")
    width, layers = size("intermediate_size", "vt_intermediate_size"), size("num_hidden_layers", "vt_num_hidden_layers")
    height, breadth = size("pos_emb_height", "init_pos_emb_height"), size("pos_emb_width", "init_pos_emb_width")
    f.read.update(f.raw)
    return (
        linear(3 * area(f.get("patch_size")), hidden)
        + height * breadth * hidden
        + layers * encoder_block(hidden, width)
        + 2 * hidden
    )


def step_vision(f: Fields) -> int:
    hidden, layers = f.positive("hidden_size"), f.positive("num_hidden_layers")
    width = int(hidden * float(f.get("mlp_ratio")))
    patches = (f.positive("image_size") // f.positive("patch_size")) ** 2
    f.read.update(f.raw)
    block = encoder_block(hidden, width) + 2 * hidden
    down = 9 * hidden * 2 * hidden + 2 * hidden + 9 * 2 * hidden * 4 * hidden + 4 * hidden
    patch = f.positive("num_channels") * f.positive("patch_size") ** 2 * hidden
    return patch + patches * hidden + 2 * hidden + layers * block + down
