"""A config written as YAML and read back is the same config."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from macpo.agents import assemble_team
from macpo.config import RunConfig, load_config
from macpo.config.dumping import dump_config, dump_resolved
from macpo.data.stages import content_digest
from macpo.methods.build import build_plan
from macpo.run_directory import RunDir
from tests.methods.test_methods import METHODS, configured
from tests.runs import FinishedRun, write_config

EXAMPLES = sorted((Path(__file__).parents[1] / "examples").glob("*.yaml"))


def read_back(text: str, folder: Path) -> RunConfig:
    path = folder / "config.yaml"
    path.write_text(text, encoding="utf-8")
    return load_config(path)


def keys(config: RunConfig) -> list[str]:
    team = assemble_team(config, "float32", fetch=False)
    return [
        stage.key for stage in build_plan(config, team, content_digest(config.data, fetch=False))
    ]


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_resolved_example_reads_back_as_the_same_config(path: Path, tmp_path: Path) -> None:
    config = load_config(path)

    resolved = read_back(dump_resolved(config, "float32"), tmp_path)

    assert resolved == config.model_copy(update={"dtype": "float32"})


@pytest.mark.parametrize("name", METHODS)
def test_resolved_config_of_every_method_reads_back_as_the_same_run(
    name: str, tmp_path: Path
) -> None:
    write_config(tmp_path)
    config = configured(tmp_path, METHODS[name][0])

    resolved = read_back(dump_resolved(config, "float32"), tmp_path)

    assert resolved == config
    assert keys(resolved) == keys(config)


@pytest.mark.parametrize(
    "changes",
    [
        {"evaluation": {"answers": 4, "evaluators": ["preference", {"name": "answers"}]}},
        {"generation": {"backend": "scripted"}},
        {"tuning": {"targets": "all-linear", "alpha": 32}},
        {"student": {"model": {"source": "models/student", "layers": "0-1"}}, "use_teachers": 1},
        {"sampling": {"max_new_tokens": 8, "temperature": 1e-7, "top_k": 0}},
        {"dpo": {"loss": "ipo", "start": "initial", "end_of_turn": "mask"}},
    ],
    ids=lambda changes: "-".join(changes),
)
def test_resolved_config_keeps_what_was_said(changes: dict[str, Any], tmp_path: Path) -> None:
    config = load_config(write_config(tmp_path, **changes))

    resolved = read_back(dump_resolved(config, "float32"), tmp_path)

    assert resolved == config
    assert keys(resolved) == keys(config)


def test_config_as_it_was_said_reads_back_too(tmp_path: Path) -> None:
    config = load_config(write_config(tmp_path))

    said = read_back(dump_config(config), tmp_path)

    assert said == config
    assert said.model_fields_set == config.model_fields_set


def test_agents_departures_stay_departures(tmp_path: Path) -> None:
    config = load_config(
        write_config(tmp_path),
        ["student.dpo={beta: 0.5}", "teachers.0.tuning={kind: full}", "teachers.1.sft={epochs: 2}"],
    )

    text = dump_resolved(config, "float32")
    resolved = read_back(text, tmp_path)

    assert resolved == config
    assert keys(resolved) == keys(config)
    student = yaml.safe_load(text)["student"]
    assert student["dpo"] == {"beta": 0.5}  # its other values are the run's
    student_dpo = assemble_team(resolved, "float32", fetch=False).student.dpo
    assert (student_dpo.beta, student_dpo.learning_rate) == (0.5, 0.001)


@pytest.mark.parametrize(
    ("changes", "left_out"),
    [
        ({"sampling": {"temperature": 0, "max_new_tokens": 8}}, ("sampling", {"top_p", "top_k"})),
        ({"tuning": {"kind": "full"}}, ("tuning", {"rank", "alpha", "dropout", "targets"})),
        ({"method": {"positives": "own"}}, ("method", {"filter", "top_k", "negative_prompt"})),
        ({"method": {"contrast": False}}, ("dpo", {"loss", "label_smoothing", "end_of_turn"})),
    ],
)
def test_defaults_without_effect_are_left_out(
    changes: dict[str, Any], left_out: tuple[str, set[str]], tmp_path: Path
) -> None:
    config = load_config(write_config(tmp_path, **changes))

    text = dump_resolved(config, "float32")

    section, names = left_out
    assert not names & yaml.safe_load(text)[section].keys()
    assert read_back(text, tmp_path) == config


def test_run_keeps_the_resolved_config_with_the_dtype_that_auto_came_to(
    finished: FinishedRun,
) -> None:
    run = RunDir(finished.folder)
    values = yaml.safe_load(run.resolved_config_file.read_text(encoding="utf-8"))

    assert values["dpo"]["gamma"] == 0.2  # the paper's, which the config does not name
    assert values["method"]["filter"] == "perplexity"
    assert run.config() == load_config(finished.config)


def test_relative_paths_are_made_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_config(tmp_path / "home")
    monkeypatch.chdir(tmp_path / "home")
    config = load_config(path, ["data.source=pairs.jsonl"])

    (tmp_path / "run").mkdir()
    resolved = read_back(dump_resolved(config, "bfloat16"), tmp_path / "run")

    assert config.data.source == "pairs.jsonl"
    assert resolved.data.source == str(tmp_path / "home" / "pairs.jsonl")
    assert resolved.dtype == "bfloat16"
