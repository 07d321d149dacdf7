"""The metrics on held-out pairs and on a policy's answers to their prompts."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from macpo.agents import Policy
from macpo.config import LimitsConfig
from macpo.errors import DamagedError, DataError
from macpo.evaluation.answers import AnswersEvaluator, MeasureAnswers
from macpo.evaluation.diversity import compression_ratio, measure_diversity, self_bleu
from macpo.evaluation.drift import MeasureKL
from macpo.evaluation.measures import (
    ITEMS_FILE,
    METRICS_FILE,
    Item,
    read_items,
    read_measures,
    write_measures,
)
from macpo.evaluation.pairs import MeasurePairs, measure_pair
from macpo.evaluation.preference import Evaluate, corpus_perplexity, preference_accuracy
from macpo.records import (
    CompletionScore,
    Origin,
    Pair,
    PreferenceExample,
    Response,
    dataset_response,
)
from macpo.scoring import encode_group
from tests.workbench import Workbench, make_agent, make_prompt


def test_preference_accuracy_compares_means_per_token_and_halves_ties() -> None:
    short, long = CompletionScore(-4.0, 2), CompletionScore(-6.0, 6)
    assert preference_accuracy([(long, short)]) == 1.0
    assert preference_accuracy([(short, long)]) == 0.0
    assert preference_accuracy([(long, short), (short, short)]) == 0.75


def test_corpus_perplexity_weighs_every_token_the_same() -> None:
    scores = [CompletionScore(-1.0, 1), CompletionScore(-2.0, 8)]
    assert corpus_perplexity(scores) == pytest.approx(math.exp(3 / 9))


def test_a_hopeless_policy_has_a_finite_perplexity() -> None:
    assert math.isfinite(corpus_perplexity([CompletionScore(-1e6, 1)]))


def test_evaluation_compares_answers_with_the_prompt_as_the_model_saw_it(tmp_path: Path) -> None:
    bench = Workbench(tmp_path)
    policy, prompt = Policy(make_agent(), "positive"), make_prompt("Name a prime, please.")
    seen = bench.pool.load(policy).chat.encode_prompt(prompt, 512).ids
    copy = Response(prompt.id, "a", Origin("student/positive"), True, tuple(seen))
    answers = bench.write_answers("answers", [(prompt, copy)])
    metrics = bench.run(MeasureAnswers("answers", policy.agent, answers)).meta
    assert metrics["answer_copying"] == 1


def test_evaluation_measures_the_answers_that_it_is_given(tmp_path: Path) -> None:
    bench = Workbench(tmp_path)
    prompt = make_prompt("Name a prime.")
    origin = Origin("student/positive")
    answers = bench.write_answers(
        "answers",
        [
            (prompt, Response(prompt.id, "a", origin, True, (7,) * 103)),
            (prompt, Response(prompt.id, "b", origin, False, (7,))),
        ],
    )
    made = bench.run(MeasureAnswers("answer-metrics", make_agent(), answers))
    metrics, counts = made.meta, read_measures(made.path).counts
    assert read_measures(made.path).metrics == metrics
    assert counts == {"answers": 2}
    assert metrics["answer_repetition"] == pytest.approx(0.99 / 2)
    assert metrics["answer_copying"] == 0
    assert metrics["answer_tokens"] == 52
    assert metrics["answers_finished"] == 0.5
    first, second = read_items(made.path)
    assert first.prompt_id == second.prompt_id == prompt.id
    assert [first.values["answer_tokens"], second.values["answer_tokens"]] == [103, 1]
    assert set(metrics) - set(first.values) == {"distinct_1", "compression_ratio"}
    for name in first.values:
        assert (first.values[name] + second.values[name]) / 2 == pytest.approx(metrics[name])


def test_distinct_ngrams_are_counted_over_all_answers() -> None:
    metrics = measure_diversity(["a b a", "a b"])
    assert metrics["distinct_1"] == 2 / 5
    assert metrics["distinct_2"] == 2 / 3  # a b, b a, a b


def test_diversity_of_silence_is_not_defined() -> None:
    assert measure_diversity(["", " "]) == {}
    assert set(measure_diversity(["one", "two"])) == {"distinct_1", "compression_ratio"}


def test_answers_that_are_alike_compress_better_and_have_a_higher_self_bleu() -> None:
    different = [f"{a} {b} {a}{b} and {b * 3}" for a, b in zip("abcdef", "uvwxyz", strict=True)]
    alike = different[:1] * 6
    assert compression_ratio(alike) > 2 * compression_ratio(different)
    assert self_bleu(alike) == pytest.approx(1.0)
    assert self_bleu(different) < 0.5
    assert self_bleu(["one answer", ""]) == 0.0


def test_self_bleu_is_asked_for_and_measured(tmp_path: Path) -> None:
    bench = Workbench(tmp_path)
    prompt = make_prompt("Name a prime.")
    response = Response(prompt.id, "Seven is one of them.", Origin("a/positive"), True, (7,))
    answers = bench.write_answers("answers", [(prompt, response)] * 2)
    plain = bench.run(MeasureAnswers("plain", make_agent(), answers)).meta
    asked = bench.run(MeasureAnswers("asked", make_agent(), answers, self_bleu=True)).meta
    assert asked == {**plain, "self_bleu": pytest.approx(1.0)}


def test_self_bleu_without_its_library_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("macpo.evaluation.answers.find_spec", lambda name: None)
    faults = list(AnswersEvaluator(self_bleu=True).faults("data.jsonl", 4))
    assert faults == ["self_bleu needs sacrebleu: pip install 'macpo[diversity]', or remove it"]
    assert not list(AnswersEvaluator().faults("data.jsonl", 4))


@pytest.mark.parametrize(
    ("chosen", "rejected", "likeness", "longer"),
    [
        ("a b c", "a b c", 1.0, 0.5),
        ("a b", "c d e", 0.0, 0.0),
        ("a a b", "a c", 2 / 5, 1.0),
    ],
)
def test_likeness_of_a_pair_is_the_share_of_common_words(
    chosen: str, rejected: str, likeness: float, longer: float
) -> None:
    prompt = make_prompt("Name a prime.")
    pair = Pair(prompt, dataset_response(prompt, chosen), dataset_response(prompt, rejected))
    values = measure_pair(pair).values
    assert values == {"pair_likeness": pytest.approx(likeness), "longer_chosen": longer}


def test_pairs_are_measured_where_there_are_some(tmp_path: Path) -> None:
    bench = Workbench(tmp_path)
    prompt = make_prompt("Name a prime.")
    pair = Pair(prompt, dataset_response(prompt, "Seven."), dataset_response(prompt, "Seven"))
    made = bench.run(MeasurePairs("pairs", bench.write_pairs("made", [pair])))
    assert read_measures(made.path).counts == {"learned_pairs": 1}
    assert made.meta == {"pair_likeness": 0.0, "longer_chosen": 0.5}


def test_kl_is_the_difference_of_log_probabilities_on_the_policys_own_answers(
    tmp_path: Path,
) -> None:
    """Against the engine itself, answer by answer; of a policy to itself it is zero."""
    bench = Workbench(tmp_path)
    agent = make_agent()
    trainable = bench.train_from(agent).trainable
    weights = {name: torch.full_like(value, 0.05) for name, value in trainable.items()}
    initial = Policy(agent, "positive")
    moved = Policy(agent, "positive", bench.write_weights("moved", weights))
    prompt = make_prompt("Name a prime.")
    said = [Response(prompt.id, t, Origin("x"), True) for t in ("Seven.", "It is eleven, I think.")]
    silent = Response(prompt.id, "", Origin("x"), True)
    answers = bench.write_answers("answers", [(prompt, r) for r in (*said, silent)])
    made = bench.run(MeasureKL("kl", moved, initial, answers))
    scores = []
    for policy in (moved, initial):
        loaded = bench.pool.load(policy)
        groups = [encode_group(loaded.chat, agent, prompt, [r]) for r in said]
        scores.append([score for (score,) in loaded.engine(512).score(groups)])
    sums = [now.sum_logprob - then.sum_logprob for now, then in zip(*scores, strict=True)]
    assert abs(sums[0]) > 0.01
    assert made.meta["kl_initial"] == pytest.approx(sum(sums) / 2, abs=1e-3)
    tokens = sum(score.tokens for score in scores[0])
    assert made.meta["kl_initial_per_token"] == pytest.approx(sum(sums) / tokens, abs=1e-3)
    assert [item.values["kl_initial"] for item in read_items(made.path)] == pytest.approx(
        sums, abs=1e-3
    )
    same = bench.run(MeasureKL("same", moved, moved, answers)).meta
    assert same["kl_initial"] == pytest.approx(0, abs=1e-4)


def test_kl_of_silence_is_refused(tmp_path: Path) -> None:
    bench = Workbench(tmp_path)
    policy, prompt = Policy(make_agent(), "positive"), make_prompt("Name a prime.")
    silent = Response(prompt.id, "", Origin("x"), True)
    answers = bench.write_answers("answers", [(prompt, silent)])
    with pytest.raises(DataError, match="all answers are empty"):
        bench.run(MeasureKL("kl", policy, policy, answers))


def test_evaluation_scores_the_pairs_of_the_test_split(tmp_path: Path) -> None:
    bench = Workbench(tmp_path)
    example = PreferenceExample(make_prompt("Name a prime."), "Seven.", "Eight.")
    data = bench.write_examples("data", "test", [example])
    made = bench.run(Evaluate("evaluate", Policy(make_agent(), "positive"), data))
    measures = read_measures(made.path)
    assert measures.counts == {"pairs": 1}
    assert measures.metrics == made.meta
    assert measures.metrics["gold_perplexity"] > 1
    accuracy = measures.metrics["preference_accuracy"]
    assert accuracy in (0.0, 0.5, 1.0)
    assert read_items(made.path) == [Item(example.prompt.id, {"preference_accuracy": accuracy})]


def test_answers_that_are_equal_after_the_cut_tie(tmp_path: Path) -> None:
    """In every pack and layout: rounding must not decide."""
    bench = Workbench(tmp_path)
    examples = [
        PreferenceExample(make_prompt(f"Question {i}?"), "Yes, of course.", "Yes, why not?")
        for i in range(5)
    ]
    agent = make_agent(limits=LimitsConfig(response_tokens=1))
    data = bench.write_examples("data", "test", examples)
    metrics = bench.run(Evaluate("evaluate", Policy(agent, "positive"), data)).meta
    assert metrics["preference_accuracy"] == 0.5


@pytest.mark.parametrize("text", ["", "[]", '{"metrics": {}}', '{"metrics": 1, "counts": {}}'])
def test_measurements_that_cannot_be_read_are_named(tmp_path: Path, text: str) -> None:
    (tmp_path / METRICS_FILE).write_text(text)
    with pytest.raises(
        DamagedError, match=r"metrics\.json: cannot be read .*; run the config again"
    ):
        read_measures(tmp_path)


def test_measurements_of_an_older_version_have_no_items(tmp_path: Path) -> None:
    write_measures(tmp_path, {"gold_perplexity": 2.0}, pairs=1)
    assert not (tmp_path / ITEMS_FILE).exists()
    assert read_items(tmp_path) == []


@pytest.mark.parametrize("text", ["x", '{"prompt_id": "a"}', '{"prompt_id": "a", "values": 1}'])
def test_items_that_cannot_be_read_are_named(tmp_path: Path, text: str) -> None:
    (tmp_path / ITEMS_FILE).write_text(text)
    with pytest.raises(DamagedError, match=r"items\.jsonl: cannot be read"):
        read_items(tmp_path)


def test_measurements_that_are_no_numbers_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_measures(tmp_path, {"gold_perplexity": math.inf}, pairs=1)
