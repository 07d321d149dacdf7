"""The data stage: read, keep what every agent can read, split by prompt."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from statistics import fmean
from typing import Any, ClassVar, Literal

from macpo.agents import Agent
from macpo.config import DataConfig
from macpo.data.cuts import Cuts, count_cuts
from macpo.data.loading import LoadReport, load_preferences, refuse_bad_rows, source_digest
from macpo.data.splits import split_examples, with_noise
from macpo.errors import DataError
from macpo.models.chat import PromptTooLong
from macpo.records import (
    Pair,
    PreferenceExample,
    Prompt,
    Split,
    dataset_response,
    read_examples,
    write_answers,
    write_examples,
    write_pairs,
)
from macpo.seeds import digest, plain, stable_seed
from macpo.stage import Stage, StageContext
from macpo.work import Answers, Known

_log = logging.getLogger("macpo")

REPORT_FILE = "report.json"


@dataclass(frozen=True, eq=False)
class SplitData(Stage):
    """Divides a preference data set into teacher, student and test prompts.

    In the key, `content` stands for the data (see `content_digest`): where it lies does not matter;
    `readers` stand for the agents.
    A pair with a prompt that is too long for an agent, even without its earlier turns, is left out
    and counted.
    """

    kind: ClassVar[str] = "data"
    version: ClassVar[int] = 3
    not_in_key: ClassVar[frozenset[str]] = frozenset({"name", "data", "agents"})

    data: DataConfig
    content: str
    seed: int
    agents: tuple[Agent, ...]
    readers: tuple[str, ...] = field(init=False)

    def __post_init__(self) -> None:
        """Let agents count by how they read text: one more of the same family changes nothing."""
        readers = sorted({agent.reader() for agent in self.agents})
        object.__setattr__(self, "readers", tuple(readers))

    def run(self, context: StageContext) -> Mapping[str, Any]:
        """Write a file for each split, such as test.jsonl, and report.json: what was left out."""
        loaded = load_preferences(self.data)
        cuts = self._cuts(loaded.examples, context)
        readable = [e for e in loaded.examples if self._fits(e.prompt, context)]
        too_long = len(loaded.examples) - len(readable)
        if not readable:
            raise DataError(
                f"{self.data.source}: every prompt is over limits.prompt_tokens; raise the limit"
            )
        splits = split_examples(readable, self.data.splits, self.seed)
        counts = {}
        for name, split in splits.by_name.items():
            examples: Sequence[PreferenceExample] = split
            if name == "teacher":
                examples = with_noise(split, self.data.noise, stable_seed(self.seed, "noise"))
            counts[name] = len(examples)
            write_examples(context.output, name, examples)
        _write_report(loaded.report, too_long, cuts, context.output / REPORT_FILE)
        return {"pairs": counts, "prompts_too_long": too_long}

    def accept(self, folder: Path) -> None:
        """Hold `data.max_bad_rows` against what was read under another one."""
        report = json.loads((folder / REPORT_FILE).read_text(encoding="utf-8"))
        refuse_bad_rows(self.data, report["bad_rows"], report["rows"])

    def _cuts(self, examples: Sequence[PreferenceExample], context: StageContext) -> list[Cuts]:
        """Count what each way of reading cuts off, and warn where it is much."""
        readers = {agent.reader(): agent for agent in self.agents}
        found = []
        for _, agent in sorted(readers.items()):
            cuts = count_cuts(context.policies.chat(agent), examples, agent.limits)
            if cuts.warning is not None:
                _log.warning("data, as %s reads it: %s", agent.name, cuts.warning)
            found.append(cuts)
        return found

    def _fits(self, prompt: Prompt, context: StageContext) -> bool:
        for agent in self.agents:
            try:
                context.policies.chat(agent).encode_prompt(prompt, agent.limits.prompt_tokens)
            except PromptTooLong:
                return False
        return True


@dataclass(frozen=True, eq=False)
class DatasetPairs(Stage):
    """Pairs of a split's own labels, as ground truth has them."""

    kind: ClassVar[str] = "pairs"
    version: ClassVar[int] = 2

    data: Stage
    split: Split

    def leaves(self, known: Known, reader: Agent) -> tuple[Answers, ...]:
        """The data's own answers."""
        return known.labelled(self.split, reader)

    def run(self, context: StageContext) -> Mapping[str, Any]:
        """Write pairs.jsonl."""
        pairs = [
            Pair(
                e.prompt,
                dataset_response(e.prompt, e.chosen),
                dataset_response(e.prompt, e.rejected),
            )
            for e in read_examples(context.path(self.data), self.split)
        ]
        write_pairs(context.output, pairs)
        return {"pairs": len(pairs), "prompts_without_pair": 0}


@dataclass(frozen=True, eq=False)
class UnlabelledAnswers(Stage):
    """One of the two answers that each of a split's pairs has, without its label.

    Which of them comes first is decided by a hash of prompt and answer, so that their order says
    nothing about which one people preferred; `place` is 0 for the first and 1 for the second.
    """

    kind: ClassVar[str] = "unlabelled"

    data: Stage
    split: Split
    place: Literal[0, 1]

    def leaves(self, known: Known, reader: Agent) -> tuple[Answers, ...]:
        """One of the data's own answers, as long as they are on average."""
        sides = known.labelled(self.split, reader)
        return (replace(sides[0], tokens=fmean(side.tokens for side in sides)),)

    def run(self, context: StageContext) -> Mapping[str, Any]:
        """Write prompts.jsonl and responses.jsonl, a line for each pair."""
        found = []
        for example in read_examples(context.path(self.data), self.split):
            both = [
                dataset_response(example.prompt, text)
                for text in (example.chosen, example.rejected)
            ]
            found.append((example.prompt, sorted(both, key=lambda r: r.id)[self.place]))
        write_answers(context.output, found)
        return {"answers": len(found), "empty": sum(r.is_empty for _, r in found)}


def _write_report(loading: LoadReport, too_long: int, cuts: Sequence[Cuts], path: Path) -> None:
    """Write which rows were not taken and why, and what limits cut off, for readers.

    `cuts` has an entry for each way in which agents read text.

    The source's name is not in it: where the data lies must not change the artifact.
    """
    report = {
        **loading.to_json(),
        "prompts_too_long": too_long,
        "cuts": [asdict(entry) for entry in cuts],
    }
    del report["source"]
    path.write_text(json.dumps(report, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def content_digest(config: DataConfig, *, fetch: bool) -> str:
    """Return a digest of a data set's content and of how it is read and divided.

    How much of it is replayed later is said where that is done. `max_bad_rows` decides whether it
    is taken, and never what of it: see `SplitData.accept`.

    Args:
        config: the data section.
        fetch: look the data up; without it, data that cannot be had now counts by its name, which
            is enough to plan.

    Raises:
        DataError: the source cannot be read or resolved, and `fetch` is set.
    """
    try:
        content = source_digest(config)
    except DataError:
        if fetch:
            raise
        content = f"unresolved:{config.source}"
    how = config.model_dump(exclude={"source", "replay"})
    limit = DataConfig.model_fields["max_bad_rows"].get_default()  # as in keys that are about
    return digest([content, plain({**how, "max_bad_rows": limit})])
