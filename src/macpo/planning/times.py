"""How long work takes on some hardware, from stated shares of what the hardware can do."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from macpo.planning.cards import Hardware
from macpo.planning.costs import BYTES, GIB, flops
from macpo.planning.layouts import HERE, SERVED, SHARDED, Place
from macpo.planning.memory import Model
from macpo.planning.placement import Placement
from macpo.work import Work

GIGA, TERA = 1e9, 1e12

CARD_UTILISATION = 0.4
"""Of a card's matrix products, in training, scoring and reading prompts: assumed. Llama 3's report
has 38 to 43 % for its own training (arXiv 2407.21783, table 4)."""
CPU_UTILISATION, CPU_ANSWERING = 0.7, 0.3
"""Of a CPU's measured matrix products, in training and scoring, and in answering: measured, see
docs/plan.md."""
MEMORY_SHARE, LINK_SHARE = 0.6, 0.7
"""Of the speed of a card's memory while answers are decoded, and of links while a divided base is
gathered: assumed."""
MOST_ROWS = 256
"""Answers that vLLM decodes at once, at most (its default)."""
LAUNCHES = 2.5e-4
"""Seconds that a decoder layer takes at least in a step of macpo's own decoder on a card, for the
launching of its kernels: assumed."""
LOADING_GIB, STARTING = 2.0, 60.0
"""GiB of weights read from disk a second, and seconds until vLLM answers beside that: assumed."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What a stage is to do: its work, and the mean tokens of prompts with half of an answer."""

    work: Work
    prompt: float


def stage_seconds(
    asked: Asked,
    model: Model,
    placement: Placement,
    hardware: Hardware,
    *,
    pack_tokens: int,
    utilisation: float | None,
    recomputes: bool = False,
) -> float | None:
    """Estimate how long a stage takes, loading left out; None where the model's size is not known.

    Args:
        asked: the stage's work.
        model: of its agent.
        placement: where that works.
        hardware: what it works on.
        pack_tokens: tokens of a pack.
        utilisation: of matrix products; None for what is assumed.
        recomputes: training computes layers again (`engine.checkpoint_activations`).
    """
    work, shape = asked.work, model.shape
    met, head = (model.parameters, 0) if shape is None else (shape.met, shape.head)
    speed = hardware.card.tflops * TERA
    if hardware.is_cpu:
        share = utilisation or CPU_UTILISATION
        answered = work if work.written else Work()
        rest = Work() if work.written else work
        whole = speed * hardware.count
        worked = flops(rest, met, model.tuning, head, recomputes=recomputes) / share
        said = flops(answered, met, model.tuning, head) / (utilisation or CPU_ANSWERING)
        return (worked + said) / whole
    share = utilisation or CARD_UTILISATION
    read = Work(work.read, 0.0, work.trained, scored=work.scored, learned=work.learned)
    busy = placement.answering if work.written else placement.training
    used = busy.shards * busy.replicas
    seconds = flops(read, met, model.tuning, head, recomputes=recomputes) / (used * speed * share)
    if busy.way == SHARDED:
        seconds = max(seconds, _gathering(read, model, hardware, pack_tokens))
    elif busy.way != SERVED:
        turned = read.read + (3 if recomputes else 2) * read.trained
        seconds += turned / used / pack_tokens * _turning(model, hardware)
    if work.written:
        seconds += _decoding(asked, model, busy, hardware, share)
    return seconds


def _gathering(work: Work, model: Model, hardware: Hardware, pack_tokens: int) -> float:
    """Return the seconds in which each device gathers the base: thrice a pack that is trained."""
    passes = (3 * work.trained + work.read) / hardware.count / pack_tokens
    share = (hardware.count - 1) / hardware.count
    return passes * model.gib * GIB * share / (hardware.card.link_gbps * GIGA * LINK_SHARE)


def _turning(model: Model, hardware: Hardware) -> float:
    """Return the seconds in which all quantised weights are turned back once."""
    return model.turning_gib * GIB / (hardware.card.memory_gbps * GIGA * MEMORY_SHARE)


def _decoding(
    asked: Asked, model: Model, place: Place, hardware: Hardware, utilisation: float
) -> float:
    """Return the seconds of writing answers token by token.

    A step reads the weights once for all rows, and keys and values of each row; it takes that, or
    its products, whichever is longer.
    """
    work, card = asked.work, hardware.card
    answers = work.answers or 1.0
    tokens = work.written / answers
    rows = max(1.0, answers / place.replicas)
    cached = 0.0
    met = float(model.parameters)
    floor = 0.0
    if model.shape is not None:
        met = model.shape.met + model.shape.head
        size = model.shape.key_values * model.shape.layers * BYTES[model.dtype]
        room = 0.0 if place.parts is None else place.parts.cache * GIB * place.shards
        rows = min(rows, max(1.0, room // (size * (asked.prompt + tokens))))
        cached = size * (asked.prompt + tokens / 2)
        floor = LAUNCHES * model.shape.layers if place.way == HERE else 0.0
    if place.way == SERVED:
        rows = min(rows, MOST_ROWS)
    memory = (model.gib * GIB + rows * cached) / (
        place.shards * card.memory_gbps * GIGA * MEMORY_SHARE
    )
    if place.way == HERE:  # vLLM multiplies with quantised weights as they are
        memory += _turning(model, hardware)
    products = 2 * met * rows / (place.shards * card.tflops * TERA * utilisation)
    return work.written / (rows * place.replicas) * max(memory, products, floor)


def loading_seconds(stages: Iterable[tuple[str, str, float]]) -> float:
    """Estimate the seconds of loading bases, one after the other.

    Args:
        stages: in their order: the agent, the way in which its base is used, and the GiB that
            are read for it. A base is loaded whenever the stage before used another one, or in
            another way.
    """
    seconds, before = 0.0, ("", "")
    for agent, way, gib in stages:
        if (agent, way) != before:
            seconds += gib / LOADING_GIB + (STARTING if way == SERVED else 0.0)
        before = (agent, way)
    return seconds
