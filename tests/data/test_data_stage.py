"""The data stage: noise falls on the teacher half alone, and ground truth is paired as it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from macpo.config import DataConfig
from macpo.data.stages import DatasetPairs, SplitData, content_digest
from macpo.records import PreferenceExample, read_examples, read_pairs
from tests.runs import write_pairs
from tests.workbench import Workbench, make_agent

SIZES = {"teacher": 8, "student": 8, "test": 8}


@pytest.fixture
def bench(tmp_path: Path) -> Workbench:
    write_pairs(tmp_path / "pairs.jsonl")
    return Workbench(tmp_path)


def split(bench: Workbench, folder: Path, *, seed: int = 0, **data: Any) -> SplitData:
    """Run the data stage on 24 pairs."""
    source = str(folder / "pairs.jsonl")
    config = DataConfig.model_validate({"source": source, "splits": SIZES, **data})
    stage = SplitData("data", config, content_digest(config, fetch=True), seed, (make_agent(),))
    bench.run(stage)
    return stage


def examples(bench: Workbench, stage: SplitData, name: Any) -> list[PreferenceExample]:
    return list(read_examples(bench.artifacts[stage.key].path, name))


def test_noise_swaps_labels_of_the_teacher_half_and_of_no_other(
    bench: Workbench, tmp_path: Path
) -> None:
    clean, noisy = split(bench, tmp_path), split(bench, tmp_path, noise=0.5)
    before, after = (examples(bench, stage, "teacher") for stage in (clean, noisy))
    swapped = [PreferenceExample(e.prompt, e.rejected, e.chosen) for e in before]
    assert len(before) == 8
    assert all(new in (old, other) for new, old, other in zip(after, before, swapped, strict=True))
    assert sum(new != old for new, old in zip(after, before, strict=True)) == 4
    for name in ("student", "test"):
        assert examples(bench, noisy, name) == examples(bench, clean, name)


def test_which_labels_are_wrong_follows_the_seed(bench: Workbench, tmp_path: Path) -> None:
    """Of 8 prompts; two seeds also divide the prompts in another way."""

    def wrong(seed: int) -> set[int]:
        clean, noisy = (split(bench, tmp_path, seed=seed, noise=share) for share in (0.0, 0.5))
        both = zip(
            examples(bench, clean, "teacher"), examples(bench, noisy, "teacher"), strict=True
        )
        return {i for i, (old, new) in enumerate(both) if old != new}

    assert len({frozenset(wrong(seed)) for seed in range(4)}) > 1


def test_ground_truth_is_paired_as_labelled(bench: Workbench, tmp_path: Path) -> None:
    data = split(bench, tmp_path)
    pairs = read_pairs(bench.run(DatasetPairs("pairs", data, "student")).path)
    assert [(p.prompt, p.chosen.text, p.rejected.text) for p in pairs] == [
        (e.prompt, e.chosen, e.rejected) for e in examples(bench, data, "student")
    ]


def test_noise_is_part_of_the_key(bench: Workbench, tmp_path: Path) -> None:
    shares = (0.0, 0.25, 0.5)
    assert len({split(bench, tmp_path, noise=share).key for share in shares}) == 3
