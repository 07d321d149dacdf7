"""Pretraining of a base: a plain loop over batches of whole conversations.

    build_base("strong", folder)      # an ordinary model folder: config, weights, tokenizer

Unlike the loop of macpo.training it has no pairs, no adapters and no checkpoints: it takes less
than a minute. Loss is the mean cross-entropy, in nats, of the answers' tokens (end of turn
included): what is left out are questions, most of whose tokens are drawn at random.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from macpo.errors import TrainingError
from macpo.progress import ProgressCallback
from macpo.testbed.bases import Recipe, get_recipe, model_config
from macpo.testbed.corpus import draw_conversation
from macpo.testbed.dataset import WORLD_VERSION
from macpo.testbed.dice import Dice
from macpo.testbed.prompts import FamilyName
from macpo.testbed.tokenizer import render_parts, train_tokenizer

POOL = 8
"""Batches drawn at once and sorted by length, so that few positions are padding."""

WARMUP = 0.05
WEIGHT_DECAY = 0.01
BETAS = (0.9, 0.98)
MAX_GRAD_NORM = 1.0
IGNORED = -100

Row = tuple[list[int], list[int]]
"""Token ids of a conversation, and its labels: the ids that are learned, elsewhere `IGNORED`."""


def build_base(preset: str, folder: Path, progress: ProgressCallback | None = None) -> Path:
    """Pretrain a base and write it as an ordinary Hugging Face model folder.

    The same preset gives the same bytes on one machine with one number of PyTorch threads.

    Args:
        preset: one of `PRESETS`.
        folder: made if it is not there.
        progress: called after every optimizer step.

    Returns:
        `folder`.

    Raises:
        ConfigError: there is no such preset.
    """
    recipe = get_recipe(preset)
    tokenizer = train_tokenizer()
    model = pretrain(recipe, tokenizer, progress)
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def pretrain(recipe: Recipe, tokenizer: Any, progress: ProgressCallback | None = None) -> Any:
    """Pretrain a base from random weights.

    Args:
        recipe: its size, corpus and optimisation.
        tokenizer: as `macpo.testbed.tokenizer.train_tokenizer` returns it.
        progress: called after every step as progress(done, total, loss=...).

    Returns:
        A transformers `LlamaForCausalLM` in float32 on the CPU, in evaluation mode.

    Raises:
        TrainingError: the loss is not finite.
    """
    model = new_model(recipe, tokenizer)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=recipe.learning_rate, betas=BETAS, weight_decay=WEIGHT_DECAY
    )
    model.train()
    for step, rows in zip(range(recipe.steps), batches(recipe, tokenizer), strict=False):
        for group in optimizer.param_groups:
            group["lr"] = recipe.learning_rate * rate_at(step, recipe.steps)
        loss = answer_loss(model, *collate(rows, tokenizer.pad_token_id))
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), MAX_GRAD_NORM)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        value = loss.item()
        if not math.isfinite(value):
            raise TrainingError(
                f"pretraining, step {step + 1} of {recipe.steps}: loss {value:g}; try a lower "
                f"learning rate than {recipe.learning_rate:g}"
            )
        if progress is not None:
            progress(step + 1, recipe.steps, loss=value)
    return model.eval()


def new_model(recipe: Recipe, tokenizer: Any) -> Any:
    """Return a base with random weights; PyTorch's own random state is left as it was."""
    from transformers import LlamaForCausalLM

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        return LlamaForCausalLM(model_config(recipe, tokenizer)).float()


def batches(recipe: Recipe, tokenizer: Any) -> Iterator[list[Row]]:
    """Yield batches of the recipe's corpus without end; conversations of a batch are alike long."""
    dice = Dice("testbed", WORLD_VERSION, "corpus", recipe.seed)
    weights = dict(recipe.mix)
    while True:
        rows = _rows(dice, weights, recipe.batch * POOL, tokenizer)
        rows.sort(key=lambda row: len(row[0]))
        pool = [rows[i : i + recipe.batch] for i in range(0, len(rows), recipe.batch)]
        yield from dice.shuffle(pool)


def collate(rows: list[Row], pad: int) -> tuple[Tensor, Tensor]:
    """Return ids and labels `[rows, longest]` (int64); labels are `IGNORED` outside answers."""
    longest = max(len(row) for row, _ in rows)
    ids = torch.full((len(rows), longest), pad)
    labels = torch.full((len(rows), longest), IGNORED)
    for i, (row, learned) in enumerate(rows):
        ids[i, : len(row)] = torch.tensor(row)
        labels[i, : len(row)] = torch.tensor(learned)
    return ids, labels


def answer_loss(model: Any, ids: Tensor, labels: Tensor) -> Tensor:
    """Return the mean cross-entropy in nats of the labelled tokens.

    Rows are padded on the right, which a causal model never sees: no mask is needed. The head runs
    where there is a label only.

    Args:
        model: the base.
        ids: `[rows, longest]` int64.
        labels: likewise, `IGNORED` where nothing is to be predicted.
    """
    hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state[:, :-1]
    targets = labels[:, 1:]
    predicting = targets != IGNORED
    return F.cross_entropy(model.lm_head(hidden[predicting]), targets[predicting])


def rate_at(step: int, steps: int) -> float:
    """Return the share of the peak learning rate at a step: warm-up, then cosine to zero."""
    warmup = max(1, round(WARMUP * steps))
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def _rows(dice: Dice, weights: dict[FamilyName, float], count: int, tokenizer: Any) -> list[Row]:
    """Draw conversations and encode their parts apart, as the chat code encodes answers."""
    drawn = [render_parts(draw_conversation(dice, weights)) for _ in range(count)]
    texts = [text for parts in drawn for text, _ in parts]
    encoded = iter(tokenizer(texts, add_special_tokens=False)["input_ids"])
    rows = []
    for parts in drawn:
        ids: list[int] = []
        labels: list[int] = []
        for _, learned in parts:
            piece = next(encoded)
            ids += piece
            labels += piece if learned else [IGNORED] * len(piece)
        rows.append((ids, labels))
    return rows
