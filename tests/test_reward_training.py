"""Training a reward model: the loss, a whole training, resume, and what is refused."""

from __future__ import annotations

import json
import math
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import AutoModelForSequenceClassification

import macpo
from macpo.data import load_preferences
from macpo.errors import ConfigError, DataError, ModelError, StoreError
from macpo.models.reward import RECORD, load_reward_model
from macpo.models.sources import resolve
from macpo.records import SPLITS, read_split_prompts, splits_in
from macpo.reward import load_reward_config, train_reward
from macpo.reward.loop import RewardTrainer, bradley_terry
from macpo.run_directory import RunDir
from tests.runs import FinishedRun, run_cli
from tests.tiny import tiny_folder


def write_config(folder: Path, **overrides: Any) -> Path:
    """Write a tiny model, 60 pairs whose better answer is the polite one, and a config."""
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "base").exists():
        tiny_folder(folder / "base", "qwen3")
    rows = []
    for i in range(60):
        prompt = [{"role": "user", "content": f"Question {i}?"}]
        good, bad = f"Please, here is answer {i}.", f"No idea {i}. Go away."
        sides = {"chosen": good, "rejected": bad}
        answers = {k: [{"role": "assistant", "content": v}] for k, v in sides.items()}
        rows.append({"prompt": prompt, **answers})
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config: dict[str, Any] = {
        "name": "polite",
        "dtype": "float32",
        "device": "cpu",
        "data": {"source": "pairs.jsonl"},
        "held_out": 20,
        "model": "base",
        "optimizer": {"epochs": 3, "learning_rate": 0.01, "batch_size": 8},
        "checkpoint_steps": 4,
    }
    path = folder / "reward.yaml"
    path.write_text(yaml.safe_dump({**config, **overrides}, sort_keys=False))
    return path


def weights(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()


def test_loss_is_that_of_bradley_and_terry() -> None:
    """r_c = 2, r_r = 0.5: -log sigmoid(1.5) = log(1 + e^-1.5); centre 0.1: + 0.1 * 2.5^2."""
    loss = bradley_terry(torch.tensor([2.0]), torch.tensor([0.5]), 0.1)
    assert loss.tolist() == [pytest.approx(math.log1p(math.exp(-1.5)) + 0.625)]


@pytest.mark.parametrize("kind", ["lora", "full"])
def test_a_trained_model_prefers_what_was_preferred(tmp_path: Path, kind: str) -> None:
    tuning = {"kind": kind} if kind == "full" else {"targets": "all-linear", "dropout": 0.1}
    config = write_config(tmp_path, tuning=tuning)

    result = run_cli(["reward", "train", config, "--out", tmp_path / "rm"])

    assert result.code == 0, result.err
    record = json.loads((tmp_path / "rm" / RECORD).read_text())
    assert record["held_out"]["pairs"] == 20
    assert record["held_out"]["accuracy"] >= 0.9
    assert len(record["prompts"]) == 40
    assert "accuracy on 20 held-out pairs: " in result.out
    card = (tmp_path / "rm" / "README.md").read_text()
    assert f"**{100 * record['held_out']['accuracy']:.1f}" in card
    assert 'base_model: "base"' in card
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "rm")
    assert model.num_labels == 1
    assert not list(tmp_path.glob(".rm*"))


def test_a_training_that_was_killed_ends_in_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = load_reward_config(write_config(tmp_path))
    train_reward(config, tmp_path / "whole")
    taken: list[int] = []
    step = RewardTrainer._step

    def dies_in_step_7(self: RewardTrainer, number: int) -> dict[str, Any]:
        taken.append(number)
        if number == 6 and len(taken) < 8:
            raise KeyboardInterrupt
        return step(self, number)

    monkeypatch.setattr(RewardTrainer, "_step", dies_in_step_7)
    with pytest.raises(KeyboardInterrupt):
        train_reward(config, tmp_path / "again")
    assert not (tmp_path / "again").exists()
    train_reward(config, tmp_path / "again")

    assert taken[7] == 4  # from the checkpoint after four steps
    assert weights(tmp_path / "again") == weights(tmp_path / "whole")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_stops_the_training_and_the_same_command_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    """SIGINT too where a shell has told its background jobs to ignore it."""
    path = write_config(tmp_path)
    train_reward(load_reward_config(path), tmp_path / "whole")
    command = ["reward", "train", path, "--out", tmp_path / "again"]
    taken: list[int] = []
    step = RewardTrainer._step

    def asked_in_step_6(self: RewardTrainer, at: int) -> dict[str, Any]:
        taken.append(at)
        if len(taken) == 6:
            os.kill(os.getpid(), number)
        return step(self, at)

    monkeypatch.setattr(RewardTrainer, "_step", asked_in_step_6)
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        stopped = run_cli(command)
        assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)
    assert stopped.code == 130
    assert stopped.err.splitlines()[-1] == "macpo: stopped; run the same command to go on"
    assert not (tmp_path / "again").exists()
    resumed = run_cli(command)

    assert resumed.code == 0, resumed.err
    assert taken == list(range(15))  # none twice
    assert weights(tmp_path / "again") == weights(tmp_path / "whole")


def test_want_of_memory_in_a_step_names_keys_that_the_config_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def grow(self: Any, *args: Any, **options: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has")

    monkeypatch.setattr(torch.optim.AdamW, "step", grow)
    config = load_reward_config(write_config(tmp_path))

    with pytest.raises(ModelError, match=r"out of memory \(tried to allocate 2.00 GiB\)") as caught:
        train_reward(config, tmp_path / "out")

    message = str(caught.value)
    assert "\n" not in message
    assert {"batch_tokens", "max_tokens", "dtype"} <= set(type(config).model_fields)
    assert "lower batch_tokens or max_tokens, or set dtype: bfloat16" in message


def test_a_finished_model_is_found_and_another_is_not_overwritten(tmp_path: Path) -> None:
    path = write_config(tmp_path)
    first = train_reward(load_reward_config(path), tmp_path / "rm")
    before = weights(tmp_path / "rm")

    assert train_reward(load_reward_config(path), tmp_path / "rm") == first
    with pytest.raises(StoreError, match="exists already and is not of this training"):
        train_reward(load_reward_config(path, ["seed=1"]), tmp_path / "rm")
    assert weights(tmp_path / "rm") == before


def test_prompts_of_a_run_are_left_out_and_a_run_knows_its_own(
    finished: FinishedRun, copied: FinishedRun, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source = {"source": str(finished.config.parent / "pairs.jsonl")}
    quick = {"optimizer": {"epochs": 1, "learning_rate": 0.01, "batch_size": 8}}
    every = write_config(tmp_path / "every", data=source, held_out=4, **quick)
    train_reward(load_reward_config(every), tmp_path / "rm")

    macpo.evaluate(copied.folder, [{"name": "reward", "model": str(tmp_path / "rm")}])

    assert "was trained on prompts of this run" in caplog.text
    data = RunDir(copied.folder).stage("data")
    taken = {p.id for split in splits_in(data) for p in read_split_prompts(data, split)}
    assert len(taken) == 24
    assert set(splits_in(data)) <= set(SPLITS)
    without = write_config(
        tmp_path / "without", data=source, held_out=4, leave_out=[str(copied.folder)]
    )
    with pytest.raises(DataError, match="0 prompts, of which held_out keeps 4: nothing is left"):
        train_reward(load_reward_config(without), tmp_path / "none")


def test_the_model_is_scored_as_it_was_trained(tmp_path: Path) -> None:
    config = load_reward_config(write_config(tmp_path))
    trained = train_reward(config, tmp_path / "rm")
    found = config.model.model_copy(update={"source": str(tmp_path / "rm")})
    reward = load_reward_model(resolve(found), torch.float32, "cpu")
    prompt = load_preferences(config.data).examples[0].prompt
    polite, rude = (reward.encode(prompt, text, 512).ids for text in ("Please, here.", "Go away."))
    one, other = reward.score([polite, rude], 512)
    assert one > other
    assert trained.accuracy.count == 20


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ({"modle": "x"}, "modle: unknown key; did you mean 'model'?"),
        ({"optimizer": {"epoch": 2}}, "optimizer.epoch: unknown key; did you mean 'epochs'?"),
        ({"data": {"source": "x", "noise": 0.1}}, "data.noise: has no effect on a reward model"),
        ({"held_out": 2.5}, "held_out: 2.5 is no fraction"),
        ({"name": "A B"}, "cannot name a folder"),
    ],
)
def test_a_faulty_config_is_told_by_its_keys(
    tmp_path: Path, overrides: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        load_reward_config(write_config(tmp_path, **overrides))
    assert said in str(caught.value)


def test_nothing_is_trained_where_nothing_would_be_left(tmp_path: Path) -> None:
    config = load_reward_config(write_config(tmp_path, held_out=60))
    with pytest.raises(DataError, match="60 prompts, of which held_out keeps 60: nothing is left"):
        train_reward(config, tmp_path / "rm")
