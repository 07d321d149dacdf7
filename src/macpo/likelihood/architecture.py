"""Which shortcuts a model's architecture allows the likelihood engine.

A tree of branches in one row is right only if every layer that mixes tokens is attention that goes
through transformers' attention interface, asks for nothing that our layout does not honour, and
sees the whole sequence. `macpo.probe` says how that is found out.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from macpo.attention import decoder_of
from macpo.errors import ModelError
from macpo.likelihood.branching import Branching, find_branching
from macpo.likelihood.groups import Pack, PromptGroup
from macpo.likelihood.head import Head, head_logits
from macpo.likelihood.kernels import BY_LOOP, Chosen, choose_attention
from macpo.likelihood.layout import laid_out_hidden, tree_layout
from macpo.likelihood.padded import padded_hidden
from macpo.probe import (
    TRIAL_ERRORS,
    Declared,
    agree,
    declared,
    first_line,
    own_logits,
    probe_ids,
    relative_error,
    tolerance,
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

    `window` is the sliding window of some layers in tokens, None if all see everything; trees
    honour it where `passes_window` says that the model tells its attention function;
    `fallback_reason` says why trees are wrong for this model, empty if they are right;
    `logit_softcap` and `logit_scale` are those of its head (`macpo.likelihood.head.Head`). A
    sequence of more than `rope_limit` tokens is rotated by angles that depend on the length of the
    whole batch, so that it has to be forwarded alone; None if there is no such limit. `branching`
    says how completions may go on from copies of their prompt's state where trees are wrong, None
    if they may not. `attention` is how a tree's layers attend on the model's device.
    """

    fallback_reason: str
    window: int | None
    logit_softcap: float | None
    logit_scale: float = 1.0
    rope_limit: int | None = None
    passes_window: bool = False
    branching: Branching | None = None
    attention: Chosen = BY_LOOP

    def allows_tree(self, longest: int) -> bool:
        """Tell whether branches whose longest is `longest` tokens may share one row."""
        window = None if self.passes_window else self.window
        limits = [limit for limit in (window, self.rope_limit) if limit is not None]
        return not self.fallback_reason and all(longest <= limit for limit in limits)

    def allows_branching(self, longest: int, gradients: bool) -> bool:
        """Tell whether completions may go on from copies of their prompt's state.

        Args:
            longest: tokens of the longest branch.
            gradients: they are wanted.
        """
        found = self.branching
        if found is None or (gradients and not found.trains):
            return False
        limits = [limit for limit in (found.limit, self.rope_limit) if limit is not None]
        return all(longest <= limit for limit in limits)

    @property
    def instead_of_trees(self) -> str:
        """Say how completions are forwarded where trees are wrong."""
        if self.branching is None:
            return "padded rows"
        copies = "copies of each prompt's state"
        return copies if self.branching.trains else f"{copies}, in training padded rows"

    def head_of(self, causal_lm: Any) -> Head:
        """Return the head of the model that was inspected, with the weights that it has now."""
        head = causal_lm.get_output_embeddings()
        return Head(head.weight, head.bias, self.logit_scale, self.logit_softcap)


def inspect_architecture(causal_lm: Any) -> Architecture:
    """Inspect a transformers causal LM.

    Raises:
        ModelError: the engine cannot score with this model at all, since its logits are not its
            LM head times its hidden states, or depend on what comes after them.
    """
    found = declared(causal_lm)
    refuse_unusable(causal_lm)
    trial = _Trial(causal_lm, found, _probe_group(causal_lm))
    with torch.inference_mode():
        hidden, scale = trial.plain_rows()
        plain = Architecture("", found.window, found.logit_softcap, scale, found.rope_limit)
        windows: dict[int, int | None] = {}
        reason = _looks_wrong(found) or trial.fault_of_tree(hidden, plain, windows)
    passed = all(windows.get(layer) is not None for layer in found.sliding_layers)
    head = plain.head_of(causal_lm)
    return replace(
        plain,
        fallback_reason=reason,
        passes_window=passed,
        branching=find_branching(causal_lm, head) if reason else None,
        attention=BY_LOOP if reason else choose_attention(causal_lm, head),
    )


def refuse_unusable(causal_lm: Any) -> None:
    """Refuse what can be seen to be of no use, also in a model without weights.

    Raises:
        ModelError: its head is no linear layer, or its decoder cannot be called alone.
    """
    name = type(causal_lm).__name__
    head = causal_lm.get_output_embeddings()
    if type(head) is not torch.nn.Linear:
        raise ModelError(
            f"{name}: its LM head is a {type(head).__name__}, not a plain linear layer; take "
            "adapters off it (tuning.targets) or use another model"
        )
    if decoder_of(causal_lm) is causal_lm:
        raise ModelError(
            f"{name}: its decoder cannot be called without its LM head; use another model"
        )


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
    """A model, and the few tokens to try it with."""

    causal_lm: Any
    found: Declared
    group: PromptGroup

    def plain_rows(self) -> tuple[Tensor, float]:
        """Return hidden states of padded rows, `[tokens, width]`, and the scale of the logits.

        Raises:
            ModelError: with our head they do not give the logits that the model gives for a
                completion alone, or these depend on later tokens.
        """
        prompt = self.group.prompt
        alone = [[*prompt, *self.group.completions[n][:-1]] for n in ALONE]
        *own, before = own_logits(self.causal_lm, [*alone, prompt])
        if not self._agree(own[0][: len(prompt)], before):
            raise ModelError(
                f"{self.found.name}: what it makes of a token depends on later ones, so that "
                "it is no causal language model; use another model"
            )
        hidden = self._hidden(padded_hidden)

        def error(scale: float) -> float:
            head = Architecture("", None, self.found.logit_softcap, scale).head_of(self.causal_lm)
            logits = self._by_completion(head_logits(hidden, head))
            return max(
                relative_error(logits[n], o[len(prompt) - 1 :], self.causal_lm.dtype)
                for n, o in zip(ALONE, own, strict=True)
            )

        # The best, not the first that fits: in 16 bits 1 would do for 0.9.
        scale = min(self.found.logit_scales, key=error)
        if error(scale) <= tolerance(self.causal_lm.dtype):
            return hidden, scale
        raise ModelError(
            f"{self.found.name}: its logits are not its LM head times its hidden states, nor "
            "scaled as its config says; this architecture is not supported"
        )

    def fault_of_tree(
        self, plain: Tensor, architecture: Architecture, windows: dict[int, int | None]
    ) -> str:
        """Forward the group as a tree; name what went wrong, or return an empty string.

        Args:
            plain: hidden states of padded rows.
            architecture: that makes logits of them.
            windows: collects the sliding window that each layer asks for.
        """

        def as_tree(causal_lm: Any, pack: Pack, device: torch.device) -> Tensor:
            layout = tree_layout(pack, causal_lm.dtype, device)
            hidden = laid_out_hidden(causal_lm, pack, layout)
            windows.update(layout.windows)
            return hidden

        try:
            hidden = self._hidden(as_tree)
        except TRIAL_ERRORS as error:
            return f"attention cannot go through a layout ({first_line(error)})"
        head = architecture.head_of(self.causal_lm)
        ours, theirs = (self._by_completion(head_logits(h, head)) for h in (hidden, plain))
        if not all(self._agree(*pair) for pair in zip(ours, theirs, strict=True)):
            return "a row with branches gave other hidden states than the branches alone"
        return ""

    def _hidden(self, forward: Callable[[Any, Pack, torch.device], Tensor]) -> Tensor:
        """Forward the group; return the hidden states that predict, `[tokens, width]`."""
        return forward(self.causal_lm, Pack((self.group,), (0,)), self.causal_lm.device)

    def _by_completion(self, logits: Tensor) -> list[Tensor]:
        """Divide logits into `[tokens, vocabulary]` for each completion."""
        return list(torch.split(logits, [len(c) for c in self.group.completions]))

    def _agree(self, ours: Tensor, theirs: Tensor) -> bool:
        return agree(ours, theirs, self.causal_lm.dtype)
