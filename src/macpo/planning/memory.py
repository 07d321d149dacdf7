"""Memory of one device by part, for training and for answering, estimated from a model's shape.

What a decoder layer keeps of a token for the backward pass was counted (tensors that autograd saved
in a Llama of transformers 5.23 under the likelihood engine), in numbers of the model's dtype:

                     float32                        bfloat16
    base frozen      4.2 hidden + 3 intermediate    6.2 hidden + 3 intermediate
    all weights      9.2 hidden + 4 intermediate    11.2 hidden + 4 intermediate

and keys and values. Over a base in bfloat16 PEFT keeps a float32 copy of what each adapted layer
takes in; in float32 adapters share what is there. On a CPU attention keeps its probabilities.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

from macpo.config import EngineConfig
from macpo.likelihood.head import CHUNK
from macpo.planning.costs import BYTES, GIB, ModelShape

FLOAT = 4
KEPT = {"lora": {"float32": (4.2, 3), "bfloat16": (6.2, 3)}, "full": {}}
KEPT["full"] = {"float32": (9.2, 4), "bfloat16": (11.2, 4)}
"""Numbers kept of a token in a layer: of its hidden, and of its intermediate width."""

CPU_OVERHEAD, CARD_OVERHEAD, FRAGMENTS = 0.6, 1.0, 0.05
"""GiB of Python with torch and transformers; of a CUDA context with its libraries; and the share of
all else that allocators lose on a card."""

SERVED_OVERHEAD = 2.0
"""GiB that vLLM needs of a card beside weights and cache: activations, captured graphs."""


@dataclass(frozen=True, slots=True)
class Parts:
    """Memory of one device in GiB, by part.

    `weights` are the base's, with what of a sharded base is gathered at a time, or of a quantised
    one turned back, and with the copies of them that decoding on a CPU makes; `logits` are one
    chunk of them; `cache` holds keys and values of answers under way; `others` are bases that macpo
    keeps there meanwhile.
    """

    weights: float = 0.0
    adapters: float = 0.0
    gradients: float = 0.0
    optimizer: float = 0.0
    activations: float = 0.0
    logits: float = 0.0
    cache: float = 0.0
    others: float = 0.0
    overhead: float = 0.0

    @property
    def total(self) -> float:
        """All of them."""
        return float(sum(getattr(self, field.name) for field in fields(self)))


@dataclass(frozen=True, slots=True)
class Model:
    """What is known of an agent's model: weights, dtype, whether all of them train, and shape.

    `stored` are the bytes of quantised weights; None for `parameters` in `dtype`. `made` says that
    these are quantised while the base loads (`quantize: nf4`), from files of ordinary weights.
    """

    parameters: int
    dtype: str
    tuning: str
    shape: ModelShape | None
    stored: int | None = None
    made: bool = False

    @property
    def gib(self) -> float:
        """The weights in GiB."""
        return (self.stored or self.parameters * BYTES[self.dtype]) / GIB

    @property
    def plain_gib(self) -> float:
        """The weights in GiB, were they not quantised."""
        return self.parameters * BYTES[self.dtype] / GIB

    @property
    def read_gib(self) -> float:
        """What loading reads, in GiB."""
        return self.plain_gib if self.made else self.gib

    @property
    def turning_gib(self) -> float:
        """What goes through memory when all quantised weights are turned back once: out and in."""
        return 0.0 if self.stored is None else 2 * self.plain_gib

    @property
    def turned_back_gib(self) -> float:
        """The largest matrix of quantised weights, which is turned back to be multiplied with."""
        if self.stored is None or self.shape is None:
            return 0.0
        return self.shape.hidden * self.shape.intermediate * BYTES[self.dtype] / GIB


@dataclass(frozen=True, slots=True)
class Memory:
    """Memory of one device in GiB: the base's weights, and all of it in training and in answering.

    `training` is None where the model's shape is not known.
    """

    weights: float
    training: float | None
    answering: float


def training(
    model: Model,
    engine: EngineConfig,
    *,
    longest: int,
    shards: int = 1,
    on_cpu: bool = False,
    others_gib: float = 0.0,
) -> Parts | None:
    """Estimate the memory of training; None where the model's shape is not known.

    Args:
        model: who trains.
        engine: how work is laid out.
        longest: tokens of the longest prompt group; it goes alone where it exceeds a pack.
        shards: over how many devices the base is divided (FSDP).
        on_cpu: the device is a CPU.
        others_gib: of other bases that stay on the device.
    """
    shape = model.shape
    if shape is None:
        return None
    size = BYTES[model.dtype]
    gathered = 0.0
    if shards > 1:  # a layer in use, the next on its way, and the head
        gathered = (2 * shape.largest + shape.head) * size / GIB
    trained = shape.adapter * FLOAT / GIB if model.tuning == "lora" else model.gib / shards
    return _with_overhead(
        Parts(
            weights=model.gib / shards + gathered + model.turned_back_gib,
            adapters=trained if model.tuning == "lora" else 0.0,
            gradients=trained,
            optimizer=2 * trained,
            activations=_activations(model, shape, engine, longest, on_cpu) / GIB,
            logits=CHUNK * shape.vocabulary * (size + 3 * FLOAT) / GIB,
            others=others_gib,
        ),
        on_cpu,
    )


def _activations(
    model: Model, shape: ModelShape, engine: EngineConfig, longest: int, on_cpu: bool
) -> float:
    """Return the bytes that the backward pass of a full pack needs."""
    size = BYTES[model.dtype]
    of_hidden, of_intermediate = KEPT[model.tuning][model.dtype]
    numbers = of_hidden * shape.hidden + of_intermediate * shape.intermediate + shape.key_values
    if on_cpu:
        numbers += shape.heads * min(longest, engine.pack_tokens) / 2  # what no token sees is left
    else:
        numbers += 2 * shape.key_values  # gathered for every branch
    layer = numbers * size + (
        shape.adapted * FLOAT if size < FLOAT else shape.adapted_apart * size
    ) / max(shape.layers, 1)
    if engine.checkpoint_activations:
        per_token = shape.layers * shape.hidden * size + layer
    else:
        per_token = shape.layers * layer
    return max(engine.pack_tokens, longest) * per_token


def answering(
    model: Model, engine: EngineConfig, *, on_cpu: bool = False, others_gib: float = 0.0
) -> Parts:
    """Estimate the memory of answering by macpo's own decoder; arguments as for `training`."""
    shape = model.shape
    adapters = activations = logits = 0.0
    if shape is not None:
        adapters = shape.adapter * FLOAT / GIB
        row = 6 * shape.hidden + 3 * shape.intermediate
        activations = engine.pack_tokens * row * BYTES[model.dtype] / GIB
        logits = CHUNK * shape.vocabulary * 2 * FLOAT / GIB
    copied = on_cpu and model.stored is None and model.gib <= engine.decode_memory_gib
    return _with_overhead(
        Parts(
            weights=model.gib * (2 if copied else 1) + model.turned_back_gib,
            adapters=adapters,
            activations=activations,
            logits=logits,
            cache=engine.decode_memory_gib,
            others=others_gib,
        ),
        on_cpu,
    )


def serving(model: Model, shards: int, *, cache_gib: float, held_gib: float) -> Parts:
    """Estimate the memory of answering by vLLM, beside what macpo's own process has there.

    Args:
        model: who answers.
        shards: over how many cards the base is divided (tensor parallel).
        cache_gib: of keys and values, on each card (`engine.decode_memory_gib`).
        held_gib: of bases that macpo's process keeps on a card while vLLM answers.
    """
    return Parts(
        weights=model.gib / shards,
        cache=cache_gib,
        others=held_gib,
        overhead=SERVED_OVERHEAD + CARD_OVERHEAD,
    )


def _with_overhead(parts: Parts, on_cpu: bool) -> Parts:
    """Add what no part of the work asks for."""
    overhead = CPU_OVERHEAD if on_cpu else CARD_OVERHEAD + FRAGMENTS * parts.total
    values = {field.name: getattr(parts, field.name) for field in fields(parts)}
    return Parts(**{**values, "overhead": overhead})
