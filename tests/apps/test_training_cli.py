"""``trivet train``, ``predict training`` and ``validate training`` as a user calls them."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path

SMALL = ("LLAMA3_8B", "--chip", "h100,zhenwu-810e", "--chips", "64", "--tokens", "1T", "--batch-tokens", "2M")


def run(*args: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    code = "from trivet.apps.cli.main import main; main()"
    return subprocess.run([sys.executable, "-c", code, *args], capture_output=True, text=True, check=False, cwd=cwd)


def test_train_writes_everything_and_prints_a_table(tmp_path: Path) -> None:
    done = run("train", *SMALL, "-o", str(tmp_path / "out"))
    assert done.returncode == 0, done.stderr
    assert "Goodput".lower() in done.stdout.lower()
    assert "zhenwu-810e" in done.stdout
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "launch.txt",
        "report.html",
        "summary.json",
        "timeline.json",
    ]
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["chip"] == "h100"
    assert summary["compared"][0]["chip"] == "zhenwu-810e"
    assert summary["days"]["lo"] < summary["days"]["value"] < summary["days"]["hi"]
    assert summary["compared"][0]["days"]["value"] > summary["days"]["value"]
    assert "torchrun" in (tmp_path / "out" / "launch.txt").read_text()
    assert "</html>" in (tmp_path / "out" / "report.html").read_text()
    assert json.loads((tmp_path / "out" / "timeline.json").read_text())["traceEvents"]


def test_train_gives_the_same_bytes_twice() -> None:
    first, second = (
        run("train", "LLAMA3_8B", "--chip", "h100", "--chips", "16", "--tokens", "1B", "--json") for _ in range(2)
    )
    assert first.returncode == 0, first.stderr
    assert first.stdout == second.stdout
    json.loads(first.stdout)


def test_mistakes_end_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text("model: LLAMA3_8B\nchip: h100\nchips: 8\ntokens: 1B\nwings: 2\n")
    cases = [
        ("train", "LLAMA3_8B"),
        ("train", "LLAMA3_8B", "--chip", "abacus", "--chips", "8", "--tokens", "1B"),
        ("train", "deepseek-ai/DeepSeek-V3", "--chip", "h100", "--chips", "8", "--tokens", "1T"),
        ("train", str(tmp_path / "bad.yaml")),
        ("train", str(tmp_path / "absent.yaml")),
        ("predict", "training", str(tmp_path / "absent.csv"), "-o", str(tmp_path / "o.csv")),
    ]
    for case in cases:
        done = run(*case)
        assert done.returncode == 2, case
        assert done.stderr.startswith("trivet: error: ")
        assert len(done.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "o.csv").exists()


def test_predict_exits_zero_whatever_rows_fail(tmp_path: Path) -> None:
    rows = tmp_path / "in.csv"
    rows.write_text(
        "id,chip,num_chips,model,seq_len,precision,global_batch,micro_batch,tp,pp,ep\n"
        "a,DGX-H100,64,LLAMA3_70B,8192,FP8,256,1,4,8.0,n/a\nb,abacus,8,LLAMA3_8B,4096,BF16,8,1,,,\n"
    )
    done = run("predict", "training", str(rows), "-o", str(tmp_path / "out.csv"), "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["failed"] == 1
    lines = list(csv.DictReader((tmp_path / "out.csv").open()))
    assert float(lines[0]["memory_bytes"]) > 1e10
    assert lines[1]["error"].startswith("chip")


def test_validate_reads_a_file_and_draws_it(tmp_path: Path, shared_data: Path) -> None:
    text = (shared_data / "training_measured.csv").read_text().splitlines()
    few = tmp_path / "few.csv"
    few.write_text("\n".join([text[0], *text[1:210:12]]) + "\n")
    done = run("validate", "training", str(few), "--hold-out", "nothing", "-o", str(tmp_path / "out"), "--json")
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    assert summary["all"]["rows"] == len(text[1:210:12])
    assert summary["all"]["median_error"] < 0.1
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["report.html", "rows.csv", "summary.json"]
