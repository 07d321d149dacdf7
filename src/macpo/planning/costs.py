"""What work costs: floating-point operations, by arithmetic on the shape of a model.

How many tokens a stage takes through its model, it says itself (`macpo.work`). Operations of
attention itself are left out: beside the weights' they are some percent for answers of hundreds of
tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from macpo.agents import Agent
from macpo.models.folders import CONFIG
from macpo.work import Work

GIB = 1 << 30
BYTES = {"float32": 4, "bfloat16": 2}
EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts")
"""What configs call the number of experts of a layer."""


@dataclass(frozen=True, slots=True)
class ModelShape:
    """What cost depends on beside the number of weights.

    Attributes:
        layers: decoder layers.
        hidden: width between layers.
        intermediate: width inside their MLPs.
        heads: of attention's queries, in a layer.
        key_values: numbers that a layer keeps of a token, as keys and values.
        vocabulary: tokens that the head scores.
        met: weights that every token is multiplied with: without embedding, head, and the experts
            that a token does not go through.
        largest: weights of the largest layer.
        adapter: weights of the adapter.
        adapted: numbers that adapted layers take in of a token, all of them together.
        adapted_apart: likewise, what several of one block take in counted once.
    """

    layers: int
    hidden: int
    intermediate: int
    heads: int
    key_values: int
    vocabulary: int
    met: int
    largest: int
    adapter: int = 0
    adapted: int = 0
    adapted_apart: int = 0

    @property
    def head(self) -> int:
        """Weights of the LM head, which only tokens that are predicted meet."""
        return self.hidden * self.vocabulary


def flops(
    work: Work, parameters: int, tuning: str, head: int = 0, *, recomputes: bool = False
) -> float:
    """Return the floating-point operations of some work.

    Forward takes 2 a weight and token; backward as much again for the inputs' gradients, and once
    more for the weights' own gradients where all weights train.

    Args:
        work: tokens.
        parameters: weights that every token meets.
        tuning: `lora` or `full`.
        head: weights of the head, where they are not among `parameters`.
        recomputes: layers, but not the head, are forwarded again on the way back.
    """
    trained = 6 if tuning == "full" else 4
    again = 2 if recomputes else 0
    body = parameters * (2 * (work.read + work.written) + (trained + again) * work.trained)
    return body + head * (2 * (work.scored + work.written) + trained * work.learned)


def model_shape(agent: Agent) -> ModelShape | None:
    """Return the shape of an agent's model; None where neither its config is here nor it is known.

    Raises:
        ModelError: the config cannot be read, or `tuning.targets` does not fit the model.
    """
    from macpo.models.loading import outline

    model = outline(agent.base)
    if model is None:
        return None
    text = model.config.get_text_config()
    hidden, heads = int(text.hidden_size), int(getattr(text, "num_attention_heads", None) or 1)
    kept = int(getattr(text, "num_key_value_heads", None) or heads)
    size = int(getattr(text, "head_dim", None) or hidden // heads)
    layers = int(text.num_hidden_layers)
    met, largest = _weights_met(model, text)
    adapter = _adapter(model, agent) if agent.tuning.kind == "lora" else (0, 0, 0)
    return ModelShape(
        layers,
        hidden,
        int(getattr(text, "intermediate_size", None) or 4 * hidden),
        heads,
        2 * kept * size,
        int(text.vocab_size),
        met,
        largest,
        *adapter,
    )


def _weights_met(model: Any, config: Any) -> tuple[int, int]:
    """Return the weights that every token meets, and those of the largest layer."""
    outer = [model.get_input_embeddings(), model.get_output_embeddings()]
    apart = {id(p) for module in outer if module is not None for p in module.parameters()}
    experts = next((int(n) for name in EXPERTS if (n := getattr(config, name, None))), 1)
    used = int(getattr(config, "num_experts_per_tok", None) or experts)
    met, by_layer = 0.0, dict[str, int]()
    for name, weight in model.named_parameters():
        if id(weight) in apart:
            continue
        count = weight.numel()
        met += count * (used / experts if ".experts." in name else 1)
        number = next((part for part in name.split(".") if part.isdigit()), "")
        by_layer[number] = by_layer.get(number, 0) + count
    return round(met), max(by_layer.values(), default=0)


def _adapter(model: Any, agent: Agent) -> tuple[int, int, int]:
    """Return the weights of an adapter, and what its layers take in (`ModelShape.adapted`)."""
    from macpo.adapters import with_adapter

    model.requires_grad_(False)
    adapted = with_adapter(model, agent.tuning, agent.base.name)
    weights = sum(p.numel() for p in adapted.parameters() if p.requires_grad)
    inputs, apart = 0, dict[tuple[str, int], int]()
    for name, module in adapted.named_modules():
        if hasattr(module, "lora_A") and len(module.lora_A):
            size = int(next(iter(module.lora_A.values())).in_features)
            inputs += size
            apart[name.rpartition(".")[0], size] = size
    return weights, inputs, sum(apart.values())


def state_layers(agent: Agent) -> tuple[str, ...]:
    """Return the kinds of an agent's layers that carry state along a row, by its config.

    None of them where the config is not here.
    """
    if not (Path(agent.base.location) / CONFIG).is_file():
        return ()
    from macpo.models.loading import empty_model
    from macpo.probe import declared

    return declared(empty_model(agent.base)).other_layer_types
