"""Each method runs from end to end, and shares what it has in common with the others."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from macpo.agents import assemble_team
from macpo.config import RunConfig, load_config
from macpo.config.methods import method_class
from macpo.methods.build import build_plan
from macpo.program import Plan
from macpo.records import Pair, read_examples, read_pairs
from macpo.runner import RunResult, run
from macpo.scoring import ScoreResponses
from macpo.training.stages import SFTOnPairs, TrainDPO
from tests.runs import write_config
from tests.test_resume import Quiet

METHODS: dict[str, tuple[dict[str, Any], int]] = {
    "macpo": ({}, 2),
    "no mutual positives": ({"positives": "own"}, 2),
    "no hard negatives": ({"negatives": "others"}, 2),
    "no contrast": ({"contrast": False}, 2),
    "simultaneous": ({"schedule": "simultaneous"}, 2),
    "two of a kind": ({"top_k": 2}, 2),
    "naive": ({"name": "naive-sft"}, 0),
    "confident loss": ({"name": "confident-loss"}, 0),
    "ceiling": ({"name": "ceiling"}, 1),
    "sft ceiling": ({"name": "ceiling", "dpo": False}, 0),
    "spin": ({"name": "spin"}, 2),
    "contrast filter": ({"filter": "contrast-mean", "samples": 2}, 2),
    "prompted": ({"negatives": "prompted"}, 2),
    "decoding": ({"negatives": "decoding"}, 2),
    "worst of n": ({"negatives": "worst-of-n", "negative_samples": 2}, 2),
    "self-rewarding": (
        {"name": "self-rewarding", "candidates": 2, "question": "{conversation} {answer}?"},
        2,
    ),
    "rlaif": ({"name": "rlaif", "question": "{conversation} A {first} B {second}?"}, 2),
    "graded rlaif": (
        {"name": "rlaif", "judging": "grade", "question": "{conversation} {answer}?"},
        2,
    ),
    "rlcd": ({"name": "rlcd"}, 1),
    "ws-dpo": ({"name": "ws-dpo"}, 1),
    "ws-dpo on the data's answers": ({"name": "ws-dpo", "answers": "data", "teachers": "first"}, 1),
    "cw-dpo": ({"name": "cw-dpo"}, 1),
    "wspo": ({"name": "wspo"}, 1),
    "cong": ({"name": "cong"}, 1),
    "cong without dpo": ({"name": "cong", "dpo": False}, 0),
    "weak-to-strong search": ({"name": "weak-to-strong-search", "samples": 2}, 1),
    "twin judges": ({"name": "twin-judges", "samples": 2}, 2),
}
"""A `method` section, and the last round that it has at `rounds: 2`."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models, data and a config file of tiny runs."""
    folder = tmp_path_factory.mktemp("methods")
    write_config(folder)
    return folder


def configured(folder: Path, method: dict[str, Any], *overrides: str) -> RunConfig:
    """Return the tiny config with a method, without the keys that the method has no use for."""
    raw = yaml.safe_load((folder / "tiny.yaml").read_text())
    kind = method_class(method)
    assert kind is not None
    kept = {key: value for key, value in raw.items() if key not in kind.unused}
    path = folder / "method.yaml"
    path.write_text(yaml.safe_dump({**kept, "method": method}))
    return load_config(path, overrides)


def laid_out(folder: Path, method: dict[str, Any], *overrides: str) -> Plan:
    config = configured(folder, method, *overrides)
    return build_plan(config, assemble_team(config, "float32", fetch=True), "digest of the data")


def by_name(plan: Plan) -> dict[str, str]:
    return {stage.name: stage.key for stage in plan}


@dataclass(frozen=True)
class Made:
    """A finished run of one of `METHODS`."""

    name: str
    result: RunResult

    def pairs(self, learner: str) -> list[Pair]:
        return list(read_pairs(self.result.folder / "stages" / "round-1" / learner / "pairs"))


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where all runs here keep their stages: what methods have in common is made once."""
    return tmp_path_factory.mktemp("store")


@pytest.fixture(scope="module")
def made(
    request: pytest.FixtureRequest,
    folder: Path,
    store: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Made:
    """A run of the method that a test is about, for all tests that are about it."""
    home = tmp_path_factory.mktemp("run")
    (home / "store").symlink_to(store)
    return Made(request.param, run(configured(folder, METHODS[request.param][0]), home, Quiet()))


@pytest.mark.parametrize("made", METHODS, indirect=True)
def test_method_runs_to_the_end_and_hands_out_the_student(made: Made) -> None:
    method, last = METHODS[made.name]
    result = made.result
    rounds = {row.round for row in result.metrics if row.policy == "student"}
    assert rounds == set(range(last + 1))
    assert (result.final["student"] / "adapter_model.safetensors").is_file()
    card = (result.final["student"] / "README.md").read_text()
    assert f"method {method.get('name', 'macpo')}, {last} rounds" in card


PAIRS: dict[str, dict[str, tuple[set[str], set[str]]]] = {
    "no mutual positives": {
        "student": ({"student/positive"}, {"student/negative"}),
        "weak-b": ({"weak-b/positive"}, {"weak-b/negative"}),
    },
    "no hard negatives": {
        "student": ({"weak-a/positive", "weak-b/positive"}, {"weak-a/negative"}),
        "weak-a": ({"student/positive"}, {"student/negative"}),
    },
    "spin": {"student": ({"weak-a/positive"}, {"student/positive"})},
    "decoding": {"weak-a": ({"student/positive"}, {"weak-a/negative"})},
    "prompted": {"weak-a": ({"student/positive"}, {"weak-a/positive"})},
    "worst of n": {"student": ({"weak-a/positive", "weak-b/positive"}, {"student/positive"})},
    "rlaif": {"student": ({"student/positive"}, {"student/positive"})},
    "ceiling": {"student": ({"dataset"}, {"dataset"})},
}
"""Whose answers are chosen and rejected in round 1: learner -> (chosen, rejected)."""


@pytest.mark.parametrize("made", PAIRS, indirect=True)
def test_pairs_come_from_where_the_method_says(made: Made) -> None:
    for learner, (chosen, rejected) in PAIRS[made.name].items():
        pairs = made.pairs(learner)
        assert pairs
        assert {pair.chosen.origin.policy for pair in pairs} <= chosen
        assert {pair.rejected.origin.policy for pair in pairs} == rejected


def test_naive_sft_is_a_part_of_macpo(folder: Path) -> None:
    assert keys(folder, {"name": "naive-sft"}) < keys(folder, {})


@pytest.mark.parametrize("name", ["no contrast", "no mutual positives", "two of a kind", "spin"])
def test_methods_share_their_beginning(folder: Path, name: str) -> None:
    shared = keys(folder, METHODS[name][0]) & keys(folder, {})
    beginning = keys(folder, {"name": "naive-sft"})
    assert shared >= beginning


def test_another_teacher_leaves_the_others_stages_alone(folder: Path) -> None:
    one = laid_out(folder, {}, f"teachers=[{{name: weak-a, model: {folder}/models/weak-a}}]")
    both = by_name(laid_out(folder, {}))
    for stage in one:
        if stage.name.startswith(("data", "init/")):
            assert both[stage.name] == stage.key


def test_only_so_many_teachers_take_part_as_are_used(folder: Path) -> None:
    alone = f"teachers=[{{name: weak-a, model: {folder}/models/weak-a}}]"
    assert by_name(laid_out(folder, {}, "use_teachers=1")) == by_name(laid_out(folder, {}, alone))
    assert by_name(laid_out(folder, {}, "use_teachers=2")) == by_name(laid_out(folder, {}))


def test_the_student_alone_is_measured_if_asked(folder: Path) -> None:
    plan = laid_out(folder, {}, "evaluation.teachers=false")
    assert [list(found) for found in plan.evaluations] == [["student"]] * 3
    assert not any(name.endswith("weak-a/evaluate") for name in by_name(plan))
    # What looks for signs of collapse has fewer to look at.
    kept = {name: key for name, key in by_name(plan).items() if not name.endswith("/collapse")}
    assert kept.items() < by_name(laid_out(folder, {})).items()


def test_without_contrast_training_reads_the_same_pairs_and_no_reference(folder: Path) -> None:
    plan = laid_out(folder, {"contrast": False})
    full = by_name(laid_out(folder, {}))
    trained = [stage for stage in plan if stage.name == "round-1/student/train"]
    assert isinstance(trained[0], SFTOnPairs)
    assert trained[0].pairs.key == full["round-1/student/pairs"]
    assert not any(isinstance(stage, TrainDPO) for stage in plan)
    assert not any(stage.name.endswith("/reference") for stage in plan)


@pytest.mark.parametrize(
    ("filter_policy", "reference", "passes"),
    [
        ("current", "previous", False),
        ("current", "initial", True),
        ("initial", "previous", True),
        ("initial", "initial", False),
        ("initial", "base", True),
    ],
)
def test_the_filters_scores_serve_as_reference_only_if_they_are_its(
    folder: Path, filter_policy: str, reference: str, passes: bool
) -> None:
    plan = laid_out(folder, {"filter_policy": filter_policy}, f"dpo.reference={reference}")
    stages = {stage.name: stage for stage in plan}
    initial = stages["init/student/positive"].key
    scores, trained = stages["round-2/student/filter-scores"], stages["round-2/student/train"]
    assert isinstance(scores, ScoreResponses)
    assert isinstance(trained, TrainDPO)
    assert (scores.policy.weights_key == initial) is (filter_policy == "initial")
    assert ("round-2/student/reference" in stages) is passes
    assert (trained.reference_scores is scores) is not passes


def test_simultaneous_teachers_do_not_wait_for_the_student(folder: Path) -> None:
    for schedule, waits in (("sequential", True), ("simultaneous", False)):
        plan = {s.name: s for s in laid_out(folder, {"schedule": schedule})}
        seen = upstream(plan["round-1/weak-a/train"])
        assert (plan["round-1/student/train"].key in seen) is waits


def test_spin_has_no_sft_term_and_the_policy_before_the_round_as_reference(folder: Path) -> None:
    plan = {stage.name: stage for stage in laid_out(folder, {"name": "spin"})}
    for t, before in ((1, "init/student/positive"), (2, "round-1/student/train")):
        trained = plan[f"round-{t}/student/train"]
        assert isinstance(trained, TrainDPO)
        assert trained.config.gamma == 0
        assert trained.start.weights is plan[before]
        assert plan[f"round-{t}/student/reference"].inputs["policy"] is plan[before]


def test_ceiling_learns_the_students_own_half(folder: Path, tmp_path: Path) -> None:
    result = run(configured(folder, {"name": "ceiling"}), tmp_path, Quiet())
    student = {e.prompt.id for e in read_examples(result.folder / "stages" / "data", "student")}
    pairs = read_pairs(result.folder / "stages" / "round-1" / "student" / "pairs")
    assert {pair.prompt.id for pair in pairs} == student


def keys(folder: Path, method: dict[str, Any]) -> set[str]:
    return set(by_name(laid_out(folder, method)).values())


def upstream(stage: Any) -> set[str]:
    """Return the keys of all that a stage stands on."""
    found = {stage.key}
    for other in stage.inputs.values():
        found |= upstream(other)
    return found
