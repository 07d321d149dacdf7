"""Other negatives: the worst of several answers, and answers under a bad system prompt."""

from __future__ import annotations

from pathlib import Path

from macpo.agents import Policy
from macpo.answering import Respond, under_system_prompt
from macpo.config import SamplingConfig
from macpo.negatives import WorstAnswers
from macpo.records import (
    CompletionScore,
    Message,
    PreferenceExample,
    Prompt,
    read_prompts,
    read_responses,
)
from tests.workbench import Workbench, make_agent, make_prompt, make_response

PROMPTS = [make_prompt("Name a prime."), make_prompt("Name a fruit.")]


def test_most_perplexing_answer_is_kept(tmp_path: Path) -> None:
    """Mean nats per token: Two 1, Three 3; Fig 2; the other answer to the second is empty."""
    bench = Workbench(tmp_path)
    first, second = PROMPTS
    given = {"Two": (first, 2.0, 2), "Three": (first, 3.0, 1), "Fig": (second, 6.0, 3)}
    a = bench.write_answers(
        "a", [(first, make_response(first, "Two")), (second, make_response(second, "Fig"))]
    )
    b = bench.write_answers(
        "b", [(first, make_response(first, "Three")), (second, make_response(second, ""))]
    )
    scores = [
        (make_response(p, text), CompletionScore(-nats, tokens))
        for text, (p, nats, tokens) in given.items()
    ]
    stage = WorstAnswers("worst", (a, b), bench.write_scores("scores", scores))
    made = bench.run(stage)
    assert [response.text for response in read_responses(made.path)] == ["Three", "Fig"]
    assert read_prompts(made.path) == PROMPTS
    assert made.meta == {"responses": 2, "empty": 0}


def test_system_prompt_stands_before_the_conversation() -> None:
    plain = make_prompt("Hi")
    assert under_system_prompt(plain, "") is plain
    assert under_system_prompt(plain, "Be bad.").messages == (
        Message("system", "Be bad."),
        Message("user", "Hi"),
    )
    own = Prompt((Message("system", "Be brief."), Message("user", "Hi")))
    assert under_system_prompt(own, "Be bad.").messages[0].content == "Be bad.\n\nBe brief."


def test_answers_under_a_system_prompt_belong_to_the_prompt_without_it(tmp_path: Path) -> None:
    bench = Workbench(tmp_path)
    examples = [PreferenceExample(prompt, "x", "y") for prompt in PROMPTS]
    data = bench.write_examples("data", "student", examples)
    sampling = SamplingConfig(max_new_tokens=4)
    policy = Policy(make_agent(), "positive")
    found = {}
    for system in ("", "Be bad."):
        stage = Respond("r", policy, data, "student", None, sampling, 0, system)
        responses = read_responses(bench.run(stage).path)
        assert [r.prompt_id for r in responses] == [p.id for p in PROMPTS]
        assert read_prompts(bench.run(stage).path) == PROMPTS
        found[system] = [r.token_ids for r in responses]
    assert found[""] != found["Be bad."]
