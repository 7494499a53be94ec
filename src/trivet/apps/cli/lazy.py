"""A command group that lists its commands without importing them."""

from __future__ import annotations

import importlib
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup


def lazy_group(package: str, commands: dict[str, str], help_text: str) -> typer.Typer:
    """A Typer app whose commands live in ``package.<name>`` (object ``app``) and are imported when called.

    Args:
        package: dotted name of the package that holds one module a command.
        commands: command name -> the line that ``--help`` shows.
        help_text: what the group's own help says.
    """

    class Lazy(TyperGroup):
        def list_commands(self, ctx: Any) -> list[str]:
            return list(commands)

        def get_command(self, ctx: Any, cmd_name: str) -> Any:
            if cmd_name not in commands:
                return None
            if ctx.meta.get("trivet.listing"):
                return TyperCommand(cmd_name, help=commands[cmd_name])
            command = typer.main.get_command(importlib.import_module(f"{package}.{cmd_name}").app)
            command.name = cmd_name
            return command

        def format_help(self, ctx: Any, formatter: Any) -> None:
            ctx.meta["trivet.listing"] = True
            super().format_help(ctx, formatter)

    app = typer.Typer(cls=Lazy, no_args_is_help=True, add_completion=False, rich_markup_mode=None, help=help_text)
    app.callback()(lambda: None)  # Typer wants a callback on a group that has no command of its own
    return app
