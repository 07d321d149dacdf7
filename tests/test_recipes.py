"""Recipes: defaults over several sections, under what a config says itself."""

from __future__ import annotations

from typing import Any, get_args

import pytest

from macpo.config import RunConfig, check_config
from macpo.config.dumping import dump_config, dump_resolved
from macpo.config.guard import GuardConfig
from macpo.config.reading import parse_yaml
from macpo.config.recipes import RECIPES, Recipe, say_recipe
from macpo.methods.macpo import MACPO
from tests.methods.wiring import CONFIG, lay_out

STABLE = {"method": {"recipe": "stable"}}


def config(**changes: Any) -> RunConfig:
    return check_config({**CONFIG, **changes})


def guard(read: RunConfig) -> GuardConfig | None:
    assert isinstance(read.method, MACPO)
    return read.method.guard


def test_every_recipe_can_be_named_and_each_of_its_keys_is_one() -> None:
    assert tuple(RECIPES) == get_args(Recipe)
    for name, values in RECIPES.items():
        read = config(method={"recipe": name})
        for path, value in values.items():
            section, key = path.split(".")
            assert getattr(getattr(read, section), key) == value


def test_paper_is_the_default_and_changes_nothing() -> None:
    plain, named = lay_out({}), lay_out({"recipe": "paper"})
    assert [s.key for s in plain] == [s.key for s in named]


def test_what_is_said_stands_over_the_recipe() -> None:
    read = config(method={"recipe": "stable", "guard": False}, dpo={"beta": 0.2})
    assert (read.dpo.loss, read.dpo.beta, read.dpo.reference) == ("ipo", 0.2, "initial")
    assert guard(read) is None
    own = config(method={"recipe": "stable", "guard": {"copying": 0.5}})
    assert guard(own) == GuardConfig(copying=0.5)


def test_an_agents_own_section_stands_over_both() -> None:
    student = {"model": "student", "dpo": {"beta": 0.3}}
    read = config(**STABLE, student=student)
    assert read.student.dpo is not None
    assert read.student.dpo.model_fields_set == {"beta"}
    assert read.dpo.loss == "ipo"


def test_recipe_is_what_its_values_are_when_said() -> None:
    """Every stage has the same key, whether the recipe is named or written out."""
    dpo = {**CONFIG["dpo"], "loss": "ipo", "beta": 0.05, "reference": "initial"}
    named, said = lay_out({"recipe": "stable"}), lay_out({"guard": True}, dpo=dpo)
    assert [s.key for s in named] == [s.key for s in said]


def test_recipe_counts_as_defaults_until_it_is_resolved() -> None:
    """What was said is written as it was; resolved, all that holds is there to be read."""
    read = config(**STABLE)
    said = parse_yaml(dump_config(read))
    assert said["dpo"] == CONFIG["dpo"]
    assert said["method"] == {"name": "macpo", "recipe": "stable"}
    assert check_config(said) == read
    resolved = parse_yaml(dump_resolved(read, "float32"))
    assert resolved["dpo"]["loss"] == "ipo"
    assert resolved["method"]["guard"]["quantile"] == 0.9
    assert check_config(resolved).dpo == read.dpo
    assert guard(check_config(resolved)) == guard(read)


def test_config_of_sections_that_are_read_already_takes_the_recipe_too() -> None:
    plain = config()
    sections = {name: getattr(plain, name) for name in plain.model_fields_set}
    read = RunConfig(**{**sections, "method": MACPO(recipe="stable")})
    assert (read.dpo.loss, read.dpo.learning_rate) == ("ipo", 3e-5)
    assert guard(read) == GuardConfig()


def test_people_are_told_what_a_recipe_sets() -> None:
    assert say_recipe(config()) == ""
    other = {k: v for k, v in CONFIG.items() if k != "negative_sft"}
    assert say_recipe(check_config({**other, "method": "spin"})) == ""
    assert say_recipe(config(**STABLE, dpo={"beta": 0.2})) == (
        "recipe stable: dpo.loss ipo, dpo.beta 0.2 (as the config says), dpo.reference initial, "
        "method.guard true"
    )


@pytest.mark.parametrize("recipe", ["stabel", 3, None, ["stable"]])
def test_recipe_that_there_is_not_is_a_fault_of_its_key(recipe: Any) -> None:
    with pytest.raises(Exception, match=r"method\.recipe: "):
        config(method={"recipe": recipe})


def test_recipe_sets_nothing_that_an_option_beside_it_leaves_idle() -> None:
    read = config(method={"recipe": "stable", "contrast": False})
    assert read.dpo.loss == "sigmoid"
    assert "dpo.loss" not in say_recipe(read)
