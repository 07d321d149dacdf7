"""Hybrids with recurrent layers: completions go on from copies of their prompt's state."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from macpo.likelihood import LikelihoodEngine, PromptGroup, engine
from macpo.likelihood.architecture import inspect_architecture
from macpo.likelihood.branched import PromptState
from macpo.likelihood.branching import Branching
from tests.likelihood.plain import (
    completions_of,
    make_model,
    plain_sums,
    starting_alike,
    with_adapter,
)
from tests.sweep.families import tiny_config, tiny_model

NATS = 1e-3  # of rounding in a sum over dozens of tokens

BRANCHED = (
    "qwen3_next",
    "qwen3_5_text",
    "olmo_hybrid",
    "bamba",
    "mamba2",
    "granitemoehybrid",
    "nemotron_h",
    "falcon_h1",
    "zamba2",
    "lfm2",
    "bloom",
    "falcon",
)
"""Families that no tree is right for and whose cache can be branched."""


def sequence(start: int, length: int) -> tuple[int, ...]:
    return tuple(2 + (37 * (start + i) * (start + 3) + 11 * i) % 500 for i in range(length))


GROUPS = starting_alike(
    sequence(90, 3),
    [
        (sequence(1, 2), (sequence(2, 6), sequence(3, 1), sequence(4, 21))),
        (sequence(5, 17), (sequence(6, 20), sequence(7, 2))),
        (sequence(8, 9), (sequence(9, 5),)),
        (sequence(10, 1), (sequence(11, 1), sequence(12, 1))),
    ],
)


def hybrid(family: str) -> Any:
    """Return a tiny model of a family; its scans work in chunks shorter than our sequences."""
    config = tiny_config(family)
    for name in ("chunk_size", "mamba_chunk_size"):
        if hasattr(config, name):
            setattr(config, name, 8)
    if family == "lfm2":
        config.layer_types = ["conv", "full_attention"] * 2
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()


@functools.cache
def scorer_of(family: str) -> LikelihoodEngine:
    return LikelihoodEngine(hybrid(family).requires_grad_(False), pack_tokens=64)


@pytest.fixture
def paths(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """List how packs are forwarded, one after the other."""
    taken: list[str] = []

    def counted(name: str, forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def call(*arguments: Any) -> Tensor:
            taken.append(name)
            return forward(*arguments)

        return call

    forwards = {"tree": "forward_tree", "branched": "branched_hidden", "padded": "padded_hidden"}
    for name, function in forwards.items():
        monkeypatch.setattr(engine, function, counted(name, getattr(engine, function)))
    return taken


def summed(scorer: LikelihoodEngine, groups: Sequence[PromptGroup]) -> Tensor:
    """Return all sums with gradients, in the order of the groups."""
    sums: dict[int, Tensor] = {}
    for pack in scorer.packs(groups):
        parts = torch.split(scorer.score_pack(pack), [len(g.completions) for g in pack.groups])
        sums.update(zip(pack.indices, parts, strict=True))
    return torch.cat([sums[i] for i in range(len(groups))])


@pytest.mark.parametrize("family", BRANCHED)
def test_scores_from_copies_of_a_state_are_those_of_plain_forwards(
    family: str, paths: list[str]
) -> None:
    scorer = scorer_of(family)
    assert scorer.architecture.branching == Branching(equal=False, trains=True)
    scores = scorer.score(GROUPS)
    with torch.no_grad():
        expected = torch.cat(plain_sums(scorer.model, GROUPS))
    assert (completions_of(scores) - expected).abs().max() < NATS
    assert set(paths) == {"branched"}


@pytest.mark.parametrize("family", ["qwen3_5_text", "bamba", "lfm2", "falcon"])
def test_gradients_through_a_state_are_those_of_plain_forwards(
    family: str, paths: list[str]
) -> None:
    model = with_adapter(hybrid(family).requires_grad_(False))
    scorer = LikelihoodEngine(model, pack_tokens=64)
    trains = [p for p in model.parameters() if p.requires_grad]
    weights = torch.arange(1.0, 9.0)
    ours = torch.autograd.grad((summed(scorer, GROUPS) * weights).sum(), trains)
    assert set(paths) == {"branched"}
    plain = torch.cat(plain_sums(model, GROUPS))
    theirs = torch.autograd.grad((plain * weights).sum(), trains)
    largest = max(float(gradient.abs().max()) for gradient in theirs)
    for mine, other in zip(ours, theirs, strict=True):
        assert (mine - other).abs().max() < 1e-4 * largest


def test_recurrent_model_without_a_cache_trains_in_padded_rows(paths: list[str]) -> None:
    model = with_adapter(hybrid("rwkv").requires_grad_(False), ["key", "value", "receptance"])
    scorer = LikelihoodEngine(model, pack_tokens=64)
    trains = [p for p in model.parameters() if p.requires_grad]
    ours = torch.autograd.grad(summed(scorer, GROUPS).sum(), trains)
    theirs = torch.autograd.grad(torch.cat(plain_sums(model, GROUPS)).sum(), trains)
    assert set(paths) == {"padded"}
    largest = max(float(gradient.abs().max()) for gradient in theirs)
    for mine, other in zip(ours, theirs, strict=True):
        assert (mine - other).abs().max() < 1e-4 * largest


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", ["mamba", "jamba", "zamba", "recurrent_gemma"])
def test_state_that_is_not_read_or_lies_elsewhere_is_not_branched(
    family: str, dtype: torch.dtype
) -> None:
    """Mamba's scan begins anew with every pass; RecurrentGemma keeps its state in the module."""
    assert inspect_architecture(hybrid(family).to(dtype)).branching is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rounding_does_not_hide_that_a_state_can_be_branched(dtype: torch.dtype) -> None:
    found = inspect_architecture(hybrid("qwen3_next").to(dtype)).branching
    assert found == Branching(equal=False, trains=True)


def test_family_that_padding_confuses_shares_passes_of_equal_prompts_only() -> None:
    scorer = LikelihoodEngine(tiny_model("git").requires_grad_(False), pack_tokens=400)
    assert scorer.architecture.branching == Branching(equal=True, trains=True)
    with torch.no_grad():
        expected = torch.cat(plain_sums(scorer.model, GROUPS))
    assert (completions_of(scorer.score(GROUPS)) - expected).abs().max() < NATS


def test_sequences_longer_than_a_window_of_the_cache_are_padded(paths: list[str]) -> None:
    scorer = LikelihoodEngine(tiny_model("lfm3").requires_grad_(False), pack_tokens=1)
    assert scorer.architecture.branching == Branching(equal=False, trains=True, limit=16)
    fits, exceeds = ((sequence(2, n), sequence(3, 2)) for n in (12, 13))
    groups = [PromptGroup(sequence(1, 4), fits), PromptGroup(sequence(1, 4), exceeds)]
    with torch.no_grad():
        expected = torch.cat(plain_sums(scorer.model, groups))
    assert (completions_of(scorer.score(groups)) - expected).abs().max() < NATS
    assert paths == ["branched", "padded"]


def test_layers_that_select_tokens_are_not_branched() -> None:
    """What they select beyond their limit is no matter of a few tokens."""
    assert inspect_architecture(tiny_model("deepseek_v32")).branching is None


def test_prompts_with_one_completion_each_are_padded(paths: list[str]) -> None:
    """There is nothing to share, and two passes cost more than one."""
    groups = [PromptGroup(g.prompt, g.completions[:1]) for g in GROUPS]
    scorer_of("lfm2").score(groups)
    assert set(paths) == {"padded"}


def test_state_without_right_gradients_is_for_scoring_alone(
    monkeypatch: pytest.MonkeyPatch, paths: list[str]
) -> None:
    kept = PromptState.update_recurrent_state
    monkeypatch.setattr(
        PromptState,
        "update_recurrent_state",
        lambda self, state, *rest, **more: kept(self, state.detach(), *rest, **more),
    )
    scorer = LikelihoodEngine(hybrid("qwen3_next"), pack_tokens=64)
    assert scorer.architecture.branching == Branching(equal=False, trains=False)
    assert scorer.architecture.instead_of_trees == (
        "copies of each prompt's state, in training padded rows"
    )
    scorer.score(GROUPS)
    assert set(paths) == {"branched"}
    paths.clear()
    summed(scorer, GROUPS)
    assert set(paths) == {"padded"}


def test_tokens_that_rows_read_count_a_prompt_for_every_completion() -> None:
    groups = [PromptGroup(sequence(1, 10), (sequence(2, 4), sequence(3, 3)))]
    padded = LikelihoodEngine(make_model("mamba"))
    for gradients in (False, True):
        assert padded.tokens_read(groups, gradients=gradients) == 10 + 3 + 10 + 2
        for shared in (scorer_of("lfm2"), LikelihoodEngine(make_model("llama"))):
            assert shared.tokens_read(groups, gradients=gradients) == 10 + 3 + 2
    scoring = replace(scorer_of("lfm2").architecture, branching=Branching(False, trains=False))
    half = LikelihoodEngine(scorer_of("lfm2").model, architecture=scoring)
    assert [half.tokens_read(groups, gradients=g) for g in (False, True)] == [15, 25]
