"""Tables and packed files: the same rows, whatever they come in."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pytest
from pyarrow import parquet

from macpo.config import DataConfig
from macpo.data import load_preferences, source_digest
from macpo.errors import DataError

ROWS = [
    {"prompt": "A prime?", "chosen": "7, or 11", "rejected": "8"},
    {"prompt": 'Say "hi".', "chosen": "hi\nho", "rejected": "NA"},
]
CONVERSATION = {
    "chosen": [{"role": "user", "content": "A prime?"}, {"role": "assistant", "content": "7"}],
    "rejected": [{"role": "user", "content": "A prime?"}, {"role": "assistant", "content": "8"}],
}


def read(source: Path, **options: Any) -> list[dict[str, str]]:
    """Return the rows that were read, as texts."""
    loaded = load_preferences(DataConfig(source=str(source), **options))
    return [
        {
            "prompt": e.prompt.messages[-1].content,
            "chosen": e.chosen,
            "rejected": e.rejected,
        }
        for e in loaded.examples
    ]


def fails(source: Path, **options: Any) -> str:
    with pytest.raises(DataError) as caught:
        read(source, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def write_cells(path: Path, separator: str) -> None:
    def cell(text: str) -> str:
        return '"' + text.replace('"', '""') + '"'

    lines = [ROWS[0].keys(), *(map(cell, row.values()) for row in ROWS)]
    path.write_text("\r\n".join(separator.join(line) for line in lines), encoding="utf-8-sig")


@pytest.mark.parametrize(
    ("name", "separator"), [("x.csv", ","), ("x.tsv", "\t"), ("x.csv", ";"), ("x.csv", "\t")]
)
def test_cells_are_texts_as_they_stand(tmp_path: Path, name: str, separator: str) -> None:
    write_cells(tmp_path / name, separator)
    assert read(tmp_path / name) == ROWS


def test_row_with_too_few_cells_is_a_bad_row(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_text("prompt,chosen,rejected\na,b,c\nd,e\nf,,g\n")
    loaded = load_preferences(DataConfig(source=str(path), max_bad_rows=2))
    assert [(s.reason, s.numbers, s.detail) for s in loaded.report.skipped] == [
        ("wrong number of cells", (2,), "2 cells under 3 columns"),
        ("missing field", (3,), "chosen"),
    ]


def test_message_lists_in_cells_are_parsed(tmp_path: Path) -> None:
    path = tmp_path / "x.tsv"
    path.write_text("chosen\trejected\n" + "\t".join(map(repr, CONVERSATION.values())))
    assert read(path) == [{"prompt": "A prime?", "chosen": "7", "rejected": "8"}]


@pytest.mark.parametrize("rows", [ROWS, [CONVERSATION]])
@pytest.mark.parametrize("kind", ["parquet", "arrow file", "arrow stream"])
def test_table_of_arrow_is_read(tmp_path: Path, kind: str, rows: list[Any]) -> None:
    table = pa.Table.from_pylist(rows)
    path = tmp_path / f"x.{kind.partition(' ')[0]}"
    if kind == "parquet":
        parquet.write_table(table, path)
    else:
        new = pa.ipc.new_file if kind == "arrow file" else pa.ipc.new_stream
        with new(str(path), table.schema) as writer:
            writer.write_table(table)
    expected = [{"prompt": "A prime?", "chosen": "7", "rejected": "8"}]
    assert read(path) == (ROWS if rows is ROWS else expected)


def test_saved_folder_is_read_and_counts_by_its_content(tmp_path: Path) -> None:
    for name in ("one", "two"):
        datasets.Dataset.from_list(ROWS).save_to_disk(str(tmp_path / name))
    datasets.Dataset.from_list(ROWS[:1]).save_to_disk(str(tmp_path / "less"))
    assert read(tmp_path / "one") == ROWS
    one, two, less = (
        source_digest(DataConfig(source=str(tmp_path / name))) for name in ("one", "two", "less")
    )
    assert one == two != less
    assert "holds one split" in fails(tmp_path / "one", hub_split="test")


def test_split_of_a_saved_folder_is_taken_by_name(tmp_path: Path) -> None:
    splits = {
        "train": datasets.Dataset.from_list(ROWS),
        "test": datasets.Dataset.from_list(ROWS[1:]),
    }
    datasets.DatasetDict(splits).save_to_disk(str(tmp_path / "saved"))
    assert read(tmp_path / "saved") == ROWS
    assert read(tmp_path / "saved", hub_split="test") == ROWS[1:]
    assert "set data.hub_split to one of: train, test" in fails(tmp_path / "saved", hub_split="x")
    assert "data.hub_config: has no effect" in fails(tmp_path / "saved", hub_config="x")


def test_zstd_is_known_by_content(tmp_path: Path) -> None:
    text = "\n".join(map(json.dumps, ROWS)).encode()
    packed = pa.compress(text, codec="zstd", asbytes=True)
    for name in ("x.jsonl.zst", "x.jsonl"):
        (tmp_path / name).write_bytes(packed)
        assert read(tmp_path / name) == ROWS
    (tmp_path / "cut.jsonl.zst").write_bytes(packed[: len(packed) // 2])
    assert "damaged zstd" in fails(tmp_path / "cut.jsonl.zst")


@pytest.mark.parametrize("name", ["x.parquet", "x.arrow"])
def test_damaged_table_is_one_line(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"PAR1 not really")
    assert f"{name}: cannot be read as {name[2:]}" in fails(tmp_path / name)


@pytest.mark.parametrize(
    "value",
    [
        {"data": ROWS},
        {"version": 1, "data": ROWS},
        {name: {str(i): row[name] for i, row in enumerate(ROWS)} for name in ROWS[0]},
    ],
)
@pytest.mark.parametrize("indent", [None, 1])
def test_rows_inside_of_one_object_are_found(
    tmp_path: Path, value: dict[str, Any], indent: int | None
) -> None:
    path = tmp_path / "x.json"
    path.write_text(json.dumps(value, indent=indent))
    assert read(path) == ROWS


def test_of_several_splits_in_one_object_none_is_taken(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text(json.dumps({"train": ROWS, "test": ROWS}, indent=1))
    assert "holds an object over several lines, not rows" in fails(path)


def test_file_of_one_row_is_a_row(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text(json.dumps({**ROWS[0], "history": [["a", "b"]]}))
    assert read(path) == ROWS[:1]


def test_windows_file_is_told_its_encoding(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes('{"a": "ü"}\n{"a": "\N{RIGHT SINGLE QUOTATION MARK}"}'.encode("cp1252"))
    assert "byte 0xfc); convert it, for example: iconv -f WINDOWS-1252 -t UTF-8" in fails(path)


def test_marks_of_joined_files_are_skipped(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text("\n".join("\ufeff" + json.dumps(row) for row in ROWS), encoding="utf-8")
    assert read(path) == ROWS


def test_columns_of_a_table_can_be_named(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_text("task,good,bad,note\nA prime?,7,8,x\n")
    columns = {"prompt": "task", "chosen": "good", "rejected": "bad"}
    loaded = load_preferences(DataConfig.model_validate({"source": str(path), "columns": columns}))
    report = loaded.report
    assert (report.format, report.detected, report.unread) == ("columns", False, {"note": 1})
    assert loaded.examples[0].chosen == "7"
    wrong = {**columns, "chosen": "god"}
    with pytest.raises(DataError, match="has no column 'god', which"):
        load_preferences(DataConfig.model_validate({"source": str(path), "columns": wrong}))


def test_columns_and_format_exclude_each_other() -> None:
    with pytest.raises(ValueError, match="columns and format both say"):
        DataConfig.model_validate(
            {"source": "x", "format": "trl", "columns": {"chosen": "a", "rejected": "b"}}
        )
