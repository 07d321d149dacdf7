"""The file of judgments: one row for each, kept whatever happens."""

from __future__ import annotations

import sqlite3
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from macpo.annotation.judgments import JudgmentFile, annotator_name, file_for, left_side
from macpo.errors import ConfigError, StoreError
from macpo.run_directory import RunDir
from tests.annotation.files import judge_all, make_file, make_pair, make_pairing


def test_judgments_are_there_when_the_file_is_opened_again(tmp_path: Path) -> None:
    file = make_file(tmp_path)
    judge_all(file, "Anna", ["one", None, "tie"])
    file.close()

    again = JudgmentFile(file.path)
    kept = again.judgments()
    assert [(j.pair, j.verdict) for j in kept] == [
        (file.pairs[0].id, "one"),
        (file.pairs[2].id, "tie"),
    ]
    assert kept[0].prompt_id == file.pairs[0].prompt.id
    assert kept[0].left == left_side(file.pairs[0].id, "Anna")
    assert kept[0].seconds == 2.0
    assert kept[0].time.endswith("Z")
    assert (again.one, again.other) == ("student@2", "student@0")
    assert again.pairs == file.pairs


def test_each_person_gets_every_pair_once_in_one_order(tmp_path: Path) -> None:
    file = make_file(tmp_path)
    for annotator in ("Anna", "Bert"):
        shown = []
        while (pair := file.next_pair(annotator)) is not None:
            shown.append(pair)
            file.judge(pair.id, annotator, "one", None)
        assert shown == list(file.pairs)
    assert file.annotators() == {"Anna": 6, "Bert": 6}


def test_second_judgment_of_a_pair_does_not_count(tmp_path: Path) -> None:
    file = make_file(tmp_path)
    pair = file.pairs[0].id
    assert file.judge(pair, "Anna", "one", 1.0)
    assert not file.judge(pair, "Anna", "other", 1.0)
    assert file.judge(pair, "Bert", "other", 1.0)
    assert [(j.annotator, j.verdict) for j in file.judgments()] == [
        ("Anna", "one"),
        ("Bert", "other"),
    ]


def test_many_tabs_at_once_count_once(tmp_path: Path) -> None:
    file = make_file(tmp_path)
    others = [JudgmentFile(file.path) for _ in range(4)]
    pair = file.pairs[0].id
    with ThreadPoolExecutor(4) as threads:
        kept = list(threads.map(lambda f: f.judge(pair, "Anna", "one", None), others))
    assert sorted(kept) == [False, False, False, True]
    assert len(file.judgments()) == 1


def test_undo_takes_back_ones_own_latest_and_shows_it_again(tmp_path: Path) -> None:
    file = make_file(tmp_path)
    judge_all(file, "Anna", ["one", "other"])
    judge_all(file, "Bert", ["tie"])

    assert file.undo("Anna") == file.pairs[1]
    assert file.next_pair("Anna") == file.pairs[1]
    assert file.undo("Anna") == file.pairs[0]
    assert file.undo("Anna") is None
    assert file.annotators() == {"Bert": 1}


def test_sides_are_drawn_by_pair_and_person_and_stay(tmp_path: Path) -> None:
    """Of 400 fair draws the share is within 4 standard deviations (10 %) of a half."""
    drawn = [left_side(f"pair-{i}", name) for i in range(200) for name in ("Anna", "Bert")]
    assert abs(drawn.count("one") / 400 - 0.5) < 0.1
    assert drawn == [left_side(f"pair-{i}", name) for i in range(200) for name in ("Anna", "Bert")]
    assert drawn[::2] != drawn[1::2]


def test_a_pair_is_known_only_if_it_is_in_the_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such pair"):
        make_file(tmp_path).judge("feed", "Anna", "one", None)


@pytest.mark.parametrize("text", ["", "  ", None, 7, "a\x00b", "x" * 61, "\u202eanna"])
def test_names_that_are_none_are_refused(text: object) -> None:
    with pytest.raises(ConfigError, match="a name is 1 to 60 letters"):
        annotator_name(text)


def test_names_have_one_spelling() -> None:
    assert annotator_name("  Ren\u0065\u0301   Roe ") == "René Roe"


def test_file_is_named_after_its_sides_and_found_by_its_answers(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    pairing = make_pairing([make_pair("Hi", "Yes.", "No.")])
    path = file_for(run, pairing)
    assert path == tmp_path / "annotations" / "student@2-vs-student@0-01234567.sqlite"

    JudgmentFile.open(path, pairing).close()
    renamed = make_pairing(pairing.pairs)
    object.__setattr__(renamed, "other", "a run / renamed:student@0")
    assert file_for(run, renamed) == path
    object.__setattr__(renamed, "key", "fedcba9876543210")
    assert file_for(run, renamed).name == ("student@2-vs-a-run---renamed-student@0-fedcba98.sqlite")


def test_opening_again_keeps_what_is_there(tmp_path: Path) -> None:
    file = make_file(tmp_path)
    judge_all(file, "Anna", ["one"])
    again = make_file(tmp_path)
    assert again.annotators() == {"Anna": 1}


def test_creation_that_was_killed_is_done_again(tmp_path: Path) -> None:
    """Pairs and marks are one transaction: before its end there is an empty file."""
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations" / "student.sqlite").touch()
    assert len(make_file(tmp_path).pairs) == 6


def test_what_is_no_such_file_is_told_and_left_alone(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"none\.sqlite: no judgments here"):
        JudgmentFile(tmp_path / "none.sqlite")
    text = tmp_path / "text.sqlite"
    text.write_text("not a data base, but long enough to be looked at as one\n" * 20)
    with pytest.raises(
        StoreError, match=r"text\.sqlite: cannot be used \(file is not a database\)"
    ):
        JudgmentFile(text)
    other = tmp_path / "other.sqlite"
    db = sqlite3.connect(other)
    db.execute("CREATE TABLE things (id)")
    db.close()
    before = other.read_bytes()
    with pytest.raises(StoreError, match=r"not a file of judgments that this version"):
        JudgmentFile(other)
    assert other.read_bytes() == before


def test_judgment_is_on_the_disk_before_anybody_is_told(tmp_path: Path) -> None:
    """A power cut cannot be tried here; what SQLite promises under these settings covers it."""
    file = make_file(tmp_path)
    settings = [
        file._db.execute(f"PRAGMA {name}").fetchone()[0] for name in ("journal_mode", "synchronous")
    ]
    assert settings == ["wal", 2]  # 2 is FULL
    assert file._db.isolation_level is None  # each statement is its own transaction
