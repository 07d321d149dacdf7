"""Which shortcuts a model's architecture allows the likelihood engine.

A tree of branches in one row is right only if every layer that mixes tokens is attention that goes
through transformers' attention interface, asks for nothing that our layout does not honour, and
sees the whole sequence. `macpo.probe` says how that is found out.
"""

from __future__ import annotations

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
    weight = _plain_head(causal_lm, found.name)
    pack = Pack((_probe_group(causal_lm),), (0,))
    with torch.inference_mode():
        expected = _expected(causal_lm, pack.groups[0])
        trial = _Trial(causal_lm, pack, weight, found.logit_softcap, expected)
        trial.check_head(found.name)
        reason = _looks_wrong(found) or trial.fault_of_tree()
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


def _expected(causal_lm: Any, group: PromptGroup) -> Tensor:
    """Return the model's own logits where completion tokens are predicted, `[targets, vocab]`."""
    own = own_logits(causal_lm, [[*group.prompt, *c[:-1]] for c in group.completions])
    return torch.cat([logits[len(group.prompt) - 1 :] for logits in own])


@dataclass(frozen=True, slots=True)
class _Trial:
    """A small pack, and the logits `[targets, vocabulary]` that the model's own forward gives."""

    causal_lm: Any
    pack: Pack
    head: Tensor
    softcap: float | None
    expected: Tensor

    def check_head(self, name: str) -> None:
        """Make sure that plain rows and our head give the model's logits.

        Raises:
            ModelError: they do not.
        """
        if not self._agrees(padded_hidden(self.causal_lm, self.pack, self.causal_lm.device)):
            raise ModelError(
                f"{name}: its logits are not its LM head times its hidden states "
                "(a logit scale?); this architecture is not supported"
            )

    def fault_of_tree(self) -> str:
        """Forward the pack as a tree; name what went wrong, or return an empty string."""
        try:
            hidden = tree_hidden(self.causal_lm, self.pack, self.causal_lm.device)
        except TRIAL_ERRORS as error:
            return f"attention cannot go through a layout ({first_line(error)})"
        if not self._agrees(hidden):
            return "a row with branches gave other hidden states than the branches alone"
        return ""

    def _agrees(self, hidden: Tensor) -> bool:
        """Tell whether hidden states `[targets, width]` give the expected logits in each branch."""
        ours = head_logits(hidden.to(self.head.dtype), self.head, self.softcap)
        lengths = [len(completion) for completion in self.pack.groups[0].completions]
        branches = zip(torch.split(ours, lengths), torch.split(self.expected, lengths), strict=True)
        return all(agree(own, theirs, self.causal_lm.dtype) for own, theirs in branches)
