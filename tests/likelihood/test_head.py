"""The LM head in chunks: values and gradients against log_softmax in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from macpo.likelihood import head
from macpo.likelihood.head import CHUNK, token_logprobs

WIDTH, VOCABULARY = 16, 50
LENGTHS = (1, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK + 3)
CAPS = (None, 2.5)


def inputs(positions: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return hidden states, a head with logits of several nats, targets, upstream gradients."""
    generator = torch.Generator().manual_seed(positions)
    hidden = torch.randn(positions, WIDTH, generator=generator)
    weight = torch.randn(VOCABULARY, WIDTH, generator=generator)
    targets = torch.randint(VOCABULARY, (positions,), generator=generator)
    return hidden, weight, targets, torch.randn(positions, generator=generator)


def expected(hidden: Tensor, weight: Tensor, targets: Tensor, softcap: float | None) -> Tensor:
    logits = hidden @ weight.T
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    return logits.log_softmax(-1).gather(1, targets[:, None])[:, 0]


@pytest.mark.parametrize("softcap", CAPS)
@pytest.mark.parametrize("positions", LENGTHS)
def test_values_are_those_of_log_softmax(positions: int, softcap: float | None) -> None:
    hidden, weight, targets, _ = inputs(positions)
    ours = token_logprobs(hidden, weight, targets, softcap)
    theirs = expected(hidden.double(), weight.double(), targets, softcap)
    assert ours.dtype == torch.float32
    assert ours.shape == (positions,)
    assert torch.allclose(ours.double(), theirs, rtol=0, atol=2e-5)


@pytest.mark.parametrize("softcap", CAPS)
@pytest.mark.parametrize("positions", LENGTHS)
@pytest.mark.parametrize(
    ("hidden_trains", "head_trains"), [(True, False), (True, True), (False, True)]
)
def test_gradients_are_those_of_log_softmax(
    positions: int, softcap: float | None, hidden_trains: bool, head_trains: bool
) -> None:
    hidden, weight, targets, upstream = inputs(positions)
    ours = [hidden.clone(), weight.clone()]
    theirs = [hidden.double(), weight.double()]
    for tensors in (ours, theirs):
        tensors[0].requires_grad_(hidden_trains)
        tensors[1].requires_grad_(head_trains)
    token_logprobs(*ours, targets, softcap).backward(upstream)
    expected(*theirs, targets, softcap).backward(upstream.double())
    for mine, other in zip(ours, theirs, strict=True):
        if not other.requires_grad:
            assert mine.grad is None
            continue
        assert mine.grad is not None
        assert other.grad is not None
        assert torch.allclose(mine.grad.double(), other.grad, rtol=1e-4, atol=1e-4)


def test_softcap_changes_the_numbers() -> None:
    hidden, weight, targets, _ = inputs(10)
    capped = token_logprobs(hidden, weight, targets, 2.5)
    assert not torch.allclose(capped, token_logprobs(hidden, weight, targets), atol=0.1)


def test_gradients_keep_the_dtype_of_hidden_states_and_head() -> None:
    hidden, weight, targets, upstream = inputs(CHUNK + 1)
    exact = hidden.clone().requires_grad_()
    token_logprobs(exact, weight, targets).backward(upstream)
    for head_trains in (False, True):
        h = hidden.bfloat16().requires_grad_()
        w = weight.bfloat16().requires_grad_(head_trains)
        logprobs = token_logprobs(h, w, targets)
        logprobs.backward(upstream)
        assert logprobs.dtype == torch.float32
        assert h.grad is not None
        assert exact.grad is not None
        assert h.grad.dtype == torch.bfloat16
        similarity = torch.cosine_similarity(h.grad.float().ravel(), exact.grad.ravel(), dim=0)
        assert similarity > 0.999
        assert w.grad is None if not head_trains else w.grad.dtype == torch.bfloat16


def test_logits_exist_one_chunk_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    rows: list[int] = []
    plain = head.head_logits

    def counted(hidden: Tensor, weight: Tensor, softcap: float | None) -> Tensor:
        rows.append(len(hidden))
        return plain(hidden, weight, softcap)

    monkeypatch.setattr(head, "head_logits", counted)
    hidden, weight, targets, _ = inputs(2 * CHUNK + 3)
    logprobs = token_logprobs(hidden.requires_grad_(), weight, targets)
    assert rows == [CHUNK, CHUNK, 3]
    logprobs.sum().backward()  # a frozen head needs no logits again
    assert rows == [CHUNK, CHUNK, 3]
    token_logprobs(hidden, weight.requires_grad_(), targets).sum().backward()
    assert rows == [CHUNK, CHUNK, 3] * 3
