"""Cells of a comparison: what each starts from, what overrides what, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from macpo.compare import Cell, Design, lay_out, plan_comparison
from macpo.compare.config import CompareConfig
from macpo.config import RunConfig, check_config, method_name
from macpo.errors import ConfigError
from tests.compare.files import BASE, designed, write_compare


def cell(design: Design, method: str, setting: str = "default", seed: int = 1) -> Cell:
    """Return one cell of a design."""
    found = [c for c in design.cells if (c.setting, c.method, c.seed) == (setting, method, seed)]
    return found[0]


def config(design: Design, method: str, setting: str = "default", seed: int = 1) -> RunConfig:
    """Return the config of one cell."""
    return cell(design, method, setting, seed).config


def faults(folder: Path, *overrides: str, **keys: Any) -> list[str]:
    """Return the lines of the error for a compare file."""
    with pytest.raises(ConfigError) as caught:
        designed(folder, *overrides, **keys)
    return [line.strip() for line in str(caught.value).split("\n")]


def test_all_cells_of_a_seed_come_before_the_next_seed(tmp_path: Path) -> None:
    design = designed(tmp_path, settings={"few": {"rounds": 1}, "more": {}})

    assert [(c.seed, c.setting, c.method) for c in design.cells] == [
        (seed, setting, method)
        for seed in (1, 2)
        for setting in ("few", "more")
        for method in ("macpo", "spin")
    ]
    assert {c.config.seed for c in design.cells if c.seed == 2} == {2}


def test_folder_names_the_setting_only_where_there_are_several(tmp_path: Path) -> None:
    one = designed(tmp_path / "one")
    two = designed(tmp_path / "two", settings={"few": {"rounds": 1}, "more": {}})

    assert str(one.folder_of(cell(one, "spin"))) == "cells/spin/seed-1"
    assert one.describe(cell(one, "spin", seed=2)) == "spin, seed 2"
    assert str(two.folder_of(cell(two, "spin", "few"))) == "cells/few/spin/seed-1"
    assert two.describe(cell(two, "spin", "few")) == "few/spin, seed 1"


def test_shared_recipe_loses_what_a_method_has_no_use_for(tmp_path: Path) -> None:
    design = designed(
        tmp_path,
        methods={"macpo": "macpo", "spin": "spin", "naive": "naive-sft"},
        set={"rounds": 4, "dpo.gamma": 1},
    )

    macpo, spin, naive = (config(design, name) for name in ("macpo", "spin", "naive"))
    assert (macpo.rounds, macpo.dpo.gamma, macpo.negative_sft.epochs) == (4, 1, 2)
    assert (spin.rounds, spin.dpo.beta) == (4, 0.2)
    assert "gamma" not in spin.dpo.model_fields_set
    assert not {"rounds", "dpo", "negative_sft"} & naive.model_fields_set


def test_shared_recipe_loses_what_an_option_leaves_without_effect(tmp_path: Path) -> None:
    methods = {"macpo": "macpo", "control": {"name": "macpo", "contrast": False}}
    recipe = {"dpo.loss": "ipo", "dpo.anchor": 0.2}
    design = designed(tmp_path, methods=methods, set=recipe)

    macpo, control = config(design, "macpo"), config(design, "control")
    assert (macpo.dpo.loss, macpo.dpo.anchor) == ("ipo", 0.2)
    assert "loss" not in control.dpo.model_fields_set
    assert control.dpo.anchor == 0.2


def test_setting_without_effect_under_an_option_is_refused(tmp_path: Path) -> None:
    control = {"name": "macpo", "contrast": False}
    lines = faults(tmp_path, methods={"control": control}, settings={"ipo": {"dpo.loss": "ipo"}})

    assert lines[1:] == [
        "settings.ipo: dpo.loss has no effect on control (method macpo); or leave control out of "
        "it, by a `settings:` list of that method"
    ]


def test_keys_of_an_agent_are_dropped_too(tmp_path: Path) -> None:
    student = {"model": "org/student", "dpo": {"gamma": 0.5, "beta": 0.3}}
    design = designed(tmp_path, base={**BASE, "student": student})

    own = config(design, "spin").student.dpo
    assert own is not None
    assert own.model_fields_set == {"beta"}
    theirs = config(design, "macpo").student.dpo
    assert theirs is not None
    assert theirs.gamma == 0.5


def test_what_stands_further_in_wins(tmp_path: Path) -> None:
    spin = {"method": "spin", "set": {"dpo.beta": 0.6}}
    keys: dict[str, Any] = {
        "set": {"dpo.beta": 0.3, "rounds": 3, "limits.prompt_tokens": 99},
        "methods": {"macpo": "macpo", "spin": spin},
        "settings": {"plain": {"sampling.top_k": 5}, "sharp": {"dpo.beta": 0.5}},
    }
    design = designed(tmp_path, "dpo.beta=0.4", "rounds=1", **keys)

    assert config(design, "macpo", "plain").dpo.beta == 0.4
    assert config(design, "macpo", "sharp").dpo.beta == 0.5
    assert config(design, "spin", "sharp").dpo.beta == 0.6
    assert {c.config.rounds for c in design.cells} == {1}
    assert {c.config.limits.prompt_tokens for c in design.cells} == {99}
    assert {c.config.name for c in design.cells} == {"trial"}


def test_method_with_options_and_settings_of_its_own(tmp_path: Path) -> None:
    design = designed(
        tmp_path,
        methods={
            "macpo": "macpo",
            "none": {"contrast": False},
            "ceiling": {"method": {"name": "ceiling", "dpo": False}, "settings": ["clean"]},
        },
        settings={"clean": {}, "noise": {"data.noise": 0.3}},
    )

    assert [(c.setting, c.method) for c in design.cells if c.seed == 1] == [
        ("clean", "macpo"),
        ("clean", "none"),
        ("clean", "ceiling"),
        ("noise", "macpo"),
        ("noise", "none"),
    ]
    assert config(design, "none", "noise").method.model_dump()["contrast"] is False
    assert method_name(config(design, "ceiling", "clean").method) == "ceiling"
    assert design.ceiling == "ceiling"
    assert design.against == "macpo"


def test_setting_may_change_an_option_of_the_method(tmp_path: Path) -> None:
    design = designed(
        tmp_path,
        methods={"macpo": "macpo"},
        settings={"one": {"method.top_k": 1}, "two": {"method.top_k": 2}},
    )

    assert config(design, "macpo", "two").method.model_dump()["top_k"] == 2


def test_paths_beside_either_file_mean_the_files_there(tmp_path: Path) -> None:
    for name in ("bases", "comparisons"):
        (tmp_path / name).mkdir()
    (tmp_path / "bases" / "pairs.jsonl").touch()
    (tmp_path / "comparisons" / "other.jsonl").touch()
    write_compare(tmp_path / "bases")
    design = designed(
        tmp_path / "comparisons",
        base=BASE,
        settings={"theirs": {}, "ours": {"data.source": "other.jsonl"}},
        methods={"macpo": "macpo"},
    )
    far = designed(tmp_path / "comparisons", **{"base": BASE, "methods": {"macpo": "macpo"}})

    ours = config(design, "macpo", "ours").data.source
    assert ours == str((tmp_path / "comparisons" / "other.jsonl").resolve())
    assert config(far, "macpo").data.source == "pairs.jsonl"


def test_base_is_found_beside_the_compare_file(tmp_path: Path) -> None:
    path = write_compare(tmp_path / "inner")
    (tmp_path / "inner" / "base.yaml").rename(tmp_path / "base.yaml")
    path.write_text(path.read_text().replace("base: base.yaml", "base: ../base.yaml"))
    (tmp_path / "pairs.jsonl").touch()

    from macpo.compare import load_design

    found = load_design(path).cells[0].config.data.source
    assert found == str((tmp_path / "pairs.jsonl").resolve())


def test_design_from_values(tmp_path: Path) -> None:
    asked = CompareConfig.model_validate(
        {"name": "t", "base": "-", "seeds": [7], "methods": {"m": "macpo", "s": "spin"}}
    )

    design = lay_out(asked, check_config(BASE))

    assert [(c.method, c.config.seed, c.config.dpo.beta) for c in design.cells] == [
        ("m", 7, 0.2),
        ("s", 7, 0.2),
    ]


def test_own_key_without_effect_stays_an_error(tmp_path: Path) -> None:
    lines = faults(
        tmp_path,
        methods={"macpo": "macpo", "naive": {"method": "naive-sft", "set": {"rounds": 2}}},
        settings={"plain": {"sampling.top_k": 9}, "sharp": {"dpo.beta": 0.5}},
    )

    assert lines == [
        f"{tmp_path / 'compare.yaml'}: 2 faults",
        "methods.naive.set: rounds has no effect on naive (method naive-sft); remove it",
        "settings.sharp: dpo.beta has no effect on naive (method naive-sft); or leave naive out of "
        "it, by a `settings:` list of that method",
    ]


def test_shared_key_without_effect_on_anybody_is_an_error(tmp_path: Path) -> None:
    lines = faults(tmp_path, methods={"naive": "naive-sft"}, set={"dpo.beta": 0.1})

    assert lines[1:] == ["set: dpo.beta has no effect under any of the methods; remove it"]


def test_identical_cells_are_refused_with_both_names(tmp_path: Path) -> None:
    lines = faults(
        tmp_path,
        methods={"macpo": "macpo", "again": {"contrast": True}, "spin": "spin"},
        settings={"two": {"rounds": 2}, "same": {}},
    )

    assert lines[0].endswith(": 4 faults")
    assert lines[1] == (
        "two/macpo and two/again are identical, the same run under two labels: change an option "
        "of one or remove it (`settings:` of a method says where it takes part)"
    )
    assert [line.partition(" are ")[0] for line in lines[2:]] == [
        "two/macpo and same/macpo",
        "two/macpo and same/again",
        "two/spin and same/spin",
    ]


def test_unknown_keys_are_refused_with_the_nearest_name(tmp_path: Path) -> None:
    lines = faults(
        tmp_path, seedz=[1], methods={"macpo": {"method": "macpo", "setting": ["default"]}}
    )

    assert lines[1:] == [
        "methods.macpo.setting: unknown key; did you mean 'settings'?",
        "seedz: unknown key; did you mean 'seeds'?",
    ]


def test_faults_of_all_cells_are_listed_once_each(tmp_path: Path) -> None:
    lines = faults(
        tmp_path,
        methods={"macpo": {"top_kk": 2}, "spin": {"name": "spinn"}, "naive": "naive-sft"},
        set={"sampling.top_pp": 1},
        settings={"a": {"data.noise": 2}, "b": {}},
    )

    assert lines[0].endswith(": 4 faults")
    assert lines[1].startswith("every cell: sampling.top_pp: unknown key; did you mean 'top_p'?")
    assert "a/macpo, b/macpo: method.top_kk: unknown key; did you mean 'top_k'?" in lines
    assert any(
        line.startswith("a/spin, b/spin: method: there is no method 'spinn'; did you mean spin?")
        for line in lines
    )
    assert any(line.startswith("a/macpo, a/spin, a/naive: data.noise") for line in lines)


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "no seeds": ({"seeds": []}, "seeds: is empty; give at least one"),
    "seed twice": ({"seeds": [1, 2, 1]}, "seeds: 1 is there 2 times; a seed counts once"),
    "seed no number": ({"seeds": ["one"]}, "seeds.0: must be a whole number (got 'one')"),
    "no methods": ({"methods": {}}, "methods: is empty; give at least one"),
    "methods missing": ({"methods": None}, "methods: missing; it has no default"),
    "methods a list": (
        {"methods": ["macpo"]},
        "methods: must be keys with values, such as {rounds: 2} (got a list)",
    ),
    "against nobody": (
        {"against": "mapco"},
        "against: there is no method 'mapco'; did you mean 'macpo'?",
    ),
    "ceiling nobody": (
        {"ceiling": "top"},
        "ceiling: there is no method 'top'; there are macpo, spin",
    ),
    "ceiling that is none": (
        {"ceiling": "spin"},
        "ceiling: spin is not of method ceiling; name one that is",
    ),
    "label with a slash": (
        {"methods": {"a/b": "macpo"}},
        "methods: 'a/b' cannot name a method; use lower-case letters, digits, '-', '_', '.'",
    ),
    "setting with a space": (
        {"settings": {"a b": {}}},
        "settings: 'a b' cannot name a setting; use lower-case letters, digits, '-', '_', '.'",
    ),
    "method in no setting": (
        {
            "methods": {"macpo": {"method": "macpo", "settings": ["clear"]}},
            "settings": {"clean": {}},
        },
        "methods.macpo.settings: there is no setting 'clear'; did you mean 'clean'?",
    ),
    "items as text": (
        {"set": ["rounds=2"]},
        "set: must be keys with values, such as {rounds: 2} (got a list)",
    ),
    "empty settings": ({"settings": {"a": None}}, "settings.a: must be keys with values"),
    "seed in a setting": (
        {"settings": {"a": {"seed": 4}}},
        "settings: a: seed cannot be changed here, `seeds` gives it; remove it",
    ),
    "method in set": (
        {"set": {"method": "spin"}},
        "set: method cannot be changed here, `methods` gives it; remove it",
    ),
    "option in a method's set": (
        {"methods": {"m": {"method": "macpo", "set": {"method.top_k": 2}}}},
        "methods.m.set: method.top_k: write top_k into this method's own section",
    ),
    "nothing there": (
        {"settings": {"a": {"teachers.7.model": "org/x"}}},
        "settings.a: teachers.7.model: teachers has no item 7; it has 2, counted from 0",
    ),
    "direction": (
        {"metrics": {"preference_accuracy": "up"}},
        "metrics.preference_accuracy: must be 'higher', 'lower' or 'neither' (got 'up')",
    ),
    "name of the mean": (
        {"set": {"teachers": [{"name": "teachers", "model": "org/x"}]}},
        "every cell: teachers: 'teachers' is what results call their mean; rename that one",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_file_is_refused_with_the_remedy(tmp_path: Path, name: str) -> None:
    keys, said = BAD[name]

    lines = faults(tmp_path, **keys)

    assert lines[0] == f"{tmp_path / 'compare.yaml'}: 1 fault"
    assert lines[1].startswith(said)


def test_bad_override_is_named(tmp_path: Path) -> None:
    assert faults(tmp_path, "rounds")[1] == "--set rounds: write it as section.key=value"


def test_files_that_are_no_compare_files(tmp_path: Path) -> None:
    from macpo.compare import load_design

    path = write_compare(tmp_path)
    missing = tmp_path / "none.yaml"
    with pytest.raises(ConfigError, match=r"none\.yaml: no such compare file"):
        load_design(missing)
    with pytest.raises(ConfigError, match="is a folder; name the compare file in it"):
        load_design(tmp_path)
    with pytest.raises(ConfigError, match=r"base\.yaml: is a run's config; start it with `macpo "):
        load_design(tmp_path / "base.yaml")
    path.write_text("- 1\n")
    with pytest.raises(ConfigError, match="a compare file is a mapping of keys to values"):
        load_design(path)
    path.write_text("a: [\n")
    with pytest.raises(ConfigError, match="not valid YAML"):
        load_design(path)


def test_missing_base_is_named(tmp_path: Path) -> None:
    path = write_compare(tmp_path)
    (tmp_path / "base.yaml").unlink()

    from macpo.compare import load_design

    with pytest.raises(ConfigError, match=r"base\.yaml: no such config file"):
        load_design(path)


SORTING = ("pairs", "measure-answers", "measure-pairs", "collapse")
"""Kinds of stages that run no model."""


def test_cells_say_whose_model_every_stage_runs(tmp_path: Path) -> None:
    methods = {"rlaif": "rlaif", "imitate": {"name": "macpo", "contrast": False}}

    plan = plan_comparison(designed(tmp_path, methods=methods), tmp_path / "out")

    agents = {s.name: s.agent for cell in plan.cells for s in cell.stages if s.kind not in SORTING}
    assert agents.pop("data") is None
    assert {agents["round-1/weak-a/labels"], agents["round-1/weak-b/labels"]} == {
        "weak-a",
        "weak-b",
    }
    assert all(name.split("/")[1] == agent for name, agent in agents.items())


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (
            {"method": "macpo", "top_k": 2},
            "top_k: options of the method stand in its own section; "
            "write {method: {name: macpo, top_k: 2}}",
        ),
        (
            {"method": "macpo", "contrast": False, "set": {"rounds": 1}, "settings": ["default"]},
            "contrast: options of the method stand in its own section; "
            "write {method: {name: macpo, contrast: false}, set: {rounds: 1}, settings: [default]}",
        ),
        (
            {"method": "macpo", "set": {"top_k": 2, "samples": 3}},
            "top_k, samples: options of the method stand in its own section; "
            "write {method: {name: macpo, top_k: 2, samples: 3}}",
        ),
        (
            {"name": "macpo", "set": {"rounds": 1}},
            "name: the method stands under `method`; write {method: macpo, set: {rounds: 1}}",
        ),
        (
            {"name": "macpo", "top_k": 2, "set": {"rounds": 1}},
            "name, top_k: options of the method stand in its own section; "
            "write {method: {name: macpo, top_k: 2}, set: {rounds: 1}}",
        ),
        (
            {"method": "spin", "dpo.beta": 0.2},
            "dpo.beta: changes of the run stand under `set`; "
            "write {method: spin, set: {dpo.beta: 0.2}}",
        ),
        (
            {"name": "macpo", "samples": 2, "beta": 0.2, "use_teachers": 1},
            "beta, use_teachers: changes of the run stand under `set`; "
            "write {method: {name: macpo, samples: 2}, set: {dpo.beta: 0.2, use_teachers: 1}}",
        ),
        (
            {"dpo": {"beta": 0.2, "gamma": 1}},
            "dpo: changes of the run stand under `set`; "
            "write {method: macpo, set: {dpo.beta: 0.2, dpo.gamma: 1}}",
        ),
        (
            {"method": "macpo", "top_k": 2, "rounds": 1},
            "top_k: options of the method stand in its own section; "
            "rounds: changes of the run stand under `set`; "
            "write {method: {name: macpo, top_k: 2}, set: {rounds: 1}}",
        ),
        (
            {"method": "macpo", "learning_rate": 0.1},
            "learning_rate: name its section, under `set`: "
            "sft.learning_rate or negative_sft.learning_rate or dpo.learning_rate",
        ),
    ],
)
def test_keys_in_the_wrong_place_of_an_entry_are_told_the_form_that_works(
    tmp_path: Path, entry: dict[str, Any], message: str
) -> None:
    lines = faults(tmp_path, methods={"trial": entry})

    assert lines[1:] == [f"methods.trial: {message}"]
    _, shown, form = message.partition("; write ")
    if shown:
        designed(tmp_path / "right", methods={"trial": yaml.safe_load(form)})


def test_key_that_nothing_knows_is_told_where_which_keys_stand(tmp_path: Path) -> None:
    lines = faults(tmp_path, methods={"trial": {"method": "macpo", "watch": 0.05}})

    assert lines[1:] == [
        "methods.trial.watch: unknown key; valid here: method, set, settings; options of the "
        "method stand in its own section, as in {method: {name: macpo, top_k: 2}}, changes of the "
        "run under `set`"
    ]


def test_every_fault_of_an_entry_is_told(tmp_path: Path) -> None:
    entry = {"method": "macpo", "top_k": 2, "setting": ["default"]}

    assert faults(tmp_path, methods={"trial": entry})[1:] == [
        "methods.trial: top_k: options of the method stand in its own section; "
        "write {method: {name: macpo, top_k: 2}}",
        "methods.trial: setting: unknown key; did you mean 'settings'?",
    ]


def test_form_that_would_be_long_is_told_without_its_values(tmp_path: Path) -> None:
    entry = {"method": "macpo", "dpo.beta": 0.2, "set": {"data.source": "x" * 300}}

    assert faults(tmp_path, methods={"trial": entry})[1].endswith(
        "; write {method: {name: ..., ...}, set: {...}}"
    )


def test_option_of_another_method_is_no_key_of_the_run(tmp_path: Path) -> None:
    lines = faults(tmp_path, methods={"trial": {"name": "spin", "top_k": 2}})

    assert lines[1:] == [
        "every cell: method.top_k: unknown key; it belongs to method macpo, this is spin"
    ]


def test_metric_that_nobody_measures_is_refused_before_any_cell_runs(tmp_path: Path) -> None:
    asked = {"preference_acuracy": "higher", "train_loss": "lower", "kl_initial": "neither"}
    [_, line] = faults(tmp_path, metrics=asked)
    assert line == (
        "metrics: nobody measures preference_acuracy; did you mean preference_accuracy?"
    )
