"""What is told piece by piece is the answer, whichever decoder, backend and tokenizer."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import pytest
import torch

from macpo.config import SamplingConfig
from macpo.generation.decode import decode
from macpo.generation.fallback import decode_by_generate
from macpo.generation.protocol import Generator
from macpo.generation.scripted import ScriptedGenerator, random_words
from macpo.generation.streaming import Spoken, stream_answer
from macpo.models.chat import Chat
from macpo.records import Prompt, Response
from tests.generation.answers import STOPS, greedy, random_prompts
from tests.generation.test_generators import PARTS, PROMPTS, SAMPLING, local, scripted
from tests.generation.test_servable import biased_llama
from tests.tiny import tiny_model, tiny_tokenizer

TOKENIZERS = ("bpe", "unigram", "llama", "wordpiece")


class Whole:
    """A backend that cannot stream."""

    def respond(
        self, prompts: Sequence[Prompt], sampling: SamplingConfig, seed_parts: Sequence[str | int]
    ) -> list[Response]:
        return ScriptedGenerator(random_words, "a").respond(prompts, sampling, seed_parts)


@pytest.mark.parametrize(
    "generator",
    [local(), local(biased_llama()), scripted(), Whole()],
    ids=["decode", "generate", "scripted", "a backend that cannot"],
)
def test_pieces_are_the_answer_that_respond_gives(generator: Generator) -> None:
    for prompt in PROMPTS:
        pieces: list[str] = []
        response = stream_answer(generator, prompt, SAMPLING, PARTS, pieces.append)

        [alone] = generator.respond([prompt], SAMPLING, PARTS)
        assert response == alone
        assert response.origin == alone.origin
        assert "".join(pieces) == response.text
        assert all(pieces)


def test_pieces_come_while_the_answer_is_made() -> None:
    pieces: list[str] = []
    stream_answer(local(), PROMPTS[0], SAMPLING, PARTS, pieces.append)
    assert len(pieces) > 2


@pytest.mark.parametrize("decoder", [decode, decode_by_generate])
def test_every_token_is_heard_once_in_order_up_to_the_end(decoder: Any) -> None:
    """Rows that end early fall silent, though generate goes on to pad them."""
    prompts = random_prompts([3, 9, 5, 5, 12, 4])
    heard: dict[int, list[int]] = {i: [] for i in range(len(prompts))}

    answers = decoder(
        tiny_model(),
        prompts,
        stop_ids=STOPS,
        sampling=SamplingConfig(temperature=1.5, top_k=200, top_p=1.0, max_new_tokens=24),
        seeds=range(len(prompts)),
        memory_gib=1.0,
        pack_tokens=64,
        heard=lambda place, token: heard[place].append(token),
    )

    assert len({len(answer.token_ids) for answer in answers}) > 1
    assert [tuple(tokens) for tokens in heard.values()] == [a.token_ids for a in answers]


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_pieces_of_any_tokens_are_their_text(kind: str) -> None:
    """Random ids hold broken characters, blanks at the start and special tokens."""
    tokenizer = tiny_tokenizer(kind)
    chat = Chat(tokenizer)
    draw = random.Random(0)
    for _ in range(150):
        ids = [draw.randrange(len(tokenizer)) for _ in range(draw.randrange(1, 30))]
        pieces: list[str] = []
        spoken = Spoken(chat, pieces.append)
        for token in ids:
            spoken(token)
        spoken.end(chat.decode(ids))

        assert "".join(pieces) == chat.decode(ids)


def test_characters_of_several_tokens_are_told_whole() -> None:
    chat = Chat(tiny_tokenizer())
    ids = chat.tokenizer("naïve 日本 🙂", add_special_tokens=False)["input_ids"]
    assert len(ids) > len("naïve 日本 🙂")
    pieces: list[str] = []
    spoken = Spoken(chat, pieces.append)
    for token in ids:
        spoken(token)

    assert "".join(pieces) == "naïve 日本 🙂"
    assert not any("\N{REPLACEMENT CHARACTER}" in piece for piece in pieces)


def test_what_the_listener_raises_ends_the_answer_and_leaves_the_model_as_it_was() -> None:
    def stop(text: str) -> None:
        raise KeyboardInterrupt

    generator = local()
    generator.model.train()
    with pytest.raises(KeyboardInterrupt):
        stream_answer(generator, PROMPTS[0], greedy(8), PARTS, stop)

    assert torch.is_grad_enabled()
    assert generator.model.training
    assert generator.model.config._attn_implementation != "macpo"
