"""What a run hands out is checked: damage there is seen, said and mended."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.runs import FinishedRun, journal_of, run_cli
from tests.test_resume import digests


def flip(path: Path) -> None:
    """Change the last byte of a file, which keeps its size."""
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def truncate(path: Path) -> None:
    """Cut a file in half."""
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def remove_all(path: Path) -> None:
    """Remove the file with its whole folder."""
    shutil.rmtree(path.parent)


def run_again(run: FinishedRun) -> str:
    """Run the config again; return what was said."""
    result = run_cli(["run", run.config, "--out", run.folder])
    assert result.code == 0, result.err
    return result.err


def state_of(run: FinishedRun, *options: str) -> tuple[str, list[str]]:
    """Return what `macpo status` says of a run, and the faults that it names."""
    report = json.loads(run_cli(["status", run.folder, "--json", *options]).out)
    return report["state"], report["faults"]


@pytest.mark.parametrize(
    ("damage", "options", "said"),
    [
        (flip, ["--verify"], "does not match its checksum"),
        (truncate, [], "bytes instead of"),
        (Path.unlink, [], "is missing"),
    ],
)
def test_damaged_file_in_final_is_told_by_status(
    copied: FinishedRun, damage: Callable[[Path], None], options: list[str], said: str
) -> None:
    assert state_of(copied) == ("finished", [])
    damage(copied.folder / "final" / "student" / "adapter_model.safetensors")
    state, [fault] = state_of(copied, *options)
    assert state == "stopped"
    assert fault.startswith("final/student is damaged: adapter_model.safetensors ")
    assert said in fault


def test_damaged_file_in_final_is_told_and_published_again(copied: FinishedRun) -> None:
    before = digests(copied.folder / "final")
    weights = copied.folder / "final" / "student" / "adapter_model.safetensors"
    flip(weights)
    (copied.folder / "final" / "weak-a" / "README.md").unlink()
    refused = run_cli(["export", weights.parent, copied.folder / "merged"])
    assert refused.code == 1
    assert "adapter_model.safetensors does not match its checksum; run the config" in refused.err
    told = " ".join(run_again(copied).split())
    assert "adapter_model.safetensors does not match its checksum; it is published again" in told
    assert "final/weak-a is damaged: README.md is missing; it is published again" in told
    assert digests(copied.folder / "final") == before
    assert state_of(copied, "--verify") == ("finished", [])


def test_policy_that_is_not_handed_out_is_told(copied: FinishedRun) -> None:
    student = copied.folder / "final" / "student"
    shutil.rmtree(student)
    assert state_of(copied) == ("stopped", ["final/student is missing"])
    shutil.copytree(copied.folder / "final" / "weak-a", student)
    assert state_of(copied) == ("stopped", ["final/student is another policy than the run's last"])
    assert "final/student is another policy" in run_cli(["status", copied.folder]).out


def test_missing_artifact_of_a_finished_stage_is_told(copied: FinishedRun) -> None:
    artifact = (copied.folder / "stages/round-2/student/train").resolve()
    shutil.rmtree(artifact)
    assert state_of(copied) == ("stopped", ["round-2/student/train is missing"])


def test_damaged_measurement_is_not_shown(copied: FinishedRun) -> None:
    evaluation = (copied.folder / "stages/round-2/student/evaluate").resolve()
    measured = evaluation / "metrics.json"
    text = measured.read_text()
    measured.write_text(text.replace('"pairs": 8', '"pairs": 9'))
    state, [fault] = state_of(copied)
    assert state == "stopped"
    assert fault.startswith("round-2/student/evaluate is damaged: metrics.json does not match")
    report = json.loads(run_cli(["status", copied.folder, "--json"]).out)
    assert not [m for m in report["metrics"] if (m["policy"], m["round"]) == ("student", 2)]


def test_publishing_is_journalled(copied: FinishedRun) -> None:
    assert [e["event"] for e in journal_of(copied.folder)][-2:] == ["publishing", "published"]
    journal = copied.folder / "journal.jsonl"
    lines = journal.read_text().splitlines(keepends=True)
    journal.write_text("".join(lines[:-1]))  # as a kill while publishing leaves it
    report = json.loads(run_cli(["status", copied.folder, "--json"]).out)
    assert report["state"] == "stopped"
    assert report["last_stop"]["stage"] == "final"
    assert report["last_stop"]["reason"].startswith("killed")
    run_again(copied)
    assert state_of(copied) == ("finished", [])
