"""From a reward model's config to a model folder, with what it was trained on and how good it is.

OUT/                        a sequence classifier of transformers: weights, config, tokenizer
OUT/README.md               its card: base, data, accuracy on held-out prompts
OUT/macpo_reward.json       the same for programs, with ids of all prompts that it was trained on
.OUT.training/              checkpoints, until it is done
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from macpo.adapters import choose_targets, quiet_peft
from macpo.config import AUTO
from macpo.data.loading import load_preferences, source_digest
from macpo.errors import DataError, StoreError
from macpo.evaluation.statistics import Estimate, clustered_mean
from macpo.execution.stopping import stop_on_signal
from macpo.machine import choose_device, fastest_dtype
from macpo.memory import translate_memory_errors
from macpo.models.loading import load_chat
from macpo.models.reward import RECORD, RewardModel, load_classifier, load_reward_model
from macpo.models.sources import ResolvedModel, resolve
from macpo.paths import user_path
from macpo.records import PreferenceExample, read_split_prompts, splits_in
from macpo.reward.config import RewardConfig
from macpo.reward.loop import EncodedPair, RewardTrainer
from macpo.run_directory import RunDir
from macpo.seeds import digest
from macpo.store import Checkpoints, RunLock, new_directory, read_manifest, write_text_atomic
from macpo.store.atomic import make_directory, remove_tree
from macpo.words import in_markdown

LOWER = "batch_tokens or max_tokens, or set dtype: bfloat16"
"""What takes less memory."""

SHOWN_STEPS = 20
"""How many lines a training writes, about."""

_log = logging.getLogger("macpo")


@dataclass(frozen=True, slots=True)
class TrainedReward:
    """A reward model that was trained: its folder, and its accuracy on held-out pairs."""

    folder: Path
    accuracy: Estimate


@dataclass(frozen=True, slots=True)
class _Task:
    """What is trained on what: resolved, and read."""

    config: RewardConfig
    base: ResolvedModel
    content: str
    train: tuple[PreferenceExample, ...]
    held_out: tuple[PreferenceExample, ...]
    left_out: int

    @property
    def key(self) -> str:
        """Tells whether a checkpoint or a finished model is of this very training."""
        ids = [[e.prompt.id, e.chosen, e.rejected] for e in self.train]
        options = self.config.model_dump(mode="json", exclude={"device", "checkpoint_steps"})
        for name in ("data", "model", "leave_out"):
            del options[name]
        return digest([options, self.base.digest, self.content, ids, len(self.held_out)])


def train_reward(config: RewardConfig, folder: str | Path) -> TrainedReward:
    """Train a reward model into a folder; run again after a kill, it goes on from a checkpoint.

    The first SIGINT or SIGTERM saves one and ends the training, a second one ends it at once.

    Args:
        config: of the training.
        folder: of the model, made when it is done. One that this very training made is kept.

    Raises:
        StoreError: the folder holds something else, or another process is training into it.
        MacpoError: something else is wrong; see macpo.errors.
        KeyboardInterrupt: asked to stop; the same call goes on where it stopped.
    """
    folder = Path(folder)
    device = choose_device(config.device)
    work = folder.with_name(f".{folder.name}.training")
    make_directory(work)
    with RunLock(work / "lock"), stop_on_signal(_log.info) as stop:

        def tell(done: int, total: int, row: Mapping[str, float]) -> None:
            _tell(done, total, row)
            if stop.is_set():
                raise KeyboardInterrupt

        if config.dtype == "auto":
            config = config.model_copy(update={"dtype": _dtype_once(work, device)})
        task = _read(config)
        if folder.exists():
            return _found(folder, task)
        _log.info(
            "%d pairs on %d prompts to train on, %d pairs held out%s",
            len(task.train),
            len({e.prompt.id for e in task.train}),
            len(task.held_out),
            f", {task.left_out} left out" if task.left_out else "",
        )
        model, reward = _prepare(task, device)
        pairs = [_encode(reward, example, config) for example in task.train]
        checkpoints = Checkpoints(work / task.key[:16])
        with translate_memory_errors(folder.name, LOWER):
            RewardTrainer(reward, pairs, config, checkpoints, tell).train()
            _publish(task, model, reward, folder, device)
    remove_tree(work)
    return _found(folder, task)


def _dtype_once(work: Path, device: torch.device) -> str:
    """Return what `dtype: auto` came to, decided once for a training."""
    path = work / "dtype"
    if not path.is_file():
        found = "bfloat16" if device.type == "cuda" else fastest_dtype(device)[0]
        write_text_atomic(path, found, durable=True)
    return path.read_text(encoding="utf-8")


def _read(config: RewardConfig) -> _Task:
    """Resolve the base, read the data, and divide it by prompts."""
    base = resolve(config.model)
    examples = load_preferences(config.data).examples
    avoided = {prompt for run in config.leave_out for prompt in _prompts_of(Path(run))}
    kept = [example for example in examples if example.prompt.id not in avoided]
    ids = sorted({e.prompt.id for e in kept}, key=lambda i: digest([config.seed, "held-out", i]))
    share = config.held_out
    count = round(share * len(ids)) if isinstance(share, float) else share
    if not 0 < count < len(ids):
        raise DataError(
            f"{config.data.source}: {len(ids)} prompts, of which held_out keeps {count}: nothing "
            f"is left {'to measure' if count <= 0 else 'to train on'}; change held_out"
        )
    held = set(ids[:count])
    return _Task(
        config,
        base,
        source_digest(config.data),
        tuple(e for e in kept if e.prompt.id not in held),
        tuple(e for e in kept if e.prompt.id in held),
        len(examples) - len(kept),
    )


def _prompts_of(folder: Path) -> set[str]:
    """Return the ids of all prompts of a run.

    Raises:
        StoreError: there is no run with its data.
    """
    run = RunDir(user_path(folder))
    data = run.stage("data")
    return {p.id for split in splits_in(data) for p in read_split_prompts(data, split)}


def _prepare(task: _Task, device: torch.device) -> tuple[Any, RewardModel]:
    """Load the base with a fresh head, and say what of it trains.

    Returns:
        The model to publish (under LoRA a PEFT model), and the reward model over it.
    """
    config = task.config
    full = config.tuning.kind == "full"
    low = config.dtype == "bfloat16" and not full  # what trains as a whole needs its own float32
    kind = torch.bfloat16 if low else torch.float32
    chat = load_chat(task.base, config.model.chat_template)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        model, fresh = load_classifier(task.base, kind, device)
        if fresh:
            _log.info("%s: its head is new (%s)", task.base.name, ", ".join(fresh))
        tokenizer = chat.tokenizer
        if model.config.pad_token_id is None:
            ids = (tokenizer.pad_token_id, tokenizer.eos_token_id)
            model.config.pad_token_id = next((i for i in ids if i is not None), None)
        if full:
            return model, RewardModel(model, chat)
        adapted = _with_adapter(model, config)
    return adapted, RewardModel(adapted, chat)


def _with_adapter(model: Any, config: RewardConfig) -> Any:
    """Put adapters over a classifier; its head trains as a whole. What trains is float32."""
    from peft import LoraConfig, TaskType, get_peft_model

    tuning = config.tuning
    targets = choose_targets(model) if tuning.targets == (AUTO,) else tuning.targets
    options = LoraConfig(
        task_type=TaskType.SEQ_CLS,
        r=tuning.rank,
        lora_alpha=tuning.alpha,
        lora_dropout=tuning.dropout,
        target_modules=targets[0] if len(targets) == 1 else sorted(targets),
    )
    with quiet_peft():
        adapted = get_peft_model(model, options)
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return adapted


def _encode(reward: RewardModel, example: PreferenceExample, config: RewardConfig) -> EncodedPair:
    sides = (
        reward.encode(example.prompt, answer, config.max_tokens).ids
        for answer in (example.chosen, example.rejected)
    )
    return EncodedPair(*sides)


def _tell(done: int, total: int, row: Mapping[str, float]) -> None:
    """Write a line now and then."""
    if done % max(1, total // SHOWN_STEPS) == 0 or done == total:
        _log.info(
            "  step %d of %d: loss %.3f, accuracy %.2f", done, total, row["loss"], row["accuracy"]
        )


def _publish(
    task: _Task, model: Any, reward: RewardModel, folder: Path, device: torch.device
) -> None:
    """Write the model whole, load what was written, measure it, and let it appear with its card."""
    config = task.config
    whole = model if config.tuning.kind == "full" else model.merge_and_unload()
    kind = getattr(torch, config.dtype)
    with new_directory(folder, {"training": task.key}) as partial:
        whole.to(kind).save_pretrained(partial)
        reward.chat.tokenizer.save_pretrained(partial)
        del model, whole
        written = resolve(task.config.model.model_copy(update=_only_folder(partial)))
        accuracy = _accuracy(load_reward_model(written, kind, device), task)
        record = _record(task, accuracy)
        (partial / RECORD).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        (partial / "README.md").write_text(_card(task, accuracy), encoding="utf-8")


def _only_folder(folder: Path) -> dict[str, Any]:
    """Return what makes a model section name a folder and nothing else."""
    nothing = dict.fromkeys(("revision", "adapter", "layers", "chat_template"))
    return {"source": str(folder), **nothing}


def _accuracy(reward: RewardModel, task: _Task) -> Estimate:
    """Return the share of held-out pairs whose better answer has the higher reward."""
    config = task.config
    pairs = [_encode(reward, example, config) for example in task.held_out]
    chosen, rejected = (
        reward.score(side, config.batch_tokens)
        for side in ([p.chosen for p in pairs], [p.rejected for p in pairs])
    )
    points = [0.5 * (1 + (c > r) - (c < r)) for c, r in zip(chosen, rejected, strict=True)]
    return clustered_mean(points, [example.prompt.id for example in task.held_out])


def _record(task: _Task, accuracy: Estimate) -> dict[str, Any]:
    return {
        "base": task.base.hub_name or task.base.name,
        "data": {"source": task.config.data.source, "content": task.content},
        "held_out": {
            "pairs": accuracy.count,
            "accuracy": accuracy.mean,
            "standard_error": accuracy.error,
        },
        "prompts": sorted({example.prompt.id for example in task.train}),
    }


def _card(task: _Task, accuracy: Estimate) -> str:
    """Return the model card (Markdown with the hub's front matter)."""
    config = task.config
    source = in_markdown(config.data.source)
    lora = config.tuning.kind == "lora"
    how = f"LoRA rank {config.tuning.rank}, merged" if lora else "full fine-tuning"
    error = "" if accuracy.error is None else f" ± {100 * accuracy.error:.1f}"
    return f"""---
base_model: {json.dumps(task.base.hub_name or task.base.name)}
library_name: transformers
pipeline_tag: text-classification
tags: [macpo, reward-model]
---

# {config.name}

A reward model: {in_markdown(task.base.name)} with a head of one number, by the Bradley-Terry model
({how}, {config.dtype}, {config.optimizer.epochs} epochs), trained by `macpo reward train`.

Accuracy on {accuracy.count} held-out pairs, of prompts that it was not trained on:
**{100 * accuracy.mean:.1f}{error} %** (standard error).

Data: {source}, {len(task.train)} pairs; content `{task.content[:16]}`. `{RECORD}`
holds the ids of all prompts that it was trained on: `macpo eval RUN reward` says where a run has
them too.
"""


def _found(folder: Path, task: _Task) -> TrainedReward:
    """Read a model that this very training made.

    Raises:
        StoreError: another one is there.
    """
    try:
        fields: Mapping[str, Any] = read_manifest(folder).fields
    except StoreError:
        fields = {}
    if fields.get("training") != task.key:
        raise StoreError(
            f"{folder} exists already and is not of this training; choose another --out or move it "
            "away"
        )
    held: Mapping[str, Any] = json.loads((folder / RECORD).read_text(encoding="utf-8"))["held_out"]
    accuracy = Estimate(held["accuracy"], held["standard_error"], held["pairs"])
    return TrainedReward(folder, accuracy)


def describe(trained: TrainedReward) -> Sequence[str]:
    """Return the lines that tell people of a trained model."""
    accuracy = trained.accuracy
    error = "" if accuracy.error is None else f" (standard error {100 * accuracy.error:.1f})"
    return (
        f"accuracy on {accuracy.count} held-out pairs: {100 * accuracy.mean:.1f} %{error}",
        f"reward model: {trained.folder}",
    )
