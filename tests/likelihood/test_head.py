"""The LM head in chunks: values and gradients against log_softmax in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from macpo.likelihood import head
from macpo.likelihood.head import CHUNK, Head, most_probable_tokens, token_logprobs

WIDTH, VOCABULARY = 16, 50
LENGTHS = (1, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK + 3)
CAPS = (None, 2.5)
SCALE = 0.25


def inputs(positions: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return hidden states, a head with logits of several nats, targets, upstream gradients."""
    generator = torch.Generator().manual_seed(positions)
    hidden = torch.randn(positions, WIDTH, generator=generator)
    weight = torch.randn(VOCABULARY, WIDTH, generator=generator)
    targets = torch.randint(VOCABULARY, (positions,), generator=generator)
    return hidden, weight, targets, torch.randn(positions, generator=generator)


def some_bias() -> Tensor:
    return 2 * torch.randn(VOCABULARY, generator=torch.Generator().manual_seed(7))


def expected(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    softcap: float | None,
    bias: Tensor | None = None,
    scale: float = 1.0,
) -> Tensor:
    logits = scale * (hidden @ weight.T) + (0 if bias is None else bias)
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    return logits.log_softmax(-1).gather(1, targets[:, None])[:, 0]


@pytest.mark.parametrize("scale", [1.0, SCALE])
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("softcap", CAPS)
@pytest.mark.parametrize("positions", LENGTHS)
def test_values_are_those_of_log_softmax(
    positions: int, softcap: float | None, biased: bool, scale: float
) -> None:
    hidden, weight, targets, _ = inputs(positions)
    bias = some_bias() if biased else None
    ours = token_logprobs(hidden, Head(weight, bias, scale, softcap), targets)
    theirs = expected(hidden.double(), weight.double(), targets, softcap, bias, scale)
    assert ours.dtype == torch.float32
    assert ours.shape == (positions,)
    assert torch.allclose(ours.double(), theirs, rtol=0, atol=2e-5)


@pytest.mark.parametrize("softcap", CAPS)
@pytest.mark.parametrize("positions", LENGTHS)
@pytest.mark.parametrize(
    ("hidden_trains", "head_trains"), [(True, False), (True, True), (False, True)]
)
@pytest.mark.parametrize(("biased", "scale"), [(False, 1.0), (True, SCALE)])
def test_gradients_are_those_of_log_softmax(
    positions: int,
    softcap: float | None,
    hidden_trains: bool,
    head_trains: bool,
    biased: bool,
    scale: float,
) -> None:
    hidden, weight, targets, upstream = inputs(positions)
    ours = [hidden.clone(), weight.clone(), some_bias()]
    theirs = [hidden.double(), weight.double(), some_bias().double()]
    for tensors in (ours, theirs):
        tensors[0].requires_grad_(hidden_trains)
        tensors[1].requires_grad_(head_trains)
        tensors[2].requires_grad_(head_trains and biased)
    head = Head(ours[1], ours[2] if biased else None, scale, softcap)
    token_logprobs(ours[0], head, targets).backward(upstream)
    bias = theirs[2] if biased else None
    expected(*theirs[:2], targets, softcap, bias, scale).backward(upstream.double())
    for mine, other in zip(ours, theirs, strict=True):
        if not other.requires_grad:
            assert mine.grad is None
            continue
        assert mine.grad is not None
        assert other.grad is not None
        assert torch.allclose(mine.grad.double(), other.grad, rtol=1e-4, atol=1e-4)


def test_softcap_changes_the_numbers() -> None:
    hidden, weight, targets, _ = inputs(10)
    capped = token_logprobs(hidden, Head(weight, softcap=2.5), targets)
    plain = token_logprobs(hidden, Head(weight), targets)
    assert not torch.allclose(capped, plain, atol=0.1)


def test_gradients_keep_the_dtype_of_hidden_states_and_head() -> None:
    hidden, weight, targets, upstream = inputs(CHUNK + 1)
    exact = hidden.clone().requires_grad_()
    token_logprobs(exact, Head(weight), targets).backward(upstream)
    for head_trains in (False, True):
        h = hidden.bfloat16().requires_grad_()
        w = weight.bfloat16().requires_grad_(head_trains)
        logprobs = token_logprobs(h, Head(w), targets)
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
    plain = head._logits

    def counted(hidden: Tensor, *rest: Tensor | float | None) -> Tensor:
        rows.append(len(hidden))
        return plain(hidden, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(head, "_logits", counted)
    hidden, weight, targets, _ = inputs(2 * CHUNK + 3)
    logprobs = token_logprobs(hidden.requires_grad_(), Head(weight), targets)
    assert rows == [CHUNK, CHUNK, 3]
    logprobs.sum().backward()  # a frozen head needs no logits again
    assert rows == [CHUNK, CHUNK, 3]
    token_logprobs(hidden, Head(weight.requires_grad_()), targets).sum().backward()
    assert rows == [CHUNK, CHUNK, 3] * 3


def test_most_probable_tokens_are_those_of_the_biased_logits() -> None:
    hidden, weight, _, _ = inputs(CHUNK + 3)
    bias = some_bias()
    found = most_probable_tokens(hidden, Head(weight, bias, SCALE, 2.5))
    assert torch.equal(found, (SCALE * hidden @ weight.T + bias).argmax(-1))
    assert not torch.equal(found, most_probable_tokens(hidden, Head(weight)))
