"""``trivet calibrate``: coefficients from measurements; a chip from three microbenchmarks."""

from __future__ import annotations

import json
import os
from pathlib import Path

import typer

app = typer.Typer(add_completion=False)


@app.command()
def calibrate(
    folder: Path | None = typer.Argument(
        None, metavar="FOLDER", help="Folder of kernel tables (gemm.parquet, ...): fits the operators."
    ),
    out: Path | None = typer.Option(
        None, "-o", "--out", metavar="FILE", help="Where the coefficients (.npz) or the chip (.yaml) go."
    ),
    kinds: str = typer.Option(
        "",
        "--kinds",
        help="Only these kinds of kernels; all when empty (a file needs all). dispatch: exchanges of experts; "
        "makers: a FOLDER with kernels.csv and attention.csv of other makers.",
    ),
    check: bool = typer.Option(
        False, "--check", help="Compare with the shipped coefficients; exit 1 where they differ."
    ),
    chip: str = typer.Option(
        "", "--chip", help="Instead: a chip of the catalogue to sharpen with your microbenchmarks."
    ),
    gemm: str = typer.Option("", "--gemm", metavar="TIME", help="Its BF16 product of 4096 x 4096 x 4096, e.g. 1.04ms."),
    gemv: str = typer.Option("", "--gemv", metavar="TIME", help="Its BF16 product of 1 x 128256 x 4096."),
    tiny: str = typer.Option("", "--tiny", metavar="TIME", help="Its BF16 product of 384 x 384 x 384."),
    serving: Path | None = typer.Option(
        None, "--serving", metavar="FILE", help="Instead: engines and residual to serving runs; -o names a folder."
    ),
    training: Path | None = typer.Option(
        None, "--training", metavar="FILE", help="Instead: the training step to training runs; -o names a .json."
    ),
    bench: list[Path] = typer.Option(
        [],
        "--bench",
        metavar="RESULT.json",
        help="Instead: an engine on --chip to your results of vllm bench serve, guidellm or aiperf; may be repeated.",
    ),
    requests: list[Path] = typer.Option(
        [],
        "--requests",
        metavar="LOG.jsonl",
        help="Instead: an engine on --chip to logs of requests, settings in LOG.meta.json; may be repeated.",
    ),
    command: str = typer.Option("", "--command", help="With --bench: the command that launched the engine."),
    engine: str = typer.Option("vllm", "--engine", help="With --bench, without --command: vllm, sglang, trtllm."),
    model: str = typer.Option("", "--model", help="With --bench: the model; default: as in the command or the result."),
    layout: str = typer.Option("", "--layout", metavar="tp=4,...", help="With --bench, without --command."),
    as_json: bool = typer.Option(False, "--json", help="Print the outcome for machines."),
) -> None:
    """Fit the kernel model to a folder of measurements (minutes on one core), a chip to three microbenchmarks, or an engine on a
    chip to your own serving results (at once).

    The microbenchmarks are those of ``trivet measure chip``. For a chip or an engine the outcome says how much the spread shrank.
    A profile of an engine (-o DIR/engines/NAME.json) is used wherever ``$TRIVET_CATALOGUE`` names DIR.
    """
    from trivet.errors import TrivetError

    _one_thread()
    if bench:
        from trivet.apps.cli.calibrate_bench import Launched, run

        run(bench, Launched(chip, command, engine, model, layout), out, as_json)
    elif requests:
        from trivet.apps.cli.calibrate_log import run as run_logs

        run_logs(requests, chip, out, as_json)
    elif chip:
        _chip(chip, {"bench_gemm_4096_s": gemm, "bench_gemv_s": gemv, "bench_gemm_384_s": tiny}, out, as_json)
    elif serving is not None:
        _serving(serving, out, as_json)
    elif training is not None:
        _training(training, out, as_json)
    elif folder is not None:
        _folder(folder, out, kinds, check, as_json)
    else:
        raise TrivetError(
            "nothing to calibrate",
            field="calibrate",
            allowed="a FOLDER of kernel tables, --chip NAME, --bench RESULT.json, --requests LOG.jsonl, --serving FILE or "
            "--training FILE",
        )


def _one_thread() -> None:
    """Linear algebra on one thread, so that sums have one order and the coefficients are the same bit for bit everywhere;
    the products are small, and more threads are slower. It holds where numpy is not imported yet, as from the command line."""
    for library in ("OMP", "OPENBLAS", "MKL", "BLIS"):
        os.environ[f"{library}_NUM_THREADS"] = "1"


def _folder(folder: Path, out: Path | None, kinds: str, check: bool, as_json: bool) -> None:
    if kinds == "dispatch":
        _dispatch(folder, out, as_json)
        return
    if kinds == "makers":
        _makers(folder, out, as_json)
        return
    from trivet.apps.cli.screen import progress
    from trivet.loop.calibrate import ALL_KINDS, calibrate_operators, chosen_kinds, differences, write_coefficients
    from trivet.loop.validate_operators import from_fits, pooled

    wanted = chosen_kinds(kinds)
    with progress() as report:
        fits = calibrate_operators(folder, wanted, progress=lambda kind, done: report(kind, int(100 * done), 100))
    scores = pooled(from_fits(fits.values()))
    differ = differences(fits) if check else []
    if out is not None:
        from trivet.errors import TrivetError

        if set(wanted) != set(ALL_KINDS):
            raise TrivetError("a file needs every kind", field="--kinds", allowed="leave it empty")
        write_coefficients(fits, out)
    if as_json:
        from dataclasses import asdict

        typer.echo(json.dumps({"scores": [asdict(s) for s in scores], "differences": differ, "out": str(out or "")}))
    else:
        from trivet.report.tables import print_table
        from trivet.report.validation import table_rows

        print_table(table_rows(scores, ("op", "dtype")), title="Families left out")
        if check:
            typer.echo(
                "the same as the shipped coefficients, bit for bit"
                if not differ
                else "differs: " + ", ".join(differ[:8])
            )
    if differ:
        raise typer.Exit(1)


def _dispatch(folder: Path, out: Path | None, as_json: bool) -> None:
    """Constants of expert dispatch and combine, chips left out in turn for their spread."""
    from trivet.apps.cli.output import tell, write_file
    from trivet.loop.calibrate_dispatch import calibrate as fit
    from trivet.loop.calibrate_dispatch import scores, to_json
    from trivet.report.tables import print_table

    fits = fit(folder)
    write_file(out, json.dumps(to_json(fits), indent=1) + "\n")
    rows = scores(fits)
    shown = [
        {k: "-" if v is None else f"{v:.3f}" if isinstance(v, float) else v for k, v in row.items()} for row in rows
    ]
    tell({"scores": rows}, out, as_json, lambda: print_table(shown, title="Chips left out"))


def _makers(folder: Path, out: Path | None, as_json: bool) -> None:
    """Offsets of other makers' kernels; due after the operators were fitted, which they stand on."""
    from trivet.apps.cli.output import write_file
    from trivet.loop import fit_makers
    from trivet.report.tables import print_table

    table = fit_makers.fit(
        [*fit_makers.read(folder / "kernels.csv"), *fit_makers.read_attention(folder / "attention.csv")]
    )
    write_file(out, fit_makers.text(table))
    if as_json:
        typer.echo(json.dumps(table))
        return
    shown = [
        {"family": family, "kernels": name, "rows": str(found["rows"]), "median": f"{100 * found['median_error']:.1f}%"}
        for family, names in table["families"].items()
        for name, found in names.items()
    ]
    print_table(shown, title="Kernels of other makers")


def _serving(path: Path, out: Path | None, as_json: bool) -> None:
    """Engines' constants and the residual, from the columns of a table of serving runs."""
    from trivet.apps.cli.output import tell
    from trivet.apps.cli.screen import progress
    from trivet.interop.results import result_folder
    from trivet.loop.calibrate_serving import calibrate as fit
    from trivet.report.tables import print_table

    with progress() as report:
        done = fit(path, report)
    if out is not None:
        with result_folder(out) as folder:
            done.write(folder)
    engines = {name: {k: v for k, v in raw.items() if isinstance(v, float)} for name, raw in done.engines.items()}
    shown = [{"engine": name, **values} for name, values in engines.items()]
    tell({"engines": engines}, out, as_json, lambda: print_table(shown, title="Engines"))


def _training(path: Path, out: Path | None, as_json: bool) -> None:
    """The training step's constants, from the columns of a table of training runs; kernel rates stay as shipped."""
    import csv

    from trivet.apps.cli.output import write_file
    from trivet.apps.cli.screen import progress
    from trivet.cloud.training.profile import shipped
    from trivet.errors import TrivetError
    from trivet.loop.calibrate_training import calibrate as fit
    from trivet.loop.calibrate_training import to_json

    try:
        with path.open(newline="", encoding="utf-8") as source:
            rows = list(csv.DictReader(source))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise TrivetError(f"cannot be read: {error}", field=str(path)) from error
    with progress() as report:
        found = to_json(fit(rows, shipped().sustained, report=report))
    write_file(out, json.dumps(found, indent=1) + "\n")
    if as_json:
        typer.echo(json.dumps(found))
        return
    for split in ("model", "chip"):
        left_out = found[f"left_out_by_{split}"]
        typer.echo(f"{split} left out: median {100 * left_out['median']:.1f}%, p90 {100 * left_out['p90']:.1f}%")


def _chip(name: str, texts: dict[str, str], out: Path | None, as_json: bool) -> None:
    from trivet.apps.cli.options import duration_s
    from trivet.apps.cli.output import tell, write_file
    from trivet.loop.calibrate_chip import calibrate_chip, entry_text
    from trivet.report.tables import print_table

    measured = {key: duration_s(text, key) for key, text in texts.items() if text}
    done = calibrate_chip(name, measured)
    write_file(out, entry_text(done))
    rows = [
        {
            "operator": c.operator, "before": f"{c.before_s * 1e6:,.1f} us", "after": f"{c.after_s * 1e6:,.1f} us",
            "spread before": f"{100 * c.before_sigma:.0f}%", "spread after": f"{100 * c.after_sigma:.0f}%",
        }
        for c in done.changes
    ]  # fmt: skip

    def show() -> None:
        print_table(rows, title=f"{done.chip.title}: what the microbenchmarks changed")
        if out is not None:
            typer.echo(f"Catalogue entry: {out}")

    tell({"chip": done.chip.name, "changes": [c.to_dict() for c in done.changes]}, out, as_json, show)
