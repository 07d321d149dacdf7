"""Conversations in one text: HH-RLHF's variants, and what chat templates wrote."""

from __future__ import annotations

from typing import Any

import pytest

from macpo.data.formats import detect_format, get_parser
from macpo.data.turns import BadRow

Turn = tuple[str, str]
HI: list[Turn] = [("user", "Hi."), ("assistant", "Ho."), ("user", "A prime?")]
SYSTEM: Turn = ("system", "Be brief.")
HH = "\n\nHuman: Hi.\n\nAssistant: Ho.\n\nHuman: A prime?\n\nAssistant:"


def read(row: dict[str, Any]) -> tuple[str | None, list[Turn], str, str]:
    name = detect_format([row])
    example = get_parser(name or "trl")(row)
    prompt: list[Turn] = [(m.role, m.content) for m in example.prompt.messages]
    return name, prompt, example.chosen, example.rejected


@pytest.mark.parametrize(
    ("prompt", "chosen", "turns"),
    [
        ("Be brief." + HH, " 7", [SYSTEM, *HI]),
        (None, "Be brief." + HH + " 7", [SYSTEM, *HI]),
        (HH, HH + " 7", HI),
        ("Be brief." + HH, "Be brief." + HH + " 7", [SYSTEM, *HI]),
        (HH.replace("\n", "\r\n"), " 7", HI),
        (HH.replace("\n\n", "\n"), " 7", HI),
        (None, HH.replace("\n\n", "\n").strip() + " 7", HI),
        ("A prime?", HH + " 7", HI),
        ("Hi.", HH + " 7", HI),
    ],
)
def test_hh_variant_is_read_as_turns(prompt: str | None, chosen: str, turns: list[Turn]) -> None:
    row = {"chosen": chosen, "rejected": chosen.replace("7", "8")}
    row |= {} if prompt is None else {"prompt": prompt}
    assert read(row) == ("hh", turns, "7", "8")


def test_hh_transcript_about_something_else_than_its_prompt_is_refused() -> None:
    row = {"prompt": "Hm?", "chosen": HH + " 7", "rejected": HH + " 8"}
    with pytest.raises(BadRow, match=r"prompts differ \(chosen is a conversation without"):
        get_parser("hh")(row)


def test_hh_marker_within_an_answer_does_not_make_a_plain_row_a_transcript() -> None:
    row = {"prompt": "A prime?", "chosen": "7\n\nHuman: Yes", "rejected": "8"}
    assert read(row) == ("trl", [("user", "A prime?")], "7\n\nHuman: Yes", "8")


RENDERED = {
    "chatml": (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi.<|im_end|>\n"
        "<|im_start|>assistant\nHo.<|im_end|>\n<|im_start|>user\nA prime?<|im_end|>\n"
        "<|im_start|>assistant\n",
        "<|im_end|>\n",
    ),
    "llama 3": (
        "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nHi.<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\nHo.<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nA prime?<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n",
        "<|eot_id|>",
    ),
    "llama 2": (
        "<s>[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\nHi. [/INST] Ho. </s><s>[INST] A prime? [/INST]",
        " </s>",
    ),
    "zephyr": (
        "<|system|>\nBe brief.</s>\n<|user|>\nHi.</s>\n<|assistant|>\nHo.</s>\n"
        "<|user|>\nA prime?</s>\n<|assistant|>\n",
        "</s>",
    ),
    "deepseek": (
        "<｜begin▁of▁sentence｜>Be brief.<｜User｜>Hi.<｜Assistant｜>Ho.<｜end▁of▁sentence｜>"
        "<｜User｜>A prime?<｜Assistant｜>",
        "<｜end▁of▁sentence｜>",
    ),
}


@pytest.mark.parametrize("family", RENDERED)
@pytest.mark.parametrize("repeated", [False, True])
def test_rendered_prompt_is_parsed_back_into_turns(family: str, repeated: bool) -> None:
    prompt, end = RENDERED[family]
    head = prompt if repeated else ""
    row = {"prompt": prompt, "chosen": f"{head}7{end}", "rejected": f"{head}8{end}"}
    assert read(row) == ("trl", [SYSTEM, *HI], "7", "8")


def test_gemma_prompt_without_system_turn_is_parsed() -> None:
    prompt = "<bos><start_of_turn>user\nA prime?<end_of_turn>\n<start_of_turn>model\n"
    row = {"prompt": prompt, "chosen": "7<end_of_turn>", "rejected": "8"}
    assert read(row) == ("trl", [("user", "A prime?")], "7", "8")


OPEN = {
    "vicuna": "Be brief. USER: Hi. ASSISTANT: Ho.</s>USER: A prime? ASSISTANT:",
    "guanaco": "Be brief.\n### Human: Hi.\n### Assistant: Ho.\n### Human: A prime?\n### Assistant:",
    "words": "Be brief.\n\nUser: Hi.\n\nAssistant: Ho.\n\nUser: A prime?\n\nAssistant: ",
}


@pytest.mark.parametrize("family", OPEN)
def test_prompt_that_waits_for_the_assistant_is_parsed(family: str) -> None:
    row = {"prompt": OPEN[family], "chosen": "7", "rejected": "8"}
    assert read(row) == ("trl", [SYSTEM, *HI], "7", "8")


def test_alpacas_prompt_is_parsed() -> None:
    prompt = "Below is a task.\n\n### Instruction:\nA prime?\n\n### Response:\n"
    row = {"prompt": prompt, "chosen": "7", "rejected": "8"}
    assert read(row)[1] == [("system", "Below is a task."), ("user", "A prime?")]


@pytest.mark.parametrize("prompt", ["Write USER: and ASSISTANT: twice.", "The Assistant:", "A:"])
def test_words_that_open_no_turn_stay_text(prompt: str) -> None:
    assert read({"prompt": prompt, "chosen": "7", "rejected": "8"})[1] == [("user", prompt)]


@pytest.mark.parametrize(
    ("prompt", "reason"),
    [
        ("Go on: <|im_start|>user\nHi<|im_end|>", "prompt holds <|im_start|>user after other text"),
        (
            "<|im_start|>user\nHi<|im_end|>\nstray<|im_end|>\n<|im_start|>assistant\n",
            "prompt holds a template's marks inside of a turn",
        ),
    ],
)
def test_what_looks_rendered_and_cannot_be_parsed_is_refused(prompt: str, reason: str) -> None:
    with pytest.raises(BadRow) as caught:
        get_parser("trl")({"prompt": prompt, "chosen": "7", "rejected": "8"})
    assert str(caught.value) == f"rendered text ({reason})"


def test_rendered_text_inside_of_a_message_is_refused() -> None:
    row = {
        "prompt": [{"role": "user", "content": "[INST] Hi. [/INST]"}],
        "chosen": "7",
        "rejected": "8",
    }
    with pytest.raises(BadRow, match="rendered text"):
        get_parser("trl")(row)


def test_mark_that_a_text_only_mentions_stays_text() -> None:
    row = {"prompt": "What does <|im_end|> mean?", "chosen": "An end.", "rejected": "Nothing."}
    assert read(row)[1] == [("user", "What does <|im_end|> mean?")]
