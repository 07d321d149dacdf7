"""The losses, as pure functions: tensors in, unreduced tensors out.

All but `confidence` take sums of log-probabilities over a response's tokens, in nats, as the
likelihood engine gives them, or log-ratios made of these: log pi(y) - log ref(y), policy against
reference. The loss of an optimizer step is the mean over its examples.
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


def dpo(margin: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Return the DPO loss of margins in nats times beta, `[pairs]`.

    (1 - e) * -log sigmoid(m) + e * -log sigmoid(-m), where e is `label_smoothing`, the share of
    pairs that are taken to be labelled the wrong way round. With e = 0 this is arXiv 2305.18290,
    equation 7, which falls for ever as the margin grows; else it is conservative DPO (Mitchell
    2023, "A note on DPO with noisy preferences", equation 3), least where m = log((1 - e) / e).
    """
    return -(1 - label_smoothing) * logsigmoid(margin) - label_smoothing * logsigmoid(-margin)


def ipo(chosen_logratio: Tensor, rejected_logratio: Tensor, beta: float) -> Tensor:
    """Return the IPO loss, `[pairs]`, in nats squared.

    (h - 1 / (2 beta))^2 with h the difference of the log-ratios, chosen minus rejected: the loss
    asks for a certain difference and no more. Azar et al. 2023 (arXiv 2310.12036), equation 17,
    where beta is called tau.

    Args:
        chosen_logratio: log pi(y+) - log ref(y+), `[pairs]`: sums over response tokens as in the
            paper, or means as in TRL, whose target is then per token.
        rejected_logratio: likewise of y-.
        beta: the larger, the smaller the difference that is asked for.
    """
    return (chosen_logratio - rejected_logratio - 1 / (2 * beta)) ** 2


def sppo(chosen_logratio: Tensor, rejected_logratio: Tensor, beta: float) -> Tensor:
    """Return the SPPO loss, `[pairs]`, in nats squared.

    (c - 1 / (2 beta))^2 + (r + 1 / (2 beta))^2 with c and r the log-ratios of chosen and rejected,
    sums over response tokens, `[pairs]`: each has a target of its own. Wu et al. 2024 (arXiv
    2405.00675), equation 4.7 with eta = 1 / beta and the probability of a win taken as 1 or 0, as
    pairs say no more.
    """
    target = 1 / (2 * beta)
    return (chosen_logratio - target) ** 2 + (rejected_logratio + target) ** 2


def apo_zero(chosen_logratio: Tensor, rejected_logratio: Tensor, beta: float) -> Tensor:
    """Return the APO-zero loss, `[pairs]`, between 0 and 2.

    1 - sigmoid(beta c) + sigmoid(beta r) with c and r the log-ratios of chosen and rejected, sums
    over response tokens, `[pairs]`: for chosen answers that are better than the policy's own.
    D'Oosterlinck et al. 2024 (arXiv 2408.06266), equation 7.
    """
    return 1 - (beta * chosen_logratio).sigmoid() + (beta * rejected_logratio).sigmoid()


def apo_down(chosen_logratio: Tensor, rejected_logratio: Tensor, beta: float) -> Tensor:
    """Return the APO-down loss, `[pairs]`, between 0 and 2.

    sigmoid(beta c) + 1 - sigmoid(beta (c - r)), as `apo_zero` writes them: for chosen answers that
    are worse than the policy's own, both fall, the rejected further. arXiv 2408.06266, equation 8.
    """
    margin = beta * (chosen_logratio - rejected_logratio)
    return (beta * chosen_logratio).sigmoid() + 1 - margin.sigmoid()


def pair_confidence(chosen_reward: Tensor, rejected_reward: Tensor) -> Tensor:
    """Return how sure a judge is that chosen answers are the better ones, `[pairs]`, 0 to 1.

    2 (sigmoid(r(y+) - r(y-)) - 1/2): 0 where its rewards of both are equal, near 1 where they are
    far apart. Afzali et al. 2026 (arXiv 2603.04968), equation 8.
    """
    return 2 * ((chosen_reward - rejected_reward).sigmoid() - 0.5)


def log_ratio_error(logratio: Tensor, target: Tensor, gamma: float, tokens: Tensor) -> Tensor:
    """Return the WSPO loss, `[examples]`, in nats squared per token.

    (gamma (log pi(y) - log ref(y)) - t)^2 / n, where t is the log-ratio of a weak model after its
    alignment to the same before, and n the length: the student's log-ratio is to be 1 / gamma times
    the weak model's. Zhu et al. 2024 (arXiv 2410.18640, section 3), whose released trainer squares
    token by token and then divides by the length. Here both log-ratios are sums over the response,
    since the tokens of student and weak model may differ.

    Args:
        logratio: log pi(y) - log ref(y) of the student, `[examples]`.
        target: log pi_r(y) - log pi_ref(y) of the weak model, `[examples]`.
        gamma: the smaller, the further the student goes.
        tokens: lengths of the responses in the student's tokens, `[examples]`.
    """
    return (gamma * logratio - target) ** 2 / tokens


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
