"""Log-probabilities from hidden states: the LM head at completion positions only, in chunks.

The logits of a whole batch never exist at once: a chunk of them is made, used and dropped. With a
frozen head the gradient with respect to the hidden states is computed beside the log-probabilities
while the chunk is there (d log p_t / d h = W[t] - softmax(W h) W), so that nothing is recomputed in
the backward pass; with a head that trains, the chunk's logits are recomputed there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

CHUNK = 256
"""Positions per chunk: 256 x 49k logits in float32 are 50 MB, and their log-softmax as much."""


@dataclass(frozen=True, slots=True)
class Head:
    """What makes logits of final hidden states h.

        logits = cap(scale * h W^T + b),    cap(x) = softcap * tanh(x / softcap)

    `weight` is W, `[vocabulary, width]`; `bias` is b, `[vocabulary]`, or None; `scale` is 1 but for
    Granite, Cohere and their like; `softcap` is None but for Gemma 2 and its like.
    """

    weight: Tensor
    bias: Tensor | None = None
    scale: float = 1.0
    softcap: float | None = None

    def scaled(self, hidden: Tensor) -> Tensor:
        """Return hidden states as the weight takes them: scaled, in its dtype."""
        # Mamba's last norm gives float32 whatever its weights are; its own head casts back as well.
        hidden = hidden.to(self.weight.dtype)
        return hidden if self.scale == 1 else hidden * self.scale


def token_logprobs(hidden: Tensor, head: Head, targets: Tensor) -> Tensor:
    """Return log p(target) in nats at each position, `[positions]` float32, differentiable.

    Args:
        hidden: final hidden states `[positions, width]`.
        head: the LM head.
        targets: the tokens that came next, `[positions]` int64.
    """
    return _TokenLogprobs.apply(  # type: ignore[no-any-return, no-untyped-call]
        head.scaled(hidden), head.weight, head.bias, targets, head.softcap
    )


def most_probable_tokens(hidden: Tensor, head: Head) -> Tensor:
    """Return the most probable token at each position, `[positions]` int64; arguments as above.

    A soft cap on the logits is monotonic and changes nothing here.
    """
    with torch.no_grad():
        parts = torch.split(head.scaled(hidden), CHUNK)
        return torch.cat([_logits(h, head.weight, head.bias, None).argmax(-1) for h in parts])


def head_logits(hidden: Tensor, head: Head) -> Tensor:
    """Return logits `[positions, vocabulary]` float32 of all positions at once."""
    return _logits(head.scaled(hidden), head.weight, head.bias, head.softcap)


def _logits(hidden: Tensor, weight: Tensor, bias: Tensor | None, softcap: float | None) -> Tensor:
    """Return logits `[positions, vocabulary]` float32, of scaled hidden states."""
    logits = torch.nn.functional.linear(hidden, weight, bias).float()
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
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        softcap: float | None,
    ) -> Tensor:
        head_trains = ctx.needs_input_grad[1] or ctx.needs_input_grad[2]
        ahead = ctx.needs_input_grad[0] and not head_trains
        logprobs, gradients = [], []
        for h, t in zip(torch.split(hidden, CHUNK), torch.split(targets, CHUNK), strict=True):
            logits = _logits(h, weight, bias, softcap)
            all_logprobs = logits.log_softmax(-1)
            logprobs.append(all_logprobs.gather(1, t[:, None])[:, 0])
            if ahead:
                gradient = _logits_gradient(logits, all_logprobs, t, softcap)
                gradients.append(gradient.to(h.dtype) @ weight)
        if ahead:
            ctx.save_for_backward(torch.cat(gradients))
        elif head_trains:
            ctx.save_for_backward(hidden, weight, bias, targets)
        ctx.softcap = softcap
        ctx.ahead = ahead
        return torch.cat(logprobs)

    @staticmethod
    def backward(
        ctx: Any, upstream: Tensor
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None, None, None]:
        if ctx.ahead:
            (unscaled,) = ctx.saved_tensors
            return (unscaled * upstream[:, None]).to(unscaled.dtype), None, None, None, None
        hidden, weight, bias, targets = ctx.saved_tensors
        hidden_gradients = []
        weight_gradient = torch.zeros(weight.shape, dtype=torch.float32, device=weight.device)
        bias_gradient = torch.zeros(len(weight), dtype=torch.float32, device=weight.device)
        chunks = zip(
            torch.split(hidden, CHUNK),
            torch.split(targets, CHUNK),
            torch.split(upstream, CHUNK),
            strict=True,
        )
        for h, t, up in chunks:
            logits = _logits(h, weight, bias, ctx.softcap)
            gradient = _logits_gradient(logits, logits.log_softmax(-1), t, ctx.softcap)
            gradient = gradient.mul_(up[:, None])
            bias_gradient += gradient.sum(0)
            gradient = gradient.to(h.dtype)
            hidden_gradients.append(gradient @ weight)
            weight_gradient += gradient.T @ h
        return (
            torch.cat(hidden_gradients),
            weight_gradient.to(weight.dtype),
            None if bias is None else bias_gradient.to(bias.dtype),
            None,
            None,
        )
