"""Training stages: what they learn from, against which reference, and what they leave behind."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from safetensors.torch import load_file

from macpo.agents import Agent, Policy
from macpo.anchoring import go_back, products_of
from macpo.config import DPOConfig, LimitsConfig, NegativeSFTConfig, SFTConfig, TuningConfig
from macpo.errors import DataError
from macpo.likelihood import PromptGroup
from macpo.policies import WEIGHTS_FILE, LoadedPolicy, snapshot
from macpo.records import (
    Pair,
    PreferenceExample,
    Response,
    dataset_response,
    read_jsonl,
    read_scores,
    write_judgements,
)
from macpo.scoring import ScorePairs, ScoreResponses, encode_group
from macpo.stage import Stage
from macpo.store import Artifact
from macpo.training.stages import (
    FitLogRatios,
    SFTOnAnswers,
    SFTOnDataset,
    SFTOnPairs,
    TrainDPO,
    TrainWeightedDPO,
)
from tests.likelihood.plain import plain_sums
from tests.workbench import (
    Workbench,
    make_agent,
    make_pairs,
    make_prompt,
    make_response,
    randomise,
)

LORA = TuningConfig(rank=4)


@pytest.fixture
def bench(tmp_path: Path) -> Workbench:
    return Workbench(tmp_path)


@pytest.fixture
def agent() -> Agent:
    return make_agent(tuning=LORA)


def nats(loaded: LoadedPolicy, agent: Agent, pair: Pair) -> tuple[float, float]:
    """Return the mean negative log-likelihoods of chosen and rejected."""
    group = encode_group(loaded.chat, agent, pair.prompt, [pair.chosen, pair.rejected])
    [[chosen, rejected]] = loaded.engine(64).score([group])
    return chosen.mean_nll, rejected.mean_nll


def write_examples(bench: Workbench, pairs: list[Pair]) -> Stage:
    """Commit pairs as the teacher's half of a data set."""
    examples = [PreferenceExample(p.prompt, p.chosen.text, p.rejected.text) for p in pairs]
    return bench.write_examples("data", "teacher", examples)


@pytest.mark.parametrize("side", ["chosen", "rejected"])
def test_sft_learns_the_side_that_it_is_told(bench: Workbench, agent: Agent, side: Any) -> None:
    [pair] = make_pairs(1)
    config = SFTConfig(epochs=30, learning_rate=2e-2)
    start = Policy(agent, "positive")
    before = nats(bench.pool.load(start), agent, pair)
    stage = SFTOnDataset(
        "sft", start, write_examples(bench, [pair]), "teacher", side, config, seed=0
    )
    bench.run(stage)
    after = nats(bench.pool.load(Policy(agent, "positive", stage)), agent, pair)
    learned = 0 if side == "chosen" else 1
    assert after[learned] < 0.5 * before[learned]
    assert after[learned] < after[1 - learned]


def test_sft_on_pairs_learns_the_chosen_side(bench: Workbench, agent: Agent) -> None:
    [pair] = make_pairs(1)
    start = Policy(agent, "positive")
    before = nats(bench.pool.load(start), agent, pair)
    config = DPOConfig(epochs=30, learning_rate=2e-2)
    stage = SFTOnPairs("train", start, bench.write_pairs("pairs", [pair]), config, seed=0)
    bench.run(stage)
    chosen, rejected = nats(bench.pool.load(Policy(agent, "positive", stage)), agent, pair)
    assert chosen < 0.5 * before[0]
    assert chosen < rejected


def test_negative_policy_continues_the_positive_one(bench: Workbench, agent: Agent) -> None:
    """At a rate of next to nothing the result is the start, not the base."""
    weights = snapshot(bench.train_from(agent).trainable)
    randomise(weights, 1)
    start = Policy(agent, "positive", bench.write_weights("positive", weights))
    data = write_examples(bench, make_pairs(2))
    config = NegativeSFTConfig(learning_rate=1e-9)
    made = bench.run(SFTOnDataset("sft", start, data, "teacher", "rejected", config, seed=0))
    found = load_file(made.path / WEIGHTS_FILE)
    assert found.keys() == weights.keys()
    for name, tensor in found.items():
        assert torch.allclose(tensor, weights[name], rtol=0, atol=1e-7)


def test_weak_labels_that_are_empty_are_left_out(bench: Workbench, agent: Agent) -> None:
    prompts = [make_prompt(text) for text in ("a", "b", "c")]
    answers = [make_response(p, t) for p, t in zip(prompts, ("Yes.", " ", "No."), strict=True)]
    written = bench.write_answers("answers", list(zip(prompts, answers, strict=True)))
    config = SFTConfig(epochs=2, batch_size=1)
    stage = SFTOnAnswers("init/student", Policy(agent, "positive"), written, config, seed=0)
    meta = bench.run(stage).meta
    assert (meta["examples"], meta["steps"]) == (2, 4)


def test_nothing_to_learn_from_is_an_error(bench: Workbench, agent: Agent) -> None:
    prompt = make_prompt("a")
    written = bench.write_answers("answers", [(prompt, make_response(prompt, "\n"))])
    stage = SFTOnAnswers("init/student", Policy(agent, "positive"), written, SFTConfig(), seed=0)
    with pytest.raises(DataError) as raised:
        bench.run(stage)
    assert str(raised.value) == (
        "init/student: there is no answer to learn from; all of them are empty"
    )


def test_end_of_turn_is_learned_although_it_is_the_pad_token(bench: Workbench) -> None:
    agent = make_agent(tuning=TuningConfig(kind="full"))
    chat = bench.pool.chat(agent)
    assert chat.end_of_turn == chat.tokenizer.pad_token_id == chat.tokenizer.eos_token_id
    pairs = make_pairs(3)
    config = SFTConfig(epochs=20, learning_rate=1e-2, batch_size=3)
    start = Policy(agent, "positive")
    before = end_of_turn_nats(bench.pool.load(start), agent, pairs)
    data = write_examples(bench, pairs)
    stage = SFTOnDataset("sft", start, data, "teacher", "chosen", config, seed=0)
    bench.run(stage)
    after = end_of_turn_nats(bench.pool.load(Policy(agent, "positive", stage)), agent, pairs)
    assert before > 3
    assert after < 0.5


def end_of_turn_nats(loaded: LoadedPolicy, agent: Agent, pairs: list[Pair]) -> float:
    """Return the mean of -log p(end of turn) after the chosen answers, in nats."""
    total = 0.0
    for pair in pairs:
        group = encode_group(loaded.chat, agent, pair.prompt, [pair.chosen])
        [completion] = group.completions
        assert completion[-1] == loaded.chat.end_of_turn
        with torch.no_grad():
            row = torch.tensor([[*group.prompt, *completion[:-1]]])
            logits = loaded.model(input_ids=row).logits[0, -1].double()
        total -= float(logits.log_softmax(-1)[loaded.chat.end_of_turn])
    return total / len(pairs)


def test_answer_cut_off_at_the_limit_does_not_end(bench: Workbench) -> None:
    agent = make_agent(tuning=LORA, limits=LimitsConfig(response_tokens=3))
    chat = bench.pool.chat(agent)
    prompt = make_prompt("a")
    long, short = (dataset_response(prompt, text) for text in ("x y z w v u", "x"))
    group = encode_group(chat, agent, prompt, [long, short])
    assert len(group.completions[0]) == 3
    assert chat.end_of_turn not in group.completions[0]
    assert group.completions[1][-1] == chat.end_of_turn


class Round:
    """A student before its second DPO round: base, initial and previous policy all differ."""

    def __init__(self, bench: Workbench, agent: Agent) -> None:
        self.bench = bench
        self.agent = agent
        weights = snapshot(bench.train_from(agent).trainable)
        self.policies = {"base": Policy(agent, "positive")}
        for seed, name in enumerate(("initial", "previous")):
            randomise(weights, seed)
            written = bench.write_weights(name, weights)
            self.policies[name] = Policy(agent, "positive", written)
        self.pairs = make_pairs(4)
        self.written_pairs = bench.write_pairs("pairs", self.pairs)

    def scores(self, reference: str, *, without_ends: bool = False) -> Stage:
        """Score the pairs under a reference policy."""
        stage = ScorePairs(
            "reference", self.policies[reference], self.written_pairs, without_ends=without_ends
        )
        self.bench.run(stage)
        return stage

    def train(self, reference: str, **changes: Any) -> Artifact:
        config = DPOConfig(batch_size=4, beta=0.1, **changes)
        start = self.policies["previous"]
        scores = self.scores(reference, without_ends=config.end_of_turn == "mask")
        return self.bench.run(TrainDPO("train", start, self.written_pairs, scores, config, seed=0))


def test_at_the_first_step_policy_and_previous_reference_are_one(
    bench: Workbench, agent: Agent
) -> None:
    [row] = read_jsonl(Round(bench, agent).train("previous").path / "log.jsonl")
    assert row["margin"] == pytest.approx(0, abs=1e-4)
    assert row["dpo_loss"] == pytest.approx(math.log(2), abs=1e-4)


@pytest.mark.parametrize("reference", ["previous", "initial", "base"])
def test_reference_is_the_policy_that_made_the_scores(
    bench: Workbench, agent: Agent, reference: str
) -> None:
    """The first margin, worked out here from the scores of start and reference, is the log's."""
    scene = Round(bench, agent)
    [row] = read_jsonl(scene.train(reference).path / "log.jsonl")
    start, other = (
        read_scores(bench.artifacts[scene.scores(name).key].path)
        for name in ("previous", reference)
    )
    margins = []
    for pair in scene.pairs:
        chosen, rejected = (
            start[r.id].sum_logprob - other[r.id].sum_logprob for r in (pair.chosen, pair.rejected)
        )
        margins.append(0.1 * (chosen - rejected))
    assert row["margin"] == pytest.approx(sum(margins) / len(margins), abs=1e-4)
    assert (max(map(abs, margins)) > 0.02) == (reference != "previous")


def test_the_three_references_give_three_results(bench: Workbench, agent: Agent) -> None:
    scene = Round(bench, agent)
    assert len({scene.train(name).digest for name in ("previous", "initial", "base")}) == 3


def test_beta_and_gamma_act(bench: Workbench, agent: Agent) -> None:
    scene = Round(bench, agent)
    made = {
        gamma: next(read_jsonl(scene.train("initial", gamma=gamma).path / "log.jsonl"))
        for gamma in (0.0, 0.2)
    }
    assert made[0.0]["loss"] == pytest.approx(made[0.0]["dpo_loss"], rel=1e-6)
    added = 0.2 * made[0.2]["sft_loss"]
    assert made[0.2]["loss"] == pytest.approx(made[0.0]["loss"] + added, rel=1e-5)


def judged(bench: Workbench, rewards: list[tuple[Response, float]]) -> Stage:
    """Commit a judge's rewards."""
    return bench.commit("rewards", lambda folder: write_judgements(folder, rewards))


def test_a_pair_counts_as_much_as_the_judge_is_sure_of_it(bench: Workbench, agent: Agent) -> None:
    """Rewards that differ by nothing, log 3 and log 3: weights 0, 0.5 and 0.5, log 2 each."""
    scene = Round(bench, agent)
    del scene.pairs[3:]
    scene.written_pairs = bench.write_pairs("three", scene.pairs)
    better = [1.0, 1.0 + math.log(3), math.log(3) - 2]
    rewards = [(p.chosen, reward) for p, reward in zip(scene.pairs, better, strict=True)]
    rewards += [(p.rejected, reward) for p, reward in zip(scene.pairs, (1, 1, -2), strict=True)]
    stage = TrainWeightedDPO(
        "train",
        scene.policies["previous"],
        scene.written_pairs,
        scene.scores("previous"),
        DPOConfig(batch_size=4, gamma=0.0),
        0,
        judged(bench, rewards),
    )
    made = bench.run(stage)
    [row] = read_jsonl(made.path / "log.jsonl")
    assert row["loss"] == pytest.approx(math.log(2) / 3, abs=1e-4)
    assert row["dpo_loss"] == pytest.approx(math.log(2), abs=1e-4)
    assert made.meta["mean_weight"] == pytest.approx(1 / 3)


def test_log_ratios_are_fitted(bench: Workbench, agent: Agent) -> None:
    """The targets are 1 and -1 nats; with gamma 0.5 the policy is to move by twice as much."""
    scene = Round(bench, agent)
    start = scene.policies["previous"]
    pair = scene.pairs[1]
    targets = {pair.chosen: 1.0, pair.rejected: -1.0}
    answers = tuple(bench.write_answers(r.text, [(pair.prompt, r)]) for r in targets)
    reference = ScoreResponses("reference", start, answers)
    before = read_scores(bench.run(reference).path)
    stage = FitLogRatios(
        "train",
        start,
        answers,
        reference,
        judged(bench, list(targets.items())),
        DPOConfig(epochs=60, learning_rate=5e-3),
        0,
        0.5,
    )
    rows = list(read_jsonl(bench.run(stage).path / "log.jsonl"))
    lengths = [before[r.id].tokens for r in targets]
    assert rows[0]["loss"] == pytest.approx(sum(1 / n for n in lengths) / 2, rel=1e-3)
    assert rows[-1]["loss"] < 0.05 * rows[0]["loss"]
    scored = ScoreResponses("after", Policy(agent, "positive", stage), answers)
    after = read_scores(bench.run(scored).path)
    moved = [after[r.id].sum_logprob - before[r.id].sum_logprob for r in targets]
    assert moved == pytest.approx([2, -2], abs=0.4)


@pytest.mark.parametrize(
    ("options", "first"),
    [
        ({"loss": "ipo"}, 1 / (2 * 0.1) ** 2),
        ({"loss": "sppo"}, 2 / (2 * 0.1) ** 2),
        ({"loss": "apo-zero"}, 1.0),
    ],
    ids=str,
)
def test_loss_is_the_one_that_the_config_names(
    bench: Workbench, agent: Agent, options: dict[str, Any], first: float
) -> None:
    """Against the policy itself all log-ratios are 0 at first."""
    [row] = read_jsonl(Round(bench, agent).train("previous", **options).path / "log.jsonl")
    assert row["dpo_loss"] == pytest.approx(first, rel=1e-3)


def test_label_smoothing_acts(bench: Workbench, agent: Agent) -> None:
    """Of one pair with margin m: (1 - e) * log(1 + exp(-m)) + e * log(1 + exp(m))."""
    scene = Round(bench, agent)
    del scene.pairs[1:]
    scene.written_pairs = bench.write_pairs("pair", scene.pairs)
    [row] = read_jsonl(scene.train("initial", label_smoothing=0.25).path / "log.jsonl")
    m = row["margin"]
    expected = 0.75 * math.log1p(math.exp(-m)) + 0.25 * math.log1p(math.exp(m))
    assert abs(m) > 0.02
    assert row["dpo_loss"] == pytest.approx(expected, rel=1e-5)


def test_masked_end_of_turn_counts_in_the_sft_term_alone(bench: Workbench, agent: Agent) -> None:
    """Log-ratios are those of plain forwards without the end, the SFT term is that of the whole."""
    scene = Round(bench, agent)
    [rejected] = make_pairs(1)
    scene.pairs[0] = replace(scene.pairs[0], rejected=replace(rejected.rejected, finished=False))
    scene.written_pairs = bench.write_pairs("some cut off", scene.pairs)
    sums: dict[str, list[list[float]]] = {}
    means: list[float] = []
    for name in ("previous", "initial"):
        loaded = bench.pool.load(scene.policies[name])
        for pair in scene.pairs:
            group = encode_group(loaded.chat, agent, pair.prompt, [pair.chosen, pair.rejected])
            said = [c[:-1] if c[-1] == loaded.chat.end_of_turn else c for c in group.completions]
            with torch.no_grad():
                [bare] = plain_sums(loaded.model, [PromptGroup(group.prompt, tuple(said))])
                [whole] = plain_sums(loaded.model, [group])
            sums.setdefault(name, []).append(bare.tolist())
            if name == "previous":
                means.append(-float(whole[0]) / len(group.completions[0]))
    ratios = torch.tensor(sums["previous"]) - torch.tensor(sums["initial"])
    masked = next(read_jsonl(scene.train("initial", end_of_turn="mask").path / "log.jsonl"))
    kept = next(read_jsonl(scene.train("initial").path / "log.jsonl"))
    assert masked["chosen_logratio"] == pytest.approx(ratios[:, 0].mean().item(), abs=1e-4)
    assert masked["rejected_logratio"] == pytest.approx(ratios[:, 1].mean().item(), abs=1e-4)
    assert masked["sft_loss"] == kept["sft_loss"] == pytest.approx(sum(means) / 4, abs=1e-4)
    assert abs(masked["chosen_logratio"] - kept["chosen_logratio"]) > 1e-3


@pytest.mark.parametrize("contrast", [True, False], ids=["dpo", "sft"])
@pytest.mark.parametrize("kind", ["lora", "full"])
def test_trained_policy_goes_back_to_the_initial_one(
    bench: Workbench, agent: Agent, kind: Literal["lora", "full"], contrast: bool
) -> None:
    """What the stage leaves is what it would leave without an anchor, averaged with its anchor."""
    tuning = TuningConfig(kind="full") if kind == "full" else agent.tuning
    scene = Round(bench, replace(agent, tuning=tuning))
    start, initial = scene.policies["previous"], scene.policies["initial"]
    pairs, config = scene.written_pairs, DPOConfig(learning_rate=1e-2)

    def train(**anchor: Any) -> Artifact:
        stage: Stage = SFTOnPairs("train", start, pairs, config, 0, **anchor)
        if contrast:
            stage = TrainDPO("train", start, pairs, scene.scores("previous"), config, 0, **anchor)
        return bench.run(stage)

    free, held = train(), train(anchor=0.3, initial=initial)
    trained, found = (load_file(made.path / WEIGHTS_FILE) for made in (free, held))
    anchor = load_file(bench.artifacts[initial.weights_key].path / WEIGHTS_FILE)
    products = products_of(bench.pool.load(start).model)
    expected, lost = go_back(trained, anchor, 0.3, products)
    assert found.keys() == trained.keys()
    for name, weight in found.items():
        assert torch.allclose(weight, expected[name], rtol=0, atol=1e-6)
        assert not torch.allclose(weight, trained[name], rtol=0, atol=1e-3)
    assert held.meta == {**free.meta, "anchor_lost": pytest.approx(lost, abs=1e-6)}
    assert (lost > 0.01) == (kind == "lora")  # two policies that have nothing in common


def test_artifact_holds_weights_and_log_and_tells_of_them(bench: Workbench, agent: Agent) -> None:
    scene = Round(bench, agent)
    made = scene.train("previous", epochs=3, learning_rate=1e-2)
    rows = list(read_jsonl(made.path / "log.jsonl"))
    assert [row["step"] for row in rows] == [1, 2, 3]
    shown = ("loss", "dpo_loss", "sft_loss", "margin", "chosen_logratio", "rejected_logratio")
    last = {name: rows[-1][name] for name in shown}
    chat = bench.pool.chat(agent)
    answers = [r for pair in scene.pairs for r in (pair.chosen, pair.rejected)]
    learned = 3 * sum(len(chat.encode_completion(r, 512)) for r in answers)
    assert made.meta == {"examples": 4, "steps": 3, "tokens": learned, **last}
    start = load_file(bench.artifacts[scene.policies["previous"].weights_key].path / WEIGHTS_FILE)
    trained = load_file(made.path / WEIGHTS_FILE)
    assert start.keys() == trained.keys()
    assert all(not torch.equal(start[name], trained[name]) for name in start)
