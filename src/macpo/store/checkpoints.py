"""Checkpoints inside a stage: at every moment the newest safe one can be found."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable
from pathlib import Path

from macpo.errors import DamagedError, RanksDifferError
from macpo.ranks import ALONE, Ranks
from macpo.store.atomic import (
    PARTIAL,
    TRASH,
    new_directory,
    remove_tree,
    translate_write_errors,
)
from macpo.store.manifest import verify

_NAME = re.compile(r"step-(\d{8,})")

_log = logging.getLogger(__name__)


def _name(step: object) -> str:
    """Return what the folder of a step is called; what is no step gives no name of one."""
    return f"step-{step:08d}" if isinstance(step, int) else ""


class Checkpoints:
    """The checkpoints below `folder`, one process at a time.

    `step-00000020` holds the state after 20 optimizer steps. It is committed like an artifact, and
    older ones go only when it is safe.

    Args:
        folder: where they are.
        ranks: who is at work on the stage: all call at once, rank 0 reads and writes the folder.
    """

    def __init__(self, folder: Path, ranks: Ranks = ALONE) -> None:
        self.folder = Path(folder)
        self.ranks = ranks

    def save(self, step: int, write: Callable[[Path], None], digest: int = 0) -> None:
        """Commit the state after `step` steps, then remove all other checkpoints.

        A step that is already saved and undamaged stays as it is and `write` is not called: the
        state after a step is always the same. Nothing is written before all ranks have come so far,
        and none goes on before it is safe.

        Args:
            step: optimizer steps taken so far, at least 0.
            write: writes the state into the empty folder it is given; called by rank 0.
            digest: of the state, which has to be the same on all ranks.

        Raises:
            StoreError: the disk is full or fails; earlier checkpoints are still there.
            RanksError: a rank was lost, or its state is another one; likewise.
        """
        for rank, (theirs, found) in enumerate(said := self.ranks.gather([step, digest])):
            if [theirs, found] != said[0]:
                raise RanksDifferError(
                    f"rank {rank} is at step {theirs} with other weights than rank 0 at step "
                    f"{said[0][0]}: they compute differently; run on machines of one kind"
                )
        if self.ranks.leads:
            self._commit(step, write)
        self.ranks.gather(None)

    def _commit(self, step: int, write: Callable[[Path], None]) -> None:
        """Do what `save` says, as the only one who writes."""
        final = self.folder / _name(step)
        if not self._is_safe(final):
            with new_directory(final, {"step": step}) as temporary:
                write(temporary)
        for path in self._entries():
            if path != final:
                remove_tree(path)

    def latest(self) -> tuple[int, Path] | None:
        """Return the newest checkpoint that is complete and undamaged, as `(step, path)`.

        Damaged ones are reported as warnings and removed, half-written ones are removed.

        Raises:
            StoreError: a checkpoint cannot be read, or another version of macpo wrote it.
            RanksError: a rank was lost.
        """
        found = self._latest() if self.ranks.leads else None
        said = self.ranks.gather(None if found is None else [found[0], str(found[1])])[0]
        return None if said is None else (said[0], Path(said[1]))

    def _latest(self) -> tuple[int, Path] | None:
        """Do what `latest` says, as the only one who looks."""
        saved: dict[int, Path] = {}
        for path in self._entries():
            match = _NAME.fullmatch(path.name)
            if match is None:
                remove_tree(path)
            else:
                saved[int(match[1])] = path
        for step in sorted(saved, reverse=True):
            if self._is_safe(saved[step]):
                return step, saved[step]
        return None

    def _is_safe(self, path: Path) -> bool:
        """Tell whether `path` is an undamaged checkpoint; remove it when it is a damaged one."""
        if not os.path.lexists(path):
            return False
        try:
            if path.is_symlink():
                raise DamagedError(f"{path} is damaged: it is a link; remove it")
            step = verify(path).fields.get("step")
            if path.name != _name(step):
                raise DamagedError(
                    f"{path} is damaged: it says that it is of step {step}; remove it"
                )
        except DamagedError as error:
            _log.warning("checkpoint not used and removed: %s", error.fault)
            remove_tree(path)
            return False
        return True

    def _entries(self) -> list[Path]:
        """List the checkpoints, and what half-done saves and removals have left."""
        if not self.folder.is_dir():
            return []
        with translate_write_errors(self.folder):
            return sorted(
                path
                for path in self.folder.iterdir()
                if _NAME.fullmatch(path.name) or path.name.startswith((PARTIAL, TRASH))
            )
