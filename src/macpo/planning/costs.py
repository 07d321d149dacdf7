"""What work costs: floating-point operations and memory, estimated without running anything.

How many tokens a stage takes through its model, it says itself (`macpo.work`); here is arithmetic
on such counts. It is rough on purpose: operations of attention itself are left out (small beside
the weights' for answers of hundreds of tokens), and so is what packing and allocators add.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from macpo.agents import Agent
from macpo.config import EngineConfig
from macpo.models.folders import CONFIG
from macpo.work import Work

GIB = 1 << 30
BYTES = {"float32": 4, "bfloat16": 2}
ADAPTER_BYTES = 16
"""Of an adapter's weight in training: itself, its gradient and AdamW's two moments, in float32."""
FULL_COPIES = 4
"""Of a weight that trains whole: itself, its gradient and AdamW's two moments, in its dtype."""
ACTIVATIONS_PER_HIDDEN, ACTIVATIONS_PER_INTERMEDIATE = 8, 3
"""Numbers that a decoder layer keeps for the backward pass, for each token and each unit of its
hidden and intermediate size: inputs of norms, projections and products, in the model's dtype."""


def flops(work: Work, parameters: int, tuning: str) -> float:
    """Return the floating-point operations of some work.

    Forward takes 2 a weight and token; backward as much again for the inputs' gradients, and once
    more for the weights' own gradients where all weights train.

    Args:
        work: tokens.
        parameters: weights of the model.
        tuning: `lora` or `full`.
    """
    trained = 6 if tuning == "full" else 4
    return parameters * (2 * (work.read + work.written) + trained * work.trained)


@dataclass(frozen=True, slots=True)
class ModelShape:
    """What memory depends on beside the number of weights; `adapter` is the adapter's weights."""

    layers: int
    hidden: int
    intermediate: int
    adapter: int


@dataclass(frozen=True, slots=True)
class Memory:
    """Memory in GiB: the weights, and the most while training and while answering.

    None where the model's shape is not known.
    """

    weights: float
    training: float | None
    answering: float


def memory(
    parameters: int, dtype: str, tuning: str, shape: ModelShape | None, engine: EngineConfig
) -> Memory:
    """Estimate the memory that one agent's model takes, alone."""
    weights = parameters * BYTES[dtype] / GIB
    training = None
    if shape is not None:
        per_token = shape.layers * (
            ACTIVATIONS_PER_HIDDEN * shape.hidden
            + ACTIVATIONS_PER_INTERMEDIATE * shape.intermediate
        )
        activations = engine.pack_tokens * per_token * BYTES[dtype] / GIB
        if tuning == "full":
            training = FULL_COPIES * weights + activations
        else:
            training = weights + shape.adapter * ADAPTER_BYTES / GIB + activations
    return Memory(weights, training, weights + engine.decode_memory_gib)


def model_shape(agent: Agent) -> ModelShape | None:
    """Read the shape of an agent's model off its config; None when that is not here.

    Raises:
        ModelError: the config cannot be read, or `tuning.targets` does not fit the model.
    """
    folder = Path(agent.base.location)
    if not (folder / CONFIG).is_file():
        return None
    from macpo.adapters import adapter_weights
    from macpo.models.loading import empty_model

    model = empty_model(agent.base)
    text = model.config.get_text_config()
    hidden = int(text.hidden_size)
    intermediate = int(getattr(text, "intermediate_size", None) or 4 * hidden)
    lora = agent.tuning.kind == "lora"
    adapter = adapter_weights(model, agent.tuning, agent.base.name) if lora else 0
    return ModelShape(int(text.num_hidden_layers), hidden, intermediate, adapter)


def state_layers(agent: Agent) -> tuple[str, ...]:
    """Return the kinds of an agent's layers that carry state along a row, by its config.

    None of them where the config is not here.
    """
    if not (Path(agent.base.location) / CONFIG).is_file():
        return ()
    from macpo.models.loading import empty_model
    from macpo.probe import declared

    return declared(empty_model(agent.base)).other_layer_types
