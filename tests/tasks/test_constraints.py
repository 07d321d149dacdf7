"""Constraints: read back from prompts, checked, and met or violated in pairs that are drawn."""

from __future__ import annotations

import pytest

from macpo.errors import DataError
from macpo.tasks.constraints import KINDS, Constraint, count_words, read_constraints
from macpo.tasks.short import MOST_SHORT, short_digest, short_examples
from macpo.tasks.writing import MOST_EXAMPLES, constrained_examples, examples_digest


@pytest.mark.parametrize("kind", KINDS)
def test_a_constraint_is_read_back_out_of_its_sentence(kind: str) -> None:
    wording = KINDS[kind].wording
    constraint = Constraint(
        kind, 3 if "{number}" in wording else 0, "so be it." if "{words}" in wording else ""
    )
    assert read_constraints(f"Write. {constraint.sentence} Thanks.") == (constraint,)


def test_constraints_are_read_in_their_order_and_more_than_once() -> None:
    text = 'Use the word "sea". Do not use any commas. Use the word "salt".'
    assert read_constraints(text) == (
        Constraint("word", words="sea"),
        Constraint("no-commas"),
        Constraint("word", words="salt"),
    )
    assert read_constraints("Use at most many words.") == ()


@pytest.mark.parametrize(
    ("constraint", "met", "violated"),
    [
        (Constraint("least-words", 3), "one - two three", "one - two"),
        (Constraint("most-words", 2), "one, - two!", "one two three"),
        (Constraint("paragraphs", 2), "a\n \n\nb\nc", "a\nb"),
        (Constraint("bullets", 2), "So:\n- a\n  - b", "- a\n* b"),
        (Constraint("word", words="sea"), "The SEA.", "The season."),
        (Constraint("no-word", words="sea"), "The season.", "The Sea."),
        (Constraint("no-commas"), "a; b", "a, b"),
        (Constraint("small-letters"), "ça va, 7", "Ça va"),
        (Constraint("begin", words="Let us"), "- let us go", "Let usual"),
        (Constraint("end", words="That is all."), "Yes. that is all. ", "That is all. Bye"),
    ],
    ids=lambda value: value.kind if isinstance(value, Constraint) else "",
)
def test_constraints_are_checked(constraint: Constraint, met: str, violated: str) -> None:
    assert constraint.met(met)
    assert not constraint.met(violated)


def test_silence_meets_no_constraint() -> None:
    assert not any(Constraint(kind, 1, "a").met(" ... ") for kind in KINDS)
    assert count_words(" ... - a1 ") == 1


def test_drawn_pairs_meet_all_constraints_and_violate_exactly_one() -> None:
    violated = set()
    examples = constrained_examples(300)
    for example in examples:
        asked = read_constraints(example.prompt.messages[-1].content)
        assert 1 <= len(asked) <= 3
        assert all(constraint.met(example.chosen) for constraint in asked)
        (one,) = (constraint for constraint in asked if not constraint.met(example.rejected))
        violated.add(one.kind)
    assert violated == set(KINDS)
    assert len({example.prompt for example in examples}) == 300


def test_longer_drawn_data_starts_with_the_shorter_one() -> None:
    assert constrained_examples(40)[:20] == constrained_examples(20)
    assert examples_digest(40) != examples_digest(20)


@pytest.mark.parametrize("count", [0, MOST_EXAMPLES + 1])
def test_as_many_prompts_as_there_are_can_be_drawn(count: int) -> None:
    with pytest.raises(DataError, match="ask for 1 to 5,000"):
        constrained_examples(count)


def test_short_pairs_meet_all_constraints_and_none() -> None:
    kinds = set()
    examples = short_examples(300)
    for example in examples:
        asked = read_constraints(example.prompt.messages[-1].content)
        assert 1 <= len(asked) <= 3
        assert all(constraint.met(example.chosen) for constraint in asked)
        assert not any(constraint.met(example.rejected) for constraint in asked)
        kinds |= {constraint.kind for constraint in asked}
    assert kinds == {"word", "small-letters", "begin", "end"}
    assert len({example.prompt for example in examples}) == 300
    assert short_examples(20) == examples[:20]
    assert short_digest(20) != short_digest(40)


def test_the_form_alone_does_not_tell_a_short_answer_from_a_bad_one() -> None:
    """What one prompt asks for stands in rejected answers to others."""
    rejected = [example.rejected for example in short_examples(300)]
    for constraint in (
        Constraint("small-letters"),
        Constraint("begin", words="Let us see"),
        Constraint("end", words="That is all."),
    ):
        assert sum(constraint.met(answer) for answer in rejected) > 5


@pytest.mark.parametrize("count", [0, MOST_SHORT + 1])
def test_as_many_short_prompts_as_there_are_can_be_drawn(count: int) -> None:
    with pytest.raises(DataError, match="ask for 1 to 2,000"):
        short_examples(count)
