"""The form of answers: what they repeat, and what they copy."""

from __future__ import annotations

import pytest

from macpo.form import copying, repeated_sentences, repetition


@pytest.mark.parametrize(
    ("token_ids", "share"),
    [
        ([], 0.0),
        ([7, 7, 7], 0.0),
        ([1, 2, 3, 4, 5, 6], 0.0),
        ([1, 2, 3, 4, 1, 2, 3, 4], 1 / 5),
        ([7] * 103, 0.99),
    ],
)
def test_repetition_is_the_share_of_fourgrams_that_stood_before(
    token_ids: list[int], share: float
) -> None:
    assert repetition(token_ids) == pytest.approx(share)


@pytest.mark.parametrize(
    ("token_ids", "share"),
    [
        ([], 0.0),
        ([1, 2, 3], 0.0),
        ([1, 2, 3, 4, 5], 1.0),
        ([9, 1, 2, 3, 4, 9], 1 / 3),
        ([5, 4, 3, 2, 1], 0.0),
    ],
)
def test_copying_is_the_share_of_fourgrams_that_stand_in_the_prompt(
    token_ids: list[int], share: float
) -> None:
    assert copying(token_ids, [0, 1, 2, 3, 4, 5, 0]) == pytest.approx(share)


def test_words_are_counted_like_tokens() -> None:
    """Of the four 3-grams of "a b c a b c" the last stood before; first and last are copied."""
    words = ["a", "b", "c", "a", "b", "c"]
    assert repetition(words, 3) == 1 / 4
    assert copying(words, ["x", "a", "b", "c", "y"], 3) == 2 / 4


@pytest.mark.parametrize(
    ("text", "share"),
    [
        ("", 0.0),
        ("One sentence.", 0.0),
        ("Call him. Call her.", 0.0),
        ("Call him. Call  HIM. Then rest.", 1 / 3),
        ("Is it? No!\nIs it?\n\nNo!", 2 / 4),
        ("Version 1.5 is not 1.5 again.", 0.0),
    ],
)
def test_repeated_sentences_stood_earlier_whatever_their_case_and_blanks(
    text: str, share: float
) -> None:
    assert repeated_sentences(text) == pytest.approx(share)
