"""The losses, as pure functions: tensors in, unreduced tensors out.

All but `confidence` take sums of log-probabilities over a response's tokens, in nats, as the
likelihood engine gives them. The loss of an optimizer step is the mean over its examples.
"""

from __future__ import annotations

import math

from torch import Tensor
from torch.nn.functional import logsigmoid


def dpo_margin(
    policy_chosen: Tensor,
    policy_rejected: Tensor,
    reference_chosen: Tensor,
    reference_rejected: Tensor,
    beta: float,
) -> Tensor:
    """Return the difference of implicit rewards, chosen minus rejected, `[pairs]`.

    beta * [(log pi(y+) - log ref(y+)) - (log pi(y-) - log ref(y-))], in nats times beta; all four
    arguments are sums over response tokens, `[pairs]`. Rafailov et al. 2023 (arXiv 2305.18290),
    equation 7.
    """
    chosen = policy_chosen - reference_chosen
    rejected = policy_rejected - reference_rejected
    return beta * (chosen - rejected)


def dpo(margin: Tensor) -> Tensor:
    """Return -log sigmoid(margin), `[pairs]`: the DPO loss, arXiv 2305.18290, equation 7."""
    return -logsigmoid(margin)


def confidence(logprobs: Tensor, own_logprobs: Tensor, weight: float, threshold: float) -> Tensor:
    """Return the auxiliary confidence loss per token, `[tokens]`, in nats.

    (1 - w) * -log p(weak label) + w * -log p(own hardened prediction), where w is `weight` at
    tokens that the model is sure of, p(own) >= `threshold`, and 0 elsewhere. Burns et al. 2023
    (arXiv 2312.09390, section 4.3.2 and appendix A.4), taken token by token.

    Args:
        logprobs: of the weak label's tokens, `[tokens]`.
        own_logprobs: of the model's most probable tokens, `[tokens]`.
        weight: of the model's own predictions, 0 to 1.
        threshold: a probability.
    """
    sure = (own_logprobs.detach() >= math.log(threshold)).to(logprobs.dtype) * weight
    return -(1 - sure) * logprobs - sure * own_logprobs


def sft(sum_logprobs: Tensor, tokens: Tensor) -> Tensor:
    """Return the mean negative log-likelihood per response token, `[examples]`, in nats.

    The mean is per example, as `dpo_ftx` in LLaMA-Factory 0.5.3 takes it (the authors' trainer);
    TRL averages over all tokens of the batch instead, which weighs long answers more.
    """
    return -sum_logprobs / tokens
