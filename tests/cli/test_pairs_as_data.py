"""The pairs that a run leaves are a preference data set: for `datasets`, for TRL and for macpo."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from macpo.config import DataConfig
from macpo.data import load_preferences
from macpo.models.chat import Chat
from macpo.records import (
    PAIRS_FILE,
    Message,
    Origin,
    Pair,
    PreferenceExample,
    Prompt,
    Response,
    dataset_response,
    read_pairs,
    write_pairs,
)
from tests.likelihood.plain import with_adapter
from tests.runs import FinishedRun, run_cli
from tests.tiny import tiny_model, tiny_tokenizer

LEARNERS = ("student", "weak-a", "weak-b")


def last_round(finished: FinishedRun, learner: str) -> Path:
    return finished.folder / "stages" / "round-2" / learner / "pairs"


def load_json(path: Path, cache: Path, **options: Any) -> Any:
    from datasets import load_dataset

    return load_dataset(
        "json", data_files=str(path), split="train", cache_dir=str(cache), **options
    )


@pytest.mark.parametrize("learner", LEARNERS)
def test_datasets_reads_a_runs_pairs_without_loss(
    finished: FinishedRun, tmp_path: Path, learner: str
) -> None:
    folder = last_round(finished, learner)
    loaded = load_json(folder / PAIRS_FILE, tmp_path)
    assert [Pair.from_json(row) for row in loaded] == read_pairs(folder)


def test_pairs_of_any_origin_share_one_type(tmp_path: Path) -> None:
    """`datasets` takes each column's type from the first block and fails where a later one differs;
    here a block is a row, and rows differ in all that may be empty."""
    prompt = Prompt((Message("user", "Name a prime."),))
    sampled = Response(
        prompt.id,
        "7",
        Origin("student/positive", "6f0c", "macpo", {"temperature": 0.5, "top_k": 50}, 2**63 - 1),
        token_ids=(39, 2),
        tokenizer="b81d",
    )
    cut = Response(prompt.id, "8 is", Origin("a/negative", sampling={"top_p": 1}), finished=False)
    given = dataset_response(prompt, "9")
    pairs = [Pair(prompt, given, cut), Pair(prompt, sampled, given), Pair(prompt, cut, sampled)]
    write_pairs(tmp_path, pairs)
    loaded = load_json(tmp_path / PAIRS_FILE, tmp_path / "cache", chunksize=1)
    assert [Pair.from_json(row) for row in loaded] == pairs


def test_trl_trains_on_a_runs_pairs(finished: FinishedRun, tmp_path: Path) -> None:
    """TRL tokenizes what we do: its ids of an answer are ours and a line break of the template."""
    from trl import DPOConfig, DPOTrainer
    from trl.data_utils import is_conversational

    folder = last_round(finished, "student")
    loaded = load_json(folder / PAIRS_FILE, tmp_path / "cache")
    assert all(is_conversational(row) for row in loaded)
    trainer = DPOTrainer(
        model=with_adapter(tiny_model("llama").requires_grad_(False)),
        args=DPOConfig(
            output_dir=str(tmp_path / "trl"),
            max_steps=1,
            per_device_train_batch_size=2,
            report_to=[],
            use_cpu=True,
            activation_checkpointing=False,
            bf16=False,
            disable_tqdm=True,
        ),
        train_dataset=loaded,
        processing_class=tiny_tokenizer(),
    )
    chat = Chat(tiny_tokenizer())
    [line_break] = chat.tokenizer.encode("\n")
    for row, pair in zip(trainer.train_dataset, read_pairs(folder), strict=True):
        assert row["prompt_ids"] == list(chat.encode_prompt(pair.prompt, 512).ids)
        for side, response in (("chosen", pair.chosen), ("rejected", pair.rejected)):
            text = dataset_response(pair.prompt, response.text)
            assert row[f"{side}_ids"] == [*chat.encode_completion(text, 512), line_break]
    assert trainer.train().global_step == 1


@pytest.mark.parametrize("learner", LEARNERS)
def test_macpo_reads_a_runs_pairs_as_data(finished: FinishedRun, learner: str) -> None:
    folder = last_round(finished, learner)
    pairs = read_pairs(folder)
    loaded = load_preferences(DataConfig(source=str(folder / PAIRS_FILE)))
    assert loaded.report.format == "trl"
    assert loaded.examples == tuple(
        PreferenceExample(p.prompt, p.chosen.text.strip(), p.rejected.text.strip()) for p in pairs
    )
    checked = run_cli(["data", "check", folder / PAIRS_FILE])
    assert checked.code == 0
    assert f"{len(pairs)} rows: {len(pairs)} pairs" in checked.out
