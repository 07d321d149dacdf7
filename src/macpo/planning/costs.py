"""What stages cost: tokens, floating-point operations and memory, estimated without running them.

Everything here is arithmetic on counts. It is rough on purpose: operations of attention itself are
left out (small beside the weights' for answers of hundreds of tokens), and so is what packing and
allocators add.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from macpo.agents import Agent
from macpo.config import EngineConfig
from macpo.data.stages import DatasetPairs
from macpo.evaluation.preference import Evaluate
from macpo.generation.stages import Respond
from macpo.judging import Compare, Grade, RankedPairs
from macpo.models.folders import CONFIG
from macpo.models.pruning import pruned_config, read_config
from macpo.negatives import WorstAnswers
from macpo.positives import DirectPairs, FilteredPairs
from macpo.scoring import ScorePairs, ScoreResponses
from macpo.stage import Stage
from macpo.training.stages import ConfidentSFT, SFTOnAnswers, SFTOnDataset, SFTOnPairs, TrainDPO

GIB = 1 << 30
BYTES = {"float32": 4, "bfloat16": 2}
ADAPTER_BYTES = 16
"""Of an adapter's weight in training: itself, its gradient and AdamW's two moments, in float32."""
FULL_COPIES = 4
"""Of a weight that trains whole: itself, its gradient and AdamW's two moments, in its dtype."""
ACTIVATIONS_PER_HIDDEN, ACTIVATIONS_PER_INTERMEDIATE = 8, 3
"""Numbers that a decoder layer keeps for the backward pass, for each token and each unit of its
hidden and intermediate size: inputs of norms, projections and products, in the model's dtype."""


@dataclass(frozen=True, slots=True)
class SplitSizes:
    """Prompts and pairs of each split; `exact` when they were counted, not read off the config."""

    prompts: Mapping[str, int]
    pairs: Mapping[str, int]
    exact: bool


@dataclass(frozen=True, slots=True)
class Lengths:
    """Mean lengths in tokens of an agent's own tokenizer, template included.

    `measured` on a sample of the data; else they are the config's limits, which are the most.
    """

    prompt: float
    chosen: float
    rejected: float
    measured: bool


@dataclass(frozen=True, slots=True)
class Work:
    """Tokens that a stage takes through its model.

    `read` without gradients (prompts to answer, answers to score), `written` one by one as
    answers, `trained` forward and backward. `at_most`: some lengths are upper bounds.
    """

    read: float = 0.0
    written: float = 0.0
    trained: float = 0.0
    at_most: bool = False

    @property
    def tokens(self) -> float:
        """All of them."""
        return self.read + self.written + self.trained


@dataclass(frozen=True, slots=True)
class Answers:
    """The answers that an answering stage leaves: how many, and their mean length in tokens."""

    count: float
    tokens: float
    at_most: bool


class WorkEstimator:
    """Estimates the work of stages.

    Args:
        sizes: of the splits.
        lengths: by agent name.
        answered: the answers that finished stages left, by stage key; what is not there is taken
            to be as long as the sampling settings allow.
    """

    def __init__(
        self, sizes: SplitSizes, lengths: Mapping[str, Lengths], answered: Mapping[str, Answers]
    ) -> None:
        self._sizes = sizes
        self._lengths = lengths
        self._answered = answered

    def work(self, stage: Stage) -> Work:
        """Return the work of a stage; none for those that only sort texts."""
        if isinstance(stage, Respond):
            answers = self._answers(stage)
            return self._work(stage.policy.agent, answers.count, [], read=1, written=answers)
        if isinstance(stage, SFTOnDataset):
            agent, count = stage.start.agent, self._sizes.pairs[stage.split]
            lengths = self._lengths[agent.name]
            gold = lengths.chosen if stage.side == "chosen" else lengths.rejected
            return self._work(agent, count, [gold], trained=stage.config.epochs)
        if isinstance(stage, SFTOnAnswers | ConfidentSFT):
            answers = self._answers(stage.answers)
            return self._on_answers(stage.start.agent, [answers], trained=stage.config.epochs)
        if isinstance(stage, ScoreResponses):
            answers_of_all = [self._answers(answers) for answers in stage.answers]
            return self._on_answers(stage.policy.agent, answers_of_all, read=1)
        if isinstance(stage, ScorePairs):
            return self._on_answers(stage.policy.agent, self._sides(stage), read=1)
        if isinstance(stage, Grade):  # an answer at a time, read as a part of the judge's prompt
            works = [
                self._on_answers(stage.policy.agent, [self._answers(a)], read=1)
                for a in stage.answers
            ]
            return replace(works[0], read=sum(work.read for work in works))
        if isinstance(stage, Compare):
            both = [self._answers(stage.one), self._answers(stage.other)]
            return self._on_answers(stage.policy.agent, both, read=2)  # in two orders
        if isinstance(stage, TrainDPO):
            return self._on_answers(
                stage.start.agent, self._sides(stage), trained=stage.config.epochs
            )
        if isinstance(stage, SFTOnPairs):
            chosen = self._sides(stage)[:1]
            return self._on_answers(stage.start.agent, chosen, trained=stage.config.epochs)
        if isinstance(stage, Evaluate):
            lengths = self._lengths[stage.policy.agent.name]
            gold_pair = [lengths.chosen, lengths.rejected]
            return self._work(stage.policy.agent, self._sizes.pairs["test"], gold_pair, read=1)
        return Work()

    def _answers(self, stage: Stage) -> Answers:
        """Return what an answering stage leaves."""
        if stage.key in self._answered:
            return self._answered[stage.key]
        if isinstance(stage, WorstAnswers):
            return self._answers(stage.answers[0])
        assert isinstance(stage, Respond)
        prompts = self._sizes.prompts[stage.split]
        count = prompts if stage.limit is None else min(prompts, stage.limit)
        return Answers(count, stage.sampling.max_new_tokens, at_most=True)

    def _sides(self, stage: ScorePairs | TrainDPO | SFTOnPairs) -> list[Answers]:
        """Return the chosen and the rejected answers that a stage reads as pairs."""
        pairs = stage.pairs
        if isinstance(pairs, DatasetPairs):
            policy = stage.policy if isinstance(stage, ScorePairs) else stage.start
            lengths = self._lengths[policy.agent.name]
            rows = self._sizes.pairs[pairs.split]
            return [Answers(rows, n, at_most=False) for n in (lengths.chosen, lengths.rejected)]
        if isinstance(pairs, RankedPairs):
            return [self._answers(pairs.answers[0])] * 2
        if isinstance(pairs, FilteredPairs):
            candidates = [self._answers(stage) for stage in pairs.positives]
            longest = max(candidates, key=lambda answers: answers.tokens)
            count = longest.count * pairs.top_k
            return [
                replace(longest, count=count),
                replace(self._answers(pairs.negatives), count=count),
            ]
        assert isinstance(pairs, DirectPairs)
        return [self._answers(pairs.positives), self._answers(pairs.negatives)]

    def _on_answers(
        self, agent: Agent, answers: Sequence[Answers], *, read: int = 0, trained: int = 0
    ) -> Work:
        """Return the work on groups of one prompt with one of each of `answers`."""
        count = max(a.count for a in answers)
        work = self._work(agent, count, [a.tokens for a in answers], read=read, trained=trained)
        return replace(work, at_most=work.at_most or any(a.at_most for a in answers))

    def _work(
        self,
        agent: Agent,
        count: float,
        completions: Sequence[float],
        *,
        read: int = 0,
        trained: int = 0,
        written: Answers | None = None,
    ) -> Work:
        """Return the work on `count` groups: a prompt once, and its completions."""
        lengths = self._lengths[agent.name]
        tokens = count * (lengths.prompt + sum(completions))
        return Work(
            read=read * tokens,
            written=written.count * written.tokens if written is not None else 0.0,
            trained=trained * tokens,
            at_most=not lengths.measured or (written is not None and written.at_most),
        )


def stage_agent(stage: Stage) -> Agent | None:
    """Return the agent whose model a stage runs; None for stages that only sort texts."""
    if isinstance(stage, Respond | ScoreResponses | ScorePairs | Evaluate):
        return stage.policy.agent
    if isinstance(stage, SFTOnDataset | SFTOnAnswers | TrainDPO):
        return stage.start.agent
    return None


def flops(work: Work, parameters: int, tuning: str) -> float:
    """Return the floating-point operations of some work.

    Forward takes 2 a weight and token; backward as much again for the inputs' gradients, and once
    more for the weights' own gradients where all weights train.

    Args:
        work: tokens.
        parameters: weights of the model.
        tuning: `lora` or `full`.
    """
    trained = 6 if tuning == "full" else 4
    return parameters * (2 * (work.read + work.written) + trained * work.trained)


@dataclass(frozen=True, slots=True)
class ModelShape:
    """What memory depends on beside the number of weights; `adapter` is the adapter's weights."""

    layers: int
    hidden: int
    intermediate: int
    adapter: int


@dataclass(frozen=True, slots=True)
class Memory:
    """Memory in GiB: the weights, and the most while training and while answering.

    None where the model's shape is not known.
    """

    weights: float
    training: float | None
    answering: float


def memory(
    parameters: int, dtype: str, tuning: str, shape: ModelShape | None, engine: EngineConfig
) -> Memory:
    """Estimate the memory that one agent's model takes, alone."""
    weights = parameters * BYTES[dtype] / GIB
    training = None
    if shape is not None:
        per_token = shape.layers * (
            ACTIVATIONS_PER_HIDDEN * shape.hidden
            + ACTIVATIONS_PER_INTERMEDIATE * shape.intermediate
        )
        activations = engine.pack_tokens * per_token * BYTES[dtype] / GIB
        if tuning == "full":
            training = FULL_COPIES * weights + activations
        else:
            training = weights + shape.adapter * ADAPTER_BYTES / GIB + activations
    return Memory(weights, training, weights + engine.decode_memory_gib)


def model_shape(agent: Agent) -> ModelShape | None:
    """Read the shape of an agent's model off its config; None when that is not here.

    Raises:
        ModelError: the config cannot be read.
    """
    folder = Path(agent.base.location)
    if not (folder / CONFIG).is_file():
        return None
    import torch
    from transformers import AutoModelForCausalLM

    trust = agent.base.trust_remote_code
    config = read_config(folder, with_code=trust)
    if agent.base.layers:
        config = pruned_config(config, agent.base.layers, agent.base.name)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=trust)
    head = model.get_output_embeddings()
    targets = agent.tuning.targets
    adapter = sum(
        agent.tuning.rank * sum(module.weight.shape)
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear)
        and (module is not head if targets == ("all-linear",) else _ends_in(name, targets))
    )
    text = config.get_text_config()
    hidden = int(text.hidden_size)
    intermediate = int(getattr(text, "intermediate_size", None) or 4 * hidden)
    return ModelShape(int(text.num_hidden_layers), hidden, intermediate, adapter)


def _ends_in(name: str, targets: Sequence[str]) -> bool:
    """Tell whether PEFT would adapt the module of that name."""
    return any(name == target or name.endswith(f".{target}") for target in targets)
