"""One attention function for every model that uses transformers' attention interface.

The model's linear layers see one packed row of tokens; who attends to whom is the business of an
`AttentionLayout`, which travels as a keyword argument of the model's forward (no global state):

    with macpo_attention(model):
        model(input_ids=row, position_ids=positions, macpo_layout=layout, use_cache=False)

The likelihood engine's layout branches completions from a shared prompt (macpo.likelihood.layout);
generation's layout keeps keys and values between steps (macpo.generation.cache).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

from macpo.errors import ModelError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

ATTENTION = "macpo"

# Keywords that models pass to every attention function and that change nothing here: ours never
# runs with dropout, masks come from the layout, positions were already applied by the model.
IGNORED_KEYWORDS = frozenset(
    {
        "position_ids",
        "position_embeddings",
        "use_cache",
        "output_attentions",
        "output_hidden_states",
        "output_router_logits",
        "logits_to_keep",
        "cache_position",
        "is_causal",
        "past_key_values",
        "num_items_in_batch",
        "return_dict",
    }
)


class AttentionLayout(Protocol):
    """Who attends to whom among the tokens of one packed row."""

    def attend(
        self,
        layer: int,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        *,
        scaling: float,
        softcap: float | None,
        sliding_window: int | None,
        sinks: Tensor | None = None,
    ) -> Tensor:
        """Attend within one layer.

        Args:
            layer: index of the decoder layer.
            query: `[1, heads, tokens, head_dim]`, positions already applied.
            key: `[1, kv_heads, tokens, head_dim]`; `heads` is a multiple of `kv_heads`.
            value: `[1, kv_heads, tokens, value_dim]`.
            scaling: factor on the scores.
            softcap: if given, scores become `softcap * tanh(scores / softcap)` before the mask.
            sliding_window: if given, a token sees at most this many of the latest positions,
                its own included.
            sinks: `[heads]`; if given, one more score for every token, which takes its share of the
                probability and has no value (GPT-OSS).

        Returns:
            `[1, tokens, heads, value_dim]`.
        """
        ...


def attention_forward(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    softcap: float | None = None,
    sliding_window: int | None = None,
    s_aux: Tensor | None = None,
    macpo_layout: AttentionLayout | None = None,
    **keywords: Any,
) -> tuple[Tensor, None]:
    """Attend as the layout says; the signature is that of transformers' `AttentionInterface`.

    Raises:
        ModelError: the model asks for something that no layout honours;
            `macpo.likelihood.architecture` finds this out beforehand and falls back.
    """
    if macpo_layout is None:
        raise ModelError("macpo's attention was called without a layout; use macpo_attention()")
    unknown = {k for k, v in keywords.items() if v is not None} - IGNORED_KEYWORDS
    if unknown or attention_mask is not None or dropout:
        what = sorted(unknown) or ("attention_mask" if attention_mask is not None else "dropout")
        raise ModelError(f"{type(module).__name__} asks for {what}, which no layout can honour")
    output = macpo_layout.attend(
        int(module.layer_idx),  # type: ignore[arg-type]
        query,
        key,
        value,
        scaling=query.shape[-1] ** -0.5 if scaling is None else scaling,
        softcap=softcap,
        sliding_window=sliding_window,
        sinks=s_aux,
    )
    return output, None


def no_mask(*_: Any, **__: Any) -> None:
    """Stand in for transformers' mask functions: the layout masks, no dense mask is built."""
    return


def base_model(model: Any) -> Any:
    """Return the transformers model inside a PEFT model, or the model itself."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def decoder_of(causal_lm: Any) -> Any:
    """Return the model below a causal LM's head; the LM itself where that cannot be reached.

    transformers' own `base_model` is that, but for classes whose prefix is another's (Llama 4).
    """
    if causal_lm.base_model is not causal_lm:
        return causal_lm.base_model
    inner = getattr(causal_lm, "model", None)
    return causal_lm if inner is None else inner


@contextmanager
def macpo_attention(model: Any) -> Iterator[None]:
    """Let `model` (a transformers model or a PEFT model over one) attend through layouts."""
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register(ATTENTION, attention_forward)
    AttentionMaskInterface.register(ATTENTION, no_mask)
    base = base_model(model)
    before = base.config._attn_implementation
    base.set_attn_implementation(ATTENTION)
    try:
        yield
    finally:
        base.set_attn_implementation(before)
