"""What is computed: the resolved shape of a model, as plain numbers.

Reading a ``config.json`` is ``config.py``; counting is ``parameters.py``; operators come from ``layers.py``.
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Mixer:
    """The token mixer of one layer.

    ``kind``: "attention" (MHA/GQA/MQA), "mla", "compressed" (DeepSeek V4: one shared key-value vector, a window and
    ``compress``-fold compressed keys), "scan" (gated delta net, Mamba-2, lightning, short conv), "none".
    ``window`` > 0: sliding window; ``chunk`` > 0: chunked attention. ``index_*``: DeepSeek sparse attention's indexer.
    """

    kind: str
    heads: int = 0
    kv_heads: int = 0
    head_dim: int = 0
    v_head_dim: int = 0
    window: int = 0
    chunk: int = 0
    qkv_bias: bool = False
    out_bias: bool = False
    qk_norm: bool = False
    wide_norm: bool = False  # queries and keys are each normed over all heads together
    output_gate: bool = False
    sinks: bool = False
    # MLA
    q_lora_rank: int = 0
    kv_lora_rank: int = 0
    rope_head_dim: int = 0
    nope_head_dim: int = 0
    # sparse attention
    index_heads: int = 0
    index_head_dim: int = 0
    index_top_k: int = 0
    # compressed attention
    compress: int = 0  # tokens that one compressed key stands for; 0 = the window alone
    o_lora_rank: int = 0
    o_groups: int = 0
    # linear attention and state space
    scan_kind: str = ""
    key_heads: int = 0
    key_dim: int = 0
    value_heads: int = 0
    value_dim: int = 0
    conv_width: int = 0
    state_groups: int = 0
    shared_kv: bool = False  # reads another layer's keys and values (no k, v products, no cache of its own)


@dataclass(frozen=True, slots=True)
class FeedForward:
    """The channel mixer of one layer. ``kind``: "dense", "moe", "none"."""

    kind: str
    intermediate: int = 0
    gated: bool = True
    bias: bool = False
    experts: int = 0
    top_k: int = 0
    expert_intermediate: int = 0
    shared_intermediate: int = 0
    shared_gate: bool = False
    latent: int = 0  # experts work in a latent width smaller than hidden (0 = hidden)


@dataclass(frozen=True, slots=True)
class Layer:
    """``count`` consecutive or scattered identical layers."""

    mixer: Mixer
    feed_forward: FeedForward
    count: int


@dataclass(frozen=True, slots=True)
class Quantisation:
    """What the checkpoint stores. Labels as in ``operators.WEIGHT_BYTES``."""

    default: str = "bf16"
    attention: str = "bf16"
    experts: str = "bf16"
    dense: str = "bf16"
    head: str = "bf16"
    kv_cache: str = "bf16"


@dataclass(frozen=True, slots=True)
class Tower:
    """A vision transformer and the projector that joins it to the language model: see ``model/vision.py``.

    ``merge`` x ``merge`` patches become one token. ``window`` > 0: patches that a windowed layer attends within, all but
    ``whole_layers`` of them. ``joints``: [inputs, outputs] of the projector's products, one row a token.
    """

    hidden: int
    layers: int
    heads: int
    head_dim: int
    intermediate: int
    gated: bool
    patch_pixels: int
    merge: int
    joints: tuple[tuple[int, int], ...]
    frames: int = 1  # frames that one patch spans (a still image is repeated)
    window: int = 0
    whole_layers: int = 0


@dataclass(frozen=True, slots=True)
class Architecture:
    """A model, resolved: every number below is exact or the reader refused the config."""

    name: str
    model_type: str
    hidden: int
    vocab: int
    layers: tuple[Layer, ...]
    tied_embeddings: bool
    max_context: int
    quantisation: Quantisation
    parameters: int  # total, to the last one; what is counted: see model/parameters.py
    active_parameters: int  # touched by one token
    components: dict[str, int] = field(default_factory=dict)  # parameters by component; sums to ``parameters``
    mtp_layers: int = 0
    has_vision: bool = False
    has_audio: bool = False
    notes: tuple[str, ...] = ()
    order: tuple[int, ...] = ()  # for each layer of the stack its index in ``layers``; () = in the order of ``layers``
    encoder: bool = False  # bidirectional attention, no cache (embedding models)
    tower: Tower | None = None  # vision tower, where its operators are known

    @classmethod
    def from_config(cls, path_or_name: str) -> Architecture:
        """Read a ``config.json``, its folder, or a name: see ``trivet.model.config.read``."""
        from trivet.model.config import read

        return read(path_or_name)

    @property
    def stack(self) -> tuple[int, ...]:
        """Index into ``layers`` for each layer, bottom to top."""
        return self.order or tuple(i for i, layer in enumerate(self.layers) for _ in range(layer.count))

    @property
    def routed(self) -> bool:
        """Whether tokens of some layer are routed to experts."""
        return any(layer.feed_forward.kind == "moe" for layer in self.layers)

    @property
    def num_layers(self) -> int:
        return sum(layer.count for layer in self.layers)
