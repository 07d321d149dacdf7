"""Keys of stages: one input changes, and exactly the stages that depend on it have other keys.

What a stage reads is written here by hand, off Algorithm 1 (`reads`); nothing of it is asked of the
code. Runs are laid out over real folders and files, and not run.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import pytest
import torch

import macpo.version
from macpo import answering, filter, pairs, scoring
from macpo.agents import assemble_team
from macpo.backends import LOCAL, VLLM, Backend
from macpo.config import ModelConfig, generation, load_config
from macpo.data import stages as data_stages
from macpo.data.stages import content_digest
from macpo.evaluation import answers, collapse, preference
from macpo.evaluation import pairs as pair_metrics
from macpo.methods.build import build_plan
from macpo.models.sources import resolve
from macpo.stage import Stage
from macpo.training import stages as training
from tests.runs import python_environment, write_config
from tests.tiny import tiny_tokenizer

TEACHERS = ("weak-a", "weak-b")
EVERYBODY = ("student", *TEACHERS)
ROUNDS = 2

Keys = Mapping[str, str]
"""Keys by the names of stages."""


def reads() -> dict[str, list[str]]:
    """Return what each stage of two teachers and two rounds reads, off Algorithm 1."""
    flow: dict[str, list[str]] = {"data": []}
    for k in TEACHERS:
        flow[f"init/{k}/positive"] = ["data"]
        flow[f"init/{k}/negative"] = ["data", f"init/{k}/positive"]
        flow[f"init/{k}/negative-answers"] = ["data", f"init/{k}/negative"]
    # Weak labels are the first teacher's.
    flow["init/weak-a/positive-answers"] = ["data", "init/weak-a/positive"]
    flow["init/student/positive"] = ["init/weak-a/positive-answers"]
    flow["init/student/negative"] = ["init/student/positive", "init/weak-a/negative-answers"]
    flow["init/student/negative-answers"] = ["data", "init/student/negative"]
    policy = {name: f"init/{name}/positive" for name in EVERYBODY}
    measured = _measure(flow, "init", policy, "")
    for t in range(1, ROUNDS + 1):
        now = f"round-{t}"
        chosen = [f"{now}/{k}/positive-answers" for k in TEACHERS]
        for k in TEACHERS:
            flow[f"{now}/{k}/positive-answers"] = ["data", policy[k]]
        candidates = [*chosen, "init/student/negative-answers"]
        flow[f"{now}/student/filter-scores"] = [policy["student"], *candidates]
        flow[f"{now}/student/pairs"] = [f"{now}/student/filter-scores", *candidates]
        flow[f"{now}/student/train"] = [
            *(policy["student"], f"{now}/student/pairs", f"{now}/student/filter-scores")
        ]
        policy["student"] = f"{now}/student/train"
        flow[f"{now}/student/positive-answers"] = ["data", policy["student"]]
        for k in TEACHERS:
            rejected = f"init/{k}/negative-answers"
            flow[f"{now}/{k}/pairs"] = [f"{now}/student/positive-answers", rejected]
            flow[f"{now}/{k}/reference"] = [policy[k], f"{now}/{k}/pairs"]
            flow[f"{now}/{k}/train"] = [policy[k], f"{now}/{k}/pairs", f"{now}/{k}/reference"]
            policy[k] = f"{now}/{k}/train"
        measured += _measure(flow, now, policy, f"{now}/*/pairs")
        flow[f"{now}/collapse"] = [*measured, *([f"round-{t - 1}/collapse"] if t > 1 else [])]
        measured = []
    return flow


def _measure(
    flow: dict[str, list[str]], when: str, policy: Mapping[str, str], pairs: str
) -> list[str]:
    """Add what measures everybody; return the names."""
    made = []
    for name in EVERYBODY:
        here = f"{when}/{name}"
        flow[f"{here}/test-answers"] = ["data", policy[name]]
        flow[f"{here}/evaluate"] = ["data", policy[name]]
        flow[f"{here}/answer-metrics"] = [f"{here}/test-answers"]
        made += [f"{here}/evaluate", f"{here}/answer-metrics"]
        if pairs:
            flow[f"{here}/pair-metrics"] = [f"{here}/pairs"]
            made.append(f"{here}/pair-metrics")
    return made


FLOW = reads()


def downstream(*patterns: str) -> set[str]:
    """Return the stages that match, and all that stand on them."""
    found = {name for name in FLOW if any(fnmatchcase(name, pattern) for pattern in patterns)}
    assert all(any(fnmatchcase(name, pattern) for name in FLOW) for pattern in patterns)
    while more := {name for name, read in FLOW.items() if found & set(read)} - found:
        found |= more
    return found


def running(agent: str) -> tuple[str, ...]:
    """Return patterns of the stages that run an agent's model."""
    own = ("positive", "negative", "*-answers", "filter-scores", "reference", "train", "evaluate")
    patterns = [f"*/{agent}/{what}" for what in own]
    return tuple(p for p in patterns if any(fnmatchcase(name, p) for name in FLOW))


@pytest.fixture(autouse=True, scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep models that are cut here, and notes of what files hold, out of the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MACPO_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a config, `tiny.yaml`, and its models and data."""
    return write_config(tmp_path_factory.mktemp("keys")).parent


def planned(home: Path, *overrides: str, dtype: str = "float32", fetch: bool = True) -> Keys:
    """Lay the run out, and return its keys."""
    config = load_config(home / "tiny.yaml", list(overrides))
    team = assemble_team(config, dtype, fetch=fetch)
    return {
        s.name: s.key for s in build_plan(config, team, content_digest(config.data, fetch=fetch))
    }


@pytest.fixture(scope="module")
def before(home: Path) -> Keys:
    keys = planned(home)
    assert keys.keys() == FLOW.keys()  # the table here is whole
    return keys


def changed(before: Keys, after: Keys) -> set[str]:
    """Return the names of stages that have another key now."""
    assert before.keys() == after.keys()
    return {name for name, key in after.items() if key != before[name]}


@contextmanager
def edited(path: Path, edit: Callable[[bytes], bytes]) -> Iterator[None]:
    """Let a file hold something else for a while; one that was not there is made."""
    held = path.read_bytes() if path.exists() else None
    path.write_bytes(edit(held or b""))
    try:
        yield
    finally:
        path.unlink()
        if held is not None:
            path.write_bytes(held)


def flipped(content: bytes) -> bytes:
    """Return weights with one bit of the last number flipped."""
    return content[:-1] + bytes([content[-1] ^ 1])


def with_json(**values: Any) -> Callable[[bytes], bytes]:
    """Return an edit that sets keys of a JSON file."""
    return lambda content: json.dumps({**json.loads(content or b"{}"), **values}).encode()


def another_merge(content: bytes) -> bytes:
    """Return a tokenizer that has forgotten its last merge."""
    tokenizer = json.loads(content)
    tokenizer["model"]["merges"].pop()
    return json.dumps(tokenizer).encode()


FILES: dict[str, tuple[str, Callable[[bytes], bytes], tuple[str, ...]]] = {
    "weights of the student": ("models/student/model.safetensors", flipped, running("student")),
    "weights of a teacher": ("models/weak-b/model.safetensors", flipped, running("weak-b")),
    "config of a model": (
        "models/weak-a/config.json",
        with_json(rms_norm_eps=1e-4),
        running("weak-a"),
    ),
    # Prompts that some agent cannot read are left out for all: the data stands on all readers.
    "tokenizer": ("models/weak-b/tokenizer.json", another_merge, ("data",)),
    "chat template": (
        "models/student/chat_template.jinja",
        lambda content: content + b"{# #}",
        ("data",),
    ),
    "ends of answers": (
        "models/student/generation_config.json",
        with_json(eos_token_id=[1, 2]),
        ("data",),
    ),
    "row of data": (
        "pairs.jsonl",
        lambda content: content.replace(b"bake it.", b"bake It.", 1),
        ("data",),
    ),
    "file that nothing reads": ("models/student/README.md", lambda content: b"Hello.", ()),
    "code that is not run": ("models/student/modeling.py", lambda content: b"x = 1", ()),
    "weights written again": ("models/student/model.safetensors", bytes, ()),
}
"""A file of the run's inputs, what is done to it, and the stages that read it."""


@pytest.mark.parametrize("what", FILES)
def test_edited_file_changes_the_keys_of_what_depends_on_it_alone(
    what: str, home: Path, before: Keys
) -> None:
    name, edit, readers = FILES[what]
    with edited(home / name, edit):
        after = planned(home)
    assert changed(before, after) == (downstream(*readers) if readers else set())


ANSWERS = ("*-answers",)
CONFIGS: dict[str, tuple[str, tuple[str, ...]]] = {
    "seed=1": ("seed", ("data",)),
    "data.noise=0.1": ("data", ("data",)),
    "data.splits.test=7": ("data", ("data",)),
    "data.max_bad_rows=0.5": ("nothing", ()),  # what it takes it takes whole
    "limits.prompt_tokens=127": ("limits", ("data",)),
    "limits.response_tokens=63": ("limits", ("data",)),
    "student.model.chat_template=vicuna": ("template", ("data",)),
    "student.model.system_turn=merge": ("template", ("data",)),
    "teachers.1.model.chat_template_args.enable_thinking=false": ("template", ("data",)),
    "student.model.quantize=nf4": ("weights", running("student")),
    "teachers.0.model.quantize=nf4": ("weights", running("weak-a")),
    "tuning.rank=4": ("tuning", ("init/weak-*/positive",)),
    "student.tuning.rank=4": ("tuning", ("init/student/positive",)),
    "teachers.1.tuning.alpha=4": ("tuning", ("init/weak-b/positive",)),
    "teachers.1.tuning.dropout=0.5": ("tuning", ("init/weak-b/positive",)),
    "teachers.1.tuning.targets=all-linear": ("tuning", ("init/weak-b/positive",)),
    "sft.learning_rate=0.5": ("sft", ("init/*/positive",)),
    "student.sft.epochs=2": ("sft", ("init/student/positive",)),
    "teachers.1.sft.batch_size=2": ("sft", ("init/weak-b/positive",)),
    "negative_sft.epochs=2": ("negative_sft", ("init/*/negative",)),
    "student.negative_sft.epochs=2": ("negative_sft", ("init/student/negative",)),
    "teachers.0.negative_sft.epochs=2": ("negative_sft", ("init/weak-a/negative",)),
    "dpo.beta=0.2": ("dpo", ("*/train",)),
    "dpo.loss=ipo": ("dpo", ("*/train",)),
    "dpo.gamma=0": ("dpo", ("*/train",)),
    "dpo.label_smoothing=0.1": ("dpo", ("*/train",)),
    "dpo.max_grad_norm=2": ("dpo", ("*/train",)),
    "student.dpo.beta=0.2": ("dpo", ("*/student/train",)),
    "teachers.1.dpo.beta=0.2": ("dpo", ("*/weak-b/train",)),
    # Before round 1 the last policy and the initial one are the same.
    "teachers.1.dpo.reference=initial": ("reference", ("round-2/weak-b/reference",)),
    "teachers.1.dpo.reference=base": ("reference", ("*/weak-b/reference",)),
    "sampling.temperature=0.5": ("sampling", ANSWERS),
    "sampling.top_k=5": ("sampling", ANSWERS),
    "sampling.max_new_tokens=7": ("sampling", ANSWERS),
    "generation.backend=scripted": ("backend", ANSWERS),
    "method.top_k=2": ("method", ("*/student/pairs",)),
    "evaluation.answers=3": ("evaluation", ("*/test-answers",)),
    "evaluation.collapse.length=3": ("collapse", ("*/collapse",)),
    "name=other": ("nothing", ()),
    "device=auto": ("nothing", ()),
    "engine.pack_tokens=77": ("nothing", ()),
    "engine.decode_memory_gib=1": ("nothing", ()),
    "engine.checkpoint_steps=3": ("nothing", ()),
    "engine.checkpoint_activations=true": ("nothing", ()),
    "execution.backend=local": ("nothing", ()),
    "track=tensorboard": ("nothing", ()),
    "sft.epochs=1": ("the value that is there", ()),
}
"""An override, what it is of, and the stages that read it."""


@pytest.mark.parametrize("override", CONFIGS)
def test_option_changes_the_keys_of_what_depends_on_it_alone(
    override: str, home: Path, before: Keys
) -> None:
    _, readers = CONFIGS[override]
    expected = downstream(*readers) if readers else set()
    assert changed(before, planned(home, override)) == expected


REFERENCES = {
    "initial": ({"round-2/student/reference"}, "round-2/student/train"),
    "base": ({"round-1/student/reference", "round-2/student/reference"}, "*/student/train"),
}
"""For a student's reference: the stages that score for it, and those that read other scores."""


@pytest.mark.parametrize("reference", REFERENCES)
def test_reference_that_is_not_who_filters_scores_for_itself(
    reference: str, home: Path, before: Keys
) -> None:
    """And changes nothing but the training that reads its scores."""
    scoring, readers = REFERENCES[reference]
    after = planned(home, f"student.dpo.reference={reference}")
    assert after.keys() - before.keys() == scoring
    others = {name: key for name, key in after.items() if name not in scoring}
    assert changed(before, others) == downstream(readers)


def test_dtype_is_part_of_all_that_runs_a_model(home: Path, before: Keys) -> None:
    everything = downstream("init/*/positive")
    assert changed(before, planned(home, dtype="bfloat16")) == everything == FLOW.keys() - {"data"}


def test_another_round_adds_stages_and_changes_none(home: Path, before: Keys) -> None:
    after = planned(home, "rounds=3")
    assert after.items() > before.items()
    assert all(name.startswith("round-3/") for name in after.keys() - before.keys())


def test_one_who_is_not_measured_changes_nobody_elses_measurements(
    home: Path, before: Keys
) -> None:
    after = planned(home, "evaluation.teachers=false")
    assert after.keys() < before.keys()
    others = {name: key for name, key in before.items() if name in after}
    assert changed(others, after) == {"round-1/collapse", "round-2/collapse"}


VERSIONS: dict[type[Stage], tuple[str, ...]] = {
    data_stages.SplitData: ("data",),
    training.SFTOnDataset: ("init/weak-*/positive", "init/weak-*/negative"),
    training.SFTOnAnswers: ("init/student/positive", "init/student/negative"),
    training.TrainDPO: ("*/train",),
    answering.Respond: ANSWERS,
    scoring.ScoreResponses: ("*/filter-scores",),
    scoring.ScorePairs: ("*/reference",),
    filter.FilteredPairs: ("round-*/student/pairs",),
    pairs.DirectPairs: ("round-*/weak-*/pairs",),
    preference.Evaluate: ("*/evaluate",),
    answers.MeasureAnswers: ("*/answer-metrics",),
    pair_metrics.MeasurePairs: ("*/pair-metrics",),
    collapse.CheckCollapse: ("*/collapse",),
}
"""Kinds of stages, and which stages are of that kind."""


@pytest.mark.parametrize("kind", VERSIONS, ids=lambda kind: kind.__name__)
def test_version_of_a_kind_of_stage_changes_its_keys_and_what_stands_on_them(
    kind: type[Stage], home: Path, before: Keys, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kind, "version", kind.version + 1)
    assert changed(before, planned(home)) == downstream(*VERSIONS[kind])


ENGINES = [replace(VLLM, engine=lambda section, v=v: v) for v in ("0.32", "0.33")]


@pytest.mark.parametrize(
    ("versions", "section"),
    [
        ([LOCAL, replace(LOCAL, version=2)], "{backend: local}"),
        (ENGINES, "{backend: vllm, python: python3}"),
    ],
    ids=["macpo's own", "an engine's"],
)
def test_version_of_what_answers_is_part_of_answers(
    versions: list[Backend], section: str, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = []
    for backend in versions:
        monkeypatch.setattr(generation, "find_backend", lambda name, found=backend: found)
        keys.append(planned(home, f"generation={section}"))
    assert changed(*keys) == downstream(*ANSWERS)


def test_versions_of_libraries_are_noted_and_are_no_part_of_keys(
    home: Path, before: Keys, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is finished stays; a run says that it goes on with others (tests/faults)."""
    import transformers

    for module in (torch, transformers):
        monkeypatch.setattr(module, "__version__", "9.9.9")
    monkeypatch.setattr(macpo.version, "__version__", "9.9.9")
    assert planned(home) == before


def test_place_of_models_and_data_is_no_part_of_keys(
    home: Path, before: Keys, tmp_path: Path
) -> None:
    shutil.copytree(home, tmp_path / "elsewhere")
    assert planned(tmp_path / "elsewhere") == before


def test_tokenizers_that_change_places_change_what_runs_their_models(
    home: Path, tmp_path: Path
) -> None:
    """The data, which all stages stand on, knows only which tokenizers there are."""
    place = shutil.copytree(home, tmp_path / "mixed")
    student, one, other = (place / "models" / name for name in EVERYBODY)
    tiny_tokenizer("llama3").save_pretrained(one)
    before = planned(place)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copyfile(one / name, other / name)
        shutil.copyfile(student / name, one / name)
    after = planned(place)
    assert changed(before, after) == downstream(*running("weak-a"), *running("weak-b"))
    assert after["data"] == before["data"]


def test_tokenizer_without_its_converted_form_counts(tmp_path: Path) -> None:
    write_config(tmp_path)
    folder = tmp_path / "models" / "weak-a"
    agent = assemble_team(load_config(tmp_path / "tiny.yaml"), "float32", fetch=True).teachers[0]
    (folder / "vocab.txt").write_text("a\n")
    beside_json = agent.reader()
    (folder / "tokenizer.json").unlink()
    alone = agent.reader()
    (folder / "vocab.txt").write_text("b\n")
    assert len({beside_json, alone, agent.reader()}) == 3


def test_code_that_is_run_is_part_of_the_model(tmp_path: Path, home: Path) -> None:
    folder = shutil.copytree(home / "models" / "weak-a", tmp_path / "m")

    def digests() -> list[str | None]:
        return [
            resolve(ModelConfig(source=str(folder), trust_remote_code=trusted)).digest
            for trusted in (False, True)
        ]

    first = digests()
    (folder / "modeling_own.py").write_text("SCALE = 1\n")
    second = digests()
    (folder / "modeling_own.py").write_text("SCALE = 2\n")
    third = digests()
    assert first[0] == second[0] == third[0] == first[1]
    assert len({first[1], second[1], third[1]}) == 3


def test_cut_model_is_made_again_where_its_tokenizer_changed(tmp_path: Path, home: Path) -> None:
    """Its weights are the same, and so is their digest; its folder has a copy of the tokenizer."""
    folder = shutil.copytree(home / "models" / "student", tmp_path / "m")
    cut = ModelConfig(source=str(folder), layers="0-1")
    one = resolve(cut)
    template = folder / "chat_template.jinja"
    template.write_text(template.read_text() + "{# other #}")
    other = resolve(cut)
    assert one.digest == other.digest
    assert template.read_text() == Path(other.location, template.name).read_text()
    assert template.read_text() != Path(one.location, template.name).read_text()


def test_keys_do_not_depend_on_the_hash_seed_of_the_process(home: Path, before: Keys) -> None:
    script = (
        "import json, sys; from pathlib import Path; from tests.test_keys import planned; "
        "print(json.dumps(planned(Path(sys.argv[1]))))"
    )
    environment = python_environment(PYTHONHASHSEED="1", OMP_NUM_THREADS="1")
    root = Path(__file__).resolve().parents[1]
    environment["PYTHONPATH"] = os.pathsep.join([environment["PYTHONPATH"], str(root)])
    done = subprocess.run(
        [sys.executable, "-c", script, str(home)],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(done.stdout.splitlines()[-1]) == before
