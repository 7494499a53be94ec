"""Models whose papers give a shape but no ``config.json``: decoder-only stacks by their published numbers.

Shapes: MPT (llm-foundry's pretraining configurations), GPT-3 (Brown et al., arXiv 2005.14165, table 2.1), PaLM (Chowdhery
et al., arXiv 2204.02311, table 1), Megatron's Turing-NLG and 1T (Narayanan et al., SC 2021; Smith et al., arXiv 2201.11990),
Llama 2 (arXiv 2307.09288), Nemotron-4 (arXiv 2402.16819, 2406.11704), Qwen3-Next-80B-A3B (its model card).
"""

from __future__ import annotations

import math
import re
from dataclasses import replace

from trivet.errors import UnknownName
from trivet.model.architecture import Architecture, FeedForward, Layer, Mixer, Quantisation

# name -> layers, hidden, heads, key-value heads, head width, feed-forward width, gated, vocabulary
_Shape = tuple[int, int, int, int, int, int, bool, int]
SHAPES: dict[str, _Shape] = {
    "mpt-125m": (12, 768, 12, 12, 64, 3072, False, 50368),
    "mpt-350m": (24, 1024, 16, 16, 64, 4096, False, 50368),
    "mpt-760m": (24, 1536, 12, 12, 128, 6144, False, 50368),
    "mpt-1b": (24, 2048, 16, 16, 128, 8192, False, 50368),
    "mpt-3b": (32, 2560, 20, 20, 128, 10240, False, 50368),
    "mpt-7b": (32, 4096, 32, 32, 128, 16384, False, 50368),
    "mpt-13b": (40, 5120, 40, 40, 128, 20480, False, 50368),
    "mpt-30b": (48, 7168, 56, 56, 128, 28672, False, 50368),
    "mpt-70b": (80, 8192, 64, 64, 128, 32768, False, 50368),
    "gpt3-175b": (96, 12288, 96, 96, 128, 49152, False, 51200),
    "gpt3-13b": (40, 5120, 40, 40, 128, 20480, False, 51200),
    "gpt3-6.7b": (32, 4096, 32, 32, 128, 16384, False, 51200),
    "gpt-22b": (48, 6144, 64, 64, 96, 24576, False, 51200),
    "turing-nlg-530b": (105, 20480, 128, 128, 160, 81920, False, 51200),
    "gpt-1t": (128, 25600, 160, 160, 160, 102400, False, 51200),
    "palm-540b": (118, 18432, 48, 1, 256, 73728, True, 256000),
    "palm-62b": (64, 8192, 32, 1, 256, 32768, True, 256000),
    "palm-8b": (32, 4096, 16, 1, 256, 16384, True, 256000),
    "llama2-7b": (32, 4096, 32, 32, 128, 11008, True, 32000),
    "llama2-13b": (40, 5120, 40, 40, 128, 13824, True, 32000),
    "llama2-70b": (80, 8192, 64, 8, 128, 28672, True, 32000),
    "nemotron4-15b": (32, 6144, 48, 8, 128, 24576, False, 256000),
    "nemotron4-340b": (96, 18432, 96, 8, 192, 73728, False, 256000),
}
_UNTIED = ("llama2", "nemotron4")
_ALIASES = {
    "gpt3": "gpt3-175b",
    "gpt-3": "gpt3-175b",
    "gpt-3-175b": "gpt3-175b",
    "palm": "palm-540b",
    "mt-nlg-530b": "turing-nlg-530b",
}
_SIZE = re.compile(r"^(?P<family>[a-z][a-z0-9.]*?)[-_ ]?(?P<size>\d+(\.\d+)?)(?P<unit>[mbt])$")
_UNITS = {"m": 1e6, "b": 1e9, "t": 1e12}


def decoder(
    name: str,
    layers: int,
    hidden: int,
    heads: int,
    kv_heads: int,
    head_dim: int,
    intermediate: int,
    *,
    gated: bool,
    vocab: int,
    tied: bool = True,
    max_context: int = 2048,
    experts: int = 0,
    top_k: int = 0,
) -> Architecture:
    """A stack of equal decoder layers; with ``experts`` every feed-forward is a mixture of them."""
    mixer = Mixer("attention", heads, kv_heads, head_dim, head_dim)
    ffn = FeedForward("dense", intermediate, gated)
    if experts:
        ffn = FeedForward("moe", 0, gated, experts=experts, top_k=top_k, expert_intermediate=intermediate)
    attention = hidden * head_dim * (2 * heads + 2 * kv_heads)
    expert = (3 if gated else 2) * hidden * intermediate
    embedding = vocab * hidden * (1 if tied else 2)
    norms = 2 * hidden
    each = attention + norms + (experts * (expert + hidden) if experts else expert)
    active = attention + norms + (top_k * expert + experts * hidden if experts else expert)
    components = {"embedding": embedding, "attention": layers * attention, "norms": layers * norms + hidden}
    components["feed_forward"] = layers * (each - attention - norms)
    return Architecture(
        name,
        "decoder",
        hidden,
        vocab,
        (Layer(mixer, ffn, layers),),
        tied,
        max_context,
        Quantisation(),
        layers * each + embedding + hidden,
        layers * active + embedding + hidden,
        components,
    )


def _key(name: str) -> str:
    key = re.sub(r"[_ ]", "-", name.lower().rpartition("/")[2].strip())
    key = re.sub(r"^(llama|nemotron|gpt)-(\d)", r"\1\2", key)
    return _ALIASES.get(key, key)


def known(name: str) -> bool:
    """Whether a published shape goes by that name."""
    return _key(name) in SHAPES or _key(name).startswith("qwen3-next")


def named(name: str, parameters: float = 0.0) -> Architecture:
    """A shape by name, or one derived from a name such as ``MPT-30b`` and its number of parameters.

    Raises:
        UnknownName: the name holds no size and no number of parameters is given.
    """
    key = _key(name)
    if key.startswith("qwen3-next"):
        return qwen3_next(name)
    if key in SHAPES:
        layers, hidden, heads, kv, width, ffn, gated, vocab = SHAPES[key]
        return decoder(
            name, layers, hidden, heads, kv, width, ffn, gated=gated, vocab=vocab, tied=not key.startswith(_UNTIED)
        )
    match = _SIZE.match(key)
    size = parameters or (float(match["size"]) * _UNITS[match["unit"]] if match else 0.0)
    if not size:
        raise UnknownName(f"no shape known for {name!r} and no size in its name", field="model", allowed=sorted(SHAPES))
    return derived(name, size)


def qwen3_next(name: str = "Qwen3-Next-80B-A3B") -> Architecture:
    """Three gated delta nets to one gated attention, 512 small experts of which 10 work, one shared."""
    hidden, vocab = 2048, 151936
    scan = Mixer("scan", scan_kind="gdn", key_heads=16, key_dim=128, value_heads=32, value_dim=128, conv_width=4)
    attention = Mixer("attention", 16, 2, 256, 256, output_gate=True, qk_norm=True)
    experts = FeedForward(
        "moe", gated=True, experts=512, top_k=10, expert_intermediate=512, shared_intermediate=512, shared_gate=True
    )
    stack = (Layer(scan, experts, 36), Layer(attention, experts, 12))
    each = 3 * hidden * 512
    mixers = 36 * hidden * (2 * 2048 + 2 * 4096 + 64 + 4096) + 12 * hidden * 256 * (2 * 16 + 4 + 16)
    router, embedding, norms = hidden * 513, 2 * vocab * hidden, 97 * hidden
    components = {"embedding": embedding, "attention": mixers, "norms": norms, "experts": 48 * (513 * each + router)}
    order = tuple(1 if i % 4 == 3 else 0 for i in range(48))
    return Architecture(
        name,
        "qwen3_next",
        hidden,
        vocab,
        stack,
        False,
        262144,
        Quantisation(),
        sum(components.values()),
        embedding + mixers + norms + 48 * (11 * each + router),
        components,
        order=order,
    )


def derived(name: str, parameters: float, vocab: int = 50368) -> Architecture:
    """A plain decoder of about ``parameters``: width over depth follows GPT-3's and MPT's tables (hidden about 128 a layer
    at 10^10 parameters, growing with the cube root), heads of 128, feed-forward of four times the width."""
    best: tuple[float, int, int] | None = None
    for layers in range(4, 161, 4):
        # 12 h^2 L + v h = P
        a, b = 12.0 * layers, float(vocab)
        hidden = (-b + math.sqrt(b * b + 4 * a * parameters)) / (2 * a)
        hidden = max(128, round(hidden / 128) * 128)
        ratio = hidden / layers
        wanted = 128.0 * (parameters / 1e10) ** 0.12
        miss = abs(math.log(ratio / wanted)) + 4 * abs(math.log((a * hidden**2 + b * hidden) / parameters))
        if best is None or miss < best[0]:
            best = (miss, layers, hidden)
    assert best is not None
    _, layers, hidden = best
    found = decoder(name, layers, hidden, hidden // 128, hidden // 128, 128, 4 * hidden, gated=False, vocab=vocab)
    return replace(found, notes=("its shape is derived from its size",))
