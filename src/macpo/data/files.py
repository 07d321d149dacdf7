"""Rows out of local files: JSON lines or one JSON list, plain or gzip, streamed with their numbers.

What a file holds is seen from its first character, not from its name: "[" opens a list, anything
else is read line by line. Rows that are no JSON come out as bad rows, which the loader counts; a
file that cannot be read at all is a `DataError`.
"""

from __future__ import annotations

import codecs
import difflib
import gzip
import json
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal, cast

from macpo.data.turns import BadRow, json_type
from macpo.errors import DataError
from macpo.seeds import file_digest
from macpo.shipped import is_example, locate

ROWS_SUFFIXES = (".jsonl", ".json")
SUFFIXES = (*ROWS_SUFFIXES, ".jsonl.gz", ".json.gz")
OTHER_SUFFIXES = (".gz", ".csv", ".tsv", ".txt", ".parquet", ".arrow", ".zip", ".zst")  # refused
GZIP_MAGIC = b"\x1f\x8b"
HEAD_BYTES = 65536


@dataclass(frozen=True, slots=True)
class RawRow:
    """One row before its format is known.

    `number` counts from 1: lines of a file, blank ones too, or items of a list, or rows of a table.
    `value` is the parsed JSON; when `bad` is set, the row's text as far as it could be had.
    """

    number: int
    value: object
    bad: BadRow | None = None


@dataclass(frozen=True, slots=True)
class RowSource:
    """Rows to be read once, in order; `total` is their count where it is known beforehand."""

    name: str
    unit: Literal["line", "item", "row"]
    rows: Iterator[RawRow]
    total: int | None = None


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
    with _reading(path), _open(path) as file:
        head = file.read(HEAD_BYTES).removeprefix(codecs.BOM_UTF8).lstrip()
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise DataError(f"{path}: not UTF-8 but UTF-16; {_recode(path, 'UTF-16')}")
    if not head:
        raise DataError(f"{path}: holds no rows; check that the file was written in full")
    if head.startswith(b"[") or _is_one_object(path, head):
        items = _read_list(path)
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
    path = locate(source).expanduser()
    if path.is_dir():
        inside = sorted(p.name for p in path.iterdir() if p.name.endswith(SUFFIXES))
        hint = f"name a file in it, such as {path / inside[0]}" if inside else "name a file"
        raise DataError(f"{path}: is a folder; {hint}")
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
    magic = file.read(2)
    file.seek(0)
    if magic == GZIP_MAGIC:
        file.close()
        return cast(IO[bytes], gzip.open(path, "rb"))
    if path.suffix == ".gz" and magic:
        file.close()
        raise DataError(f"{path}: not gzip, for all its name; rename it without .gz, or fetch anew")
    return file


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turn what reading can raise into one line."""
    try:
        yield
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"{path}: damaged gzip ({error}); fetch the file again") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from error


def _read_lines(path: Path) -> Iterator[RawRow]:
    """Yield one row a line; blank lines hold none."""
    with _reading(path), _open(path) as file:
        for number, line in enumerate(file, 1):
            text = _decode(
                path, line.removeprefix(codecs.BOM_UTF8) if number == 1 else line, number
            )
            if text.strip():
                yield _parse_line(number, text.rstrip())


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
    with _reading(path), _open(path) as file:
        text = _decode(path, file.read().removeprefix(codecs.BOM_UTF8))
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
    if not isinstance(value, list):
        raise DataError(
            f"{path}: holds {json_type(value)} over several lines, not rows; write a list of "
            "objects, or one object a line"
        )
    return value


def _is_one_object(path: Path, head: bytes) -> bool:
    """Say whether the whole file is one JSON object printed over several lines, which is no rows.

    Only asked so that the message can say so, instead of counting each line as bad.
    """
    if not head.startswith(b"{") or b"\n" not in head or _is_json(head.split(b"\n", 1)[0]):
        return False
    with _reading(path), _open(path) as file:
        return _is_json(file.read().removeprefix(codecs.BOM_UTF8))


def _is_json(raw: bytes) -> bool:
    """Say whether `raw` parses."""
    try:
        json.loads(raw.decode())
    except (ValueError, RecursionError):
        return False
    return True


def _decode(path: Path, raw: bytes, number: int | None = None) -> str:
    """Decode UTF-8; another encoding spoils a file as a whole, so this is not one bad row.

    To skip the rows that fail would keep the ASCII ones alone, and quietly tilt the data.
    """
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1 if number is None else number
        raise DataError(
            f"{path}, line {line}: not UTF-8 (byte 0x{raw[error.start]:02x}); "
            f"{_recode(path, 'LATIN1')}"
        ) from error


def _recode(path: Path, encoding: str) -> str:
    """Say how to convert a file to UTF-8."""
    unzip = f"gzip -dc {path} | " if path.suffix == ".gz" else ""
    return f"convert it, for example: {unzip}iconv -f {encoding} -t UTF-8" + (
        "" if unzip else f" {path}"
    )
