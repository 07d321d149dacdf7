"""From one format to another: nothing is changed on the way, and what cannot go is told."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from macpo.config import DataConfig
from macpo.data import convert_data, load_preferences, parse_macpo, render_conversion
from macpo.data.convert import Target
from macpo.data.turns import BadRow
from macpo.errors import DataError
from macpo.records import Message, PreferenceExample, Prompt, Role, write_pairs
from tests.workbench import make_pairs

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
MARKED = st.sampled_from(["USER:", "ASSISTANT:", "a USER: b", " USER: ", "\n", "b ASSISTANT:"])
SPOKEN = st.lists(TEXT | MARKED, min_size=1, max_size=4).map("".join)


def rows_of(folder: Path, rows: Sequence[Any], name: str = "in.jsonl") -> str:
    path = folder / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def row(*turns: str, chosen: str = "7", rejected: str = "8", system: str = "") -> dict[str, Any]:
    """Return a row of TRL; the turns are the user's and the assistant's in alternation."""
    roles: tuple[Role, Role] = ("user", "assistant")
    messages = [Message(roles[i % 2], text) for i, text in enumerate(turns)]
    if system:
        messages.insert(0, Message("system", system))
    return PreferenceExample(Prompt(tuple(messages)), chosen, rejected).to_json()


def read(path: Path | str) -> tuple[PreferenceExample, ...]:
    return load_preferences(DataConfig(source=str(path))).examples


ROWS = [
    row("Name a prime."),
    row("Hi!", "Hello!", "Name a\n\nprime.", system="Be brief.", rejected="“8” is: prime."),
]


def test_macpo_to_trl_to_macpo_is_the_same_file(tmp_path: Path) -> None:
    start, middle, end = (tmp_path / name for name in ("a.json", "b.jsonl", "c.json"))
    convert_data(rows_of(tmp_path, ROWS), start, "macpo")
    convert_data(str(start), middle, "trl")
    convert_data(str(middle), end, "macpo")
    assert end.read_bytes() == start.read_bytes()
    assert [json.loads(line) for line in middle.read_text(encoding="utf-8").splitlines()] == ROWS
    assert json.loads(start.read_text(encoding="utf-8"))[1] == {
        "instruction": "USER: Hi! ASSISTANT: Hello! USER: Name a\n\nprime.",
        "input": "",
        "output": ["7", "“8” is: prime."],
        "system": "Be brief.",
    }


def survives(example: PreferenceExample) -> bool:
    """Say whether the authors' way to flatten turns gives a row that reads as the same pair."""
    speakers = {"user": "USER", "assistant": "ASSISTANT"}
    turns = [m for m in example.prompt.messages if m.role != "system"]
    flat = {
        "instruction": " ".join(f"{speakers[m.role]}: {m.content}" for m in turns),
        "system": "".join(m.content for m in example.prompt.messages if m.role == "system"),
        "output": [example.chosen, example.rejected],
    }
    try:
        return parse_macpo(flat) == example
    except BadRow:
        return False


@settings(max_examples=60)
@given(
    st.lists(
        st.tuples(st.lists(SPOKEN, min_size=1, max_size=3), st.just("") | SPOKEN, SPOKEN, SPOKEN),
        min_size=1,
        max_size=3,
    ),
    st.sampled_from(["macpo", "trl"]),
)
def test_whatever_is_written_reads_back_unchanged(
    tmp_path_factory: pytest.TempPathFactory,
    conversations: list[tuple[list[str], str, str, str]],
    to: Target,
) -> None:
    """Every pair that could be read is in the new file as it was, or reported if none can be."""
    folder = tmp_path_factory.mktemp("any")
    rows = [row(*t, system=s, chosen=c, rejected=r) for t, s, c, r in conversations]
    source = rows_of(folder, rows)
    try:
        before = list(read(source))
    except DataError:  # nothing in it is a pair
        return
    expected = [example for example in before if to == "trl" or survives(example)]
    if not expected:
        with pytest.raises(DataError, match="the format macpo can hold none of its pairs"):
            convert_data(source, folder / "out.json", to, "trl")
        return
    done = convert_data(source, folder / "out.json", to, "trl")
    after = load_preferences(DataConfig(source=str(folder / "out.json"), format=to)).examples
    gone = set() if done.left_out is None else set(done.left_out.numbers)
    assert list(after) == expected
    assert done.written == len(expected)
    assert [e for number, e in enumerate(before, 1) if number not in gone] == expected


@pytest.mark.parametrize("to", ["macpo", "trl"])
def test_pairs_of_a_run_are_converted(tmp_path: Path, to: Target) -> None:
    pairs = make_pairs(4)
    write_pairs(tmp_path, pairs)
    done = convert_data(str(tmp_path / "pairs.jsonl"), tmp_path / "out.json", to)
    assert (done.loading.format, done.written, done.left_out) == ("trl", 4, None)
    assert read(tmp_path / "out.json") == tuple(
        PreferenceExample(p.prompt, p.chosen.text, p.rejected.text) for p in pairs
    )


def test_new_file_has_no_column_but_the_formats_own(tmp_path: Path) -> None:
    write_pairs(tmp_path, make_pairs(1))
    convert_data(str(tmp_path / "pairs.jsonl"), tmp_path / "out.jsonl", "trl")
    assert set(json.loads((tmp_path / "out.jsonl").read_text())) == {"prompt", "chosen", "rejected"}


def test_what_was_left_out_is_reported_by_its_number(tmp_path: Path) -> None:
    rows = [row("Say USER: hello"), row("Name a prime."), {}, row("Hi", "USER: ASSISTANT:", "Ho")]
    done = convert_data(rows_of(tmp_path, rows), tmp_path / "out.json", "macpo", "trl")
    assert done.written == 1
    assert done.left_out is not None
    assert done.left_out.numbers == (1, 3)
    assert done.left_out.detail == "USER: in the user's turn"
    assert read(tmp_path / "out.json") == read(rows_of(tmp_path, [rows[1]], "one.jsonl"))
    out = io.StringIO()
    Console(file=out, width=160).print(render_conversion(done))
    shown = out.getvalue()
    assert "4 rows: 3 pairs on 3 prompts, 0 duplicates dropped, 1 bad rows skipped" in shown
    assert "missing field" in shown
    assert "left out: pairs that the format macpo cannot hold" in shown
    assert "pairs 1, 3" in shown
    assert "USER: in the user's turn: Say USER: hello" in shown
    assert shown.rstrip().endswith("out.json, 1 pairs in format macpo")


@pytest.mark.parametrize(
    ("rows", "reason"),
    [
        ([row("Say USER: hello")], "the format macpo can hold none of its pairs"),
        ([row("Hi", chosen="a", rejected="a")], "it holds no pair"),
    ],
)
def test_nothing_to_write_is_an_error(tmp_path: Path, rows: list[Any], reason: str) -> None:
    source = rows_of(tmp_path, rows)
    with pytest.raises(DataError) as raised:
        convert_data(source, tmp_path / "out.json", "macpo", "trl")
    assert str(raised.value) == (
        f"{source}: {reason}; run macpo data check {source} to see its rows"
    )
    assert not (tmp_path / "out.json").exists()


def test_nothing_is_written_through_a_broken_link(tmp_path: Path) -> None:
    (tmp_path / "out.json").symlink_to(tmp_path / "elsewhere.json")
    with pytest.raises(DataError, match=r"out\.json: exists already"):
        convert_data(rows_of(tmp_path, ROWS), tmp_path / "out.json", "macpo")
    assert not (tmp_path / "elsewhere.json").exists()
