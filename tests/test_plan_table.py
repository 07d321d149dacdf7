"""The README's table of models and cards is what planning says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from macpo.config import load_config
from macpo.planning import plan
from tests.runs import SOURCES

README = (SOURCES.parent / "README.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def script() -> dict[str, Any]:
    import runpy

    return runpy.run_path(str(Path(SOURCES.parent) / "docs" / "figures" / "plan_table.py"))


def test_readme_has_the_table_of_the_script(script: dict[str, Any]) -> None:
    assert script["table"]() in README, "run make plan-table"


def test_readme_has_the_time_of_the_papers_setting(script: dict[str, Any]) -> None:
    report = plan(load_config(script["PAPER"]), hardware=script["PAPER_HARDWARE"])
    assert script["paper"](report) in README, "run make plan-table"
