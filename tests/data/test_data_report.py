"""The data report: its numbers by hand, its JSON, and how it prints."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from macpo.data import DataReport, check_data, render
from macpo.errors import DataError


def write(tmp_path: Path, rows: list[Any]) -> str:
    path = tmp_path / "x.jsonl"
    path.write_text("\n".join(r if isinstance(r, str) else json.dumps(r) for r in rows))
    return str(path)


def row(prompt: Any, chosen: str, rejected: str) -> dict[str, Any]:
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected}


def turns(*texts: str) -> list[dict[str, str]]:
    roles = ("user", "assistant")
    return [{"role": roles[i % 2], "content": text} for i, text in enumerate(texts)]


ROWS = [
    row("one two three", "a b", "a"),
    row(turns("one", "two three", "four"), "a", "b c d"),
    row("five", "a b c d e f", "b"),
    row("five", "b", "a b c d e f"),
    row("five", "a b c d e f", "b"),
    row("six", "a", "b"),
    "broken",
    row("seven", "", "b"),
]


def text(report: DataReport, width: int = 120) -> str:
    console = Console(file=io.StringIO(), width=width, color_system=None)
    console.print(render(report))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_numbers_of_a_small_file(tmp_path: Path) -> None:
    report = check_data(write(tmp_path, ROWS))
    assert (report.loading.pairs, report.loading.prompts) == (5, 4)
    assert report.loading.duplicates == (5,)
    assert report.turns == {1: 4, 2: 1}
    assert report.multi_turn_share == 1 / 5
    assert report.unit == "words"
    # prompts: 3, 1 + 2 + 1, 1, 1, 1 words; chosen: 2, 1, 6, 1, 1; rejected: 1, 3, 1, 6, 1
    prompt, chosen, rejected = (report.lengths[p] for p in ("prompt", "chosen", "rejected"))
    assert (prompt.mean, prompt.median, prompt.p95, prompt.max) == (2.0, 1, 4, 4)
    assert (chosen.mean, chosen.median, chosen.p95, chosen.max) == (2.2, 1, 6, 6)
    assert (rejected.mean, rejected.median, rejected.max) == (2.4, 1, 6)
    assert (report.chosen_longer, report.rejected_longer) == (2, 2)
    assert report.chosen_longer_share == 2 / 5
    assert report.opposed == 2


def test_p95_is_the_nearest_rank(tmp_path: Path) -> None:
    rows = [row(str(i), " ".join(["w"] * i), "x y") for i in range(1, 41)]
    # 0.95 * 40 = 38 of the 40 answers are at most 38 words long.
    assert check_data(write(tmp_path, rows)).lengths["chosen"].p95 == 38


def test_tokenizer_sets_the_unit(tmp_path: Path) -> None:
    report = check_data(write(tmp_path, ROWS[:2]), tokenizer=lambda text: list(text.encode()))
    assert report.unit == "tokens"
    assert report.lengths["prompt"].max == len("one") + len("two three") + len("four")
    assert report.lengths["rejected"].max == len("b c d")


def test_tokenizer_that_returns_no_ids_is_refused(tmp_path: Path) -> None:
    bad: Any = lambda text: {"input_ids": [1], "attention_mask": [1]}  # noqa: E731
    with pytest.raises(TypeError, match="tokenizer returned dict, not ids; pass its encode"):
        check_data(write(tmp_path, ROWS), tokenizer=bad)


def test_bad_rows_are_reported_however_many(tmp_path: Path) -> None:
    report = check_data(write(tmp_path, ["x"] * 30 + ROWS[:1]))
    assert report.loading.bad_rows == 30
    assert report.loading.skipped[0].numbers == tuple(range(1, 31))
    assert "lines 1, 2, 3, 4, 5, 6, 7, 8, 22 more" in " ".join(text(report, 200).split())


def test_nothing_usable_in_a_named_format_is_a_report(tmp_path: Path) -> None:
    report = check_data(write(tmp_path, ROWS), "hh")
    assert (report.loading.pairs, report.lengths, report.multi_turn_share) == (0, {}, 0)
    assert "0 pairs on 0 prompts" in text(report)


def test_unknown_format_name_is_an_error(tmp_path: Path) -> None:
    wrong: Any = "csv"
    with pytest.raises(DataError, match=r"format: Input should be 'auto', 'hh'.* \(got 'csv'\)"):
        check_data(write(tmp_path, ROWS), wrong)


def test_json_form_holds_the_numbers(tmp_path: Path) -> None:
    value = json.loads(json.dumps(check_data(write(tmp_path, ROWS)).to_json()))
    assert value["turns"] == {"1": 4, "2": 1}
    assert value["lengths"]["chosen"] == {"mean": 2.2, "median": 1, "p95": 6, "max": 6}
    assert value["chosen_longer_share"] == 0.4
    assert {s["reason"]: s["numbers"] for s in value["loading"]["skipped"]} == {
        "not JSON": [7],
        "empty answer": [8],
    }


def test_printed_report_says_what_was_found(tmp_path: Path) -> None:
    printed = text(check_data(write(tmp_path, ROWS)))
    for line in (
        "x.jsonl: format trl (detected)",
        "8 rows: 5 pairs on 4 prompts, 1 duplicates dropped, 2 bad rows skipped",
        "duplicates: line 5",
        "2 pairs rank two answers against another pair",
        "lengths in words",
        "user turns in the prompt: 1: 4, 2: 1 pairs (20% multi-turn)",
        "chosen is the longer answer in 40% of pairs, rejected in 40%",
    ):
        assert line in printed.replace("\n", "")
    assert "joined" not in printed


def test_printed_report_says_how_many_rows_had_turns_joined(tmp_path: Path) -> None:
    twice = [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}]
    printed = text(check_data(write(tmp_path, [row(twice, "c", "d")]), "trl"))
    assert "format trl (as told)" in printed.replace("\n", "")
    assert "1 rows with neighbouring turns of one speaker, now joined" in printed


def test_fields_that_are_not_read_are_listed_with_their_rows(tmp_path: Path) -> None:
    message = {"role": "assistant", "content": "a", "name": "Ann", "id": None}
    rows: list[Any] = [
        {**row("one", "a", "b"), "score": 0.5, "note": ""},
        {**row("two", "a", "b"), "score": 1, "chosen": [message]},
        {"prompt": "three", "score": 1},
    ]
    report = check_data(write(tmp_path, rows))
    assert report.loading.unread == {"chosen[].name": 1, "score": 2}
    assert "not read: chosen[].name (1 rows), score (2 rows)" in text(report).replace("\n", "")


def test_report_says_what_was_recognised(tmp_path: Path) -> None:
    orca = {"question": "A prime?", "chosen": "7", "rejected": "8"}
    printed = text(check_data(write(tmp_path, [orca]))).replace("\n", "")
    assert "format orca (detected): Orca's pairs" in printed


def test_data_is_not_read_as_markup(tmp_path: Path) -> None:
    printed = text(check_data(write(tmp_path, ["{[red]x[/red] [/]", *ROWS])))
    assert "{[red]x[/red] [/]" in printed
