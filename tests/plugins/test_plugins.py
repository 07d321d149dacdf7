"""A method and an evaluator from outside, each in one file: those that the documentation shows."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from macpo import plugins
from macpo.config import check_config, load_config
from macpo.config.evaluators import EVALUATORS
from macpo.config.methods import METHODS
from macpo.errors import ConfigError
from macpo.evaluation import Evaluator, register_evaluator
from macpo.methods import Method, register_method
from macpo.metrics import METRICS
from macpo.plugins import load_plugin
from macpo.records import read_pairs
from macpo.registry import Registry
from macpo.run_api import open_run
from tests.runs import finished_stages, run_cli, write_config

DOCS = Path(__file__).resolve().parents[2] / "docs"
RUN = {"name": "x", "data": {"source": "d.jsonl"}, "student": {"model": "m"}}
TEACHERS = {"teachers": [{"name": "a", "model": "m"}]}


@pytest.fixture(autouse=True)
def own_registries() -> Iterator[None]:
    """Take away afterwards what a test has added."""
    before = {registry: set(registry.names()) for registry in (METHODS, EVALUATORS, METRICS)}
    yield
    for registry, names in before.items():
        for name in set(registry.names()) - names:
            registry.unregister(name)


def shown_file(page: str, name: str, folder: Path) -> Path:
    """Write the file that a page of the documentation shows; returns its path."""
    text = (DOCS / page).read_text(encoding="utf-8")
    (found,) = re.findall(rf"```python\n# {re.escape(name)}\n(.*?)```", text, re.DOTALL)
    path = folder / name
    path.write_text(found, encoding="utf-8")
    return path


def test_a_method_from_outside_runs_and_resumes(tmp_path: Path) -> None:
    plugin = shown_file("own-method.md", "my_method.py", tmp_path)
    method = {"name": "one-teacher-a-round", "first": 1}
    config = write_config(tmp_path, method=method, evaluation={"answers": 4})
    run = tmp_path / "run"

    done = run_cli(["run", config, "--out", run, "--plugin", plugin])

    assert done.code == 0, done.err
    for t, teacher in ((1, "weak-b"), (2, "weak-a")):
        pairs = read_pairs(run / "stages" / f"round-{t}" / "student" / "pairs")
        assert {pair.chosen.origin.policy for pair in pairs} == {f"{teacher}/positive"}
        assert {pair.rejected.origin.policy for pair in pairs} == {"student/positive"}
    assert (run / "final" / "student" / "adapter_model.safetensors").is_file()
    opened = open_run(run)
    assert opened.config == load_config(config)
    assert {p.chosen.origin.policy for p in opened.pairs(2)} == {"weak-a/positive"}
    count = len(finished_stages(run))
    again = run_cli(["run", config, "--out", run, "--plugin", plugin])
    assert again.code == 0
    assert len(finished_stages(run)) == count
    plan = run_cli(["plan", config, "--out", run, "--plugin", plugin, "--json"])
    assert all(stage["state"] == "done" for stage in json.loads(plan.out)["stages"])


def test_an_evaluator_from_outside_is_in_every_round_and_table(tmp_path: Path) -> None:
    plugin = shown_file("own-evaluator.md", "my_evaluator.py", tmp_path)
    evaluators = ["preference", {"name": "politeness", "words": ["e"]}]
    config = write_config(tmp_path, rounds=1, evaluation={"answers": 4, "evaluators": evaluators})
    run = tmp_path / "run"

    done = run_cli(["run", config, "--out", run, "--plugin", plugin])

    assert done.code == 0, done.err
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    found = {(r["policy"], r["round"]): r["value"] for r in rows if r["metric"] == "politeness"}
    assert found.keys() == {(who, t) for who in ("student", "weak-a", "weak-b") for t in (0, 1)}
    answers = run / "stages" / "round-1" / "weak-a" / "test-answers" / "responses.jsonl"
    texts = [json.loads(line)["text"].lower() for line in answers.read_text().splitlines()]
    assert found["weak-a", 1] == sum("e" in text for text in texts) / len(texts)
    assert not any(row["metric"] == "answer_tokens" for row in rows)
    assert "polite answers" in done.out
    assert "politeness" in (run / "final" / "student" / "README.md").read_text()


def test_without_the_plugin_its_method_is_not_known_and_the_remedy_is_named(
    tmp_path: Path,
) -> None:
    config = write_config(tmp_path, method="one-teacher-a-round")
    done = run_cli(["plan", config])
    assert done.code == 1
    assert "there is no method 'one-teacher-a-round'; write macpo, " in done.err
    assert "or name the plugin that adds it with --plugin" in done.err


@pytest.mark.parametrize(
    ("evaluation", "fault"),
    [
        ({"evaluators": ["preferences"]}, "there is no evaluator 'preferences'; did you mean "),
        ({"evaluators": [7]}, "must be an evaluator's name, or a section with one in `name` (got"),
        ({"evaluators": ["answers", "answers"]}, "answers is there 2 times; name it once"),
        ({"evaluators": ["answers"], "answers": 0}, "answers measures answers, but evaluation.an"),
        ({"evaluators": ["oracle"]}, "oracle judges answers to the testbed's prompts only, but da"),
        ({"evaluators": [{"name": "answers", "words": 1}]}, "unknown key"),
    ],
)
def test_evaluators_that_cannot_measure_are_refused(
    evaluation: dict[str, object], fault: str
) -> None:
    with pytest.raises(ConfigError, match=re.escape(fault)):
        check_config({**RUN, **TEACHERS, "evaluation": evaluation})


def test_an_evaluators_own_options_stand_in_the_config_as_it_is_written() -> None:
    config = check_config({**RUN, **TEACHERS, "evaluation": {"evaluators": ["answers"]}})
    dumped = config.model_dump(mode="json", exclude_unset=True)
    assert dumped["evaluation"]["evaluators"] == [{"name": "answers"}]
    assert check_config(dumped) == config


@pytest.mark.parametrize(
    ("name", "text", "fault"),
    [
        ("missing.py", None, "no such file; check the path"),
        ("broken.py", "def (", "cannot be imported (SyntaxError: "),
        ("failing.py", "1 / 0", "cannot be imported (ZeroDivisionError: division by zero)"),
        ("needs.py", "import no_such_module_at_all", "cannot be imported (No module named"),
    ],
)
def test_a_plugin_that_cannot_be_imported_is_one_line(
    tmp_path: Path, name: str, text: str | None, fault: str
) -> None:
    path = tmp_path / name
    if text is not None:
        path.write_text(text)
    done = run_cli(["plan", write_config(tmp_path), "--plugin", path])
    assert done.code == 1
    assert fault in done.err
    assert done.err.count("\n") == 1


def test_a_module_that_is_not_there_is_named_with_the_remedy() -> None:
    with pytest.raises(ConfigError, match=r"no_such_plugin: there is no such module; name an"):
        load_plugin("no_such_plugin")


def test_a_file_is_imported_once(tmp_path: Path) -> None:
    path = tmp_path / "counted.py"
    path.write_text(
        "import pathlib\np = pathlib.Path(__file__).with_name('count')\n"
        "p.write_text(p.read_text() + 'x' if p.exists() else 'x')\n"
    )
    load_plugin(str(path))
    load_plugin(str(path))
    assert (tmp_path / "count").read_text() == "x"


def test_packages_add_methods_by_entry_points(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A package is a folder on the path with metadata beside it."""
    plugin = shown_file("own-method.md", "my_method.py", tmp_path)
    assert plugin.stem == "my_method"
    metadata = tmp_path / "my_package-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: my-package\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text("[macpo.plugins]\nmine = my_method\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    plugins.load_plugins.cache_clear()

    config = check_config({**RUN, **TEACHERS, "method": "one-teacher-a-round"})

    assert type(config.method).__name__ == "OneTeacherARound"


def test_a_name_that_is_taken_is_refused() -> None:
    class Another(Method):
        name: str = "spin"

        def lay_out(self, program: object) -> None:
            raise AssertionError

    METHODS.get("spin")
    with pytest.raises(
        ConfigError, match=r"method 'spin' is registered twice, by macpo\.methods\.spin"
    ):
        register_method(Another)


def test_what_is_no_method_or_has_no_name_is_refused() -> None:
    class Nameless(Method):
        def lay_out(self, program: object) -> None:
            raise AssertionError

    class NamelessEvaluator(Evaluator):
        def lay_out(self, subject: object) -> list[object]:
            raise AssertionError

    with pytest.raises(TypeError, match="give it a name"):
        register_method(Nameless)
    with pytest.raises(TypeError, match="give it a name"):
        register_evaluator(NamelessEvaluator)
    with pytest.raises(TypeError, match="is no class derived from"):
        register_method(dict)  # type: ignore[type-var]


def test_a_registry_imports_its_own_things_only_when_asked() -> None:
    registry: Registry[object] = Registry("thing", {"lazy": "no_such_module_at_all"})
    registry.register("ready", 1)
    assert registry.get("ready") == 1
    with pytest.raises(ModuleNotFoundError):
        registry.get("lazy")
