"""Images: the tower runs in the step of the prompt's first chunk, once, and again when the prompt is computed again."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from serving_cases import fleet, replicas, traffic

from trivet.cloud.engine.vision import EncodeTable
from trivet.cloud.serving.fleet import FleetRun, ReplicaKind, ServingResult, simulate
from trivet.cloud.serving.generate import conversations, open_loop, with_images
from trivet.cloud.serving.metrics import summary
from trivet.errors import TrivetError

ENCODE = EncodeTable(np.array([100.0, 200.0]), np.array([0.03, 0.05]))


def kind(**settings: Any) -> ReplicaKind:
    return replace(replicas(**settings), encode=ENCODE)


def run(images: list[int], inputs: int = 400, outputs: int = 11, **settings: Any) -> ServingResult:
    return simulate(
        traffic([0.0] * len(images), inputs, outputs, image_tokens=np.array(images)), fleet(kind(**settings))
    )


def test_the_first_token_waits_for_the_tower() -> None:
    plain, image = run([0, 0]), run([150, 0])
    wait = image.first_token_s - plain.first_token_s
    np.testing.assert_allclose(wait, 0.04, atol=1e-12)  # both prompts share the step
    assert summary(image)["images"] == {"encoded": 1, "encoding_s": pytest.approx(0.04)}
    assert "images" not in summary(simulate(traffic([0.0], 10, 10), fleet(replicas())))


def test_once_a_prompt_however_many_chunks() -> None:
    """A prompt of 400 tokens in four chunks, its image in the first three."""
    settings = {"max_num_batched_tokens": 100}
    one = run([300], **settings).first_token_s[0] - run([0], **settings).first_token_s[0]
    assert one == pytest.approx(0.07, abs=1e-12)


def test_those_who_decode_stand_still_meanwhile() -> None:
    load = traffic([0.0, 0.05], [100, 400], [50, 11])
    plain = simulate(load, fleet(kind()))
    image = simulate(replace(load, image_tokens=np.array([0, 100])), fleet(kind()))
    assert image.last_token_s[0] - plain.last_token_s[0] == pytest.approx(0.03, abs=1e-6)


def test_a_cached_image_is_not_encoded() -> None:
    """The same prompt of four blocks twice: the second finds three, one more than its image has."""
    hashes = {"hash_ids": np.tile(np.arange(4), 2), "hash_offsets": np.array([0, 4, 8]), "block_tokens": 64}
    for tokens, encoded in ((128, 1), (250, 2)):
        load = traffic([0.0, 5.0], 256, 11, image_tokens=np.full(2, tokens), **hashes)
        found = simulate(load, fleet(kind())).images
        assert found is not None and found[0, 0] == encoded


def test_a_later_block_may_hold_larger_images() -> None:
    load = traffic([0.0, 1.0, 2.0, 3.0], 400, 11, image_tokens=np.array([0, 100, 0, 200]))
    whole = simulate(load, fleet(kind()))
    one = FleetRun(fleet(kind()))
    rows = [one.feed(load.take(np.array([i])), final=i == 3).rows for i in range(4)]
    np.testing.assert_array_equal(np.rint(whole.last_token_s * 1e12), np.concatenate(rows)[:, 4])
    assert one.state.images is not None and one.state.images.counts.tolist() == [[2, 80_000_000_000]]


def test_errors() -> None:
    load = traffic([0.0], 400, 11, image_tokens=np.array([100]))
    with pytest.raises(TrivetError, match="no vision tower"):
        simulate(load, fleet(replicas()))
    talk = conversations(3, rate_per_s=1.0, turns=2, inputs=20, outputs=20)
    with pytest.raises(TrivetError, match="open_loop"):
        with_images(talk, 100)
    with pytest.raises(TrivetError, match=r"images\.share"):
        with_images(load, 100, share=2.0)


def test_share_and_size_of_generated_images() -> None:
    base = open_loop(20_000, rate_per_s=10.0, inputs=10, outputs=10)
    load = with_images(base, {"kind": "uniform", "low": 100, "high": 300}, share=0.25)
    assert load.image_tokens is not None
    some = load.image_tokens > 0
    assert some.mean() == pytest.approx(0.25, abs=0.02)
    assert load.image_tokens[some].mean() == pytest.approx(200, rel=0.03)
    np.testing.assert_array_equal(load.input_tokens - load.image_tokens, base.input_tokens)
