"""Nothing is left lying about, nothing is kept from colleagues, nothing private is handed out."""

from __future__ import annotations

import json
import os
import stat
import time
from pathlib import Path

import pytest

from macpo.config import check_config, load_config
from macpo.errors import ConfigError
from macpo.models.cache import STALE_SECONDS, write_note
from macpo.run_directory import RunDir
from macpo.run_status import status
from macpo.store import Journal, RunLock, commit_directory
from tests.runs import FinishedRun, run_cli
from tests.test_resume import digests


def litter(run: RunDir) -> list[Path]:
    """Put into a run's folder what kills and former configs leave; return it."""
    old = run.store / ("sft-" + "ab" * 8)
    made = [
        old,
        run.store / ".partial" / ("dpo-" + "cd" * 8),
        run.store / ".damaged" / ("sft-" + "ef" * 8 + ".1"),
        run.final / ".trash-student",
        run.final / ".partial-weak-a",
        run.final / "former-teacher",
    ]
    for folder in made:
        folder.mkdir(parents=True)
        (folder / "file").write_text("12345")
    link = run.stages / "round-9" / "student" / "train"
    link.parent.mkdir(parents=True)
    link.symlink_to(os.path.relpath(old, link.parent))
    run.progress_file.write_text("{}")
    (run.path / ".metrics.jsonl.partial").write_text("{")
    return [*made, link, run.progress_file, run.path / ".metrics.jsonl.partial"]


def test_clean_removes_what_the_run_no_longer_needs_and_nothing_else(copied: FinishedRun) -> None:
    run = RunDir(copied.folder)
    ours = {"lock", "journal.jsonl"}
    before = {k: v for k, v in digests(run.path).items() if k not in ours}
    links = sorted(p for p in run.stages.rglob("*") if p.is_symlink())
    left = litter(run)
    said = run_cli(["clean", run.path, "--dry-run"])
    assert all(os.path.lexists(path) for path in left)
    assert "would be removed in all" in said.out
    for path in left:
        assert f"{path}: " in said.out
    assert run_cli(["clean", run.path]).code == 0
    assert not any(os.path.lexists(path) for path in left)
    assert {k: v for k, v in digests(run.path).items() if k not in ours} == before
    assert sorted(p for p in run.stages.rglob("*") if p.is_symlink()) == links
    assert not (run.stages / "round-9").exists()
    assert run_cli(["clean", run.path]).out.split() == ["0", "B", "removed", "in", "all"]
    assert status(run.path, thorough=True).state == "finished"


def test_clean_leaves_a_shared_store_alone(copied: FinishedRun, tmp_path: Path) -> None:
    run = RunDir(copied.folder)
    (run.store / ("sft-" + "ab" * 8)).mkdir()
    os.rename(run.store, tmp_path / "shared")
    run.store.symlink_to(tmp_path / "shared")
    run_cli(["clean", run.path])
    assert (tmp_path / "shared" / ("sft-" + "ab" * 8)).is_dir()


def test_clean_refuses_a_run_at_work_and_what_is_no_run(tmp_path: Path) -> None:
    assert "no run here" in run_cli(["clean", tmp_path]).err
    Journal(tmp_path / "journal.jsonl").append("invoked")
    with RunLock(tmp_path / "lock"):
        assert "is held by" in run_cli(["clean", tmp_path]).err


def test_next_run_sweeps_what_a_kill_left_outside_of_the_store(copied: FinishedRun) -> None:
    run = RunDir(copied.folder)
    (run.final / ".trash-student").mkdir()
    run.progress_file.write_text("{}")
    assert run_cli(["run", copied.config, "--out", run.path]).code == 0
    assert sorted(p.name for p in run.final.iterdir()) == ["student", "weak-a", "weak-b"]
    assert not run.progress_file.exists()


def test_run_does_not_write_into_a_comparison(finished: FinishedRun, tmp_path: Path) -> None:
    (tmp_path / "compare.json").write_text("{}")
    result = run_cli(["run", finished.config, "--out", tmp_path])
    assert result.code == 1
    assert "is the directory of a comparison; give the run its own with --out" in result.err


def test_notes_that_killed_processes_left_in_the_cache_are_swept(tmp_path: Path) -> None:
    old, fresh = tmp_path / ".a.json.1.partial", tmp_path / ".b.json.2.partial"
    for path in (old, fresh):
        path.write_text("{")
    past = time.time() - STALE_SECONDS - 1
    os.utime(old, (past, past))
    write_note(tmp_path / "c.json", {})
    assert sorted(p.name for p in tmp_path.iterdir()) == [fresh.name, "c.json"]


def test_of_too_many_notes_in_the_cache_the_older_half_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("macpo.models.cache.MOST_NOTES", 4)
    for age, name in enumerate("edcba"):
        write_note(tmp_path / f"{name}.json", {})
        os.utime(tmp_path / f"{name}.json", (1000 - age, 1000 - age))
    assert len(list(tmp_path.iterdir())) == 5
    write_note(tmp_path / "new.json", {})
    assert sorted(p.stem for p in tmp_path.iterdir()) == ["c", "d", "e", "new"]


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o002, 0o664), (0o077, 0o600)])
def test_committed_files_have_the_mode_that_the_umask_gives(
    tmp_path: Path, umask: int, mode: int
) -> None:
    before = os.umask(umask)
    try:
        folder = tmp_path / "partial"
        folder.mkdir()
        (folder / "weights").touch(0o600)  # as safetensors does
        commit_directory(folder, tmp_path / "final")
        assert stat.S_IMODE((tmp_path / "final" / "weights").stat().st_mode) == mode
        assert os.umask(umask) == umask
    finally:
        os.umask(before)


def test_everything_that_is_handed_out_may_be_read_by_who_may_read_the_folder(
    finished: FinishedRun,
) -> None:
    files = [p for p in (finished.folder / "final").rglob("*") if p.is_file()]
    assert {stat.S_IMODE(p.stat().st_mode) for p in files} == {0o644}


def test_nothing_but_the_adapters_base_tells_where_it_was_trained(finished: FinishedRun) -> None:
    home = str(finished.config.parent)
    told = [
        path.name
        for path in (finished.folder / "final").rglob("*")
        if path.is_file() and home in path.read_text(encoding="utf-8", errors="replace")
    ]
    assert set(told) == {"adapter_config.json"}
    for path in (finished.folder / "final").rglob("tokenizer_config.json"):
        assert not {"is_local", "local_files_only"} & json.loads(path.read_text()).keys()
    card = (finished.folder / "final" / "student" / "README.md").read_text()
    assert "base_model:" not in card
    assert "`macpo export` writes base and adapter as one portable model" in " ".join(card.split())


@pytest.mark.parametrize("key", ["data.source", "student.model.source"])
def test_password_in_a_name_is_refused_and_not_repeated(key: str) -> None:
    with pytest.raises(ConfigError, match=rf"{key}: holds a user name or password") as caught:
        load_config("example:quickstart", [f"{key}=https://me:geheim@example.org/x"])
    assert "geheim" not in str(caught.value)
    assert check_config  # the same check stands behind the Python interface


def test_names_in_a_tampered_journal_do_not_reach_the_terminal_raw(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "\x1b[31mrun")
    run.path.mkdir()
    Journal(run.journal_file).append("started", stage="\x1b]0;x\x07a\x1b[2J", key="k")
    Journal(run.journal_file).append("finished", stage="\x1b[2Jname", key="k", seconds=1.0)
    Journal(run.journal_file).append("started", stage="\x1b[2Jother", key="l")
    for command in (["status", run.path], ["export", run.path, run.path / "\x1b[2J"]):
        result = run_cli(command)
        assert "\x1b" not in result.out + result.err
        assert "\x9b" not in result.out + result.err
