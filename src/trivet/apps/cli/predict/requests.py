"""``trivet predict requests``: when each request of a log gets its first and last token."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.command()
def requests(
    log: Annotated[
        Path, typer.Argument(metavar="REQUESTS.jsonl", help="request_id, input_toks, output_toks, arrival_time a line.")
    ],
    meta: Annotated[
        Path, typer.Option("--meta", metavar="META.json", help="The engine's settings; times in it are not used.")
    ],
    chip: Annotated[str, typer.Option("--chip", help="The chip that served them.")],
    out: Annotated[Path, typer.Option("-o", "--out", metavar="OUT.csv", help="Where the predictions go.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print a summary for machines.")] = False,
) -> None:
    """Write request_id, queued_s, first_token_s, last_token_s: clock times since the first arrival."""
    from trivet.apps.cli.output import write_file
    from trivet.loop import predict_requests as loop
    from trivet.loop.simulate import say_if_compiling

    read = loop.read_log(log)
    say_if_compiling(lambda line: typer.echo(line, err=True))
    result, notes = loop.predict(read, loop.read_meta(meta), chip)
    write_file(out, loop.csv_text(read, result))
    figures = loop.figures(read.traffic, result.first_token_s, result.last_token_s)
    summary = {
        "requests": len(read.ids),
        "refused": int((result.status > 0).sum()),
        **figures,
        "notes": list(notes),
        "out": str(out),
    }
    if as_json:
        typer.echo(json.dumps(summary))
        return
    typer.echo(
        f"{len(read.ids)} requests: TTFT mean {figures['ttft_mean_s']:.3g} s, p99 {figures['ttft_p99_s']:.3g} s; "
        f"TPOT {figures['tpot_mean_s'] * 1e3:.3g} ms; "
        f"latency {figures['latency_mean_s']:.3g} s; {figures['output_tokens_per_s']:,.0f} output tokens/s: {out}"
    )
    for note in notes:
        typer.echo(f"  {note}")
