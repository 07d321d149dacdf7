"""A policy that an engine answers for: its own tokens, and proof that it is this policy.

The engine here is a model in this process, loaded by PEFT from the adapter that macpo wrote.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from macpo.agents import Policy
from macpo.config import SamplingConfig, TuningConfig
from macpo.errors import ModelError
from macpo.generation.decode import decode
from macpo.generation.protocol import Completion, Speaker
from macpo.generation.served.adapters import hand_over_adapter, hand_over_weights
from macpo.generation.served.canary import ANSWERS, MOST, Compared
from macpo.generation.served.engine import Adapter, Drawing, Drawn, Question
from macpo.generation.served.generator import ServedGenerator, completion_of
from macpo.policies import snapshot
from macpo.records import Response
from tests.generation.test_generators import PARTS, PROMPTS
from tests.workbench import Workbench, make_agent, randomise

GREEDY = SamplingConfig(temperature=0, max_new_tokens=12)
AGENT = make_agent(tuning=TuningConfig(rank=4, alpha=16))


class Mirror:
    """An engine that answers with a model of this process, and tells its log-probabilities."""

    def __init__(self, folder: str, dtype: torch.dtype = torch.float32) -> None:
        self.base = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()
        self.asked: list[dict[int, Question]] = []
        self.rests = 0

    def answer(
        self,
        questions: Mapping[int, Question],
        drawing: Drawing,
        stops: Sequence[int],
        adapter: Adapter | None,
        waiting: Callable[[], None],
    ) -> Iterator[tuple[int, Drawn]]:
        self.asked.append(dict(questions))
        waiting()
        model: Any = self.base
        if adapter is not None:
            model = PeftModel.from_pretrained(self.base, adapter.path).eval()
        completions = decode(
            model,
            [list(q.ids) for q in questions.values()],
            stop_ids=frozenset(stops),
            sampling=SamplingConfig(
                temperature=drawing.temperature, max_new_tokens=drawing.max_tokens
            ),
            seeds=[q.seed for q in questions.values()],
            memory_gib=0.1,
            pack_tokens=256,
        )
        found = list(zip(questions.items(), completions, strict=True))
        for (number, question), completion in reversed(found):
            ids = completion.token_ids
            told = logprobs(model, question.ids, ids) if question.told else None
            yield number, Drawn(ids, ids[-1] if completion.finished else None, told)
        if adapter is not None:
            self.base = model.unload()

    def rest(self) -> None:
        self.rests += 1

    def close(self) -> None:
        pass


def logprobs(model: Any, prompt: Sequence[int], answer: Sequence[int]) -> tuple[float, ...]:
    """Return the log-probability of each token of an answer, from one plain forward."""
    with torch.no_grad():
        logits = model(torch.tensor([[*prompt, *answer]])).logits[0].float()
    scores = torch.log_softmax(logits, -1)
    return tuple(float(scores[len(prompt) - 1 + i, token]) for i, token in enumerate(answer))


class Scene:
    """Two policies of an agent, and generators for them over a mirror."""

    def __init__(self, home: Path, scale: float = 0.3) -> None:
        self.home = home
        self.bench = Workbench(home)
        weights = snapshot(self.bench.train_from(AGENT).trainable)
        written = []
        for seed in range(2):
            randomise(weights, seed, scale=scale)
            written.append(self.bench.write_weights(f"weights-{seed}", weights))
        self.positive = Policy(AGENT, "positive", written[0])
        self.negative = Policy(AGENT, "negative", written[1])
        self.engine = Mirror(AGENT.base.location)
        self.counts: list[int] = []

    def adapter(self, policy: Policy) -> Adapter:
        return hand_over_adapter(self.bench.pool.load(policy), policy, self.home / "adapters")

    def generator(self, policy: Policy, adapter: Adapter | None) -> ServedGenerator:
        return ServedGenerator(
            Speaker(policy, "vllm 1+0.99"),
            self.bench.pool.load(policy),
            lambda length: (self.engine, adapter),
            128,
            self.counts.append,
        )

    def refused(self, policy: Policy, adapter: Adapter | None) -> str:
        with pytest.raises(ModelError) as raised:
            self.generator(policy, adapter).respond(PROMPTS, GREEDY, PARTS)
        return str(raised.value)


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return Scene(tmp_path)


def local(scene: Scene, policy: Policy) -> list[Response]:
    """Answer with the backend of this process."""
    from macpo.config import EngineConfig
    from macpo.generation.local import local_generator

    made = local_generator(Speaker(policy, "local 1"), scene.bench.pool, EngineConfig(), print)
    return made.respond(PROMPTS, GREEDY, PARTS)


def test_answers_are_those_of_the_local_backend_but_for_who_made_them(scene: Scene) -> None:
    for policy in (scene.positive, scene.negative):
        made = scene.generator(policy, scene.adapter(policy)).respond(PROMPTS, GREEDY, PARTS)

        own = local(scene, policy)
        assert {r.origin.backend for r in made} == {"vllm 1+0.99"}
        assert [replace(r, origin=o.origin) for r, o in zip(made, own, strict=True)] == own
    assert sum(scene.counts) == 2 * len(PROMPTS)


def test_the_first_answers_alone_are_compared_and_it_is_said(
    scene: Scene, caplog: pytest.LogCaptureFixture
) -> None:
    generator = scene.generator(scene.positive, scene.adapter(scene.positive))
    with caplog.at_level(logging.INFO, logger="macpo"):
        generator.respond(PROMPTS * 3, GREEDY, PARTS)
        generator.respond(PROMPTS, GREEDY, PARTS)
        generator.rest()

    first, second = scene.engine.asked
    assert [q.told for q in first.values()] == [True] * ANSWERS + [False] * 4
    assert not any(q.told for q in second.values())
    assert len([r for r in caplog.records if "agrees with the policy within" in r.message]) == 1
    assert scene.engine.rests == 1
    assert generator.respond([], GREEDY, PARTS) == []


def test_an_adapter_that_the_engine_ignored_stops_the_stage(scene: Scene) -> None:
    said = scene.refused(scene.positive, None)

    assert said.startswith("student/positive: vllm 1+0.99 does not answer as this policy: ")
    assert "off the bare base's: the adapter was ignored" in said


def test_an_adapter_is_missed_also_where_it_does_less_than_rounding_may(tmp_path: Path) -> None:
    faint = Scene(tmp_path, scale=0.003)
    generator = faint.generator(faint.positive, faint.adapter(faint.positive))
    generator.respond(PROMPTS, GREEDY, PARTS)

    said = faint.refused(faint.positive, None)

    off = float(said.partition(" tokens are ")[2].split()[0])
    assert off < MOST["float32"]
    assert "the adapter was ignored" in said


def test_the_adapter_of_another_policy_stops_the_stage(scene: Scene) -> None:
    said = scene.refused(scene.positive, scene.adapter(scene.negative))

    assert "nats off the policy's in the mean, where float32 explains 0.005" in said


def test_another_base_or_dtype_stops_the_stage(scene: Scene) -> None:
    adapter = scene.adapter(scene.positive)
    scene.engine = Mirror(AGENT.base.location, torch.bfloat16)
    assert "in another dtype" in scene.refused(scene.positive, adapter)

    scene.engine = Mirror(AGENT.base.location)
    with torch.no_grad():
        scene.engine.base.model.layers[0].mlp.down_proj.weight.mul_(1.5)
    assert "it answers with other weights" in scene.refused(scene.positive, adapter)


def test_an_engine_without_log_probabilities_is_not_believed(scene: Scene) -> None:
    class Silent(Mirror):
        def answer(self, questions: Any, *rest: Any) -> Iterator[tuple[int, Drawn]]:
            for number, drawn in super().answer(questions, *rest):
                yield number, replace(drawn, logprobs=None)

    scene.engine = Silent(AGENT.base.location)

    said = scene.refused(scene.positive, scene.adapter(scene.positive))
    assert "tells no log-probabilities of its answers" in said


def test_a_bare_base_answers_without_an_adapter(scene: Scene) -> None:
    bare = Policy(AGENT, "positive")

    made = scene.generator(bare, None).respond(PROMPTS, GREEDY, PARTS)

    assert [r.token_ids for r in made] == [r.token_ids for r in local(scene, bare)]


def test_equal_adapters_share_a_folder_and_others_do_not(scene: Scene) -> None:
    first, again, other = map(scene.adapter, (scene.positive, scene.positive, scene.negative))

    assert first == again
    assert first != other
    assert first.id != other.id
    assert sorted(f.name for f in Path(first.path).iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    assert len(list((scene.home / "adapters").iterdir())) == 2


def test_a_policy_that_trains_whole_is_handed_over_with_all_its_weights(tmp_path: Path) -> None:
    agent = make_agent(tuning=TuningConfig(kind="full"))
    bench = Workbench(tmp_path)
    weights = snapshot(bench.train_from(agent).trainable)
    randomise(weights, seed=0, scale=0.1)
    policy = Policy(agent, "positive", bench.write_weights("weights", weights))
    loaded = bench.pool.load(policy)

    folder = hand_over_weights(loaded, policy, tmp_path)

    engine = Mirror(str(folder))
    speaker = Speaker(policy, "vllm 1+0.99")
    made = ServedGenerator(speaker, loaded, lambda length: (engine, None), 128, print)
    assert len(made.respond(PROMPTS, GREEDY, PARTS)) == len(PROMPTS)
    bare = Mirror(agent.base.location)
    with pytest.raises(ModelError, match="it answers with other weights"):
        ServedGenerator(speaker, loaded, lambda length: (bare, None), 128, print).respond(
            PROMPTS, GREEDY, PARTS
        )


@pytest.mark.parametrize(
    ("ids", "reason", "expected"),
    [
        ((5, 6, 2), 2, Completion((5, 6, 2), finished=True)),
        ((5, 6), 2, Completion((5, 6, 2), finished=True)),  # the token that ended it left out
        ((5, 6, 2, 2), 2, Completion((5, 6, 2), finished=True)),
        ((5, 6, 3), None, Completion((5, 6, 3), finished=True)),  # at the limit, by a stop
        ((5, 6), None, Completion((5, 6), finished=False)),
        ((5, 6), 9, Completion((5, 6), finished=False)),  # no stop of ours
    ],
)
def test_the_token_that_ends_an_answer_is_always_the_last(
    ids: tuple[int, ...], reason: int | None, expected: Completion
) -> None:
    assert completion_of(Drawn(ids, reason, None), frozenset({2, 3})) == expected


@pytest.mark.parametrize(
    ("compared", "dtype", "fault"),
    [
        (Compared(90, 0.0001, 0.2), "float32", None),
        (Compared(90, 0.0001, 0.0001), "float32", None),  # an adapter that does nothing yet
        (Compared(90, 0.03, 0.04), "bfloat16", None),
        (Compared(90, 0.03, 0.029), "bfloat16", None),
        (Compared(90, 0.046, 0.03), "bfloat16", "the adapter was ignored"),
        (Compared(90, 0.03, None), "float32", "other weights"),
        (Compared(90, float("nan"), None), "float32", "other weights"),
    ],
)
def test_what_counts_as_far_off(compared: Compared, dtype: str, fault: str | None) -> None:
    said = compared.fault(dtype)

    assert said is None if fault is None else fault in (said or "")
