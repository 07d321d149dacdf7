"""Choosing the next token: greedy, or temperature, then top-k, then top-p, then one draw.

The set of allowed tokens is that of transformers' warpers in the same order. The draw inverts the
cumulative distribution over the allowed tokens, taken by rising token id, at a uniform number that
belongs to this prompt and this position: an answer depends on its own seed and logits, never on its
neighbours in the batch, and two tokens that nearly tie do not change the draw by changing ranks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from macpo.config import SamplingConfig
from macpo.errors import ModelError

if TYPE_CHECKING:
    from torch import Tensor

TIE_ROOM = 16  # candidates looked at beyond the top-k, to see all that tie with the k-th
FIRST_WIDTH = 256  # candidates looked at first when only top-p limits them


def uniform_draws(seed: int, count: int) -> np.ndarray:
    """Return the `count` uniform numbers in [0, 1) (float64) that belong to `seed`.

    Made from the raw 64-bit output of the counter-based generator Philox, whose stream is fixed
    for all NumPy versions.
    """
    raw: np.ndarray = np.random.Philox(key=seed).random_raw(count)
    return np.asarray((raw >> np.uint64(11)) * 2.0**-53)


@dataclass(frozen=True, slots=True)
class Allowed:
    """The tokens that may come next, one row per sequence.

    `ids` `[rows, candidates]` (int64) rise along each row; `probs` `[rows, candidates]` (float64)
    sum to one, and are zero where a candidate is not allowed.
    """

    ids: Tensor
    probs: Tensor


def pick_tokens(logits: Tensor, sampling: SamplingConfig, uniforms: np.ndarray) -> list[int]:
    """Choose one token per row.

    Args:
        logits: `[rows, vocabulary]`, any floating dtype.
        sampling: `temperature: 0` is greedy, and then `uniforms` is not looked at.
        uniforms: `[rows]` in [0, 1).

    Raises:
        ModelError: a row of logits holds a NaN, or nothing but infinities.
    """
    if sampling.temperature == 0:
        scores = logits.float()  # on CPU, argmax of bfloat16 takes 5 times as long
        best = scores.argmax(dim=-1)  # a NaN counts as largest here
        _require_finite(scores.gather(1, best[:, None]))
        return [int(token) for token in best.tolist()]
    allowed = allowed_tokens(logits, sampling)
    cumulative = allowed.probs.cumsum(dim=-1)
    _require_finite(cumulative[:, -1:])
    cumulative = cumulative / cumulative[:, -1:]  # ends in exactly 1, above every uniform
    draws = torch.from_numpy(np.ascontiguousarray(uniforms)).to(cumulative.device)
    place = torch.searchsorted(cumulative, draws[:, None], right=True)
    return [int(token) for token in allowed.ids.gather(1, place)[:, 0].tolist()]


def allowed_tokens(logits: Tensor, sampling: SamplingConfig) -> Allowed:
    """Apply temperature, top-k and top-p (temperature > 0).

    Top-k keeps every token that ties with the k-th, as transformers does. Top-p keeps the most
    probable tokens whose mass before them is below `top_p`; of tokens that tie at its edge those
    with lower ids come first (transformers leaves that open).
    """
    scores = logits.float() / sampling.temperature
    values, ids, log_total = _candidates(scores, sampling.top_k, sampling.top_p)
    probs = (values.double() - log_total).exp()
    if sampling.top_p < 1:
        order = probs.argsort(dim=-1, descending=True, stable=True)
        falling = probs.gather(1, order)
        mass_before = falling.cumsum(dim=-1) - falling
        kept = falling.masked_fill(mass_before >= sampling.top_p, 0.0)
        probs = torch.zeros_like(probs).scatter(1, order, kept)
    return Allowed(ids, probs / probs.sum(dim=-1, keepdim=True))


def _candidates(scores: Tensor, top_k: int, top_p: float) -> tuple[Tensor, Tensor, Tensor]:
    """Return a superset of the allowed tokens, small where top-k or top-p makes it so.

    Returns:
        values: `[rows, candidates]` (float32), minus infinity for what top-k excludes.
        ids: `[rows, candidates]`, rising along each row.
        log_total: `[rows, 1]` (float64), log of the sum of exponentials that top-p refers to.
    """
    vocabulary = scores.shape[-1]
    if 0 < top_k < vocabulary:
        values, ids = _top(scores, top_k)
        values = values.masked_fill(values < values[:, top_k - 1 : top_k], -torch.inf)
        log_total = values.double().logsumexp(dim=-1, keepdim=True)
    elif top_p < 1:
        log_total = scores.double().logsumexp(dim=-1, keepdim=True)
        values, ids = _nucleus(scores, top_p, log_total)
    else:
        ids = torch.arange(vocabulary, device=scores.device).expand_as(scores)
        return scores, ids, scores.double().logsumexp(dim=-1, keepdim=True)
    ids, order = ids.sort(dim=-1)
    return values.gather(1, order), ids, log_total


def _top(scores: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return the `count` best of each row and all that tie with the last, best first."""
    vocabulary = scores.shape[-1]
    width = min(count + TIE_ROOM, vocabulary)
    while True:
        values, ids = scores.topk(width, dim=-1)
        if width == vocabulary or bool((values[:, -1] < values[:, count - 1]).all()):
            return values, ids
        width = min(2 * width, vocabulary)


def _nucleus(scores: Tensor, top_p: float, log_total: Tensor) -> tuple[Tensor, Tensor]:
    """Return enough of each row's best tokens that those left out are beyond `top_p`.

    The last candidate must itself be excluded by a clear margin, so that no token that ties with
    an allowed one is left out.
    """
    vocabulary = scores.shape[-1]
    width = min(FIRST_WIDTH, vocabulary)
    while True:
        values, ids = scores.topk(width, dim=-1)
        above_last = values > values[:, -1:]
        mass = (values.double() - log_total).exp().masked_fill(~above_last, 0.0).sum(dim=-1)
        if width == vocabulary or bool((mass >= top_p).all()):
            return values, ids
        width = min(4 * width, vocabulary)


def _require_finite(values: Tensor) -> None:
    if not bool(torch.isfinite(values).all()):
        raise ModelError(
            "the model's logits are not finite; its weights are damaged or overflow in this dtype: "
            "check the checkpoint, or set dtype: float32"
        )
