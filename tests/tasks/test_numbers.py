"""The final number of an answer: which it is, and what it is worth."""

from __future__ import annotations

from fractions import Fraction

import pytest

from macpo.tasks.numbers import MOST_DIGITS, final_number


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("Natalia sold 48+24 = <<48+24=72>>72 clips.\n#### 72", 72),
        ("#### 18\nThat was easy, only 3 steps.", 18),
        ("#### 5\nNo, wait.\n#### 6", 6),
        ("####\n\n7", 7),
        ("16 - 3 - 4 = 9, so she earns $18.", 18),
        ("A: 26", 26),
        ("The answer is \\boxed{42}, as 6 * 7 shows.", 42),
        ("The answer is $\\boxed{\\dfrac{3}{4}}$.", Fraction(3, 4)),
        ("It costs $1,200.50.", Fraction(2401, 2)),
        ("It costs \\$70,000", 70000),
        ("#### 70,000 dollars in 2 years", 70000),
        ("1234,567", 1234567),
        ("1, 2, 3", 3),
        ("1,2,3", 3),
        ("a share of 18 %", 18),
        ("42km.", 42),
        ("about .5 litres", Fraction(1, 2)),
        ("3/4 of a cup", Fraction(3, 4)),
        ("1 1/2 cups", Fraction(3, 2)),
        ("x = -3", -3),
        ("a loss of -$5", -5),
        ("a loss of $-5", -5),
        ("\N{MINUS SIGN}7", -7),
        ("10-5", 5),
        ("16 - 3", 3),
        ("18.0", 18),
        ("#### none, but 12 before", 12),
    ],
)
def test_final_number_is_read(text: str, number: Fraction | int) -> None:
    assert final_number(text) == number


@pytest.mark.parametrize(
    "text", ["", "seven", "####", "5/0", "GPT4", "9" * (MOST_DIGITS + 1), "<<3+4=7>>"]
)
def test_answers_without_a_number_have_none(text: str) -> None:
    assert final_number(text) is None


def test_an_answer_caught_in_a_loop_is_read_in_a_moment() -> None:
    assert final_number("1,000" * 20_000 + " 7") == 7
    assert final_number("1 1/" * 20_000 + "#### 7") == 7
