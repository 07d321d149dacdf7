"""What a run would do: on this machine, and where models and data are not."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console

from macpo.config import RunConfig, load_config
from macpo.errors import DataError, ModelError
from macpo.planning import PlanReport, plan
from macpo.planning.report import hub_offline
from macpo.report.plan import render_plan
from macpo.report.text import format_count
from tests.likelihood.plain import make_model
from tests.runs import SOURCES, write_config
from tests.tiny import tiny_tokenizer

PAPER = SOURCES.parent / "examples" / "paper-hh-helpful.yaml"
Planner = Callable[..., PlanReport]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the models and the data of a tiny run."""
    folder = tmp_path_factory.mktemp("planning")
    write_config(folder)
    return folder


@pytest.fixture
def planned(home: Path) -> Planner:
    """Return the plan of the tiny config with overrides, for a run directory."""

    def make(*overrides: str, folder: Path | None = None) -> PlanReport:
        return plan(load_config(home / "tiny.yaml", overrides), folder)

    return make


def shown(report: PlanReport) -> str:
    import io

    file = io.StringIO()
    Console(file=file, width=160).print(render_plan(report))
    return file.getvalue()


def by_name(report: PlanReport) -> dict[str, Any]:
    return {stage.name: stage for stage in report.stages}


def test_plan_counts_data_and_measures_lengths_here(planned: Planner) -> None:
    report = planned()

    assert report.sizes is not None
    assert report.sizes.exact
    assert report.sizes.prompts == {"teacher": 8, "student": 8, "test": 8}
    assert report.notes == ()
    assert len(report.stages) == 70
    assert report.to_run == report.stages
    evaluate = by_name(report)["init/student/evaluate"]
    assert not evaluate.work.at_most
    assert 0 < evaluate.work.read < 8 * (128 + 64 + 64)
    assert by_name(report)["init/weak-a/positive-answers"].work.at_most


def test_plan_says_what_limits_cut_off_once_for_those_who_read_alike(planned: Planner) -> None:
    report = planned("limits.response_tokens=2", "sampling.max_new_tokens=2")

    assert {cuts.pairs for cuts in report.cuts.values()} == {24}
    assert set(report.cuts) == {agent.name for agent in report.agents}
    said = [note for note in report.notes if "answers are cut at 2 tokens" in note]
    assert sum(note.count(agent.name) for note in said for agent in report.agents) == 3
    assert all(note.endswith("raise limits.response_tokens") for note in said)
    assert json.loads(json.dumps(report.to_json()))["cuts"]["student"]["response_tokens"] == 2


def test_plan_counts_the_testbeds_data_though_no_file_holds_it(home: Path) -> None:
    raw = yaml.safe_load((home / "tiny.yaml").read_text())
    raw["data"] = {"source": "testbed:60", "splits": {"teacher": 9, "student": 8, "test": 7}}
    report = plan(RunConfig.model_validate(raw), None)

    assert report.sizes is not None
    assert report.sizes.prompts == {"teacher": 9, "student": 8, "test": 7}
    assert report.sizes.exact


def test_plan_knows_the_size_of_every_model(planned: Planner) -> None:
    report = planned()

    for agent in report.agents:
        assert agent.local
        assert agent.parameters is not None
        assert 10_000 < agent.parameters < 100_000
        assert agent.memory is not None
        assert agent.memory.training > agent.memory.weights
    assert {stage.agent for stage in report.stages} == {None, "student", "weak-a", "weak-b"}


def test_paper_config_plans_without_weights_data_or_network(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import socket

    asked: list[object] = []  # libraries swallow what is raised here

    def no_network(*args: object, **_: object) -> None:
        asked.append(args)
        raise OSError("no network")

    monkeypatch.setattr(socket.socket, "connect", no_network)
    monkeypatch.setattr(socket, "getaddrinfo", no_network)
    # The offline mode that tests run in would hide that planning looks things up.
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", False)

    report = plan(load_config(PAPER), tmp_path / "run")

    assert asked == []
    student = report.agents[0]
    # 80 layers of 855,654,400, a last norm, embedding and head of 8,192 x 32,000: as released
    assert (student.parameters, student.parameters_estimated) == (68_976_648_192, False)
    assert student.memory is not None
    # 68.98e9 weights of 2 bytes
    assert student.memory.weights == pytest.approx(128.5, abs=0.1)
    assert student.memory.training is not None
    teachers = [6_738_415_616, 7_241_732_096, 8_030_261_248]
    assert [agent.parameters for agent in report.agents[1:]] == teachers
    assert not any(agent.local for agent in report.agents)
    assert report.dtype == "bfloat16"
    stages = by_name(report)
    assert stages["round-3/student/train"].work.trained == 5000 * (512 + 2 * 512)
    met, head = 80 * 855_654_400 + 8192, 8192 * 32000
    trained = 4 * 5000 * (met * 1536 + head * 1024)
    assert stages["round-3/student/train"].operations == trained
    text = " ".join(shown(report).split())
    assert re.search(r"meta-llama/Llama-2-70b-hf \* LoRA 69G 128 \d+ 13\d", text)
    assert "at most" in text
    assert "lengths for student, llama-2-7b, mistral-7b, llama-3-8b are the limits" in text
    assert "sizes are those of data.splits, with one pair a prompt" in text
    assert not (tmp_path / "run").exists()


def test_offline_mode_of_the_hub_is_put_back() -> None:
    import datasets.config
    from huggingface_hub import constants

    before = (datasets.config.HF_HUB_OFFLINE, constants.HF_HUB_OFFLINE)
    with pytest.raises(KeyError), hub_offline():
        raise KeyError

    assert before == (datasets.config.HF_HUB_OFFLINE, constants.HF_HUB_OFFLINE)


def test_model_known_by_its_name_alone_is_estimated(planned: Planner) -> None:
    student = planned("student.model=some/llama-65b").agents[0]

    assert (student.parameters, student.parameters_estimated) == (65_000_000_000, True)
    assert student.memory is not None
    assert student.memory.weights == pytest.approx(65e9 * 4 / 2**30)
    assert student.memory.training is None


def test_model_of_unknown_size_stays_unknown(planned: Planner) -> None:
    report = planned("student.model=some/model")

    student = report.agents[0]
    assert student.parameters is None
    assert student.memory is None
    assert by_name(report)["round-1/student/train"].operations is None
    assert by_name(report)["round-1/weak-a/train"].operations is not None
    text = shown(report)
    assert "some/model *" in text
    assert "unknown" in text
    assert "operations:" not in text  # no sum of what is not known
    assert any("weights of student (some/model) are not on this machine" in n for n in report.notes)


def test_data_that_is_not_here_with_fractions_gives_no_tokens(planned: Planner) -> None:
    report = planned(
        "data.source=elsewhere.jsonl", "data.splits={teacher: 0.4, student: 0.4, test: 0.2}"
    )

    assert report.sizes is None
    assert all(stage.work is None for stage in report.stages)
    assert "data.splits are fractions of it: no tokens are estimated" in report.notes[0]
    assert "sizes unknown" in shown(report)


def test_fractions_of_data_that_is_here_are_counted(planned: Planner) -> None:
    report = planned("data.splits={teacher: 0.5, student: 0.25, test: 0.25}")

    assert report.sizes is not None
    assert report.sizes.prompts == {"teacher": 12, "student": 6, "test": 6}


def test_data_too_small_for_its_splits_is_an_error(planned: Planner) -> None:
    with pytest.raises(DataError, match="the data holds 24 different ones"):
        planned("data.splits.teacher=100")


def test_tokenizer_that_is_broken_is_an_error(tmp_path: Path) -> None:
    config = write_config(tmp_path)
    (tmp_path / "models" / "student" / "tokenizer.json").write_text("{", encoding="utf-8")

    with pytest.raises(ModelError, match="student"):
        plan(load_config(config))


def test_dtype_is_provisional_until_the_run_has_resolved_it(planned: Planner) -> None:
    report = planned("dtype=auto")

    assert report.dtype == "float32"
    assert report.notes[0].startswith("dtype: auto is decided by timing when the run starts")


def test_dtype_and_speed_come_from_the_run(planned: Planner, tmp_path: Path) -> None:
    resolved = {"dtype": "bfloat16", "matmul_gflops": {"float32": 50.0, "bfloat16": 200.0}}
    (tmp_path / "run.json").write_text(json.dumps(resolved), encoding="utf-8")

    report = planned("dtype=auto", folder=tmp_path)

    assert (report.dtype, report.gflops) == ("bfloat16", 200.0)
    assert report.notes == ()
    stage = by_name(report)["round-1/student/train"]
    assert stage.seconds == pytest.approx(stage.operations / (0.7 * 200e9))
    answers = by_name(report)["round-1/student/test-answers"]
    assert answers.seconds == pytest.approx(answers.operations / (0.3 * 200e9))
    text = " ".join(shown(report).split())
    assert "at 70% (answers 30%) of the 200 GFLOP/s of matrix products measured" in text


def test_another_dtype_than_the_runs_is_measured_here(
    planned: Planner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    resolved = {"dtype": "bfloat16", "matmul_gflops": {"bfloat16": 200.0}}
    (tmp_path / "run.json").write_text(json.dumps(resolved), encoding="utf-8")
    asked = []

    def measure(dtype: str, device: Any) -> float:
        asked.append((dtype, device.type))
        return 50.0

    monkeypatch.setattr("macpo.planning.report.measured_gflops", measure)

    report = planned("dtype=float32", folder=tmp_path)

    assert asked == [("float32", "cpu")]
    assert (report.dtype, report.gflops) == ("float32", 50.0)
    assert all(stage.seconds is not None for stage in report.stages)
    assert "time: at most about" in shown(report)


def test_plan_of_a_folder_that_is_not_there_makes_none(planned: Planner, tmp_path: Path) -> None:
    report = planned(folder=tmp_path / "run")

    assert report.to_run == report.stages
    assert list(tmp_path.iterdir()) == []


def test_report_is_json(planned: Planner) -> None:
    value = json.loads(json.dumps(planned().to_json()))

    assert value["stages"][0]["name"] == "data"
    assert value["folder"] is None


@pytest.mark.parametrize(
    ("method", "unused", "stage", "agent"),
    [
        ("rlaif", {"negative_sft"}, "round-1/weak-b/labels", "weak-b"),
        ("self-rewarding", {"negative_sft"}, "round-2/student/grades", "student"),
        ({"name": "macpo", "contrast": False}, set(), "round-1/student/train", "student"),
        ("confident-loss", {"rounds", "dpo", "negative_sft"}, "init/student/positive", "student"),
    ],
)
def test_judging_and_control_training_are_not_free(
    home: Path, method: Any, unused: set[str], stage: str, agent: str
) -> None:
    read = yaml.safe_load((home / "tiny.yaml").read_text())
    raw = {key: value for key, value in read.items() if key not in unused}
    raw["data"]["source"] = str(home / "pairs.jsonl")
    for section in (raw["student"], *raw["teachers"]):
        section["model"] = str(home / section["model"])

    found = by_name(plan(RunConfig.model_validate({**raw, "method": method})))[stage]

    assert found.agent == agent
    assert found.work.tokens > 8 * 8
    assert found.operations > 10_000 * found.work.tokens  # of a model of some 10,000 weights


def test_plan_of_a_dry_trial_says_what_it_is(planned: Planner) -> None:
    report = planned("generation.backend=scripted")

    assert report.notes[0].startswith("DRY TRIAL: generation.backend is scripted")
    assert by_name(report)["init/weak-a/positive-answers"].operations == 0
    assert planned().notes == ()


def test_totals_add_up(planned: Planner) -> None:
    report = planned("rounds=1", "evaluation.answers=0")

    text = shown(report)
    total = sum(stage.operations for stage in report.stages)
    assert f"{len(report.stages)} of {len(report.stages)} stages to run" in text
    assert f"operations: at most {format_count(total)}" in text


STRICT = (
    "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('No system') }}"
    "{% endif %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def plan_with(home: Path, template: str, **changes: Any) -> PlanReport:
    """Return the plan of the tiny config with another template for the student."""
    (home / "other.jinja").write_text(template, encoding="utf-8")
    raw = yaml.safe_load((home / "tiny.yaml").read_text())
    model = {"source": str(home / "models/student"), "chat_template": str(home / "other.jinja")}
    raw |= {"student": {"model": {**model, **changes.pop("model", {})}}}
    raw["data"]["source"] = str(home / "pairs.jsonl")
    for teacher in raw["teachers"]:
        teacher["model"] = str(home / teacher["model"])
    return plan(RunConfig.model_validate({**raw, **changes}), None)


def test_plan_says_whose_template_has_no_system_turns_where_there_are_system_texts(
    home: Path,
) -> None:
    prompted = {"method": {"name": "macpo", "negatives": "prompted"}}
    merged = (
        "student: its chat template has no system turns, so a system text goes in front of the "
        "first user turn"
    )
    assert plan_with(home, STRICT).notes == ()
    assert plan_with(home, STRICT, **prompted).notes == (merged,)
    [refused] = plan_with(home, STRICT, model={"system_turn": "template"}, **prompted).notes
    assert refused.startswith("student: its chat template refuses or skips system turns")


def test_plan_refuses_a_template_that_writes_tokens_the_model_lacks(home: Path) -> None:
    from tests.tiny import tiny_folder, tiny_tokenizer

    folder = tiny_folder(home / "models" / "grown")
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": [f"<{i}>" for i in range(200)]})
    tokenizer.save_pretrained(folder)
    template = STRICT.replace("<|im_start|>", "<199>")
    with pytest.raises(ModelError, match="grown: the chat template writes '<199>'"):
        plan_with(home, template, model={"source": str(folder)})


def test_plan_says_what_layers_with_a_state_may_cost(home: Path, tmp_path: Path) -> None:
    folder = tmp_path / "jamba"
    make_model("jamba").save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    report = plan(load_config(home / "tiny.yaml", [f"student.model={folder}"]))
    [note] = [note for note in report.notes if "carry state" in note]
    found = re.fullmatch(
        "student: layers of kind linear_attention carry state along the row; where a trial of the "
        "weights shows that answers cannot share their prompt's state, each is read with its "
        "prompt in a row of its own: at most ([\\d,]+) tokens instead of ([\\d,]+)",
        note,
    )
    assert found
    apart, shared = (int(number.replace(",", "")) for number in found.groups())
    works = [s.work.tokens for s in report.stages if s.agent == "student" and s.work]
    assert shared == round(sum(works))
    assert shared < apart < 3 * shared
