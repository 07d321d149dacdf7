"""Randomness and options of a laid-out run: what draws follows the run's seed by one of its own."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from macpo.program import Plan
from tests.methods.test_wiring_macpo import OPTIONS
from tests.methods.test_wiring_others import METHODS
from tests.methods.wiring import difference, label, lay_out, read, table

PROGRAMS: dict[str, dict[str, Any]] = {
    "macpo": {},
    **{name: method for name, (method, _) in OPTIONS.items()},
    **{name: method for name, (method, _, _) in METHODS.items()},
}
"""Every method, and every option of MACPO."""


def seeds(plan: Plan) -> dict[str, int]:
    """Return the seeds of the stages that have one."""
    return {label(stage): stage.seed for stage in plan if draws(stage)}


def draws(stage: Any) -> bool:
    """Tell whether a stage has a seed; a filter has one if it draws lots."""
    return getattr(stage, "seed", None) is not None


@pytest.mark.parametrize("name", PROGRAMS)
def test_another_seed_draws_everything_anew_and_changes_nothing_else(name: str) -> None:
    one, other = (lay_out(PROGRAMS[name], seed=seed) for seed in (1, 2))
    assert table(one) == table(other)
    before, after = seeds(one), seeds(other)
    assert before.keys() == after.keys()
    assert all(before[name] != seed for name, seed in after.items())
    keys = {stage.key for stage in one}
    assert not keys & {stage.key for stage in other}  # all of it stands on the split


def test_what_several_methods_do_alike_draws_alike() -> None:
    """Differences between methods are then the methods', and not luck."""
    known: dict[str, int] = {}
    for method in PROGRAMS.values():
        for name, seed in seeds(lay_out(method)).items():
            assert known.setdefault(name, seed) == seed, name
    assert {"data", "init/student/positive", "round-2/student/train"} <= known.keys()


def test_what_draws_says_so() -> None:
    """Of the stages of all programs, these have a seed, and so a key that follows the run's."""
    kinds = {
        (type(stage).__name__, draws(stage))
        for method in PROGRAMS.values()
        for stage in lay_out(method)
    }
    training = {"SFTOnDataset", "SFTOnAnswers", "SFTOnPairs", "ConfidentSFT", "TrainDPO"}
    training |= {"TrainWeightedDPO", "FitLogRatios"}
    always = training | {"SplitData", "Respond"}
    assert {name for name, draw in kinds if draw} == always | {"FilteredPairs"}
    assert not {name for name, draw in kinds if not draw} & always


def test_a_seed_is_part_of_its_stages_key() -> None:
    for stage in lay_out():
        again: Any = replace(stage)
        assert again.key == stage.key
        if draws(again):
            assert replace(again, seed=again.seed + 1).key != stage.key


@pytest.mark.parametrize("name", PROGRAMS)
def test_answers_are_sampled_as_the_config_says(name: str) -> None:
    plan = lay_out(PROGRAMS[name], sampling={"temperature": 0.3, "max_new_tokens": 17})
    found = [stage.sampling for stage in plan if hasattr(stage, "sampling")]
    assert {(s.temperature, s.max_new_tokens) for s in found} == {(0.3, 17)}


@pytest.mark.parametrize("name", PROGRAMS)
def test_an_agents_own_sections_hold_for_it_alone(name: str) -> None:
    """`table` compares each training stage with its agent's sections, so the rows stay equal."""
    sections = {
        "sft": {"learning_rate": 4e-5, "epochs": 7},
        "negative_sft": {"learning_rate": 5e-5, "epochs": 8},
        "dpo": {"learning_rate": 6e-5, "beta": 0.9},
    }
    plan = lay_out(PROGRAMS[name], own={"a": sections})
    assert table(plan) == table(lay_out(PROGRAMS[name]))
    trained: list[Any] = [stage for stage in plan if hasattr(stage, "start")]
    rates = {(stage.start.agent.name, stage.config.learning_rate) for stage in trained}
    assert ("a", 4e-5) in rates
    assert {rate for agent, rate in rates if agent == "a"} <= {4e-5, 5e-5, 6e-5}
    assert {rate for agent, rate in rates if agent != "a"} <= {1e-5, 2e-5, 3e-5}


def test_answers_are_measured_only_if_asked() -> None:
    rows = table(lay_out(evaluation={"answers": 0}))
    assert not any(name.endswith("/test-answers") for name in rows)
    assert not any(name.endswith("/answer-metrics") for name in rows)
    assert rows["round-1/a/evaluate"] == "measure a+ of round-1/a/train | on data test"


def test_in_the_testbed_the_oracle_judges_test_answers_and_what_was_learned() -> None:
    data = {"source": "testbed:100"}
    changes = difference(table(lay_out()), table(lay_out(data=data)))
    rows = {name: row for name, row in changes.items() if not name.endswith("/collapse")}
    expected = read("""
        + init/student/oracle | oracle on init/student/test-answers
        + init/a/oracle | oracle on init/a/test-answers
        + init/b/oracle | oracle on init/b/test-answers
        + round-t/student/oracle | oracle on round-t/student/test-answers
        + round-t/a/oracle | oracle on round-t/a/test-answers
        + round-t/b/oracle | oracle on round-t/b/test-answers
        + round-t/student/pairs-oracle | oracle on round-t/student/pairs
        + round-t/a/pairs-oracle | oracle on round-t/a/pairs
        + round-t/b/pairs-oracle | oracle on round-t/b/pairs
    """)
    assert rows == expected
