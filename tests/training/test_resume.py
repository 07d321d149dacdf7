"""A training stage that was killed and run again leaves the bytes of one that was not."""

from __future__ import annotations

import functools
from pathlib import Path

import pytest

from macpo.agents import Policy
from macpo.config import DPOConfig, EngineConfig, NegativeSFTConfig, SFTConfig, TuningConfig
from macpo.policies import WEIGHTS_FILE
from macpo.records import CompletionScore
from macpo.store import Artifact, Checkpoints
from macpo.training.stages import SFTOnAnswers, TrainDPO
from tests.workbench import Workbench, make_agent, make_pairs

BATCH, EPOCHS, CHECKPOINT = 4, 3, 2

TUNINGS = {
    "lora": TuningConfig(rank=2),
    "dropout": TuningConfig(rank=2, dropout=0.1),
    "full": TuningConfig(kind="full"),
}


class Killed(BaseException):
    """Stands for what gives a process no time to save anything."""


class Killer:
    """A progress callback that raises when `step` is done, and records the steps it saw."""

    def __init__(self, step: int | None = None, error: type[BaseException] = Killed) -> None:
        self.step = step
        self.error = error
        self.seen: list[int] = []

    def __call__(self, done: int, total: int, **fields: float) -> None:
        self.seen.append(done)
        if done == self.step:
            raise self.error


def sft_stage(bench: Workbench, tuning: str, examples: int) -> SFTOnAnswers:
    answers = [(pair.prompt, pair.chosen) for pair in make_pairs(examples)]
    config = SFTConfig(epochs=EPOCHS, batch_size=BATCH, learning_rate=1e-2, warmup_ratio=0.3)
    start = Policy(make_agent(tuning=TUNINGS[tuning]), "positive")
    return SFTOnAnswers("sft", start, bench.write_answers("answers", answers), config, seed=5)


def train(
    folder: Path, tuning: str, examples: int, killer: Killer, checkpoint: int = CHECKPOINT
) -> Artifact:
    """Do what a new process would do: a new pool of policies, the store as it is."""
    bench = Workbench(folder)
    engine = EngineConfig(checkpoint_steps=checkpoint)
    return bench.run(sft_stage(bench, tuning, examples), engine=engine, progress=killer)


def saved_step(folder: Path) -> int:
    """Return the step of the newest checkpoint of the stage under way, 0 if there is none."""
    [workspace] = folder.glob("store/.partial/sft-*")
    found = Checkpoints(workspace / "checkpoints").latest()
    return found[0] if found else 0


@functools.cache
def unbroken(root: Path, tuning: str, examples: int) -> Artifact:
    return train(root / f"{tuning}-{examples}", tuning, examples, Killer())


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("unbroken")


def assert_equal_artifacts(found: Artifact, expected: Artifact) -> None:
    assert found.digest == expected.digest  # the checksums of all files
    assert found.meta == expected.meta
    names = sorted(path.name for path in expected.path.iterdir())
    assert names == ["log.jsonl", "manifest.json", WEIGHTS_FILE]
    for name in ("log.jsonl", WEIGHTS_FILE):
        assert (found.path / name).read_bytes() == (expected.path / name).read_bytes()


# 8 examples make 2 steps per epoch and 6 in all; 7 too, with a last batch of 3; 9 make 3 and 9.
@pytest.mark.parametrize("tuning", TUNINGS)
@pytest.mark.parametrize(
    ("examples", "killed_at"),
    [
        (8, 1),  # before there is a checkpoint
        (8, 2),  # at the end of an epoch, before its state is saved
        (8, 3),  # one step into the second epoch, after a checkpoint
        (8, 5),  # in the last epoch
        (8, 6),  # all steps are done, nothing is written yet
        (7, 3),
        (7, 5),
        (9, 2),
        (9, 7),  # the checkpoint at 6 is an end of an epoch, that at 4 was not
    ],
)
def test_killed_and_resumed_equals_unbroken(
    tmp_path: Path, root: Path, tuning: str, examples: int, killed_at: int
) -> None:
    with pytest.raises(Killed):
        train(tmp_path, tuning, examples, Killer(killed_at))
    saved = (killed_at - 1) // CHECKPOINT * CHECKPOINT
    assert saved_step(tmp_path) == saved
    again = Killer()
    resumed = train(tmp_path, tuning, examples, again)
    assert again.seen[0] == saved + 1
    assert_equal_artifacts(resumed, unbroken(root, tuning, examples))


def test_killed_again_and_again_equals_unbroken(tmp_path: Path, root: Path) -> None:
    for step in (3, 4, 5, 5, 6):
        with pytest.raises(Killed):
            train(tmp_path, "dropout", 8, Killer(step), checkpoint=1)
    resumed = train(tmp_path, "dropout", 8, Killer())
    assert_equal_artifacts(resumed, unbroken(root, "dropout", 8))


@pytest.mark.parametrize("step", [1, 4, 6])
def test_interrupted_by_the_user_loses_no_step(tmp_path: Path, root: Path, step: int) -> None:
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, "lora", 8, Killer(step, KeyboardInterrupt), checkpoint=1000)
    again = Killer()
    resumed = train(tmp_path, "lora", 8, again)
    assert again.seen == list(range(step + 1, 7))
    assert_equal_artifacts(resumed, unbroken(root, "lora", 8))


def test_resumed_with_another_checkpoint_interval_equals_unbroken(
    tmp_path: Path, root: Path
) -> None:
    with pytest.raises(Killed):
        train(tmp_path, "lora", 8, Killer(4), checkpoint=3)
    resumed = train(tmp_path, "lora", 8, Killer(), checkpoint=1)
    assert_equal_artifacts(resumed, unbroken(root, "lora", 8))


def test_unbroken_run_is_the_same_in_another_process_state(tmp_path: Path, root: Path) -> None:
    """Another folder, and a pool that has trained something else before."""
    bench = Workbench(tmp_path)
    answers = bench.write_answers("other", [(p.prompt, p.rejected) for p in make_pairs(3)])
    agent = make_agent(tuning=TUNINGS["dropout"])
    config = NegativeSFTConfig(learning_rate=0.1)
    bench.run(SFTOnAnswers("other", Policy(agent, "negative"), answers, config, seed=1))
    found = bench.run(sft_stage(bench, "dropout", 8), engine=EngineConfig(checkpoint_steps=2))
    assert_equal_artifacts(found, unbroken(root, "dropout", 8))


def test_runs_with_other_seeds_differ(tmp_path: Path, root: Path) -> None:
    """The comparisons above can fail: another seed gives other bytes."""
    bench = Workbench(tmp_path)
    stage = sft_stage(bench, "lora", 8)
    other = SFTOnAnswers(stage.name, stage.start, stage.answers, stage.config, seed=6)
    assert bench.run(other).digest != unbroken(root, "lora", 8).digest


def train_dpo(folder: Path, tuning: str, killer: Killer) -> Artifact:
    bench = Workbench(folder)
    pairs = make_pairs(7)
    scores = [
        (response, CompletionScore(-30.0 - i, 9))
        for i, pair in enumerate(pairs)
        for response in (pair.chosen, pair.rejected)
    ]
    stage = TrainDPO(
        "dpo",
        Policy(make_agent(tuning=TUNINGS[tuning]), "positive"),
        bench.write_pairs("pairs", pairs),
        bench.write_scores("scores", scores),
        DPOConfig(batch_size=2, learning_rate=1e-2),
        seed=2,
    )
    return bench.run(stage, engine=EngineConfig(checkpoint_steps=CHECKPOINT), progress=killer)


@pytest.mark.parametrize("tuning", ["dropout", "full"])
def test_dpo_resumes_too(tmp_path: Path, tuning: str) -> None:
    expected = train_dpo(tmp_path / "whole", tuning, Killer())
    with pytest.raises(Killed):
        train_dpo(tmp_path / "killed", tuning, Killer(3))
    again = Killer()
    assert_equal_artifacts(train_dpo(tmp_path / "killed", tuning, again), expected)
    assert again.seen == [3, 4]
