"""Files of judgments made in a moment, without a run."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from macpo.annotation.judgments import JudgmentFile, Verdict
from macpo.annotation.pairs import AnswerPair, Pairing
from macpo.records import Message, Origin, Prompt, Response

Texts = tuple[str, str, str]
TEXTS: tuple[Texts, ...] = tuple(
    (f"Name a prime above {i}.", f"It is {i + 1}.", f"I cannot help with {i}.") for i in range(6)
)


def make_pair(question: str, one: str, other: str, *earlier: Message) -> AnswerPair:
    prompt = Prompt((*earlier, Message("user", question)))
    origins = (Origin("student/positive", "aa"), Origin("student/positive", "bb"))
    sides = [Response(prompt.id, t, o) for t, o in zip((one, other), origins, strict=True)]
    return AnswerPair(prompt, *sides)


def make_pairing(pairs: Iterable[AnswerPair], key: str = "0123456789abcdef") -> Pairing:
    return Pairing("student@2", "student@0", key, tuple(pairs), equal=0, alone=0)


def make_file(folder: Path, texts: Sequence[Texts] = TEXTS) -> JudgmentFile:
    """Return an open file, its pairs in the order of `texts`."""
    pairing = make_pairing(make_pair(*t) for t in texts)
    return JudgmentFile.open(folder / "annotations" / "student.sqlite", pairing)


def judge_all(file: JudgmentFile, annotator: str, verdicts: Sequence[Verdict | None]) -> None:
    """Give one verdict a pair, from the first on; None judges nothing."""
    for pair, verdict in zip(file.pairs, verdicts, strict=False):
        if verdict is not None:
            assert file.judge(pair.id, annotator, verdict, 2.0)
