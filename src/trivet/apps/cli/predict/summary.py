"""What a prediction of a file's rows says at its end: how many, with which notes, and why others have no answer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import typer

from trivet.apps.cli.output import tell


def tell_rows(notes: Sequence[tuple[bool, str]], out: Path, as_json: bool) -> None:
    """Print the summary. ``notes``: whether each row was predicted, and its note or reason."""
    good = [note for predicted, note in notes if predicted]
    failed = Counter(note for predicted, note in notes if not predicted)
    summary = {
        "rows": len(notes), "predicted": len(good), "failed": len(notes) - len(good), "with_notes": sum(map(bool, good)),
        "reasons": dict(failed.most_common(20)),
    }  # fmt: skip

    def show() -> None:
        typer.echo(
            f"{summary['predicted']} of {summary['rows']} rows predicted, {summary['with_notes']} with notes: {out}"
        )
        for reason, count in failed.most_common(8):
            typer.echo(f"  {count} not predicted: {reason}")

    tell(summary, out, as_json, show)
