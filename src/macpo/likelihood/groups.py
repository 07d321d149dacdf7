"""Prompt groups, and packing them to a token budget.

A group is one prompt with the completions that branch from it. In a pack its tokens lie as

    prompt | completion 0 without its last token | completion 1 without its last token | ...

because the last token of a completion predicts nothing. The first token of every completion is
predicted at the prompt's last position, which is computed once. Positions restart at the prompt's
end for each completion, so each branch sees what it would see alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class PromptGroup:
    """A prompt's token ids and those of its completions (each with at least one token)."""

    prompt: tuple[int, ...]
    completions: tuple[tuple[int, ...], ...]

    def __post_init__(self) -> None:
        """Refuse what has no log-probability.

        Raises:
            ValueError: the prompt, the list of completions or one completion is empty.
        """
        if not self.prompt:
            raise ValueError("a prompt group needs at least one prompt token")
        if not self.completions or not all(self.completions):
            raise ValueError("a prompt group needs completions, each of at least one token")

    @property
    def tokens(self) -> int:
        """Number of tokens this group takes in a pack."""
        return len(self.prompt) + sum(len(c) - 1 for c in self.completions)

    @property
    def longest(self) -> int:
        """Number of tokens of the prompt with its longest completion."""
        return len(self.prompt) + max(map(len, self.completions))


@dataclass(frozen=True, slots=True)
class Pack:
    """Groups that share one forward pass; `indices` are their places in the caller's list."""

    groups: tuple[PromptGroup, ...]
    indices: tuple[int, ...]

    @property
    def tokens(self) -> int:
        """Number of tokens of its groups; their packed row is shorter if they share a prefix."""
        return sum(group.tokens for group in self.groups)

    @property
    def shared_prefix(self) -> int:
        """How many tokens of its prompts are forwarded once for all groups."""
        return shared_prefix([group.prompt for group in self.groups])


def shared_prefix(prompts: Sequence[Sequence[int]]) -> int:
    """Return how many tokens at the start of `prompts` (at least one) are computed once for all.

    The one rule of likelihood and generation alike; how the tokens are kept is theirs. Each prompt
    keeps its last token for itself, since that one predicts what comes next. A prompt that is alone
    shares nothing.
    """
    if len(prompts) < 2:
        return 0
    first, last = min(map(tuple, prompts)), max(map(tuple, prompts))  # all others lie between
    limit = min(map(len, prompts)) - 1
    return next((n for n in range(limit) if first[n] != last[n]), limit)


def pack_groups(groups: Sequence[PromptGroup], budget: int) -> list[Pack]:
    """Divide `groups` into packs of at most `budget` tokens each.

    First-fit decreasing: longest group first, into the first pack with room. A group larger than
    the budget gets a pack of its own. Then the packs are as few as this rule gives, and no number
    that comes out depends on the division. Deterministic.
    """
    order = sorted(range(len(groups)), key=lambda i: (-groups[i].tokens, i))
    bins: list[list[int]] = []
    room: list[int] = []
    for i in order:
        size = groups[i].tokens
        for number, left in enumerate(room):
            if size <= left:
                bins[number].append(i)
                room[number] -= size
                break
        else:
            bins.append([i])
            room.append(budget - size)
    return [Pack(tuple(groups[i] for i in sorted(b)), tuple(sorted(b))) for b in bins]


def pack_alike(groups: Sequence[PromptGroup], budget: int) -> list[Pack]:
    """Divide `groups` into packs of at most `budget` tokens each, of similar lengths.

    For what is forwarded in padded rows: neighbours in length need the fewest pads. A group larger
    than the budget gets a pack of its own.
    """
    order = sorted(range(len(groups)), key=lambda i: (groups[i].longest, groups[i].tokens, i))
    bins: list[list[int]] = []
    room = 0
    for i in order:
        room -= groups[i].tokens
        if room < 0 or not bins:
            bins.append([])
            room = budget - groups[i].tokens
        bins[-1].append(i)
    return [Pack(tuple(groups[i] for i in sorted(b)), tuple(sorted(b))) for b in bins]
