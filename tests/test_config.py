"""The config tree: what it takes, and what it says about everything that it does not take."""

from __future__ import annotations

import copy
import os
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from macpo.config import (
    RunConfig,
    check_config,
    load_config,
    method_name,
    parse_layers,
)
from macpo.config.loading import START
from macpo.errors import ConfigError
from macpo.methods.macpo import MACPO
from macpo.seeds import digest

MINIMAL: dict[str, Any] = {
    "name": "tiny",
    "data": {"source": "org/preferences"},
    "student": {"model": "org/strong"},
    "teachers": [{"name": "weak", "model": "org/weak"}],
}


def config_with(**sections: Any) -> dict[str, Any]:
    return {**copy.deepcopy(MINIMAL), **sections}


def faults(raw: dict[str, Any]) -> list[str]:
    """The faults that checking `raw` reports, one text each."""
    with pytest.raises(ConfigError) as caught:
        check_config(raw)
    head, *lines = str(caught.value).splitlines()
    assert head == f"config: {len(lines)} fault{'s' if len(lines) > 1 else ''}"
    assert all(line.startswith("  ") for line in lines)
    return [line[2:] for line in lines]


def write(folder: Path, text: str, name: str = "run.yaml") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def write_minimal(folder: Path, **sections: Any) -> Path:
    return write(folder, yaml.safe_dump(config_with(**sections)))


# What is right


def test_the_defaults_are_the_papers() -> None:
    config = check_config(MINIMAL)
    assert (config.rounds, config.tuning.rank, config.tuning.alpha) == (3, 8, 16)
    assert config.tuning.targets == ("auto",)  # q_proj, v_proj where a model has them
    assert (config.sft.epochs, config.sft.learning_rate, config.sft.batch_size) == (3, 5e-5, 32)
    assert (config.negative_sft.epochs, config.negative_sft.learning_rate) == (1, 5e-5)
    assert (config.dpo.epochs, config.dpo.learning_rate, config.dpo.batch_size) == (1, 1e-5, 16)
    assert (config.dpo.beta, config.dpo.gamma, config.dpo.reference) == (0.1, 0.2, "previous")
    assert (config.sampling.temperature, config.sampling.top_p) == (0.95, 0.7)
    assert (config.sampling.top_k, config.sampling.max_new_tokens) == (50, 512)
    assert (config.data.splits.teacher, config.data.splits.test) == (5000, 2000)
    assert config.limits.prompt_tokens + config.limits.response_tokens == 1024


def test_a_model_may_be_written_as_its_source_alone() -> None:
    assert check_config(MINIMAL).student.model.source == "org/strong"
    long = config_with(student={"model": {"source": "org/strong"}})
    assert check_config(long) == check_config(MINIMAL)


def test_a_number_without_a_dot_that_yaml_takes_for_text_is_a_number(tmp_path: Path) -> None:
    text = yaml.safe_dump(MINIMAL) + (
        "sft: {learning_rate: 5e-5}\ndpo: {learning_rate: 1E-6}\ntuning: {alpha: 32}\n"
    )
    assert yaml.safe_load("5e-5") == "5e-5"
    config = load_config(write(tmp_path, text), ["data.splits.test=5e-1"])
    assert config.sft.learning_rate == 5e-5
    assert config.dpo.learning_rate == 1e-6
    assert config.data.splits.test == 0.5
    assert isinstance(config.tuning.alpha, float)


def test_a_default_written_out_gives_the_same_key_as_one_left_out() -> None:
    spelled = config_with(
        tuning={
            "kind": "lora",
            "rank": 8,
            "alpha": 16,
            "dropout": 0,
            "targets": ["auto"],
        },
        sft={"epochs": 3.0, "batch_size": "32", "max_grad_norm": 1},
        data={"source": "org/preferences", "splits": {"teacher": 5000}},
    )
    left_out = check_config(MINIMAL).model_dump()
    assert digest(check_config(spelled).model_dump()) == digest(left_out)


@pytest.mark.parametrize(
    "sections",
    [
        {},
        {"tuning": {"kind": "full"}},
        {"sampling": {"temperature": 0}},
        {"sft": {"epochs": 1}, "data": {"source": "d", "splits": {"teacher": 0.5, "test": 100}}},
    ],
)
def test_what_was_set_written_out_and_read_again_is_the_same_config(
    sections: dict[str, Any],
) -> None:
    config = check_config(config_with(**sections))
    assert check_config(config.model_dump(mode="json", exclude_unset=True)) == config


def test_sections_cannot_be_changed_afterwards() -> None:
    config = check_config(MINIMAL)
    with pytest.raises(ValidationError, match="frozen"):
        config.dpo.beta = 0.5


# Unknown, missing and empty keys


@pytest.mark.parametrize(
    ("sections", "fault"),
    [
        ({"round": 3}, "round: unknown key; did you mean 'rounds'?"),
        ({"dpo": {"betta": 1}}, "dpo.betta: unknown key; did you mean 'beta'?"),
        (
            {"data": {"source": "d", "splits": {"techer": 1}}},
            "data.splits.techer: unknown key; did you mean 'teacher'?",
        ),
        (
            {"student": {"model": {"source": "m", "layer": "0"}}},
            "student.model.layer: unknown key; did you mean 'layers'?",
        ),
        (
            {"student": {"model": "m", "sft": {"epoch": 1}}},
            "student.sft.epoch: unknown key; did you mean 'epochs'?",
        ),
        (
            {"teachers": [MINIMAL["teachers"][0], {"name": "b", "modle": "m", "model": "m"}]},
            "teachers.1.modle: unknown key; did you mean 'model'?",
        ),
        (
            {"evaluation": {"xyzzy": 1}},
            "evaluation.xyzzy: unknown key; valid here: answers, collapse, evaluators, "
            "stop_on_collapse, teachers",
        ),
        ({"method": {"topk": 1}}, "method.topk: unknown key; did you mean 'top_k'?"),
        (
            {"method": {"name": "spin", "top_k": 1}},
            "method.top_k: unknown key; it belongs to method macpo, this is spin",
        ),
        ({"int": 3}, "int: unknown key; valid here: data, device, dpo, "),
        ({"beta": 0.1}, "beta: unknown key; it belongs to dpo"),
        ({"top_k": 0.1}, "top_k: unknown key; it belongs to method or sampling"),
        (
            {"student": {"model": "m", "beta": 1}},
            "student.beta: unknown key; it belongs to student.dpo",
        ),
        (
            {"student": {"model": "m", "rounds": 1}},
            "student.rounds: unknown key; it belongs to the top level",
        ),
        ({"sft": {"top_k": 1}}, "sft.top_k: unknown key; it belongs to method or sampling"),
        ({"layers": "0"}, "layers: unknown key; it belongs to student.model or teachers.model"),
        ({"a\nb": 1}, r"'a\nb': unknown key; valid here: "),
        ({"": 1}, "'': unknown key; valid here: "),
        ({"k" * 500: 1}, f"'{'k' * 58}…: unknown key; valid here: "),
    ],
)
def test_an_unknown_key_comes_with_the_nearest_valid_name_at_every_depth(
    sections: dict[str, Any], fault: str
) -> None:
    (found,) = faults(config_with(**sections))
    assert found.startswith(fault)
    assert fault.endswith(": ") or fault.endswith("dpo, ") or found == fault


@pytest.mark.parametrize(("key", "shown"), [(1, "1"), (None, "None"), (2.5, "2.5"), ((1, 2), "(1")])
def test_a_key_that_is_no_text_is_unknown(key: Any, shown: str) -> None:
    raw: dict[Any, Any] = {**MINIMAL, key: 1}
    (found,) = faults(raw)
    assert found.startswith(shown)
    assert ": unknown key; " in found


def test_an_empty_key_of_a_mapping_is_told_of() -> None:
    model = {"source": "m", "chat_template_args": {"": None}}
    raw = config_with(student={"model": model})
    assert any(f.startswith("student.model.chat_template_args.''") for f in faults(raw))


def test_a_key_without_default_is_missed_at_every_depth() -> None:
    assert faults({}) == [
        f"{name}: missing; it has no default" for name in ("name", "data", "student", "teachers")
    ]
    raw = config_with(data={}, student={"model": {}}, teachers=[{"name": "a", "model": "m"}, {}])
    assert faults(raw) == [
        "data.source: missing; it has no default",
        "student.model.source: missing; it has no default",
        "teachers.1.model: missing; it has no default",
        "teachers.1.name: missing; it has no default",
    ]


def test_a_key_with_nothing_behind_it_is_empty() -> None:
    raw = config_with(rounds=None, sft=None, student={"model": None}, data=None, name="")
    assert faults(raw) == [
        "name: must not be empty (got '')",
        "rounds: is empty; give it a value or remove the key",
        "data: is empty; give it a value",
        "student.model: is empty; give it a value",
        "sft: is empty; give it a value or remove the key",
    ]
    assert faults(config_with(teachers=None)) == ["teachers: is empty; give it a value"]


# Values of the wrong kind


@pytest.mark.parametrize(
    ("sections", "fault"),
    [
        ({"rounds": "three"}, "rounds: must be a whole number (got 'three')"),
        ({"rounds": 2.5}, "rounds: must be a whole number (got 2.5)"),
        ({"rounds": [3]}, "rounds: must be a whole number (got a list)"),
        ({"rounds": 0}, "rounds: must be greater than 0 (got 0)"),
        ({"seed": -1}, "seed: must be greater than or equal to 0 (got -1)"),
        (
            {"seed": 2**63},
            "seed: must be less than or equal to 9223372036854775807 (got 9223372036854775808)",
        ),
        (
            {"seed": 16**5000},
            "seed: must be less than or equal to 9223372036854775807 (got a huge number)",
        ),
        ({"sft": {"learning_rate": "fast"}}, "sft.learning_rate: must be a number (got 'fast')"),
        ({"sft": {"learning_rate": 0}}, "sft.learning_rate: must be greater than 0 (got 0)"),
        (
            {"sft": {"learning_rate": float("nan")}},
            "sft.learning_rate: must be a finite number (got nan)",
        ),
        (
            {"sft": {"learning_rate": 10**400}},
            f"sft.learning_rate: must be a number (got 1{'0' * 58}…)",
        ),
        ({"sft": {"warmup_ratio": 1}}, "sft.warmup_ratio: must be less than 1 (got 1)"),
        ({"sampling": {"top_p": 1.5}}, "sampling.top_p: must be less than or equal to 1 (got 1.5)"),
        ({"sft": 3}, "sft: must be a section, that is keys with values (got 3)"),
        ({"sft": [1]}, "sft: must be a section, that is keys with values (got a list)"),
        ({"student": "gpt2"}, "student: must be a section, that is keys with values (got 'gpt2')"),
        ({"teachers": "gpt2"}, "teachers: must be a list (got 'gpt2')"),
        ({"teachers": {"a": 1}}, "teachers: must be a list (got a section)"),
        (
            {"student": {"model": ["m"]}},
            "student.model: must be a section, that is keys with values (got a list)",
        ),
        (
            {"student": {"model": {"source": 7}}},
            "student.model.source: must be text; put it in quotes (got 7)",
        ),
        (
            {"student": {"model": {"source": "m", "revision": 1234567}}},
            "student.model.revision: must be text; put it in quotes (got 1234567)",
        ),
        ({"name": False}, "name: must be text; put it in quotes (got false)"),
        ({"name": b"tiny"}, "name: must be text; put it in quotes (got b'tiny')"),
        (
            {"student": {"model": {"source": "a\nb"}}},
            r"student.model.source: 'a\nb' holds a line break or another control character",
        ),
        (
            {"student": {"model": {"source": "\ud800"}}},
            "student.model.source: is not text that can be written as UTF-8",
        ),
        ({"\ud800": 1}, "a key: is not text that can be written as UTF-8"),
        (
            {"student": {"model": {"source": "m", "trust_remote_code": "yes"}}},
            "student.model.trust_remote_code: must be true or false (got 'yes')",
        ),
        (
            {"student": {"model": {"source": "m", "trust_remote_code": 1}}},
            "student.model.trust_remote_code: must be true or false (got 1)",
        ),
        (
            {"dpo": {"reference": "initail"}},
            "dpo.reference: must be 'previous', 'initial' or 'base' (got 'initail'); "
            "did you mean 'initial'?",
        ),
        ({"dtype": 16}, "dtype: must be 'auto', 'float32' or 'bfloat16' (got 16)"),
        ({"dtype": True}, "dtype: must be 'auto', 'float32' or 'bfloat16' (got true)"),
        (
            {"limits": {"prompt_tokens": "x" * 500}},
            f"limits.prompt_tokens: must be a whole number (got '{'x' * 58}…)",
        ),
        (
            {"data": {"source": "d", "max_bad_rows": 2.5}},
            "data.max_bad_rows: 2.5 is neither a number of rows nor a fraction below 1",
        ),
    ],
)
def test_a_wrong_value_is_said_in_one_line(sections: dict[str, Any], fault: str) -> None:
    assert faults(config_with(**sections)) == [fault]


def numeric_keys() -> list[tuple[str, ...]]:
    """The paths of all number keys of a config, found by walking what it dumps."""
    found: list[tuple[str, ...]] = []

    def walk(node: dict[str, Any], path: tuple[str, ...]) -> None:
        for key, value in node.items():
            if isinstance(value, dict):
                walk(value, (*path, key))
            elif isinstance(value, int | float) and not isinstance(value, bool):
                found.append((*path, key))

    walk(check_config(MINIMAL).model_dump(), ())
    return found


@pytest.mark.parametrize("path", numeric_keys(), ids=".".join)
@pytest.mark.parametrize("value", [True, False])
def test_a_boolean_is_never_a_number(path: tuple[str, ...], value: bool) -> None:
    raw = config_with()
    node = raw
    for part in path[:-1]:
        node = node.setdefault(part, {})
    node[path[-1]] = value
    (fault,) = faults(raw)
    assert fault.startswith(f"{'.'.join(path)}: must be a number")


def test_the_walk_over_number_keys_found_them() -> None:
    assert {("rounds",), ("tuning", "alpha"), ("data", "splits", "test")} <= set(numeric_keys())
    assert len(numeric_keys()) > 35


def test_divided_bases_are_frozen_and_leave_answers_to_others() -> None:
    divided = {"engine": {"sharding": "fsdp", "processes": 2}}
    server = {"generation": {"backend": "scripted"}}
    check_config(config_with(**divided, **server))
    assert faults(config_with(**divided)) == [
        "engine.sharding: a base that is divided among processes cannot answer; set "
        "generation.backend: vllm, or server"
    ]
    alone = {"engine": {"sharding": "fsdp", "processes": 1}}
    assert faults(config_with(**alone, **server)) == [
        "engine.sharding divides bases among processes; raise engine.processes"
    ]
    assert faults(config_with(**divided, **server, tuning={"kind": "full"})) == [
        "tuning.kind is full, but engine.sharding divides frozen bases; use lora"
    ]


def test_all_faults_are_reported_at_once() -> None:
    raw = config_with(
        rounds=0,
        beta=1,
        student={"model": {"source": "m", "layers": "x"}, "dpo": {"beta": -1}},
        tuning={"kind": "full", "rank": 4},
    )
    assert faults(raw) == [
        "rounds: must be greater than 0 (got 0)",
        "student.model.layers: 'x' is not a list of layers; write for example \"0-11,27-29\"",
        "student.dpo.beta: must be greater than 0 (got -1)",
        "tuning: rank: only for kind: lora; remove from kind: full",
        "beta: unknown key; it belongs to dpo",
    ]


# Sizes of the splits


def with_splits(**splits: Any) -> dict[str, Any]:
    return config_with(data={"source": "d", "splits": splits})


def test_sizes_are_numbers_of_prompts_or_fractions() -> None:
    splits = check_config(with_splits(teacher=0.25, student=0.75, test=100)).data.splits
    assert (splits.teacher, splits.student, splits.test) == (0.25, 0.75, 100)
    everything = check_config(with_splits(teacher=1.0, student=1, test="2")).data.splits
    assert isinstance(everything.teacher, float)
    assert isinstance(everything.student, int)
    assert isinstance(everything.test, int)


@pytest.mark.parametrize(
    ("splits", "fault"),
    [
        ({"test": 1.5}, "data.splits.test: 1.5 is no fraction; write 2 for that many prompts"),
        (
            {"test": 2e3},
            "data.splits.test: 2000.0 is no fraction; write 2000 for that many prompts",
        ),
        ({"test": 0}, "data.splits.test: must be greater than 0 and finite (got 0)"),
        ({"test": -0.5}, "data.splits.test: must be greater than 0 and finite (got -0.5)"),
        (
            {"test": float("inf")},
            "data.splits.test: must be greater than 0 and finite (got inf)",
        ),
        (
            {"test": float("nan")},
            "data.splits.test: must be greater than 0 and finite (got nan)",
        ),
        ({"test": "9" * 5000}, "data.splits.test: must be greater than 0 and finite (got inf)"),
        (
            {"test": "half"},
            "data.splits.test: must be a number of prompts such as 5000, or a fraction such as 0.5",
        ),
        (
            {"test": [1]},
            "data.splits.test: must be a number of prompts such as 5000, or a fraction such as 0.5",
        ),
        (
            {"teacher": 0.5, "student": 0.4, "test": 0.2},
            "data.splits: the fractions add up to 1.1; make that 1.0 at most",
        ),
    ],
)
def test_a_wrong_size_is_said_once(splits: dict[str, Any], fault: str) -> None:
    assert faults(with_splits(**splits)) == [fault]


def test_fractions_that_add_up_to_one_but_for_rounding_are_right() -> None:
    check_config(with_splits(teacher=0.1, student=0.2, test=0.7))


# Layers


@pytest.mark.parametrize(
    ("text", "layers"),
    [
        ("0", (0,)),
        ("0-3", (0, 1, 2, 3)),
        ("0-1,27-29", (0, 1, 27, 28, 29)),
        (" 3 , 1 - 2 ", (3, 1, 2)),
        ("5-5", (5,)),
    ],
)
def test_layers_are_parsed_in_the_order_given(text: str, layers: tuple[int, ...]) -> None:
    assert parse_layers(text) == layers


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("", "'' is not a list of layers; write for example \"0-11,27-29\""),
        ("1,", "'1,' is not a list of layers; "),
        ("a", "'a' is not a list of layers; "),
        ("1 2", "'1 2' is not a list of layers; "),
        ("-1", "'-1' is not a list of layers; "),
        ("1--2", "'1--2' is not a list of layers; "),
        ("٣", "'٣' is not a list of layers; "),
        ("0-99999999999", "'0-99999999999' is not a list of layers; "),
        ("1,5-3", "5-3: the last layer comes before the first; write 3-5"),
        ("0-3,2", "'0-3,2' names layer 2 twice"),
    ],
)
def test_what_is_no_list_of_layers_is_refused(text: str, fault: str) -> None:
    with pytest.raises(ValueError, match="layer") as caught:
        parse_layers(text)
    assert str(caught.value).startswith(fault)


def test_layers_written_as_a_bare_number_ask_for_quotes(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"model\.layers: must be text; put it in quotes \(got 3"):
        load_config(write_minimal(tmp_path), ["student.model.layers=3"])
    config = load_config(write_minimal(tmp_path), ['student.model.layers="3"'])
    assert config.student.model.layers == "3"


# Options that exclude one another


def test_full_tuning_takes_no_lora_options() -> None:
    assert check_config(config_with(tuning={"kind": "full"})).tuning.kind == "full"
    assert faults(config_with(tuning={"kind": "full", "rank": 8, "alpha": 16})) == [
        "tuning: alpha, rank: only for kind: lora; remove from kind: full"
    ]


def test_greedy_decoding_takes_no_filters() -> None:
    assert check_config(config_with(sampling={"temperature": 0})).sampling.temperature == 0
    assert faults(config_with(sampling={"temperature": 0, "top_p": 0.7, "top_k": 50})) == [
        "sampling: temperature 0 is greedy decoding, without top_k, top_p; remove these"
    ]


@pytest.mark.parametrize(
    ("targets", "fault"),
    [
        ([], "tuning: targets is empty: no weight would train; name at least one layer"),
        ([""], "tuning.targets.0: must not be empty (got '')"),
        ([7], "tuning.targets.0: must be text; put it in quotes (got 7)"),
        (
            {"q_proj", "v_proj"},
            "tuning.targets: must be a list of layer names, or one word: auto or all-linear",
        ),
        (
            ["all-linear", "q_proj"],
            "tuning: targets: all-linear stands alone; remove it or the other names",
        ),
        (
            ["auto", "q_proj"],
            "tuning: targets: auto stands alone; remove it or the other names",
        ),
    ],
)
def test_wrong_targets_are_refused(targets: Any, fault: str) -> None:
    assert faults(config_with(tuning={"targets": targets})) == [fault]


def test_one_target_may_be_written_without_a_list() -> None:
    assert check_config(config_with(tuning={"targets": "all-linear"})).tuning.targets == (
        "all-linear",
    )


def test_answers_that_would_be_cut_again_are_refused() -> None:
    raw = config_with(sampling={"max_new_tokens": 600}, limits={"response_tokens": 500})
    assert faults(raw) == [
        "sampling.max_new_tokens is 600, above limits.response_tokens 500: answers would be cut "
        "again before training; lower the one or raise the other"
    ]
    check_config(config_with(sampling={"max_new_tokens": 500}, limits={"response_tokens": 500}))


# Teachers


def teachers(*names: Any) -> list[dict[str, Any]]:
    return [{"name": name, "model": "m"} for name in names]


@pytest.mark.parametrize("name", ["student", "dataset", "Weak", "a/b", "..", "-a", "a b", "a" * 65])
def test_a_teacher_name_that_is_no_file_name_or_is_taken_is_refused(name: str) -> None:
    (fault,) = faults(config_with(teachers=teachers(name)))
    assert fault == (
        f"teachers.0.name: {name!r} cannot name a teacher; use lower-case letters, digits, '-', "
        "'_', '.', and none of: dataset, student"
    )


def test_when_every_teacher_is_faulty_the_list_is_not_called_empty() -> None:
    assert faults(config_with(teachers=[{"name": "a"}, {"name": "b", "model": 3}])) == [
        "teachers.0.model: missing; it has no default",
        "teachers.1.model: must be a section, that is keys with values (got 3)",
    ]


def test_an_empty_list_of_teachers_is_called_empty() -> None:
    assert faults(config_with(teachers=[])) == ["teachers: is empty; give at least one"]


def test_doubled_names_and_other_disagreements_are_reported_together() -> None:
    raw = config_with(
        teachers=teachers("a", "b", "a", "a", "b"),
        method={"top_k": 6},
        sampling={"max_new_tokens": 513},
    )
    found = faults(raw)
    assert found[:3] == [
        "teachers: 3 of them are named 'a'; give each its own name",
        "teachers: 2 of them are named 'b'; give each its own name",
        "method.top_k is 6, but there are only 5 teachers with 1 answer(s) each to a prompt; lower "
        "it to 5, or add teachers or method.samples",
    ]
    assert found[3].startswith("sampling.max_new_tokens is 513, above limits.response_tokens 512")


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"method": "spinn"}, "method: there is no method 'spinn'; did you mean spin?"),
        ({"method": "x"}, "method: there is no method 'x'; write macpo, naive-sft, "),
        ({"method": 7}, "method: must be a method's name, or a section with one (got 7)"),
        ({"method": {"contrast": 3}}, "method.contrast: must be true or false (got 3)"),
        (
            {"method": {"positives": "own", "top_k": 2}},
            "method: top_k has no effect with positives: own; remove it",
        ),
        (
            {"method": {"filter": "random", "filter_policy": "initial"}},
            "method: filter_policy has no effect with filter: random; remove it",
        ),
        (
            {"method": {"filter": "typical", "filter_policy": "base"}},
            "method: filter: typical measures by own answers of the policy that filters, and the "
            "bare base of filter_policy: base gives none; write filter_policy: initial or current",
        ),
        (
            {"method": {"filter": "random", "samples": 2, "top_k": 2}},
            "method.filter: random has no effect where all 2 answers to a prompt are kept; lower "
            "method.top_k, add teachers or method.samples, or remove it",
        ),
        (
            {"method": "spin", "data": {"source": "d.jsonl", "replay": 0.5}},
            "data.replay: has no effect under method spin; remove it",
        ),
        ({"method": {"guard": 3}}, "method.guard: must be a section, that is keys with values"),
        ({"method": {"guard": {"copying": 2}}}, "method.guard.copying: must be less than or equal"),
        (
            {
                "method": {
                    "guard": {
                        **{"quantile": 0.8, "unfinished": False, "repetition": 0.1},
                        **{"sentences": 0.1, "copying": 0.5},
                    }
                }
            },
            "method.guard: quantile has no effect where every limit is given; remove it",
        ),
        (
            {"method": {"positives": "own", "guard": {"failing_as_rejected": True}}},
            "method: guard.failing_as_rejected has no effect with positives: own, which chooses "
            "its own answers; remove it",
        ),
        (
            {"method": {"contrast": False, "guard": {"failing_as_rejected": True}}},
            "method: guard.failing_as_rejected has no effect with contrast: false, which rejects "
            "nothing; remove it",
        ),
        (
            {"method": {"name": "spin", "guard": True}},
            "method.guard: unknown key; it belongs to method macpo, this is spin",
        ),
        (
            {"method": {"name": "rlaif", "question": "{question} {first}?"}},
            "method.question: lacks {second}, where that is to stand",
        ),
        (
            {"method": {"name": "rlaif", "judging": "grade", "question": "{question} {first}?"}},
            "method.question: lacks {answer}, where that is to stand",
        ),
        (
            {"method": {"name": "rlaif", "grades": ["bad", "good"]}},
            "method: grades is for judging: grade; remove it",
        ),
        (
            {"method": {"name": "rlaif", "judging": "grade", "labels": ["A", "B"]}},
            "method: labels is for judging: compare; remove it",
        ),
        (
            {"use_teachers": 4},
            "use_teachers is 4, but teachers names only 1; lower it or add teachers",
        ),
        (
            {"data": {"source": "x.jsonl", "noise": 1.5}},
            "data.noise: ",
        ),
        (
            {"method": {"name": "self-rewarding", "question": "{answer}?"}},
            "method.question: lacks {conversation}, where that is to stand",
        ),
        (
            {"method": {"name": "ws-dpo", "answers": "data", "samples": 3}},
            "method: samples is for answers: own; remove it",
        ),
        (
            {"method": {"name": "ws-dpo", "samples": 1}},
            "method.samples: must be greater than or equal to 2 (got 1)",
        ),
        (
            {"method": {"name": "wspo", "gamma": 0}},
            "method.gamma: must be greater than 0 (got 0)",
        ),
        (
            {"method": "wspo", "dpo": {"reference": "base"}},
            "dpo.reference: has no effect under method wspo; remove it",
        ),
        (
            {"method": "weak-to-strong-search", "dpo": {"anchor": 0.2}},
            "dpo.anchor: has no effect under method weak-to-strong-search; remove it",
        ),
        (
            {"method": {"name": "cong", "alpha": 1.0}},
            "method.alpha: must be less than 1 (got 1.0)",
        ),
        (
            {"method": {"name": "twin-judges", "aggregate": "max"}},
            "method.aggregate: must be 'min' or 'mean' (got 'max')",
        ),
        (
            {"method": "weak-to-strong-search", "dpo": {"reference": "base"}},
            "dpo.reference: has no effect under method weak-to-strong-search; remove it",
        ),
        (
            {"method": "naive-sft", "rounds": 2},
            "rounds: has no effect under method naive-sft; remove it",
        ),
        (
            {"method": "spin", "student": {"model": "m", "dpo": {"gamma": 1}}},
            "student.dpo.gamma: has no effect under method spin; remove it",
        ),
        (
            {"method": "ceiling", "dpo": {"start": "initial"}},
            "dpo.start: has no effect under method ceiling; remove it",
        ),
        (
            {"method": {"contrast": False}, "dpo": {"loss": "ipo"}},
            "dpo.loss: has no effect under method.contrast: false; remove it",
        ),
        (
            {
                "method": {"contrast": False},
                "student": {"model": "m", "dpo": {"end_of_turn": "mask", "anchor": 0.1}},
            },
            "student.dpo.end_of_turn: has no effect under method.contrast: false; remove it",
        ),
        (
            {"method": {"name": "ceiling", "dpo": False}, "dpo": {"anchor": 0.1}},
            "dpo.anchor: has no effect under method.dpo: false; remove it",
        ),
    ],
)
def test_a_faulty_method_is_told_with_its_remedy(changes: dict[str, Any], fault: str) -> None:
    (found,) = faults(config_with(**changes))
    assert found.startswith(fault)


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        (
            {"dpo": {"loss": "ipo", "label_smoothing": 0.1}},
            [
                "dpo: label_smoothing is for loss: sigmoid, and has no effect on ipo; remove the "
                "one or the other"
            ],
        ),
        (
            {"dpo": {"label_smoothing": 0.1}, "student": {"model": "m", "dpo": {"loss": "sppo"}}},
            [
                "student.dpo, laid over dpo: label_smoothing is for loss: sigmoid, and has no "
                "effect on sppo; remove the one or the other"
            ],
        ),
        ({"dpo": {"loss": "ipo_mean"}}, ["dpo.loss: must be "]),
        ({"dpo": {"anchor": 1.5}}, ["dpo.anchor: must be less than or equal to 1 (got 1.5)"]),
        (
            {"dpo": {"anchor": 1}},
            [
                "dpo: anchor 1 takes every round all the way back, so that nothing is learned; "
                "give a share below 1, such as 0.2"
            ],
        ),
        (
            {"dpo": {"anchor": 0, "start": "initial"}},
            [
                "dpo: anchor 0 is no anchor, and with start: initial every round begins at the "
                "initial policy as it is; remove anchor"
            ],
        ),
        ({"dpo": {"label_smoothing": 0.5}}, ["dpo.label_smoothing: must be less than 0.5 (got "]),
        # Without the smoothing of the run's section there is nothing wrong.
        (
            {
                "dpo": {"label_smoothing": 0.1},
                "student": {"model": "m", "dpo": {"loss": "sppo", "label_smoothing": 0}},
            },
            [],
        ),
    ],
)
def test_options_of_dpo_that_cannot_act_together_are_refused(
    changes: dict[str, Any], found: list[str]
) -> None:
    said = faults(config_with(**changes)) if found else []
    assert len(said) == len(found)
    assert all(map(str.startswith, said, found))
    if not found:
        check_config(config_with(**changes))


def test_a_method_is_named_by_a_word_or_by_a_section() -> None:
    short = check_config(config_with(method="spin"))
    assert short.method == check_config(config_with(method={"name": "spin"})).method
    assert method_name(short.method) == "spin"
    assert method_name(check_config(config_with()).method) == "macpo"
    assert check_config(config_with(method={"top_k": 1})).method == MACPO(top_k=1)


@pytest.mark.parametrize("name", ["", "Run", "a/b", "../a", "a" * 65])
def test_a_run_name_that_cannot_name_a_folder_is_refused(name: str) -> None:
    (fault,) = faults(config_with(name=name))
    assert fault.startswith("name: ")


# Files


def test_a_missing_file_comes_with_the_nearest_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=rf"^runs/tiny.yaml: no such config file; {START}$"):
        load_config("runs/tiny.yaml")
    with pytest.raises(ConfigError, match=r"file; did you mean example:quickstart\?$"):
        load_config("quikstart.yaml")
    with pytest.raises(ConfigError, match=r"file; did you mean example:compare/noise\?$"):
        load_config("examples/compare/noise")
    write(tmp_path, "", "tiny-cpu.yaml")
    with pytest.raises(ConfigError, match=r"file; did you mean tiny-cpu.yaml\?$"):
        load_config("tinycpu.yaml")


def test_a_missing_file_does_not_search_a_whole_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    deep = tmp_path / "a" / "b"
    deep.mkdir(parents=True)
    write(deep, "", "tiny.yaml")
    with pytest.raises(ConfigError, match=START):
        load_config(tmp_path / "tinny.yaml")


def test_a_file_that_cannot_be_read_says_why(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r": is a folder; name the config file in it$"):
        load_config(tmp_path)
    (tmp_path / "latin.yaml").write_bytes("name: café".encode("latin-1"))
    with pytest.raises(ConfigError, match=r"latin.yaml: is not text in UTF-8; save it so$"):
        load_config(tmp_path / "latin.yaml")
    with pytest.raises(ConfigError, match=r": cannot be read: File name too long$"):
        load_config(tmp_path / ("x" * 300))


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("a: [1", "not valid YAML: while parsing a flow sequence"),
        ("a: b: c", "not valid YAML: mapping values are not allowed here"),
        ("\tname: x", "not valid YAML: "),
        ("a: 1\n--- \nb: 2", "not valid YAML: expected a single document"),
        ("a: !!python/object:os.system x", "not valid YAML: could not determine a constructor"),
        ("a: \0", "not valid YAML: unacceptable character"),
        ("[" * 1_000, "not valid YAML: it is nested too deeply"),
        ("a: 2024-02-31", "not valid YAML: a value does not fit its type (ValueError("),
        ("a: !!int x", "not valid YAML: a value does not fit its type (ValueError("),
        ("a: !!bool x", "not valid YAML: a value does not fit its type (KeyError('x'))"),
        ("a: !!timestamp x", "not valid YAML: a value does not fit its type (AttributeError("),
        ("a: 0x_", "not valid YAML: a value does not fit its type (ValueError("),
        ("? [1]\n: 2", "not valid YAML: while constructing a mapping"),
        ("a: 1\nb: 2\na: 3", "not valid YAML: line 3: the key 'a' is given twice; remove one"),
        ("s:\n  - {a: 1, a: 2}", "not valid YAML: line 2: the key 'a' is given twice; remove one"),
        ("", "a config file is a mapping of keys to values (got null); `macpo init` writes"),
        (
            "# only a comment",
            "a config file is a mapping of keys to values (got null); `macpo init` writes",
        ),
        (
            "[1, 2]",
            "a config file is a mapping of keys to values (got a list); `macpo init` writes",
        ),
        ("tiny", "a config file is a mapping of keys to values (got 'tiny'); `macpo init` writes"),
    ],
)
def test_what_is_no_config_is_said_in_one_line(text: str, fault: str, tmp_path: Path) -> None:
    path = write(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    assert str(caught.value).startswith(f"{path}: {fault}")
    assert "\n" not in str(caught.value)


def test_merged_anchors_are_not_doubled_keys(tmp_path: Path) -> None:
    text = """
name: tiny
data: {source: org/preferences}
student: {model: org/strong, sft: &sft {epochs: 1, batch_size: 4}}
teachers:
  - {name: a, model: org/weak, sft: &more {<<: *sft, epochs: 2}}
  - {name: b, model: org/weak, sft: {<<: *more, epochs: 3}}
"""
    config = load_config(write(tmp_path, text))
    assert [(t.sft.epochs, t.sft.batch_size) for t in config.teachers if t.sft] == [(2, 4), (3, 4)]


def test_a_byte_order_mark_is_no_fault(tmp_path: Path) -> None:
    path = tmp_path / "bom.yaml"
    path.write_text(yaml.safe_dump(MINIMAL), encoding="utf-8-sig")
    assert load_config(path) == check_config(MINIMAL)


def test_faults_in_a_file_name_the_file(tmp_path: Path) -> None:
    path = write_minimal(tmp_path, rounds=0)
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    assert str(caught.value) == f"{path}: 1 fault\n  rounds: must be greater than 0 (got 0)"


# Overrides


def test_overrides_set_values_at_every_depth(tmp_path: Path) -> None:
    path = write_minimal(tmp_path, teachers=teachers("a", "b"), sft=None)
    config = load_config(
        path,
        [
            "rounds=5",
            "dpo.beta = 0.5",
            "sft.epochs=1",
            "data.splits.teacher=0.5",
            "data.hub_config=",
            "teachers.0.model.layers=0-14",
            "teachers.1.name=weaker",
            "tuning.targets=[k_proj, v_proj]",
            "tuning.targets.0=q_proj",
            "student.model.revision='1234567'",
            "student.model.chat_template=a=b",
        ],
    )
    assert (config.rounds, config.dpo.beta, config.sft.epochs) == (5, 0.5, 1)
    assert config.data.splits.teacher == 0.5
    assert config.data.hub_config is None
    assert config.teachers[0].model.layers == "0-14"
    assert config.teachers[0].model.source == "m"  # the short form keeps its source
    assert [teacher.name for teacher in config.teachers] == ["a", "weaker"]
    assert config.tuning.targets == ("q_proj", "v_proj")
    assert config.student.model.revision == "1234567"
    assert config.student.model.chat_template == "a=b"


def test_a_list_inside_a_list_item_is_reached_by_equal_numbers(tmp_path: Path) -> None:
    raw = teachers("a")
    raw[0]["tuning"] = {"targets": ["k_proj"]}
    config = load_config(
        write_minimal(tmp_path, teachers=raw), ["teachers.0.tuning.targets.0=q_proj"]
    )
    assert config.teachers[0].tuning is not None
    assert config.teachers[0].tuning.targets == ("q_proj",)


def test_an_override_of_an_anchored_section_changes_only_the_named_one(tmp_path: Path) -> None:
    text = """
name: tiny
data: {source: org/preferences}
student: {model: &model {source: org/strong}}
teachers: [{name: a, model: *model}]
"""
    config = load_config(write(tmp_path, text), ["teachers.0.model.layers=0-3"])
    assert config.teachers[0].model.layers == "0-3"
    assert config.student.model.layers is None


@pytest.mark.parametrize(
    ("override", "fault"),
    [
        ("rounds", "--set rounds: write it as section.key=value"),
        ("=5", "--set =5: write it as section.key=value"),
        ("rounds=[", "--set rounds=[: the value is not valid YAML: while parsing a flow node"),
        (
            "seed=!!int x",
            "--set seed=!!int x: the value is not valid YAML: a value does not fit its type",
        ),
        ("name.x=1", "--set name.x=1: name is 'tiny', not a section with keys"),
        (
            "teachers.1.name=b",
            "--set teachers.1.name=b: teachers has no item 1; it has 1, counted from 0",
        ),
        (
            "teachers.-1.name=b",
            "--set teachers.-1.name=b: teachers has no item -1; it has 1, counted from 0",
        ),
        (
            "teachers.².name=b",
            "--set teachers.².name=b: teachers has no item ²; it has 1, counted from 0",
        ),
        (
            "teachers.name=b",
            "--set teachers.name=b: teachers has no item name; it has 1, counted from 0",
        ),
        ("teachers.0.name.x=b", "--set teachers.0.name.x=b: teachers.0.name is 'weak', not a sec"),
    ],
)
def test_an_override_that_leads_nowhere_is_refused(
    override: str, fault: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(write_minimal(tmp_path), [override])
    assert str(caught.value).startswith(fault)


def test_all_bad_overrides_are_reported_at_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(write_minimal(tmp_path), ["rounds", "seed=1", "name.x=2"])
    assert len(str(caught.value).splitlines()) == 2


def test_an_override_of_an_unknown_key_is_reported_like_one_of_the_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"dpo\.betta: unknown key; did you mean 'beta'\?"):
        load_config(write_minimal(tmp_path), ["dpo.betta=1"])


# Paths


def test_a_path_beside_the_config_file_means_that_file_from_any_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "configs"
    for folder in ("configs/models/weak", "data", "work/data"):
        (tmp_path / folder).mkdir(parents=True)
    for file in ("data/hh.jsonl", "work/data/hh.jsonl", "configs/chat.jinja"):
        (tmp_path / file).write_text("")
    raw = config_with(
        data={"source": "../data/hh.jsonl"},
        student={"model": {"source": "models/weak", "chat_template": "chat.jinja"}},
        teachers=[{"name": "a", "model": "models/weak"}, {"name": "b", "model": "org/absent"}],
    )
    write(home, yaml.safe_dump(raw))
    monkeypatch.chdir(tmp_path / "work")
    config = load_config("../configs/run.yaml", ["teachers.1.model=data/hh.jsonl"])
    assert config.data.source == str((tmp_path / "data" / "hh.jsonl").resolve())
    assert config.student.model.source == str((home / "models" / "weak").resolve())
    assert config.student.model.chat_template == str((home / "chat.jinja").resolve())
    assert config.teachers[0].model.source == str((home / "models" / "weak").resolve())
    assert config.teachers[1].model.source == "data/hh.jsonl"  # an override: the working folder's


def test_a_link_keeps_its_own_name(tmp_path: Path) -> None:
    (tmp_path / "blob-1234").write_text("")
    (tmp_path / "model.gguf").symlink_to(tmp_path / "blob-1234")
    config = load_config(write_minimal(tmp_path, student={"model": "model.gguf"}))
    assert config.student.model.source == str(tmp_path.resolve() / "model.gguf")


def test_a_tilde_is_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "strong").mkdir()
    config = load_config(write_minimal(tmp_path, student={"model": "~/strong"}))
    assert config.student.model.source == str(tmp_path.resolve() / "strong")


def test_a_built_in_template_is_not_taken_for_a_folder_of_that_name(tmp_path: Path) -> None:
    (tmp_path / "vicuna").mkdir()
    model = {"source": "org/strong", "chat_template": "vicuna"}
    config = load_config(write_minimal(tmp_path, student={"model": model}))
    assert config.student.model.chat_template == "vicuna"


@pytest.mark.parametrize(
    ("source", "fault"),
    [
        ("a\0b", r"'a\x00b' holds a line break or another control character"),
        ("", "must not be empty (got '')"),
        ("\ud800", "is not text that can be written as UTF-8"),
    ],
)
def test_a_source_that_cannot_be_a_path_is_no_traceback(
    source: str, fault: str, tmp_path: Path
) -> None:
    path = write_minimal(tmp_path, data={"source": source})
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    assert str(caught.value) == f"{path}: 1 fault\n  data.source: {fault}"


def test_a_source_too_long_for_a_file_name_is_left_as_it_is(tmp_path: Path) -> None:
    config = load_config(write_minimal(tmp_path, data={"source": "x" * 300}))
    assert config.data.source == "x" * 300


# Anything at all

KEYS = sorted(
    {key for path in numeric_keys() for key in path}
    | {"name", "teachers", "student", "model", "source", "targets", "layers", "int", "0", ""}
)
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=8),
    st.binary(max_size=4),
    st.dates(),
    st.sampled_from(["0-3", "5e-5", "macpo", "lora", "full", "all-linear", 0, 1, 0.5, 2**64]),
)
TREES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.one_of(st.sampled_from(KEYS), SCALARS), inner, max_size=4),
    ),
    max_leaves=12,
)


@settings(max_examples=200, deadline=None)
@given(
    st.dictionaries(st.sampled_from(sorted(RunConfig.model_fields)), TREES, max_size=4),
    st.booleans(),
)
def test_any_tree_is_a_config_or_a_config_error(tree: dict[str, Any], minimal: bool) -> None:
    raw = {**(copy.deepcopy(MINIMAL) if minimal else {}), **tree}
    message = ""
    try:
        config = check_config(raw)
        assert digest(config.model_dump(mode="json"))
    except ConfigError as error:
        message = str(error)
    assert "Input should" not in message
    assert all(line.strip() for line in message.splitlines())


@settings(
    max_examples=200,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    st.one_of(
        TREES.map(lambda tree: yaml.safe_dump(tree)),
        TREES.map(lambda tree: yaml.safe_dump({**MINIMAL, "sft": tree, "student": tree})),
        st.text(alphabet="ab:-[]{}&*!?|>'\"#%@` \n\t0.1e~<=", max_size=40),
        st.lists(
            st.sampled_from(
                [
                    "a: ",
                    "&x ",
                    "*x",
                    "<<: ",
                    "- ",
                    "\n",
                    "  ",
                    "!!set ",
                    "!!omap ",
                    "!!int ",
                    "!!float ",
                    "!!binary ",
                    "!!timestamp ",
                    "? ",
                    "1",
                    "[",
                    "]",
                    "{",
                    "}",
                    ", ",
                ]
            ),
            max_size=12,
        ).map("".join),
    ),
    st.lists(st.text(alphabet="name.teachers0=[]{}:1 ", max_size=20), max_size=2),
)
def test_any_yaml_file_and_override_is_a_config_or_a_config_error(
    tmp_path: Path, text: str, overrides: list[str]
) -> None:
    path = write(tmp_path, text)
    message = ""
    try:
        load_config(path, overrides)
    except ConfigError as error:
        message = str(error)
    assert message == "" or message.startswith((f"{path}: ", "--set "))


@pytest.mark.parametrize(
    "text",
    [
        "teachers: !!set {a, b}\ntuning: {targets: !!set {q, v}}",
        "teachers: !!omap [a: 1, b: 2]",
    ],
)
def test_yaml_that_makes_odd_objects_is_a_config_error(text: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"faults?\n"):
        load_config(write(tmp_path, text))


@pytest.mark.parametrize(
    "text",
    [
        "&a {name: *a, data: *a, student: *a, teachers: [*a], sft: *a}",
        "teachers: &t [*t, *t]",
    ],
)
def test_yaml_that_refers_to_itself_is_a_config_error(text: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"not valid YAML: an anchor \(&\) holds itself$"):
        load_config(write(tmp_path, text))


def test_reading_a_config_changes_neither_environment_nor_folder(tmp_path: Path) -> None:
    before = (dict(os.environ), os.getcwd())
    load_config(write_minimal(tmp_path))
    assert (dict(os.environ), os.getcwd()) == before
