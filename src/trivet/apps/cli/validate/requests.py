"""``trivet validate requests``: predicted against measured figures of request logs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from trivet.errors import TrivetError

app = typer.Typer(add_completion=False, rich_markup_mode=None)
LIMITS = {
    "ttft_mean_s": 0.15,
    "ttft_p99_s": 0.15,
    "tpot_mean_s": 0.05,
    "latency_mean_s": 0.05,
    "output_tokens_per_s": 0.05,
}


@app.command()
def requests(
    logs: Annotated[list[Path], typer.Argument(metavar="REQUESTS.jsonl...", help="Logs with measured times.")],
    chip: Annotated[list[str], typer.Option("--chip", help="The chip of each log, in the same order.")],
    meta: Annotated[
        list[Path], typer.Option("--meta", help="Each log's settings; default: the log's name with .meta.json.")
    ] = [],  # noqa: B006  (typer reads it, nothing changes it)
    out: Annotated[Path | None, typer.Option("-o", "--out", help="Folder for summary.json.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print summary.json instead of tables.")] = False,
) -> None:
    """Mean and p99 TTFT, mean TPOT, mean latency, throughput: error of each, and without what logs of that chip taught."""
    from trivet.apps.cli.output import deliver
    from trivet.loop import predict_requests as loop

    if len(chip) != len(logs):
        raise TrivetError(f"{len(chip)} chips for {len(logs)} logs", field="--chip", allowed="one a log")
    if meta and len(meta) != len(logs):
        raise TrivetError(f"{len(meta)} files for {len(logs)} logs", field="--meta", allowed="one a log")
    answers: list[dict[str, Any]] = []
    for number, (path, name) in enumerate(zip(logs, chip, strict=True)):
        read = loop.read_log(path)
        place = meta[number] if meta else loop.meta_path(path)
        replay = loop.Replay(read, loop.read_meta(place), name)
        # As calibrated, and without what logs of this very chip taught.
        calibrated, alone = (loop.constants_of(replay, own) for own in (True, False))
        seen, unseen = (loop.compare(read, replay.run(constants)) for constants in (calibrated, alone))
        rows = [
            {**row, "left_out": other["error"], "limit": limit, "within": abs(row["error"]) <= limit}
            for row, other in zip(seen, unseen, strict=True)
            for limit in (LIMITS[row["figure"]],)
        ]
        answers.append(
            {
                "log": path.name,
                "chip": name,
                "model": replay.deployment.architecture.name,
                "requests": len(read.ids),
                "kv_blocks": replay.blocks(calibrated),
                "calibrated_on_chip": calibrated != alone,
                "within": all(row["within"] for row in rows),
                "figures": rows,
                "notes": list(replay.notes),
            }
        )
    deliver({"logs": answers}, out, as_json, lambda _: _show(answers))


def _show(answers: list[dict[str, Any]]) -> None:
    from trivet.report.tables import print_table

    for answer in answers:
        shown = [
            {**row, "error": f"{row['error']:+.1%}", "left_out": f"{row['left_out']:+.1%}", "limit": f"{row['limit']:.0%}"}
            for row in answer["figures"]
        ]
        print_table(shown, title=f"{answer['log']}: {answer['model']} on {answer['chip']}")
        known = "constants from a log of this chip" if answer["calibrated_on_chip"] else "no log of this chip taught anything"
        typer.echo(f"  {answer['requests']} requests, {answer['kv_blocks']:,} KV blocks; {known}")
        for note in answer["notes"]:
            typer.echo(f"  {note}")
