"""Rows out of local files: JSON lines, one JSON list, csv, parquet, arrow, with their numbers.

What a file of JSON holds is seen from its first character, not from its name: "[" opens a list,
anything else is read line by line. Rows that are no JSON come out as bad rows, which the loader
counts; a file that cannot be read at all is a `DataError`.
"""

from __future__ import annotations

import codecs
import difflib
import gzip
import io
import itertools
import json
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, cast

from macpo.data.rows import LARGEST_ROW, RawRow, RowSource, too_large
from macpo.data.tables import CELLS_SUFFIXES, TABLE_SUFFIXES, open_table, read_cells
from macpo.data.turns import BadRow
from macpo.errors import DataError
from macpo.paths import user_path
from macpo.seeds import file_digest
from macpo.shipped import is_example, locate

ROWS_SUFFIXES = (".jsonl", ".json")
TEXT_SUFFIXES = (*ROWS_SUFFIXES, *CELLS_SUFFIXES)
PACKED = (".gz", ".zst")
SUFFIXES = (
    *TEXT_SUFFIXES,
    *(f"{suffix}{packed}" for suffix in TEXT_SUFFIXES for packed in PACKED),
    *TABLE_SUFFIXES,
)
OTHER_SUFFIXES = (*PACKED, ".txt", ".zip", ".xlsx")  # refused
WRAPPERS = ("data", "rows", "examples", "items", "instances", "records", "train")
GZIP_MAGIC = b"\x1f\x8b"
ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
HEAD_BYTES = 65536
LARGEST_LINE = 6 * LARGEST_ROW
"""Bytes of a line that holds the largest row, with every character escaped."""
MOST_SKIPPED = 1 << 28
"""Bytes of one line that are passed over before it is called no line."""
LARGEST_WHOLE = 1 << 30
"""Bytes of a file that is parsed as a whole."""
MOST_BLANK_LINES = 1_000_000


def is_local(source: str) -> bool:
    """Say whether `source` means a path rather than a name on the hub.

    It does when something exists there, when it ends as data files do, or when it is written as
    only a path can be: a name on the hub is `name` or `owner/name`.
    """
    return (
        source.endswith(SUFFIXES + OTHER_SUFFIXES)
        or source.startswith(("/", "./", "../", "~"))
        or source.count("/") > 1
        or is_example(source)
        or "\\" in source
        or Path(source).exists()
    )


def open_file(source: str) -> RowSource:
    """Open a local file of rows; problems inside it may come up only while it is read.

    Raises:
        DataError: there is no such file, or it is not of a kind that can be read.
    """
    path = _find(source)
    if path.name.endswith(TABLE_SUFFIXES):
        return open_table(path)
    with _reading(path), _open(path) as file:
        head = file.read(HEAD_BYTES).removeprefix(codecs.BOM_UTF8).lstrip()
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise DataError(f"{path}: not UTF-8 but UTF-16; {_recode(path, 'UTF-16')}")
    if not head:
        raise DataError(f"{path}: holds no rows; check that the file was written in full")
    if any(suffix in CELLS_SUFFIXES for suffix in path.suffixes[-2:]):
        raw = _read_whole(path)
        if raw is None:
            raise _too_large(path, "write it as parquet or as JSON lines")
        return RowSource(str(path), "row", read_cells(path, _decode(path, raw)))
    items = _read_object(path, head)
    if head.startswith(b"[") or items is not None:
        items = _read_list(path) if items is None else items
        rows = (RawRow(number, item) for number, item in enumerate(items, 1))
        return RowSource(str(path), "item", rows, len(items))
    return RowSource(str(path), "line", _read_lines(path))


def local_digest(source: str) -> str:
    """Return the digest of a local file of rows, see `macpo.seeds.file_digest`.

    Raises:
        DataError: the file cannot be read.
    """
    path = _find(source)
    with _reading(path):
        return file_digest(path)


def _find(source: str) -> Path:
    """Return the path that `source` names, or say what may have been meant."""
    path = user_path(locate(source))
    if path.is_dir():
        raise DataError(f"{path}: is a folder without data files; name a file, or a folder of them")
    if not path.exists():
        names = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
        near = difflib.get_close_matches(path.name, names, n=2, cutoff=0.6)
        hint = f"did you mean {' or '.join(near)}?" if near else "check data.source"
        raise DataError(f"{path}: no such file; {hint}")
    if not path.name.endswith(SUFFIXES):
        raise DataError(
            f"{path}: not a kind of file that can be read ({', '.join(SUFFIXES)}); "
            "convert it to JSON lines, or rename it if it is that"
        )
    return path


def _open(path: Path) -> IO[bytes]:
    """Open for reading bytes, through gzip where the content (not the name) says so."""
    file = path.open("rb")
    magic = file.read(4)
    file.seek(0)
    if magic[:2] == GZIP_MAGIC:
        file.close()
        return cast(IO[bytes], gzip.open(path, "rb"))
    if magic == ZSTD_MAGIC:
        file.close()
        return _open_zstd(path)
    for suffix, what in ((".gz", "gzip"), (".zst", "zstd")):
        if path.suffix == suffix and magic:
            file.close()
            raise DataError(
                f"{path}: not {what}, for all its name; rename it without {suffix}, or fetch anew"
            )
    return file


def _open_zstd(path: Path) -> IO[bytes]:
    """Open a file that zstd packed; see `_reading` for what reading it can raise."""
    import pyarrow as pa

    return cast(IO[bytes], io.BufferedReader(pa.input_stream(str(path), compression="zstd")))


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turn what reading can raise into one line."""
    try:
        yield
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"{path}: damaged gzip ({error}); fetch the file again") from error
    except OSError as error:
        if "ZSTD" in str(error) or "compressed stream" in str(error):
            raise DataError(f"{path}: damaged zstd ({error}); fetch the file again") from error
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from error


def _read_lines(path: Path) -> Iterator[RawRow]:
    """Yield one row a line; blank lines hold none."""
    blank = 0
    with _reading(path), _open(path) as file:
        for number in itertools.count(1):
            line = file.readline(LARGEST_LINE + 1)
            if not line:
                return
            if len(line) > LARGEST_LINE:
                _skip_line(path, file, number)
                yield too_large(number)
                continue
            # Files that were joined have a mark in their midst, too.
            text = _decode(path, line.removeprefix(codecs.BOM_UTF8), number)
            blank = 0 if text.strip() else blank + 1
            if not blank:
                yield _parse_line(number, text.rstrip())
            elif blank > MOST_BLANK_LINES:
                raise DataError(
                    f"{path}, line {number}: {blank:,} blank lines one after another; this is no "
                    "file of rows"
                )


def _skip_line(path: Path, file: IO[bytes], number: int) -> None:
    """Read on to the end of a line, of which much is read.

    Raises:
        DataError: it goes on and on, as a few bytes of gzip can.
    """
    for _ in range(MOST_SKIPPED // LARGEST_LINE):
        if file.readline(LARGEST_LINE + 1)[-1:] in (b"\n", b""):
            return
    raise DataError(
        f"{path}, line {number}: longer than {MOST_SKIPPED >> 20} MiB; this is no file of rows"
    )


def _read_whole(path: Path) -> bytes | None:
    """Read a file that is parsed as a whole, without its mark; None if it is too large for that."""
    with _reading(path), _open(path) as file:
        raw = file.read(LARGEST_WHOLE + 1)
    return None if len(raw) > LARGEST_WHOLE else raw.removeprefix(codecs.BOM_UTF8)


def _too_large(path: Path, remedy: str) -> DataError:
    return DataError(
        f"{path}: over {LARGEST_WHOLE >> 20} MiB, unpacked, which is too large to be read as a "
        f"whole; {remedy}"
    )


def _parse_line(number: int, text: str) -> RawRow:
    """Parse one line."""
    try:
        return RawRow(number, json.loads(text))
    except RecursionError:
        return RawRow(number, text, BadRow("not JSON", "nested too deeply"))
    except ValueError as error:  # JSONDecodeError, or a number of more than 4,300 digits
        message = getattr(error, "msg", str(error))
        column = f", column {error.colno}" if isinstance(error, json.JSONDecodeError) else ""
        return RawRow(number, text, BadRow("not JSON", f"{message}{column}"))


def _read_list(path: Path) -> list[Any]:
    """Read a file that is one JSON list."""
    raw = _read_whole(path)
    if raw is None:
        raise _too_large(path, "write one object a line (JSON lines), which are read one by one")
    text = _decode(path, raw)
    try:
        value = json.loads(text)
    except RecursionError as error:
        raise DataError(f"{path}: not a list of rows, it is nested too deeply") from error
    except ValueError as error:
        where = (
            f"line {error.lineno}, column {error.colno}: {error.msg}"
            if isinstance(error, json.JSONDecodeError)
            else str(error)
        )
        raise DataError(
            f"{path}: begins as a JSON list but is not valid JSON ({where}); mend it, or write one "
            "object a line (JSON lines), where single bad rows can be skipped"
        ) from error
    return cast(list[Any], value)  # it begins with "["


def _read_object(path: Path, head: bytes) -> list[Any] | None:
    """Read a file that is one JSON object in which its rows are; None if it is not.

    Such are {"data": [...]} and what pandas writes: {"prompt": {"0": ..., "1": ...}, ...}.

    Raises:
        DataError: it is one object over several lines that holds no rows. This is asked so that the
            message can say so, instead of counting each line as bad.
    """
    line, _, more = head.partition(b"\n")
    if not head.startswith(b"{") or (more.strip() and _parse(line) is not None):
        return None
    raw = _read_whole(path)
    value = None if raw is None else _parse(raw)
    rows = _unwrap(value) if isinstance(value, dict) else None
    if value is not None and rows is None and more.strip():
        raise DataError(
            f"{path}: holds an object over several lines, not rows; write a list of objects, or "
            "one object a line"
        )
    return rows


def _unwrap(value: dict[str, Any]) -> list[Any] | None:
    """Return the rows inside of an object."""
    columns = list(value.values())
    if columns and all(isinstance(cells, dict) and cells for cells in columns):
        index = list(columns[0])
        if all(key.isdecimal() and list(c) == index for c in columns for key in index):
            return [{name: cells[i] for name, cells in value.items()} for i in index]
    lists = {
        name: rows
        for name, rows in value.items()
        if isinstance(rows, list) and rows and all(isinstance(row, dict) for row in rows)
    }
    # Of several, such as splits, none is taken: the others would be lost without a word.
    [(name, rows), *others] = lists.items() or [("", None)]
    return rows if name in WRAPPERS and not others else None


def _parse(raw: bytes) -> object:
    """Return the JSON value that `raw` is; None if it is none."""
    try:
        value: object = json.loads(raw.decode())
    except (ValueError, RecursionError):
        return None
    return value


def _decode(path: Path, raw: bytes, number: int | None = None) -> str:
    """Decode UTF-8; another encoding spoils a file as a whole, so this is not one bad row.

    To skip the rows that fail would keep the ASCII ones alone, and quietly tilt the data.
    """
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1 if number is None else number
        # In LATIN1 these bytes are control characters, in WINDOWS-1252 quotes and dashes.
        with _open(path) as file:
            blocks = iter(lambda: file.read(HEAD_BYTES), b"")
            windows = any(0x80 <= byte <= 0x9F for block in blocks for byte in set(block))
        raise DataError(
            f"{path}, line {line}: not UTF-8 (byte 0x{raw[error.start]:02x}); "
            f"{_recode(path, 'WINDOWS-1252' if windows else 'LATIN1')}"
        ) from error


def _recode(path: Path, encoding: str) -> str:
    """Say how to convert a file to UTF-8."""
    program = {".gz": "gzip", ".zst": "zstd"}.get(path.suffix)
    unzip = f"{program} -dc {path} | " if program else ""
    return f"convert it, for example: {unzip}iconv -f {encoding} -t UTF-8" + (
        "" if unzip else f" {path}"
    )
