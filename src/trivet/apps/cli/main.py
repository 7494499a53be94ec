"""The command line. Each command lives in its own module and is imported only when it is called."""

from __future__ import annotations

import sys

import typer

from trivet import __version__
from trivet.apps.cli.lazy import lazy_group
from trivet.errors import TrivetError

COMMANDS = {
    "chips": "The chips of the catalogue, side by side, with sources.",
    "models": "Parameters, bytes and FLOPs of a config.json or a name.",
    "plan": "The cheapest chips, layout and settings for a traffic and SLO.",
    "simulate": "A fleet under a trace, request by request.",
    "train": "How long, on what, at what cost; what failures take.",
    "schedule": "A cluster's jobs on its nodes under a placement policy.",
    "cloud": "A week of a whole cloud: services, training, customers.",
    "codesign": "Which change to a chip lowers the cost of a demand most.",
    "claims": "The article's claims, each computed, with a verdict.",
    "predict": "Predict a file of measurements' rows.",
    "validate": "Predicted against measured: error, coverage, picture.",
    "calibrate": "Fit chips, engines and kernels from measurements.",
    "measure": "Measure the local device with three microbenchmarks.",
}

app = lazy_group("trivet.apps.cli", COMMANDS, "The open, calibrated twin of a full-stack AI cloud.")


def _version(value: bool) -> None:
    if value:
        typer.echo(f"trivet {__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def _root(
    version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Print the version and exit."),
) -> None:
    """The open, calibrated twin of a full-stack AI cloud."""


def main() -> None:
    """Entry point: a user's mistake ends in one line on stderr and exit code 2."""
    try:
        app()
    except TrivetError as error:
        typer.echo(f"trivet: error: {' '.join(str(error).split())}", err=True)
        sys.exit(2)
    except BrokenPipeError:
        sys.exit(141)
