from __future__ import annotations

from pathlib import Path

import pytest

from macpo.errors import ModelError
from macpo.models.chat import Chat
from macpo.models.templates import BUILT_IN, read_template
from macpo.records import Message
from tests.tiny import CHATML, tiny_tokenizer

TALK = [
    Message("user", "Hi"),
    Message("assistant", "Hello."),
    Message("user", "Name a prime."),
]
VICUNA = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives "
    "helpful, detailed, and polite answers to the user's questions."
)
ALPACA = (
    "Below is an instruction that describes a task. Write a response that appropriately "
    "completes the request."
)


def rendered(template: str, messages: list[Message], kind: str = "unigram") -> str:
    tokenizer = tiny_tokenizer(kind)
    return str(
        tokenizer.apply_chat_template(
            [m.to_json() for m in messages],
            chat_template=template,
            tokenize=False,
            add_generation_prompt=True,
        )
    )


def test_vicuna_writes_the_published_form() -> None:
    assert rendered(read_template("vicuna"), TALK) == (
        f"<s>{VICUNA} USER: Hi ASSISTANT: Hello.</s>USER: Name a prime. ASSISTANT:"
    )


def test_alpaca_writes_the_published_form() -> None:
    assert rendered(read_template("alpaca"), TALK) == (
        f"<s>{ALPACA}\n\n### Instruction:\nHi\n\n### Response:\nHello.</s>\n\n"
        "### Instruction:\nName a prime.\n\n### Response:\n"
    )


def test_chatml_writes_what_a_chatml_tokenizer_writes() -> None:
    system = [Message("system", "Be brief."), *TALK]
    assert rendered(read_template("chatml"), system) == rendered(CHATML, system)


@pytest.mark.parametrize(("name", "opening"), [("vicuna", VICUNA), ("alpaca", ALPACA)])
def test_system_message_takes_the_place_of_the_opening(name: str, opening: str) -> None:
    text = rendered(read_template(name), [Message("system", "Be brief."), *TALK])
    assert text.startswith("<s>Be brief.")
    assert opening not in text


@pytest.mark.parametrize("name", BUILT_IN)
def test_tokenizer_without_bos_gets_none(name: str) -> None:
    text = rendered(read_template(name), TALK, kind="bpe")
    assert "None" not in text
    assert not text.startswith("<|endoftext|>")


def test_template_file_is_read(tmp_path: Path) -> None:
    file = tmp_path / "mine.jinja"
    file.write_text("{{ messages[0].content }}ü", encoding="utf-8")
    assert read_template(str(file)) == "{{ messages[0].content }}ü"


@pytest.mark.parametrize(
    ("name", "hint"),
    [("Vicunia", "did you mean vicuna?"), ("x", "built in: alpaca, chatml, vicuna")],
)
def test_unknown_template_names_the_built_in_ones(name: str, hint: str) -> None:
    with pytest.raises(ModelError) as caught:
        read_template(name)
    assert str(caught.value) == f"chat_template: {name!r} is neither a file nor built in; {hint}"


def test_unreadable_template_file_is_reported(tmp_path: Path) -> None:
    file = tmp_path / "mine.jinja"
    file.write_bytes(b"\xff\xfe\xff")
    with pytest.raises(ModelError, match=r"chat_template: .*mine\.jinja cannot be read"):
        read_template(str(file))


@pytest.mark.parametrize("name", BUILT_IN)
@pytest.mark.parametrize("kind", ["bpe", "llama3", "unigram", "llama", "wordpiece"])
def test_every_built_in_template_suits_every_tokenizer(name: str, kind: str) -> None:
    tokenizer = tiny_tokenizer(kind)
    tokenizer.chat_template = read_template(name)
    end = "<|im_end|>" if name == "chatml" else tokenizer.eos_token
    assert Chat(tokenizer).end_of_turn == tokenizer.convert_tokens_to_ids(end)
