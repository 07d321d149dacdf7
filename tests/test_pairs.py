"""Pairs of several rounds, and ground truth that is replayed among them."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from macpo.config import RunConfig
from macpo.data.stages import content_digest
from macpo.pairs import JoinedPairs, ReplayedPairs
from macpo.records import read_pairs
from macpo.store import Artifact
from macpo.work import Answers, Known, Lengths, SplitSizes
from tests.workbench import Workbench, Written, make_agent, make_pairs

OWN, LABELS = make_pairs(6), make_pairs(26)[6:]


@pytest.fixture
def bench(tmp_path: Path) -> Workbench:
    return Workbench(tmp_path)


def test_pairs_of_all_rounds_stand_one_behind_the_other(bench: Workbench) -> None:
    parts = (bench.write_pairs("first", OWN[:2]), bench.write_pairs("second", OWN[1:5]))
    made = bench.run(JoinedPairs("all", parts))
    assert read_pairs(made.path) == [*OWN[:2], *OWN[1:5]]
    assert made.meta == {"pairs": 6, "prompts_without_pair": 0}


def replayed(bench: Workbench, share: float, seed: int = 0) -> Artifact:
    own, labels = bench.write_pairs("own", OWN), bench.write_pairs("labels", LABELS)
    return bench.run(ReplayedPairs("replayed", own, labels, share, seed))


@pytest.mark.parametrize(("share", "drawn"), [(0.25, 2), (0.5, 6), (0.75, 18), (0.9, 20)])
def test_ground_truth_is_that_share_of_all_while_there_is_enough(
    bench: Workbench, share: float, drawn: int
) -> None:
    """6 own pairs and n of labels: n / (6 + n) = share; of 20 labels no more than 20."""
    made = replayed(bench, share)
    pairs = read_pairs(made.path)
    assert pairs[:6] == OWN
    assert made.meta == {"pairs": 6 + drawn, "replayed": drawn, "prompts_without_pair": 0}
    assert len(pairs) == 6 + drawn
    assert not Counter(p.prompt.id for p in pairs[6:]) - Counter(p.prompt.id for p in LABELS)


def test_every_seed_draws_other_labels(bench: Workbench) -> None:
    drawn = [read_pairs(replayed(bench, 0.5, seed).path)[6:] for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]


def test_cost_is_reckoned_over_all_that_is_learned_from(bench: Workbench) -> None:
    """3 pairs of 10 and 4 tokens and 1 of 20 and 8; half as many labels, of 7 and 5."""
    agent = make_agent()

    def stage(label: str, count: int, *tokens: int) -> Written:
        class Leaving(Written):
            def leaves(self, known: Known, reader: object) -> tuple[Answers, ...]:
                return tuple(Answers(count, t, at_most=False) for t in tokens)

        return Leaving(label, label)

    parts = (stage("first", 3, 10, 4), stage("second", 1, 20, 8))
    lengths = {agent.name: Lengths(1, 1, 1, measured=True)}
    known = Known(SplitSizes({}, {}, exact=True), lengths, {})
    all_pairs = JoinedPairs("all", parts)
    assert all_pairs.leaves(known, agent) == (Answers(4, 12.5, False), Answers(4, 5.0, False))
    mixed = ReplayedPairs("mixed", all_pairs, stage("labels", 100, 7, 5), 1 / 3, 0)
    assert mixed.leaves(known, agent) == (
        Answers(6, (4 * 12.5 + 2 * 7) / 6, False),
        Answers(6, (4 * 5.0 + 2 * 5) / 6, False),
    )


def test_replay_does_not_change_how_data_are_read(tmp_path: Path) -> None:
    source = tmp_path / "data.jsonl"
    source.write_text('{"chosen": "a", "rejected": "b", "prompt": "c"}\n', encoding="utf-8")

    def digest(replay: float) -> str:
        section = {"source": str(source), "replay": replay}
        teachers = [{"name": "a", "model": "a"}]
        run = {"name": "r", "data": section, "student": {"model": "s"}, "teachers": teachers}
        return content_digest(RunConfig.model_validate(run).data, fetch=True)

    assert digest(0.0) == digest(0.5)
