"""From components and an engine's constants to the step table."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from trivet.cloud.deployment import Deployment, StepTable
from trivet.cloud.engine.components import CONTEXT, KINDS, PAST, SEQUENCES, TOKENS, Components, compile_components
from trivet.cloud.engine.memory import room
from trivet.cloud.engine.profiles import EngineProfile, profile

_SHARED = np.array([kind in ("experts", "exchange") for kind in KINDS])
_COLLECTIVE = np.array([kind in ("all_reduce", "exchange") for kind in KINDS])


def step_table(deployment: Deployment) -> StepTable:
    """The compiled step of one attention-DP rank of ``deployment``.

    Raises:
        DoesNotFit: the layout does not divide the model, or weights leave no room for KV.
        Unsupported: a field of the chip without which nothing can be timed is neither published nor bounded.
        UnknownName: an engine without a profile.
    """
    constants = profile(deployment.settings.engine, deployment.settings.version, deployment.chip.name)
    space = room(deployment, constants, deployment.expected_isl)
    parts = compile_components(deployment)
    found = assemble(parts, constants, space.blocks, deployment.settings.block_size)
    if deployment.layout.attention_dp == 1:
        return found
    graph, mixed = shared_parts(parts, constants)
    return replace(
        found, shared_graph_s=np.minimum(graph, found.graph_s), shared_mixed_s=np.minimum(mixed, found.mixed_s)
    )


def shared_parts(parts: Components, constants: EngineProfile) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """What the ranks of an engine do together, of a decode step [S] and of a step with prompts [T]: experts, exchange."""
    decode = np.array([constants.weights[kind] for kind in KINDS]) * _SHARED
    prompt = np.array([constants.prefill_weights[kind] for kind in KINDS]) * _SHARED
    floors = np.array([constants.floors[kind] for kind in KINDS]) * _SHARED
    eager = floors * np.where(_COLLECTIVE, 1.0, constants.eager_floor_weight)
    graph = decode @ parts.decode + floors @ parts.decode_floor
    mixed = prompt @ parts.mixed + eager @ parts.mixed_floor
    return np.maximum.accumulate(graph), np.maximum.accumulate(mixed)


def assemble(parts: Components, constants: EngineProfile, blocks: int = 0, block_size: int = 16) -> StepTable:
    """Weigh the components. Cheap: calibration calls it once a trial and deployment."""
    decode = np.array([constants.weights[kind] for kind in KINDS])
    prompt = np.array([constants.prefill_weights[kind] for kind in KINDS])
    floors = np.array([constants.floors[kind] for kind in KINDS])
    eager = floors * np.where(_COLLECTIVE, 1.0, constants.eager_floor_weight)
    graph = decode @ parts.decode + floors @ parts.decode_floor + constants.graph_s + constants.layer_s * parts.layers
    graph = graph + parts.launched_s
    mixed = prompt @ parts.mixed + eager @ parts.mixed_floor + constants.graph_s
    # The host launches a step with prompts kernel by kernel; experts and attention over latents take it longest.
    launches = constants.routed_layer_s * parts.routed_layers + constants.latent_layer_s * parts.latent_layers
    mixed = np.maximum(mixed, launches)
    core = KINDS.index(parts.core)
    return StepTable(
        TOKENS, np.maximum.accumulate(mixed), SEQUENCES, np.maximum.accumulate(graph), CONTEXT,
        decode[core] * _rising(parts.decode_attention), TOKENS, PAST, prompt[core] * _rising(parts.prefill_attention),
        constants.host_decode_s, constants.host_mixed_s, constants.host_per_sequence_s, constants.overlap,
        float(np.hypot(constants.log_sigma, parts.log_sigma)), constants.first_token_s, blocks, block_size,
    )  # fmt: skip


def speculating(wide: StepTable, plain: StepTable, parts: Components, drafts: int) -> StepTable:
    """The step that proposes ``drafts`` tokens a sequence and checks them: ``wide`` computes them all, and before it the
    model's multi-token-prediction layer runs ``drafts`` times, each a layer of the ``plain`` step with a head of its own."""
    head = np.maximum.accumulate(parts.decode[KINDS.index("head")] + parts.decode_floor[KINDS.index("head")])
    share = drafts / max(parts.layers, 1)
    return replace(
        wide,
        graph_s=wide.graph_s + share * plain.graph_s + drafts * head,
        decode_attention_s=wide.decode_attention_s + share * plain.decode_attention_s,
    )


def _rising(surface: NDArray[np.float64]) -> NDArray[np.float64]:
    """Monotone along both axes: kernels' tile steps may dip by a per cent or two."""
    return np.maximum.accumulate(np.maximum.accumulate(surface, axis=0), axis=1)
