"""Prompt groups and how they are packed."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from macpo.likelihood import Pack, PromptGroup, pack_groups
from macpo.likelihood.groups import pack_alike, shared_prefix
from tests.likelihood.plain import group_lists, tokens


def group(prompt: int, *completions: int) -> PromptGroup:
    """Return a group with these lengths."""
    return PromptGroup((7,) * prompt, tuple((8,) * n for n in completions))


def test_group_takes_its_prompt_once_and_no_last_tokens() -> None:
    """3 of the prompt, 5 - 1 and 1 - 1 of the completions: a last token predicts nothing."""
    assert group(3, 5, 1).tokens == 7


def test_pack_counts_the_tokens_of_its_groups() -> None:
    [pack] = pack_groups([group(3, 5, 1), group(1, 1)], 100)
    assert pack.tokens == 8
    assert pack.indices == (0, 1)


@pytest.mark.parametrize(
    ("prompt", "completions", "message"),
    [
        ((), ((1,),), "a prompt group needs at least one prompt token"),
        ((1,), (), "a prompt group needs completions, each of at least one token"),
        ((1,), ((1,), ()), "a prompt group needs completions, each of at least one token"),
    ],
)
def test_what_has_no_log_probability_is_refused(
    prompt: tuple[int, ...], completions: tuple[tuple[int, ...], ...], message: str
) -> None:
    with pytest.raises(ValueError, match=f"^{message}$"):
        PromptGroup(prompt, completions)


def test_packing_is_first_fit_decreasing() -> None:
    """Sizes 4, 7, 3, 6, 2 into tens: 7 with 3, 6 with 4, 2 alone."""
    sizes = [group(n, 1) for n in (4, 7, 3, 6, 2)]
    assert [pack.indices for pack in pack_groups(sizes, 10)] == [(1, 2), (0, 3), (4,)]


def test_group_over_the_budget_goes_alone() -> None:
    packs = pack_groups([group(1, 1), group(50, 1), group(1, 1)], 10)
    assert [pack.indices for pack in packs] == [(1,), (0, 2)]


def test_nothing_makes_no_pack() -> None:
    assert pack_groups([], 10) == []
    assert pack_alike([], 10) == []


def test_packs_of_rows_hold_groups_of_similar_length() -> None:
    """Sizes 2, 3, 4, 6, 7 into tens, neighbours together: the next one does not fit."""
    sizes = [group(n, 1) for n in (4, 7, 3, 6, 2)]
    assert [pack.indices for pack in pack_alike(sizes, 10)] == [(0, 2, 4), (3,), (1,)]


def test_similar_length_is_that_of_the_longest_row() -> None:
    """Rows of 9, 5 and 9 tokens; the one of 5 has the most tokens in all."""
    sizes = [group(1, 8), group(2, 3, 3, 3, 3, 3), group(7, 2)]
    assert [pack.indices for pack in pack_alike(sizes, 16)] == [(1,), (0, 2)]


def test_group_over_the_budget_of_rows_goes_alone() -> None:
    packs = pack_alike([group(1, 1), group(50, 1), group(1, 1)], 10)
    assert [pack.indices for pack in packs] == [(0, 2), (1,)]


@pytest.mark.parametrize(
    ("prompts", "shared"),
    [
        ([(1, 2, 3), (1, 2, 4), (1, 2, 3, 9)], 2),
        ([(1, 2, 3)] * 2, 2),  # the last token of each predicts, so each has its own
        ([(1, 2, 3, 4), (1, 2)], 1),
        ([(1, 2), (1, 2, 3), (1, 2, 4)], 1),
        ([(1,), (1,)], 0),
        ([(5,), (5, 6)], 0),
        ([(5, 2), (6, 2)], 0),
        ([(1, 9, 9), (1, 2, 3), (2, 2, 3)], 0),
        ([(1, 9, 3, 4), (1, 2, 3, 4), (1, 5, 3, 4)], 1),
        ([(1, 2, 3)], 0),  # nobody to share with
    ],
)
def test_shared_prefix_is_what_all_prompts_start_with(
    prompts: list[tuple[int, ...]], shared: int
) -> None:
    assert shared_prefix(prompts) == shared_prefix([list(prompt) for prompt in prompts]) == shared
    groups = tuple(PromptGroup(prompt, ((8,),)) for prompt in prompts)
    assert Pack(groups, tuple(range(len(groups)))).shared_prefix == shared


@given(st.lists(tokens(8), min_size=1, max_size=5), tokens(8))
def test_shared_prefix_is_the_longest_that_leaves_each_prompt_a_token(
    ends: list[tuple[int, ...]], start: tuple[int, ...]
) -> None:
    prompts = [start + end for end in ends]
    found = shared_prefix(prompts)
    rules = [
        n
        for n in range(min(map(len, prompts)))
        if len({prompt[:n] for prompt in prompts}) == 1 and len(prompts) > 1
    ]
    assert found == max(rules, default=0)


@given(group_lists(), st.integers(1, 60))
def test_every_group_is_in_one_pack_and_packs_keep_to_the_budget(
    groups: list[PromptGroup], budget: int
) -> None:
    packs = pack_groups(groups, budget)
    assert sorted(i for pack in packs for i in pack.indices) == list(range(len(groups)))
    for pack in packs:
        assert [groups[i] for i in pack.indices] == list(pack.groups)
        assert pack.tokens <= budget or len(pack.groups) == 1
    if len(packs) > 1:  # two packs that fit into one would have been one
        fullest = sorted(pack.tokens for pack in packs)[:2]
        assert sum(fullest) > budget
