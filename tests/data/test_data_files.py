"""Local files: what is read, with which numbers, and what each unreadable file is told."""

from __future__ import annotations

import gzip
import json
import re
from pathlib import Path

import pytest

from macpo.data.files import is_local, local_digest, open_file
from macpo.errors import DataError

ROWS = [{"a": 1}, {"a": "ü"}]


def read(path: Path) -> list[tuple[int, object]]:
    return [(row.number, row.value) for row in open_file(str(path)).rows]


def write(path: Path, content: str | bytes) -> Path:
    data = content.encode() if isinstance(content, str) else content
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


@pytest.mark.parametrize("name", ["x.jsonl", "x.json", "x.jsonl.gz", "x.json.gz"])
@pytest.mark.parametrize(
    ("content", "unit"),
    [
        ("\n".join(map(json.dumps, ROWS)), "line"),
        (json.dumps(ROWS), "item"),
        ("\ufeff \n" + json.dumps(ROWS, indent=2, ensure_ascii=False), "item"),
        ("\ufeff" + "\r\n".join(json.dumps(r, ensure_ascii=False) for r in ROWS) + "\r\n", "line"),
    ],
)
def test_content_decides_between_list_and_lines(
    tmp_path: Path, name: str, content: str, unit: str
) -> None:
    path = write(tmp_path / name, content)
    assert open_file(str(path)).unit == unit
    assert read(path) == [(1, ROWS[0]), (2, ROWS[1])]


def test_gzip_is_known_by_content(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes(gzip.compress(b'{"a": 1}\n'))
    assert read(path) == [(1, {"a": 1})]


def test_blank_lines_count_in_numbers_and_hold_no_rows(tmp_path: Path) -> None:
    path = write(tmp_path / "x.jsonl", '\n{"a": 1}\n  \n\n{"a": 2}\n')
    assert read(path) == [(2, {"a": 1}), (5, {"a": 2})]


def test_item_count_of_a_list_is_known_beforehand(tmp_path: Path) -> None:
    assert open_file(str(write(tmp_path / "x.json", "[1, 2]"))).total == 2
    assert open_file(str(write(tmp_path / "x.jsonl", "1\n2"))).total is None


@pytest.mark.parametrize(
    ("line", "detail"),
    [
        ('{"a": 1', "Expecting ',' delimiter, column 8"),
        ("[" * 100_000, "nested too deeply"),
        ("1" * 5000, "Exceeds the limit"),
    ],
)
def test_line_that_is_no_json_is_a_bad_row(tmp_path: Path, line: str, detail: str) -> None:
    path = write(tmp_path / "x.jsonl", f'{{"a": 1}}\n{line}\n{{"a": 3}}\n')
    good, bad, last = list(open_file(str(path)).rows)
    assert (good.bad, last.bad, last.number) == (None, None, 3)
    assert bad.bad is not None
    assert bad.bad.reason == "not JSON"
    assert bad.bad.detail.startswith(detail)


def fails(path: Path, message: str) -> None:
    with pytest.raises(DataError, match=re.escape(message)) as caught:
        list(open_file(str(path)).rows)
    assert "\n" not in str(caught.value)


def test_truncated_gzip_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl.gz"
    whole = gzip.compress("\n".join(f'{{"a": {i * 7919}}}' for i in range(50_000)).encode())
    path.write_bytes(whole[: len(whole) // 2])
    fails(path, f"{path}: damaged gzip (Compressed file ended before the end-of-stream marker")


def test_corrupt_gzip_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl.gz"
    raw = bytearray(gzip.compress(b'{"a": 1}\n' * 100))
    raw[12:20] = b"\xff" * 8
    path.write_bytes(raw)
    fails(path, f"{path}: damaged gzip (")


def test_plain_text_named_gz_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl.gz"
    path.write_bytes(b'{"a": 1}\n')
    fails(path, "not gzip, for all its name; rename it without .gz")


@pytest.mark.parametrize("name", ["x.jsonl", "x.json", "x.jsonl.gz"])
@pytest.mark.parametrize("content", ["", " \n\n", "\ufeff"])
def test_empty_file_is_an_error(tmp_path: Path, name: str, content: str) -> None:
    fails(write(tmp_path / name, content), "holds no rows; check that the file was written in full")


def test_latin1_file_is_an_error_with_its_line(tmp_path: Path) -> None:
    path = write(tmp_path / "x.jsonl", '{"a": 1}\n{"a": "ü"}\n'.encode("latin-1"))
    fails(path, f"{path}, line 2: not UTF-8 (byte 0xfc); convert it, for example: iconv -f LATIN1")


def test_latin1_list_is_an_error_with_its_line(tmp_path: Path) -> None:
    path = write(tmp_path / "x.json.gz", '[1,\n2,\n"ü"]'.encode("latin-1"))
    fails(path, "line 3: not UTF-8 (byte 0xfc); convert it, for example: gzip -dc")


def test_utf16_file_is_an_error(tmp_path: Path) -> None:
    fails(write(tmp_path / "x.jsonl", '{"a": 1}\n'.encode("utf-16")), "not UTF-8 but UTF-16")


def test_folder_without_data_is_an_error(tmp_path: Path) -> None:
    write(tmp_path / "README.md", "1")
    fails(tmp_path, f"{tmp_path}: is a folder without data files; name a file, or a folder of them")


def test_missing_file_suggests_near_names(tmp_path: Path) -> None:
    write(tmp_path / "harmless.jsonl.gz", "1")
    fails(tmp_path / "harmles.jsonl", "no such file; did you mean harmless.jsonl.gz?")
    fails(tmp_path / "none" / "x.jsonl", "no such file; check data.source")


def test_other_kinds_of_file_are_refused(tmp_path: Path) -> None:
    fails(write(tmp_path / "x.txt", "a,b"), "not a kind of file that can be read (.jsonl, .json,")


def test_broken_list_is_an_error_with_its_place(tmp_path: Path) -> None:
    fails(
        write(tmp_path / "x.json", '[{"a": 1},\n{"a": }]'),
        "begins as a JSON list but is not valid JSON (line 2, column 7: Expecting value)",
    )
    fails(write(tmp_path / "y.json", "[" * 100_000), "not a list of rows, it is nested too deeply")


def test_one_object_over_several_lines_is_an_error(tmp_path: Path) -> None:
    path = write(tmp_path / "x.json", json.dumps({"a": ROWS}, indent=1))
    fails(path, "holds an object over several lines, not rows")


def test_unreadable_file_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "x.jsonl", "1")

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    fails(path, f"{path}: cannot be read (Permission denied)")


def test_digest_is_of_the_bytes_alone(tmp_path: Path) -> None:
    one, same, other = (
        write(tmp_path / name, text)
        for name, text in [("a.jsonl", "1"), ("b.json", "1"), ("c.json", "2")]
    )
    assert local_digest(str(one)) == local_digest(str(same)) != local_digest(str(other))
    # sha256 of the one byte "1", from `printf 1 | sha256sum`
    assert local_digest(str(one)).startswith("6b86b273ff34fce19d6b804eff5a3f57")


@pytest.mark.parametrize(
    ("source", "local"),
    [
        ("Anthropic/hh-rlhf", False),
        ("imdb", False),
        ("owner/name-v1.0", False),
        ("data/pairs.jsonl", True),
        ("pairs.json.gz", True),
        ("pairs.parquet", True),
        ("./pairs", True),
        ("/data/pairs", True),
        ("a/b/c", True),
    ],
)
def test_paths_are_told_from_hub_names(source: str, local: bool) -> None:
    assert is_local(source) == local


def test_existing_path_is_local(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "owner").mkdir()
    monkeypatch.chdir(tmp_path)
    assert is_local("owner")
