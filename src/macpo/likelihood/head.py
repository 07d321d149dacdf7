"""Log-probabilities from hidden states: the LM head at completion positions only, in chunks.

The logits of a whole batch never exist at once: a chunk of them is made, used and dropped. With a
frozen head the gradient with respect to the hidden states is computed beside the log-probabilities
while the chunk is there (d log p_t / d h = W[t] - softmax(W h) W), so that nothing is recomputed in
the backward pass; with a head that trains, the chunk's logits are recomputed there.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

CHUNK = 256
"""Positions per chunk: 256 x 49k logits in float32 are 50 MB, and their log-softmax as much."""


def token_logprobs(
    hidden: Tensor, weight: Tensor, targets: Tensor, softcap: float | None = None
) -> Tensor:
    """Return log p(target) in nats at each position, `[positions]` float32, differentiable.

    Args:
        hidden: final hidden states `[positions, width]`.
        weight: the LM head `[vocabulary, width]`.
        targets: the tokens that came next, `[positions]` int64.
        softcap: if given, logits become `softcap * tanh(logits / softcap)` (Gemma 2).
    """
    # Mamba's last norm gives float32 whatever its weights are; its own head casts back as well.
    hidden = hidden.to(weight.dtype)
    return _TokenLogprobs.apply(hidden, weight, targets, softcap)  # type: ignore[no-any-return, no-untyped-call]


def most_probable_tokens(hidden: Tensor, weight: Tensor) -> Tensor:
    """Return the most probable token at each position, `[positions]` int64; arguments as above.

    A soft cap on the logits is monotonic and changes nothing here.
    """
    with torch.no_grad():
        states = hidden.to(weight.dtype)
        return torch.cat([(part @ weight.T).argmax(-1) for part in torch.split(states, CHUNK)])


def head_logits(hidden: Tensor, weight: Tensor, softcap: float | None) -> Tensor:
    """Return logits `[positions, vocabulary]` float32, of hidden states in the head's dtype."""
    logits = (hidden @ weight.T).float()
    return logits if softcap is None else torch.tanh(logits / softcap) * softcap


def _logits_gradient(
    logits: Tensor, all_logprobs: Tensor, targets: Tensor, softcap: float | None
) -> Tensor:
    """Return d log p(target) / d (uncapped logits), overwriting `all_logprobs`.

    Args:
        logits: `[positions, vocabulary]` float32, capped.
        all_logprobs: their log-softmax.
        targets: `[positions]` int64.
        softcap: the cap.
    """
    gradient = all_logprobs.exp_().neg_()
    gradient[torch.arange(len(targets), device=targets.device), targets] += 1
    return gradient if softcap is None else gradient.mul_(1 - (logits / softcap) ** 2)


class _TokenLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, softcap: float | None
    ) -> Tensor:
        head_trains = ctx.needs_input_grad[1]
        ahead = ctx.needs_input_grad[0] and not head_trains
        logprobs, gradients = [], []
        for h, t in zip(torch.split(hidden, CHUNK), torch.split(targets, CHUNK), strict=True):
            logits = head_logits(h, weight, softcap)
            all_logprobs = logits.log_softmax(-1)
            logprobs.append(all_logprobs.gather(1, t[:, None])[:, 0])
            if ahead:
                gradient = _logits_gradient(logits, all_logprobs, t, softcap)
                gradients.append(gradient.to(h.dtype) @ weight)
        if ahead:
            ctx.save_for_backward(torch.cat(gradients))
        elif head_trains:
            ctx.save_for_backward(hidden, weight, targets)
        ctx.softcap = softcap
        ctx.ahead = ahead
        return torch.cat(logprobs)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        if ctx.ahead:
            (unscaled,) = ctx.saved_tensors
            return (unscaled * upstream[:, None]).to(unscaled.dtype), None, None, None
        hidden, weight, targets = ctx.saved_tensors
        hidden_gradients = []
        weight_gradient = torch.zeros(weight.shape, dtype=torch.float32, device=weight.device)
        chunks = zip(
            torch.split(hidden, CHUNK),
            torch.split(targets, CHUNK),
            torch.split(upstream, CHUNK),
            strict=True,
        )
        for h, t, up in chunks:
            logits = head_logits(h, weight, ctx.softcap)
            gradient = _logits_gradient(logits, logits.log_softmax(-1), t, ctx.softcap)
            gradient = gradient.mul_(up[:, None]).to(h.dtype)
            hidden_gradients.append(gradient @ weight)
            weight_gradient += gradient.T @ h
        return torch.cat(hidden_gradients), weight_gradient.to(weight.dtype), None, None
