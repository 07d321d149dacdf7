from __future__ import annotations

import copy
import functools
import math
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model

from macpo.config import SamplingConfig
from macpo.errors import ConfigError, ModelError
from macpo.generation import decode as decode_module
from tests.generation.answers import STOPS, answer, generated, greedy, random_prompts
from tests.tiny import tiny_model

MIXED_LENGTHS = (1, 2, 90, 17, 40, 1, 64, 33, 5, 21, 77, 3)
SAMPLED = SamplingConfig(temperature=1.0, top_k=40, top_p=0.9, max_new_tokens=16)
FEW_ROWS = 1.1e-4  # GiB: 4 rows of 105 tokens, 2 where keys are not shared by queries


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list that collects how many rows each step advances."""
    rows: list[int] = []
    plain = decode_module.step

    def counting(model: Any, cache: Any, tokens: Any, lengths: Any) -> Any:
        rows.append(len(tokens))
        return plain(model, cache, tokens, lengths)

    monkeypatch.setattr(decode_module, "step", counting)
    return rows


@pytest.mark.parametrize("architecture", ["llama", "mistral", "qwen3", "gemma2", "gpt_neox"])
def test_greedy_answers_equal_generate_token_for_token(architecture: str) -> None:
    model = tiny_model(architecture)
    prompts = random_prompts(MIXED_LENGTHS)

    ours = answer(model, prompts, greedy(16))

    assert ours == generated(model, prompts, 16)
    assert 0 < sum(c.finished for c in ours) < len(ours)  # both ways to end occur


@pytest.mark.parametrize("architecture", ["llama", "gpt_neox"])
def test_more_prompts_than_rows_refill_freed_slots(architecture: str, steps: list[int]) -> None:
    model = tiny_model(architecture)
    prompts = random_prompts(MIXED_LENGTHS)

    ours = answer(model, prompts, greedy(16), memory_gib=FEW_ROWS)

    assert max(steps) == (2 if architecture == "gpt_neox" else 4)
    assert len(steps) > 2 * 16  # rows were used again and again
    assert ours == generated(model, prompts, 16)


def test_ended_rows_are_not_computed(steps: list[int]) -> None:
    ours = answer(tiny_model(), random_prompts(MIXED_LENGTHS), greedy(16))

    assert sum(steps) == sum(len(c.token_ids) - 1 for c in ours)


def test_rows_in_several_blocks_answer_as_in_one(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model()
    prompts = random_prompts(MIXED_LENGTHS)
    one_block = answer(model, prompts, SAMPLED)
    monkeypatch.setattr(decode_module, "ROWS_PER_BLOCK", 3)

    assert answer(model, prompts, SAMPLED) == one_block


@pytest.mark.parametrize("sampling", [greedy(12), SAMPLED], ids=["greedy", "sampled"])
def test_what_all_prompts_start_with_is_computed_once(
    sampling: SamplingConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = random_prompts((31, 35, 50, 42, 31), start=range(100, 130))
    model = tiny_model("gemma2", sliding_window=16)
    tokens: list[int] = []
    model.register_forward_pre_hook(
        lambda _, args, kwargs: tokens.append(kwargs["input_ids"].numel()), with_kwargs=True
    )

    shared = answer(model, prompts, sampling)

    assert tokens.count(30) == 1
    assert 5 * 31 not in tokens
    assert sum(map(len, prompts)) - 5 * 30 in tokens
    alone = [answer(model, [p], sampling, seeds=[i])[0] for i, p in enumerate(prompts)]
    assert shared == alone


def test_prompts_longer_than_a_pack_take_a_row_of_their_own() -> None:
    model = tiny_model()
    prompts = random_prompts((50, 49, 7, 6, 5))

    assert answer(model, prompts, greedy(8), pack_tokens=10) == generated(model, prompts, 8)


@pytest.mark.parametrize("max_new_tokens", [1, 2])
def test_shortest_answers_and_prompts(max_new_tokens: int) -> None:
    model = tiny_model()
    prompts = [[token] for token in range(40, 60)]

    ours = answer(model, prompts, greedy(max_new_tokens))

    assert ours == generated(model, prompts, max_new_tokens)


def test_an_answer_whose_last_allowed_token_is_a_stop_is_finished() -> None:
    model = tiny_model()
    prompts = random_prompts((9,))
    tokens = answer(model, prompts, greedy(6), stop_ids=frozenset())[0].token_ids
    assert len(tokens) == 6

    ours = answer(model, prompts, greedy(6), stop_ids=frozenset({tokens[-1]}) - set(tokens[:-1]))

    assert ours[0].token_ids == tokens
    assert ours[0].finished == (tokens[-1] not in tokens[:-1])


def test_the_same_call_gives_the_same_tokens() -> None:
    model = tiny_model()
    prompts = random_prompts(MIXED_LENGTHS)

    assert answer(model, prompts, SAMPLED) == answer(model, prompts, SAMPLED)


def test_a_sampled_answer_does_not_depend_on_its_neighbours() -> None:
    model = tiny_model("qwen3")
    prompts = random_prompts(MIXED_LENGTHS)
    together = answer(model, prompts, SAMPLED)

    places = [10, 2, 7, 0]
    apart = answer(model, [prompts[i] for i in places], SAMPLED, seeds=places, memory_gib=FEW_ROWS)

    assert apart == [together[i] for i in places]


def test_seeds_change_sampled_answers() -> None:
    model = tiny_model()
    prompts = random_prompts([12]) * 8

    answers = answer(model, prompts, SAMPLED, seeds=range(8))

    assert len({a.token_ids for a in answers}) > 1
    assert len({a.token_ids for a in answer(model, prompts, SAMPLED, seeds=[7] * 8)}) == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_adapter_in_float32_over_either_base_takes_part(dtype: torch.dtype) -> None:
    model = get_peft_model(
        tiny_model().to(dtype),
        LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False),
        autocast_adapter_dtype=True,
    )
    lora = [p for n, p in model.named_parameters() if "lora_" in n]
    assert {p.dtype for p in lora} == {torch.float32}
    prompts = random_prompts(MIXED_LENGTHS[:8])

    ours = answer(model, prompts, greedy(12))

    if dtype == torch.float32:
        assert ours == generated(model, prompts, 12)
    with model.disable_adapter():
        assert answer(model, prompts, greedy(12)) != ours


def test_bfloat16_answers_are_near_generate() -> None:
    """Rounding turns some near ties, after which an answer goes its own way; most stay equal."""
    model = tiny_model().to(torch.bfloat16)
    prompts = random_prompts(MIXED_LENGTHS)

    pairs = zip(answer(model, prompts, greedy(8)), generated(model, prompts, 8), strict=True)

    assert sum(a == b for a, b in pairs) >= len(prompts) // 2


def test_a_sliding_window_hides_what_lies_before_it() -> None:
    model = tiny_model("mistral", sliding_window=6)
    prompts = random_prompts(MIXED_LENGTHS)

    ours = answer(model, prompts, greedy(16), memory_gib=FEW_ROWS)

    assert ours == generated(model, prompts, 16)
    model.config.sliding_window = None
    without = tiny_model("mistral", sliding_window=None)
    assert answer(without, prompts, greedy(16)) != ours


def test_the_model_is_left_as_it_was() -> None:
    model = tiny_model().train()
    model.model.layers[0].eval()
    modes = [module.training for module in model.modules()]
    weights = copy.deepcopy(model.state_dict())
    attention = model.config._attn_implementation

    answer(model, random_prompts((4, 5)), SAMPLED)

    assert [module.training for module in model.modules()] == modes
    assert model.config._attn_implementation == attention
    assert all(torch.equal(weights[name], value) for name, value in model.state_dict().items())
    assert model(input_ids=torch.tensor([[1, 2]])).logits.requires_grad


def test_progress_counts_every_prompt_once() -> None:
    counts: list[int] = []

    answer(
        tiny_model(),
        random_prompts(MIXED_LENGTHS),
        SAMPLED,
        progress=counts.append,
        memory_gib=FEW_ROWS,
    )

    assert sum(counts) == len(MIXED_LENGTHS)
    assert min(counts) > 0
    assert len(counts) > 1


def test_no_prompts_no_answers() -> None:
    assert answer(tiny_model(), [], greedy(4)) == []


def test_a_budget_below_one_answer_is_refused_with_the_size_it_needs() -> None:
    with pytest.raises(ConfigError) as error:
        answer(tiny_model(), random_prompts((100,)), greedy(29), memory_gib=1e-5)

    # 2 layers x 2 heads x (8 + 8) numbers of 4 bytes for each of 128 tokens
    assert str(error.value) == (
        "engine.decode_memory_gib is 1e-05, but the keys and values of one answer of 128 tokens "
        "take 3.1e-05 GiB; raise it to at least that"
    )


def test_positions_beyond_the_models_are_refused() -> None:
    model = tiny_model(max_position_embeddings=64)

    with pytest.raises(ModelError) as error:
        answer(model, random_prompts((60,)), greedy(6))

    assert str(error.value) == (
        "a prompt of 60 tokens and an answer of up to 6 exceed the model's 64 positions; lower "
        "limits.prompt_tokens or sampling.max_new_tokens"
    )
    assert len(answer(model, random_prompts((60,)), greedy(5), stop_ids=frozenset())) == 1


@pytest.mark.parametrize(
    ("prompts", "seeds", "message"),
    [
        ([[1], []], [0, 0], "a prompt needs at least one token"),
        ([[1]], [0, 0], "1 prompts, but 2 seeds"),
    ],
)
def test_callers_mistakes_are_refused(
    prompts: list[list[int]], seeds: list[int], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        answer(tiny_model(), prompts, greedy(2), seeds=seeds)


def test_rows_follow_the_memory_budget() -> None:
    served = decode_module.examine(tiny_model(), 100)
    assert not isinstance(served, decode_module.Refused)
    token = 2 * 2 * (8 + 8) * 4  # bytes: 2 layers, 2 heads, keys and values of 8 numbers

    needs = [100] * 10 + [50] * 30
    gib = (16 * 100 + 4 * 50) * token / 2**30
    rows, per_block = decode_module.plan_rows(needs, served.shapes, torch.float32, gib)

    # the first block of 16 takes its longest row's 100 tokens each, then 4 rows of 50 fit
    assert (rows, per_block) == (20, 16)
    assert decode_module.plan_rows(needs, served.shapes, torch.bfloat16, gib)[0] == 40


def test_a_push_adds_the_lead_and_leaves_the_implausible_last() -> None:
    """Probabilities .64, .32, .04: a share of .1 of the likeliest is .064, which the third lacks.

    Leads over the other model, whose tokens are all as likely: log of .64, .32 and .04 times 3.
    """
    own = torch.tensor([[0.64, 0.32, 0.04], [0.04, 0.64, 0.32]]).log()
    other = torch.full((2, 3), math.log(1 / 3))
    expected = own + 2 * (own + math.log(3))
    assert torch.allclose(decode_module.push(own, other, 2.0, 0.0), expected)
    expected[0, 2] -= 1e4
    expected[1, 0] -= 1e4
    assert torch.allclose(decode_module.push(own, other, 2.0, 0.1), expected)


@pytest.mark.parametrize("architecture", ["llama", "gpt_neox"])
def test_greedy_answers_pushed_away_equal_a_plain_loop_over_both_models(architecture: str) -> None:
    """Token by token: the argmax of a + 0.7 (a - b), each from a forward of the whole row."""
    model, other = tiny_model(architecture), tiny_model(architecture, seed=1)
    prompts = random_prompts((1, 9, 30, 4, 17), start=(31,))

    def plain(prompt: list[int]) -> tuple[int, ...]:
        ids = list(prompt)
        while len(ids) < len(prompt) + 12 and not (len(ids) > len(prompt) and ids[-1] in STOPS):
            row = torch.tensor([ids])
            with torch.no_grad():
                a, b = model(row).logits[0, -1], other(row).logits[0, -1]
            ids.append(int((a + 0.7 * (a - b)).argmax()))
        return tuple(ids[len(prompt) :])

    pushed = functools.partial(decode_module.decode, away_from=other, strength=0.7)
    ours = answer(model, prompts, greedy(12), decoder=pushed, memory_gib=FEW_ROWS)

    assert [c.token_ids for c in ours] == [plain(prompt) for prompt in prompts]
    assert ours != answer(model, prompts, greedy(12))
