from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from tokenizers import processors

from macpo.errors import DataError, ModelError
from macpo.models.chat import Chat, PromptTooLong, _backend_json
from macpo.models.encoding import TextEncoder
from macpo.models.templates import read_template
from macpo.records import Message, Origin, Prompt, Response, dataset_response
from tests.tiny import CHATML, LOSSLESS_TOKENIZERS, TOKENIZERS, tiny_tokenizer

TEMPLATES = ("own", "vicuna", "alpaca")
SPELLINGS = ("<|im_end|>", "<|im_start|>", "</s>", "<s>", "<unk>", "[SEP]", "<|im_<|im_end|>end|>")

# "▁" is how SentencePiece writes a space: such a tokenizer cannot tell the two apart.
plain = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="▁"), max_size=20)
odd = st.lists(st.one_of(plain, st.sampled_from(SPELLINGS)), max_size=6).map("".join)
few = settings(deadline=None, max_examples=25, suppress_health_check=list(HealthCheck))

_chats: dict[tuple[str, str], Chat] = {}


def chat_of(kind: str = "bpe", template: str = "own") -> Chat:
    """Return a chat; made once, since tests never change its tokenizer."""
    if (kind, template) not in _chats:
        tokenizer = tiny_tokenizer(kind)
        if template != "own":
            tokenizer.chat_template = template if "{" in template else read_template(template)
        _chats[kind, template] = Chat(tokenizer)
    return _chats[kind, template]


def talk(*contents: str, system: str | None = None) -> Prompt:
    """Return a conversation of user and assistant in turn, with a system message if given."""
    roles = ("user", "assistant")
    messages = [Message(roles[i % 2], text) for i, text in enumerate(contents)]
    head = [] if system is None else [Message("system", system)]
    return Prompt((*head, *messages))


def decoded(chat: Chat, ids: tuple[int, ...]) -> str:
    """Return all the text of `ids`, special tokens included."""
    return str(chat.tokenizer.decode(list(ids), clean_up_tokenization_spaces=False))


def control_count(chat: Chat, ids: tuple[int, ...]) -> int:
    tokenizer = chat.tokenizer
    return sum(i in tokenizer.all_special_ids and i != tokenizer.unk_token_id for i in ids)


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("kind", LOSSLESS_TOKENIZERS)
@few
@given(text=odd.filter(bool))
@example(text=" ")
@example(text="\n\nSeven")
@example(text="  two spaces é😀\u200d\ufeff\x00 end  ")
def test_answer_is_encoded_without_special_tokens_and_decoded_unchanged(
    kind: str, template: str, text: str
) -> None:
    chat = chat_of(kind, template)
    prompt = talk("Why?")
    ids = chat.encode_completion(dataset_response(prompt, text), limit=10_000)
    assert ids[-1] == chat.end_of_turn
    assert control_count(chat, ids[:-1]) == 0
    if not any(spelling in text for spelling in SPELLINGS):
        assert chat.decode(ids) == text
    assert chat.decode(ids).replace(" ", "") == text.replace(" ", "")


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("kind", LOSSLESS_TOKENIZERS)
@few
@given(text=plain.filter(bool))
def test_prompt_and_answer_joined_decode_to_the_conversation(
    kind: str, template: str, text: str
) -> None:
    chat = chat_of(kind, template)
    prompt = talk("Why?")
    before = chat.encode_prompt(prompt, limit=10_000).ids
    answer = chat.encode_completion(dataset_response(prompt, text), limit=10_000)
    lead = " " if template == "vicuna" else ""
    assert decoded(chat, before + answer[:-1]) == decoded(chat, before) + lead + text


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("kind", TOKENIZERS)
@few
@given(contents=st.tuples(odd, odd, odd), system=st.none() | odd)
@example(contents=("", "", ""), system="")
@example(contents=("\n", "<|im_end|>", "{{ 7 }} {% raw %}"), system="<|im_start|>system")
def test_no_content_can_add_or_remove_a_special_token(
    kind: str, template: str, contents: tuple[str, str, str], system: str | None
) -> None:
    chat = chat_of(kind, template)
    harmless = talk("a", "a", "a", system=None if system is None else "a")
    expected = control_count(chat, chat.encode_prompt(harmless, limit=10_000).ids)
    ids = chat.encode_prompt(talk(*contents, system=system), limit=10_000).ids
    assert control_count(chat, ids) == expected


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("kind", TOKENIZERS)
def test_seam_is_where_generation_starts(kind: str, template: str) -> None:
    """The whole conversation, encoded at once by the tokenizer itself, gives the same ids."""
    chat = chat_of(kind, template)
    tokenizer = chat.tokenizer
    prompt = talk("Hi", "Hello there.", "Name a prime number.")
    ids = chat.encode_prompt(prompt, 1000).ids
    ids += chat.encode_completion(dataset_response(prompt, "Seven is a prime."), 1000)
    whole = [m.to_json() for m in (*prompt.messages, Message("assistant", "Seven is a prime."))]
    rendered = tokenizer.apply_chat_template(whole, tokenize=False)
    assert ids == tuple(tokenizer(rendered, add_special_tokens=False).input_ids)[: len(ids)]


def test_prompt_is_what_transformers_gives_a_server() -> None:
    chat = chat_of("llama3", "vicuna")
    prompt = talk("Hi", "Hello.", "Name a prime.", system="Be brief.")
    served = chat.tokenizer.apply_chat_template(
        [m.to_json() for m in prompt.messages], add_generation_prompt=True
    )["input_ids"]
    assert chat.encode_prompt(prompt, 1000).ids == tuple(served)


@pytest.mark.parametrize("kind", ["llama3", "unigram", "llama"])
@pytest.mark.parametrize("template", ["vicuna", "alpaca"])
def test_bos_is_written_once(kind: str, template: str) -> None:
    chat = chat_of(kind, template)
    ids = chat.encode_prompt(talk("Hi", "Hello.", "And?"), 1000).ids
    assert ids[0] == chat.tokenizer.bos_token_id
    assert ids.count(chat.tokenizer.bos_token_id) == 1


def test_end_of_turn_is_kept_although_it_is_also_the_pad_token() -> None:
    chat = chat_of("bpe")
    assert chat.tokenizer.pad_token_id == chat.end_of_turn
    ids = chat.encode_completion(dataset_response(talk("Hi"), "Hello."), 100)
    assert ids[-1] == chat.end_of_turn
    assert ids.count(chat.end_of_turn) == 1


def test_end_of_turn_comes_from_the_template_before_eos() -> None:
    tokenizer = tiny_tokenizer("unigram")  # ChatML, but its EOS is </s>
    assert Chat(tokenizer).end_of_turn == tokenizer.convert_tokens_to_ids("<|im_end|>")
    tokenizer.chat_template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    assert Chat(tokenizer).end_of_turn == tokenizer.eos_token_id


def test_unfinished_answer_has_no_end_of_turn() -> None:
    chat = chat_of()
    response = Response("p", "Seven", Origin("dataset"), finished=False)
    assert chat.end_of_turn not in chat.encode_completion(response, 100)


def test_answer_over_the_limit_loses_its_end() -> None:
    chat = chat_of()
    response = dataset_response(talk("Hi"), "Seven is a prime, eight is not.")
    whole = chat.encode_completion(response, 100)
    assert chat.encode_completion(response, 5) == whole[:5]
    assert chat.encode_completion(response, len(whole) - 1) == whole[:-1]
    assert chat.encode_completion(response, len(whole)) == whole


def test_sampled_ids_are_taken_as_they_are_by_the_same_tokenizer_only() -> None:
    chat, other = chat_of("bpe"), chat_of("llama3")
    spelled_out = tuple(chat.tokenizer.convert_tokens_to_ids(list("Seven")))  # not how it encodes
    response = Response(
        "p",
        "Seven",
        Origin("student/positive"),
        token_ids=(*spelled_out, chat.end_of_turn),
        tokenizer=chat.fingerprint,
    )
    assert chat.encode_completion(response, 100) == (*spelled_out, chat.end_of_turn)
    assert chat.encode_completion(response, 3) == spelled_out[:3]
    reencoded = other.encode_completion(response, 100)
    assert reencoded == other.encode_completion(dataset_response(talk("Hi"), "Seven"), 100)
    assert len(reencoded) < len(spelled_out) + 1


@pytest.mark.parametrize("finished", [True, False])
def test_empty_answer_is_refused(finished: bool) -> None:
    chat = chat_of(template="vicuna")
    with pytest.raises(DataError) as caught:
        chat.encode_completion(Response("p1", "", Origin("dataset"), finished=finished), 100)
    assert str(caught.value) == "answer to prompt p1: empty; leave the row out"


def test_sampled_answer_of_only_an_end_of_turn_is_refused() -> None:
    chat = chat_of()
    ids = (chat.end_of_turn,)
    response = Response("p1", "", Origin("s"), token_ids=ids, tokenizer=chat.fingerprint)
    with pytest.raises(DataError, match="empty"):
        chat.encode_completion(response, 100)


def test_oldest_turns_go_first_with_their_answers() -> None:
    chat = chat_of()
    whole = talk("one", "two", "three", "four", "five", system="Be brief.")
    full = chat.encode_prompt(whole, 1000)
    assert full.dropped_turns == 0

    shorter = chat.encode_prompt(whole, len(full.ids) - 1)
    assert shorter.dropped_turns == 2
    assert (
        shorter.ids
        == chat.encode_prompt(talk("three", "four", "five", system="Be brief."), 1000).ids
    )

    shortest = chat.encode_prompt(whole, len(shorter.ids) - 1)
    assert shortest.dropped_turns == 4
    assert shortest.ids == chat.encode_prompt(talk("five", system="Be brief."), 1000).ids


def test_prompt_of_exactly_the_limit_is_kept_whole() -> None:
    chat = chat_of()
    prompt = talk("one", "two", "three")
    length = len(chat.encode_prompt(prompt, 1000).ids)
    assert chat.encode_prompt(prompt, length).dropped_turns == 0


def test_conversation_that_starts_with_the_assistant_loses_that_turn_first() -> None:
    chat = chat_of()
    messages = (Message("assistant", "Welcome!"), Message("user", "Hi"))
    full = chat.encode_prompt(Prompt(messages), 1000)
    cut = chat.encode_prompt(Prompt(messages), len(full.ids) - 1)
    assert cut.dropped_turns == 1
    assert cut.ids == chat.encode_prompt(talk("Hi"), 1000).ids


def test_last_turn_alone_over_the_limit_is_refused_with_the_numbers() -> None:
    chat = chat_of()
    prompt = talk("one", "two", "three " * 50)
    alone = len(chat.encode_prompt(talk("three " * 50), 1000).ids)
    with pytest.raises(PromptTooLong) as caught:
        chat.encode_prompt(prompt, 20)
    assert (caught.value.tokens, caught.value.limit) == (alone, 20)
    assert str(caught.value) == (
        f"prompt {prompt.id}: {alone} tokens without any earlier turn, over the limit of 20; "
        "raise limits.prompt_tokens or leave it out"
    )
    assert isinstance(caught.value, DataError)


@pytest.mark.parametrize("messages", [(), (Message("user", "Hi"), Message("assistant", "Yes"))])
def test_prompt_without_a_question_is_refused(messages: tuple[Message, ...]) -> None:
    with pytest.raises(DataError, match="its last message is not the user's"):
        chat_of().encode_prompt(Prompt(messages), 100)


STRICT = (
    "{% for m in messages %}{% if m.role == 'system' %}"
    "{{ raise_exception('System role not supported') }}{% endif %}"
    "{{ '<|im_start|>' + m.role + ' ' + m.content + '<|im_end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant ' }}{% endif %}"
)
SKIPPING = (
    STRICT.replace("{{ raise_exception('System role not supported') }}", "")
    .replace("{% endif %}{{ '<|im_start|>' + m.role", "{% else %}{{ '<|im_start|>' + m.role")
    .replace("'<|im_end|>' }}{% endfor %}", "'<|im_end|>' }}{% endif %}{% endfor %}")
)


def with_template(template: str, kind: str = "bpe", **options: Any) -> Chat:
    tokenizer = tiny_tokenizer(kind)
    tokenizer.chat_template = template
    return Chat(tokenizer, **options)


def test_conversation_that_the_template_refuses_is_a_data_error() -> None:
    with pytest.raises(DataError, match=r"refuses this conversation \(System role not supported"):
        with_template(STRICT, system_turn="template").encode_prompt(
            talk("Hi", system="Be brief."), 100
        )


@pytest.mark.parametrize("template", [STRICT, SKIPPING])
def test_system_text_goes_before_the_first_user_turn_where_there_are_no_system_turns(
    template: str, caplog: pytest.LogCaptureFixture
) -> None:
    chat = with_template(template, name="small")
    assert chat.merges_system
    assert not chat.writes_system
    long = talk("Hi", "Ho", "A prime?", system="Be brief.")
    whole = chat.encode_prompt(long, 100)
    assert decoded(chat, whole.ids) == (
        "<|im_start|>user Be brief.\n\nHi<|im_end|><|im_start|>assistant Ho<|im_end|>"
        "<|im_start|>user A prime?<|im_end|><|im_start|>assistant "
    )
    cut = chat.encode_prompt(long, len(whole.ids) - 1)
    assert cut.dropped_turns == 2
    assert decoded(chat, cut.ids) == (
        "<|im_start|>user Be brief.\n\nA prime?<|im_end|><|im_start|>assistant "
    )
    said = [r.getMessage() for r in caplog.records if "no system turns" in r.getMessage()]
    assert said == [
        "small: its chat template has no system turns, so a system text goes in front of the "
        "first user turn"
    ]


def test_system_turns_of_the_template_stay_unless_merging_is_asked_for() -> None:
    prompt = talk("Hi", system="Be brief.")
    assert not with_template(CHATML).merges_system
    asked = with_template(CHATML, system_turn="merge")
    assert decoded(asked, asked.encode_prompt(prompt, 100).ids) == (
        "<|im_start|>user\nBe brief.\n\nHi<|im_end|>\n<|im_start|>assistant\n"
    )


EMPTY_THOUGHT = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}"
    "{% if m.role == 'assistant' %}{{ '<think>\n\n</think>\n\n' }}{% endif %}"
    "{{ m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' + (opened or '') }}{% endif %}"
)
CHANNEL = CHATML.replace(
    "message['role'] + '\n'",
    "message['role'] + (message['role'] == 'assistant' and '<final>' or '') + '\n'",
).replace("assistant\n", "assistant")
OPENED_THOUGHT = CHATML.replace("assistant\n'", "assistant\n' + (open and '<think>\n' or '')")


@pytest.mark.parametrize(
    ("template", "opening"),
    [
        (EMPTY_THOUGHT, "<|im_start|>assistant\n<think>\n\n</think>\n\n"),
        (CHANNEL, "<|im_start|>assistant<final>\n"),
        (CHATML.partition("{% if add_gen")[0], "<|im_start|>assistant\n"),
    ],
)
def test_what_the_template_writes_before_an_answer_is_part_of_the_prompt(
    template: str, opening: str
) -> None:
    chat = with_template(template)
    prompt = talk("Hi")
    assert decoded(chat, chat.encode_prompt(prompt, 100).ids).endswith(f"<|im_end|>\n{opening}")
    ids = chat.encode_completion(dataset_response(prompt, "Seven."), 100)
    assert decoded(chat, ids) == "Seven.<|im_end|>"


def test_template_that_starts_a_turn_unlike_an_answer_is_refused_unless_told_otherwise() -> None:
    thinking = OPENED_THOUGHT.replace("open and", "enable_thinking != false and")
    with pytest.raises(ModelError) as caught:
        with_template(thinking, name="thinker")
    assert str(caught.value).startswith(
        "thinker: the chat template starts the assistant's turn with '<think>\\n' and writes "
    )
    assert "set chat_template_args (such as enable_thinking: false)" in str(caught.value)
    told = with_template(thinking, template_args={"enable_thinking": False})
    assert decoded(told, told.encode_prompt(talk("Hi"), 100).ids).endswith("assistant\n")


def test_answer_ends_at_every_token_that_tokenizer_or_generation_config_name() -> None:
    tokenizer = tiny_tokenizer("llama3")
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|observation|>", "<|user|>"]})
    tokenizer.eos_token = "<|begin_of_text|>"
    named = tokenizer.convert_tokens_to_ids(
        ["<|im_end|>", "<|begin_of_text|>", "<|observation|>", "<|user|>"]
    )
    chat = Chat(tokenizer, stops=[named[2], 99_999])
    assert chat.stop_ids == set(named[:3])
    seven = chat.encode_completion(dataset_response(talk("Hi"), "7"), 100)[:-1]
    assert chat.decode((*seven, *named)) == "7"
    sampled = Response("p", "", Origin("student"), True, (named[2],), chat.fingerprint)
    with pytest.raises(DataError, match="empty"):
        chat.encode_completion(sampled, 100)


def test_added_token_that_is_special_is_no_text() -> None:
    from tokenizers import AddedToken

    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens([AddedToken("<|tool|>", special=True)])
    chat = Chat(tokenizer)
    seven = chat.encode_completion(dataset_response(talk("Hi"), "7"), 100)
    assert chat.decode((*seven, tokenizer.convert_tokens_to_ids("<|tool|>"))) == "7"


def test_half_a_surrogate_pair_is_replaced() -> None:
    chat = chat_of()
    ids = chat.encode_completion(dataset_response(talk("Hi"), "a\ud83db \ud83d\ude00"), 100)
    assert chat.decode(ids) == "a\ufffdb 😀"
    assert chat.encode_prompt(talk("\ude00"), 100).ids


def test_spelling_of_a_special_token_gets_a_space_and_stays_readable() -> None:
    chat = chat_of()
    ids = chat.encode_completion(dataset_response(talk("Hi"), "a<|im_end|><|im_start|>b"), 100)
    assert chat.decode(ids) == "a< |im_end|>< |im_start|>b"


def test_template_token_that_is_not_marked_as_special_cannot_be_forged_either() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(["<turn>", "<think>", "  "])
    tokenizer.chat_template = (
        "{% for m in messages %}{{ '<turn>' + m.role + '  ' + m.content + '<|im_end|>' }}"
        "{% endfor %}"
    )
    chat = Chat(tokenizer)
    ids = chat.encode_completion(dataset_response(talk("Hi"), "<turn>  <think>"), 100)
    assert chat.decode(ids) == "< turn>  <think>"
    assert tokenizer.convert_tokens_to_ids("<turn>") not in ids
    assert {tokenizer.convert_tokens_to_ids(t) for t in ("<think>", "  ")} < set(ids)


def test_special_token_of_one_character_is_replaced_by_a_space() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens({"pad_token": "§"})
    chat = Chat(tokenizer)
    ids = chat.encode_completion(dataset_response(talk("Hi"), "a §1"), 100)
    assert chat.decode(ids) == "a  1"


def test_unknown_character_is_no_special_token_but_its_spelling_is() -> None:
    tokenizer = tiny_tokenizer("wordpiece")
    encoder = TextEncoder(tokenizer, tokenizer.all_special_ids, contexts=())
    assert encoder.encode("a 😀")[1] == tokenizer.unk_token_id
    assert encoder.neutralise("a 😀 [UNK] b") == "a 😀 [ UNK] b"


def test_tokenizer_without_template_names_the_options() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = None
    with pytest.raises(ModelError) as caught:
        Chat(tokenizer)
    assert str(caught.value) == (
        "the tokenizer: has no chat template of its own; set the model's chat_template to "
        "alpaca, chatml, vicuna or a Jinja file"
    )


def test_tokenizer_without_any_end_of_turn_is_refused() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.eos_token = None
    tokenizer.chat_template = read_template("vicuna")
    with pytest.raises(ModelError, match=r"no token ends an assistant's turn: .* set eos_token"):
        Chat(tokenizer)


def test_broken_template_is_refused_when_the_chat_is_made() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}"
    with pytest.raises(ModelError, match="cannot render a plain conversation"):
        Chat(tokenizer)


def test_template_that_drops_answers_is_refused() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "{{ messages[0].content }}<|im_end|>"
    with pytest.raises(ModelError, match="leaves out the assistant's answers"):
        Chat(tokenizer)


def test_slow_tokenizer_is_refused() -> None:
    class Slow:
        is_fast = False

    with pytest.raises(ModelError, match=r"Slow has no tokenizer\.json"):
        Chat(Slow())


def test_template_cannot_read_the_clock() -> None:
    template = (
        "{% if strftime_now is defined %}{% set today = strftime_now('%d %b %Y') %}{% endif %}"
        "Today is {{ today }}, {{ strftime_now('%A %H:%M') }}.\n" + CHATML
    )
    chat = chat_of(template=template)
    ids = chat.encode_prompt(talk("Hi"), 100).ids
    assert decoded(chat, ids).startswith("Today is 26 Jul 2024, Friday 00:00.\n<|im_start|>user")


def test_template_is_sandboxed() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "{{ ''.__class__.__mro__ }}" + CHATML
    with pytest.raises(ModelError, match="cannot render a plain conversation"):
        Chat(tokenizer)


def test_fingerprint_is_stable_and_tells_tokenizers_and_templates_apart() -> None:
    fingerprints = {chat_of(k, t).fingerprint for k in TOKENIZERS for t in TEMPLATES}
    assert len(fingerprints) == len(TOKENIZERS) * len(TEMPLATES)

    tokenizer = tiny_tokenizer()
    assert Chat(tokenizer).fingerprint == chat_of().fingerprint
    backend = tokenizer.backend_tokenizer  # how rows are padded, cut and begun is not our business
    before = _backend_json(tokenizer)
    backend.enable_padding()
    backend.enable_truncation(2)
    backend.post_processor = processors.ByteLevel()
    assert _backend_json(tokenizer) == before
    assert Chat(tokenizer).fingerprint == chat_of().fingerprint
    tokenizer.add_tokens(["<new>"])
    assert Chat(tokenizer).fingerprint != chat_of().fingerprint


def test_fingerprint_survives_saving(tmp_path: Any) -> None:
    from transformers import AutoTokenizer

    for kind in TOKENIZERS:
        tiny_tokenizer(kind).save_pretrained(tmp_path / kind)
        again = AutoTokenizer.from_pretrained(tmp_path / kind)
        assert Chat(again).fingerprint == chat_of(kind).fingerprint


def test_what_is_remembered_is_what_is_encoded_anew() -> None:
    used, talks = Chat(tiny_tokenizer()), [talk("one", "two", "three"), talk("one", "two", "four")]
    whole = len(used.encode_prompt(talks[0], 1000).ids)
    for _ in range(2):
        for prompt in talks:
            for limit in (1000, whole - 1):
                fresh = Chat(tiny_tokenizer())
                assert used.encode_prompt(prompt, limit) == fresh.encode_prompt(prompt, limit)
                for finished in (True, False):
                    answer = Response(prompt.id, "Seven.", Origin("dataset"), finished=finished)
                    for cut in (2, 100):
                        expected = fresh.encode_completion(answer, cut)
                        assert used.encode_completion(answer, cut) == expected


def test_a_prompt_and_an_answer_are_encoded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    chat, prompt = Chat(tiny_tokenizer()), talk("Why?")
    calls: list[str] = []
    encode = TextEncoder.encode

    def counted(self: TextEncoder, text: str) -> tuple[int, ...]:
        calls.append(text)
        return encode(self, text)

    monkeypatch.setattr(TextEncoder, "encode", counted)
    for policy in ("dataset", "student/positive"):
        chat.encode_prompt(talk("Why?"), 100)
        chat.encode_completion(Response(prompt.id, "Because.", Origin(policy)), 100)
    assert len(calls) == 2


def test_an_error_names_its_own_prompt_every_time() -> None:
    chat = Chat(tiny_tokenizer())
    for _ in range(2):
        for prompt in (talk("A long question"), talk("Another long question")):
            with pytest.raises(PromptTooLong, match=f"prompt {prompt.id}: "):
                chat.encode_prompt(prompt, 3)
        for name in ("p1", "p2"):
            with pytest.raises(DataError, match=f"answer to prompt {name}: empty"):
                chat.encode_completion(Response(name, "", Origin("dataset")), 100)
