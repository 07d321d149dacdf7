"""Where the work of a run goes on some hardware: one layout, which holds for all of its agents.

The engine has three: every device has the whole base and a share of the prompts, and answers them
by macpo's own decoder; the same, but vLLM answers (one engine at a time, over `tensor_parallel`
devices); every base is divided over all devices (FSDP), and vLLM answers. The first that fits all
agents is taken, if need be with `engine.checkpoint_activations`. What the config asks for counts,
and what a run would refuse is no layout.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from macpo.backends import LOCAL, VLLM, find_backend
from macpo.config import EngineConfig, RunConfig
from macpo.config.serving import VllmConfig
from macpo.models.quantising import NF4
from macpo.planning.cards import Hardware
from macpo.planning.memory import Model, Parts, answering, serving, training

USABLE = 0.98
"""Of what a vendor calls a card's memory, the share that programs are given."""

KEPT_BASES = 0.5
"""The share of a device's memory up to which bases stay there while others work."""

LEAST_CACHE = 0.1
"""The share of a card that has to be left for keys and values, or answers grow a few at a time."""

MOST_DEVICES = 1024
WHOLE, SHARDED, HERE, SERVED = "whole", "FSDP", "local", "vLLM"
PYTHON = ".venv-vllm/bin/python"
"""The interpreter that a plan names where the config has none (docs/vllm.md makes it)."""


@dataclass(frozen=True, slots=True)
class Place:
    """How one kind of work is laid out.

    Attributes:
        way: `whole` or `FSDP` for training and scoring; `local`, `vLLM` or the name of another
            backend for answers.
        shards: devices that hold one base together.
        replicas: how often there is one.
        parts: memory of one device; None where the model's shape is not known.
        fits: whether that is there; None where nobody knows.
        remedy: what to change where it does not fit.
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


@dataclass(frozen=True, slots=True)
class Member:
    """An agent as placement sees it.

    Attributes:
        name: the agent's.
        model: its model.
        longest: tokens of its longest prompt group.
        base: equal for agents that share a base in memory.
        in_nf4: its model with `quantize: nf4`; None where it cannot be had so.
    """

    name: str
    model: Model
    longest: int
    base: str
    in_nf4: Model | None = None

    def quantised(self) -> Member:
        """Return this agent with its base in 4 bits, which it shares only with others of these."""
        assert self.in_nf4 is not None
        return replace(self, model=self.in_nf4, base=f"{self.base} {NF4}", in_nf4=None)


@dataclass(frozen=True, slots=True)
class RunLayout:
    """The layout of a run.

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


@dataclass(frozen=True, slots=True)
class _Run:
    """A run on some hardware under one layout."""

    config: RunConfig
    hardware: Hardware
    members: Sequence[Member]
    engine: EngineConfig
    backend: str
    parallel: int
    pushes: bool

    @property
    def limit(self) -> float:
        """The GiB of a device that there are for a run."""
        return USABLE * self.hardware.card.memory_gib

    @property
    def shards(self) -> int:
        """Over how many devices each base is divided."""
        return 1 if self.engine.sharding == "none" else self.hardware.count

    def held(self, member: Member, shards: int) -> float:
        """Return the GiB of bases on a device while the member's own is in use, this included."""
        sizes = {other.base: other.model.gib / shards for other in self.members}
        own = sizes[member.base]
        return min(sum(sizes.values()), max(own, KEPT_BASES * self.hardware.card.memory_gib))

    def fits(self) -> bool:
        """Tell whether there is room for all that is known of."""
        places = (place for m in self.members for place in (self.train(m), self.answer(m)))
        return all(place.fits is not False for place in places)

    def train(self, member: Member) -> Place:
        """Place training and scoring."""
        parts = self._training(member.model, member, self.engine, self.shards)
        way = WHOLE if self.shards == 1 else SHARDED
        fits = None if parts is None else parts.total <= self.limit
        replicas = self.hardware.count // self.shards
        return Place(way, self.shards, replicas, parts, fits)

    def _training(
        self, model: Model, member: Member, engine: EngineConfig, shards: int
    ) -> Parts | None:
        return training(
            model,
            engine,
            longest=member.longest,
            shards=shards,
            on_cpu=self.hardware.is_cpu,
            others_gib=self.held(member, shards) - member.model.gib / shards,
        )

    def answer(self, member: Member) -> Place:
        """Place answering."""
        held, count = self.held(member, self.shards), self.hardware.count
        if self.backend == VLLM.name:
            parts = serving(
                member.model,
                self.parallel,
                cache_gib=self.engine.decode_memory_gib,
                held_gib=held,
            )
            fits = parts.total <= self.limit
            remedy = "" if fits else self._more_cards(member)
            return Place(SERVED, self.parallel, 1, parts, fits, remedy)
        if self.shards > 1:  # a server that is there: nothing of these devices
            return Place(self.backend, 1, count, Parts(others=held), True)
        others = held - member.model.gib
        on_cpu = self.hardware.is_cpu
        parts = answering(member.model, self.engine, on_cpu=on_cpu, others_gib=others)
        fits = parts.total <= self.limit
        remedy = "" if fits else "a lower engine.decode_memory_gib, or a machine with more memory"
        return Place(HERE, 1, count, parts, fits, remedy)

    def _more_cards(self, member: Member) -> str:
        """Say with how many devices vLLM would have room, with bases divided over them."""
        devices, total = 2 * self.hardware.count, sum(m.model.gib for m in self.members)
        while devices <= MOST_DEVICES:
            held = total / devices
            cache = LEAST_CACHE * self.hardware.card.memory_gib
            there = serving(member.model, devices, cache_gib=cache, held_gib=held)
            if there.total <= self.limit:
                return f"{devices}x{self.hardware.card.name}"
            devices *= 2
        return "no number of such devices holds it"

    def remedy(self, member: Member, instead: str) -> str:
        """Say what the least change is with which training would fit.

        Args:
            member: whose training does not.
            instead: what to change before bases can be divided; empty where they can.
        """
        ways = list(_ways_out(self.hardware, self.engine, member.longest))
        model = member.model
        if instead:
            for devices, engine, said in ways:
                parts = self._training(model, member, engine, 1)
                if devices == self.hardware.count and parts and parts.total <= self.limit:
                    return said
            model = replace(model, tuning="lora")
            ways.insert(0, (self.hardware.count, self.engine, ""))
        for devices, engine, said in ways:
            parts = self._training(model, member, engine, devices)
            if parts is not None and parts.total <= self.limit:
                return ", with ".join(text for text in (instead, said) if text)
        return "no number of such devices holds it"


def place_run(
    config: RunConfig, hardware: Hardware, members: Sequence[Member], *, pushes: bool = False
) -> tuple[RunLayout, dict[str, Placement]]:
    """Choose the layout of a run.

    Args:
        config: the run.
        hardware: all devices serve one agent at a time.
        members: the agents of which sizes are known.
        pushes: some answers are pushed away from another policy's.

    Returns:
        The layout, and where each member's work goes under it.
    """
    shown: _Run | None = None
    for run in _layouts(config, hardware, members, pushes):
        if run.engine.checkpoint_activations == config.engine.checkpoint_activations:
            shown = run  # what is missing is told from what the config says
        if run.fits():
            found = {m.name: Placement(run.train(m), run.answer(m)) for m in members}
            keys = _in_four_bits(config, hardware, members, pushes) if run.shards > 1 else ()
            return replace(_layout(run), in_four_bits=keys), found
    if shown is None:  # only a config that was asked to divide, for a reason that weights give
        shown = next(_candidates(config, hardware, members, pushes))
    dividing = config.engine.model_copy(update={"sharding": "fsdp"})
    backend = VLLM.name if config.generation.backend == LOCAL.name else config.generation.backend
    refused, instead = _refusal(_Run(config, hardware, members, dividing, backend, 1, pushes))
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
        for run in _layouts(asked, hardware, changed, pushes):
            if run.fits():
                return (*keys, *_layout(run).missing)
    return ()


def _quantising(config: RunConfig, names: Collection[str]) -> tuple[RunConfig, list[str]]:
    """Return a config that quantises some agents' bases, and the keys that ask for it."""
    keys, changed = [], []
    agents = [("student", "student", config.student)]
    agents += [(t.name, f"teachers.{i}", t) for i, t in enumerate(config.teachers)]
    for name, where, agent in agents:
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


def _layouts(
    config: RunConfig, hardware: Hardware, members: Sequence[Member], pushes: bool
) -> Iterator[_Run]:
    """Yield the layouts that a run would not refuse."""
    for run in _candidates(config, hardware, members, pushes):
        if not _refusal(run)[0]:
            yield run


def _candidates(
    config: RunConfig, hardware: Hardware, members: Sequence[Member], pushes: bool
) -> Iterator[_Run]:
    """Yield the layouts of a run, the one that is to be taken first of all first."""
    asked = config.generation.backend
    served = VLLM.name if asked == LOCAL.name else asked
    ways = [("none", asked)]
    if not hardware.is_cpu:
        ways += [("none", served), ("fsdp", served)]
    if config.engine.sharding == "fsdp":
        ways = [("fsdp", served)] if hardware.count > 1 else ways
    ways = [way for way in dict.fromkeys(ways) if way[0] == "none" or hardware.count > 1]
    recomputing = [config.engine.checkpoint_activations]
    if "checkpoint_activations" not in config.engine.model_fields_set:
        recomputing = [False, True]
    for recomputes, (sharding, backend) in itertools.product(recomputing, ways):
        changes = {"sharding": sharding, "checkpoint_activations": recomputes}
        engine = config.engine.model_copy(update=changes)
        parallel = _parallel(config, hardware, members) if backend == VLLM.name else 1
        run = _Run(config, hardware, members, engine, backend, parallel, pushes)
        yield _with_cache(run) if backend == VLLM.name else run


def _parallel(config: RunConfig, hardware: Hardware, members: Sequence[Member]) -> int:
    """Return over how many devices vLLM divides each base: as many as divide all models' heads.

    There is one engine at work at a time, and the devices that it is not on wait.
    """
    section = config.generation
    if isinstance(section, VllmConfig) and "tensor_parallel" in section.model_fields_set:
        return section.tensor_parallel
    heads = [member.model.shape.heads for member in members if member.model.shape is not None]
    found = 1
    while 2 * found <= hardware.count and all(n % (2 * found) == 0 for n in heads):
        found *= 2
    return found


def _with_cache(run: _Run) -> _Run:
    """Give vLLM's keys and values what is left of a device, unless the config says how much."""
    if "decode_memory_gib" in run.config.engine.model_fields_set:
        return run
    rest = [
        run.limit
        - serving(m.model, run.parallel, cache_gib=0, held_gib=run.held(m, run.shards)).total
        for m in run.members
    ]
    least = LEAST_CACHE * run.hardware.card.memory_gib
    cache = float(max(int(min(rest, default=least)), least))
    engine = run.engine.model_copy(update={"decode_memory_gib": cache})
    return replace(run, engine=engine)


def _refusal(run: _Run) -> tuple[str, str]:
    """Return why the engine would refuse a layout, and what to change; empty if it would not."""
    config = run.config
    generation = config.generation
    if run.backend != generation.backend:
        generation = VllmConfig(python=PYTHON, tensor_parallel=run.parallel)
    engine = run.engine.model_copy(update={"processes": None})  # the layout names the number
    changes = {"engine": engine, "generation": generation}
    faults = config.model_copy(update=changes).faults()
    divides = run.engine.sharding != "none"
    if divides and config.execution.backend != "local":
        return faults[0], "execution: local"
    if divides and any(member.model.tuning == "full" for member in run.members):
        return faults[0], "tuning.kind: lora"
    if faults:
        return faults[0], "what that says"
    if run.pushes and not find_backend(run.backend).pushes:
        why = f"{run.backend} cannot push answers away from another policy's"
        return why, "another method or way to make negatives"
    quantised = ", ".join(m.name for m in run.members if m.model.stored is not None)
    if divides and quantised:
        why = f"quantised weights cannot be divided, and those of {quantised} are"
        return why, "the model that was quantised"
    return "", ""


def _layout(run: _Run) -> RunLayout:
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
    return RunLayout(keys, missing, run.engine.checkpoint_activations)


def written(value: Any) -> str:
    """Write the value of a key as YAML has it."""
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)


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
