"""The answering stage: which policy answers, pushed away from which, on which prompts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from macpo import answering
from macpo.agents import Policy
from macpo.answering import Respond
from macpo.config import SamplingConfig, TuningConfig
from macpo.policies import snapshot
from macpo.records import PreferenceExample, Prompt, Response, read_prompts, read_responses
from macpo.stage import Stage
from tests.workbench import Workbench, make_agent, make_prompt, randomise

GREEDY = SamplingConfig(temperature=0, max_new_tokens=6)
PROMPTS = [make_prompt(f"Name a prime greater than {i}.") for i in range(5)]
AGENT = make_agent(tuning=TuningConfig(rank=4, alpha=16))


class Scene:
    """A student with two policies that differ, and prompts for them."""

    def __init__(self, folder: Path) -> None:
        self.bench = Workbench(folder)
        weights = snapshot(self.bench.train_from(AGENT).trainable)
        written: dict[str, Stage] = {}
        for seed, role in enumerate(("positive", "negative")):
            randomise(weights, seed, scale=0.5)
            written[role] = self.bench.write_weights(role, weights)
        self.positive = Policy(AGENT, "positive", written["positive"])
        self.negative = Policy(AGENT, "negative", written["negative"])
        examples = [PreferenceExample(prompt, "Good.", "Bad.") for prompt in PROMPTS]
        self.data = self.bench.write_examples("data", "student", examples)

    def answers(
        self, policy: Policy, away_from: Policy | None = None, plausible: float = 0.0
    ) -> list[Response]:
        strength = 0.0 if away_from is None else 2.0
        stage = Respond("r", policy, self.data, "student", None, GREEDY, 0, "", away_from, strength)
        stage = replace(stage, plausible=plausible)
        return list(read_responses(self.bench.run(stage).path))

    def logits(self, policy: Policy, ids: list[int]) -> torch.Tensor:
        loaded = self.bench.pool.load(policy)
        with torch.no_grad():
            return torch.as_tensor(loaded.model(input_ids=torch.tensor([ids])).logits[0, -1])

    def pushed(self, prompt: Prompt, plausible: float = 0.0) -> tuple[int, ...]:
        """Answer greedily by the negative's logits plus twice their lead over the positive's.

        Of the tokens that the negative finds at least `plausible` times as probable as its first.
        """
        chat = self.bench.pool.chat(AGENT)
        start = list(chat.encode_prompt(prompt, 512).ids)
        ids: list[int] = []
        while len(ids) < GREEDY.max_new_tokens and chat.end_of_turn not in ids:
            bad, good = (self.logits(p, start + ids) for p in (self.negative, self.positive))
            kept = bad.softmax(-1) >= plausible * bad.softmax(-1).max()
            ids.append(int((bad + 2.0 * (bad - good)).masked_fill(~kept, -torch.inf).argmax()))
        return tuple(ids)


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return Scene(tmp_path)


def test_negative_policy_is_pushed_away_from_the_positive_one(scene: Scene) -> None:
    """As a plain loop over both policies has it: logits become a + 2 (a - b)."""
    answers = scene.answers(scene.negative, scene.positive)
    assert [r.token_ids for r in answers] == [scene.pushed(prompt) for prompt in PROMPTS]
    assert answers != scene.answers(scene.negative)


def test_implausible_tokens_do_not_come_of_a_push(scene: Scene) -> None:
    answers = scene.answers(scene.negative, scene.positive, plausible=0.7)
    assert [r.token_ids for r in answers] == [scene.pushed(prompt, 0.7) for prompt in PROMPTS]
    assert answers != scene.answers(scene.negative, scene.positive)
    assert answers != scene.answers(scene.negative)


def test_key_of_an_answer_without_that_stays(scene: Scene) -> None:
    stage = Respond("r", scene.negative, scene.data, "student", None, GREEDY, 0)
    assert "plausible" not in stage.identity
    assert replace(stage, plausible=0.1).key != stage.key


def test_answers_are_the_policys_own_and_say_so(scene: Scene) -> None:
    good, bad = scene.answers(scene.positive), scene.answers(scene.negative)
    assert [r.token_ids for r in good] != [r.token_ids for r in bad]
    assert {(r.origin.policy, r.origin.weights) for r in bad} == {
        ("student/negative", scene.negative.weights_key)
    }


def test_limit_takes_the_first_prompts(scene: Scene) -> None:
    stage = Respond("r", scene.positive, scene.data, "student", 2, GREEDY, 0)
    made = scene.bench.run(stage)
    assert read_prompts(made.path) == PROMPTS[:2]
    assert read_responses(made.path) == scene.answers(scene.positive)[:2]


def test_seed_decides_what_is_sampled(scene: Scene) -> None:
    sampling = SamplingConfig(temperature=1.5, top_p=1.0, max_new_tokens=6)

    def sample(seed: int) -> list[str]:
        stage = Respond("r", scene.positive, scene.data, "student", None, sampling, seed)
        return [r.text for r in read_responses(scene.bench.run(stage).path)]

    assert sample(0) != sample(1)


def test_prompts_are_answered_in_shards_as_all_at_once(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    whole = scene.answers(scene.positive)
    monkeypatch.setattr(answering, "SHARD", 2)
    assert Scene(tmp_path / "shards").answers(scene.positive) == whole
