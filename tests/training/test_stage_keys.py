"""Which options change which stage's key: what changed is run again, and nothing else."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from macpo.agents import Agent, Policy, Team
from macpo.config import DPOConfig, RunConfig, TuningConfig
from macpo.methods.build import build_plan
from macpo.stage import Stage
from tests.methods.wiring import lay_out
from tests.workbench import Written, make_agent

CONFIG: dict[str, Any] = {
    "name": "keys",
    "rounds": 1,
    "data": {"source": "data.jsonl"},
    "student": {"model": "student"},
    "teachers": [{"name": "a", "model": "teacher"}],
}


def keys(agent_changes: dict[str, Any] | None = None, **changes: Any) -> dict[str, str]:
    """Return the keys of a run's stages by name, for a config with some sections changed."""
    config = RunConfig.model_validate({**CONFIG, **changes})

    def agent(name: str) -> Agent:
        made = make_agent(
            Path(name),
            name=name,
            tuning=config.tuning,
            limits=config.limits,
            sft=config.sft,
            negative_sft=config.negative_sft,
            dpo=config.dpo,
        )
        return replace(made, **(agent_changes or {}))

    plan = build_plan(config, Team(agent("student"), (agent("a"),)), "digest of the data")
    return {stage.name: stage.key for stage in plan}


BASE = keys()
DPO = {"round-1/student/train", "round-1/a/train"}
SFT = {"init/a/positive", "init/a/negative", "init/student/positive", "init/student/negative"}


def changed(**changes: Any) -> set[str]:
    other = keys(**changes)
    return {name for name, key in other.items() if BASE.get(name) != key}


def test_the_same_config_gives_the_same_keys() -> None:
    assert keys() == BASE
    assert BASE.keys() >= SFT | DPO


def test_options_that_came_later_are_no_part_of_a_key_until_they_are_used() -> None:
    """What describes a round in its key is what did before there were other losses."""
    said = {
        "loss": "sigmoid",
        "label_smoothing": 0,
        "start": "previous",
        "anchor": 0,
        "end_of_turn": "keep",
    }
    assert DPOConfig().identity() == {
        "epochs": 1,
        "learning_rate": 1e-5,
        "batch_size": 16,
        "warmup_ratio": 0,
        "weight_decay": 0,
        "max_grad_norm": 1,
        "beta": 0.1,
        "gamma": 0.2,
        "reference": "previous",
    }
    assert not changed(dpo=said)
    used = DPOConfig(loss="ipo").identity()
    assert (used["loss"], "label_smoothing" in used) == ("ipo", False)


@pytest.mark.parametrize(
    "option",
    [
        {"beta": 0.2},
        {"gamma": 0.0},
        {"learning_rate": 1e-4},
        {"loss": "ipo"},
        {"label_smoothing": 0.1},
        {"anchor": 0.2},
        {"end_of_turn": "mask"},
    ],
)
def test_dpo_options_change_the_rounds_and_keep_the_initialisation(option: dict[str, Any]) -> None:
    found = changed(dpo=option)
    assert found >= DPO
    assert not found & SFT
    assert all(name.startswith("round-1/") for name in found)
    # What the student is taught in this round does not depend on how it will be trained.
    assert "round-1/student/pairs" not in found


def test_dpo_key_of_the_student_follows_beta_alone_and_the_teachers_follow_the_student() -> None:
    found = changed(dpo={"beta": 0.2})
    first = min(DPO, key=list(BASE).index)
    assert first == "round-1/student/train"
    after = {name for name in BASE if list(BASE).index(name) >= list(BASE).index(first)}
    assert found == after - {"round-1/student/pair-metrics"}  # of pairs that were there before


def test_sft_options_change_everything_after_the_data() -> None:
    assert changed(sft={"epochs": 1}) == BASE.keys() - {"data"}


@pytest.mark.parametrize(
    "option",
    [
        {"pack_tokens": 64},
        {"checkpoint_steps": 1},
        {"decode_memory_gib": 0.5},
        {"checkpoint_activations": True},
    ],
)
def test_layout_of_the_work_changes_no_key(option: dict[str, Any]) -> None:
    assert not changed(engine=option)


def test_more_rounds_keep_those_that_were_run() -> None:
    assert all(not name.startswith(("init", "round-1")) for name in changed(rounds=2))


@pytest.mark.parametrize(
    "change",
    [
        {"dtype": "bfloat16"},
        {"tuning": TuningConfig(rank=4)},
        {"chat_template": "vicuna"},
        {"base": replace(make_agent(Path("student")).base, digest="other weights")},
    ],
)
def test_what_an_agent_is_changes_its_training(change: dict[str, Any]) -> None:
    assert changed(agent_changes=change) >= SFT | DPO


def test_model_without_a_digest_counts_by_its_name() -> None:
    agent = make_agent(Path("student"))
    unresolved = replace(agent, base=replace(agent.base, digest=None, name="org/model"))
    assert unresolved.identity()["base"] == "unresolved:org/model"


def test_template_file_counts_by_its_content(tmp_path: Path) -> None:
    one, two = tmp_path / "one.jinja", tmp_path / "two.jinja"
    one.write_text("{{ messages }}")
    two.write_text("{{ messages }}")
    identities = [make_agent(Path("m"), chat_template=str(p)).identity() for p in (one, two)]
    assert identities[0] == identities[1]
    two.write_text("{{ messages }}!")
    assert make_agent(Path("m"), chat_template=str(two)).identity() != identities[0]


def test_name_is_for_readers_and_inputs_are_found() -> None:
    start = Written("weights", "weights")
    policy = Policy(make_agent(Path("student")), "positive", start)

    def train(name: str, scores: Stage, start: Policy = policy) -> Stage:
        from macpo.training.stages import TrainDPO

        return TrainDPO(name, start, Written("p", "p"), scores, start.agent.dpo, seed=0)

    stage = train("here", Written("s", "scores"))
    assert stage.key == train("there", Written("s, renamed", "scores")).key
    assert stage.key != train("here", Written("s", "other scores")).key
    assert stage.key != train("here", Written("s", "scores"), replace(policy, role="negative")).key
    assert {name: found.key for name, found in stage.inputs.items()} == {
        "start": start.key,
        "pairs": Written("p", "p").key,
        "reference_scores": Written("s", "scores").key,
    }


def test_what_no_key_can_describe_is_refused() -> None:
    stage = Written("x", Path("x"))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"^label: a PosixPath cannot be part of a stage's key$"):
        _ = stage.key


KEYED = {
    "Respond": {
        *("policy", "data", "split", "limit", "sampling", "seed", "system", "away_from"),
        *("strength", "backend"),
    },
    "ScoreResponses": {"policy", "answers"},
    "ScorePairs": {"policy", "pairs"},
    "FilteredPairs": {
        *("positives", "negatives", "scores", "top_k", "filter", "negative_scores"),
    },
    "DirectPairs": {"positives", "negatives"},
    "TrainDPO": {"start", "pairs", "reference_scores", "config", "seed"},
    "MeasurePairs": {"pairs"},
}
"""What is in the keys of a run without any option."""


def test_options_that_came_later_are_in_no_key_until_they_are_set() -> None:
    plan = lay_out()
    found = {type(stage).__name__: set(stage.identity) for stage in plan}
    assert {kind: names for kind, names in found.items() if kind in KEYED} == KEYED
    (train,) = (stage for stage in plan if stage.name == "round-1/student/train")
    assert set(train.identity["config"]) == {
        *("epochs", "learning_rate", "batch_size", "warmup_ratio", "weight_decay"),
        *("max_grad_norm", "beta", "gamma", "reference"),
    }
