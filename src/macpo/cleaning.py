"""What a run's folder holds that is of no use any more: found, and removed.

That is what no stage of the run as it was last laid out has made or reads, artifacts that were set
aside, and what killed processes have left half done. What the run needs, to be found, read or gone
on with, stays: checkpoints and paid verdicts included.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from macpo.errors import StoreError
from macpo.run_directory import RunDir, RunPlan
from macpo.store import RunLock, translate_write_errors
from macpo.store.artifacts import DAMAGED
from macpo.store.artifacts import PARTIAL as PARTIAL_STAGES
from macpo.store.atomic import PARTIAL, TRASH, remove_tree

COMPARISON = "compare.json"
"""What only the directory of a comparison has."""


@dataclass(frozen=True, slots=True)
class Leftover:
    """Something to remove: where, how large (bytes), and why nobody misses it."""

    path: Path
    size: int
    why: str


def clean(folder: str | Path, *, dry_run: bool = False) -> list[Leftover]:
    """Remove what is of no use any more in a run's folder; nothing that is has to be made again.

    Args:
        folder: the run directory.
        dry_run: only say what would be removed.

    Returns:
        What was, or would be, removed.

    Raises:
        StoreError: there is no run, somebody is at work on it, or something cannot be removed.
    """
    run = RunDir(folder)
    if not run.exists:
        raise StoreError(f"{run.path}: no run here; name a run directory")
    with RunLock(run.lock):
        found = [
            Leftover(path, _size(path), why)
            for path, why in dict(_leftovers(run)).items()
            if os.path.lexists(path)
        ]
        for leftover in () if dry_run else found:
            remove_tree(leftover.path)
        if not dry_run:
            _remove_empty(run.stages)
    return found


def sweep_run(run: RunDir) -> None:
    """Remove what a killed process has left outside of the store, whose lock the caller holds.

    Raises:
        StoreError: it cannot be removed, or the directory is that of a comparison.
    """
    if (run.path / COMPARISON).exists() and not run.exists:
        raise StoreError(
            f"{run.path} is the directory of a comparison; give the run its own with --out"
        )
    sweep_notes(run.path)
    for path in (run.progress_file, *(path for path, _ in _half_done(run.final))):
        remove_tree(path)


def sweep_notes(folder: Path) -> None:
    """Remove what killed processes have left half written of files in a folder.

    The caller holds the folder's lock. Whoever writes a report there meanwhile without it has to
    write it again.

    Raises:
        StoreError: it cannot be removed.
    """
    for path in half_written(folder):
        remove_tree(path)


def half_written(folder: Path) -> list[Path]:
    """List what `write_text_atomic` may have left in a folder."""
    return sorted(folder.glob(".*.partial"))


def _leftovers(run: RunDir) -> Iterator[tuple[Path, str]]:
    """Yield what can go, with the reason; the run's lock is held."""
    yield run.progress_file, "nobody is at work"
    for path in half_written(run.path):
        yield path, "half written"
    yield from _half_done(run.final)
    for path in sorted((run.store / DAMAGED).glob("*")):
        yield path, "damaged, and set aside"
    plan = run.plan()
    if plan is None:
        return
    yield from _unasked(run, plan)
    agents = {policy.policy for policy in plan.policies}
    for path in sorted(run.final.glob("*")):
        if path.name not in agents:
            yield path, "no agent of the run"
    yield from _old_links(run, plan)


def _unasked(run: RunDir, plan: RunPlan) -> Iterator[tuple[Path, str]]:
    """Yield artifacts and checkpoints of stages that the run no longer has.

    A store that the run shares with others is left alone: theirs may be among them.
    """
    if run.store.is_symlink() or not run.store.is_dir():
        return
    plans = [plan, *run.evaluated(plan)]
    wanted = {run.artifact(stage).name for part in plans for stage in part.stages}
    kinds = "*-" + "[0-9a-f]" * 16
    for place in (run.store, run.store / PARTIAL_STAGES):
        for path in sorted(place.glob(kinds)):
            if path.name not in wanted and path.is_dir():
                yield path, "of a stage that the run no longer has"
    yield from _half_done(run.store)
    yield from _half_done(run.store / PARTIAL_STAGES)


def _half_done(folder: Path) -> Iterator[tuple[Path, str]]:
    """Yield what a kill left of making or removing the folders in one."""
    for prefix in (TRASH, PARTIAL):
        for path in sorted(folder.glob(f"{prefix}*")):
            yield path, "half made or half removed"


def _old_links(run: RunDir, plan: RunPlan) -> Iterator[tuple[Path, str]]:
    """Yield readable names of stages that the run no longer has."""
    names = {stage.name for part in (plan, *run.evaluated(plan)) for stage in part.stages}
    for folder, inside, files in os.walk(run.stages):
        for name in sorted((*inside, *files)):
            path = Path(folder, name)
            if path.is_symlink() and path.relative_to(run.stages).as_posix() not in names:
                yield path, "of a stage that the run no longer has"


def _remove_empty(folder: Path) -> None:
    """Remove the folders in one that hold nothing any more."""
    for path, _, _ in os.walk(folder, topdown=False):
        if Path(path) != folder and not os.listdir(path):
            with translate_write_errors(Path(path)):
                os.rmdir(path)


def _size(path: Path) -> int:
    """Return the bytes of a file, or of all files in a folder."""
    if path.is_symlink() or not path.is_dir():
        return path.lstat().st_size
    return sum(p.lstat().st_size for p in path.rglob("*") if not p.is_dir())
