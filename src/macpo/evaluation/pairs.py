"""Metrics on the pairs that a policy learned from: is there a contrast to be learned?"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from macpo.evaluation.evaluator import Evaluator, Subject, register_evaluator
from macpo.evaluation.measures import Item, item_means, write_measures
from macpo.pairs import chosen_in
from macpo.records import Pair, read_pairs
from macpo.stage import Stage, StageContext


@register_evaluator
class PairsEvaluator(Evaluator):
    """How like each other chosen and rejected answers are, and which are longer."""

    default: ClassVar[bool] = True

    name: Literal["pairs"] = "pairs"

    def lay_out(self, subject: Subject) -> Iterable[Stage]:
        """See `Evaluator.lay_out`; who learned from no pairs is not measured."""
        if subject.pairs is not None:
            chosen = chosen_in(subject.pairs)
            candidates = None if chosen is subject.pairs else chosen
            yield MeasurePairs(f"{subject.place}/pair-metrics", subject.pairs, candidates)


@dataclass(frozen=True, eq=False)
class MeasurePairs(Stage):
    """Measures the pairs that another stage made, and what a guard refused for them.

    `candidates` is the stage that chose among candidates, where `pairs` only put its pairs together
    with others.
    """

    kind: ClassVar[str] = "measure-pairs"
    added: ClassVar[frozenset[str]] = frozenset({"candidates"})

    pairs: Stage
    candidates: Stage | None = None

    def run(self, context: StageContext) -> Mapping[str, Any]:
        """Write measurements."""
        items = [measure_pair(pair) for pair in read_pairs(context.path(self.pairs))]
        metrics = item_means(items)
        chosen = context.artifacts[(self.candidates or self.pairs).key].meta
        if chosen.get("candidates"):
            metrics["refused_candidates"] = chosen["refused"] / chosen["candidates"]
        write_measures(context.output, metrics, items, learned_pairs=len(items))
        return metrics


def measure_pair(pair: Pair) -> Item:
    """Return a pair's likeness, and whether its chosen answer has more words (as many: one half).

    Likeness is the share of words that both have in common, order aside (Dice's coefficient, words
    counted as often as they stand): 0 without a common word, 1 for the same words.
    """
    chosen, rejected = (Counter(r.text.split()) for r in (pair.chosen, pair.rejected))
    words = chosen.total() + rejected.total()
    longer = 0.5 * (1 + (chosen.total() > rejected.total()) - (chosen.total() < rejected.total()))
    likeness = 2 * (chosen & rejected).total() / words if words else 1.0
    return Item(pair.prompt.id, {"pair_likeness": likeness, "longer_chosen": longer})
