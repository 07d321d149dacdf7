from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from macpo.config import SamplingConfig
from macpo.errors import ModelError
from macpo.generation import sampler
from macpo.generation.sampler import allowed_tokens, pick_tokens, uniform_draws


def warped_probs(logits: torch.Tensor, sampling: SamplingConfig) -> torch.Tensor:
    """Return the probabilities `[rows, vocabulary]` that transformers would sample from."""
    scores = TemperatureLogitsWarper(sampling.temperature)(None, logits)
    if sampling.top_k:
        scores = TopKLogitsWarper(sampling.top_k)(None, scores)
    if sampling.top_p < 1:
        scores = TopPLogitsWarper(sampling.top_p)(None, scores)
    return scores.softmax(-1)


def our_probs(logits: torch.Tensor, sampling: SamplingConfig) -> torch.Tensor:
    allowed = allowed_tokens(logits, sampling)
    return torch.zeros(logits.shape, dtype=torch.float64).scatter(1, allowed.ids, allowed.probs)


@pytest.mark.parametrize("temperature", [0.3, 0.95, 2.5])
@pytest.mark.parametrize("top_k", [0, 1, 5, 50, 5000])
@pytest.mark.parametrize("top_p", [0.01, 0.7, 0.999, 1.0])
def test_allowed_tokens_and_their_probabilities_are_those_of_transformers(
    temperature: float, top_k: int, top_p: float
) -> None:
    logits = torch.randn(8, 2000, generator=torch.Generator().manual_seed(0)) * 3
    sampling = SamplingConfig(temperature=temperature, top_k=top_k, top_p=top_p)

    ours, theirs = our_probs(logits, sampling), warped_probs(logits, sampling)

    assert torch.equal(ours > 0, theirs > 0)
    assert torch.allclose(ours, theirs.double(), atol=1e-5)


def test_top_k_keeps_every_token_that_ties_with_the_kth_as_transformers_does() -> None:
    logits = torch.full((1, 300), 2.0)
    logits[0, 7] = 3.0
    logits[0, 100:] = 1.0
    sampling = SamplingConfig(temperature=1.0, top_k=2, top_p=1.0)

    ours = our_probs(logits, sampling)

    assert torch.equal(ours > 0, warped_probs(logits, sampling) > 0)
    assert int((ours > 0).sum()) == 100


def test_top_p_prefers_lower_ids_among_tokens_that_tie() -> None:
    logits = torch.zeros(1, 8)

    allowed = our_probs(logits, SamplingConfig(temperature=1.0, top_k=0, top_p=0.5))

    assert allowed[0].tolist() == [0.25] * 4 + [0.0] * 4


def test_top_p_alone_looks_at_as_many_tokens_as_a_flat_distribution_needs() -> None:
    logits = torch.randn(2, 5000, generator=torch.Generator().manual_seed(1)) * 0.01
    sampling = SamplingConfig(temperature=1.0, top_k=0, top_p=0.9)

    ours = our_probs(logits, sampling)

    assert int((ours > 0).sum(-1).min()) > sampler.FIRST_WIDTH
    assert torch.equal(ours > 0, warped_probs(logits, sampling) > 0)


def test_draws_follow_the_probabilities() -> None:
    """50,000 draws: a share's standard error is below 0.0023, the bound is over four of them."""
    logits = torch.tensor([[2.0, 1.0, 0.0, -1.0, 0.5, -9.0]])
    sampling = SamplingConfig(temperature=1.3, top_k=5, top_p=0.95)
    draws = 50_000

    chosen = pick_tokens(logits.expand(draws, -1), sampling, uniform_draws(3, draws))

    share = np.bincount(chosen, minlength=6) / draws
    assert np.abs(share - our_probs(logits, sampling)[0].numpy()).max() < 0.01


def test_extreme_uniforms_choose_the_first_and_last_allowed_token() -> None:
    logits = torch.tensor([[0.0, 5.0, 4.0, 5.0, 0.0]] * 2)
    sampling = SamplingConfig(temperature=1.0, top_k=3, top_p=1.0)

    assert pick_tokens(logits, sampling, np.array([0.0, 1 - 2**-53])) == [1, 3]


def test_draws_ignore_the_ranks_of_tokens_that_nearly_tie() -> None:
    sampling = SamplingConfig(temperature=1.0, top_k=2, top_p=1.0)
    uniforms = uniform_draws(0, 200)
    first = torch.tensor([[1.0, 1.0 + 1e-6, -5.0]]).expand(200, -1)
    second = torch.tensor([[1.0 + 1e-6, 1.0, -5.0]]).expand(200, -1)

    assert pick_tokens(first, sampling, uniforms) == pick_tokens(second, sampling, uniforms)


def test_greedy_takes_the_largest_logit_whatever_the_uniforms() -> None:
    logits = torch.tensor([[0.0, 3.0, 1.0], [9.0, 3.0, 1.0]])

    assert pick_tokens(logits, SamplingConfig(temperature=0), np.array([0.99, 0.99])) == [1, 0]


@pytest.mark.parametrize("temperature", [0, 0.7])
def test_logits_that_are_not_finite_are_refused(temperature: float) -> None:
    logits = torch.tensor([[0.0, 1.0], [float("nan"), 1.0]])

    with pytest.raises(ModelError, match=r"logits are not finite; .* set dtype: float32"):
        pick_tokens(logits, SamplingConfig(temperature=temperature), np.array([0.5, 0.5]))


def test_uniform_draws_are_pinned_and_a_shorter_series_is_the_start_of_a_longer_one() -> None:
    draws = uniform_draws(2**62 + 1, 1000)

    assert draws.dtype == np.float64
    assert draws.min() >= 0
    assert draws.max() < 1
    assert abs(draws.mean() - 0.5) < 0.05  # standard error 0.009
    assert np.array_equal(draws[:10], uniform_draws(2**62 + 1, 10))
    assert not np.array_equal(draws[:10], uniform_draws(2**62 + 2, 10))
    assert uniform_draws(0, 2).tolist() == [0.011546754286331562, 0.24154919656271812]
