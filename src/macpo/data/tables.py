"""Rows out of tables: parquet, arrow, csv, and folders that `datasets` saved.

Columns become the fields of rows; nothing is guessed of what they mean. Cells of csv are texts, as
they stand: a cell "NA" is an answer, not a gap.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from macpo.data.rows import RawRow, RowSource
from macpo.data.turns import BadRow
from macpo.errors import DataError
from macpo.seeds import digest, file_digest

TABLE_SUFFIXES = (".parquet", ".arrow")
CELLS_SUFFIXES = (".csv", ".tsv")
BATCH_ROWS = 1024


def open_table(path: Path) -> RowSource:
    """Open a parquet or arrow file.

    Raises:
        DataError: it is none, or damaged.
    """
    import pyarrow as pa
    from pyarrow import parquet

    with _reading(path):
        if path.suffix == ".parquet":
            table = parquet.ParquetFile(path)
            batches = table.iter_batches(BATCH_ROWS)
            return RowSource(str(path), "row", _rows(path, batches), table.metadata.num_rows)
        with path.open("rb") as file:
            of_file = file.read(6) == b"ARROW1"  # else a stream, as datasets writes
        mapped = pa.memory_map(str(path))
        if of_file:
            reader = pa.ipc.open_file(mapped)
            batches = (reader.get_batch(i) for i in range(reader.num_record_batches))
            return RowSource(str(path), "row", _rows(path, batches))
        return RowSource(str(path), "row", _rows(path, pa.ipc.open_stream(mapped)))


def is_saved_folder(path: Path) -> bool:
    """Say whether a folder was written by `save_to_disk` of `datasets`."""
    return any((path / name).is_file() for name in ("dataset_dict.json", "state.json"))


def open_saved(path: Path, split: str) -> RowSource:
    """Open a folder that `datasets` saved; one of several splits is taken by name.

    Raises:
        DataError: it has no such split, or is damaged.
    """
    import datasets

    with _reading(path):
        saved = datasets.load_from_disk(str(path))
    if isinstance(saved, datasets.DatasetDict):
        if split not in saved:
            raise DataError(
                f"{path}: has no split {split!r}; set data.hub_split to one of: {', '.join(saved)}"
            )
        saved = saved[split]
    elif split != "train":
        raise DataError(f"{path}: holds one split, so data.hub_split has no effect; remove it")
    rows = (RawRow(number, row) for number, row in enumerate(saved, 1))
    return RowSource(str(path), "row", rows, len(saved))


def saved_digest(path: Path, split: str) -> str:
    """Return a digest of the rows of a saved folder: of its tables' bytes, in their order.

    Raises:
        DataError: they cannot be read.
    """
    folder = path / split if (path / "dataset_dict.json").is_file() else path
    with _reading(path):
        return digest(["saved", *(file_digest(file) for file in sorted(folder.glob("*.arrow")))])


def read_cells(path: Path, text: str) -> Iterator[RawRow]:
    """Yield the rows of the text of a csv or tsv file, counted behind its header.

    What separates cells is seen from the header; an empty cell is null.

    Raises:
        DataError: the text is no csv.
    """
    csv.field_size_limit(2**31 - 1)
    header = text.partition("\n")[0]
    separator = "\t" if "\t" in header else max(",;", key=header.count)
    rows = csv.reader(io.StringIO(text, newline=""), delimiter=separator)
    try:
        names = next(rows)
        for number, cells in enumerate((row for row in rows if row), 1):
            yield _row(number, names, cells)
    except csv.Error as error:
        raise DataError(f"{path}: not valid csv ({error}); write it again") from error


def _row(number: int, names: list[str], cells: list[str]) -> RawRow:
    """Make a row of cells."""
    value: dict[str, Any] = {name: cell or None for name, cell in zip(names, cells, strict=False)}
    if len(cells) == len(names):
        return RawRow(number, value)
    detail = f"{len(cells)} cells under {len(names)} columns"
    return RawRow(number, value, BadRow("wrong number of cells", detail))


def _rows(path: Path, batches: Any) -> Iterator[RawRow]:
    """Yield the rows of record batches."""
    number = 0
    with _reading(path):
        for batch in batches:
            for row in batch.to_pylist():
                number += 1
                yield RawRow(number, row)


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turn what pyarrow raises into one line."""
    import pyarrow as pa

    try:
        yield
    except (pa.ArrowException, OSError, ValueError) as error:
        what = " ".join(str(error).split())[:200]
        raise DataError(
            f"{path}: cannot be read as {path.suffix.lstrip('.') or 'a saved data set'} ({what}); "
            "fetch or write it again"
        ) from error
