"""The files of docs/cluster.md: their form, and that their commands are macpo's."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from macpo.config import load_config
from tests.runs import write_config

GUIDES = Path(__file__).parents[2] / "docs" / "cluster"


def commands(name: str) -> str:
    """The shell script of a guide's file."""
    text = (GUIDES / name).read_text(encoding="utf-8")
    if name.endswith(".sbatch"):
        return text
    content: dict[str, Any] = yaml.safe_load(text)
    return str(content["run"] if "run" in content else content["spec"]["entrypoint"])


FILES = sorted(path.name for path in GUIDES.iterdir())


def test_all_guides_are_here() -> None:
    assert FILES == ["kuberay.yaml", "skypilot.yaml", "slurm.sbatch"]


@pytest.mark.parametrize("name", FILES)
def test_scripts_parse_and_set_keys_that_exist(name: str, tmp_path: Path) -> None:
    script = commands(name)

    if shutil.which("bash"):
        subprocess.run(["bash", "-n"], input=script, text=True, check=True)
    assert re.search(r"macpo run \S+ --out \S+", " ".join(script.split()))
    items = re.findall(r"--set (\S+?=)\"?(\S+?)\"?(?:\s|$)", script)
    overrides = [key + re.sub(r"\$\w+:.*", "head:6379", value) for key, value in items]
    section = load_config(write_config(tmp_path), overrides).execution
    assert section.backend == "ray"
    assert section.address in ("auto", "head:6379")
