"""Loading: what is taken, what is skipped and said about it, and when it is too much."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from macpo.config import DataConfig
from macpo.data import load_preferences, source_digest
from macpo.errors import DataError


def row(prompt: str, chosen: str = "good", rejected: str = "bad") -> dict[str, str]:
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected}


def config(tmp_path: Path, rows: list[Any], name: str = "x.jsonl", **options: Any) -> DataConfig:
    path = tmp_path / name
    lines = [r if isinstance(r, str) else json.dumps(r) for r in rows]
    path.write_text("\n".join(lines) if name.endswith("l") else f"[{','.join(lines)}]")
    return DataConfig(source=str(path), **options)


def fails(config: DataConfig, message: str = "x.json") -> str:
    with pytest.raises(DataError, match=re.escape(message)) as caught:
        load_preferences(config)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_every_row_is_accounted_for(tmp_path: Path) -> None:
    rows = [
        row("a"),
        row("a", "better"),
        "{broken",
        row("a"),
        row(" a "),
        row("b", ""),
        "",
        7,
        row("b", " "),
        row("a  b"),
        row("a b"),
    ]
    loaded = load_preferences(config(tmp_path, rows, max_bad_rows=4))
    report = loaded.report
    pairs = [(e.prompt.messages[0].content, e.chosen) for e in loaded.examples]
    assert pairs == [("a", "good"), ("a", "better"), ("a  b", "good"), ("a b", "good")]
    assert (report.format, report.detected, report.unit) == ("trl", True, "line")
    assert (report.rows, report.pairs, report.prompts, report.bad_rows) == (10, 4, 2, 4)
    assert report.duplicates == (4, 5)
    assert report.rows == report.pairs + len(report.duplicates) + report.bad_rows
    empty, *others = report.skipped
    assert (empty.reason, empty.numbers, empty.detail) == ("empty answer", (6, 9), "chosen")
    assert empty.excerpt == '{"prompt": "b", "chosen": "", "rejected": "bad"}'
    assert [(s.reason, s.numbers) for s in others] == [("not JSON", (3,)), ("not an object", (8,))]


def test_excerpt_is_short_and_printable(tmp_path: Path) -> None:
    hostile = "\x1b[2J" + "x" * 500
    loaded = load_preferences(config(tmp_path, [row("a"), hostile], max_bad_rows=1))
    excerpt = loaded.report.skipped[0].excerpt
    assert excerpt.startswith("\N{REPLACEMENT CHARACTER}[2Jxxx")
    assert len(excerpt) == 80


def test_control_characters_in_texts_stay(tmp_path: Path) -> None:
    loaded = load_preferences(config(tmp_path, [row("a\x00b\x1b", "c\x07d")]))
    assert loaded.examples[0].prompt.messages[0].content == "a\x00b\x1b"
    assert loaded.examples[0].chosen == "c\x07d"


def test_neighbouring_turns_of_one_speaker_are_joined_and_counted(tmp_path: Path) -> None:
    messages = [{"role": "user", "content": text} for text in ("a", "b")]
    rows = [{**row("x"), "prompt": messages}, row("x")]
    loaded = load_preferences(config(tmp_path, rows))
    assert loaded.report.joined == 1
    assert [m.content for m in loaded.examples[0].prompt.messages] == ["a\n\nb"]


def test_named_format_is_obeyed(tmp_path: Path) -> None:
    rows = [row("\n\nHuman: Hi\n\nAssistant:")]
    assert load_preferences(config(tmp_path, rows)).report.format == "hh"
    told = load_preferences(config(tmp_path, rows, format="trl"))
    assert (told.report.format, told.report.detected) == ("trl", False)
    assert told.examples[0].prompt.messages[0].content == "Human: Hi\n\nAssistant:"


def test_criterion_reaches_the_parser(tmp_path: Path) -> None:
    pku = {
        "prompt": "How?",
        "response_0": "Zero",
        "response_1": "One",
        "better_response_id": 1,
        "safer_response_id": 0,
    }
    assert load_preferences(config(tmp_path, [pku])).examples[0].chosen == "One"
    harmless = config(tmp_path, [pku], criterion="harmless")
    assert load_preferences(harmless).examples[0].chosen == "Zero"


@pytest.mark.parametrize(("limit", "bad", "passes"), [(2, 2, True), (2, 3, False), (1, 2, False)])
def test_count_limit_is_the_most_bad_rows_allowed(
    tmp_path: Path, limit: int, bad: int, passes: bool
) -> None:
    data = config(tmp_path, [row("a"), *["x"] * bad, row("b")], max_bad_rows=limit)
    if passes:
        assert load_preferences(data).report.bad_rows == bad
    else:
        fails(data, f"more than data.max_bad_rows {limit} allows")


@pytest.mark.parametrize("name", ["x.jsonl", "x.json"])
@pytest.mark.parametrize(("bad", "passes"), [(29, True), (30, False)])
def test_fraction_limit_is_of_all_rows(tmp_path: Path, name: str, bad: int, passes: bool) -> None:
    rows: list[Any] = [*[7] * bad, *[row(str(i)) for i in range(100 - bad)]]
    data = config(tmp_path, rows, name, max_bad_rows=0.29)
    if passes:
        assert load_preferences(data).report.bad_rows == bad
    else:
        # In a list 30 of 100 is known to be too much at once; lines must be counted first.
        seen = 30 if name == "x.json" else 100
        fails(data, f"that makes 30 bad of {seen} rows read as format trl (30 not an object)")


def test_error_names_file_line_reason_and_remedy(tmp_path: Path) -> None:
    data = config(tmp_path, [row("a"), row("b", ""), row("c")], max_bad_rows=0)
    assert fails(data) == (
        f"{data.source}, line 2: empty answer (chosen); that makes 1 bad of 2 rows read as format "
        "trl (1 empty answer), more than data.max_bad_rows 0 allows; mend them, or raise "
        "data.max_bad_rows to skip them"
    )


def test_wrong_format_error_names_the_right_one(tmp_path: Path) -> None:
    data = config(tmp_path, [row("a"), row("b")], format="macpo")
    message = fails(data, "line 1: missing field (instruction)")
    assert message.endswith("the rows look like format trl: set data.format to it, or to auto")


def test_unknown_format_error_shows_the_fields(tmp_path: Path) -> None:
    fails(
        config(tmp_path, [{"question": "a", "answer": "b"}]),
        "none of the first 1 rows fits a known format (line 1: its fields: question, answer)",
    )
    fails(config(tmp_path, ["{broken"]), "(line 1: not JSON (Expecting property name")
    fails(config(tmp_path, [3]), "(line 1: a number)")


def test_no_pair_left_is_an_error(tmp_path: Path) -> None:
    data = config(tmp_path, [row("a", "")] * 2, format="trl", max_bad_rows=5)
    fails(data, "no pair could be used of 2 rows as format trl (2 empty answer)")
    fails(config(tmp_path, [], "x.json"), "holds no rows")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"criterion": "harmless"}, "data.criterion: harmless has no effect on format trl"),
        ({"hub_split": "test"}, "data.hub_split: has no effect on the local file"),
        ({"hub_config": "x"}, "data.hub_config: has no effect on the local file"),
        ({"hub_revision": "x"}, "data.hub_revision: has no effect on the local file"),
    ],
)
def test_option_without_effect_is_an_error(
    tmp_path: Path, options: dict[str, str], message: str
) -> None:
    fails(config(tmp_path, [row("a")], **options), message)


def test_report_is_json(tmp_path: Path) -> None:
    report = load_preferences(config(tmp_path, [row("a"), row("a"), "x"], max_bad_rows=1)).report
    value = json.loads(json.dumps(report.to_json()))
    assert (value["pairs"], value["duplicates"], value["bad_rows"]) == (1, [2], 1)
    assert value["skipped"][0]["numbers"] == [3]


def test_digest_follows_the_content_and_not_the_options(tmp_path: Path) -> None:
    first = source_digest(config(tmp_path, [row("a")]))
    assert first == source_digest(config(tmp_path, [row("a")], "y.jsonl", format="trl"))
    assert first != source_digest(config(tmp_path, [row("b")]))


def test_importing_the_package_loads_nothing_heavy() -> None:
    code = (
        "import sys, macpo.data; "
        "print([m for m in ('torch', 'transformers', 'datasets', 'rich') if m in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
