"""The folder of a comparison.

DIR/cells/[SETTING/]METHOD/seed-N/   ordinary run directories; their store/ is a link to ...
DIR/store/                           ... the one store, so that what cells share is run once
DIR/compare.yaml                     the cells as they were last laid out
DIR/compare.json                     the dtype, decided once for all cells
DIR/results.jsonl, results.csv       one line a measurement
DIR/results.json                     means, intervals, paired differences, what sharing saved
DIR/tables.md                        the same as tables, last round and round by round
DIR/figures/                         one PNG a metric
DIR/report.html                      all of this as a page, with links to the reports of the runs
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from macpo.compare.design import Design
from macpo.dtype import known_dtype, read_resolved, resolve_once
from macpo.errors import DataError, StoreError
from macpo.machine import choose_device
from macpo.run_directory import MetricRow, RunDir
from macpo.store import translate_write_errors, write_text_atomic
from macpo.store.atomic import fsync_directory, make_directory

if TYPE_CHECKING:
    from macpo.execution.protocol import Observer

CELLS, STORE, FIGURES, LOCK = "cells", "store", "figures", "lock"
LAYOUT_FILE, DTYPE_FILE, FINISHED_FILE = "compare.yaml", "compare.json", "finished.json"


def refuse_run(folder: Path) -> None:
    """Refuse a folder that is a run directory already.

    Raises:
        StoreError: it is one.
    """
    if RunDir(folder).exists:
        raise StoreError(
            f"{folder} is the directory of a single run; give the comparison its own with --out"
        )


def read_dtype(folder: Path) -> str | None:
    """Return the dtype that was decided for a comparison, None before it first ran.

    Raises:
        StoreError: the file is there but is not what macpo writes.
    """
    return known_dtype("auto", read_resolved(folder / DTYPE_FILE))


def decide_dtype(design: Design, folder: Path, observer: Observer) -> str | None:
    """Decide what `dtype: auto` means, once for all cells, and keep it.

    Were it left to each cell, two of them could decide differently by chance: they would share
    nothing, and differ in more than their methods.

    Returns:
        The dtype; None when no cell says auto.
    """
    undecided = [cell.config for cell in design.cells if cell.config.dtype == "auto"]
    if not undecided:
        return None
    device = choose_device(undecided[0].device)
    path = folder / DTYPE_FILE
    return resolve_once(path, "auto", device, observer.note, whose=" for all cells").dtype


def write_layout(design: Design, folder: Path) -> None:
    """Write down what the cells are."""
    cells: dict[str, Any] = {}
    for cell in design.cells:
        values = cell.config.model_dump(mode="json", exclude_unset=True)
        cells[str(design.folder_of(cell))] = values
    head = {"name": design.name, "against": design.against, "ceiling": design.ceiling}
    text = yaml.safe_dump({**head, "cells": cells}, sort_keys=False, allow_unicode=True)
    write_text_atomic(folder / LAYOUT_FILE, text, durable=True)


def prepare_cell(folder: Path, store: Path) -> None:
    """Make a cell's run directory, with a link to the comparison's store.

    Raises:
        StoreError: it cannot be made, or has a store of its own.
    """
    make_directory(folder)
    link = RunDir(folder).store
    target = os.path.relpath(store, folder)
    if link.is_symlink():
        if os.readlink(link) == target:
            return
        raise StoreError(f"{link} leads to {os.readlink(link)}, not to {target}; move it away")
    if link.exists():
        raise StoreError(f"{link} is no link to the comparison's store; move {folder} away")
    with translate_write_errors(link):
        link.symlink_to(target)


def finished_metrics(folder: Path, plan_digest: str) -> list[MetricRow] | None:
    """Return the metrics of a cell that was run to its end by this very plan; else None.

    Also where they are damaged: the cell's run finds its stages and writes them anew.
    """
    try:
        known = json.loads((folder / FINISHED_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    run = RunDir(folder)
    if known != _finished(plan_digest) or not run.metrics_file.is_file():
        return None
    try:
        return run.metrics()
    except DataError:
        return None


def mark_finished(folder: Path, plan_digest: str) -> None:
    """Write down that a cell was run to its end."""
    text = json.dumps(_finished(plan_digest)) + "\n"
    write_text_atomic(folder / FINISHED_FILE, text, durable=True)


def _finished(plan_digest: str) -> dict[str, str]:
    from macpo.version import __version__

    return {"plan": plan_digest, "version": __version__}


def unmark_finished(folder: Path) -> None:
    """Take that back, before the cell is run by another plan.

    Durable before anything else is done there: were the mark there again after a power cut, what
    the other plan measured would stand for this one's.
    """
    with translate_write_errors(folder):
        (folder / FINISHED_FILE).unlink(missing_ok=True)
        fsync_directory(folder)
