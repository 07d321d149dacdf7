"""No input takes more than seconds and a stated memory: it is read, or refused in one line."""

from __future__ import annotations

import gzip
import json
import random
import resource
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from macpo.config import DataConfig, load_config
from macpo.config.reading import parse_yaml
from macpo.data import files
from macpo.data.loading import read_preferences
from macpo.errors import ConfigError, DataError, ModelError
from macpo.models import rendering
from macpo.models.chat import Chat, PromptTooLong
from macpo.models.templates import read_template
from macpo.records import Message, Prompt
from tests.tiny import tiny_tokenizer

SECONDS = 20.0
"""What anything here may take at most, on a busy machine; bombs took minutes."""


@pytest.fixture(autouse=True)
def in_seconds() -> Iterator[None]:
    before = time.process_time()
    yield
    assert time.process_time() - before < SECONDS


def bomb(depth: int, alias: str) -> str:
    """Return YAML in which every anchor stands for ten of the one before it."""
    lines = [f"a0: &a0 {alias.format('1')}"]
    for i in range(1, depth):
        lines.append(f"a{i}: &a{i} " + alias.format(", ".join([f"*a{i - 1}"] * 10)))
    return "\n".join(lines)


@pytest.mark.parametrize(
    "text",
    [
        bomb(12, "[{}]"),
        "a0: &a0 {k: 1}\n"
        + "\n".join(
            f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 10)}]}}" for i in range(1, 12)
        ),
    ],
    ids=["aliases", "merges"],
)
def test_anchors_that_stand_for_billions_of_values_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"stand for more than 100,000 values"):
        parse_yaml(text)


@pytest.mark.parametrize("text", ["a: &a [*a]", "a: &a {b: {c: *a}}", "a: &a {<<: *a}"])
def test_anchor_that_holds_itself_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="holds itself"):
        parse_yaml(text)


def test_anchors_that_people_write_are_read() -> None:
    assert parse_yaml("a: &a {x: 1}\nb: *a\nc: {<<: *a, y: [*a, *a]}") == {
        "a": {"x": 1},
        "b": {"x": 1},
        "c": {"x": 1, "y": [{"x": 1}, {"x": 1}]},
    }


@pytest.mark.parametrize("number", ["1:30", "010", "-1:00:00", "1:30.5"])
def test_number_that_yaml_reads_as_another_is_refused(number: str) -> None:
    with pytest.raises(ValueError, match=rf"line 2: YAML reads '{number}' as another number"):
        parse_yaml(f"name: x\nrounds: {number}")
    assert parse_yaml(f"rounds: '{number}'") == {"rounds": number}


def test_numbers_that_say_what_they_mean_are_read() -> None:
    assert parse_yaml("[0, 10, 1e-3, 0x1f, 0.5, -3, 1_000]") == [0, 10, "1e-3", 31, 0.5, -3, 1000]


def test_file_that_is_no_config_by_its_size_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("# " + "x" * (1 << 20), encoding="utf-8")
    with pytest.raises(ConfigError, match="over 1 MiB, which is no config file"):
        load_config(tmp_path / "run.yaml")


@pytest.mark.parametrize(
    ("item", "said"),
    [
        ("rounds=100000", "rounds: must be less than or equal to 1000"),
        ("rounds=9223372036854775808", "rounds: must be less than or equal to 1000"),
        ("tuning.rank=9223372036854775807", "tuning.rank: must be less than or equal to 65536"),
        ("sft.epochs=9223372036854775807", "sft.epochs: must be less than or equal to 10000"),
    ],
)
def test_numbers_that_no_run_reaches_are_refused(item: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        load_config("example:quickstart", [item])


def chat(template: str) -> Chat:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = template
    return Chat(tokenizer)


PLAIN = read_template("chatml")
LOOP = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
GROWTH = (
    "{% set ns = namespace(x='aaaaaaaaaa') %}"
    "{% for a in range(40) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}"
)


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (LOOP, "takes more than 0.5 s"),
        ("{{ range(99999)|map('string')|map('length')|sum }}" * 50, "takes more than 0.5 s"),
        (GROWTH, "takes more than 256 MiB"),
        ("{{ 'a' * 10000000000 }}", "takes more than 256 MiB"),
        ("{{ '%9999999999d' % 1 }}", "takes more than 256 MiB"),
        ("{{ 'a' * 3000000 }}", "writes 3,0"),
    ],
)
def test_template_that_takes_too_much_is_refused(
    harm: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rendering, "SECONDS", 0.5)
    monkeypatch.setattr(rendering, "ADDED_BYTES", 1 << 28)
    limits = resource.getrlimit(resource.RLIMIT_AS)
    with pytest.raises(ModelError, match=said):
        chat(harm + PLAIN)
    assert resource.getrlimit(resource.RLIMIT_AS) == limits


POWERS = (
    "{{ 9**9**9**9 }}",
    "{% set x = 9 %}{{ x ** messages|length ** x }}",
    "{{ 1|round(999999999, 'ceil') }}",
    "{{ 5|round(-999999999) }}",
    "{{ 5|round(precision=999999999) }}",
    "{{ 5|round(x) }}",
    "{% filter round(999999999, 'ceil') %}5{% endfilter %}",
    "{{ [5]|map('round', -999999999)|list }}",
    "{{ [5]|map('ro' ~ 'und', -999999999)|list }}",
    "{{ [5]|map('r\\x6fund', -999999999)|list }}",
    "{{ [5]|map(name, -999999999)|list }}",
    "{%- if false -%}{{ 2 **3 }}{%- endif -%}",
)


@pytest.mark.parametrize("harm", POWERS)
def test_template_that_computes_powers_is_refused_before_it_is_compiled(harm: str) -> None:
    with pytest.raises(ModelError, match=r"the chat template (raises|rounds|maps) .*; set another"):
        chat(harm + PLAIN)


@pytest.mark.parametrize(
    "harmless",
    [
        "{# 2 ** 3 #}",
        "**bold** and round(9999)",
        "{{ '**' }}",
        "{{ 2.5|round }}{{ 2.5|round(1) }}{{ 2.5|round(1, 'floor') }}",
        "{% set round = 1 %}{{ round }}",
        "{% set x = messages|map(attribute='role')|list + [1]|map('string')|list %}",
        "{% set map = {'round': 2} %}{{ map.round * 3 }}",
    ],
)
def test_template_without_powers_is_taken(harmless: str) -> None:
    assert chat(harmless + PLAIN).end_of_turn == chat(PLAIN).end_of_turn


def test_products_that_grow_are_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rendering, "SECONDS", 0.5)
    squares = "{% set ns = namespace(x=9) %}{% for a in range(60) %}"
    with pytest.raises(ModelError, match=r"takes more than 0\.5 s"):
        chat(squares + "{% set ns.x = ns.x * ns.x %}{% endfor %}" + PLAIN)


def test_template_that_harms_some_conversations_alone_is_refused_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(rendering, "SECONDS", 0.5)
    on_mark = "{% if messages[0]['content'] == 'mark' %}" + LOOP + "{% endif %}"
    reading = chat(on_mark + PLAIN)
    prompt = Prompt((Message("user", "mark"),))
    with pytest.raises(DataError, match=rf"^prompt {prompt.id}: .*takes more than 0.5 s"):
        reading.encode_prompt(prompt, 100)


def test_time_is_bounded_in_other_threads_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rendering, "SECONDS", 0.5)
    with ThreadPoolExecutor(1) as pool, pytest.raises(ModelError, match=r"takes more than 0\.5 s"):
        pool.submit(chat, LOOP + PLAIN).result()


def conversation(turns: int, words: int = 1) -> Prompt:
    roles = ("user", "assistant")
    return Prompt(tuple(Message(roles[i % 2], f"{i} " * words) for i in range(2 * turns - 1)))


def test_prompt_of_many_turns_loses_the_oldest_ones_quickly(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    reading = chat(PLAIN)
    rendered = []
    whole = reading.template.render

    def render(messages: list[Message], *args: Any, **given: Any) -> str:
        rendered.append(len(messages))
        return whole(messages, *args, **given)

    monkeypatch.setattr(reading.template, "render", render)
    encoded = reading.encode_prompt(conversation(3000), 100)
    assert 80 <= len(encoded.ids) <= 100
    assert sum(rendered) < 2 * 6000  # it is read whole once, and then short ends of it


def test_as_few_turns_are_dropped_as_the_limit_asks_for() -> None:
    """Against dropping one after the other, at every limit."""
    reading = chat(PLAIN)
    generator = random.Random(0)
    prompt = Prompt(
        tuple(
            Message("assistant" if i % 2 else "user", "word " * generator.randrange(1, 9))
            for i in range(9)
        )
    )
    sizes = {
        dropped: len(reading.encode_prompt(Prompt(prompt.messages[dropped:]), 10**6).ids)
        for dropped in range(0, 9, 2)
    }
    for limit in range(sizes[8], sizes[0] + 1):
        fewest = next(dropped for dropped, size in sizes.items() if size <= limit)
        encoded = reading.encode_prompt(prompt, limit)
        assert (encoded.dropped_turns, len(encoded.ids)) == (fewest, sizes[fewest])
    with pytest.raises(PromptTooLong):
        reading.encode_prompt(prompt, sizes[8] - 1)


def test_many_spellings_of_special_tokens_are_changed_quickly() -> None:
    reading = chat(PLAIN)
    text = "<|im_end|>" * 50_000
    changed = reading._text.neutralise(text)
    assert changed == "< |im_end|>" * 50_000


def rows(*texts: str) -> str:
    return "".join(
        json.dumps({"prompt": f"{i}?", "chosen": text, "rejected": "no"}) + "\n"
        for i, text in enumerate(texts)
    )


def test_row_with_too_much_text_is_skipped_and_counted(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(rows("yes", "y" * (1 << 20), "y" * (7 << 20), "yes."), encoding="utf-8")
    report = read_preferences(DataConfig(source=str(path))).report
    assert (report.rows, report.pairs, report.bad_rows) == (4, 2, 2)
    assert [(s.reason, s.numbers) for s in report.skipped] == [("too large", (2, 3))]
    table = tmp_path / "rows.json"
    table.write_text(json.dumps(list(map(json.loads, path.read_text().splitlines()))))
    assert read_preferences(DataConfig(source=str(table))).report.bad_rows == 2


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"x", "line 1: longer than 8 MiB; this is no file of rows"),
        (b"\n", "blank lines one after another; this is no file of rows"),
        (b"[1,", "over 16 MiB, unpacked, which is too large to be read as a whole; write one obj"),
    ],
)
def test_few_bytes_that_unpack_to_many_are_refused(
    content: bytes, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "MOST_SKIPPED", 1 << 23)
    monkeypatch.setattr(files, "LARGEST_WHOLE", 1 << 24)
    monkeypatch.setattr(files, "MOST_BLANK_LINES", 1000)
    path = tmp_path / "rows.jsonl.gz"
    first = b"" if content.startswith(b"[") else rows("yes").encode() + b"\n"
    block = content * ((1 << 20) // len(content))
    with gzip.open(path, "wb", compresslevel=1) as file:
        file.write(first if content == b"\n" else b"")
        for _ in range(18):
            file.write(block)
    with pytest.raises(DataError, match=said):
        read_preferences(DataConfig(source=str(path)))


def test_zstd_is_unpacked_as_it_is_read(tmp_path: Path) -> None:
    import pyarrow as pa

    path = tmp_path / "rows.jsonl.zst"
    with pa.output_stream(str(path), compression="zstd") as stream:
        stream.write(rows("yes", "no").encode())
    report: Any = read_preferences(DataConfig(source=str(path))).report
    assert (report.pairs, report.bad_rows) == (1, 1)
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(DataError, match="damaged zstd"):
        read_preferences(DataConfig(source=str(path)))
