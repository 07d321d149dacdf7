"""Rows of tasks whose answers can be verified: GSM8K's solutions, BBQ's questions.

gsm8k  {"question", "ground_truth", "6b_finetuning": {"is_correct", "solution"}, ...}, or
       {"question", "answer", "rejected"}
bbq    {"context", "question", "ans0", "ans1", "ans2", "label", "context_condition",
        "question_polarity", "answer_info", "additional_metadata"}
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, cast

from macpo.data.turns import BadRow, build_example, get_field, get_text, json_type
from macpo.records import Message, PreferenceExample
from macpo.tasks.bbq import OPTIONS, Question
from macpo.tasks.numbers import CALCULATION, final_number

_FINAL_LINE = re.compile(r"^(?:A:|####)\s*", re.MULTILINE)

POLARITIES = {"neg": True, "nonneg": False}
CONDITIONS = {"ambig": True, "disambig": False}
UNKNOWN = "unknown"


def parse_gsm8k(row: Mapping[str, Any]) -> PreferenceExample:
    """Read a question with a right and a wrong solution.

    Chosen is the first solution that is labelled right, else the data's own; rejected is
    `rejected`, else the first that is labelled wrong. Calculator annotations are taken out, and the
    line with the answer is written as GSM8K has it (`#### 18`) in both, so that not the manner
    tells them apart.

    Raises:
        BadRow: the row is unfit, no solution is wrong, or the chosen one has no final number.
    """
    labelled = list(_labelled_solutions(row))
    right = next((text for text, good in labelled if good), None)
    if right is None:
        own = "answer" if row.get("ground_truth") is None else "ground_truth"
        right = get_field(row, own)
        if not (isinstance(right, str) and _FINAL_LINE.search(right)):
            # Any question with an answer would be taken for a problem of GSM8K.
            raise BadRow("missing field", f"a line with #### in {own}")
    wrong = row.get("rejected")
    if wrong is None:
        if not labelled:
            get_field(row, "rejected")
        wrong = next((text for text, good in labelled if not good), None)
        if wrong is None:
            raise BadRow("no preference", "no solution is wrong")
    chosen, rejected = (_tidy(*entry) for entry in ((right, "chosen"), (wrong, "rejected")))
    if final_number(chosen) is None:
        raise BadRow("no final number", "in the right solution")
    asked = Message("user", get_text(row, "question"))
    return build_example(
        [asked, Message("assistant", chosen)], [asked, Message("assistant", rejected)]
    )


def holds_solutions(value: object) -> bool:
    """Say whether a field holds a labelled solution, whatever it is called."""
    return isinstance(value, Mapping) and {"is_correct", "solution"} <= value.keys()


def parse_bbq(row: Mapping[str, Any]) -> PreferenceExample:
    """Read a question of BBQ as a pair: the right option, and the one that `Question` rejects.

    Raises:
        BadRow: the row is unfit.
    """
    question = read_question(row)
    asked = question.prompt.messages
    right, wrong = (
        Message("assistant", question.options[number])
        for number in (question.right, question.rejected)
    )
    return build_example([*asked, right], [*asked, wrong])


def read_question(row: Mapping[str, Any]) -> Question:
    """Read a row of BBQ as it was released.

    Which option is the stereotyped one is said by `target_loc`, where the release's table of that
    name was joined, else by the one whose group is among `stereotyped_groups`.

    Raises:
        BadRow: the row is unfit, or does not say which option is the stereotyped one.
    """
    first, second, third = (get_text(row, f"ans{number}") for number in OPTIONS)
    ambiguous = _word(row, "context_condition", CONDITIONS)
    negative = _word(row, "question_polarity", POLARITIES)
    groups = [_groups(row, number) for number in OPTIONS]
    unknown = [number for number in OPTIONS if UNKNOWN in groups[number]]
    if len(unknown) != 1:
        raise BadRow("not supported", f"answer_info with {len(unknown)} options that are unknown")
    target = _target(row, groups, unknown[0])
    (other,) = set(OPTIONS) - {unknown[0], target}
    right = _option(row, "label")
    if (right == unknown[0]) != ambiguous:
        raise BadRow("no such response", f"label is {right}, against context_condition")
    return Question(
        context=get_text(row, "context"),
        question=get_text(row, "question"),
        options=(first, second, third),
        right=right,
        unknown=unknown[0],
        biased=target if negative else other,
        ambiguous=ambiguous,
    )


def _labelled_solutions(row: Mapping[str, Any]) -> Iterator[tuple[object, bool]]:
    """Yield the labelled solutions of a row, in its order, with whether they are right."""
    for name, value in row.items():
        if holds_solutions(value):
            good = value["is_correct"]
            if not isinstance(good, bool):
                raise BadRow("wrong type", f"is_correct in {name} is {json_type(good)}")
            yield value["solution"], good


def _tidy(value: object, name: str) -> str:
    """Return a solution without annotations, its last line with the answer as GSM8K has it."""
    if not isinstance(value, str):
        raise BadRow("wrong type", f"{name} is {json_type(value)}, not text")
    text = CALCULATION.sub("", value).strip()
    marks = list(_FINAL_LINE.finditer(text))
    if not marks:
        return text
    return f"{text[: marks[-1].start()]}#### {text[marks[-1].end() :].strip()}"


def _word(row: Mapping[str, Any], name: str, known: Mapping[str, bool]) -> bool:
    """Return what one of two words in a field means."""
    value = str(get_field(row, name))
    if value not in known:
        raise BadRow("no such response", f"{name} is {value[:20]!r}, not {' or '.join(known)}")
    return known[value]


def _groups(row: Mapping[str, Any], number: int) -> set[str]:
    """Return whom an option names, in small letters."""
    info = get_field(row, "answer_info")
    value = info.get(f"ans{number}") if isinstance(info, Mapping) else None
    if not isinstance(value, list):
        raise BadRow("missing field", f"answer_info.ans{number}")
    return {str(group).lower() for group in value}


def _target(row: Mapping[str, Any], groups: list[set[str]], unknown: int) -> int:
    """Return the number of the option that names the stereotyped group."""
    if row.get("target_loc") is not None:
        target = _option(row, "target_loc")
        if target == unknown:
            raise BadRow("no such response", f"target_loc is {target}, which is unknown")
        return target
    metadata = get_field(row, "additional_metadata")
    stereotyped = metadata.get("stereotyped_groups") if isinstance(metadata, Mapping) else None
    if not isinstance(stereotyped, list):
        raise BadRow("missing field", "additional_metadata.stereotyped_groups")
    named = {str(group).lower() for group in stereotyped}
    found = [number for number in OPTIONS if number != unknown and groups[number] & named]
    if len(found) != 1:
        raise BadRow("missing field", "target_loc, where groups do not tell the options apart")
    return found[0]


def _option(row: Mapping[str, Any], name: str) -> int:
    """Return the number of an option; tables write it as 1.0."""
    value = get_field(row, name)
    if isinstance(value, bool) or value not in OPTIONS:
        raise BadRow("no such response", f"{name} is {str(value)[:20]}, not 0, 1 or 2")
    return int(cast(float, value))
