"""Scoring stages: every answer once, under the scoring policy's own tokenizer."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from macpo.agents import Agent, Policy
from macpo.config import DPOConfig, EngineConfig, TuningConfig
from macpo.errors import DataError
from macpo.records import SCORES_FILE, Pair, Prompt, Response, read_jsonl, read_scores
from macpo.scoring import ScorePairs, ScoreResponses, encode_group
from macpo.training.stages import TrainDPO
from tests.likelihood.plain import make_model, plain_sums
from tests.tiny import tiny_tokenizer
from tests.workbench import Workbench, make_agent, make_pairs, make_prompt, make_response

AGENT = make_agent()
STUDENT = Policy(AGENT, "positive")


@pytest.fixture
def bench(tmp_path: Path) -> Workbench:
    return Workbench(tmp_path)


def answers_to(
    prompts: list[Prompt], policy: str, texts: list[str]
) -> list[tuple[Prompt, Response]]:
    return [(p, make_response(p, t, policy)) for p, t in zip(prompts, texts, strict=True)]


PROMPTS = [make_prompt(text) for text in ("Name a prime.", "Say hello.")]
FIRST = answers_to(PROMPTS, "a/positive", ["Seven is a prime.", "Hello there."])
SECOND = answers_to(PROMPTS, "b/positive", ["Eight", " \n"])


@pytest.mark.parametrize("pack_tokens", [8, 2048])
def test_scores_are_those_of_plain_forwards(bench: Workbench, pack_tokens: int) -> None:
    stage = ScoreResponses(
        "scores",
        STUDENT,
        (bench.write_answers("first", FIRST), bench.write_answers("second", SECOND)),
    )
    made = bench.run(stage, engine=EngineConfig(pack_tokens=pack_tokens))
    scores = read_scores(made.path)
    tokens = sum(score.tokens for score in scores.values())
    assert made.meta == {"scored": 3, "empty": 1, "tokens": tokens}
    loaded = bench.pool.load(STUDENT)
    for prompt, response in (*FIRST, SECOND[0]):
        group = encode_group(loaded.chat, AGENT, prompt, [response])
        with torch.no_grad():
            [expected] = plain_sums(loaded.model, [group])
        assert scores[response.id].sum_logprob == pytest.approx(expected.item(), abs=1e-3)
        assert scores[response.id].tokens == len(group.completions[0])
    assert SECOND[1][1].id not in scores


def test_rows_say_whose_answer_it_was_and_its_perplexity(bench: Workbench) -> None:
    stage = ScoreResponses("scores", STUDENT, (bench.write_answers("first", FIRST),))
    rows = list(read_jsonl(bench.run(stage).path / SCORES_FILE))
    assert [row["prompt_id"] for row in rows] == [prompt.id for prompt in PROMPTS]
    assert [row["policy"] for row in rows] == ["a/positive", "a/positive"]
    for row in rows:
        expected = torch.tensor(-row["sum_logprob"] / row["tokens"]).exp().item()
        assert row["perplexity"] == pytest.approx(expected, rel=1e-5)


def test_pairs_get_the_scores_that_the_filter_gave(bench: Workbench) -> None:
    """What the filter's pass computed serves as the reference of the coming DPO."""
    pairs = make_pairs(5)
    chosen = bench.write_answers("chosen", [(p.prompt, p.chosen) for p in pairs])
    rejected = bench.write_answers("rejected", [(p.prompt, p.rejected) for p in pairs])
    filtered = bench.run(ScoreResponses("filter", STUDENT, (chosen, rejected)))
    paired = bench.run(ScorePairs("reference", STUDENT, bench.write_pairs("pairs", pairs)))
    first, second = read_scores(filtered.path), read_scores(paired.path)
    assert first.keys() == second.keys()
    assert len(first) == 10
    for key, score in first.items():
        assert second[key].tokens == score.tokens
        assert second[key].sum_logprob == pytest.approx(score.sum_logprob, abs=1e-3)


def test_answers_can_be_scored_without_the_token_that_ends_them(bench: Workbench) -> None:
    """The sums are those of a plain forward up to there; an answer that was cut off has no end."""
    chat = bench.pool.chat(AGENT)
    prompt, response = FIRST[0]
    cut_off = replace(response, finished=False)
    ids = (*chat.encode_completion(cut_off, 512), chat.tokenizer.eos_token_id)
    sampled = replace(response, token_ids=ids, tokenizer=chat.fingerprint)
    pairs = [Pair(prompt, response, cut_off), Pair(prompt, sampled, cut_off)]
    written = bench.write_pairs("pairs", pairs)
    made = bench.run(ScorePairs("scores", STUDENT, written, without_ends=True))
    scores = read_scores(made.path)
    loaded = bench.pool.load(STUDENT)
    group = encode_group(loaded.chat, AGENT, prompt, [cut_off])
    with torch.no_grad():
        [expected] = plain_sums(loaded.model, [group])
    for answer in (response, cut_off, sampled):
        assert scores[answer.id].sum_logprob == pytest.approx(expected.item(), abs=1e-3)
        assert scores[answer.id].tokens == len(group.completions[0]) == len(ids) - 1
    whole = bench.run(ScorePairs("whole", STUDENT, written))
    assert read_scores(whole.path)[response.id].tokens == len(ids)


def test_sampled_ids_are_scored_as_they_are(bench: Workbench) -> None:
    """Letter by letter, as sampled: encoding the text again would give fewer tokens."""
    chat = bench.pool.chat(AGENT)
    prompt, response = FIRST[0]
    letters = [i for c in response.text for i in chat.tokenizer.encode(c)]
    sampled = (*letters, chat.end_of_turn)
    own = replace(response, token_ids=sampled, tokenizer=chat.fingerprint)
    foreign = replace(response, token_ids=sampled, tokenizer="another tokenizer")
    written = bench.write_pairs("pairs", [Pair(prompt, own, foreign)])
    scores = read_scores(bench.run(ScorePairs("scores", STUDENT, written)).path)
    assert scores[own.id].tokens == len(response.text) + 1
    assert scores[foreign.id].tokens < len(response.text)


def test_progress_reaches_the_number_of_prompts(bench: Workbench) -> None:
    seen: list[tuple[int, int]] = []
    stage = ScoreResponses("scores", STUDENT, (bench.write_answers("first", FIRST),))
    bench.run(
        stage,
        engine=EngineConfig(pack_tokens=8),
        progress=lambda done, total, **_: seen.append((done, total)),
    )
    assert seen == [(1, 2), (2, 2)]


def test_nothing_but_silence_is_an_error(bench: Workbench) -> None:
    silent = answers_to(PROMPTS, "a/positive", ["", "\t"])
    stage = ScoreResponses("scores", STUDENT, (bench.write_answers("silent", silent),))
    with pytest.raises(DataError) as raised:
        bench.run(stage)
    assert str(raised.value) == "student/positive has no answer to score: all of them are empty"
    assert [response.is_empty for _, response in silent] == [True, True]


def mamba_agent(folder: Path) -> Agent:
    make_model("mamba").save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return make_agent(folder, tuning=TuningConfig(targets=("x_proj",)))


def test_scoring_and_training_in_rows_of_their_own_say_what_they_cost(
    bench: Workbench, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    student = Policy(mamba_agent(tmp_path / "mamba"), "positive")
    pairs = bench.write_pairs("pairs", make_pairs(2))
    caplog.set_level("INFO", "macpo")
    scores = ScorePairs("scores", student, pairs)
    bench.run(scores)
    bench.run(TrainDPO("train", student, pairs, scores, DPOConfig(epochs=1), 0))
    chat = bench.pool.load(student).chat
    groups = [
        encode_group(chat, student.agent, p.prompt, [p.chosen, p.rejected]) for p in make_pairs(2)
    ]
    shared = sum(group.tokens for group in groups)
    apart = shared + sum(len(group.prompt) for group in groups)
    said = [m for m in caplog.messages if "padded rows" in m]
    cost = (
        f"student/positive: in padded rows {apart:,} tokens are read instead of {shared:,} "
        f"({apart / shared:.1f} times)"
    )
    assert said == [
        "mamba: answers are scored from padded rows, since layers of kind linear_attention carry "
        "state along the row",
        cost,
        cost,
    ]


def test_trees_have_no_cost_to_tell(bench: Workbench, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "macpo")
    bench.run(ScorePairs("scores", STUDENT, bench.write_pairs("pairs", make_pairs(2))))
    assert not caplog.messages
