"""What a model declares, and when two ways of computing its logits count as the same."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from macpo.probe import (
    Rope,
    agree,
    declared,
    own_logits,
    probe_ids,
    relative_error,
    setting,
    tolerance,
)
from tests.generation.test_servable import llama4, mamba, qwen3_next
from tests.likelihood.plain import make_model
from tests.tiny import tiny_model

FULL, SLIDING = "full_attention", "sliding_attention"


def test_a_plain_model_declares_full_attention_and_nothing_else() -> None:
    found = declared(tiny_model("llama"))
    assert found.name == "LlamaForCausalLM"
    assert {"input_ids", "position_ids", "logits_to_keep"} <= found.arguments
    assert (found.stateful, found.attends_through_interface) == (False, True)
    assert found.layer_types == (FULL, FULL)
    assert (found.other_layer_types, found.sliding_layers) == ((), ())
    assert (found.window, found.logit_softcap) == (None, None)
    assert [rope.kind for rope in found.ropes] == ["default"]


@pytest.mark.parametrize(
    ("model", "window", "sliding"),
    [
        (lambda: make_model("mistral", sliding_window=9), 9, (0, 1)),
        (lambda: make_model("gemma2"), 64, (0,)),
        (
            lambda: make_model(
                "qwen3", use_sliding_window=True, sliding_window=9, layer_types=[FULL, SLIDING]
            ),
            9,
            (1,),
        ),
        (
            lambda: make_model(
                "qwen3", use_sliding_window=True, sliding_window=9, layer_types=[FULL, FULL]
            ),
            None,
            (),
        ),
        (lambda: make_model("qwen3", use_sliding_window=False, sliding_window=9), None, ()),
    ],
)
def test_a_window_is_declared_with_the_layers_that_slide(
    model: Any, window: int | None, sliding: tuple[int, ...]
) -> None:
    found = declared(model())
    assert (found.window, found.sliding_layers) == (window, sliding)


def test_a_window_of_no_tokens_is_none() -> None:
    model = tiny_model("llama")
    model.config.sliding_window = 0
    assert declared(model).window is None


def test_a_setting_that_differs_from_layer_to_layer_counts_as_open() -> None:
    class Differs:
        window = 4

        @property
        def heads(self) -> int:
            raise RuntimeError("'heads' is a per-layer attribute")

    config = Differs()
    assert (setting(config, "window"), setting(config, "heads")) == (4, None)
    assert setting(config, "lacking", 7) == 7


def test_layers_that_are_no_attention_and_states_are_declared() -> None:
    assert declared(mamba()).other_layer_types == ("linear_attention",)
    assert declared(llama4()).other_layer_types == ("chunked_attention",)
    assert declared(qwen3_next()).stateful


def test_a_cap_on_the_final_logits_is_declared() -> None:
    assert declared(make_model("gemma2")).logit_softcap == 30.0


@pytest.mark.parametrize(
    ("rope", "limit"),
    [
        ({"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}, 128),
        (
            {
                "rope_type": "longrope",
                "rope_theta": 1e4,
                "original_max_position_embeddings": 64,
                "short_factor": [1.0] * 4,
                "long_factor": [2.0] * 4,
            },
            64,
        ),
    ],
)
def test_rotary_positions_that_change_with_length_have_a_limit(
    rope: dict[str, Any], limit: int
) -> None:
    found = declared(tiny_model(rope_parameters=rope, max_position_embeddings=128))
    assert found.ropes == (Rope(rope["rope_type"], limit),)
    assert found.rope_changing_within(limit) is None
    assert found.rope_changing_within(limit + 1) == found.ropes[0]


def test_rotary_positions_that_stay_the_same_have_none() -> None:
    assert declared(tiny_model()).rope_changing_within(10**6) is None


def test_probe_ids_are_in_the_vocabulary_and_another_series_for_each_count() -> None:
    model = tiny_model()
    vocabulary = model.config.vocab_size
    assert all(0 <= token < vocabulary for token in probe_ids(model, 50))
    assert len(set(probe_ids(model, 50))) > 25
    assert probe_ids(model, 7)[:4] != probe_ids(model, 4)


def test_own_logits_are_those_of_each_sequence_alone() -> None:
    model = tiny_model()
    sequences = [[3, 4, 5], [6]]
    with torch.no_grad():
        found = own_logits(model, sequences)
        for logits, ids in zip(found, sequences, strict=True):
            assert torch.equal(logits, model(input_ids=torch.tensor([ids])).logits[0])


def test_error_is_the_root_mean_square_over_the_spread() -> None:
    """Off by 1 and -1 where logits are 3 and -3: 1 over their standard deviation, 3 sqrt(2)."""
    theirs = torch.tensor([[3.0, -3.0], [1.0, -1.0]])
    ours = torch.tensor([[4.0, -4.0], [1.0, -1.0]])
    expected = 1 / (3 * 2**0.5)
    assert relative_error(ours, theirs, torch.float32) == pytest.approx(expected)
    assert relative_error(100 * ours, 100 * theirs, torch.float32) == pytest.approx(expected)


def test_worst_row_counts_in_float32_and_median_row_in_16_bits() -> None:
    theirs = torch.tensor([[1.0, -1.0]]).repeat(5, 1)
    ours = theirs.clone()
    ours[:2] *= 3
    assert not agree(ours, theirs, torch.float32)
    assert agree(ours, theirs, torch.bfloat16)
    ours[2] *= 3
    assert not agree(ours, theirs, torch.bfloat16)


def test_what_is_not_a_number_agrees_with_nothing_and_equal_constants_agree() -> None:
    flat = torch.zeros(2, 8)
    assert agree(flat, flat, torch.float32)
    assert not agree(torch.full_like(flat, torch.nan), flat, torch.float32)
    assert not agree(flat + 1, flat, torch.bfloat16)


def test_tolerance_is_tight_in_float32() -> None:
    assert tolerance(torch.float32) == tolerance(torch.float64) == 1e-3
    assert tolerance(torch.float32) < tolerance(torch.float16) < tolerance(torch.bfloat16) < 0.2
