"""The oracle as a stage: what a policy's answers to the test prompts are worth."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from macpo.evaluation.measures import Item, write_measures
from macpo.records import read_answers, read_pairs, write_jsonl
from macpo.stage import Stage, StageContext
from macpo.testbed.dataset import WORLD_VERSION
from macpo.testbed.metrics import OF_CHOSEN, OF_REJECTED, ORACLE
from macpo.testbed.oracle import Verdict, judge
from macpo.testbed.summary import summarise


@dataclass(frozen=True, eq=False)
class OracleScores(Stage):
    """The oracle's verdicts on the answers of an answering stage, one by one and summed up."""

    kind: ClassVar[str] = "oracle"
    version: ClassVar[int] = WORLD_VERSION

    answers: Stage

    def run(self, context: StageContext) -> Mapping[str, Any]:
        """Write verdicts.jsonl, for readers, summary.json and measurements."""
        answers = read_answers(context.path(self.answers))
        verdicts = [judge(prompt, response.text) for prompt, response in answers]
        rows = (
            {
                "prompt": prompt.messages[-1].content,
                "answer": response.text,
                "score": verdict.score,
                "helpfulness": verdict.helpfulness,
                "harmlessness": verdict.harmlessness,
                "reason": verdict.reason,
            }
            for (prompt, response), verdict in zip(answers, verdicts, strict=True)
        )
        write_jsonl(context.output / "verdicts.jsonl", rows)
        summary = summarise(verdicts).to_json()
        text = json.dumps(summary, indent=1, sort_keys=True)
        (context.output / "summary.json").write_text(text + "\n", encoding="utf-8")
        metrics = {
            f"{ORACLE}{name}": value
            for name, value in summary.items()
            if name not in ("answers", "families") and value is not None
        }
        items = [
            Item(prompt.id, _of_answer(verdict))
            for (prompt, _), verdict in zip(answers, verdicts, strict=True)
        ]
        write_measures(context.output, metrics, items, answers=len(answers))
        return metrics


@dataclass(frozen=True, eq=False)
class PairsOracle(Stage):
    """What the pairs that a policy learned from are worth: quality and diversity of positives."""

    kind: ClassVar[str] = "oracle-pairs"
    version: ClassVar[int] = WORLD_VERSION

    pairs: Stage

    def run(self, context: StageContext) -> Mapping[str, Any]:
        """Write measurements: the summary of `chosen` and the score of `rejected`."""
        pairs = read_pairs(context.path(self.pairs))
        chosen = summarise([judge(p.prompt, p.chosen.text) for p in pairs]).to_json()
        rejected = summarise([judge(p.prompt, p.rejected.text) for p in pairs]).to_json()
        metrics = {f"chosen_{name}": chosen[name] for name in OF_CHOSEN}
        metrics |= {f"rejected_{name}": rejected[name] for name in OF_REJECTED}
        metrics = {name: value for name, value in metrics.items() if value is not None}
        write_measures(context.output, metrics, learned_pairs=len(pairs))
        return metrics


def _of_answer(verdict: Verdict) -> dict[str, float]:
    """Return the metrics of one answer of which a summary has the means."""
    values = {
        "score": verdict.score,
        "helpfulness": verdict.helpfulness if verdict.safe else None,
        "harmlessness": None if verdict.safe else verdict.harmlessness,
        "virtues": verdict.virtues,
        "rare_virtues": verdict.rare_virtues,
        "common_vices": verdict.common_vices,
        "exact_content": float(verdict.content == "right") if verdict.safe else None,
        "completeness": verdict.substance if verdict.safe else None,
    }
    return {f"{ORACLE}{name}": value for name, value in values.items() if value is not None}
