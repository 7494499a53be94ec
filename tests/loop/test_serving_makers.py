"""Rows of other makers' chips: what their names say of formats, and what launch scripts set."""

from __future__ import annotations

import pytest

from trivet.loop import serving_rows as rows
from trivet.loop.serving_model import shortest

BASE = {"id": "x", "chip": "mi355x", "engine": "sglang", "isl": "1024", "osl": "1024", "concurrency": "16", "tp": "4"}
R1 = "deepseek-ai/DeepSeek-R1"


def case(**names: str) -> rows.Case:
    found = rows.understand({**BASE, **names}, 0)
    assert isinstance(found, rows.Case), found
    return found


@pytest.mark.parametrize(
    ("chip", "model", "weights", "wanted"),
    [
        ("mi355x", R1, "fp4", "mxfp4"),
        ("b200", R1, "fp4", "nvfp4"),
        ("mi355x", "amd/DeepSeek-R1-0528-MXFP4-Preview", "", "mxfp4"),
        ("mi300x", "amd/Llama-3.3-70B-Instruct-FP8-KV", "", "fp8"),
        ("mi355x", "amd/Kimi-K2.5-MXFP4", "", "mxfp4"),
        ("mi355x", "amd/Kimi-K2.5-MXFP4", "fp4", "mxfp4"),
        ("mi355x", "moonshotai/Kimi-K2.5", "int4", "int4_wo"),
        ("ascend-910c", R1, "w8a8", "int8"),
    ],
)
def test_formats_are_those_that_the_chip_and_the_checkpoint_have(chip: str, model: str, weights: str, wanted: str) -> None:
    assert case(chip=chip, model=model, weights=weights, moe_weights=weights).group["precision"] == wanted


def test_engines_of_amds_images() -> None:
    assert case(model=R1, engine="sglang-rocm").group["engine"] == "sglang"
    found = case(model=R1, engine="atom")
    assert found.group["engine"] == "vllm"
    assert found.group["version"] == "atom"


@pytest.mark.parametrize(
    ("chip", "model", "weights", "date", "cache", "reduce"),
    [
        ("mi300x", R1, "fp8", "2026-01-10", "", ""),
        ("mi300x", R1, "fp8", "2026-02-10", "fp8", ""),
        ("mi355x", R1, "fp8", "2026-02-10", "", "quick_int4"),
        ("mi355x", R1, "fp4", "2025-12-01", "", ""),
        ("mi300x", "openai/gpt-oss-120b", "fp4", "2026-02-10", "", "quick_int4"),
        ("mi355x", "MiniMaxAI/MiniMax-M2.5", "fp8", "2026-05-01", "fp8", "quick_int4"),
    ],
)
def test_launch_scripts(chip: str, model: str, weights: str, date: str, cache: str, reduce: str) -> None:
    settings = case(chip=chip, model=model, weights=weights, measured_on=date).pools[0].deployment.settings
    assert (settings.kv_dtype, settings.all_reduce) == (cache, reduce)


def test_lengths_that_a_row_states() -> None:
    assert shortest(case(model=R1, range_ratio="0.5")) == 0.5
    assert shortest(case(model=R1, measured_on="2026-02-10")) == 0.8
    wrong = rows.understand({**BASE, "model": R1, "range_ratio": "1.5"}, 0)
    assert isinstance(wrong, rows.Unread)
    assert "range_ratio" in wrong.reason
