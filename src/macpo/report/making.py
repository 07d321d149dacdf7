"""Making reports: the files that `macpo report` writes, and the one that every run leaves."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from urllib.parse import quote

from macpo.errors import StoreError
from macpo.report.gather import gather_run
from macpo.report.page import render_run
from macpo.report.runs import render_runs
from macpo.run_directory import RunDir
from macpo.store import write_text_atomic

_log = logging.getLogger(__name__)


def write_run_report(folder: str | Path, out: Path | None = None) -> Path:
    """Write the report of a run, finished or not; returns its path.

    Args:
        folder: the run directory.
        out: where to; by default `RUN/report.html`.

    Raises:
        StoreError: there is no run, or the file cannot be written.
    """
    target = RunDir(folder).report_file if out is None else out
    _write(target, render_run(gather_run(folder)))
    return target


def write_runs_report(folders: Sequence[Path], out: Path) -> Path:
    """Write one report on several runs, and each run's own that the page links to.

    Args:
        folders: run directories; the first is the one that the others are compared with.
        out: where to.

    Raises:
        StoreError: there is no run in one of them, or a file cannot be written.
    """
    reports = [gather_run(folder) for folder in folders]
    for folder, report in zip(folders, reports, strict=True):
        _write(RunDir(folder).report_file, render_run(report))
    links = [
        os.path.relpath(RunDir(folder).report_file.resolve(), out.resolve().parent)
        for folder in folders
    ]
    _write(out, render_runs(reports, [quote(link.replace(os.sep, "/")) for link in links]))
    return out


def _write(path: Path, page: str) -> None:
    """Write a page; halves of surrogate pairs, which UTF-8 cannot hold, become question marks.

    Durable, for a comparison does not write the pages of finished cells again.
    """
    write_text_atomic(path, page.encode("utf-8", "replace").decode(), durable=True, alone=False)


def leave_report(
    write: Callable[[], Path], note: Callable[[str], None], what: str = "macpo report RUN"
) -> Path | None:
    """Write a report at the end of work that must not fail for it; None when it cannot be made.

    Args:
        write: writes it and returns its path.
        note: is told on one line if it cannot be made.
        what: command that tries again.
    """
    try:
        return write()
    except Exception as error:  # whatever it is: the run itself has ended well
        _log.debug("the report failed", exc_info=True)
        reason = str(error) if isinstance(error, StoreError) else f"{type(error).__name__}: {error}"
        note(f"no report was made ({reason}); {what} tries again")
        return None
