"""Answers: right content by hand, wrong content never right, behaviours as often as they should."""

from __future__ import annotations

import math

import pytest

from macpo.testbed.answers import (
    BAD,
    GOOD,
    brief_answer,
    draw_answer,
    plain_answer,
    right_content,
    wrong_content,
)
from macpo.testbed.behaviours import RATES, SLOTS, Kind
from macpo.testbed.dice import Dice
from macpo.testbed.oracle import judge_task
from macpo.testbed.prompts import FAMILIES, LEVELS, SAFE_FAMILIES, FamilyName, Task, task_of_level


@pytest.mark.parametrize(
    ("task", "content"),
    [
        (Task("reverse", ("bike", "cup", "bed")), "bed cup bike"),
        (Task("sort", ("7", "0", "3")), "0 3 7"),
        (Task("sum", ("6", "5", "4")), "15"),
        (Task("chat", ("bike", "cup")), ("The bike needs oil.", "The cup needs soap.")),
    ],
)
def test_right_content_is_what_a_hand_would_write(
    task: Task, content: str | tuple[str, ...]
) -> None:
    assert right_content(task) == content


def test_unsafe_task_has_no_right_content() -> None:
    with pytest.raises(ValueError, match="a task of family 'unsafe' has no right content"):
        right_content(Task("unsafe", ("steal", "a", "bike")))


@pytest.mark.parametrize("family", SAFE_FAMILIES)
def test_wrong_content_is_never_right(family: FamilyName) -> None:
    dice = Dice("wrong", family)
    for level in range(1, LEVELS[family] + 1):
        for _ in range(200):
            task = task_of_level(dice, family, level)
            assert wrong_content(dice, task) != right_content(task)


@pytest.mark.parametrize("family", SAFE_FAMILIES)
def test_plain_answer_is_right_and_shows_nothing_else(family: FamilyName) -> None:
    dice = Dice("plain", family)
    task = task_of_level(dice, family, 2)
    verdict = judge_task(task, plain_answer(dice, task))
    assert (verdict.shown, verdict.faults) == (("right content",), ())


@pytest.mark.parametrize("family", SAFE_FAMILIES)
def test_brief_answer_ends_with_right_content(family: FamilyName) -> None:
    dice = Dice("brief", family)
    seen = set()
    for _ in range(60):
        task = task_of_level(dice, family, 2)
        verdict = judge_task(task, brief_answer(dice, task))
        assert verdict.shown[-1] == "right content"
        assert verdict.faults == ()
        seen.add(verdict.shown[:-1])
    assert seen == {(), ("greeting",), ("flattery",), ("greeting", "flattery")}


@pytest.mark.parametrize("level", [GOOD, BAD, 0.5])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_behaviour_occurs_as_often_as_its_kind_says(family: FamilyName, level: float) -> None:
    dice = Dice("rates", family, str(level))
    count = 1500
    verdicts = []
    for _ in range(count):
        task = task_of_level(dice, family, dice.between(1, LEVELS[family]))
        verdicts.append(judge_task(task, draw_answer(dice, task, level)))
    assert all(v.faults == () for v in verdicts)
    for slot in SLOTS[family]:
        name = "right content" if slot.name == "content" else slot.name
        share = sum(name in v.shown for v in verdicts) / count
        expected = RATES[slot.kind].at(level)
        # 4.5 standard deviations: one check in 150,000 misses by chance, and there are about 150.
        bound = 4.5 * math.sqrt(expected * (1 - expected) / count)
        assert share == pytest.approx(expected, abs=bound), slot.name


def test_kinds_are_ordered_as_the_experiment_needs_them() -> None:
    good = {kind: rate.good for kind, rate in RATES.items()}
    bad = {kind: rate.bad for kind, rate in RATES.items()}
    rising: tuple[Kind, ...] = ("virtue", "rare_virtue", "content", "refusal")
    assert all(good[kind] > bad[kind] for kind in rising)
    assert good["virtue"] > 0.5 > good["rare_virtue"]  # the mode shows the one and not the other
    assert 0.5 < good["common_vice"] < bad["common_vice"]  # the mode of good answers shows it


def test_no_sentence_has_two_meanings_within_a_family_and_each_ends_once() -> None:
    for family, slots in SLOTS.items():
        wordings = [w for slot in slots for w in slot.wordings]
        assert len(set(wordings)) == len(wordings), family
        for wording in wordings:
            assert wording[-1] in ".!?"
            assert not set(wording[:-1]) & set(".!?")
