"""What people's judgments come to: how often each side won, and how far people agree.

A judgment counts 1 for a win, 1/2 for a tie, 0 for a loss. Several people may judge one prompt, and
what they say of it hangs together: standard errors are clustered by prompt
(`macpo.evaluation.statistics`); an interval is mean +- t * error, Student's t at one degree
of freedom less than there are prompts.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from statistics import fmean, median
from typing import Any

from macpo.annotation.agreement import cohen_kappa, fleiss_kappa, krippendorff_alpha
from macpo.annotation.judgments import Judgment, JudgmentFile, Verdict, annotation_files
from macpo.errors import StoreError
from macpo.estimates import student_t_quantile
from macpo.evaluation.statistics import clustered_mean
from macpo.run_directory import RunDir
from macpo.run_status import status

WORTH: Mapping[Verdict, float] = {"one": 1.0, "tie": 0.5, "other": 0.0}
"""What a judgment counts for the first side."""


@dataclass(frozen=True, slots=True)
class Annotator:
    """What one person did: `win_rate` of the first side, ties half; `left_rate` of choices."""

    name: str
    judged: int
    win_rate: float
    ties: int
    left_rate: float | None
    median_seconds: float | None


@dataclass(frozen=True, slots=True)
class Agreement:
    """How far people agree; None where it cannot be told.

    Attributes:
        shared: pairs that at least two people judged.
        agreed: how often two people who judged the same pair said the same, over all such twos.
        alpha: Krippendorff's, over all judgments.
        cohen: Cohen's kappa of each two people, under both names.
        fleiss: Fleiss' kappa over the pairs that all people judged.
        judged_by_all: how many these are.
    """

    shared: int
    agreed: float | None
    alpha: float | None
    cohen: Mapping[str, float | None]
    fleiss: float | None
    judged_by_all: int


@dataclass(frozen=True, slots=True)
class Results:
    """What a file of judgments comes to, seen from its first side.

    Attributes:
        path: the file.
        one: the first side.
        other: the second.
        pairs: in the file.
        judged: of them, by anybody.
        judgments: by everybody.
        wins: judgments for the first side.
        ties: for neither.
        losses: for the second side.
        win_rate: of the first side, a tie half a win; the second's is 1 - this. None before any
            judgment.
        half_width: of its 95 % interval; None where all judgments are the same, or on one prompt.
        win_rate_without_ties: wins / (wins + losses), and its half-width.
        half_width_without_ties: likewise.
        annotators: one for each person.
        agreement: None with fewer than two people.
    """

    path: Path
    one: str
    other: str
    pairs: int
    judged: int
    judgments: int
    wins: int
    ties: int
    losses: int
    win_rate: float | None
    half_width: float | None
    win_rate_without_ties: float | None
    half_width_without_ties: float | None
    annotators: tuple[Annotator, ...]
    agreement: Agreement | None

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {**asdict(self), "path": str(self.path)}


def annotation_results(run: str | Path) -> list[Results]:
    """Return what people's judgments of a run's answers come to, one for each file of them.

    Args:
        run: a run directory, or one file of judgments.

    Raises:
        StoreError: there is no run, nobody has judged, or a file cannot be read.
    """
    return [results_of(path) for path in judgment_files(run)]


def judgment_files(run: str | Path) -> list[Path]:
    """Return the files of judgments of a run directory, or the one file that is named.

    Raises:
        StoreError: there is no run, or nothing in it.
    """
    path = Path(run)
    if path.is_file():
        return [path]
    status(path)  # says which run may have been meant
    found = annotation_files(RunDir(path))
    if not found:
        raise StoreError(
            f"{path}: nobody has judged its answers; begin with: macpo annotate {path}"
        )
    return found


def results_of(path: Path) -> Results:
    """Return what one file of judgments comes to.

    Raises:
        StoreError: it cannot be read.
    """
    file = JudgmentFile(path)
    try:
        return summarise(file)
    finally:
        file.close()


def summarise(file: JudgmentFile) -> Results:
    """Return what an open file of judgments comes to."""
    judgments = file.judgments()
    verdicts = [j.verdict for j in judgments]
    decided = [j for j in judgments if j.verdict != "tie"]
    rate, half_width = win_rate(judgments)
    without_ties, half_without_ties = win_rate(decided)
    people: dict[str, list[Judgment]] = defaultdict(list)
    for judgment in judgments:
        people[judgment.annotator].append(judgment)
    return Results(
        path=file.path,
        one=file.one,
        other=file.other,
        pairs=len(file.pairs),
        judged=len({j.pair for j in judgments}),
        judgments=len(judgments),
        wins=verdicts.count("one"),
        ties=verdicts.count("tie"),
        losses=verdicts.count("other"),
        win_rate=rate,
        half_width=half_width,
        win_rate_without_ties=without_ties,
        half_width_without_ties=half_without_ties,
        annotators=tuple(_annotator(name, own) for name, own in people.items()),
        agreement=_agreement(judgments, list(people)) if len(people) > 1 else None,
    )


def win_rate(judgments: Sequence[Judgment]) -> tuple[float | None, float | None]:
    """Return the first side's win rate, ties half, and the half-width of its 95 % interval.

    Returns:
        No rate without a judgment; no half-width with one prompt, or where all judgments are the
        same: there is no spread to tell it from.
    """
    if not judgments:
        return None, None
    worth = [WORTH[j.verdict] for j in judgments]
    prompts = [j.prompt_id for j in judgments]
    estimate = clustered_mean(worth, prompts)
    if estimate.error is None or len(set(worth)) == 1:
        return estimate.mean, None
    return estimate.mean, student_t_quantile(len(set(prompts)) - 1) * estimate.error


def _annotator(name: str, judgments: Sequence[Judgment]) -> Annotator:
    decided = [j for j in judgments if j.verdict != "tie"]
    seconds = [j.seconds for j in judgments if j.seconds is not None]
    return Annotator(
        name=name,
        judged=len(judgments),
        win_rate=fmean(WORTH[j.verdict] for j in judgments),
        ties=len(judgments) - len(decided),
        left_rate=fmean(j.verdict == j.left for j in decided) if decided else None,
        median_seconds=median(seconds) if seconds else None,
    )


def _agreement(judgments: Sequence[Judgment], people: Sequence[str]) -> Agreement:
    labels: dict[str, dict[str, str]] = defaultdict(dict)
    for judgment in judgments:
        labels[judgment.pair][judgment.annotator] = judgment.verdict
    items = [tuple(said.values()) for said in labels.values()]
    by_all = [labels for labels in items if len(labels) == len(people)]
    twos = [a == b for said in items for a, b in combinations(said, 2)]
    return Agreement(
        shared=sum(len(said) > 1 for said in items),
        agreed=fmean(twos) if twos else None,
        alpha=krippendorff_alpha(items),
        cohen={
            f"{a} and {b}": cohen_kappa(
                [(said[a], said[b]) for said in labels.values() if a in said and b in said]
            )
            for a, b in combinations(people, 2)
        },
        fleiss=fleiss_kappa(by_all),
        judged_by_all=len(by_all),
    )
