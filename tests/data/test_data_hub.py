"""Hub data sets: the real `datasets` on a local folder, and a stand-in for what goes wrong."""

from __future__ import annotations

import gzip
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from macpo.config import DataConfig
from macpo.data import load_preferences, source_digest
from macpo.data.hub import hub_digest, open_hub
from macpo.errors import DataError

ROW = {"chosen": "\n\nHuman: Hi\n\nAssistant: Yes", "rejected": "\n\nHuman: Hi\n\nAssistant: No"}


@pytest.fixture
def dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder laid out like HH-RLHF on the hub: no configurations, a folder for each subset."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    root = tmp_path / "hh"
    for subset, copies in (("harmless-base", 2), ("helpful-base", 3)):
        (root / subset).mkdir(parents=True)
        lines = "\n".join(json.dumps(ROW) for _ in range(copies))
        for split in ("train", "test"):
            (root / subset / f"{split}.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    return root


def test_config_that_is_no_configuration_names_a_folder(dataset: Path) -> None:
    source = open_hub(DataConfig(source=str(dataset), hub_config="harmless-base", hub_split="test"))
    rows = list(source.rows)
    assert (source.unit, source.total) == ("row", 2)
    assert [row.number for row in rows] == [1, 2]
    assert rows[0].value == ROW


def test_missing_split_is_an_error_with_the_splits(dataset: Path) -> None:
    config = DataConfig(source=str(dataset), hub_config="helpful-base", hub_split="dev")
    with pytest.raises(
        DataError, match=r"no split 'dev'; set data.hub_split to one of: test, train"
    ):
        open_hub(config)


def test_missing_folder_is_an_error(dataset: Path) -> None:
    with pytest.raises(DataError, match=r"check the name and data.hub_config"):
        open_hub(DataConfig(source=str(dataset), hub_config="none"))


class Table(list[dict[str, str]]):
    """Rows as `datasets.Dataset` iterates over them."""


class Builder:
    """What `open_hub` uses of a `datasets.DatasetBuilder`."""

    def __init__(self, hash: str) -> None:
        self.hash = hash
        self.info = SimpleNamespace(splits={"train": None, "test": None})

    def download_and_prepare(self) -> None:
        self.ready = True

    def as_dataset(self, split: str) -> Table:
        assert self.ready
        return Table([ROW, {"chosen": "", "rejected": ""}])


def stand_in(
    monkeypatch: pytest.MonkeyPatch, hash: str = "r1", fails: Exception | None = None
) -> None:
    def load_dataset_builder(*_: Any, revision: str | None, **__: Any) -> Builder:
        if fails is not None:
            raise fails
        return Builder(revision or hash)

    module = SimpleNamespace(
        load_dataset_builder=load_dataset_builder,
        get_dataset_config_names=lambda name, revision: ["default"],
    )
    monkeypatch.setitem(sys.modules, "datasets", module)


def test_hub_name_loads_with_row_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(monkeypatch)
    loaded = load_preferences(DataConfig(source="owner/name", max_bad_rows=0.5))
    assert (loaded.report.source, loaded.report.unit) == ("owner/name (train)", "row")
    assert [(s.reason, s.numbers) for s in loaded.report.skipped] == [("no turn markers", (2,))]
    assert [e.chosen for e in loaded.examples] == ["Yes"]


def test_digest_follows_revision_config_and_split(monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(monkeypatch, "r1")
    config = DataConfig(source="owner/name")
    first = source_digest(config)
    assert first == hub_digest(config)
    assert first != source_digest(DataConfig(source="owner/name", hub_split="test"))
    assert first != source_digest(DataConfig(source="owner/name", hub_config="default"))
    assert first != source_digest(DataConfig(source="owner/name", hub_revision="older"))
    stand_in(monkeypatch, "r2")
    assert first != source_digest(config)


def test_unreachable_hub_is_one_line_with_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(monkeypatch, fails=ConnectionError("Couldn't reach\nthe hub"))
    with pytest.raises(DataError) as caught:
        source_digest(DataConfig(source="owner/name"))
    assert str(caught.value) == (
        "owner/name: is no local file, and was not had from the hub (ConnectionError: Couldn't "
        "reach the hub); check the name and data.hub_config, or download it where there is a "
        "network and give the file"
    )


def test_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DataError, match=r"pip install datasets, or give a .jsonl file"):
        load_preferences(DataConfig(source="owner/name"))
