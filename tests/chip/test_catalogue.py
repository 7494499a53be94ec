"""The catalogue: every chip reads, every name is understood, bad files are refused with the field."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trivet.chip import catalogue
from trivet.chip.catalogue import chip, names, read_chip, unknown_fields
from trivet.chip.fields import FIELDS, NEEDED
from trivet.errors import TrivetError, UnknownName

DESIGN_NAMES = [
    "zhenwu-810e",
    "zhenwu-810",
    "zhenwu-m890",
    "hanguang-800",
    "yitian-710",
    "v100",
    "a100-40gb",
    "a100-80gb",
    "a800",
    "h100",
    "h800",
    "h200",
    "h20",
    "l20",
    "l40s",
    "rtx-pro-6000",
    "rtx-4090",
    "b200",
    "b300",
    "gb200",
    "gb300",
    "mi300x",
    "mi325x",
    "mi350x",
    "mi355x",
    "tpu-v4",
    "tpu-v5e",
    "tpu-v5p",
    "tpu-v6e",
    "tpu-v7",
    "trainium-1",
    "trainium-2",
    "trainium-3",
    "inferentia-2",
    "ascend-910b",
    "ascend-910c",
    "gaudi-2",
    "gaudi-3",
]

MINIMAL = """
title: "Test chip"
maker: Us
family: test
role: accelerator
dtypes: [bf16]
facts:
  - source: "a sheet"
    status: published
    values:
      peak_flops_bf16: 100e12
      tdp_w: {value: 300, lo: 250, hi: 350, note: "by board", conflicts: [{value: 400, source: "x", reason: "y"}]}
"""


def test_every_name_of_the_design_is_there() -> None:
    assert set(DESIGN_NAMES) <= set(names())
    for name in DESIGN_NAMES:
        assert chip(name).name == name


@pytest.mark.parametrize(
    ("alias", "name"),
    [
        ("h100_sxm", "h100"), ("DGX-H100", "h100"), ("h100_80gb", "h100"), ("NVIDIA H100", "h100"), ("h200_sxm", "h200"),
        ("b200_sxm", "b200"), ("DGX-B200", "b200"), ("DGX-GB200", "gb200"), ("b300_sxm", "b300"), ("a100_sxm", "a100-80gb"),
        ("a100_80gb", "a100-80gb"), ("a100_40gb", "a100-40gb"), ("rtx_pro_6000_server", "rtx-pro-6000"),
        ("rtx_4090", "rtx-4090"), ("RTX4090", "rtx-4090"), ("TPU7x", "tpu-v7"), ("V100M32", "v100-32gb"), ("810E", "zhenwu-810e"),
    ],
)  # fmt: skip
def test_aliases(alias: str, name: str) -> None:
    assert chip(alias).name == name


@given(st.sampled_from(DESIGN_NAMES), st.booleans(), st.sampled_from(["-", "_", " "]))
def test_case_and_separators_do_not_matter(name: str, upper: bool, separator: str) -> None:
    text = name.replace("-", separator)
    assert chip(text.upper() if upper else text).name == name


def test_every_chip_of_the_measurements_is_understood(shared_data: Path) -> None:
    polars = pytest.importorskip("polars")
    seen: set[str] = set()
    for name in ("serving_measured.csv", "training_measured.csv"):
        with (shared_data / name).open() as rows:
            seen |= {row["chip"] for row in csv.DictReader(rows)}
    for path in (shared_data / "kernels").glob("*.parquet"):
        seen |= set(polars.scan_parquet(path).select(polars.col("chip").unique()).collect()["chip"])
    assert len(seen) >= 15
    for name in seen:
        assert chip(name).role == "accelerator"


def test_data_sheet_figures_agree_with_the_table(shared_data: Path) -> None:
    """Dense 16-bit peaks and bandwidths where the shared table has a plain number."""
    names_of = {"V100 SXM2": "v100", "A100 SXM 80": "a100-80gb", "H100 SXM": "h100", "L40S": "l40s", "B200": "b200",
                "B300": "b300", "GB200": "gb200", "GB300": "gb300", "H20": "h20", "RTX 4090": "rtx-4090", "MI300X": "mi300x",
                "TPU v5p": "tpu-v5p", "Trainium 1": "trainium-1", "Ascend 910C": "ascend-910c", "Gaudi 3": "gaudi-3"}  # fmt: skip
    with (shared_data / "chips" / "accelerators.csv").open() as rows:
        table = {row["chip"]: row for row in csv.DictReader(rows)}
    for row_name, name in names_of.items():
        found = chip(name)
        peak = found.get("peak_flops_bf16") or found.get("peak_flops_fp16")
        assert peak == pytest.approx(float(table[row_name]["bf16_fp16"]) * 1e12, rel=0.01), name
        for column, field, scale in (
            ("fp8", "peak_flops_fp8", 1e12),
            ("mem_TBps", "memory_bandwidth_bytes_per_s", 1e12),
        ):
            text = table[row_name][column]
            if text.replace(".", "").isdigit():
                assert found.get(field) == pytest.approx(float(text) * scale, rel=0.02), (name, field)


def test_every_accelerator_has_what_the_timing_needs() -> None:
    for name in names():
        found = chip(name)
        for field, fact in found.facts.items():
            assert fact.source, (name, field)
            if fact.status == "unpublished":
                assert fact.lo is not None, f"{name} {field}: a guess shown as a fact"
                assert fact.note, f"{name} {field}: an interval without a reason"
        if found.role == "accelerator":
            for field in NEEDED:
                if field == "peak_flops_bf16" and not found.supports("bf16"):
                    continue
                fact = found.facts.get(field)
                assert fact is not None, (name, field)
                assert fact.value, (name, field)
                assert fact.unit == FIELDS[field].unit


def test_zhenwu_810e_is_as_the_sources_say() -> None:
    found = chip("zhenwu-810e")
    bf16, memory = found.facts["peak_flops_bf16"], found.facts["memory_bandwidth_bytes_per_s"]
    assert (bf16.lo, bf16.hi) == (138e12, 195e12)
    assert {c.value for c in bf16.conflicts} == {118.7e12, 386e12, 787e12}
    assert (memory.lo, memory.hi) == (2.5e12, 2.83e12)
    assert found.get("memory_bytes") == 98304 * 2**20
    assert found.get("link_bandwidth_bytes_per_s") == 350e9
    assert not found.supports("fp8")
    assert found.get("bench_gemm_4096_s") == pytest.approx(1.038975e-3)
    flops = 2 * 4096**3 / 1.038975e-3
    assert bf16.lo == pytest.approx(flops / 0.96, rel=0.01)
    assert bf16.hi == pytest.approx(flops / 0.68, rel=0.01)
    assert "peak_flops_bf16" in unknown_fields(found)


def test_conflicts_are_kept() -> None:
    assert chip("rtx-pro-6000").get("memory_bandwidth_bytes_per_s") == pytest.approx(1.597e12)
    assert chip("rtx-pro-6000").facts["memory_bandwidth_bytes_per_s"].conflicts[0].value == pytest.approx(1.792e12)
    assert chip("h20").facts["tdp_w"].conflicts[0].value == 550


def test_unknown_name_gives_close_ones() -> None:
    with pytest.raises(UnknownName, match="h200"):
        chip("h20o")
    with pytest.raises(UnknownName, match="zhenwu-810e"):
        chip("zhenwu-811e")


def test_a_chip_from_outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "our-chip.yaml"
    path.write_text(MINIMAL.replace("role:", "aliases: [oc_1]\nrole:"))
    assert chip(str(path)).get("peak_flops_bf16") == 100e12
    monkeypatch.setenv("TRIVET_CATALOGUE", str(tmp_path))
    assert chip("OC-1").name == "our-chip"
    assert "our-chip" in names()
    assert chip("h100").name == "h100"
    monkeypatch.setenv("TRIVET_CATALOGUE", str(tmp_path / "absent"))
    with pytest.raises(TrivetError, match="TRIVET_CATALOGUE"):
        chip("h100")


def test_a_chip_known_by_three_figures_can_be_timed_priced_and_varied(tmp_path: Path) -> None:
    """What the file leaves out becomes an interval that says so, and the answers widen."""
    from trivet.chip.power import utilised_w
    from trivet.chip.silicon import bill_of_materials
    from trivet.cloud.cost import chip_hour

    path = tmp_path / "sparse.yaml"
    path.write_text(MINIMAL.replace("role:", "server: hgx-h100\nrole:").replace(
        "      tdp_w", "      memory_bytes: 96e9\n      memory_bandwidth_bytes_per_s: 3e12\n      tdp_w"))  # fmt: skip
    sparse = chip(str(path))
    missing = set(unknown_fields(sparse))
    assert {"l2_bytes", "compute_units", "clock_hz", "idle_w", "launch_s"} <= missing
    for name in missing:
        assert sparse.facts[name].note
        assert sparse.facts[name].lo is not None
    assert bill_of_materials(sparse).total.hi > 1.3 * bill_of_materials(sparse).total.lo
    assert chip_hour(sparse).usd.driver
    assert utilised_w(sparse, 0.5, 0.5).value > 0


def test_a_chip_from_a_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "packaged.yaml"
    path.write_text(MINIMAL)

    class Entry:
        def load(self) -> object:
            return lambda: [str(path)]

    monkeypatch.setattr("importlib.metadata.entry_points", lambda group: [Entry()] if group == "trivet.chips" else [])
    catalogue._registered.cache_clear()
    try:
        assert chip("packaged").maker == "Us"
        assert "packaged" in names()
    finally:
        catalogue._registered.cache_clear()


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("role: accelerator", "role: oven", "role"),
        ("maker: Us\n", "", "maker"),
        ("status: published", "status: rumoured", "status"),
        ("100e12", "-100e12", "peak_flops_bf16"),
        ("100e12", "fast", "peak_flops_bf16"),
        ("lo: 250", "lo: 310", "tdp_w"),
        ("tdp_w:", "watts:", "watts"),
        ("dtypes: [bf16]", "dtypes: [bf17]", "bf17"),
        ("facts:", "colour: red\nfacts:", "colour"),
        ('title: "Test chip"', 'title: "Test chip', "YAML"),
    ],
)
def test_a_bad_file_is_refused_with_the_field(tmp_path: Path, old: str, new: str, message: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(MINIMAL.replace(old, new))
    with pytest.raises(TrivetError, match=message):
        read_chip(path)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TrivetError, match="cannot read"):
        chip(str(tmp_path / "no.yaml"))
