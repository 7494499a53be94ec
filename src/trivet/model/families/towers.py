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
    return int(value) ** 2  # type: ignore[call-overload]


def qwen3_vl(f: Fields) -> int:
    """Qwen3-VL and Qwen3.5: patch embedding in space and time, position table, blocks, merger, deepstack mergers."""
    hidden, depth = f.positive("hidden_size"), f.positive("depth")
    patch = f.positive("in_channels") * f.positive("temporal_patch_size") * f.positive("patch_size") ** 2
    merged = hidden * f.positive("spatial_merge_size") ** 2
    out = f.positive("out_hidden_size")
    heads = linear(merged, merged) + linear(merged, out)
    deep = len(f.many("deepstack_visual_indexes"))
    f.ignore("num_heads")
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
    f.ignore(
        "standardize",
        "use_clipped_linears",
        "pooling_kernel_size",
        "max_position_embeddings",
        "attention_bias",
        "global_head_dim",
    )
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
    first, second = (int(channels) for channels in f.many("subsampling_conv_channels"))
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


def clip(f: Fields) -> int:
    """CLIP: class embedding, position table, norms before and after."""
    hidden, layers = f.positive("hidden_size"), f.positive("num_hidden_layers")
    positions = (f.positive("image_size") // f.positive("patch_size")) ** 2 + 1
    f.ignore("projection_dim", "num_attention_heads", "vocab_size")
    patch = f.positive("num_channels") * f.positive("patch_size") ** 2 * hidden
    return (
        hidden
        + patch
        + positions * hidden
        + 4 * hidden
        + layers * encoder_block(hidden, f.positive("intermediate_size"))
    )


def _pooling_head(hidden: int, width: int) -> int:
    """SigLIP's attention-pooling head."""
    return (
        hidden
        + linear(hidden, 3 * hidden)
        + linear(hidden, hidden)
        + 2 * hidden
        + linear(hidden, width)
        + linear(width, hidden)
    )


def siglip(f: Fields) -> int:
    hidden, layers, width = f.positive("hidden_size"), f.positive("num_hidden_layers"), f.positive("intermediate_size")
    positions = (f.positive("image_size") // f.positive("patch_size")) ** 2
    f.ignore("num_attention_heads", "projection_dim", "num_image_tokens", "projector_hidden_act", "num_positions")
    patch = linear(f.positive("num_channels") * f.positive("patch_size") ** 2, hidden)
    head = _pooling_head(hidden, width) if f.flag("vision_use_head", True) else 0
    return patch + positions * hidden + layers * encoder_block(hidden, width) + 2 * hidden + head


def siglip2(f: Fields) -> int:
    hidden, layers, width = f.positive("hidden_size"), f.positive("num_hidden_layers"), f.positive("intermediate_size")
    f.ignore("num_attention_heads")
    patch = linear(f.positive("num_channels") * f.positive("patch_size") ** 2, hidden)
    head = _pooling_head(hidden, width) if f.flag("vision_use_head", True) else 0
    return patch + f.positive("num_patches") * hidden + layers * encoder_block(hidden, width) + 2 * hidden + head


def siglip_bare(f: Fields) -> int:
    """Idefics2/3 and SmolVLM: SigLIP without a pooling head, positions by patch."""
    hidden, layers, width = f.positive("hidden_size"), f.positive("num_hidden_layers"), f.positive("intermediate_size")
    positions = (f.positive("image_size") // f.positive("patch_size")) ** 2
    f.ignore("num_attention_heads", "max_image_size", "size", "use_base_siglip", "tie_word_embeddings")
    patch = linear(f.positive("num_channels") * f.positive("patch_size") ** 2, hidden)
    return patch + positions * hidden + layers * encoder_block(hidden, width) + 2 * hidden


def pixtral(f: Fields) -> int:
    hidden, layers, width = f.positive("hidden_size"), f.positive("num_hidden_layers"), f.positive("intermediate_size")
    f.ignore("image_size", "num_attention_heads", "head_dim")
    patch = f.positive("num_channels") * f.positive("patch_size") ** 2 * hidden
    return patch + hidden + layers * (4 * hidden * hidden + 3 * hidden * width + 2 * hidden)


def qwen2_vl(f: Fields) -> int:
    width, depth, out = f.positive("embed_dim"), f.positive("depth"), f.positive("hidden_size")
    inner = int(width * f.get("mlp_ratio"))
    merged = width * f.positive("spatial_merge_size") ** 2
    channels = f.positive("in_channels") if "in_chans" not in f.raw else f.positive("in_channels", 3)
    f.ignore("num_heads", "in_chans", "spatial_patch_size")
    patch = channels * f.positive("temporal_patch_size") * f.positive("patch_size") ** 2 * width
    return patch + depth * encoder_block(width, inner) + 2 * width + linear(merged, merged) + linear(merged, out)


def qwen2_5_vl(f: Fields) -> int:
    hidden, depth, width, out = (
        f.positive(n) for n in ("hidden_size", "depth", "intermediate_size", "out_hidden_size")
    )
    merged = hidden * f.positive("spatial_merge_size") ** 2
    f.ignore("num_heads", "fullatt_block_indexes", "tokens_per_second", "window_size", "in_chans", "spatial_patch_size")
    patch = f.positive("in_channels") * f.positive("temporal_patch_size") * f.positive("patch_size") ** 2 * hidden
    mlp = 2 * linear(hidden, width) + linear(width, hidden)
    block = 4 * linear(hidden, hidden) + mlp + 2 * hidden
    return patch + depth * block + hidden + linear(merged, merged) + linear(merged, out)


def internvl(f: Fields) -> int:
    hidden, layers, width = f.positive("hidden_size"), f.positive("num_hidden_layers"), f.positive("intermediate_size")
    image, patch = f.get("image_size"), f.get("patch_size")
    positions = (area(image) // area(patch) + 1) * hidden if f.flag("use_absolute_position_embeddings", True) else 0
    bias = f.flag("attention_bias", False)
    norm = 2 * hidden if f.expect("norm_type", "layer_norm", "rms_norm") == "layer_norm" else hidden
    f.ignore("num_attention_heads", "layer_scale_init_value")
    attention = (
        3 * linear(hidden, hidden, bias) + linear(hidden, hidden) + (2 * hidden if f.flag("use_qk_norm", False) else 0)
    )
    block = attention + linear(hidden, width) + linear(width, hidden) + 2 * norm + 2 * hidden
    final = 0 if f.flag("use_mean_pooling", True) else 2 * hidden
    mask = hidden if f.flag("use_mask_token", False) else 0
    return hidden + positions + linear(f.positive("num_channels") * area(patch), hidden) + layers * block + final + mask


def glm4v(f: Fields) -> int:
    hidden, depth, out, width = (
        f.positive(n) for n in ("hidden_size", "depth", "out_hidden_size", "intermediate_size")
    )
    bias, merge, patch_size = (
        f.flag("attention_bias", False),
        f.positive("spatial_merge_size"),
        f.positive("patch_size"),
    )
    positions = (f.positive("image_size") // patch_size) ** 2
    f.ignore("num_heads")
    patch = linear(f.positive("in_channels") * f.positive("temporal_patch_size") * patch_size**2, hidden)
    block = linear(hidden, 3 * hidden, bias) + hidden * hidden + 3 * hidden * out + 2 * hidden
    merger = out * out + 2 * out + 3 * out * width
    return positions * hidden + patch + depth * block + merger + 2 * hidden + linear(merge**2 * hidden, out)


def mllama(f: Fields) -> int:
    """Llama 3.2's vision model: gated position tables for tiles, a local and a gated global stack."""
    hidden, width, tiles = f.positive("hidden_size"), f.positive("intermediate_size"), f.positive("max_num_tiles")
    positions = (f.positive("image_size") // f.positive("patch_size")) ** 2 + 1
    ratios = len(f.many("supported_aspect_ratios") or range(8)) + 1
    f.ignore("attention_heads", "intermediate_layers_indices", "vision_output_dim", "max_aspect_ratio_id")
    block = 4 * hidden * hidden + linear(hidden, width) + linear(width, hidden) + 4 * hidden
    tables = 1 + positions * hidden + ratios * tiles * positions * hidden + 2 * (1 + ratios * tiles * hidden)
    patch = f.positive("num_channels") * f.positive("patch_size") ** 2 * hidden
    stacks = f.positive("num_hidden_layers") * block + f.positive("num_global_layers") * (block + 2)
    return hidden + patch + tables + 4 * hidden + stacks


def whisper_encoder(f: Fields) -> int:
    """Whisper's encoder: two convolutions, a position table (counted: the class keeps it as a parameter), blocks, norm."""
    hidden = f.positive("d_model") if "d_model" in f.raw or "d_model" in f.defaults else f.positive("hidden_size")
    layers = (
        f.positive("encoder_layers")
        if "encoder_layers" in f.raw or "encoder_layers" in f.defaults
        else f.positive("num_hidden_layers")
    )
    width = (
        f.positive("encoder_ffn_dim")
        if "encoder_ffn_dim" in f.raw or "encoder_ffn_dim" in f.defaults
        else f.positive("intermediate_size")
    )
    bins, positions = f.positive("num_mel_bins"), f.positive("max_source_positions")
    f.read.update(f.raw)
    convolutions = linear(3 * bins, hidden) + linear(3 * hidden, hidden)
    block = 3 * linear(hidden, hidden) + hidden * hidden + linear(hidden, width) + linear(width, hidden) + 4 * hidden
    return convolutions + positions * hidden + layers * block + 2 * hidden


TOWERS = {
    "clip_vision_model": clip,
    "siglip_vision_model": siglip,
    "siglip2_vision_model": siglip2,
    "idefics2_vision": siglip_bare,
    "idefics3_vision": siglip_bare,
    "smolvlm_vision": siglip_bare,
    "pixtral": pixtral,
    "qwen2_vl_vision": qwen2_vl,
    "qwen2_5_vl_vision": qwen2_5_vl,
    "internvl_vision": internvl,
    "glm4v_vision": glm4v,
    "glm4v_moe_vision": glm4v,
    "qwen3_vl_vision": qwen3_vl,
    "qwen3_vl_moe_vision": qwen3_vl,
    "mllama_vision_model": mllama,
    "qwen2_audio_encoder": whisper_encoder,
    "voxtral_encoder": whisper_encoder,
    "kimi_k25_vision": kimi_vision,
}
