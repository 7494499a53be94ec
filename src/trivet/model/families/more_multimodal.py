"""More vision-language, omni and document models, by the same parts as ``vision_language``."""

from __future__ import annotations

from collections.abc import Callable

from trivet.model.architecture import FeedForward
from trivet.model.blueprint import Blueprint, attention, decoder, dense
from trivet.model.families import special
from trivet.model.families.dense import qwen2
from trivet.model.families.experts import qwen3_moe
from trivet.model.families.mixtures import mlp_kinds
from trivet.model.families.plain import Style, read_style
from trivet.model.families.towers import TOWERS, area, encoder_block, linear, qwen3_vl, siglip_bare
from trivet.model.families.vision_language import language_model, seeing, tie, tower
from trivet.model.fields import Fields

Reader = Callable[[Fields], Blueprint]


# --- towers ---------------------------------------------------------------------------------------------------------


def exaone_tower(f: Fields) -> int:
    """Qwen2.5-VL's tower with grouped key-value heads."""
    hidden, depth, width, out = (
        f.positive(n) for n in ("hidden_size", "depth", "intermediate_size", "out_hidden_size")
    )
    heads, kv = f.positive("num_heads"), f.positive("num_key_value_heads")
    merged = hidden * f.positive("spatial_merge_size") ** 2
    f.ignore("fullatt_block_indexes", "window_size", "tokens_per_second")
    patch = f.positive("in_channels") * f.positive("temporal_patch_size") * f.positive("patch_size") ** 2 * hidden
    qkv = linear(hidden, hidden // heads * (heads + 2 * kv))
    block = qkv + linear(hidden, hidden) + 2 * linear(hidden, width) + linear(width, hidden) + 2 * hidden
    return patch + depth * block + hidden + linear(merged, merged) + linear(merged, out)


def glm_ocr_tower(f: Fields) -> int:
    hidden, depth, out, width = (
        f.positive(n) for n in ("hidden_size", "depth", "out_hidden_size", "intermediate_size")
    )
    bias, merge, in_channels = f.flag("attention_bias"), f.positive("spatial_merge_size"), f.positive("in_channels")
    dim = hidden // f.positive("num_heads")
    f.ignore("image_size")
    patch = linear(in_channels * f.positive("temporal_patch_size") * f.positive("patch_size") ** 2, hidden)
    mlp = 2 * linear(hidden, width, bias) + linear(width, hidden, bias)
    block = linear(hidden, 3 * hidden, bias) + linear(hidden, hidden, bias) + 2 * dim + mlp + 2 * hidden
    merger = out * out + 2 * out + 3 * out * in_channels * out
    return patch + depth * block + merger + linear(merge**2 * hidden, out) + hidden


def minimax_tower(f: Fields) -> int:
    hidden, layers = f.positive("hidden_size"), f.positive("num_hidden_layers")
    f.ignore("image_size", "num_attention_heads", "spatial_merge_size")
    patch = f.positive("num_channels") * f.positive("temporal_patch_size") * f.positive("patch_size") ** 2 * hidden
    return patch + 2 * hidden + layers * encoder_block(hidden, f.positive("intermediate_size"))


def omni2_audio(f: Fields) -> int:
    """Qwen2.5-Omni's Whisper-like encoder: no position parameters, a projection and two learned marks."""
    hidden, width, bins, out = (f.positive(n) for n in ("d_model", "encoder_ffn_dim", "num_mel_bins", "output_dim"))
    f.read.update(f.raw)
    block = 3 * linear(hidden, hidden) + hidden * hidden + linear(hidden, width) + linear(width, hidden) + 4 * hidden
    convolutions = linear(3 * bins, hidden) + linear(3 * hidden, hidden)
    return convolutions + 2 * out + f.positive("encoder_layers") * block + 2 * hidden + linear(hidden, out)


def omni3_audio(f: Fields) -> int:
    """Qwen3-Omni's encoder: three strided 2-D convolutions, blocks with all biases, two projections."""
    hidden, width, bins, out = (f.positive(n) for n in ("d_model", "encoder_ffn_dim", "num_mel_bins", "output_dim"))
    channels = f.positive("downsample_hidden_size")
    f.read.update(f.raw)
    for _ in range(3):
        bins = (bins + 1) // 2
    convolutions = linear(9, channels) + 2 * linear(9 * channels, channels) + channels * bins * hidden
    blocks = f.positive("encoder_layers") * encoder_block(hidden, width)
    return convolutions + blocks + 2 * hidden + linear(hidden, hidden) + linear(hidden, out)


def ernie_tower(f: Fields) -> int:
    hidden, depth = f.positive("hidden_size"), f.positive("depth")
    f.ignore("num_heads", "spatial_merge_size", "temporal_merge_size")
    patch = f.positive("in_channels") * f.positive("patch_size") ** 2 * hidden
    return patch + depth * encoder_block(hidden, f.positive("intermediate_size")) + 2 * hidden


def sam_tower(f: Fields) -> int:
    """GOT-OCR 2: SAM's encoder, windowed attention with relative positions in most layers, and its neck."""
    hidden, layers, dim = f.positive("hidden_size"), f.positive("num_hidden_layers"), 0
    dim = hidden // f.positive("num_attention_heads")
    grid = f.positive("image_size") // f.positive("patch_size")
    window, whole, out = f.positive("window_size"), f.many("global_attn_indexes"), f.positive("output_channels")
    width = f.optional("mlp_dim") or int(hidden * f.get("mlp_ratio"))
    bias, relative = f.flag("qkv_bias"), f.flag("use_rel_pos")
    f.read.update(f.raw)
    positions = grid * grid * hidden if f.flag("use_abs_pos") else 0
    total = positions + linear(f.positive("num_channels") * f.positive("patch_size") ** 2, hidden)
    for i in range(layers):
        size = window if window and i not in whole else grid
        total += linear(hidden, 3 * hidden, bias) + linear(hidden, hidden) + 4 * hidden
        total += linear(hidden, width) + linear(width, hidden) + (2 * (2 * size - 1) * dim if relative else 0)
    return total + hidden * out + 2 * out + 9 * out * out + 2 * out


TOWERS.update(
    {
        "exaone4_5_vision": exaone_tower,
        "glm_ocr_vision": glm_ocr_tower,
        "minimax_m3_vl_vision": minimax_tower,
        "qwen2_5_omni_audio_encoder": omni2_audio,
        "qwen3_omni_moe_audio_encoder": omni3_audio,
        "qwen2_5_omni_vision_encoder": TOWERS["qwen2_5_vl_vision"],
        "qwen3_omni_moe_vision_encoder": qwen3_vl,
        "ernie4_5_vl_moe_vision": ernie_tower,
        "got_ocr2_vision": sam_tower,
        "paddleocr_vl_vision": siglip_bare,
    }
)


# --- models ---------------------------------------------------------------------------------------------------------


def deepseek_vl(f: Fields) -> Blueprint:
    text, vision, blueprint = seeing(f, "llama", "siglip_vision_model")
    hidden = blueprint.hidden
    blueprint.add("projector", linear(vision.positive("hidden_size"), hidden) + linear(hidden, hidden))
    tie(f, text, blueprint)
    return blueprint


def aria(f: Fields) -> Blueprint:
    text, vision, blueprint = seeing(f, "aria_text", "idefics3_vision")
    table = f.get("projector_patch_to_query_dict", None) or {1225: 128, 4900: 256}
    queries, width, hidden = max(int(v) for v in table.values()), vision.positive("hidden_size"), blueprint.hidden
    cross = 3 * width * width + linear(width, 3 * width) + 2 * linear(width, width) + 4 * width
    blueprint.add("projector", queries * width + cross + 2 * width + width * hidden + hidden * hidden)
    tie(f, text, blueprint)
    return blueprint


def exaone4_5(f: Fields) -> Blueprint:
    text, _, blueprint = seeing(f, "exaone4", "exaone4_5_vision")
    tie(f, text, blueprint)
    return blueprint


def glm_ocr(f: Fields) -> Blueprint:
    text, _, blueprint = seeing(f, "glm_ocr_text", "glm_ocr_vision")
    tie(f, text, blueprint, forwards=True)
    return blueprint


def lighton_ocr(f: Fields) -> Blueprint:
    text, vision, blueprint = seeing(f, "qwen3", "pixtral")
    inner, hidden = vision.positive("hidden_size"), blueprint.hidden
    merge = inner * inner * f.positive("spatial_merge_size") ** 2
    blueprint.add("projector", inner + merge + inner * hidden + hidden * hidden)
    tie(f, text, blueprint)
    return blueprint


def paddleocr_vl(f: Fields) -> Blueprint:
    text, vision, blueprint = seeing(f, "paddleocr_vl_text", "paddleocr_vl_vision")
    width = vision.positive("hidden_size")
    merged = width * area(vision.get("spatial_merge_size"))
    blueprint.add("projector", 2 * width + linear(merged, merged) + linear(merged, blueprint.hidden))
    tie(f, text, blueprint, forwards=True)
    return blueprint


def minimax_m3_vl(f: Fields) -> Blueprint:
    text, vision, blueprint = seeing(f, "minimax_m3_vl_text", "minimax_m3_vl_vision")
    hidden, inner = blueprint.hidden, f.positive("projector_hidden_size")
    merged = hidden * vision.positive("spatial_merge_size") ** 2
    first = linear(vision.positive("hidden_size"), inner) + linear(inner, hidden)
    blueprint.add("projector", first + linear(merged, inner) + linear(inner, hidden))
    tie(f, text, blueprint, forwards=True)
    return blueprint


def vipllava(f: Fields) -> Blueprint:
    text, vision, blueprint = seeing(f, "llama", "clip_vision_model")
    taken = f.raw.get("vision_feature_layers", [-2, -5, -8, -11, 6])
    width = vision.positive("hidden_size") * (len(taken) if isinstance(taken, list) else 1)
    hidden = blueprint.hidden
    blueprint.add("projector", 2 * width + linear(width, hidden) + linear(hidden, hidden))
    f.ignore("vision_feature_layers")
    tie(f, text, blueprint)
    return blueprint


def video_llava(f: Fields) -> Blueprint:
    text, blueprint = language_model(f, "text_config", "llama")
    vision, size = tower(f, "vision_config", "clip_vision_model")
    blueprint.add("vision", 2 * size)  # one tower for images, one for video
    hidden, bias = blueprint.hidden, f.flag("multimodal_projector_bias", True)
    blueprint.add("projector", linear(vision.positive("hidden_size"), hidden, bias) + linear(hidden, hidden, bias))
    f.ignore("video_seq_length")
    tie(f, text, blueprint)
    return blueprint


def got_ocr2(f: Fields) -> Blueprint:
    text, vision, blueprint = seeing(f, "qwen2", "got_ocr2_vision")
    out, hidden = vision.positive("output_channels"), blueprint.hidden
    blueprint.add("projector", 9 * out * 2 * out + 9 * 2 * out * hidden + linear(hidden, hidden))
    tie(f, text, blueprint)
    return blueprint


def omni_thinker(f: Fields) -> Blueprint:
    """The thinker of Qwen2.5-Omni and Qwen3-Omni: text, vision and audio in, text out."""
    third = f.model_type.startswith("qwen3")
    base = "qwen3_omni_moe" if third else "qwen2_5_omni"
    text, blueprint = language_model(f, "text_config", f"{base}_text")
    for part in ("vision", "audio"):
        _, size = tower(f, f"{part}_config", f"{base}_{part}_encoder")
        blueprint.add(part, size)
    f.ignore("position_id_per_seconds", "seconds_per_chunk", "user_token_id")
    tie(f, text, blueprint)
    return blueprint


def ernie4_5_vl_text(f: Fields) -> Blueprint:
    """ERNIE 4.5 VL: experts for text and, beside them, experts for image tokens."""
    widths = f.get("moe_intermediate_size") or [1536, 512]
    hidden, bias = f.positive("hidden_size"), f.flag("use_bias")
    f.expect("use_bias", False)
    experts, where = f.positive("moe_num_experts"), mlp_kinds(f, 1)
    shared = widths[0] * f.optional("moe_num_shared_experts")
    sparse = FeedForward(
        "moe",
        experts=experts,
        top_k=f.positive("moe_k"),
        expert_intermediate=widths[0],
        shared_intermediate=shared,
    )
    plain = dense(f, bias=bias)
    image = experts * 3 * hidden * widths[1]
    f.ignore("moe_norm_min")
    blueprint = decoder(
        f,
        mixer=attention(f),
        feed_forward=lambda i: sparse if where[i] else plain,
        router_extra=lambda i: 2 * experts + experts * hidden if where[i] else 0,
    )
    blueprint.add("image_experts", image * sum(where))
    return blueprint


def ernie4_5_vl_moe(f: Fields) -> Blueprint:
    text, vision, blueprint = seeing(f, "ernie4_5_vl_moe_text", "ernie4_5_vl_moe_vision")
    merged = vision.positive("hidden_size") * vision.positive("spatial_merge_size") ** 2
    joined = merged * vision.positive("temporal_merge_size")
    spatial = 2 * linear(merged, merged) + 2 * merged
    temporal = linear(joined, merged) + linear(merged, merged) + 2 * merged
    blueprint.add("projector", spatial + temporal + linear(merged, blueprint.hidden) + blueprint.hidden)
    tie(f, text, blueprint)
    return blueprint


def fuyu(f: Fields) -> Blueprint:
    text, blueprint = language_model(f, "text_config", "persimmon")
    patch = f.positive("num_channels") * f.positive("patch_size") ** 2
    blueprint.add("projector", linear(patch, blueprint.hidden))
    f.ignore(
        "image_size",
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "max_position_embeddings",
        "qk_layernorm",
        "vocab_size",
    )
    tie(f, text, blueprint)
    return blueprint


def gemma4_unified(f: Fields) -> Blueprint:
    """Gemma 4 unified: without configs of towers it is its text model; with them it is not understood yet."""
    f.expect("vision_config", None)
    f.expect("audio_config", None)
    text = f.sub("text_config", "gemma4_unified_text")
    blueprint = special.gemma4_text(text)
    tie(f, text, blueprint)
    return blueprint


FAMILIES: dict[str, Reader] = {
    "deepseek_vl": deepseek_vl,
    "aria": aria,
    "exaone4_5": exaone4_5,
    "glm_ocr": glm_ocr,
    "lighton_ocr": lighton_ocr,
    "paddleocr_vl": paddleocr_vl,
    "minimax_m3_vl": minimax_m3_vl,
    "vipllava": vipllava,
    "video_llava": video_llava,
    "got_ocr2": got_ocr2,
    "qwen2_5_omni_thinker": omni_thinker,
    "qwen3_omni_moe_thinker": omni_thinker,
    "ernie4_5_vl_moe": ernie4_5_vl_moe,
    "ernie4_5_vl_moe_text": ernie4_5_vl_text,
    "fuyu": fuyu,
    "gemma4_unified": gemma4_unified,
    "glm_ocr_text": lambda f: read_style(f, Style(norms=4)),
    "qwen2_5_omni_text": qwen2,
    "qwen3_omni_moe_text": qwen3_moe,
    "paddleocr_vl_text": lambda f: read_style(f, Style("use_bias", "use_bias", "use_bias")),
}
