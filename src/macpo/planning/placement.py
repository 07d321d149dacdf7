"""Where the work of a run goes on some hardware: one layout, which holds for all of its agents.

The first that fits all agents is taken, if need be with `engine.checkpoint_activations`. What the
config asks for counts, and what a run would refuse is no layout.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from macpo.backends import LOCAL, VLLM
from macpo.config import EngineConfig, RunConfig
from macpo.models.quantising import NF4
from macpo.planning.cards import Hardware
from macpo.planning.layouts import PYTHON, Layout, Member, Place, candidates, layouts, refusal
from macpo.planning.memory import Model


@dataclass(frozen=True, slots=True)
class Placement:
    """Where an agent's training (and scoring) and its answering go."""

    training: Place
    answering: Place


@dataclass(frozen=True, slots=True)
class ChosenLayout:
    """The layout of a run, as keys of its config.

    Attributes:
        keys: of a config, by section, which ask for it.
        missing: those that the config does not have so, as `engine.processes: 8`.
        recomputes: with `engine.checkpoint_activations`.
        refused: why the run cannot divide its bases, where it would have to; else empty.
        in_four_bits: keys with which it would fit undivided, bases in 4 bits; empty where it does
            without, or cannot.
    """

    keys: Mapping[str, Mapping[str, Any]]
    missing: tuple[str, ...]
    recomputes: bool = False
    refused: str = ""
    in_four_bits: tuple[str, ...] = ()


def place_run(
    config: RunConfig, hardware: Hardware, members: Sequence[Member], *, pushes: bool = False
) -> tuple[ChosenLayout, dict[str, Placement]]:
    """Choose the layout of a run.

    Args:
        config: the run.
        hardware: all devices serve one agent at a time.
        members: the agents of which sizes are known.
        pushes: some answers are pushed away from another policy's.

    Returns:
        The layout, and where each member's work goes under it.
    """
    shown: Layout | None = None
    for run in layouts(config, hardware, members, pushes):
        if run.engine.checkpoint_activations == config.engine.checkpoint_activations:
            shown = run  # what is missing is told from what the config says
        if run.fits():
            found = {m.name: Placement(run.train(m), run.answer(m)) for m in members}
            keys = _in_four_bits(config, hardware, members, pushes) if run.shards > 1 else ()
            return replace(_layout(run), in_four_bits=keys), found
    if shown is None:  # only a config that was asked to divide, for a reason that weights give
        shown = next(candidates(config, hardware, members, pushes))
    dividing = config.engine.model_copy(update={"sharding": "fsdp"})
    backend = VLLM.name if config.generation.backend == LOCAL.name else config.generation.backend
    refused, instead = refusal(Layout(config, hardware, members, dividing, backend, 1, pushes))
    found = {}
    for member in members:
        trained, answered = shown.train(member), shown.answer(member)
        if trained.fits is False:
            trained = _with_remedy(trained, shown.remedy(member, instead))
        if answered.fits is False and instead:
            answered = _with_remedy(answered, instead)
        found[member.name] = Placement(trained, answered)
    keys = _in_four_bits(config, hardware, members, pushes)
    return replace(_layout(shown), refused=refused, in_four_bits=keys), found


def _in_four_bits(
    config: RunConfig, hardware: Hardware, members: Sequence[Member], pushes: bool
) -> tuple[str, ...]:
    """Return the keys with which a run fits undivided, with bases in 4 bits; none if it cannot.

    As few bases as will do, the largest first.
    """
    able = [member for member in members if member.in_nf4 is not None]
    able.sort(key=lambda member: member.model.gib, reverse=True)
    for count in range(1, len(able) + 1):
        names = {member.name for member in able[:count]}
        changed = [m.quantised() if m.name in names else m for m in members]
        asked, keys = _quantising(config, names)
        for run in layouts(asked, hardware, changed, pushes):
            if run.fits():
                return (*keys, *_layout(run).missing)
    return ()


def _quantising(config: RunConfig, names: Collection[str]) -> tuple[RunConfig, list[str]]:
    """Return a config that quantises some agents' bases, and the keys that ask for it."""
    keys, changed = [], []
    for name, where, agent in config.agents():
        if name in names:
            keys.append(f"{where}.model.quantize: {NF4}")
            model = agent.model.model_copy(update={"quantize": NF4})
            agent = agent.model_copy(update={"model": model})
        changed.append(agent)
    student, *teachers = changed
    return config.model_copy(update={"student": student, "teachers": tuple(teachers)}), keys


def place(
    model: Model, hardware: Hardware, engine: EngineConfig, longest: int, config: RunConfig
) -> Placement:
    """Choose the layout of a run that has one agent alone.

    Args:
        model: the agent's.
        hardware: where.
        engine: in place of the config's.
        longest: tokens of the longest prompt group.
        config: says all else.
    """
    member = Member("student", model, longest, "")
    laid_out = config.model_copy(update={"engine": engine})
    return place_run(laid_out, hardware, [member])[1]["student"]


def _with_remedy(found: Place, remedy: str) -> Place:
    return replace(found, remedy=remedy)


def _layout(run: Layout) -> ChosenLayout:
    """Name the keys of a layout."""
    engine: dict[str, Any] = {}
    generation: dict[str, Any] = {"backend": run.backend}
    if run.hardware.count > 1 and run.config.execution.backend == "local":
        engine["processes"] = run.hardware.count
    if run.shards > 1 or run.config.engine.sharding != "none":
        engine["sharding"] = run.engine.sharding
    if run.engine.checkpoint_activations:
        engine["checkpoint_activations"] = True
    if run.backend == VLLM.name:
        engine["decode_memory_gib"] = run.engine.decode_memory_gib
        asked = getattr(run.config.generation, "python", PYTHON)
        generation |= {"python": asked, "tensor_parallel": run.parallel}
    keys = {"engine": engine, "generation": generation}
    missing = tuple(
        f"{section}.{key}: {written(value)}"
        for section, values in keys.items()
        for key, value in values.items()
        if getattr(getattr(run.config, section), key, None) != value
    )
    return ChosenLayout(keys, missing, run.engine.checkpoint_activations)


def written(value: Any) -> str:
    """Write the value of a key as YAML has it."""
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)
