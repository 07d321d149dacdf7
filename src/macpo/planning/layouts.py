"""The layouts that a run may have on some hardware, which of them fit, and what would make one fit.

The engine has three: every device has the whole base and a share of the prompts, and answers them
by macpo's own decoder; the same, but vLLM answers (one engine at a time, over `tensor_parallel`
devices); every base is divided over all devices (FSDP), and vLLM answers. Each may recompute
activations. `planning.placement` chooses among them.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

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
class Layout:
    """A run on some hardware under one layout, and what of it has room there.

    Attributes:
        config: the run, as it was asked for.
        hardware: all devices serve one agent at a time.
        members: the agents of which sizes are known.
        engine: the engine's section under this layout.
        backend: who answers, by name.
        parallel: devices that one vLLM engine is on.
        pushes: some answers are pushed away from another policy's.
    """

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


def layouts(
    config: RunConfig, hardware: Hardware, members: Sequence[Member], pushes: bool
) -> Iterator[Layout]:
    """Yield the layouts that a run would not refuse."""
    for run in candidates(config, hardware, members, pushes):
        if not refusal(run)[0]:
            yield run


def candidates(
    config: RunConfig, hardware: Hardware, members: Sequence[Member], pushes: bool
) -> Iterator[Layout]:
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
        run = Layout(config, hardware, members, engine, backend, parallel, pushes)
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


def _with_cache(run: Layout) -> Layout:
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


def refusal(run: Layout) -> tuple[str, str]:
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
