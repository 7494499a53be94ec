"""Decoders with latent attention (MLA): DeepSeek V2 to V3.2, Kimi K2, GLM-5 and relatives."""

from __future__ import annotations

from dataclasses import replace

from trivet.model.architecture import FeedForward, Mixer
from trivet.model.blueprint import Blueprint, decoder, dense
from trivet.model.fields import Fields


def latent_mixer(f: Fields) -> Mixer:
    return Mixer(
        "mla",
        heads=f.positive("num_attention_heads"),
        kv_heads=1,
        v_head_dim=f.positive("v_head_dim"),
        q_lora_rank=f.optional("q_lora_rank"),
        kv_lora_rank=f.positive("kv_lora_rank"),
        rope_head_dim=f.positive("qk_rope_head_dim"),
        nope_head_dim=f.positive("qk_nope_head_dim"),
    )


def latent_bias(f: Fields, m: Mixer) -> int:
    """Biases of the down-projections and of the output, where ``attention_bias`` is set."""
    if not f.flag("attention_bias", False):
        return 0
    return m.q_lora_rank + m.kv_lora_rank + m.rope_head_dim + f.positive("hidden_size")


def sparse_indices(f: Fields) -> set[int]:
    """Layers with experts: a list of kinds, else all after the first dense ones, every ``moe_layer_freq``-th."""
    layers = f.positive("num_hidden_layers")
    kinds = f.many("mlp_layer_types")
    first = f.optional("first_k_dense_replace")
    frequency = f.get("moe_layer_freq", 1)
    if kinds:
        return {i for i in range(layers) if kinds[i] == "sparse"}
    if isinstance(frequency, list):
        return {i for i in range(layers) if frequency[i]}
    return {i for i in range(first, layers) if i % (frequency or 1) == 0}


def deepseek_experts(f: Fields) -> FeedForward:
    width, experts = f.positive("moe_intermediate_size"), f.positive("n_routed_experts")
    if "num_experts" in f.legacy and f.given("num_experts"):
        experts = f.positive("num_experts")  # the class takes this older name over
    top_k = f.optional("num_experts_per_tok") or experts  # a class whose default names none
    return FeedForward(
        "moe",
        experts=experts,
        top_k=top_k,
        expert_intermediate=width,
        shared_intermediate=width * f.optional("n_shared_experts"),
    )


def _not_structural(f: Fields) -> None:
    f.ignore(
        "n_group",
        "topk_group",
        "num_key_value_heads",
        "head_dim",
        "qk_head_dim",
        "num_experts",
        "layer_types",
    )


def deepseek_v3(f: Fields) -> Blueprint:
    m = latent_mixer(f)
    _not_structural(f)
    sparse, experts = sparse_indices(f), deepseek_experts(f)
    plain = dense(f)
    blueprint = decoder(
        f,
        mixer=m,
        mixer_extra=latent_bias(f, m),
        feed_forward=lambda i: experts if i in sparse else plain,
    )
    blueprint.mtp_layers = f.optional("num_nextn_predict_layers")
    return blueprint


def indexed(f: Fields) -> Mixer:
    return replace(
        latent_mixer(f),
        index_heads=f.positive("index_n_heads"),
        index_head_dim=f.positive("index_head_dim"),
        index_top_k=f.positive("index_topk"),
    )


def deepseek_v32(f: Fields) -> Blueprint:
    m = indexed(f)
    _not_structural(f)
    sparse, experts = sparse_indices(f), deepseek_experts(f)
    plain = dense(f)
    f.get("mlp_bias", None)  # the class builds none
    blueprint = decoder(
        f,
        mixer=m,
        mixer_extra=latent_bias(f, m) + 2 * m.index_head_dim,
        feed_forward=lambda i: experts if i in sparse else plain,
    )
    blueprint.mtp_layers = f.optional("num_nextn_predict_layers")
    return blueprint


def glm_moe_dsa(f: Fields) -> Blueprint:
    """GLM-5: as DeepSeek V3.2; from 5.2 on most layers reuse the choice of an earlier layer's indexer."""
    m = indexed(f)
    _not_structural(f)
    layers = f.positive("num_hidden_layers")
    kinds = f.many("indexer_types")
    if not kinds:
        pattern, frequency, offset = (
            f.get("index_topk_pattern", None),
            f.get("index_topk_freq", 1),
            f.get("index_skip_topk_offset", 2),
        )
        if pattern is not None:
            kinds = [{"F": "full", "S": "shared"}.get(c, c) for c in pattern]
        else:
            kinds = ["full" if max(i - offset + 1, 0) % max(frequency, 1) == 0 else "shared" for i in range(layers)]
    f.ignore(
        "index_topk_pattern",
        "index_topk_freq",
        "index_skip_topk_offset",
        "index_share_for_mtp_iteration",
    )
    sharing = replace(m, index_heads=0, index_head_dim=0)
    sparse, experts = sparse_indices(f), deepseek_experts(f)
    plain = dense(f)
    f.get("mlp_bias", None)  # the class builds none
    bias = latent_bias(f, m)
    blueprint = decoder(
        f,
        mixer=lambda i: m if kinds[i] == "full" else sharing,
        feed_forward=lambda i: experts if i in sparse else plain,
        mixer_extra=lambda i: bias + (2 * m.index_head_dim if kinds[i] == "full" else 0),
    )
    blueprint.mtp_layers = f.optional("num_nextn_predict_layers")
    return blueprint


FAMILIES = {
    "deepseek_v3": deepseek_v3,
    "deepseek_v32": deepseek_v32,
    "kimi_k2": deepseek_v3,
    "glm_moe_dsa": glm_moe_dsa,
}
