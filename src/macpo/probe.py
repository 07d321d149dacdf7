"""How a model is probed before it is trusted with a shortcut: by looking, and by trying.

Two shortcuts work with most architectures only: completions that branch from their prompt in one
row (`macpo.likelihood.architecture`), and decoding over keys and values of our own
(`macpo.generation.servable`). Each looks at what the model's class and config declare, which
explains, and then tries the real thing on a few tokens against the model's own forward of each
sequence alone, which decides: an architecture that nobody thought of falls back instead of giving
numbers that are silently different. What both look at, what they try with and when two results
count as the same is here.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from macpo.attention import base_model
from macpo.errors import ModelError

if TYPE_CHECKING:
    from torch import Tensor

FULL, SLIDING = "full_attention", "sliding_attention"
NO_MIXING = frozenset({"mlp", "moe"})
"""Layers that no token sees another in."""

DYNAMIC_ROPE = "dynamic"
LENGTH_DEPENDENT_ROPES = frozenset({DYNAMIC_ROPE, "longrope"})

SOFTCAPS = ("final_logit_softcapping", "output_logit_soft_cap", "logits_soft_cap")
SCALES = ("logit_scale", "logits_scaling", "lm_head_multiplier", "output_multiplier")
"""What configs call a cap on the final logits, and a factor on them."""

TRIAL_ERRORS = (ModelError, ValueError, TypeError, KeyError, AttributeError, RuntimeError)
"""What a model that does not play along may raise in a trial."""


@dataclass(frozen=True, slots=True)
class Rope:
    """Rotary positions of some layers: their kind, and the tokens up to which they stay the same.

    Beyond `limit` those of `LENGTH_DEPENDENT_ROPES` rotate every token, early ones too, by angles
    that depend on the length of the whole batch. None where the config names no limit.
    """

    kind: str
    limit: int | None


@dataclass(frozen=True, slots=True)
class Declared:
    """What a model's class and config say about it.

    `arguments` are those of its forward. `stateful` says that it keeps a recurrent state (families
    do, also where a config lists attention alone), `attends_through_interface` that its attention
    can be replaced. `layer_types` has one entry per layer; a config without such a list means
    sliding ones where it has a window. `window` is the sliding window in tokens, None if no layer
    slides. `logit_softcap` is Gemma 2's cap on the final logits; `logit_scales` are the factors on
    them that the config may mean, 1 first: Granite divides by the number that HyperCLOVA X
    multiplies by, under one name.
    """

    name: str
    arguments: frozenset[str]
    stateful: bool
    attends_through_interface: bool
    layer_types: tuple[str, ...]
    window: int | None
    ropes: tuple[Rope, ...]
    logit_softcap: float | None
    logit_scales: tuple[float, ...]

    @property
    def other_layer_types(self) -> tuple[str, ...]:
        """The types of layers that mix tokens by neither full nor sliding attention, sorted."""
        return tuple(sorted(set(self.layer_types) - {FULL, SLIDING} - NO_MIXING))

    @property
    def sliding_layers(self) -> tuple[int, ...]:
        """The layers that see only the window."""
        return tuple(i for i, kind in enumerate(self.layer_types) if kind == SLIDING)

    @property
    def rope_limit(self) -> int | None:
        """The tokens up to which rotary positions do not depend on the length; None: never."""
        limits = [rope.limit for rope in self.ropes if rope.kind in LENGTH_DEPENDENT_ROPES]
        return min((limit for limit in limits if limit is not None), default=None)

    def rope_changing_within(self, length: int) -> Rope | None:
        """Return rotary positions that are not the same for every batch of up to `length`."""
        for rope in self.ropes:
            changes = rope.kind in LENGTH_DEPENDENT_ROPES
            if changes and rope.limit is not None and length > rope.limit:
                return rope
        return None


def declared(causal_lm: Any) -> Declared:
    """Read what a transformers causal LM says about itself."""
    config = causal_lm.config.get_text_config()
    window = setting(config, "sliding_window", None) or None  # some write 0 for none
    if setting(config, "use_sliding_window", True) is False:
        window = None
    layers = setting(config, "num_hidden_layers", 1)
    unlisted = (FULL if window is None else SLIDING,) * layers
    listed = setting(config, "layer_types", None)
    types = tuple(listed or unlisted)
    attends = set(types) <= {FULL, SLIDING}
    return Declared(
        name=type(causal_lm).__name__,
        arguments=frozenset(inspect.signature(causal_lm.forward).parameters),
        stateful=bool(getattr(causal_lm, "_is_stateful", False)) and not (listed and attends),
        attends_through_interface=bool(getattr(causal_lm, "_supports_attention_backend", False)),
        layer_types=types,
        window=window if SLIDING in types else None,
        ropes=_ropes(config),
        logit_softcap=next(
            (cap for name in SOFTCAPS if (cap := setting(config, name, None)) is not None), None
        ),
        logit_scales=_logit_scales(config),
    )


def setting(config: Any, name: str, default: Any = None) -> Any:
    """Return a config's value; the default where it has none, or another one for each layer."""
    try:
        return getattr(config, name, default)
    except RuntimeError:  # transformers' word for the latter
        return default


def _logit_scales(config: Any) -> tuple[float, ...]:
    """Return the factors on the logits that a config may mean, 1 first."""
    found = [1.0]
    for name in SCALES:
        value = setting(config, name, None)
        if isinstance(value, int | float) and value:
            found += [float(value), 1 / value]
    part = setting(config, "dim_model_base", None)  # MiniCPM
    if part:
        found.append(part / config.hidden_size)
    return tuple(dict.fromkeys(found))


def _ropes(config: Any) -> tuple[Rope, ...]:
    """Return the config's rotary positions, which some models keep per layer type."""
    found = setting(config, "rope_parameters", None) or {}
    nested = [value for value in found.values() if isinstance(value, dict)]
    longest = setting(config, "max_position_embeddings", None)
    return tuple(
        Rope(
            rope.get("rope_type", "default"),
            rope.get("original_max_position_embeddings") or longest,
        )
        for rope in nested or [found]
    )


def forget_lengths(causal_lm: Any) -> None:
    """Let dynamic rotary positions begin anew, as in a model that has seen no sequence yet.

    Once they have seen a long one, transformers keeps its angles for those that are a bit shorter:
    a sequence's logits would depend on what was forwarded before.
    """
    for module in causal_lm.modules():
        if hasattr(module, "max_seq_len_cached"):
            for name in [n for n in vars(module) if n.endswith("max_seq_len_cached")]:
                setattr(module, name, module.original_max_seq_len)
            buffers = dict(module.named_buffers(recurse=False))
            for name in [n for n in buffers if n.endswith("original_inv_freq")]:
                current = name.removesuffix("original_inv_freq") + "inv_freq"
                setattr(module, current, buffers[name].to(buffers[current].device, copy=True))


def probe_ids(causal_lm: Any, count: int) -> list[int]:
    """Return `count` token ids spread over the vocabulary, another series for each count."""
    size = causal_lm.config.get_text_config().vocab_size
    return [(7919 * (i + 1) * count + 13) % size for i in range(count)]


def own_logits(model: Any, sequences: Sequence[Sequence[int]]) -> list[Tensor]:
    """Return the model's own logits of each sequence alone, `[tokens, vocabulary]`.

    Args:
        model: a transformers causal LM or a PEFT model over one, without dropout and gradients.
        sequences: token ids, at least one each.
    """
    device = base_model(model).device
    return [
        model(input_ids=torch.tensor([ids], device=device), use_cache=False).logits[0]
        for ids in sequences
    ]


def relative_error(ours: Tensor, theirs: Tensor, dtype: torch.dtype) -> float:
    """Return by how much logits differ, as a share of the spread that they have.

    For each row that is the root mean square of the difference over the standard deviation of
    `theirs`: it has no unit, so that one bound serves every architecture, and no single token of
    the vocabulary decides it. In float32 the worst row counts. In 16 bits the median row does:
    rounding alone takes single ones far astray there (0.7 was seen in bfloat16).

    Args:
        ours: `[rows, vocabulary]`, rows that a fault would take together, such as one sequence's.
        theirs: likewise.
        dtype: of the model.
    """
    difference = (ours.double() - theirs.double()).square().mean(dim=-1).sqrt()
    error = difference / theirs.double().std(dim=-1).clamp_min(1e-6)
    return float(error.max() if dtype.itemsize >= 4 else error.median())


def tolerance(dtype: torch.dtype) -> float:
    """Return the `relative_error` up to which two ways of computing logits count as the same.

    Measured of a row of branches, in tiny random models (Llama, Qwen 3, Gemma 2, GPT-NeoX, GPT-2,
    Mixtral, DeepSeek V3) and in SmolLM2-135M, which rounds through 30 layers:

                                              float32   float16   bfloat16
        rounding, tiny models                 6e-7      2e-3      0.01
        rounding, SmolLM2                     6e-6      5e-3      0.07
        branches that see each other          > 0.4     > 0.4     > 0.4
        positions that run on along the row   > 0.19    > 0.19    > 0.19
    """
    if dtype.itemsize >= 4:
        return 1e-3
    return 0.1 if dtype == torch.float16 else 0.15


def agree(ours: Tensor, theirs: Tensor, dtype: torch.dtype) -> bool:
    """Tell whether logits `[rows, vocabulary]` differ by no more than rounding in `dtype`."""
    return relative_error(ours, theirs, dtype) <= tolerance(dtype)


def first_line(error: BaseException) -> str:
    """Return the first line of an error, for a message of one line."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
