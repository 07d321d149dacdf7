"""Who answers: backends by name, in keys and in origins; a factory of a test's own; dry trials."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import macpo
from macpo import backends
from macpo.agents import Policy, assemble_team
from macpo.answering import Respond
from macpo.backends import LOCAL, SCRIPTED, Backend, find_backend, register_backend
from macpo.config import EngineConfig, RunConfig, SamplingConfig, load_config
from macpo.data.stages import content_digest
from macpo.errors import ConfigError
from macpo.execution.local import LocalExecutor
from macpo.generation.protocol import Generator, Speaker
from macpo.generation.scripted import WORDS, ScriptedGenerator
from macpo.methods.build import build_plan
from macpo.policies import PolicyPool
from macpo.program import Plan
from macpo.records import PreferenceExample, Prompt, Response, read_responses
from macpo.registry import Registry
from macpo.store import RunLock, Store
from tests.runs import finished_stages, run_cli, write_config
from tests.test_resume import Quiet
from tests.workbench import CPU, Workbench, make_agent, make_prompt

PROMPTS = [make_prompt(f"Name {thing}.") for thing in ("a prime number", "a weak teacher", "one")]


@pytest.fixture
def table(monkeypatch: pytest.MonkeyPatch) -> None:
    """A table of backends of the test's own."""
    own: Registry[backends.Backend] = Registry("backend")
    for name, backend in backends.BACKENDS.all().items():
        own.register(name, backend)
    monkeypatch.setattr(backends, "BACKENDS", own)


def respond(bench: Workbench, **changes: Any) -> Respond:
    """Return a stage in which the bare student answers three prompts."""
    rows = [PreferenceExample(prompt, "x", "y").to_json() for prompt in PROMPTS]
    data = bench.write("data", {"student.jsonl": rows})
    policy = Policy(make_agent(), "positive")
    sampling = SamplingConfig(max_new_tokens=6)
    return replace(Respond("r", policy, data, "student", None, sampling, 0), **changes)


def answers(bench: Workbench, **changes: Any) -> list[Response]:
    return read_responses(bench.run(respond(bench, **changes)).path)


def said_by(text: str) -> Callable[..., Generator]:
    """Return a factory whose policies always say the same; their names come first."""

    def factory(
        speaker: Speaker,
        policies: PolicyPool,
        engine: EngineConfig,
        progress: Callable[[int], None],
    ) -> Generator:
        name = speaker.policy.name
        chat = policies.chat(speaker.policy.agent)

        def script(prompt: Prompt, seed: int) -> str:
            return f"{name} {text}"

        return ScriptedGenerator(script, name, speaker.policy.weights_key, "mine 1", chat, progress)

    return factory


def laid_out(config: RunConfig) -> Plan:
    """Return the plan of a config whose models and data are here."""
    team = assemble_team(config, config.dtype, fetch=True)
    return build_plan(config, team, content_digest(config.data, fetch=True))


def test_backend_and_its_version_stand_in_the_key_of_answers(tmp_path: Path) -> None:
    stage = respond(Workbench(tmp_path))

    assert stage.backend == LOCAL.label == "local 1"
    labels = ("local 1", "local 2", "scripted 1")
    assert len({replace(stage, backend=label).key for label in labels}) == 3


def test_an_upgrade_of_macpo_changes_no_artifact(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    benches = [Workbench(tmp_path / name) for name in ("before", "after")]
    before = benches[0].run(respond(benches[0]))
    version = macpo.__version__
    monkeypatch.setattr(macpo, "__version__", "99.1.2")
    after = benches[1].run(respond(benches[1]))

    assert after.digest == before.digest
    assert {r.origin.backend for r in read_responses(after.path)} == {"local 1 decode"}
    for file in before.path.rglob("*.jsonl"):
        assert version not in file.read_text(encoding="utf-8")


def test_scripted_answers_are_words_in_the_policys_own_tokens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: object) -> None:
        raise AssertionError("no weights are needed")

    monkeypatch.setattr("macpo.policies.load_model", refuse)
    bench = Workbench(tmp_path)
    told: list[tuple[int, int]] = []

    made = bench.run(
        respond(bench, backend=SCRIPTED.label, sampling=SamplingConfig(max_new_tokens=500)),
        progress=lambda done, total: told.append((done, total)),
    )

    chat = bench.pool.chat(make_agent())
    for response in read_responses(made.path):
        assert {word.lower().rstrip(".") for word in response.text.split()} <= {*WORDS.split()}
        assert response.token_ids[-1] == chat.end_of_turn
        assert chat.decode(response.token_ids) == response.text
        assert response.origin.backend == "scripted 1"
    assert made.meta["tokens"] > 3 * made.meta["responses"]
    assert told == [(3, 3)]


def test_scripted_answers_end_at_the_limit(tmp_path: Path) -> None:
    short = answers(Workbench(tmp_path), backend=SCRIPTED.label)

    assert [len(response.token_ids) for response in short] == [6, 6, 6]
    assert not any(response.finished for response in short)


def test_registered_backend_answers_for_a_config(table: None, tmp_path: Path) -> None:
    register_backend(Backend("mine", 3, said_by("hello")))
    config = load_config(write_config(tmp_path), ["generation.backend=mine", "rounds=1"])

    stages = [stage for stage in laid_out(config) if isinstance(stage, Respond)]

    assert {stage.backend for stage in stages} == {"mine 3"}
    bench = Workbench(tmp_path)
    first, *_ = answers(bench, backend="mine 3", sampling=SamplingConfig(max_new_tokens=60))
    assert first.text == "student/positive hello"


def test_a_name_is_registered_once(table: None) -> None:
    mine = Backend("mine", 1, "tests.nowhere:factory")
    register_backend(mine)
    register_backend(mine)

    with pytest.raises(ConfigError, match="backend 'local' is registered twice"):
        register_backend(replace(mine, name="local"))
    assert find_backend("mine") is mine


def test_unknown_backend_is_named_with_the_nearest(tmp_path: Path) -> None:
    config = write_config(tmp_path, generation={"backend": "script"})

    with pytest.raises(ConfigError) as caught:
        load_config(config)

    expected = "generation.backend: there is no backend 'script'; did you mean scripted?"
    assert expected in str(caught.value)


def test_pushing_away_is_refused_where_no_model_answers(tmp_path: Path) -> None:
    items = ["generation.backend=scripted", "method.negatives=decoding"]
    config = load_config(write_config(tmp_path), items)

    with pytest.raises(ConfigError, match="scripted cannot push answers away from another policy"):
        laid_out(config)


def test_a_factory_of_a_tests_own_answers_for_a_whole_run(tmp_path: Path) -> None:
    config = load_config(write_config(tmp_path), ["rounds=1", "sampling.max_new_tokens=60"])
    folder = tmp_path / "run"
    plan = laid_out(config)

    with RunLock(folder / "lock"):
        executor = LocalExecutor(
            folder, Store(folder / "store"), config.engine, CPU, Quiet(), said_by("hello")
        )
        artifacts = executor.execute(plan)

    assert artifacts.keys() == {stage.key for stage in plan}
    responding = [stage for stage in plan if isinstance(stage, Respond)]
    assert len(responding) > 10
    for stage in responding:
        texts = {response.text for response in read_responses(artifacts[stage.key].path)}
        assert texts == {f"{stage.policy.name} hello"}


def test_dry_trial_of_a_whole_run_says_what_it_is(tmp_path: Path) -> None:
    config = write_config(tmp_path, generation={"backend": "scripted"})

    result = run_cli(["run", config, "--out", tmp_path / "run"])

    assert result.code == 0
    told = " ".join(result.err.split())
    assert "DRY TRIAL: generation.backend is scripted, so every answer is random words" in told
    plan = laid_out(load_config(config))
    assert finished_stages(tmp_path / "run") == [stage.name for stage in plan]
    answering = list((tmp_path / "run" / "stages").rglob("*-answers"))
    assert len(answering) > 10
    heard: set[str] = set()
    for answered in answering:
        words = " ".join(response.text for response in read_responses(answered)).split()
        known = {word.lower().rstrip(".") for word in words} & {*WORDS.split()}
        assert known, answered  # the last word of an answer may be cut at the limit
        heard |= known
    assert len(heard) > 10
    card = (tmp_path / "run" / "final" / "student" / "README.md").read_text(encoding="utf-8")
    assert "**DRY TRIAL: generation.backend is scripted" in card
