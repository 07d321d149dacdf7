"""Preference data: distinct prompts, a stream that only a new world version may change."""

from __future__ import annotations

from pathlib import Path

import pytest

from macpo.config import DataConfig, SplitsConfig
from macpo.data import load_preferences
from macpo.data.splits import split_examples
from macpo.data.turns import prompt_key
from macpo.errors import ConfigError
from macpo.records import write_jsonl
from macpo.seeds import digest
from macpo.testbed import dataset
from macpo.testbed.dataset import (
    EARLIER_TURNS,
    MOST_EXAMPLES,
    WORLD_VERSION,
    dataset_digest,
    preference_examples,
)
from macpo.testbed.oracle import judge


def test_world_version_stands_for_these_very_rows() -> None:
    """If this fails, the world has changed: raise WORLD_VERSION and pin the new digest."""
    rows = [example.to_json() for example in preference_examples(200, seed=7)]
    scores = [judge(e.prompt, e.chosen).score for e in preference_examples(200, seed=7)]
    assert (WORLD_VERSION, digest([rows, scores])[:16]) == (1, "0390365f9199d9b1")


def test_prompts_are_distinct_and_enough_for_every_split() -> None:
    examples = preference_examples(3000, seed=0)
    assert len({prompt_key(example.prompt) for example in examples}) == 3000
    splits = split_examples(examples, SplitsConfig(teacher=500, student=1000, test=500), seed=1)
    assert (len(splits.teacher), len(splits.student), len(splits.test)) == (500, 1000, 500)


def test_answers_of_a_row_differ_and_are_not_empty() -> None:
    for example in preference_examples(1000, seed=3):
        assert example.chosen.strip() == example.chosen != ""
        assert example.rejected.strip() == example.rejected != ""
        assert example.chosen != example.rejected


def test_longer_data_set_starts_with_the_shorter_one_and_other_seeds_differ() -> None:
    short = preference_examples(50, seed=0)
    assert preference_examples(120, seed=0)[:50] == short
    assert not {e.prompt for e in preference_examples(50, seed=1)} >= {e.prompt for e in short}


def test_some_prompts_follow_an_earlier_turn_that_is_answered_rightly() -> None:
    prompts = [example.prompt for example in preference_examples(2000, seed=0)]
    several = [prompt for prompt in prompts if len(prompt.messages) == 3]
    assert {len(prompt.messages) for prompt in prompts} == {1, 3}
    # Standard deviation .008; distinct prompts push it up a little. 5 of them allow .04.
    assert len(several) / 2000 == pytest.approx(EARLIER_TURNS, abs=0.04)
    for prompt in several:
        assert [message.role for message in prompt.messages] == ["user", "assistant", "user"]


def test_rows_pass_the_data_loader_untouched(tmp_path: Path) -> None:
    examples = preference_examples(100, seed=0)
    path = tmp_path / "world.jsonl"
    write_jsonl(path, (example.to_json() for example in examples))
    loaded = load_preferences(DataConfig(source=str(path)))
    assert list(loaded.examples) == examples
    assert (loaded.report.bad_rows, loaded.report.prompts) == (0, 100)


def test_digest_changes_with_count_seed_and_world(monkeypatch: pytest.MonkeyPatch) -> None:
    before = {dataset_digest(100, 0), dataset_digest(101, 0), dataset_digest(100, 1)}
    assert len(before) == 3
    assert dataset_digest(100, 0) in before
    monkeypatch.setattr(dataset, "WORLD_VERSION", WORLD_VERSION + 1)
    assert dataset_digest(100, 0) not in before


@pytest.mark.parametrize("count", [0, -1, MOST_EXAMPLES + 1])
def test_impossible_number_of_prompts_is_refused(count: int) -> None:
    with pytest.raises(ConfigError) as caught:
        preference_examples(count, seed=0)
    assert str(caught.value) == (
        f"the testbed was asked for {count:,} prompts; ask for 1 to {MOST_EXAMPLES:,}"
    )
