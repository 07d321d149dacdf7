"""The engine against one plain forward per sequence: same numbers, whatever the packing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from macpo.likelihood import LikelihoodEngine, PromptGroup, engine, layout
from macpo.records import CompletionScore
from tests.likelihood.plain import (
    SCALED,
    SINKS,
    TREES,
    completions_of,
    group_lists,
    make_model,
    plain_sums,
    shared_engine,
    starting_alike,
    with_adapter,
)

NATS = 5e-4  # of rounding in a sum over a dozen tokens; a wrong mask costs tenths of nats

GROUPS = [
    PromptGroup((5, 9, 1, 0, 44), ((17, 3, 3, 250), (1,), (8, 0, 0))),
    PromptGroup((2,), ((499, 12), (11, 12, 13, 14, 15, 16, 17, 18))),
    PromptGroup((5, 9, 1, 0, 44, 31, 32), ((6,),)),
    PromptGroup((1, 1), ((1, 1, 1), (1, 0, 1))),
]

START = (60, 61, 62, 63, 64)
ALIKE = starting_alike(START, [(group.prompt, group.completions) for group in GROUPS])
"""As above, with a system prompt before each: it is forwarded once."""


@pytest.fixture
def paths(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """Count the forward passes as trees of branches and as padded rows."""
    counts = {"tree": 0, "padded": 0}

    def counted(name: str, forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def call(*arguments: Any) -> Tensor:
            counts[name] += 1
            return forward(*arguments)

        return call

    monkeypatch.setattr(engine, "forward_tree", counted("tree", engine.forward_tree))
    monkeypatch.setattr(engine, "padded_hidden", counted("padded", engine.padded_hidden))
    return counts


def with_budget(name: str, pack_tokens: int, **overrides: Any) -> LikelihoodEngine:
    """Return an engine over a shared model with a pack budget of its own."""
    found = shared_engine(name, **overrides)
    return LikelihoodEngine(found.model, pack_tokens=pack_tokens, architecture=found.architecture)


def assert_scores_are_plain(scorer: LikelihoodEngine, groups: list[PromptGroup]) -> None:
    scores = scorer.score(groups)
    with torch.no_grad():
        expected = torch.cat(plain_sums(scorer.model, groups))
    assert (completions_of(scores) - expected).abs().max() < NATS
    lengths = [[score.tokens for score in of_group] for of_group in scores]
    assert lengths == [[len(c) for c in group.completions] for group in groups]


@pytest.mark.parametrize("name", [*TREES, *SCALED])
def test_tree_scores_are_those_of_plain_forwards(name: str, paths: dict[str, int]) -> None:
    assert_scores_are_plain(with_budget(name, 2048), GROUPS)
    assert paths == {"tree": 1, "padded": 0}


@settings(max_examples=25, deadline=None)
@given(st.sampled_from(TREES), group_lists(), st.integers(1, 150))
def test_any_groups_in_any_packs_score_as_plain_forwards(
    name: str, groups: list[PromptGroup], pack_tokens: int
) -> None:
    assert_scores_are_plain(with_budget(name, pack_tokens), groups)


@settings(max_examples=10, deadline=None)
@given(st.sampled_from(("mamba", "jamba", "bloom", "llama4")), group_lists(8), st.integers(1, 99))
def test_fallback_scores_any_groups_as_plain_forwards(
    name: str, groups: list[PromptGroup], pack_tokens: int
) -> None:
    assert_scores_are_plain(with_budget(name, pack_tokens), groups)


@pytest.mark.parametrize("pack_tokens", [1, 9, 20, 10_000])
def test_packing_does_not_show(pack_tokens: int) -> None:
    alone = [with_budget("llama", 1).score([group])[0] for group in GROUPS]
    together = with_budget("llama", pack_tokens).score(GROUPS)
    assert (completions_of(together) - completions_of(alone)).abs().max() < NATS


def test_completions_do_not_see_one_another() -> None:
    """A completion's score is the same beside other completions, other groups, or alone."""
    prompt, completion = (5, 9, 1), (17, 3, 250)
    alone = PromptGroup(prompt, (completion,))
    beside = PromptGroup(prompt, ((400, 401, 402), completion, (17, 3, 251)))
    scorer = shared_engine("llama")
    [[lone]] = scorer.score([alone])
    _, crowd, _ = scorer.score([GROUPS[0], beside, GROUPS[1]])
    assert crowd[1].sum_logprob == pytest.approx(lone.sum_logprob, abs=NATS)
    assert crowd[0].sum_logprob != pytest.approx(crowd[2].sum_logprob, abs=0.1)


def test_the_last_token_of_the_prompt_and_its_order_count() -> None:
    """What the numbers must depend on: a test of the tests above, whose models could be deaf."""
    scorer = shared_engine("llama")
    groups = [PromptGroup(prompt, ((17, 3),)) for prompt in ((5, 9, 1), (9, 5, 1), (5, 9, 2))]
    first, swapped, other = (of_group[0].sum_logprob for of_group in scorer.score(groups))
    assert abs(first - swapped) > 0.01
    assert abs(first - other) > 0.1


@pytest.mark.parametrize(("longest", "path"), [(12, "tree"), (13, "padded")])
def test_trees_stop_at_a_sliding_window_that_attention_is_not_told(
    longest: int, path: str, paths: dict[str, int]
) -> None:
    """With a window of 12, a row of 12 tokens is seen whole and one of 13 is not."""
    groups = [PromptGroup((5, 9, 1, 0), (tuple(range(2, longest - 2)), (7, 8)))]
    assert_scores_are_plain(with_budget("phimoe", 2048, sliding_window=12), groups)
    assert paths[path] == 1
    assert sum(paths.values()) == 1


WINDOWED = ("mistral", "gemma2", *SINKS)


@pytest.mark.parametrize("name", WINDOWED)
@pytest.mark.parametrize("window", [1, 2, 5, 7, 12, 13])
@pytest.mark.parametrize("block", [3, 128])
def test_trees_honour_windows_by_position_in_the_branch(
    name: str, window: int, block: int, paths: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    scorer = with_budget(name, 2048, sliding_window=window)
    monkeypatch.setattr(layout, "QUERY_BLOCK", block)
    assert_scores_are_plain(scorer, ALIKE)
    assert_scores_are_plain(scorer, GROUPS)
    assert paths == {"tree": 2, "padded": 0}


def test_windows_go_through_sdpa_with_the_same_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    scorer = with_budget("mistral", 2048, sliding_window=5)
    monkeypatch.setattr(layout, "EXPLICIT_LENGTH", 0)
    assert_scores_are_plain(scorer, ALIKE)


@pytest.mark.parametrize("name", WINDOWED)
def test_adapter_gradients_through_windows(name: str) -> None:
    model = make_model(name, sliding_window=4).requires_grad_(False)
    scorer = LikelihoodEngine(with_adapter(model, ["q_proj", "v_proj"]))
    assert scorer.architecture.passes_window
    assert_gradients_are_plain(scorer, ALIKE, 2048)


@pytest.mark.parametrize("name", WINDOWED)
def test_window_shorter_than_the_sequences_gives_the_models_own_numbers(name: str) -> None:
    longer = [PromptGroup(tuple(range(2, 40)), ((7, 8, 9), (3,))), *GROUPS]
    for window in (4, 12):
        scorer = with_budget(name, 64, sliding_window=window)
        assert_scores_are_plain(scorer, longer)
        wide = with_budget(name, 64, sliding_window=64).score(longer[:1])
        narrow = scorer.score(longer[:1])  # the window does hide something
        assert (completions_of(wide) - completions_of(narrow)).abs().max() > 0.05


@pytest.mark.parametrize("name", ["mamba", "jamba"])
def test_models_that_trees_would_confuse_get_padded_rows(name: str, paths: dict[str, int]) -> None:
    assert_scores_are_plain(with_budget(name, 2048), GROUPS)
    assert paths == {"tree": 0, "padded": 1}


def test_what_all_prompts_start_with_is_forwarded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    rows: list[int] = []
    scorer = with_budget("llama", 2048)
    embed = scorer.causal_lm.get_input_embeddings()
    handle = embed.register_forward_pre_hook(lambda _, ids: rows.append(ids[0].shape[1]))
    scorer.score(ALIKE)
    scorer.score(GROUPS)
    handle.remove()
    [alike, apart] = rows
    assert alike == apart + len(START)
    assert_scores_are_plain(scorer, ALIKE)


@pytest.mark.parametrize(
    "groups",
    [
        [PromptGroup((5, 6, 7), ((8, 9),)), PromptGroup((5, 6, 7), ((8, 10), (3,)))],
        [PromptGroup((5, 6, 7), ((8, 9),)), PromptGroup((5, 6), ((7, 9), (3,)))],
        [
            PromptGroup((5,), ((8, 9),)),
            PromptGroup((5, 6, 7), ((7, 9),)),
            PromptGroup((5,), ((1,),)),
        ],
    ],
    ids=["the same prompt", "one a start of the other", "one token"],
)
def test_prompts_that_share_all_but_their_last_token(groups: list[PromptGroup]) -> None:
    assert_scores_are_plain(with_budget("llama", 2048), groups)


@pytest.mark.parametrize("name", ["llama", "gemma2"])
@pytest.mark.parametrize("block", [1, 3, 8])
def test_attention_in_blocks_of_queries_gives_the_same_numbers(
    name: str, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    scorer = with_budget(name, 2048)  # inspected before, so it cannot fall back
    monkeypatch.setattr(layout, "QUERY_BLOCK", block)
    assert_scores_are_plain(scorer, GROUPS)
    assert_scores_are_plain(scorer, ALIKE)


@pytest.mark.parametrize("groups", [GROUPS, ALIKE], ids=["apart", "alike"])
@pytest.mark.parametrize("threshold", [0, 12, 10_000])
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_long_groups_attend_through_sdpa_with_the_same_numbers(
    name: str, threshold: int, groups: list[PromptGroup], monkeypatch: pytest.MonkeyPatch
) -> None:
    lengths: list[int] = []
    sdpa = layout.scaled_dot_product_attention

    def counted(query: Tensor, key: Tensor, *arguments: Any, **keywords: Any) -> Tensor:
        lengths.append(key.shape[2])
        return sdpa(query, key, *arguments, **keywords)

    monkeypatch.setattr(layout, "EXPLICIT_LENGTH", threshold)
    monkeypatch.setattr(layout, "scaled_dot_product_attention", counted)
    assert_scores_are_plain(with_budget(name, 2048), groups)
    longer = [group.tokens for group in groups if group.tokens > threshold]
    assert lengths == longer * 2  # layers


@pytest.mark.parametrize("threshold", [0, 10_000])
def test_scaling_of_the_scores_is_the_models(
    threshold: int, paths: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Granite sets its own, here 1 where one over the root of the head's width were 0.35."""
    monkeypatch.setattr(layout, "EXPLICIT_LENGTH", threshold)
    options = {"logits_scaling": 1.0, "attention_multiplier": 1.0}
    assert_scores_are_plain(with_budget("granite", 2048, **options), GROUPS)
    assert paths == {"tree": 1, "padded": 0}


def test_capped_scores_never_go_through_sdpa_which_knows_no_cap(
    paths: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layout, "EXPLICIT_LENGTH", 0)
    scorer = with_budget("gemma2", 2048, attn_logit_softcapping=0.5)
    assert_scores_are_plain(scorer, ALIKE)
    assert paths == {"tree": 1, "padded": 0}
    uncapped = with_budget("gemma2", 2048, attn_logit_softcapping=50.0)  # the cap does something
    apart = completions_of(scorer.score(ALIKE)) - completions_of(uncapped.score(ALIKE))
    assert apart.abs().max() > 0.05


def adapter_gradients(model: Any, loss: Tensor) -> dict[str, Tensor]:
    """Return the gradients of `loss` by parameter name."""
    trainable = {n: p for n, p in model.named_parameters() if p.requires_grad}
    gradients = torch.autograd.grad(loss, list(trainable.values()), allow_unused=True)
    return {n: g for n, g in zip(trainable, gradients, strict=True) if g is not None}


def assert_gradients_are_plain(
    scorer: LikelihoodEngine, groups: list[PromptGroup], pack_tokens: int
) -> None:
    """Compare the gradients of a weighted sum of all log-probabilities, weights of both signs."""
    weights = [torch.linspace(-1, 1.5, len(group.completions)) for group in groups]
    scorer.pack_tokens = pack_tokens
    ours: dict[str, Tensor] = {}
    for pack in scorer.packs(groups):
        loss = (scorer.score_pack(pack) * torch.cat([weights[i] for i in pack.indices])).sum()
        for name, gradient in adapter_gradients(scorer.model, loss).items():
            ours[name] = ours[name] + gradient if name in ours else gradient
    plain = plain_sums(scorer.model, groups)
    loss = torch.stack([(s * w).sum() for s, w in zip(plain, weights, strict=True)]).sum()
    theirs = adapter_gradients(scorer.model, loss)
    assert ours.keys() == theirs.keys()
    for name, expected in theirs.items():
        assert (ours[name] - expected).abs().max() <= 1e-4 * expected.abs().max() + 1e-6, name


@pytest.fixture(params=[*TREES, *SCALED, "mamba", "llama4"])
def adapted(request: pytest.FixtureRequest) -> LikelihoodEngine:
    targets = {
        "mamba": ["x_proj", "in_proj"],
        "gpt_oss": ["q_proj", "v_proj"],
        "llama4": ["q_proj", "v_proj"],
    }
    name = request.param
    model = make_model(name).requires_grad_(False)
    return LikelihoodEngine(with_adapter(model, targets.get(name, "all-linear")))


@pytest.mark.parametrize(
    ("groups", "pack_tokens"), [(GROUPS, 1), (GROUPS, 2048), (ALIKE, 30), (ALIKE, 2048)]
)
def test_adapter_gradients_are_those_of_plain_forwards(
    adapted: LikelihoodEngine, groups: list[PromptGroup], pack_tokens: int
) -> None:
    assert_gradients_are_plain(adapted, groups, pack_tokens)


@pytest.mark.parametrize(("limit", "value"), [("EXPLICIT_LENGTH", 0), ("QUERY_BLOCK", 3)])
def test_adapter_gradients_through_sdpa_and_through_blocks(
    limit: str, value: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_model("llama").requires_grad_(False)
    scorer = LikelihoodEngine(with_adapter(model))  # inspected before, so it cannot fall back
    monkeypatch.setattr(layout, limit, value)
    assert_gradients_are_plain(scorer, ALIKE, 2048)


@pytest.mark.parametrize(
    ("name", "tied"),
    [
        ("llama", False),
        ("llama", True),
        ("gemma2", True),
        ("cohere", True),
        ("phi", False),
        ("gpt_oss", False),
    ],
)
def test_gradients_of_all_weights_are_those_of_plain_forwards(name: str, tied: bool) -> None:
    """With a head that trains, tied to the embeddings or not, scaled or with a bias."""
    scorer = LikelihoodEngine(make_model(name, tie_word_embeddings=tied))
    assert_gradients_are_plain(scorer, ALIKE, 2048)


DYNAMIC = {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 10000.0}
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "original_max_position_embeddings": 12,
    "short_factor": [1.0] * 4,
    "long_factor": [4.0] * 4,
}


@pytest.mark.parametrize("rope", [DYNAMIC, LONGROPE], ids=["dynamic", "longrope"])
def test_ropes_that_depend_on_the_length_are_right_beyond_their_limit(
    rope: dict[str, Any], paths: dict[str, int]
) -> None:
    """Here of 12 tokens: shorter ones share a row, longer ones are forwarded one by one.

    Dynamic ones remember the longest sequence in transformers 5.23, so the oracle is a new model
    for each sequence, and short ones come after long ones.
    """

    def fresh() -> Any:
        return make_model("llama", rope_parameters=rope, max_position_embeddings=12)

    scorer = LikelihoodEngine(fresh().requires_grad_(False))
    assert scorer.architecture.rope_limit == 12
    completions = ((5, 6, 7), (8,), (9, 10, 11, 12))
    long = [PromptGroup(tuple(range(40, 40 + n)), completions) for n in (9, 20)]
    for groups in (GROUPS[:1], [*GROUPS, *long], GROUPS[:1], long, GROUPS, long[:1]):
        alone = [PromptGroup(g.prompt, (c,)) for g in groups for c in g.completions]
        expected = torch.cat([plain_sums(fresh(), [group])[0] for group in alone]).detach()
        assert (completions_of(scorer.score(groups)) - expected).abs().max() < NATS
    assert paths == {"tree": 3, "padded": 3}


def test_the_active_adapter_counts() -> None:
    scorer = LikelihoodEngine(with_adapter(make_model("llama").requires_grad_(False)))
    adapted_scores = completions_of(scorer.score(GROUPS))
    with scorer.model.disable_adapter():
        bare = completions_of(scorer.score(GROUPS))
    assert (adapted_scores - bare).abs().max() > 0.1
    expected = completions_of(shared_engine("llama").score(GROUPS))
    assert torch.equal(bare, expected)


@pytest.mark.parametrize("name", ["llama", "mamba"])
def test_padding_and_end_tokens_are_tokens_like_any_other(name: str) -> None:
    """pad == eos == 0 in the model's config: nothing is masked by its value."""
    model = make_model(name).requires_grad_(False)
    model.config.pad_token_id = model.config.eos_token_id = 0
    groups = [
        PromptGroup((0, 0, 7), ((5, 6, 0), (5, 6, 0, 0), (0,))),
        PromptGroup((7,), ((0, 0), (4, 4, 4, 4, 4, 4, 4, 4, 0))),
    ]
    assert_scores_are_plain(LikelihoodEngine(model), groups)


def test_progress_counts_every_group_once() -> None:
    counts: list[int] = []
    with_budget("llama", 9).score(GROUPS, counts.append)
    assert sum(counts) == len(GROUPS)
    assert len(counts) > 1


def test_scoring_nothing_gives_nothing() -> None:
    assert shared_engine("llama").score([]) == []


def test_only_training_builds_a_graph() -> None:
    scorer = LikelihoodEngine(with_adapter(make_model("llama").requires_grad_(False)))
    builds_graph: list[bool] = []
    scorer.causal_lm.model.register_forward_pre_hook(
        lambda *_: builds_graph.append(torch.is_grad_enabled())
    )
    [pack] = scorer.packs(GROUPS)
    assert scorer.score_pack(pack).requires_grad
    scorer.score(GROUPS)
    assert builds_graph == [True, False]


def test_score_gives_mean_and_perplexity() -> None:
    """-6 nats over 4 tokens: 1.5 nats a token, and exp(1.5) = 4.4817."""
    score = CompletionScore(-6.0, 4)
    assert score.mean_nll == 1.5
    assert score.perplexity == pytest.approx(4.4817, abs=1e-4)
    assert CompletionScore(-800.0, 1).perplexity == float("inf")


def test_scored_tokens_are_the_labels_and_the_models_own_choices() -> None:
    model = make_model("llama")
    scorer = LikelihoodEngine(model)
    (pack,) = scorer.packs(GROUPS)
    labels, own = scorer.score_tokens(pack)
    expected_labels, expected_own = [], []
    for group in pack.groups:
        for completion in group.completions:
            ids = torch.tensor([[*group.prompt, *completion]])
            with torch.no_grad():
                logprobs = (
                    model(input_ids=ids).logits[0, len(group.prompt) - 1 : -1].log_softmax(-1)
                )
            expected_labels.append(logprobs.gather(1, torch.tensor(completion)[:, None])[:, 0])
            expected_own.append(logprobs.max(-1).values)
    torch.testing.assert_close(labels, torch.cat(expected_labels), atol=NATS, rtol=0)
    torch.testing.assert_close(own, torch.cat(expected_own), atol=NATS, rtol=0)
    assert labels.requires_grad
    assert own.requires_grad
