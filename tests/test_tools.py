"""The scripts in tools/."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

LOWEST = Path(__file__).parent.parent / "tools" / "lowest.py"


def test_every_dependency_has_one_lowest_version() -> None:
    shown = subprocess.run(
        [sys.executable, str(LOWEST), "--torch", "2.13.0"],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    ).stdout.splitlines()

    assert "torch==2.13.0" in shown
    assert len(shown) > 10
    assert all(re.fullmatch(r"[a-z0-9-]+==[0-9.]+", line) for line in shown)
