"""Reward models: sequence classifiers with one label, which score an answer to a conversation.

    reward = load_reward_model(resolved, torch.bfloat16, "cuda")
    reward.score([reward.encode(prompt, answer, 2048), ...])

What they read is the whole conversation as their own chat template writes it, once. Models that
`macpo reward train` made carry `macpo_reward.json`: on what they were trained.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from macpo.errors import DataError, ModelError
from macpo.memory import halved, release
from macpo.models.chat import Chat
from macpo.models.folders import CONFIG, check_folder, load_failure, read_config
from macpo.models.loading import load_chat
from macpo.models.sources import ResolvedModel
from macpo.records import Prompt

if TYPE_CHECKING:
    import torch

RECORD = "macpo_reward.json"
CARD = "README.md"

REMEDY = "take a reward model, or train one: macpo reward train"


@dataclass(frozen=True, slots=True)
class Encoded:
    """A conversation with its answer as token ids; `whole` when nothing of it was cut off."""

    ids: tuple[int, ...]
    whole: bool


class RewardModel:
    """A reward model ready to score.

    Args:
        model: a transformers model for sequence classification with one label.
        chat: its tokenizer and template.
    """

    def __init__(self, model: Any, chat: Chat) -> None:
        self.model = model
        self.chat = chat
        positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
        self.positions = positions if isinstance(positions, int) and positions > 0 else None

    def encode(self, prompt: Prompt, answer: str, limit: int) -> Encoded:
        """Encode a conversation with its answer.

        Args:
            prompt: the conversation.
            answer: to it.
            limit: tokens at most; the model's own limit counts too.

        Raises:
            DataError: the template refuses the conversation.
        """
        limit = min(limit, self.positions or limit)
        found = self.chat.encode_conversation(prompt, answer, limit + 1)
        if not found.ids:
            raise DataError(f"prompt {prompt.id}: the reward model's template writes nothing")
        whole = len(found.ids) <= limit and not found.dropped_turns
        if len(found.ids) > limit:  # one token was let in to tell a full one from one that is cut
            found = self.chat.encode_conversation(prompt, answer, limit)
            whole = False
        return Encoded(found.ids, whole)

    def score(
        self,
        conversations: Sequence[Sequence[int]],
        batch_tokens: int,
        progress: Callable[[int], None] = lambda done: None,
    ) -> list[float]:
        """Score encoded conversations, in batches of similar length; without gradients.

        Args:
            conversations: token ids, none empty.
            batch_tokens: in one forward pass, padding included; at least one conversation. Where
                memory runs out it is halved.
            progress: is told of every batch how many it had.

        Raises:
            SmallestBudgetError: memory has no room for one conversation.
        """
        order = sorted(range(len(conversations)), key=lambda i: len(conversations[i]))
        lengths = [len(ids) for ids in conversations]
        scores = [0.0] * len(conversations)
        batches = _batches(order, lengths, batch_tokens)
        while batches:
            found = self._scores_if_they_fit([conversations[i] for i in batches[0]])
            if isinstance(found, int):
                release()
                batches = _batches([i for batch in batches for i in batch], lengths, found)
                continue
            batch, *batches = batches
            for i, value in zip(batch, found, strict=True):
                scores[i] = value
            progress(len(batch))
        return scores

    def _scores_if_they_fit(self, batch: Sequence[Sequence[int]]) -> list[float] | int:
        """Return the scores of a batch, or how many tokens a smaller one may have."""
        import torch

        try:
            with torch.inference_mode():
                return [float(value) for value in self.forward(batch).float().cpu().tolist()]
        except Exception as error:
            less = halved_batch(error, batch)
            if less is None:
                raise
        return less

    def forward(self, batch: Sequence[Sequence[int]]) -> torch.Tensor:
        """Return the scores of a batch, one each, padded on the right.

        Decoders read the score off the last token that is not padding, which transformers finds by
        the pad token's id. A model that names none gets, for this batch, an id that is not in it.
        """
        import torch

        longest = max(map(len, batch))
        config = self.model.config
        own = config.pad_token_id
        if own is None:
            there = {i for ids in batch for i in ids}
            config.pad_token_id = next(i for i in range(len(there) + 1) if i not in there)
        try:
            pad = config.pad_token_id
            ids = [[*row, *[pad] * (longest - len(row))] for row in batch]
            mask = [[1] * len(row) + [0] * (longest - len(row)) for row in batch]
            device = self.model.device
            logits = self.model(
                input_ids=torch.tensor(ids, device=device),
                attention_mask=torch.tensor(mask, device=device),
            ).logits
        finally:
            config.pad_token_id = own
        scores: torch.Tensor = logits[:, 0]
        return scores


def load_reward_model(
    resolved: ResolvedModel,
    dtype: torch.dtype,
    device: torch.device | str,
    chat_template: str | None = None,
) -> RewardModel:
    """Load a reward model, in evaluation mode.

    Args:
        resolved: a local model.
        dtype: of the weights.
        device: where they go.
        chat_template: see `macpo.models.loading.load_tokenizer`.

    Raises:
        ModelError: it is no reward model, or cannot be loaded.
    """
    check_reward_model(resolved)
    model, missing = load_classifier(resolved, dtype, device)
    if missing:
        raise ModelError(
            f"{resolved.name}: no reward model, for it lacks {missing[0]}, which transformers "
            f"would make up; {REMEDY}"
        )
    return RewardModel(model.eval(), load_chat(resolved, chat_template))


def load_classifier(
    resolved: ResolvedModel, dtype: torch.dtype, device: torch.device | str
) -> tuple[Any, list[str]]:
    """Load a model as a sequence classifier with one label.

    Returns:
        The model, and the names of tensors that were not in its files: drawn at random.

    Raises:
        ModelError: it cannot be loaded.
    """
    import torch
    from transformers import AutoModelForSequenceClassification
    from transformers.utils import logging

    folder = Path(resolved.location)
    check_folder(folder)
    said = logging.get_verbosity()
    logging.set_verbosity_error()  # a head that is new is said by us, in a line
    try:
        model, report = AutoModelForSequenceClassification.from_pretrained(
            str(folder),
            num_labels=1,
            dtype=dtype,
            device_map=torch.device(device),
            use_safetensors=True,
            trust_remote_code=resolved.trust_remote_code,
            local_files_only=True,
            output_loading_info=True,
        )
    except Exception as error:  # configs and weight files fail in as many ways as there are models
        raise ModelError(
            f"{resolved.name}: cannot be loaded as a reward model ({load_failure(error)})"
        ) from error
    finally:
        logging.set_verbosity(said)
    return model, sorted(map(str, {*report["missing_keys"], *report["mismatched_keys"]}))


def check_reward_model(resolved: ResolvedModel) -> None:
    """Refuse what is no reward model by its config, before its weights are read.

    Raises:
        ModelError: it has several labels or none, or is a causal language model.
    """
    config = read_config(Path(resolved.location), with_code=resolved.trust_remote_code)
    kinds = list(getattr(config, "architectures", None) or [])
    if kinds and not any("Classification" in kind or "Reward" in kind for kind in kinds):
        if not resolved.trust_remote_code:
            raise ModelError(
                f"{resolved.name}: no reward model, its config says {kinds[0]}; {REMEDY}"
            )
    elif config.num_labels != 1:
        count = config.num_labels or "no"
        raise ModelError(f"{resolved.name}: has {count} labels, a reward model has one; {REMEDY}")


def relation(reward: ResolvedModel, student: ResolvedModel) -> str | None:
    """Say why a reward model may be a relative of the student's base; None where nothing says so.

    Relatives share what they are blind to: a third party is worth more.
    """
    folder = Path(reward.location)
    names = _names_in(folder)
    known = {student.hub_name, student.name.partition("[")[0].partition("@")[0]} - {None, ""}
    named = sorted(name for name in known if name in names)
    if named:
        return f"it was made from {named[0]}"
    own, other = _shape(folder), _shape(Path(student.location))
    if own is not None and own == other:
        kind, width, words = own
        return f"both are {kind} models, {width} wide, with {words:,} token ids"
    return None


def training_record(folder: Path) -> Mapping[str, Any]:
    """Return what a model of `macpo reward train` says of its training; empty for others.

    Raises:
        ModelError: it cannot be read.
    """
    path = folder / RECORD
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        return {**value, "prompts": frozenset(map(str, value["prompts"]))}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{path}: cannot be read ({error}); train the model again") from error


def _names_in(folder: Path) -> set[str]:
    """Return the names of base models that a reward model's card and records give."""
    names = {str(training_record(folder).get("base", ""))}
    card = folder / CARD
    if card.is_file():
        head = card.read_text(encoding="utf-8", errors="replace").partition("\n---")[0]
        section = re.search(r"^base_model:(.*(?:\n\s*-.*)*)", head, re.MULTILINE)
        if section is not None:
            names |= set(re.findall(r"[\w./:-]*\w", section[1]))
    return names - {""}


def _shape(folder: Path) -> tuple[str, int, int] | None:
    """Return the type of a model, its width and the size of its vocabulary, from its config."""
    try:
        value = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        value = value.get("text_config", value)
        return str(value["model_type"]), int(value["hidden_size"]), int(value["vocab_size"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def halved_batch(error: BaseException, rows: Sequence[Sequence[int]]) -> int | None:
    """Return half of the tokens of a batch that memory had no room for; None for other errors.

    Args:
        error: what was raised.
        rows: token ids of the conversations in it, or of both of a pair, end to end.

    Raises:
        SmallestBudgetError: it was one alone.
    """
    tokens = len(rows) * max(map(len, rows))
    return halved(
        error,
        tokens,
        len(rows),
        "tokens in a batch",
        f"with one conversation or pair in a batch ({tokens:,} tokens); set a lower max_tokens, or "
        "dtype: bfloat16; then run again",
    )


def _batches(order: Sequence[int], lengths: Sequence[int], batch_tokens: int) -> list[list[int]]:
    """Cut indices, shortest first, into batches of at most so many tokens, padding included."""
    batches: list[list[int]] = []
    for i in order:
        if batches and (len(batches[-1]) + 1) * lengths[i] <= batch_tokens:
            batches[-1].append(i)
        else:
            batches.append([i])
    return batches
