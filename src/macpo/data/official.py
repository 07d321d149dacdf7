"""The format of the data that the MACPO authors released: read and write.

It is LLaMA-Factory's JSON, a list of

    {"instruction": "USER: Hi! ASSISTANT: Hello! USER: Name a prime.", "input": "",
     "output": ["7", "8 is prime."]}

with the better answer first. Turns are flattened into `instruction` (HH-RLHF); an instruction that
does not open with "USER:" is the user's one turn as it stands (PKU-SafeRLHF). Files whose `output`
is one text are for SFT and hold no pairs. A system turn goes into LLaMA-Factory's own column
`system`, which the released files do not have.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from macpo.data.listed import parse_list
from macpo.data.turns import (
    BadRow,
    build_example,
    clean_answer,
    clean_text,
    get_field,
    get_text,
    is_absent,
    json_type,
    split_turns,
)
from macpo.records import Message, Pair, PreferenceExample, Response, Role
from macpo.store.atomic import write_text_atomic

MARKER = re.compile(r"(?:\A| )(USER|ASSISTANT):(?= |\Z)")
MARKER_ROLES: Mapping[str, Role] = {"USER": "user", "ASSISTANT": "assistant"}


def parse_macpo(row: Mapping[str, Any]) -> PreferenceExample:
    """Read one row of a file of pairs.

    As LLaMA-Factory does, a non-empty `input` continues the instruction on a new line.

    Raises:
        BadRow: the row is unfit.
    """
    instruction = get_text(row, "instruction")
    more = clean_text(row.get("input") or "", "input")
    before = _split_instruction(f"{instruction}\n{more}" if more else instruction)
    system = clean_text(row.get("system") or "", "system")
    if not is_absent(row.get("history")):
        # LLaMA-Factory's other place for earlier turns; the released files never use it.
        raise BadRow("wrong type", "history is not empty; flatten the turns into instruction")
    output = get_field(row, "output")
    if isinstance(output, str):
        output = parse_list(output)  # a cell of a csv
        if output is None:
            raise BadRow("not a pair", "output is one text, as in a file for SFT")
    if not isinstance(output, list):
        raise BadRow("wrong type", f"output is {json_type(output)}, not a list of two texts")
    if len(output) != 2:
        raise BadRow("not a pair", f"output holds {len(output)} texts")
    before = [Message("system", system), *before]
    chosen, rejected = (
        [*before, Message("assistant", clean_answer(text, "output"))] for text in output
    )
    return build_example(chosen, rejected)


def official_row(pair: PreferenceExample | Pair) -> dict[str, Any]:
    """Return one pair as the released files write it.

    A prompt of one turn gets its marker too, as in the released HH-RLHF files.

    Raises:
        BadRow: a turn holds " USER: " or " ASSISTANT: " itself; the format knows turns only by
            these markers, and the text would read back as more turns.
    """
    speakers = {role: speaker for speaker, role in MARKER_ROLES.items()}
    turns = pair.prompt.messages
    for turn in turns:
        marker = MARKER.search(turn.content)
        if marker is not None and turn.role != "system":  # that has a column of its own
            raise BadRow("turn marker in text", f"{marker.group(1)}: in the {turn.role}'s turn")
    row: dict[str, Any] = {
        "instruction": " ".join(
            f"{speakers[m.role]}: {m.content}" for m in turns if m.role != "system"
        ),
        "input": "",
        "output": [_text(pair.chosen), _text(pair.rejected)],
    }
    if turns[0].role == "system":
        row["system"] = turns[0].content
    return row


def official_rows(pairs: Iterable[PreferenceExample | Pair]) -> Iterator[dict[str, Any]]:
    """Yield the rows of `pairs` in the released format.

    Raises:
        BadRow: as `official_row`.
    """
    return map(official_row, pairs)


def write_official(path: Path, pairs: Iterable[PreferenceExample | Pair]) -> None:
    """Write `pairs` to `path` as the released files are: one JSON list, here in UTF-8.

    Raises:
        BadRow: as `official_row`; nothing is written then.
        StoreError: the file cannot be written.
    """
    text = json.dumps(list(official_rows(pairs)), ensure_ascii=False, indent=2)
    write_text_atomic(path, text + "\n", durable=True)


def _split_instruction(instruction: str) -> list[Message]:
    """Return the turns that an instruction flattens."""
    if not instruction.startswith("USER:"):
        return [Message("user", instruction)]
    return split_turns(instruction, MARKER, MARKER_ROLES)


def _text(answer: str | Response) -> str:
    """Return the text of an answer, be it a plain one or a sampled response."""
    return answer if isinstance(answer, str) else answer.text
