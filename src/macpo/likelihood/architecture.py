"""Which shortcuts a model's architecture allows, found by looking and by trying.

A tree of branches in one row is right only if every layer that mixes tokens is attention that goes
through transformers' attention interface, asks for nothing that our layout does not honour, and
sees the whole sequence. Looking (at the config) explains; trying (a forward of a few tokens with a
small tree, against the model's own forward of each branch) decides, so that an architecture nobody
thought of falls back instead of giving numbers that are silently different.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from macpo.errors import ModelError
from macpo.likelihood.groups import Pack, PromptGroup
from macpo.likelihood.head import token_logprobs
from macpo.likelihood.layout import tree_hidden
from macpo.likelihood.padded import padded_hidden

FULL, SLIDING = "full_attention", "sliding_attention"


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
    config = causal_lm.config.get_text_config()
    softcap = getattr(config, "final_logit_softcapping", None)
    probe = PromptGroup(
        _probe_ids(config, 3, 7), (_probe_ids(config, 4, 11), _probe_ids(config, 3, 5))
    )
    pack = Pack((probe,), (0,))
    with torch.inference_mode():
        expected = _check_head(causal_lm, pack, softcap)
        reason = _looks_wrong(config) or _tries_wrong(causal_lm, pack, expected)
    return Architecture(reason, _shortest_window(config), softcap)


def _probe_ids(config: Any, length: int, stride: int) -> tuple[int, ...]:
    """Return some token ids that the vocabulary has."""
    return tuple((3 + stride * i) % config.vocab_size for i in range(length))


def _looks_wrong(config: Any) -> str:
    """Name what in the config rules trees out, or return an empty string."""
    kinds = set(getattr(config, "layer_types", None) or (FULL,)) - {FULL, SLIDING}
    if kinds:
        return f"layers of kind {', '.join(sorted(kinds))} carry state along the row"
    return ""


def _shortest_window(config: Any) -> int | None:
    """Return the shortest sliding window in use, in tokens."""
    window = getattr(config, "sliding_window", None)
    kinds = getattr(config, "layer_types", None)
    if window is None or (kinds is not None and SLIDING not in kinds):
        return None
    return int(window)


def _check_head(causal_lm: Any, pack: Pack, softcap: float | None) -> torch.Tensor:
    """Compare our log-probabilities, from plain rows, with those of the model's own logits.

    Returns:
        The hidden states of the pack from plain rows, `[targets, width]`.
    """
    name = type(causal_lm).__name__
    weight = _plain_head(causal_lm, name)
    hidden = padded_hidden(causal_lm, pack, causal_lm.device)
    group = pack.groups[0]
    targets = torch.tensor([t for c in group.completions for t in c], device=causal_lm.device)
    own = []
    for completion in group.completions:
        ids = torch.tensor([[*group.prompt, *completion[:-1]]], device=causal_lm.device)
        logits = causal_lm(input_ids=ids, use_cache=False).logits[0, len(group.prompt) - 1 :]
        own.append(logits.float().log_softmax(-1))
    expected = torch.cat(own).gather(1, targets[:, None])[:, 0]
    ours = token_logprobs(hidden, weight, targets, softcap)
    if not _agree(ours, expected, causal_lm.dtype):
        raise ModelError(
            f"{name}: its logits are not its LM head times its hidden states "
            "(a logit scale?); this architecture is not supported"
        )
    return hidden


def _plain_head(causal_lm: Any, name: str) -> torch.Tensor:
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


def _tries_wrong(causal_lm: Any, pack: Pack, expected: torch.Tensor) -> str:
    """Forward a small tree; name what went wrong, or return an empty string."""
    try:
        hidden = tree_hidden(causal_lm, pack, causal_lm.device)
    except (ModelError, ValueError, TypeError, KeyError, AttributeError, RuntimeError) as error:
        return f"attention cannot go through a layout ({str(error).splitlines()[0]})"
    if not _agree(hidden, expected, causal_lm.dtype):
        return "a row with branches gave other hidden states than the branches alone"
    return ""


def _agree(ours: torch.Tensor, expected: torch.Tensor, dtype: torch.dtype) -> bool:
    """Tell whether two results differ by no more than rounding in `dtype`."""
    scale = expected.float().abs().max().clamp_min(1e-6)
    tolerance = 1e-3 if dtype == torch.float32 else 5e-2
    return bool((ours.float() - expected.float()).abs().max() <= tolerance * scale)
