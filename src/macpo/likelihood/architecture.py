"""Which shortcuts a model's architecture allows the likelihood engine.

A tree of branches in one row is right only if every layer that mixes tokens is attention that goes
through transformers' attention interface, asks for nothing that our layout does not honour, and
sees the whole sequence. `macpo.probe` says how that is found out.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from macpo.errors import ModelError
from macpo.likelihood.groups import Pack, PromptGroup
from macpo.likelihood.head import head_logits
from macpo.likelihood.layout import tree_hidden
from macpo.likelihood.padded import padded_hidden
from macpo.probe import (
    TRIAL_ERRORS,
    Declared,
    agree,
    declared,
    first_line,
    own_logits,
    probe_ids,
)

# Tokens of the probe's prompt and completions. What is wrong with a row shows in its later branches
# and grows with what stands before them: after two branches, positions that run on change the
# logits of a GPT-NeoX, which rotates a quarter of its numbers, by less than bfloat16 is allowed.
PROMPT_LENGTH = 3
COMPLETION_LENGTHS = (4,) * 12
ALONE = (0, 11)
"""The completions that the model forwards alone, too, by which plain rows are judged."""


@dataclass(frozen=True, slots=True)
class Architecture:
    """What the engine may do with a model.

    `window` is the shortest sliding window of any layer in tokens, None if all see everything;
    `fallback_reason` says why trees are wrong for this model, empty if they are right;
    `logit_softcap` is Gemma 2's cap on the final logits.
    """

    fallback_reason: str
    window: int | None
    logit_softcap: float | None

    def allows_tree(self, longest: int) -> bool:
        """Tell whether branches whose longest is `longest` tokens may share one row."""
        return not self.fallback_reason and (self.window is None or longest <= self.window)


def inspect_architecture(causal_lm: Any) -> Architecture:
    """Inspect a transformers causal LM.

    Raises:
        ModelError: the engine cannot score with this model at all, since its logits are not its
            LM head times its hidden states.
    """
    found = declared(causal_lm)
    trial = _Trial(causal_lm, _plain_head(causal_lm, found.name), found, _probe_group(causal_lm))
    with torch.inference_mode():
        plain = trial.plain_rows()
        reason = _looks_wrong(found) or trial.fault_of_tree(plain)
    return Architecture(reason, found.window, found.logit_softcap)


def _plain_head(causal_lm: Any, name: str) -> Tensor:
    """Return the weight of the LM head, `[vocabulary, width]`, if that is all there is to it."""
    head = causal_lm.get_output_embeddings()
    if type(head) is not torch.nn.Linear:
        raise ModelError(
            f"{name}: its LM head is a {type(head).__name__}, not a plain linear layer; take "
            "adapters off it (tuning.targets) or use another model"
        )
    bias: Any = head.bias
    if bias is not None:
        raise ModelError(
            f"{name}: its LM head has a bias, which is not supported; use another model"
        )
    if causal_lm.base_model is causal_lm:
        raise ModelError(
            f"{name}: its decoder cannot be called without its LM head; use another model"
        )
    return head.weight


def _looks_wrong(found: Declared) -> str:
    """Name what the config says against trees, or return an empty string."""
    if found.other_layer_types:
        return f"layers of kind {', '.join(found.other_layer_types)} carry state along the row"
    return ""


def _probe_group(causal_lm: Any) -> PromptGroup:
    """Return the few tokens that are tried: no two branches hold the same."""
    ids = iter(probe_ids(causal_lm, PROMPT_LENGTH + sum(COMPLETION_LENGTHS)))
    prompt, *completions = (
        tuple(next(ids) for _ in range(length)) for length in (PROMPT_LENGTH, *COMPLETION_LENGTHS)
    )
    return PromptGroup(prompt, tuple(completions))


@dataclass(frozen=True, slots=True)
class _Trial:
    """A model, the weight of its head `[vocabulary, width]`, and the few tokens to try it with."""

    causal_lm: Any
    head: Tensor
    found: Declared
    group: PromptGroup

    def plain_rows(self) -> list[Tensor]:
        """Return logits of padded rows and our head, `[tokens, vocabulary]` for each completion.

        Raises:
            ModelError: they are not those that the model gives for a completion alone.
        """
        logits = self._logits(padded_hidden)
        alone = [[*self.group.prompt, *self.group.completions[n][:-1]] for n in ALONE]
        for number, own in zip(ALONE, own_logits(self.causal_lm, alone), strict=True):
            if not self._agree(logits[number], own[len(self.group.prompt) - 1 :]):
                raise ModelError(
                    f"{self.found.name}: its logits are not its LM head times its hidden states "
                    "(a logit scale?); this architecture is not supported"
                )
        return logits

    def fault_of_tree(self, plain: list[Tensor]) -> str:
        """Forward the group as a tree; name what went wrong, or return an empty string."""
        try:
            logits = self._logits(tree_hidden)
        except TRIAL_ERRORS as error:
            return f"attention cannot go through a layout ({first_line(error)})"
        if not all(self._agree(*pair) for pair in zip(logits, plain, strict=True)):
            return "a row with branches gave other hidden states than the branches alone"
        return ""

    def _logits(self, forward: Callable[[Any, Pack, torch.device], Tensor]) -> list[Tensor]:
        """Forward the group; return logits `[tokens, vocabulary]` for each completion."""
        hidden = forward(self.causal_lm, Pack((self.group,), (0,)), self.causal_lm.device)
        logits = head_logits(hidden.to(self.head.dtype), self.head, self.found.logit_softcap)
        return list(torch.split(logits, [len(c) for c in self.group.completions]))

    def _agree(self, ours: Tensor, theirs: Tensor) -> bool:
        return agree(ours, theirs, self.causal_lm.dtype)
