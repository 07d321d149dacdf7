"""The attention function that models call: it honours what it knows and refuses the rest."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from macpo.attention import ATTENTION, attention_forward, macpo_attention, no_mask
from macpo.errors import ModelError
from tests.likelihood.plain import make_model, with_adapter


class Recorder:
    """A layout that attends to nothing and remembers what it was asked."""

    def __init__(self) -> None:
        self.calls: list[dict[str, Any]] = []

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, **asked: Any) -> Tensor:
        self.calls.append({"layer": layer, "shape": tuple(query.shape), **asked})
        return query.transpose(1, 2)


class Layer(torch.nn.Module):
    layer_idx = 3


def attend(layout: Recorder | None = None, **keywords: Any) -> tuple[Tensor, None]:
    heads = torch.zeros(1, 2, 5, 16)
    mask = keywords.pop("attention_mask", None)
    return attention_forward(Layer(), heads, heads, heads, mask, macpo_layout=layout, **keywords)


def test_layout_is_asked_with_layer_and_scaling() -> None:
    layout = Recorder()
    output, weights = attend(layout, softcap=30.0, sliding_window=7, s_aux=1, use_cache=None)
    assert output.shape == (1, 5, 2, 16)
    assert weights is None
    attend(layout, scaling=0.5)
    asked = {"layer": 3, "shape": (1, 2, 5, 16)}
    assert layout.calls == [
        {**asked, "scaling": 0.25, "softcap": 30.0, "sliding_window": 7, "sinks": 1},  # 16 ** -0.5
        {**asked, "scaling": 0.5, "softcap": None, "sliding_window": None, "sinks": None},
    ]


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"position_bias": 1}, "Layer asks for ['position_bias'], which no layout can honour"),
        ({"position_bias": 1, "alibi": 2}, "Layer asks for ['alibi', 'position_bias'], which"),
        ({"attention_mask": torch.ones(1)}, "Layer asks for attention_mask, which"),
        ({"dropout": 0.1}, "Layer asks for dropout, which"),
    ],
)
def test_what_no_layout_honours_is_refused(keywords: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError) as raised:
        attend(Recorder(), **keywords)
    assert str(raised.value).startswith(message)


def test_unknown_keyword_without_a_value_asks_for_nothing() -> None:
    layout = Recorder()
    attend(layout, position_bias=None)
    assert len(layout.calls) == 1


def test_call_without_a_layout_is_refused() -> None:
    with pytest.raises(ModelError) as raised:
        attend()
    expected = "macpo's attention was called without a layout; use macpo_attention()"
    assert str(raised.value) == expected


@pytest.mark.parametrize("adapted", [False, True])
def test_models_own_attention_is_back_afterwards(adapted: bool) -> None:
    base = make_model("llama")
    model = with_adapter(base) if adapted else base
    own = base.config._attn_implementation
    with macpo_attention(model):
        assert base.config._attn_implementation == ATTENTION
    assert base.config._attn_implementation == own
    with pytest.raises(ZeroDivisionError), macpo_attention(model):
        raise ZeroDivisionError
    assert base.config._attn_implementation == own


def test_model_calls_the_layout_once_per_layer_without_a_mask() -> None:
    model = make_model("llama", layers=3)
    layout = Recorder()
    ids = torch.arange(6)[None]
    with torch.no_grad(), macpo_attention(model):
        model.model(input_ids=ids, position_ids=ids, macpo_layout=layout, use_cache=False)
    assert [call["layer"] for call in layout.calls] == [0, 1, 2]
    assert no_mask(1, mask=2) is None
