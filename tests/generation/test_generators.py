from __future__ import annotations

import logging
from typing import Any

import pytest

from macpo.config import EngineConfig, SamplingConfig
from macpo.generation.local import LocalGenerator
from macpo.generation.protocol import Generator, prompt_seed
from macpo.generation.scripted import ScriptedGenerator, random_words
from macpo.models.chat import Chat, PromptTooLong
from macpo.records import Message, Prompt, Response
from macpo.seeds import stable_seed
from tests.generation.test_servable import biased_llama
from tests.tiny import tiny_model, tiny_tokenizer

SAMPLING = SamplingConfig(temperature=1.5, top_k=200, top_p=0.99, max_new_tokens=10)
QUESTIONS = ("Name a prime number.", "How do I bake bread?", "What is a weak teacher?", "Why?")
PROMPTS = [Prompt((Message("user", text),)) for text in QUESTIONS]
PARTS = (0, "round-1", "student", "answers")


def local(model: Any = None, **changes: Any) -> LocalGenerator:
    options: dict[str, Any] = {
        "policy": "student/positive",
        "weights": "abc",
        "prompt_tokens": 100,
        "engine": EngineConfig(decode_memory_gib=0.1, pack_tokens=128),
    }
    return LocalGenerator(model or tiny_model(), Chat(tiny_tokenizer()), **{**options, **changes})


def scripted() -> ScriptedGenerator:
    return ScriptedGenerator(random_words, "student/positive", "abc")


@pytest.fixture(params=[local, scripted], ids=["local", "scripted"])
def generator(request: pytest.FixtureRequest) -> Generator:
    return request.param()


def test_one_response_per_prompt_in_their_order(generator: Generator) -> None:
    responses = generator.respond(PROMPTS, SAMPLING, PARTS)

    assert [r.prompt_id for r in responses] == [p.id for p in PROMPTS]
    assert generator.respond([], SAMPLING, PARTS) == []


def test_an_answer_depends_on_its_prompt_and_the_seed_parts_alone(generator: Generator) -> None:
    together = generator.respond(PROMPTS, SAMPLING, PARTS)

    assert generator.respond(PROMPTS[::-1], SAMPLING, PARTS) == together[::-1]
    assert generator.respond(PROMPTS[2:3], SAMPLING, PARTS) == together[2:3]
    assert generator.respond([PROMPTS[0]] * 2, SAMPLING, PARTS) == together[:1] * 2
    elsewhere = generator.respond(PROMPTS, SAMPLING, (0, "round-2", "student", "answers"))
    assert [r.text for r in elsewhere] != [r.text for r in together]


def test_the_origin_says_how_to_answer_again(generator: Generator) -> None:
    response = generator.respond(PROMPTS[:1], SAMPLING, PARTS)[0]

    assert response.origin.policy == "student/positive"
    assert response.origin.weights == "abc"
    assert response.origin.sampling == SAMPLING.model_dump()
    assert response.origin.seed == stable_seed(*PARTS, PROMPTS[0].id)
    assert response.origin.seed == prompt_seed(PARTS, PROMPTS[0])
    assert response.origin.backend.partition(" ")[0] in ("local", "scripted")
    assert response.origin.backend.split()[1] == "1"
    assert Response.from_json(response.to_json()) == response


def test_token_ids_are_kept_as_sampled_and_belong_to_the_chats_tokenizer() -> None:
    backend = local()
    responses = backend.respond(PROMPTS, SAMPLING, PARTS)

    assert {r.tokenizer for r in responses} == {backend.chat.fingerprint}
    for response in responses:
        assert backend.chat.encode_completion(response, 100) == response.token_ids
        assert response.text == backend.chat.decode(response.token_ids)
        assert response.finished == (response.token_ids[-1] == backend.chat.end_of_turn)
        assert response.finished or len(response.token_ids) == SAMPLING.max_new_tokens


def test_an_answer_stops_at_the_end_of_turn_and_at_eos() -> None:
    backend = local()
    plain = backend.respond(PROMPTS[:1], SAMPLING, PARTS)[0].token_ids
    # the first token that the tokenizer knows (the model has more) and that differs from all before
    place = next(i for i in range(1, 9) if plain[i] < 390 and plain[i] not in plain[:i])
    assert {backend.chat.end_of_turn, backend.chat.tokenizer.eos_token_id}.isdisjoint(plain)

    backend.chat.tokenizer.eos_token = backend.chat.tokenizer.convert_ids_to_tokens(plain[place])
    by_eos = backend.respond(PROMPTS[:1], SAMPLING, PARTS)[0]
    backend = local()
    backend.chat.end_of_turn = plain[place]
    by_turn = backend.respond(PROMPTS[:1], SAMPLING, PARTS)[0]

    assert by_eos.token_ids == by_turn.token_ids == plain[: place + 1]
    assert by_eos.finished
    assert by_turn.finished


def test_prompts_over_the_limit_are_refused() -> None:
    with pytest.raises(PromptTooLong, match="over the limit of 5"):
        local(prompt_tokens=5).respond(PROMPTS, SAMPLING, PARTS)


def test_a_model_that_cannot_be_packed_answers_through_generate_and_says_so_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    backend = local(biased_llama())

    with caplog.at_level(logging.WARNING, logger="macpo.generation.local"):
        first = backend.respond(PROMPTS[:2], SAMPLING, PARTS)
        second = backend.respond(PROMPTS[2:], SAMPLING, PARTS)

    ours = [r for r in caplog.records if r.name.startswith("macpo")]
    assert [record.getMessage() for record in ours] == [
        "student/positive answers through transformers' generate, which is slower: a trial failed: "
        "Layer asks for ['tilt'], which no layout can honour"
    ]
    assert {r.origin.backend.split()[-1] for r in first + second} == {"generate"}
    assert {r.origin.backend.split()[-1] for r in local().respond(PROMPTS, SAMPLING, PARTS)} == {
        "decode"
    }


def test_progress_reports_answered_prompts() -> None:
    counts: list[int] = []

    local(progress=counts.append).respond(PROMPTS, SAMPLING, PARTS)

    assert sum(counts) == len(PROMPTS)


def test_a_script_sees_prompt_and_seed_and_its_answers_carry_no_ids() -> None:
    def script(prompt: Prompt, seed: int) -> str:
        return f"{prompt.messages[-1].content} {seed % 2}"

    responses = ScriptedGenerator(script, "t1/negative").respond(PROMPTS, SAMPLING, PARTS)

    assert [r.text[:-2] for r in responses] == list(QUESTIONS)
    assert [int(r.text[-1]) for r in responses] == [prompt_seed(PARTS, p) % 2 for p in PROMPTS]
    assert all(r.finished and not r.token_ids and not r.tokenizer for r in responses)


def test_random_words_are_pinned() -> None:
    assert random_words(PROMPTS[0], 7) == "Thank another no day maybe question time because."
