"""Sizes of the splits and lengths of texts, counted where data and tokenizers are here."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from macpo.agents import Agent
from macpo.config import RunConfig
from macpo.data.cuts import Cuts, count_cuts
from macpo.data.loading import load_preferences
from macpo.data.sources import find_source
from macpo.data.splits import DataSplits, split_examples
from macpo.data.stages import SplitData
from macpo.errors import ModelError
from macpo.models.chat import MERGING, Chat, PromptTooLong
from macpo.models.folders import CONFIG
from macpo.planning.recorded import Recorded
from macpo.program import Plan
from macpo.records import PreferenceExample, dataset_response, read_examples, splits_in
from macpo.work import Lengths, SplitSizes

SAMPLE = 48
"""Pairs whose lengths are measured."""
CUT_SAMPLE = 600
"""Pairs in which is counted what limits cut off."""


def find_splits(config: RunConfig, layout: Plan, recorded: Recorded) -> DataSplits | None:
    """Return the splits as they were made or would be made; None when the data is not here."""
    stage = layout.stages[0]
    assert isinstance(stage, SplitData)
    made = recorded.path(stage)
    if made is not None:
        named = {split: tuple(read_examples(made, split)) for split in splits_in(made)}
        return DataSplits(**named)
    if not find_source(config.data.source).is_here(config.data):
        return None
    return split_examples(load_preferences(config.data).examples, config.data.splits, stage.seed)


def split_sizes(
    config: RunConfig, splits: DataSplits | None, notes: list[str]
) -> SplitSizes | None:
    """Count the splits, or take their sizes from the config."""
    if splits is not None:
        by_name = splits.by_name
        return SplitSizes(
            prompts={name: len({e.prompt.id for e in es}) for name, es in by_name.items()},
            pairs={name: len(examples) for name, examples in by_name.items()},
            exact=True,
        )
    asked = config.data.splits.model_dump()
    if any(isinstance(size, float) for size in asked.values()):
        notes.append(
            f"data: {config.data.source} is not on this machine, and data.splits are fractions of "
            "it: no tokens are estimated"
        )
        return None
    notes.append(
        f"data: {config.data.source} is not on this machine; sizes are those of data.splits, with "
        "one pair a prompt"
    )
    return SplitSizes(asked, asked, exact=False)


def measure_lengths(agent: Agent, chat: Chat | None, splits: DataSplits | None) -> Lengths:
    """Measure lengths on a sample, or take the limits."""
    limits = agent.limits
    upper = Lengths(
        limits.prompt_tokens, limits.response_tokens, limits.response_tokens, measured=False
    )
    if splits is None or chat is None:
        return upper
    measured = []
    for example in _sample(splits, SAMPLE):
        try:
            prompt = chat.encode_prompt(example.prompt, limits.prompt_tokens).ids
        except PromptTooLong:  # left out of the run as well
            continue
        sides = [
            len(chat.encode_completion(dataset_response(example.prompt, t), limits.response_tokens))
            for t in (example.chosen, example.rejected)
        ]
        measured.append((len(prompt), *sides))
    if not measured:
        return upper
    means = [sum(column) / len(measured) for column in zip(*measured, strict=True)]
    return Lengths(means[0], means[1], means[2], measured=True)


def find_cuts(agent: Agent, chat: Chat | None, splits: DataSplits | None) -> Cuts | None:
    """Count what an agent's limits cut off some pairs; None where data or tokenizer is not here."""
    if splits is None or chat is None:
        return None
    return count_cuts(chat, _sample(splits, CUT_SAMPLE), agent.limits)


def system_note(agent: Agent, chat: Chat, splits: DataSplits | None, layout: Plan) -> str | None:
    """Say what becomes of system texts, if the agent is to read some and its template has none."""
    examples = () if splits is None else (*splits.teacher, *splits.student, *splits.test)
    asked = any(e.prompt.messages[0].role == "system" for e in examples) or any(
        getattr(stage, "system", None) and stage.agent == agent for stage in layout.stages
    )
    if not asked or chat.writes_system:
        return None
    if chat.merges_system:
        return f"{agent.name}: {MERGING}"
    return (
        f"{agent.name}: its chat template refuses or skips system turns, and there are some; set "
        "the model's system_turn to auto"
    )


def _sample(splits: DataSplits, pairs: int) -> Sequence[PreferenceExample]:
    """Return some pairs: splits are ordered by hash, so their first ones are a fair sample."""
    each = pairs // 3
    return [*splits.teacher[:each], *splits.student[:each], *splits.test[:each]]


def find_chat(agent: Agent) -> Chat | None:
    """Load an agent's tokenizer if it is here."""
    base = agent.base
    if not (Path(base.location) / CONFIG).is_file():
        return None
    try:
        # A model whose layers are still to be cut out has its tokenizer already.
        return agent.load_chat()
    except ModelError:
        if base.local:
            raise
        return None  # a snapshot of the hub cache with little more than a config
