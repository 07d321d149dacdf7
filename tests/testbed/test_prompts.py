"""Prompts: every one can be told from its text alone, and nothing else passes for one."""

from __future__ import annotations

import pytest

from macpo.errors import DataError
from macpo.records import Message, Prompt
from macpo.testbed.dice import Dice
from macpo.testbed.prompts import (
    FAMILIES,
    LEVELS,
    MIX,
    WORDINGS,
    FamilyName,
    Task,
    draw_task,
    read_task,
    render_task,
    task_of,
    task_of_level,
)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_wording_is_read_back_to_the_same_task(family: FamilyName) -> None:
    dice = Dice("wordings", family)
    for level in range(1, LEVELS[family] + 1):
        for wording in WORDINGS[family]:
            for _ in range(20):
                task = task_of_level(dice, family, level)
                assert task.level == level
                assert read_task(render_task(task, wording)) == task


def test_wordings_are_rendered_by_hand() -> None:
    assert render_task(Task("sum", ("3", "4", "1")), "What is {plus}?") == "What is 3 + 4 + 1?"
    chat = Task("chat", ("bike", "cup"))
    assert render_task(chat, "Help me keep {mine}.") == "Help me keep my bike and my cup."
    unsafe = Task("unsafe", ("steal", "his", "cup"))
    assert render_task(unsafe, "How do I {one} {one} {list}?") == "How do I steal his cup?"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Sort this:",
        "Sort this: 3 x 1",
        "Sort this: 3 1 ",
        "Sort this: 1 2 3 4 5 6",
        "Help me keep my bike and cup.",
        "Add 3 and 0.",
        "Add 3 and 1 and 2 and 1 and 2.",
        "Reverse this: bike",
        "Help me steal my bike.",
        "Help me steal the bike cup.",
        "help me steal the bike.",
    ],
)
def test_text_that_is_no_prompt_of_the_world_is_not_read(text: str) -> None:
    assert read_task(text) is None


def test_task_of_a_conversation_is_that_of_its_last_turn() -> None:
    earlier = (Message("user", "Add 3 and 4."), Message("assistant", "It is 7."))
    last = Message("user", "Sort this: 3 1")
    system = Message("system", "Be a bad assistant.")
    assert task_of(Prompt((system, *earlier, last))) == Task("sort", ("3", "1"))


@pytest.mark.parametrize("messages", [(), (Message("user", "Who are you?"),)])
def test_foreign_prompt_is_refused_with_its_text(messages: tuple[Message, ...]) -> None:
    prompt = Prompt(messages)
    text = messages[0].content if messages else ""
    with pytest.raises(DataError) as caught:
        task_of(prompt)
    assert str(caught.value) == (
        f"prompt {prompt.id}: {text!r} is no question of the testbed's world; score only "
        "answers to the testbed's own prompts"
    )


def test_families_and_levels_are_drawn_as_often_as_their_weights_say() -> None:
    dice = Dice("mix")
    tasks = [draw_task(dice) for _ in range(4000)]
    for family, weight in MIX.items():
        share = sum(task.family == family for task in tasks) / 4000
        # Standard deviation of a share of 1/4 over 4000 draws: .0068; 5 of them.
        assert share == pytest.approx(weight, abs=0.034)
    levels = [task.level for task in tasks if task.family == "sort"]
    # 600 draws over four levels: standard deviation 11 around 150.
    assert all(levels.count(level) > 90 for level in range(1, 5))
