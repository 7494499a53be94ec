"""``trivet models``."""

from __future__ import annotations

import json
from pathlib import Path

from typer.testing import CliRunner

from trivet.apps.cli.models import app

RUNNER = CliRunner()


def test_json_is_a_list_of_answers_and_errors(tmp_path: Path) -> None:
    bad = tmp_path / "config.json"
    bad.write_text(json.dumps({"model_type": "llama", "hidden_size": 4096}))
    result = RUNNER.invoke(app, ["qwen3-32b", str(bad), "no/such-model", "--json"])
    assert result.exit_code == 2
    good, damaged, unknown = json.loads(result.stdout)
    assert good["parameters"] == good["active_parameters"] == sum(good["components"].values()) == 32762123264
    assert good["weight_bytes"] == 2 * good["parameters"]
    assert good["kv_bytes_per_token"] == 262144
    assert good["state_bytes_per_sequence"] == 0
    assert good["flops_per_token"]["4096"] > good["flops_per_token"]["0"]
    assert damaged["name"] == str(bad)
    assert "num_hidden_layers" in damaged["error"]
    assert "\n" not in unknown["error"]


def test_all_well_is_exit_code_zero() -> None:
    result = RUNNER.invoke(app, ["gpt-oss-20b", "deepseek-r1"])
    assert result.exit_code == 0
    assert "experts" in result.stdout
    assert "20,914,757,184" in result.stdout


def test_families_are_listed() -> None:
    result = RUNNER.invoke(app, ["--families", "--json"])
    assert result.exit_code == 0
    assert {"llama", "qwen3_moe", "deepseek_v3"} <= set(json.loads(result.stdout))


def test_published_configs_by_path(shared_data: Path) -> None:
    paths = sorted(str(path) for path in (shared_data / "configs").glob("*_config.json"))
    known = json.loads((shared_data / "configs" / "parameters.json").read_text())
    result = RUNNER.invoke(app, [*paths, "--json"])
    answers = json.loads(result.stdout)
    assert len(answers) == len(paths) == 87
    for path, answer in zip(paths, answers, strict=True):
        if Path(path).name in known:
            assert answer["parameters"] == known[Path(path).name]["parameters"]
