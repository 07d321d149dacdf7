"""What a notebook calls to compare: `run_comparison`, shown as it goes on."""

from __future__ import annotations

from pathlib import Path

from macpo.compare.comparison import Comparison
from macpo.compare.design import Design
from macpo.compare.progress import CompareConsole, CompareObserver
from macpo.compare.running import run_comparison


def compare(
    design: Design,
    folder: str | Path,
    observer: CompareObserver | None = None,
    store: str | Path | None = None,
) -> Comparison:
    """Run all cells of a comparison; what was finished there before is not run again.

    A cell that fails is told and left out, the others go on; the same call tries it again. Results
    are also written when the call is interrupted, for the cells that are there.

    Args:
        design: what to run, as `load_design` returns it.
        folder: the comparison's folder, made if it is not there.
        observer: is told what happens; by default it is shown on stderr.
        store: where the artifacts are, which other comparisons may share at the same time; by
            default `folder/store`.

    Raises:
        MacpoError: the comparison as a whole cannot be run; see macpo.errors.
        KeyboardInterrupt: asked to stop; the same call goes on where it stopped.
    """
    if observer is not None:
        return run_comparison(design, folder, observer, store)
    with CompareConsole() as console:
        return run_comparison(design, folder, console, store)
