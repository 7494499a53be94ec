"""Shared fixtures: where the calibration data lies, and a skip with the reason where it does not."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of public measurements; set TRIVET_SHARED_DATA to point elsewhere."""
    folder = Path(os.environ.get("TRIVET_SHARED_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"calibration data absent: {folder} is not a folder (set TRIVET_SHARED_DATA)")
    return folder
