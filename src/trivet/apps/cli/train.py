"""``trivet train``: how long, on what, at what cost; what failures take; which parallelism."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from trivet.apps.cli.options import count, csv_list

app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.command()
def train(
    model: Annotated[str, typer.Argument(help="A model (name, folder, config.json) or a scenario (.yaml).")],
    chip: Annotated[str, typer.Option(help="The chip; more, comma-separated, are compared with the first.")] = "",
    chips: Annotated[int, typer.Option(help="How many chips.")] = 0,
    tokens: Annotated[str, typer.Option(help="Tokens to train on, e.g. 36T.")] = "",
    seq_len: Annotated[int, typer.Option(help="Tokens of a sequence.")] = 4096,
    batch_tokens: Annotated[str, typer.Option(help="Tokens of a step, e.g. 16M; default by the model's size.")] = "0",
    precision: Annotated[
        str, typer.Option(help="bf16, fp16, fp8, mxfp8, nvfp4; default bf16 (fp16 where the chip lacks it).")
    ] = "",
    framework: Annotated[str, typer.Option(help="megatron, fsdp, deepspeed.")] = "megatron",
    task: Annotated[str, typer.Option(help="pretrain, sft, lora.")] = "pretrain",
    basis: Annotated[
        str, typer.Option(help="How chips are paid: tco_hyperscaler, tco_neocloud, rent_3_years, on_demand, owner.")
    ] = "tco_hyperscaler",
    out: Annotated[
        Path | None,
        typer.Option("-o", "--out", help="Folder for summary.json, report.html, timeline.json, launch.txt."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print summary.json instead of a table.")] = False,
) -> None:
    """Search the parallelism; plan the run: days, MFU, memory, money, energy, goodput, and what drives the spread."""
    from trivet.apps.cli.output import deliver
    from trivet.apps.cli.screen import progress
    from trivet.errors import TrivetError
    from trivet.interop import training_launch
    from trivet.loop import training_plan, training_scenario, training_summary
    from trivet.report import training_report

    if model.endswith((".yaml", ".yml")):
        from trivet.interop.yaml_files import read_yaml

        raw = read_yaml(Path(model))
    else:
        names = csv_list(chip)
        if not names or not chips or not tokens:
            raise TrivetError("a model needs --chip, --chips and --tokens", field="train", allowed="or a scenario file")
        raw = {
            "model": model,
            "chip": names[0],
            "chips": chips,
            "tokens": count(tokens, "--tokens"),
            "seq_len": seq_len,
            "batch_tokens": count(batch_tokens, "--batch-tokens"),
            "precision": precision,
            "framework": framework,
            "task": task,
            "basis": basis,
            "compare": names[1:],
        }
    wanted = training_scenario.campaigns(raw)
    with progress(enabled=not as_json) as report:
        plans = [training_plan.plan(c, report=report) for c in wanted]
    summaries = [training_summary.summary(p) for p in plans]
    figures = training_scenario.published(raw, plans[0])
    best = plans[0].best
    launch = training_launch.launch(best.job, plans[0].campaign.tokens)
    result: dict[str, Any] = {**summaries[0], "launch": launch, "published": figures, "compared": summaries[1:]}
    pages = {
        "report.html": lambda: training_report.html(summaries, launch, figures, str(raw.get("title", ""))),
        "timeline.json": lambda: training_launch.timeline_text(best.job, best.result),
        "launch.txt": lambda: _launch_text(launch),
    }
    deliver(result, out, as_json, lambda folder: training_report.terminal(summaries, figures, folder), pages)


def _launch_text(launch: dict[str, Any]) -> str:
    parts = [
        f"# {name}\n{value if isinstance(value, str) else json.dumps(value, indent=1)}\n"
        for name, value in launch.items()
    ]
    return "\n".join(parts)
