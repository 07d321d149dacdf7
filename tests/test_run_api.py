"""A run opened in a notebook says and does what the run itself did."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import macpo
from macpo.config import SamplingConfig, load_config
from macpo.errors import DamagedError, DataError, ModelError, StoreError
from macpo.policies import PolicyPool
from macpo.records import Message, Prompt, Response, dataset_response, read_pairs, read_scores
from macpo.run_api import PromptLike, Run, open_run
from macpo.run_directory import PlannedStage, RunDir, RunPlan
from macpo.runner import run as run_config
from tests.runs import FinishedRun, write_config
from tests.test_resume import Quiet

NOTEBOOK = Path(__file__).parents[1] / "docs" / "notebook.md"


@pytest.fixture(scope="module")
def opened(finished: FinishedRun) -> Iterator[Run]:
    with open_run(finished.folder) as run:
        yield run


@pytest.fixture(scope="module")
def plan(finished: FinishedRun) -> RunPlan:
    plan = RunDir(finished.folder).plan()
    assert plan is not None
    return plan


def the_stage(plan: RunPlan, name: str) -> PlannedStage:
    return next(stage for stage in plan.stages if stage.name == name)


def test_metrics_are_the_rows_of_the_file(opened: Run, finished: FinishedRun) -> None:
    lines = (finished.folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()

    assert list(opened.metrics.columns) == ["policy", "round", "metric", "value"]
    assert opened.metrics.to_dict("records") == [json.loads(line) for line in lines]


def test_config_is_the_one_that_was_run_with_its_dtype(opened: Run, finished: FinishedRun) -> None:
    assert opened.config == load_config(finished.config)
    assert opened.config.dtype == "float32"


def test_pairs_are_those_of_the_round(opened: Run, finished: FinishedRun) -> None:
    for agent in ("student", "weak-a"):
        written = read_pairs(finished.folder / "stages" / "round-1" / agent / "pairs")
        assert opened.pairs(1, agent) == written


def test_files_of_a_stage_are_found_by_its_name(opened: Run) -> None:
    assert (opened.artifact("round-1/student/train") / "log.jsonl").is_file()
    with pytest.raises(StoreError, match=r"trian is no stage of this run; did you mean round-1/st"):
        opened.artifact("round-1/student/trian")


def test_answers_come_with_their_prompts(opened: Run) -> None:
    answers = opened.answers(2, "student")

    assert len(answers) == 4  # evaluation.answers
    assert all(prompt.id == response.prompt_id for prompt, response in answers)
    assert {r.origin.policy for _, r in answers} == {"student/positive"}
    assert len(opened.answers(1, "weak-b", split="student")) == 8


@pytest.mark.parametrize(("agent", "round"), [("student", 2), ("weak-a", 1), ("student", 0)])
def test_policy_answers_as_the_runs_own_stage_did(
    opened: Run, plan: RunPlan, agent: str, round: int
) -> None:
    (stage,) = plan.answers(plan.policy(agent, round), "test")
    written = opened.answers(round, agent)

    prompts = [prompt for prompt, _ in written]
    answers = opened.policy(agent, round).answer(prompts, seed=stage.identity["seed"])

    assert answers == [response for _, response in written]
    assert [a.origin for a in answers] == [r.origin for _, r in written]


@pytest.mark.parametrize(("agent", "round"), [("student", 2), ("weak-a", 0)])
def test_streamed_pieces_are_the_answer(opened: Run, agent: str, round: int) -> None:
    policy = opened.policy(agent, round)
    for seed in range(3):
        pieces: list[str] = []
        streamed = policy.stream("Name a prime number.", pieces.append, seed=seed)

        [answer] = policy.answer(["Name a prime number."], seed=seed)
        assert streamed == answer
        assert streamed.origin == answer.origin
        assert "".join(pieces) == answer.text


def test_turns_that_are_cut_off_are_counted(opened: Run) -> None:
    turns = [Message("user", "Name a prime number, please."), Message("assistant", "Seven.")] * 12
    last = Message("user", "Why?")

    assert opened.policy("student").forgotten_turns([*turns[:2], last]) == 0
    forgotten = opened.policy("student").forgotten_turns([*turns, last])
    assert 0 < forgotten < 24
    assert forgotten % 2 == 0


def test_another_seed_draws_another_answer_and_greedy_takes_none(opened: Run) -> None:
    student = opened.policy("student")
    greedy = SamplingConfig(temperature=0, max_new_tokens=4)

    drawn = [student.answer(["Name a prime number."], seed=seed)[0] for seed in range(4)]
    settled = [student.answer(["Name a prime number."], greedy, seed=seed)[0] for seed in range(4)]

    assert len({response.token_ids for response in drawn}) > 1
    assert len({response.token_ids for response in settled}) == 1
    assert len(settled[0].token_ids) <= 4


def test_scores_are_those_that_the_runs_filter_saw(opened: Run, finished: FinishedRun) -> None:
    """In round 2 the student of round 1 scores both teachers' answers and its own negative's."""
    written = read_scores(finished.folder / "stages" / "round-2" / "student" / "filter-scores")
    answers = [opened.answers(1, teacher, "student") for teacher in ("weak-a", "weak-b")]
    prompts = [prompt for prompt, _ in answers[0]]
    candidates = [[a, b] for (_, a), (_, b) in zip(*answers, strict=True)]
    filled = [i for i, pair in enumerate(candidates) if not any(r.is_empty for r in pair)]

    scores = opened.policy("student", 1).score(
        [prompts[i] for i in filled], [candidates[i] for i in filled]
    )

    assert len(filled) > 4
    for i, found in zip(filled, scores, strict=True):
        for response, score in zip(candidates[i], found, strict=True):
            assert score.tokens == written[response.id].tokens
            assert score.sum_logprob == pytest.approx(written[response.id].sum_logprob, rel=1e-5)


def test_filter_keeps_what_the_run_chose(opened: Run) -> None:
    pairs = {pair.prompt.id: pair for pair in opened.pairs(2, "student")}
    answers = [opened.answers(1, teacher, "student") for teacher in ("weak-a", "weak-b")]
    prompts = [prompt for prompt, _ in answers[0]]
    candidates = [[a, b] for (_, a), (_, b) in zip(*answers, strict=True)]

    kept = macpo.filter_by_perplexity(opened.policy("student", 1), prompts, candidates)

    chosen = {p.id: [c.response for c in found] for p, found in zip(prompts, kept, strict=True)}
    assert pairs
    for prompt_id, pair in pairs.items():
        assert chosen[prompt_id] == [pair.chosen]


def test_filter_orders_leaves_out_what_is_empty_and_keeps_as_many_as_asked(opened: Run) -> None:
    student = opened.policy("student")
    texts = ["Mix flour and water.", "  ", "Bread is baked at home.", "No."]
    (scores,) = student.score(["How do I bake bread?"], [[t for t in texts if t.strip()]])
    order = sorted(zip(scores, (0, 2, 3), strict=True), key=lambda item: item[0].perplexity)

    kept, none = macpo.filter_by_perplexity(
        student, ["How do I bake bread?", "And now?"], [texts, [""]], top_k=2
    )

    assert [c.response.text for c in kept] == [texts[i] for _, i in order[:2]]
    assert [c.score.perplexity for c in kept] == pytest.approx([s.perplexity for s, _ in order[:2]])
    assert none == []


def test_prompts_are_words_or_messages(opened: Run) -> None:
    forms: list[PromptLike] = [
        "Is water brown?",
        [{"role": "user", "content": "Is water brown?"}],
        [Message("user", "Is water brown?")],
        Prompt((Message("user", "Is water brown?"),)),
    ]

    scores = opened.policy("student").score(forms, [["No."]] * 4)

    assert len({score.sum_logprob for (score,) in scores}) == 1


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda p: p.answer("Hi"), r"^prompts are a list, such as \['How do I bake bread\?'\]$"),
        (lambda p: p.score(["Hi"], ["Yes."]), r"^answers to a prompt are a list, such as \['Yes"),
        (lambda p: p.score(["Hi"], []), r"^1 prompts, but 0 lists of answers; give one list to ea"),
        (lambda p: p.score(["Hi"], [["Yes.", " "]]), r"^prompt 0 \(from 0\) holds an empty answer"),
        (lambda p: p.score(["Hi", "Ho"], [["Yes."], []]), r"^prompt 1 \(from 0\) has no answers"),
        (lambda p: p.answer([[{"role": "assistant", "content": "Hi"}]]), r"of which the last is "),
        (lambda p: p.answer([[{"role": "users", "content": "Hi"}]]), r"its role one of system, us"),
        (lambda p: p.answer(["long " * 500]), r"over the limit of 128; raise limits\.prompt_toke"),
    ],
)
def test_what_cannot_be_asked_is_told(
    opened: Run, call: Callable[[Any], object], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        call(opened.policy("student"))


def test_unknown_agents_and_rounds_are_told_the_nearest(opened: Run) -> None:
    with pytest.raises(StoreError, match=r"no agent 'weak-c' in this run; did you mean weak-"):
        opened.policy("weak-c")
    with pytest.raises(StoreError, match=r"student has no policy of round 3; its rounds are 0 to"):
        opened.answers(3)
    with pytest.raises(StoreError, match=r"^student learned from no pairs in round 0$"):
        opened.pairs(0)
    with pytest.raises(StoreError, match=r"^weak-a was not asked the prompts of split student aft"):
        opened.answers(2, "weak-a", "student")


def test_policies_share_one_base_in_memory_until_the_run_is_closed(
    finished: FinishedRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[str] = []
    load = PolicyPool._base

    def counted(pool: PolicyPool, agent: Any) -> Any:
        before = len(pool._bases)
        base = load(pool, agent)
        loaded.extend([agent.name] * (len(pool._bases) - before))
        return base

    monkeypatch.setattr(PolicyPool, "_base", counted)
    with open_run(finished.folder) as run:
        first, last = run.policy("student", 0), run.policy("student")
        scores = [policy.score(["Hi"], [["Hello."]])[0][0] for policy in (first, last, first)]
    assert loaded == ["student"]
    assert scores[0] == scores[2] != scores[1]

    assert first.score(["Hi"], [["Hello."]])[0][0] == scores[0]  # after it was closed
    assert loaded == ["student", "student"]


def test_run_that_is_not_finished_shows_what_is_there(copied: FinishedRun) -> None:
    plan = RunDir(copied.folder).plan()
    assert plan is not None
    shutil.rmtree(RunDir(copied.folder).artifact(the_stage(plan, "round-2/student/train")))

    run = open_run(copied.folder)

    assert run.policy("student", 1).answer(["Hi"])
    with pytest.raises(StoreError, match=r"round-2/student/train is not done yet; run the config"):
        run.policy("student")


def test_damaged_weights_are_not_used(copied: FinishedRun) -> None:
    weights = copied.folder / "stages" / "round-2" / "student" / "train" / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")

    with pytest.raises(DamagedError):
        open_run(copied.folder).policy("student")


def test_weights_are_not_put_on_another_base(tmp_path: Path) -> None:
    path = write_config(tmp_path / "home", method="naive-sft", evaluation={"answers": 0})
    text = path.read_text(encoding="utf-8")
    unused = ("rounds:", "dpo:", "negative_sft:")
    kept = re.sub(rf"(?m)^({'|'.join(unused)}).*\n(  .*\n)*", "", text)
    path.write_text(kept, encoding="utf-8")
    run_config(load_config(path), tmp_path / "run", Quiet())
    shutil.rmtree(tmp_path / "home" / "models" / "student")
    shutil.copytree(tmp_path / "home" / "models" / "weak-a", tmp_path / "home/models/student")

    with pytest.raises(ModelError, match=r"^student: student is another model now than when the"):
        open_run(tmp_path / "run").policy("student")


def test_run_of_an_older_macpo_is_told_what_to_do(copied: FinishedRun) -> None:
    RunDir(copied.folder).plan_file.unlink()

    with pytest.raises(StoreError, match=r"has no plan\.json, an older macpo ran it; run its conf"):
        open_run(copied.folder)


def test_no_run_names_the_runs_nearby(finished: FinishedRun) -> None:
    with pytest.raises(StoreError, match=r"no run here; did you mean .*tiny\?$"):
        open_run(finished.folder.with_name("tinny"))


def test_answers_of_elsewhere_are_scored_as_text(opened: Run) -> None:
    prompt = Prompt((Message("user", "Is water brown?"),))
    said: list[str | Response] = ["No.", dataset_response(prompt, "No.")]

    (scores,) = opened.policy("weak-a").score([prompt], [said])

    assert scores[0] == scores[1]


def test_examples_of_the_page_on_notebooks_run(
    finished: FinishedRun,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    blocks = re.findall(r"^```python\n(.*?)^```", NOTEBOOK.read_text(encoding="utf-8"), re.M | re.S)
    code = "\n".join(blocks)
    assert len(blocks) == 4
    (tmp_path / "runs").mkdir()
    shutil.copytree(finished.folder, tmp_path / "runs" / "quickstart", symlinks=True)
    monkeypatch.chdir(tmp_path)

    namespace: dict[str, Any] = {}
    exec(code.replace("example:quickstart", str(finished.config)), namespace)

    assert namespace["result"].final["student"] == Path("runs/quickstart/final/student")
    assert namespace["scores"][0].perplexity > 1
    assert len(namespace["kept"]) == 1
    assert "stages were done already" in capsys.readouterr().err  # which macpo.run shows
