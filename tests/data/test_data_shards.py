"""Folders of data files: joined in the order of their names, splits by name, nothing guessed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet

from macpo.config import DataConfig
from macpo.data import load_preferences, source_digest
from macpo.errors import DataError


def rows(*prompts: str) -> list[dict[str, str]]:
    return [{"prompt": prompt, "chosen": "7", "rejected": "8"} for prompt in prompts]


def write(folder: Path, name: str, *prompts: str) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        parquet.write_table(pa.Table.from_pylist(rows(*prompts)), path)
    elif path.suffix == ".csv":
        lines = ["prompt,chosen,rejected", *(f"{prompt},7,8" for prompt in prompts)]
        path.write_text("\n".join(lines), encoding="utf-8")
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows(*prompts)), encoding="utf-8")
    return path


def prompts(folder: Path, **options: Any) -> list[str]:
    loaded = load_preferences(DataConfig(source=str(folder), **options))
    return [example.prompt.messages[0].content for example in loaded.examples]


def fails(folder: Path, **options: Any) -> str:
    with pytest.raises(DataError) as caught:
        prompts(folder, **options)
    with pytest.raises(DataError):
        source_digest(DataConfig(source=str(folder), **options))
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".jsonl"])
@pytest.mark.parametrize("home", ["", "data/"])
def test_shards_are_joined_in_the_order_of_their_names(
    tmp_path: Path, suffix: str, home: str
) -> None:
    write(tmp_path, f"{home}train-00001-of-00002{suffix}", "c")
    write(tmp_path, f"{home}train-00000-of-00002{suffix}", "a", "b")
    write(tmp_path, f"{home}test-00000-of-00001{suffix}", "d")
    (tmp_path / "README.md").write_text("About.", encoding="utf-8")
    (tmp_path / "dataset_infos.json").write_text("{}", encoding="utf-8")
    assert prompts(tmp_path) == ["a", "b", "c"]
    assert prompts(tmp_path, hub_split="test") == ["d"]


def test_folders_named_as_splits_are_read(tmp_path: Path) -> None:
    write(tmp_path, "train/0000.parquet", "a")
    write(tmp_path, "train/0001.parquet", "b")
    write(tmp_path, "test/0000.parquet", "c")
    assert prompts(tmp_path) == ["a", "b"]
    assert prompts(tmp_path, hub_split="test") == ["c"]


def test_shards_without_splits_are_all_there_is(tmp_path: Path) -> None:
    write(tmp_path, "part-0.jsonl", "a")
    write(tmp_path, "part-1.jsonl", "b")
    assert prompts(tmp_path) == ["a", "b"]
    assert "has no splits, so data.hub_split has no effect" in fails(tmp_path, hub_split="test")


def test_split_of_a_longer_name_is_found_if_there_is_one(tmp_path: Path) -> None:
    write(tmp_path, "train_prefs-00000-of-00001.parquet", "a")
    write(tmp_path, "test_prefs-00000-of-00001.parquet", "b")
    assert prompts(tmp_path) == ["a"]
    write(tmp_path, "train_gen-00000-of-00001.parquet", "c")
    assert fails(tmp_path) == (
        f"{tmp_path}: split 'train' may be train_gen or train_prefs; "
        "set data.hub_split to one of: test_prefs, train_gen, train_prefs"
    )
    assert prompts(tmp_path, hub_split="train_prefs") == ["a"]


def test_unknown_split_names_those_there_are(tmp_path: Path) -> None:
    write(tmp_path, "train.jsonl", "a")
    assert fails(tmp_path, hub_split="test").endswith(
        "has no split 'test'; set data.hub_split to one of: train"
    )


def test_missing_shard_is_told(tmp_path: Path) -> None:
    write(tmp_path, "train-00000-of-00003.parquet", "a")
    write(tmp_path, "train-00002-of-00003.parquet", "b")
    assert "holds 2 of 3 shards (train-00000-of-00003.parquet, …); fetch" in fails(tmp_path)


def test_same_split_in_two_kinds_of_files_is_refused(tmp_path: Path) -> None:
    write(tmp_path, "train.csv", "a")
    write(tmp_path, "train.jsonl", "a")
    assert "files of several kinds (.csv, .jsonl)" in fails(tmp_path)


def test_files_of_several_names_are_not_joined(tmp_path: Path) -> None:
    write(tmp_path, "helpful.jsonl", "a")
    write(tmp_path, "harmless.jsonl", "b")
    assert "files of several names (harmless, helpful) and none of a split" in fails(tmp_path)


def test_bad_rows_are_numbered_through_all_files(tmp_path: Path) -> None:
    write(tmp_path, "part-0.jsonl", "a", "b")
    with write(tmp_path, "part-1.jsonl", "c").open("a", encoding="utf-8") as file:
        file.write("no JSON\n")
    loaded = load_preferences(DataConfig(source=str(tmp_path), max_bad_rows=1))
    assert loaded.report.skipped[0].numbers == (4,)
    assert loaded.report.source == f"{tmp_path} (train, 2 files)"


def test_digest_is_of_the_split_and_of_content_not_of_place(tmp_path: Path) -> None:
    write(tmp_path / "one", "train-0.jsonl", "a")
    write(tmp_path / "one", "test-0.jsonl", "b")
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    one, two = (DataConfig(source=str(tmp_path / name)) for name in ("one", "two"))
    before = source_digest(one)
    assert source_digest(two) == before
    write(tmp_path / "two", "test-0.jsonl", "changed")
    assert source_digest(two) == before
    write(tmp_path / "two", "train-1.jsonl", "more")
    assert source_digest(two) != before


def test_option_of_the_hub_is_refused(tmp_path: Path) -> None:
    write(tmp_path, "train.jsonl", "a")
    with pytest.raises(DataError, match="hub_config: has no effect on the folder"):
        prompts(tmp_path, hub_config="x")
