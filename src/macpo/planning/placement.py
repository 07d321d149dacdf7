"""Where an agent's work goes on some hardware: whole bases side by side, or one base divided.

Training and scoring: every device has the whole base and a share of the prompts, if that fits; else
the base is divided over all of them (FSDP). Answering: macpo's own decoder on every device if the
base fits beside its cache; else, or where the config says so, vLLM over as few devices as hold the
base (tensor parallel), as often as there are such sets of devices. Both take turns on the same
devices, so that each has all of their memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from macpo.config import EngineConfig
from macpo.planning.cards import Hardware
from macpo.planning.memory import Model, Parts, answering, serving, training

USABLE = 0.98
"""Of what a vendor calls a card's memory, the share that programs are given."""

LEAST_CACHE = 0.1
"""The share of a card that has to be left for keys and values, or answers grow a few at a time."""

MOST_DEVICES = 1024
WHOLE, SHARDED, LOCAL, SERVED = "whole", "FSDP", "local", "vLLM"


@dataclass(frozen=True, slots=True)
class Place:
    """How one kind of work is laid out.

    Attributes:
        way: `whole` or `FSDP` for training and scoring, `local` or `vLLM` for answers.
        shards: devices that hold one base together.
        replicas: how often there is one.
        parts: memory of one device; None where the model's shape is not known.
        fits: whether that is there; None where nobody knows.
        remedy: what to change where it does not fit, or to have it this way.
    """

    way: str
    shards: int
    replicas: int
    parts: Parts | None
    fits: bool | None
    remedy: str = ""


@dataclass(frozen=True, slots=True)
class Placement:
    """Where an agent's training (and scoring) and its answering go."""

    training: Place
    answering: Place


def place(
    model: Model, hardware: Hardware, engine: EngineConfig, longest: int, backend: str
) -> Placement:
    """Choose the layout of one agent's work.

    Args:
        model: the agent's.
        hardware: all devices serve one agent at a time.
        engine: of the config.
        longest: tokens of the longest prompt group.
        backend: who answers, by the config.
    """
    return Placement(
        _place_training(model, hardware, engine, longest),
        _place_answering(model, hardware, engine, backend),
    )


def _place_training(model: Model, hardware: Hardware, engine: EngineConfig, longest: int) -> Place:
    limit, count = USABLE * hardware.card.memory_gib, hardware.count

    def parts(shards: int, laid_out: EngineConfig) -> Parts | None:
        return training(model, laid_out, longest=longest, shards=shards, on_cpu=hardware.is_cpu)

    whole = parts(1, engine)
    if whole is None:
        return Place(WHOLE, 1, count, None, None)
    if whole.total <= limit:
        return Place(WHOLE, 1, count, whole, True)
    sharded = parts(count, engine) if count > 1 else None
    if sharded is not None and sharded.total <= limit:
        return Place(SHARDED, count, 1, sharded, True)
    shown = sharded or whole
    remedy = "no number of such devices holds it"
    for devices, laid_out, said in _ways_out(hardware, engine, longest):
        found = parts(devices, laid_out)
        if found is not None and found.total <= limit:
            remedy = said
            break
    return Place(SHARDED if count > 1 else WHOLE, count, 1, shown, False, remedy)


def _ways_out(
    hardware: Hardware, engine: EngineConfig, longest: int
) -> Iterator[tuple[int, EngineConfig, str]]:
    """Yield what may be tried, the least change first: devices, engine, and how to say it."""
    changes: list[tuple[EngineConfig, str]] = [(engine, "")]
    if not engine.checkpoint_activations:
        engine = engine.model_copy(update={"checkpoint_activations": True})
        changes.append((engine, "engine.checkpoint_activations: true"))
    if engine.pack_tokens > longest:
        engine = engine.model_copy(update={"pack_tokens": longest})
        before = f"{changes[-1][1]} and " if changes[-1][1] else ""
        changes.append((engine, f"{before}engine.pack_tokens: {longest}"))
    for laid_out, said in changes[1:]:
        yield hardware.count, laid_out, said
    devices = 2 * hardware.count
    while devices <= MOST_DEVICES:
        for laid_out, said in changes:
            with_it = f", with {said}" if said else ""
            yield devices, laid_out, f"{devices}x{hardware.card.name}{with_it}"
        devices *= 2


def _place_answering(model: Model, hardware: Hardware, engine: EngineConfig, backend: str) -> Place:
    memory, count = hardware.card.memory_gib, hardware.count
    local = answering(model, engine, on_cpu=hardware.is_cpu)
    if backend != "vllm" and (local.total <= USABLE * memory or hardware.is_cpu):
        fits = local.total <= USABLE * memory
        remedy = "" if fits else "a lower engine.decode_memory_gib, or a machine with more memory"
        return Place(LOCAL, 1, count, local, fits, remedy)
    remedy = "" if backend == "vllm" else "generation.backend: vllm"
    shards = 1
    while shards <= MOST_DEVICES:
        served = serving(model, memory, shards)
        if served.cache >= LEAST_CACHE * memory:
            break
        shards *= 2
    if shards > count:
        return Place(
            SERVED, count, 1, serving(model, memory, count), False, f"{shards}x{hardware.card.name}"
        )
    return Place(SERVED, shards, count // shards, served, True, remedy)
