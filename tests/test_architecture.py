"""The shape of the house: nothing heavy at start-up, every command named has a module, only readers open data/."""

from __future__ import annotations

import ast
import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from trivet.apps.cli import main as cli
from trivet.apps.cli import predict, validate

SOURCE = Path(__file__).resolve().parents[1] / "src" / "trivet"
HEAVY = {"numba", "polars", "scipy", "plotly", "lightgbm", "pydantic", "ruamel", "numpy"}


def test_help_imports_nothing_heavy() -> None:
    code = "import sys; import trivet.apps.cli.main; print(' '.join(sys.modules))"
    loaded = set(
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    )
    assert not HEAVY & {name.split(".")[0] for name in loaded}


@pytest.mark.parametrize(
    ("package", "commands"),
    [
        ("trivet.apps.cli", cli.COMMANDS),
        ("trivet.apps.cli.predict", predict.COMMANDS),
        ("trivet.apps.cli.validate", validate.COMMANDS),
    ],
)
def test_every_listed_command_exists(package: str, commands: dict[str, str]) -> None:
    missing = [name for name in commands if importlib.util.find_spec(f"{package}.{name}") is None]
    assert not missing


def _imports(path: Path) -> set[str]:
    tree = ast.parse(path.read_text())
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    return names | {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module}


def test_model_and_chip_do_not_know_each_other() -> None:
    for leg, other in (("model", "trivet.chip"), ("chip", "trivet.model")):
        for path in (SOURCE / leg).rglob("*.py"):
            assert not [name for name in _imports(path) if name.startswith(other)], path
