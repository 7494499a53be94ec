"""What README, docs and examples tell a reader to type: the commands parse, the files exist, the Python imports."""

from __future__ import annotations

import ast
import importlib
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer

from trivet.apps.cli.main import app
from trivet.interop.traces import read as read_trace
from trivet.interop.yaml_files import read_yaml
from trivet.model.config import read as read_model

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
EXAMPLES = sorted((ROOT / "examples").rglob("*.yaml"))
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.M | re.S)


def typed() -> list[tuple[str, str]]:
    """Commands in fenced blocks and in the first lines of examples: (where, what)."""
    found = []
    for page in PAGES:
        for language, block in FENCE.findall(page.read_text()):
            if language in ("", "bash", "console"):
                joined = block.replace("\\\n", " ")
                found += [(page.name, text) for text in re.findall(r"(?:^|[ /])trivet ([a-z][^\n]*)", joined, re.M)]
    for path in EXAMPLES:
        texts = re.findall(r"^# trivet ([^\n(]*)", path.read_text(), re.M)
        found += [(path.name, text) for text in texts]
    return found


def mentioned() -> list[tuple[str, str]]:
    """Commands named in running text, perhaps with placeholders."""
    return [
        (page.name, text.replace("\n", " "))
        for page in PAGES
        for text in re.findall(r"`trivet ([^`]+)`", page.read_text())
    ]


def command_of(words: list[str]) -> tuple[Any, list[str]]:
    """The command that the words name, and the words behind it."""
    command: Any = typer.main.get_command(app)
    context = command.make_context("trivet", [], resilient_parsing=True)
    while hasattr(command, "list_commands") and words and not words[0].startswith("-"):
        names = words[0].split("|")
        for name in names:
            assert command.get_command(context, name) is not None, f"no command {name!r}"
        command, words = command.get_command(context, names[0]), words[1:]
        context = command.make_context(names[0], [], resilient_parsing=True)
    return command, words


@pytest.mark.parametrize(("where", "text"), typed(), ids=lambda v: str(v)[:40])
def test_what_is_to_be_typed_parses(where: str, text: str) -> None:
    command, words = command_of(shlex.split(text, comments=True))
    if hasattr(command, "list_commands"):
        return
    if "--help" not in words:
        command.make_context(command.name, words)
    for word in words:
        if word.startswith(("examples/", "tests/", "docs/")):
            assert (ROOT / word).exists(), word


@pytest.mark.parametrize(("where", "text"), mentioned(), ids=lambda v: str(v)[:40])
def test_what_is_mentioned_exists(where: str, text: str) -> None:
    command, words = command_of(text.split())
    options = {name for option in command.params for name in (*option.opts, *option.secondary_opts)} | {"--help"}
    unknown = [
        w for w in (word.strip("[]").partition("=")[0] for word in words) if w.startswith("-") and w not in options
    ]
    assert not unknown


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_python_in_the_pages_compiles_and_imports(page: Path) -> None:
    for language, block in FENCE.findall(page.read_text()):
        if language != "python":
            continue
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom):
                module = importlib.import_module(str(node.module))
                assert all(hasattr(module, alias.name) for alias in node.names), ast.unparse(node)


def test_files_that_the_pages_name_exist() -> None:
    for page in PAGES:
        for name in re.findall(r"(?:examples|benchmarks)/[a-z_0-9/]+\.(?:yaml|py)", page.read_text()):
            assert (ROOT / name).is_file(), f"{page.name}: {name}"
        for name in re.findall(r"\]\((?!http)([^)#]+)", page.read_text()):
            assert any((page.parent / place).exists() for place in (name, f"{name}.md")), f"{page.name}: {name}"


def test_examples_of_plans_and_clouds_are_understood() -> None:
    """Those of ``simulate`` and ``train`` are read, and mostly run, where those are tested."""
    from trivet.apps.cli.plan import _from_scenario
    from trivet.loop.cloud_scenario import parse
    from trivet.loop.plan_run import PlanRequest

    clouds = sorted((ROOT / "examples").glob("ten_thousand_cards*.yaml"))
    plans = sorted((ROOT / "examples").glob("plan_*.yaml"))
    assert len(clouds) == 4 and plans
    for path in clouds:
        assert parse(read_yaml(path)).name
    for path in plans:
        assert PlanRequest.create(_from_scenario(path), read_model=read_model, read_trace=read_trace)
