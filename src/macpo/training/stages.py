"""Training stages: SFT of positive and negative policies, and a round of DPO+SFT."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from macpo import losses
from macpo.agents import Agent, Policy
from macpo.anchoring import go_back, products_of
from macpo.config import DPOConfig, NegativeSFTConfig, SFTConfig
from macpo.errors import DataError
from macpo.likelihood import PromptGroup
from macpo.policies import WEIGHTS_FILE, LoadedPolicy, save_weights, snapshot
from macpo.records import (
    Pair,
    Prompt,
    Response,
    dataset_response,
    read_answers,
    read_examples,
    read_judgements,
    read_pairs,
    read_scores,
    write_jsonl,
)
from macpo.scoring import encode_group, say_cost
from macpo.stage import Stage, StageContext
from macpo.training.loop import Trainer, summary
from macpo.training.objectives import (
    ConfidentObjective,
    DPOObjective,
    LogRatioObjective,
    Objective,
    SFTObjective,
)
from macpo.work import Known, Work


@dataclass(frozen=True, eq=False)
class TrainingStage(Stage):
    """Base of all that train: from the policy `start`, whose agent learns."""

    start: Policy

    @property
    def agent(self) -> Agent:
        """Who learns."""
        return self.start.agent


@dataclass(frozen=True, eq=False)
class SFTOnDataset(TrainingStage):
    """SFT on ground truth: chosen answers make a positive policy, rejected ones a negative."""

    kind: ClassVar[str] = "sft"

    data: Stage
    split: Literal["teacher", "student"]
    side: Literal["chosen", "rejected"]
    config: SFTConfig | NegativeSFTConfig
    seed: int

    def work(self, known: Known) -> Work:
        """Train on one side of every pair, in every epoch."""
        chosen, rejected = known.labelled(self.split, self.agent)
        answers = chosen if self.side == "chosen" else rejected
        return known.training(self.agent, [answers], self.config.epochs)

    def run(self, context: StageContext) -> Mapping[str, Any]:
        """Write weights and log.jsonl."""
        examples = read_examples(context.path(self.data), self.split)
        answers = [(e.prompt, dataset_response(e.prompt, getattr(e, self.side))) for e in examples]
        return _sft(self, answers, context)


@dataclass(frozen=True, eq=False)
class SFTOnAnswers(TrainingStage):
    """SFT on another policy's answers: weak labels, or weak negative labels."""

    kind: ClassVar[str] = "sft"

    answers: Stage
    config: SFTConfig | NegativeSFTConfig
    seed: int

    def work(self, known: Known) -> Work:
        """Train on every answer, in every epoch."""
        answers = known.left_by(self.answers, self.agent)
        return known.training(self.agent, answers, self.config.epochs)

    def run(self, context: StageContext) -> Mapping[str, Any]:
        """Write weights and log.jsonl."""
        return _sft(self, _read_answered(context.path(self.answers)), context)


@dataclass(frozen=True, eq=False)
class ConfidentSFT(TrainingStage):
    """SFT on weak labels with the auxiliary confidence loss."""

    kind: ClassVar[str] = "sft"

    answers: Stage
    config: SFTConfig
    seed: int
    weight: float
    warmup: float
    threshold: float

    def work(self, known: Known) -> Work:
        """Train on every answer, in every epoch."""
        answers = known.left_by(self.answers, self.agent)
        return known.training(self.agent, answers, self.config.epochs)

    def run(self, context: StageContext) -> Mapping[str, Any]:
        """Write weights and log.jsonl."""

        def objective(groups: Sequence[PromptGroup]) -> Objective:
            return ConfidentObjective(groups, self.weight, self.warmup, self.threshold)

        return _sft(self, _read_answered(context.path(self.answers)), context, objective)


@dataclass(frozen=True, eq=False)
class RoundStage(TrainingStage):
    """Base of those that train in a round.

    Once it is trained, the policy goes back `anchor` of the way to the policy `initial`, in weights
    (`macpo.anchoring`).
    """

    added: ClassVar[frozenset[str]] = frozenset({"anchor", "initial"})

    anchor: float = field(default=0.0, kw_only=True)
    initial: Policy | None = field(default=None, kw_only=True)


@dataclass(frozen=True, eq=False)
class SFTOnPairs(RoundStage):
    """SFT on the chosen answers of pairs, with the step size of `TrainDPO`: its SFT term alone.

    The control that tells contrast from mere sharpening.
    """

    kind: ClassVar[str] = "sft"

    pairs: Stage
    config: DPOConfig
    seed: int

    def work(self, known: Known) -> Work:
        """Train on every chosen answer, in every epoch."""
        chosen, _ = known.left_by(self.pairs, self.agent)
        return known.training(self.agent, [chosen], self.config.epochs)

    def run(self, context: StageContext) -> Mapping[str, Any]:
        """Write weights and log.jsonl."""
        pairs = read_pairs(context.path(self.pairs))
        return _sft(self, [(p.prompt, p.chosen) for p in pairs], context)


@dataclass(frozen=True, eq=False)
class TrainDPO(RoundStage):
    """One round of L_DPO(beta) + gamma * L_SFT(chosen) for one agent.

    `reference_scores` holds the reference policy's scores of all answers in `pairs`, without their
    ends of turn where the config masks these. Which policy that is was decided by whoever made the
    scores (macpo.methods), never by how a model was loaded.
    """

    kind: ClassVar[str] = "dpo"

    pairs: Stage
    reference_scores: Stage
    config: DPOConfig
    seed: int

    def work(self, known: Known) -> Work:
        """Train on both answers of every pair, in every epoch."""
        both = known.left_by(self.pairs, self.agent)
        return known.training(self.agent, both, self.config.epochs)

    def run(self, context: StageContext) -> Mapping[str, Any]:
        """Write weights and log.jsonl."""
        return _dpo(self, read_pairs(context.path(self.pairs)), context)


@dataclass(frozen=True, eq=False)
class TrainWeightedDPO(RoundStage):
    """DPO in which every pair counts as much as a judge is sure of it (arXiv 2603.04968).

    As `TrainDPO`, with the judge's rewards of all answers in `judgements`; see
    `macpo.losses.pair_confidence`.
    """

    kind: ClassVar[str] = "dpo"

    pairs: Stage
    reference_scores: Stage
    config: DPOConfig
    seed: int
    judgements: Stage

    def work(self, known: Known) -> Work:
        """Train on both answers of every pair, in every epoch."""
        both = known.left_by(self.pairs, self.agent)
        return known.training(self.agent, both, self.config.epochs)

    def run(self, context: StageContext) -> Mapping[str, Any]:
        """Write weights and log.jsonl."""
        pairs = read_pairs(context.path(self.pairs))
        rewards = read_judgements(context.path(self.judgements))
        chosen, rejected = torch.tensor(
            [[rewards[p.chosen.id], rewards[p.rejected.id]] for p in pairs]
        ).unbind(1)
        weights = losses.pair_confidence(chosen, rejected)
        return {**_dpo(self, pairs, context, weights), "mean_weight": weights.mean().item()}


@dataclass(frozen=True, eq=False)
class FitLogRatios(TrainingStage):
    """WSPO: the policy's log-ratio on answers is fitted to a judge's (arXiv 2410.18640).

    `reference_scores` holds the reference policy's scores of all `answers`, `judgements` the
    log-ratios to be fitted; see `macpo.losses.log_ratio_error`.
    """

    kind: ClassVar[str] = "fit-log-ratios"

    answers: tuple[Stage, ...]
    reference_scores: Stage
    judgements: Stage
    config: DPOConfig
    seed: int
    gamma: float

    def work(self, known: Known) -> Work:
        """Train on every answer, with a prompt of its own, in every epoch."""
        answers = [a for stage in self.answers for a in known.left_by(stage, self.agent)]
        epochs = self.config.epochs
        return sum((known.training(self.agent, [a], epochs) for a in answers), Work())

    def run(self, context: StageContext) -> Mapping[str, Any]:
        """Write weights and log.jsonl."""
        scores = read_scores(context.path(self.reference_scores))
        targets = read_judgements(context.path(self.judgements))
        answers = [found for stage in self.answers for found in _read_answered(context.path(stage))]
        reference = torch.tensor([scores[r.id].sum_logprob for _, r in answers])
        wanted = torch.tensor([targets[r.id] for _, r in answers])

        def objective(groups: Sequence[PromptGroup]) -> Objective:
            return LogRatioObjective(groups, reference, wanted, self.gamma)

        return _sft(self, answers, context, objective)


def _dpo(
    stage: TrainDPO | TrainWeightedDPO,
    pairs: Sequence[Pair],
    context: StageContext,
    weights: Tensor | None = None,
) -> Mapping[str, Any]:
    """Train by contrast; `weights` `[pairs]` say how much each pair counts."""
    scores = read_scores(context.path(stage.reference_scores))
    loaded = context.policies.load_for_training(stage.start, stage.seed)
    groups = [
        encode_group(loaded.chat, stage.start.agent, p.prompt, (p.chosen, p.rejected))
        for p in pairs
    ]
    reference = [
        [scores[p.chosen.id].sum_logprob, scores[p.rejected.id].sum_logprob] for p in pairs
    ]
    config = stage.config
    ends = _ends(groups, loaded.chat.stop_ids) if config.end_of_turn == "mask" else None
    objective = DPOObjective(
        groups,
        torch.tensor(reference),
        config.beta,
        config.gamma,
        config.loss,
        config.label_smoothing,
        weights,
        ends,
    )
    return _train(stage, loaded, objective, context)


def _ends(groups: Sequence[PromptGroup], stops: Collection[int]) -> Tensor:
    """Return 1 for every answer that ends by a token of `stops`, else 0, `[groups, answers]`."""
    return torch.tensor([[float(c[-1] in stops) for c in g.completions] for g in groups])


def _read_answered(folder: Path) -> list[tuple[Prompt, Response]]:
    """Read an answering stage's prompts with their answers, but for empty ones."""
    return [
        (prompt, response) for prompt, response in read_answers(folder) if not response.is_empty
    ]


def _sft(
    stage: SFTOnDataset | SFTOnAnswers | ConfidentSFT | SFTOnPairs | FitLogRatios,
    answers: Sequence[tuple[Prompt, Response]],
    context: StageContext,
    objective: Callable[[Sequence[PromptGroup]], Objective] = SFTObjective,
) -> Mapping[str, Any]:
    if not answers:
        raise DataError(f"{stage.name}: there is no answer to learn from; all of them are empty")
    loaded = context.policies.load_for_training(stage.start, stage.seed)
    groups = [encode_group(loaded.chat, stage.start.agent, p, [r]) for p, r in answers]
    return _train(stage, loaded, objective(groups), context)


Trainable = (
    SFTOnDataset
    | SFTOnAnswers
    | ConfidentSFT
    | SFTOnPairs
    | TrainDPO
    | TrainWeightedDPO
    | FitLogRatios
)


def _train(
    stage: Trainable,
    loaded: LoadedPolicy,
    objective: Objective,
    context: StageContext,
) -> Mapping[str, Any]:
    """Train and write the result."""
    trainer = Trainer(
        loaded,
        objective,
        stage.config,
        seed=stage.seed,
        engine=context.engine,
        checkpoints=context.checkpoints,
        progress=context.progress,
        ranks=context.ranks,
    )
    say_cost(stage.start.name, trainer.engine, objective.groups, gradients=True)
    log = trainer.train()
    weights: Mapping[str, Tensor] = loaded.trainable
    anchored = {}
    if isinstance(stage, RoundStage) and stage.initial is not None:
        weights, lost = _go_back(loaded, stage.initial, stage.anchor, context)
        anchored = {"anchor_lost": lost}
    if context.ranks.leads:
        save_weights(weights, context.output / WEIGHTS_FILE)
    write_jsonl(context.output / "log.jsonl", log)
    answers = (tokens for group in objective.groups for tokens in group.completions)
    learned = stage.config.epochs * sum(map(len, answers))
    examples = len(objective.groups)
    return {"examples": examples, "steps": len(log), "tokens": learned, **summary(log), **anchored}


def _go_back(
    loaded: LoadedPolicy, initial: Policy, share: float, context: StageContext
) -> tuple[dict[str, Tensor], float]:
    """Return what `macpo.anchoring.go_back` makes of trained weights; `loaded` is used up."""
    trained = snapshot(loaded.trainable)
    products = products_of(loaded.model)
    anchor = snapshot(context.policies.load(initial).trainable)
    return go_back(trained, anchor, share, products)
