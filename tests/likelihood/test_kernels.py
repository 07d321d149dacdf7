"""Attention in one kernel call a layer, against the loop over groups."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.attention.flex_attention import flex_attention
from torch.nn.functional import scaled_dot_product_attention

from macpo.errors import ModelError
from macpo.likelihood import LikelihoodEngine, Pack, PromptGroup, kernels, pack_groups
from macpo.likelihood.flex import BLOCK, flex_layout
from macpo.likelihood.gathered import gathered_layout
from macpo.likelihood.kernels import FLEX, LOOP, VARLEN, Chosen, choose_attention
from macpo.likelihood.layout import TreeLayout, tree_layout
from tests.likelihood.plain import make_model

CPU = torch.device("cpu")
START = tuple(range(7))
HEADS, KV_HEADS, WIDTH = 4, 2, 8


def group(prompt: int, *completions: int) -> PromptGroup:
    """Return a group of such lengths whose prompt begins like the others'."""
    own = tuple(range(100 * prompt, 100 * prompt + prompt))
    return PromptGroup((*START, *own), tuple(tuple(range(n)) for n in completions))


def pack(*groups: PromptGroup) -> Pack:
    return Pack(groups, tuple(range(len(groups))))


PACKS = {
    "one group": pack(group(5, 9, 4)),
    "a single completion": pack(group(5, 9)),
    "completions of one token": pack(group(5, 1, 1), group(3, 1, 6)),
    "a shared start": pack(group(5, 9, 4), group(1, 2, 30, 7), group(20, 3)),
    "nothing shared": pack(group(5, 9, 4), PromptGroup((900, 901), ((1, 2), (3, 4, 5)))),
    "longer than blocks": pack(group(150, 140, 20), group(30, 100, 200)),
}


def by_sequence(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    query_ends: Tensor,
    key_ends: Tensor,
    longest_query: int,
    longest_key: int,
    scaling: float,
    window: int | None,
) -> Tensor:
    """Attend sequence after sequence: what the kernel for variable lengths is documented to do."""
    outputs = []
    queries, keys = (ends.diff().tolist() for ends in (query_ends, key_ends))
    assert (max(queries), max(keys)) == (longest_query, longest_key)
    parts = (torch.split(query, queries), torch.split(key, keys), torch.split(value, keys))
    for q, k, v in zip(*parts, strict=True):
        offset = len(k) - len(q)  # aligned bottom right
        mask = torch.ones(len(q), len(k), dtype=torch.bool).tril(offset)
        if window is not None:
            mask = mask.triu(offset - window + 1)
        heads = (t.transpose(0, 1)[None] for t in (q, k, v))
        out = scaled_dot_product_attention(*heads, attn_mask=mask, scale=scaling, enable_gqa=True)
        outputs.append(out[0].transpose(0, 1))
    return torch.cat(outputs)


def attended(layout: Any, window: int | None, softcap: float | None = None) -> list[Tensor]:
    """Return what a layer gives and its gradients, of some fixed random tensors."""
    generator = torch.Generator().manual_seed(0)
    tokens = layout.positions.shape[0]

    def draw(heads: int) -> Tensor:
        drawn = torch.randn(1, heads, tokens, WIDTH, generator=generator)
        return drawn.requires_grad_()

    tensors = [draw(HEADS), draw(KV_HEADS), draw(KV_HEADS)]
    out = layout.attend(0, *tensors, scaling=0.3, softcap=softcap, sliding_window=window)
    weights = torch.randn(out.shape, generator=generator)
    return [out.detach(), *torch.autograd.grad((out * weights).sum(), tensors)]


@pytest.mark.parametrize("window", [None, 1, 6, 10_000])
@pytest.mark.parametrize("name", PACKS)
def test_gathered_keys_give_the_loops_outputs_and_gradients(name: str, window: int | None) -> None:
    loop = tree_layout(PACKS[name], torch.float32, CPU)
    gathered = gathered_layout(PACKS[name], CPU, by_sequence)

    assert torch.equal(gathered.positions, loop.positions)
    assert (gathered.longest, gathered.shared) == (loop.longest, loop.shared)
    for ours, theirs in zip(attended(gathered, window), attended(loop, window), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    assert gathered.windows == loop.windows


def test_gathered_keys_refuse_what_the_kernel_does_not_know() -> None:
    layout = gathered_layout(PACKS["one group"], CPU, by_sequence)
    with pytest.raises(ModelError, match="cap or sinks"):
        attended(layout, None, softcap=5.0)


def dense(layout: TreeLayout, window: int | None) -> Tensor:
    """Return which token of the row sees which, as the loop has it, `[tokens, tokens]`."""
    tokens = layout.positions.shape[0]
    seen = torch.zeros(tokens, tokens, dtype=torch.bool)
    for number, ((start, length), bias) in enumerate(
        zip(layout.spans, layout._biases(window), strict=True)
    ):
        shared = layout.shared if number else 0
        rows = bias == 0
        seen[start : start + length, :shared] = rows[:, :shared]
        seen[start : start + length, start : start + length] = rows[:, shared:]
    return seen


@pytest.mark.parametrize("window", [None, 1, 6])
@pytest.mark.parametrize("name", PACKS)
def test_mask_and_blocks_are_those_of_the_tree(name: str, window: int | None) -> None:
    expected = dense(tree_layout(PACKS[name], torch.float32, CPU), window)
    mask = flex_layout(PACKS[name], CPU, flex_attention).mask(window)
    tokens = len(expected)
    places = torch.arange(tokens)
    zero = torch.zeros((), dtype=torch.int64)

    assert torch.equal(mask.mask_mod(zero, zero, places[:, None], places[None, :]), expected)
    listed = mask.to_dense()[0, 0].bool()
    pad = torch.nn.functional.pad(expected, [0, -tokens % BLOCK, 0, -tokens % BLOCK])
    needed = pad.unfold(0, BLOCK, BLOCK).unfold(1, BLOCK, BLOCK).flatten(2).any(-1)
    assert not (needed & ~listed).any()
    if window is None:
        assert torch.equal(listed, needed)


@pytest.mark.filterwarnings("ignore")  # it says at length that it was not compiled
@pytest.mark.parametrize(("window", "softcap"), [(None, None), (6, None), (None, 3.0)])
def test_flex_attention_gives_the_loops_outputs(window: int | None, softcap: float | None) -> None:
    loop = tree_layout(PACKS["a shared start"], torch.float32, CPU)
    flex = flex_layout(PACKS["a shared start"], CPU, flex_attention)
    generator = torch.Generator().manual_seed(0)
    tensors = [
        torch.randn(1, heads, len(loop.positions), WIDTH, generator=generator)
        for heads in (HEADS, KV_HEADS, KV_HEADS)
    ]
    options = {"scaling": 0.3, "softcap": softcap, "sliding_window": window}
    ours, theirs = (layout.attend(0, *tensors, **options) for layout in (flex, loop))
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    with pytest.raises(ModelError, match="sinks"):
        flex.attend(0, *tensors, **options, sinks=torch.zeros(HEADS))


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Callable[[Any], None]:
    """Return a function that puts a kernel in the place of torch's."""

    def put(other: Any) -> None:
        by = functools.partial(gathered_layout, kernel=other)
        monkeypatch.setattr(kernels, "gathered_layout", by)

    return put


@pytest.mark.parametrize("architecture", ["llama", "gpt_neox", "mistral"])
def test_models_score_and_learn_alike_by_gathered_keys(
    architecture: str, kernel: Callable[[Any], None]
) -> None:
    kernel(by_sequence)
    model = make_model(architecture)
    loop = LikelihoodEngine(model)
    assert loop.architecture.attention.name == LOOP
    found = replace(loop.architecture, attention=Chosen(VARLEN, {}))
    gathered = LikelihoodEngine(model, architecture=found)
    groups = [group(2, 5, 3), group(4, 6)]
    [one] = pack_groups(
        [PromptGroup(tuple(t % 60 + 3 for t in g.prompt), g.completions) for g in groups], 1000
    )
    results = []
    for engine in (loop, gathered):
        sums = engine.score_pack(one)
        gradients = torch.autograd.grad(sums.sum(), list(model.parameters()), allow_unused=True)
        results.append([sums.detach(), *(g for g in gradients if g is not None)])
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5)


def test_a_way_is_taken_if_a_trial_gives_the_loops_logits_and_gradients(
    kernel: Callable[[Any], None],
) -> None:
    model = make_model("llama")
    head = LikelihoodEngine(model).architecture.head_of(model)

    kernel(by_sequence)
    assert choose_attention(model, head, (VARLEN,)) == Chosen(VARLEN, {})

    def sees_all(q: Tensor, k: Tensor, v: Tensor, *rest: Any) -> Tensor:
        return by_sequence(q, k, v, *rest[:-1], 1)

    kernel(sees_all)
    chosen = choose_attention(model, head, (VARLEN,))
    assert chosen.name == LOOP
    assert chosen.refused == {VARLEN: "in a trial its logits were others than the loop's"}

    def forgets_keys(q: Tensor, k: Tensor, *rest: Any) -> Tensor:
        return by_sequence(q, k.detach(), *rest)

    kernel(forgets_keys)
    chosen = choose_attention(model, head, (VARLEN,))
    assert chosen.refused == {VARLEN: "in a trial its gradients were others than the loop's"}


def test_what_this_machine_lacks_is_refused_with_its_own_words() -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has it")
    model = make_model("llama")
    head = LikelihoodEngine(model).architecture.head_of(model)
    chosen = choose_attention(model, head, (VARLEN,))
    assert chosen.name == LOOP
    assert str(chosen).startswith("loop (not varlen: ")
    assert choose_attention(model, head) == Chosen(LOOP, {})
    assert FLEX not in chosen.refused
