"""What templates of well-known models do round an answer, imitated: each in a few lines of our own.

Of each is held: a prompt and an answer, joined, are the conversation as the template writes it;
answers end at the right tokens; a system text is read.
"""

from __future__ import annotations

import pytest

from macpo.errors import ModelError
from macpo.models.chat import Chat
from macpo.records import Message, Origin, Prompt, Response
from tests.tiny import tiny_tokenizer

EACH = "{% for m in messages %}"
ASKED = (Message("user", "A prime?"),)

QWEN3_HYBRID = (
    EACH + "<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' and loop.last %}<think>\n\n</think>\n\n{% endif %}"
    "{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}"
    "{% endif %}"
)
GLM4 = (
    "[gMASK]<sop>" + EACH + "<|{{ m.role }}|>\n{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
HARMONY = (
    EACH + "<|start|>{{ m.role }}{% if m.role == 'assistant' %}<|channel|>final{% endif %}"
    "<|message|>{{ m.content }}"
    "{% if m.role == 'assistant' and loop.last %}<|return|>{% else %}<|end|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant{% endif %}"
)
LLAMA3 = (
    "{% set today = strftime_now('%d %b %Y') %}"
    "<|start_header_id|>system<|end_header_id|>\n\nToday Date: {{ today }}\n\n"
    "{% if messages[0].role == 'system' %}{{ messages[0].content }}"
    "{% set messages = messages[1:] %}{% endif %}<|eot_id|>"
    + EACH
    + "<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n{{ m.content | trim }}<|eot_id|>"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
GEMMA = (
    "{% if messages[0].role == 'system' %}{{ raise_exception('No system turns') }}{% endif %}"
    + EACH
    + "<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n"
    "{{ m.content | trim }}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
MISTRAL = (
    EACH + "{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Roles must alternate') }}{% endif %}"
    "{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
    "{% else %} {{ m.content }}{{ eos_token }}{% endif %}{% endfor %}"
)
R1 = (
    EACH + "{% if m.role == 'user' %}<｜User｜>{{ m.content }}"
    "{% elif m.role == 'assistant' %}<｜Assistant｜>{{ m.content.split('</think>')[-1] }}"
    "<｜end▁of▁sentence｜>{% else %}{{ m.content }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<｜Assistant｜>{{ start }}{% endif %}"
)

KNOWN = {
    "Qwen3 hybrid": (QWEN3_HYBRID, ("<|im_start|>", "<|im_end|>"), "<|im_end|>"),
    "GLM-4": (GLM4, ("[gMASK]", "<sop>", "<|user|>", "<|assistant|>"), None),
    "harmony": (
        HARMONY,
        ("<|start|>", "<|end|>", "<|message|>", "<|channel|>", "<|return|>"),
        "<|return|>",
    ),
    "Llama 3": (
        LLAMA3,
        ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
        "<|eot_id|>",
    ),
    "Gemma": (GEMMA, ("<start_of_turn>", "<end_of_turn>"), "<end_of_turn>"),
    "Mistral": (MISTRAL, ("[INST]", "[/INST]"), None),
    "R1": (R1, ("<｜User｜>", "<｜Assistant｜>", "<｜end▁of▁sentence｜>"), "<｜end▁of▁sentence｜>"),
}
"""Template, its special tokens, and what it writes after an answer; None where that is EOS."""


def chat_of(name: str, **options: object) -> Chat:
    template, special, _ = KNOWN[name]
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": list(special)})
    tokenizer.chat_template = template
    return Chat(tokenizer, name=name, **options)  # type: ignore[arg-type]


def written(chat: Chat, messages: tuple[Message, ...], answer: str) -> str:
    """Return a prompt and an answer as they are trained on, as text."""
    prompt = Prompt(messages)
    ids = chat.encode_prompt(prompt, 512).ids
    ids += chat.encode_completion(Response(prompt.id, answer, Origin("dataset")), 512)
    return str(chat.tokenizer.decode(ids, skip_special_tokens=False))


@pytest.mark.parametrize("name", KNOWN)
def test_prompt_and_answer_are_what_the_template_writes(name: str) -> None:
    chat = chat_of(name)
    end = KNOWN[name][2] or chat.tokenizer.eos_token
    assert chat.tokenizer.convert_ids_to_tokens(chat.end_of_turn) == end
    conversation = [*ASKED, Message("assistant", "7")]
    whole = chat.template.render(conversation, "known", answer_next=False).rstrip()
    assert written(chat, ASKED, "7") == whole.removesuffix(end) + end


@pytest.mark.parametrize("name", KNOWN)
def test_system_text_reaches_the_model(name: str) -> None:
    chat = chat_of(name)
    assert chat.merges_system == (name in ("Gemma", "Mistral"))
    assert "Be brief." in written(chat, (Message("system", "Be brief."), *ASKED), "7")


def test_thought_that_servers_leave_empty_is_in_the_prompt_without_a_loss() -> None:
    for options in ({}, {"template_args": {"enable_thinking": False}}):
        chat = chat_of("Qwen3 hybrid", **options)
        prompt = chat.tokenizer.decode(chat.encode_prompt(Prompt(ASKED), 512).ids)
        assert prompt.endswith("assistant\n<think>\n\n</think>\n\n")


def test_thought_that_the_prompt_opens_is_refused() -> None:
    with pytest.raises(ModelError, match="starts the assistant's turn with '<think>"):
        chat_of("R1", template_args={"start": "<think>\n"})


def test_answers_end_where_the_next_turn_would_begin() -> None:
    tokenizer = chat_of("GLM-4").tokenizer
    user = tokenizer.convert_tokens_to_ids("<|user|>")
    chat = chat_of("GLM-4", stops=(user,))
    assert chat.stop_ids == {user, tokenizer.eos_token_id}
    assert chat.decode((*tokenizer.encode("\n7"), user)).strip() == "7"


def test_date_of_a_template_is_the_same_every_day() -> None:
    assert "Today Date: 26 Jul 2024" in written(chat_of("Llama 3"), ASKED, "7")
