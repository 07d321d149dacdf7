"""What the limits take away: answers without their end, prompts without their first turns.

An answer that is cut has no end of turn. A model that learns only such answers never learns to
stop, and no loss shows it; so it is counted before anything is trained.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

from macpo.config import LimitsConfig
from macpo.errors import DataError
from macpo.models.chat import Chat, PromptTooLong
from macpo.records import PreferenceExample, Prompt, dataset_response

WARNED_SHARE = 0.05
"""Share of answers, prompts or pairs from which on a cut is worth a warning."""
UNLIMITED = 1 << 31
SAMPLE = 1000
"""Pairs that are counted of a larger data set: a share of 5 % is then known to 0.7 points."""


@dataclass(frozen=True, slots=True)
class Cuts:
    """What one tokenizer and its limits do to some pairs.

    Attributes:
        response_tokens: the limit of answers.
        prompt_tokens: the limit of prompts.
        answers: chosen and rejected ones, of pairs whose prompt fits.
        answers_cut: those of them that lose their end, and the end of turn with it.
        prompts: distinct ones.
        prompts_shortened: those that lose their oldest turns.
        prompts_too_long: those that do not fit even so; their pairs are left out.
        pairs: those whose prompt fits.
        pairs_equal: those whose answers are the same tokens after the cut.
        neutralised: texts in which spellings of special tokens are changed.
        sampled_of: the pairs of which these are a sample; None if they are all.
    """

    response_tokens: int
    prompt_tokens: int
    answers: int
    answers_cut: int
    prompts: int
    prompts_shortened: int
    prompts_too_long: int
    pairs: int
    pairs_equal: int
    neutralised: int
    sampled_of: int | None = None

    def lines(self) -> list[str]:
        """Say what is lost, a line each; nothing where nothing is."""
        said = [
            (
                self.answers_cut,
                f"{self.answers_cut:,} of {self.answers:,} answers are cut at "
                f"{self.response_tokens:,} tokens and have no end of turn",
            ),
            (
                self.prompts_shortened,
                f"{self.prompts_shortened:,} of {self.prompts:,} prompts lose their oldest turns "
                f"to fit {self.prompt_tokens:,} tokens",
            ),
            (
                self.prompts_too_long,
                f"{self.prompts_too_long:,} of {self.prompts:,} prompts are over "
                f"{self.prompt_tokens:,} tokens without any earlier turn and are left out",
            ),
            (
                self.pairs_equal,
                f"{self.pairs_equal:,} of {self.pairs:,} pairs have equal answers after the cut",
            ),
            (
                self.neutralised,
                f"{self.neutralised:,} texts spell special tokens, which are changed",
            ),
        ]
        return [f"{self._where}{line}" for count, line in said if count]

    @property
    def _where(self) -> str:
        """What to say before a count of a sample."""
        return "" if self.sampled_of is None else f"in a sample of {self.sampled_of:,} pairs, "

    @property
    def warning(self) -> str | None:
        """What to do where more than `WARNED_SHARE` is lost; None where it is not."""
        answers = self.answers_cut > WARNED_SHARE * self.answers
        equal = self.pairs_equal > WARNED_SHARE * self.pairs
        lost = self.prompts_shortened + self.prompts_too_long
        prompts = lost > WARNED_SHARE * self.prompts
        limits = [
            *(["limits.response_tokens"] if answers or equal else []),
            *(["limits.prompt_tokens"] if prompts else []),
        ]
        if not limits:
            return None
        said = [line for line in self.lines() if "spell" not in line]
        return f"{'; '.join(said)}; raise {' and '.join(limits)}"


def count_cuts(chat: Chat, examples: Sequence[PreferenceExample], limits: LimitsConfig) -> Cuts:
    """Encode pairs as training and scoring will, and count what is lost.

    Of more than `SAMPLE` pairs as many are counted, those whose prompts have the smallest ids: they
    are a random sample, in which a prompt has all its pairs, and the order of rows decides nothing.
    Encoding 10,000 pairs takes half a minute and more, see bench/data_cuts.py.
    """
    sampled_of = len(examples) if len(examples) > SAMPLE else None
    examples = heapq.nsmallest(SAMPLE, examples, key=lambda e: e.prompt.id)
    prompts: dict[Prompt, int | None] = {}
    answers = cut = pairs = equal = 0
    changed: set[str] = set()
    for example in examples:
        if example.prompt not in prompts:
            prompts[example.prompt] = _dropped(chat, example.prompt, limits.prompt_tokens)
            texts = [message.content for message in example.prompt.messages]
            changed.update(text for text in texts if chat.changes(text))
        if prompts[example.prompt] is None:
            continue
        sides = [_encoded(chat, example, text) for text in (example.chosen, example.rejected)]
        changed.update(t for t in (example.chosen, example.rejected) if chat.changes(t))
        pairs += 1
        answers += 2
        cut += sum(len(ids) > limits.response_tokens for ids in sides)
        short = [ids[: limits.response_tokens] for ids in sides]
        equal += short[0] == short[1]
    return Cuts(
        response_tokens=limits.response_tokens,
        prompt_tokens=limits.prompt_tokens,
        answers=answers,
        answers_cut=cut,
        prompts=len(prompts),
        prompts_shortened=sum(bool(dropped) for dropped in prompts.values()),
        prompts_too_long=sum(dropped is None for dropped in prompts.values()),
        pairs=pairs,
        pairs_equal=equal,
        neutralised=len(changed),
        sampled_of=sampled_of,
    )


def _dropped(chat: Chat, prompt: Prompt, limit: int) -> int | None:
    """Return how many turns a prompt loses; None if it is too long even so."""
    try:
        return chat.encode_prompt(prompt, limit).dropped_turns
    except PromptTooLong:
        return None


def _encoded(chat: Chat, example: PreferenceExample, text: str) -> tuple[int, ...]:
    """Encode an answer as a whole; one that is nothing but blanks to the tokenizer is empty."""
    try:
        return chat.encode_completion(dataset_response(example.prompt, text), UNLIMITED)
    except DataError:
        return ()
