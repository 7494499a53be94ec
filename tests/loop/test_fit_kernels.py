"""Which kernel times an attention: known from the chip's family, or by how kernels are built there; networks joined."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from trivet.chip import residual
from trivet.chip.kernels import attention_kernel, attention_style, portable_kernel
from trivet.loop.fit_kernels import measured_elsewhere, teaching, with_expert_kernels, with_kernels
from trivet.loop.fit_operators import Recipe, Trained, _joined, _robust_ridge, train
from trivet.loop.fit_typical import labelled, seen
from trivet.loop.operator_tables import Samples


def _samples(rows: int = 240) -> Samples:
    rng = np.random.default_rng(1)
    family = np.array(["hopper", "ada", "blackwell-gddr"])[np.arange(rows) % 3].astype("U24")
    chip = np.array(["h100", "l40s", "rtx-pro-6000"])[np.arange(rows) % 3].astype("U32")
    x = rng.normal(size=(rows, 6)).astype(np.float32)
    base = np.exp(rng.normal(size=(rows, 3))) * 1e-5
    return Samples(
        "decode", ("bf16+bf16",), x, base, base.sum(1) * np.exp(0.2 * x[:, 0]), chip, family, np.full(rows, "vllm", "U16"),
        np.full(rows, "bf16+bf16", "U16"), np.zeros((rows, 1)),
    )  # fmt: skip


def test_families_share_a_kernel() -> None:
    named, kernels = with_kernels(_samples())
    assert kernels == ("fa2", "fa3") and named.x.shape[1] == 8
    elsewhere = measured_elsewhere(named)
    assert elsewhere[named.family == "ada"].all() and not elsewhere[named.family == "hopper"].any()
    assert (named.library[named.family == "hopper"] == "vllm/fa3").all()


def test_kernel_of_a_family_or_its_style() -> None:
    kinds = residual.shipped()
    assert residual.with_kernel(kinds, "decode", "vllm", "ada", "bf16+fp8") == ("decode_known", "vllm/fi")
    assert residual.with_kernel(kinds, "decode", "vllm", "cdna3", "bf16+bf16") == ("decode", "vllm")
    assert residual.with_kernel(kinds, "prefill", "vllm", "cdna3", "bf16+bf16") == ("prefill", "vllm/async")
    assert residual.with_kernel(kinds, "gemm", "vllm", "ada", "bf16") == ("gemm", "vllm")
    assert attention_kernel("trtllm", "hopper", "fp8+fp8", "prefill") == "fmha+90"
    assert attention_style("blackwell") == "async" and attention_style("blackwell-gddr") == "sync"


def test_portable_kernels() -> None:
    heads = np.array([64.0, 128.0, 192.0, 512.0])
    assert portable_kernel("sglang", "ada", heads, 0.0, "bf16+bf16", "decode").tolist() == [1.0, 0.0, 1.0, 0.0]
    assert portable_kernel("sglang", "hopper", heads, 0.0, "bf16+bf16", "decode").tolist() == [0.0, 0.0, 0.0, 1.0]
    assert not np.any(portable_kernel("trtllm", "ada", heads, 0.0, "bf16+bf16", "decode"))


def test_missing_library_takes_the_same_kernel_of_another() -> None:
    kind = residual.shipped()["mla_decode"]  # measured under SGLang and TensorRT-LLM alone
    key, note = residual.known_group(kind, "vllm/async", "bf16+bf16")
    assert key == "sglang/async|bf16+bf16" and "sglang" in note


def test_joined_networks_give_their_mean() -> None:
    data = _samples()
    recipe = Recipe((8, 4), 2, 64)
    fits = [train(data, recipe, seed) for seed in (0, 1)]
    together = train(data, Recipe((8, 4), 2, 64, members=2), 0)

    def corrections(fit: Trained) -> np.ndarray:
        hidden = (data.x - fit.mean) / fit.scale
        for index, (weight, bias) in enumerate(zip(fit.weights, fit.biases, strict=True)):
            hidden = hidden @ weight + bias
            hidden = np.tanh(hidden) if index < len(fit.weights) - 1 else hidden
        return np.asarray(hidden, dtype=np.float64)

    assert corrections(together) == pytest.approx(np.mean([corrections(f) for f in fits], axis=0), abs=1e-5)
    assert together.offsets.keys() == _joined(fits).offsets.keys()


def test_hidden_columns_have_no_effect() -> None:
    data = _samples()
    fit = train(data, Recipe((8, 4), 2, 64), 0, hidden=slice(1, 3))
    assert not fit.weights[0][1:3].any() and fit.weights[0][0].any()


def test_experts_left_out_are_labelled_by_what_the_rest_knows() -> None:
    data = _samples()
    kernel = np.where(data.family == "hopper", "gen", np.where(data.family == "ada", "cutlass", "triton"))
    library = np.char.add("vllm/", kernel).astype("U24")
    precision = np.where(data.family == "hopper", "nvfp4", "bf16").astype("U16")
    x = np.hstack([data.x, (precision[:, None] == np.array(["bf16", "nvfp4"]))]).astype(np.float32)
    data = replace(data, kind="moe", precisions=("bf16", "nvfp4"), library=library, precision=precision, x=x)
    named, kernels = with_expert_kernels(data)
    assert kernels == ("cutlass", "gen", "triton") and named.x.shape[1] == x.shape[1] + 3
    rest = named.take(named.family != "hopper")
    found = labelled(named.take(named.family == "hopper"), rest, kernels)
    assert (found[:, -3:] == [1.0, 0.0, 0.0]).all() and (found[:, -5:-3] == [1.0, 0.0]).all()
    known = seen(replace(residual.shipped()["moe"], kernels=kernels, precisions=data.precisions), rest, kernels)
    assert known.kernels == ("cutlass", "", "triton") and known.precisions == ("bf16", "")


def test_a_kernel_that_widens_its_cache_teaches_nothing() -> None:
    data = replace(_samples(), kind="mla_decode", library=np.full(240, "sglang", "U16"))
    assert teaching(data).all()
    eight = replace(data, precision=np.full(240, "fp8+fp8", "U16"))
    assert (teaching(eight) == (eight.family != "hopper")).all()
    assert teaching(replace(eight, kind="decode")).all()


def test_an_outlier_says_less_with_a_narrow_outlier() -> None:
    design, value, weight = np.ones((6, 1)), np.array([0.0, 0.02, -0.02, 0.01, 0.0, 0.6]), np.ones(6)
    wide, narrow = (_robust_ridge(design, value, weight, [1e-9], outlier)[0] for outlier in (0.3, 0.05))
    assert 0.0 < narrow < 0.5 * wide
