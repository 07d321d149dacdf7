from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import RecurrentGemmaConfig, RwkvConfig, xLSTMConfig

from macpo.config import SamplingConfig
from macpo.errors import ModelError
from macpo.generation import fallback
from macpo.generation.fallback import decode_by_generate
from tests.generation.answers import answer, generated, greedy, random_prompts
from tests.generation.test_servable import build, gpt_oss, mamba
from tests.tiny import tiny_model

LENGTHS = (2, 9, 9, 30, 3, 17, 9, 24)
SAMPLED = SamplingConfig(temperature=1.0, top_k=30, top_p=0.9, max_new_tokens=12)


def recurrent_gemma() -> Any:
    """A recurrent model that takes padding for text."""
    config = RecurrentGemmaConfig(
        vocab_size=512,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=1,
        head_dim=8,
        lru_width=32,
        attention_window_size=16,
    )
    return build(config, spread=0.3)


def rwkv() -> Any:
    """A recurrent model that mixes up the states of a batch's rows, in transformers 5.23."""
    config = RwkvConfig(
        vocab_size=512, hidden_size=32, attention_hidden_size=32, num_hidden_layers=2
    )
    return build(config, spread=0.3)


@pytest.fixture
def batches(monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """Return a list that collects the prompt lengths of every batch."""
    seen: list[list[int]] = []
    plain = fallback._left_padded

    def noting(prompts: Any, device: Any) -> Any:
        seen.append([len(prompt) for prompt in prompts])
        return plain(prompts, device)

    monkeypatch.setattr(fallback, "_left_padded", noting)
    return seen


@pytest.mark.parametrize("builder", [tiny_model, gpt_oss, mamba, recurrent_gemma, rwkv])
def test_greedy_answers_equal_generate_one_by_one(builder: Any) -> None:
    model = builder()
    prompts = random_prompts(LENGTHS)

    ours = answer(model, prompts, greedy(12), decoder=decode_by_generate)

    assert ours == generated(model, prompts, 12)


def test_prompts_of_one_token_are_answered_as_by_generate() -> None:
    model = gpt_oss()
    prompts = [[token] for token in range(40, 50)]

    assert answer(model, prompts, greedy(1), decoder=decode_by_generate) == generated(
        model, prompts, 1
    )


def test_sampled_answers_are_those_of_the_packed_decoder() -> None:
    model = tiny_model()
    prompts = random_prompts(LENGTHS)

    slow = answer(model, prompts, SAMPLED, decoder=decode_by_generate)

    assert slow == answer(model, prompts, SAMPLED)
    assert slow != answer(model, prompts, greedy(12))


def test_a_sampled_answer_does_not_depend_on_its_neighbours() -> None:
    model = gpt_oss()
    prompts = random_prompts(LENGTHS)
    together = answer(model, prompts, SAMPLED, decoder=decode_by_generate)

    alone = answer(model, prompts[3:4], SAMPLED, seeds=[3], decoder=decode_by_generate)

    assert alone == together[3:4]


@pytest.mark.parametrize(
    ("builder", "shared"),
    [
        # at most 64 tokens to a batch, padding included
        (tiny_model, [[30, 24], [17, 9, 9], [9, 3, 2]]),
        (recurrent_gemma, [[30], [24], [17], [9, 9, 9], [3], [2]]),
    ],
    ids=["attention: similar lengths", "recurrent: equal lengths"],
)
def test_prompts_share_batches_where_that_does_no_harm(
    builder: Any, shared: list[list[int]], batches: list[list[int]]
) -> None:
    model = builder()

    answer(model, random_prompts(LENGTHS), greedy(2), decoder=decode_by_generate)

    trials = [[4], [7, 4]] if builder is tiny_model else [[4], [7, 4], [4, 4]]
    assert batches == trials + shared


def test_memory_bounds_a_batch(batches: list[list[int]]) -> None:
    # 2 layers x 2 x 2 heads x 8 numbers of 4 bytes: 256 bytes for each of 9 + 7 tokens
    two_rows = 2.5 * 256 * 16 / 2**30
    prompts = random_prompts([9] * 5)

    answer(
        tiny_model(),
        prompts,
        greedy(7),
        decoder=decode_by_generate,
        memory_gib=two_rows,
        pack_tokens=1000,
    )

    assert batches[2:] == [[9, 9], [9, 9], [9]]


def test_the_models_own_generation_defaults_are_left_out_and_left_alone() -> None:
    model = tiny_model()
    prompts = random_prompts(LENGTHS)
    plain = answer(model, prompts, greedy(12), decoder=decode_by_generate)
    model.generation_config.repetition_penalty = 5.0
    own = model.generation_config

    assert answer(model, prompts, greedy(12), decoder=decode_by_generate) == plain
    assert model.generation_config is own
    assert own.repetition_penalty == 5.0
    assert generated(model, prompts, 12) != plain


def test_progress_counts_every_prompt_once() -> None:
    counts: list[int] = []

    answer(
        tiny_model(),
        random_prompts(LENGTHS),
        greedy(2),
        decoder=decode_by_generate,
        progress=counts.append,
    )

    assert counts == [2, 3, 3]


def test_no_prompts_no_answers() -> None:
    assert answer(tiny_model(), [], greedy(4), decoder=decode_by_generate) == []


def test_without_stop_tokens_answers_run_to_their_limit() -> None:
    model = tiny_model().train()

    ours = answer(
        model, random_prompts((3, 5)), greedy(6), decoder=decode_by_generate, stop_ids=frozenset()
    )

    assert [(len(c.token_ids), c.finished) for c in ours] == [(6, False)] * 2
    assert model.training
    assert torch.is_grad_enabled()


def test_answers_beyond_the_limit_of_a_longrope_share_no_batch(batches: list[list[int]]) -> None:
    rope = {
        "rope_type": "longrope",
        "rope_theta": 10000.0,
        "original_max_position_embeddings": 20,
        "short_factor": [1.0] * 4,
        "long_factor": [4.0] * 4,
    }
    model = tiny_model(rope_parameters=rope)
    prompts = random_prompts((30, 5, 18, 6, 25))
    found = answer(model, prompts, greedy(8), decoder=decode_by_generate)
    assert batches[-4:] == [[30], [25], [18], [6, 5]]  # before these, trials
    assert found == generated(model, prompts, 8)


def test_answers_beyond_the_limit_of_a_dynamic_rope_share_no_batch_and_are_not_refused(
    batches: list[list[int]],
) -> None:
    """The limit is where the rope begins to stretch; what was answered before does not matter."""
    rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
    model = tiny_model(rope_parameters=rope, max_position_embeddings=32)
    prompts = random_prompts((30, 50, 18, 6, 70))
    found = answer(model, prompts, greedy(8), decoder=decode_by_generate)
    assert batches[-4:] == [[70], [50], [30], [18, 6]]  # before these, trials
    fresh = [
        tiny_model(rope_parameters=rope, max_position_embeddings=32) for _ in range(len(prompts))
    ]
    one_by_one = [generated(m, [p], 8) for m, p in zip(fresh, prompts, strict=True)]
    assert found == [answered for [answered] in one_by_one]


def test_prompts_beyond_the_positions_of_other_ropes_are_refused() -> None:
    model = tiny_model(max_position_embeddings=32)
    with pytest.raises(ModelError, match="exceed the model's 32 positions"):
        answer(model, random_prompts((30,)), greedy(8), decoder=decode_by_generate)


def test_model_whose_own_cache_fails_is_one_line() -> None:
    """xLSTM's cache rounds the width of keys up to 64, its layers do not (transformers 5.23)."""
    config = xLSTMConfig(
        vocab_size=512, hidden_size=32, embedding_dim=32, num_blocks=1, num_hidden_layers=1
    )
    with pytest.raises(ModelError) as raised:
        decode_by_generate(
            build(config, spread=0.3),
            [(5, 6, 7)],
            stop_ids=frozenset(),
            sampling=SAMPLED,
            seeds=[0],
            memory_gib=1.0,
            pack_tokens=256,
        )
    assert str(raised.value).startswith(
        "xLSTMForCausalLM: transformers' generate cannot answer with it (matC_old has wrong shape"
    )
    assert str(raised.value).endswith("); use another model")
