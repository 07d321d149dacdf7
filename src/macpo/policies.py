"""Loading policies: one base model in memory serves all the adapters that stand over it.

A pool keeps the base models it has loaded while they fit, and makes room before it loads another.
Under LoRA a base carries one adapter slot, and asking for another policy of the same base writes
other numbers into that slot; a policy that trains whole replaces the weights in place. So a
positive, a negative and a reference policy cost one base. A policy from the pool is good until the
next one is asked for.
"""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar, cast

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from macpo.adapters import adapter_weights, draw_adapter, with_adapter
from macpo.agents import Agent, Policy
from macpo.attention import base_model
from macpo.errors import ModelError
from macpo.likelihood import LikelihoodEngine
from macpo.likelihood.architecture import Architecture, inspect_architecture
from macpo.models.chat import Chat
from macpo.models.loading import empty_model, load_model, weight_bytes
from macpo.models.quantised import hint
from macpo.models.sharding import bytes_here, mesh_over, shard
from macpo.probe import TRIAL_ERRORS, first_line, own_logits, probe_ids
from macpo.ranks import ALONE, Ranks

WEIGHTS_FILE = "weights.safetensors"
TRIED_TOKENS = 4

_log = logging.getLogger("macpo")


class Companion(Protocol):
    """What works beside the bases and takes memory, such as an engine that serves."""

    def close(self) -> None:
        """End it; it gives back what it took."""


Working = TypeVar("Working", bound=Companion)


@dataclass(frozen=True, slots=True)
class LoadedPolicy:
    """A policy ready to score, answer or train.

    `model` is a PEFT model under LoRA and a transformers model otherwise; `trainable` holds the
    parameters that train, by name, in a fixed order. `examined` is for whoever decodes to remember
    what he found of the base model, by the most tokens of a prompt with its answer, and `blocked`
    for the copies of its frozen weights that he works with, by layer, each behind what tells
    whether it is still right.
    """

    model: Any
    chat: Chat
    architecture: Architecture
    trainable: dict[str, torch.nn.Parameter]
    examined: dict[int, Any] = field(default_factory=dict)
    blocked: dict[int, tuple[int, Tensor]] = field(default_factory=dict)

    def engine(
        self, pack_tokens: int, ranks: Ranks = ALONE, *, checkpoint_activations: bool = False
    ) -> LikelihoodEngine:
        """Return a likelihood engine over this policy.

        Args:
            pack_tokens: most tokens in one forward pass.
            ranks: who scores together; each has loaded the policy.
            checkpoint_activations: see `LikelihoodEngine`.
        """
        return LikelihoodEngine(
            self.model,
            pack_tokens=pack_tokens,
            architecture=self.architecture,
            ranks=ranks,
            checkpoint_activations=checkpoint_activations,
        )


@dataclass(slots=True)
class _Base:
    """A base model in memory, with its adapter slot."""

    model: Any
    architecture: Architecture
    trainable: dict[str, torch.nn.Parameter]
    pristine: dict[str, Tensor]
    examined: dict[int, Any]
    blocked: dict[int, tuple[int, Tensor]]
    holds: str | None  # key of the weights in it; empty for the bare base; None while unknown

    @property
    def copied(self) -> int:
        """The bytes of copies of its weights."""
        return sum(t.numel() * t.element_size() for _, t in self.blocked.values())


class PolicyPool:
    """Loads policies on one device.

    Args:
        device: where models go.
        locate: returns the folder of the artifact with a policy's weights, given its stage key.
        memory_bytes: what base models may take together; the least recently used go first.
        ranks: who loads the same policies at the same time.
        sharded: bases are divided among them (`macpo.models.sharding`), and so all load together.
    """

    def __init__(
        self,
        device: torch.device,
        locate: Callable[[str], Path],
        memory_bytes: int | None = None,
        ranks: Ranks = ALONE,
        sharded: bool = False,
    ) -> None:
        self.device = device
        self._locate = locate
        self._ranks = ranks
        self._mesh = mesh_over(ranks.size, device) if sharded else None
        free = memory_bytes if memory_bytes is not None else _half_of_free_memory(device)
        if device.type == "cpu":
            free //= ranks.on_this_machine
        # All ranks of a sharded base have to drop it at the same time.
        self._memory = min(ranks.gather(free)) if sharded else free
        self._bases: dict[str, _Base] = {}
        self._guest: tuple[str, Any] | None = None
        self._chats: dict[tuple[Any, ...], Chat] = {}
        self._companions: dict[str, Companion] = {}

    def chat(self, agent: Agent) -> Chat:
        """Return the agent's tokenizer and template, without loading its weights."""
        key = agent.chat_options
        if key not in self._chats:
            self._chats[key] = agent.load_chat()
        return self._chats[key]

    def load(self, policy: Policy) -> LoadedPolicy:
        """Return the policy; the one returned before is no longer valid.

        Raises:
            ModelError: the model cannot be loaded, or an adapter does not fit it.
        """
        base = self._base(policy.agent)
        if base.holds != policy.weights_key or base.holds is None:
            weights = base.pristine
            if policy.weights is not None:
                weights = load_file(self._locate(policy.weights_key) / WEIGHTS_FILE)
            base.holds = None
            restore(base.trainable, weights)
            base.holds = policy.weights_key
        return LoadedPolicy(
            base.model,
            self.chat(policy.agent),
            base.architecture,
            base.trainable,
            base.examined,
            base.blocked,
        )

    def load_for_training(self, policy: Policy, seed: int) -> LoadedPolicy:
        """Return the policy to train from; afterwards its weights are nobody's.

        Under LoRA a policy without weights starts from a fresh adapter drawn from `seed`: A is
        uniform as PEFT draws it, B is zero.
        """
        loaded = self.load(policy)
        base = self._base(policy.agent)
        base.holds = None
        if policy.weights is None and policy.agent.tuning.kind == "lora":
            draw_adapter(base.trainable, seed)
        return loaded

    def take(self, policy: Policy) -> LoadedPolicy:
        """Return a policy for the caller to change as he likes: the pool forgets its base."""
        loaded = self.load(policy)
        del self._bases[_key(policy.agent)]
        return loaded

    def guest(self, key: str, expected: int, load: Callable[[torch.device], Any]) -> Any:
        """Return a model that is no policy's, such as a reward model.

        One is kept, until another one or a base model is loaded.

        Args:
            key: tells it from others.
            expected: bytes that it will take.
            load: loads it onto a device.
        """
        if self._guest is None or self._guest[0] != key:
            self._guest = None
            self._make_room(expected)
            self._guest = (key, load(self.device))
        return self._guest[1]

    def companion(self, key: str, expected: int, make: Callable[[], Working]) -> Working:
        """Return what works beside the bases, kept from stage to stage while there is room.

        Others make room in the machine's memory for one that comes new, the least recently used
        first; `close` ends all.

        Args:
            key: tells it from others; equal keys, equal companions.
            expected: bytes of the machine's memory that it will take.
            make: starts it.
        """
        if key in self._companions:
            self._companions[key] = self._companions.pop(key)  # most recently used last
            return cast(Working, self._companions[key])
        while self._companions and _free_memory() < expected:
            self._companions.pop(next(iter(self._companions))).close()
        made = make()
        self._companions[key] = made
        return made

    def close(self) -> None:
        """End all companions; bases stay."""
        while self._companions:
            self._companions.popitem()[1].close()

    def _base(self, agent: Agent) -> _Base:
        key = _key(agent)
        if key in self._bases:
            self._bases[key] = self._bases.pop(key)  # most recently used last
            return self._bases[key]
        self._guest = None
        if self._bases:
            parts = self._ranks.size if self._mesh is not None else 1
            self._make_room(expected_bytes(agent) // parts)
        if self._mesh is None:
            base = self._load_base(agent, self.device)
        else:
            for turn in range(self._ranks.size):  # each holds it whole for a while
                if turn == self._ranks.rank:
                    base = self._load_base(agent, torch.device("cpu"))
                self._ranks.gather(None)
        self._make_room(bytes_here(base.model))  # should it have come out larger than expected
        self._bases[key] = base
        return base

    def _load_base(self, agent: Agent, device: torch.device) -> _Base:
        """Load a base model onto a device and look at it; then it is sharded, where it should be.

        Raises:
            ModelError: see `load`.
        """
        model = load_model(agent.base, getattr(torch, agent.dtype), device)
        try:
            architecture = inspect_architecture(model)
        except TRIAL_ERRORS as error:
            said = odd_weights(model) or first_line(error) + hint(model)
            raise ModelError(f"{agent.name} ({agent.base.name}): {said}") from error
        if architecture.fallback_reason:
            how, why = architecture.instead_of_trees, architecture.fallback_reason
            _log.info("%s: answers are scored from %s, since %s", agent.base.name, how, why)
        elif self.device.type == "cuda":
            _log.info("%s: attends by %s", agent.base.name, architecture.attention)
        model.requires_grad_(agent.tuning.kind == "full")
        if agent.tuning.kind == "lora":
            model = with_adapter(model, agent.tuning, agent.base.name)
        model.eval()  # no dropout but LoRA's own, which training turns on
        if agent.tuning.kind == "lora":
            _try_adapter(model, agent)
        if self._mesh is not None:
            shard(model, agent.base.name, self._mesh, self.device)
        trainable = {n: p for n, p in sorted(model.named_parameters()) if p.requires_grad}
        return _Base(model, architecture, trainable, snapshot(trainable), {}, {}, holds=None)

    def _make_room(self, needed: int) -> None:
        """Drop the least recently used bases until `needed` bytes fit the budget."""
        while self._bases:
            held = sum(bytes_here(base.model) + base.copied for base in self._bases.values())
            if held + needed <= self._memory:
                return
            del self._bases[next(iter(self._bases))]
            gc.collect()  # a model refers to itself, and would stay until some later collection
            if self.device.type == "cuda":
                torch.cuda.empty_cache()


def odd_weights(model: Any, but: Container[str] = ()) -> str:
    """Return a line if weights are no numbers, whatever else went wrong with them; else nothing.

    Args:
        model: whose weights.
        but: names of those that are not looked at.
    """
    for name, weight in model.named_parameters():
        if name in but:
            continue
        if weight.is_floating_point() and not bool(weight.isfinite().all()):
            return (
                f"its weights are not finite ({name} holds NaN or infinity); fetch the model "
                "again, or use another"
            )
    return ""


def _try_adapter(model: Any, agent: Agent) -> None:
    """Forward a few tokens and back: some models do not bear adapters on some of their layers.

    Raises:
        ModelError: in one line, with the reason.
    """
    trains = [p for p in model.parameters() if p.requires_grad]
    try:
        [logits] = own_logits(model, [probe_ids(base_model(model), TRIED_TOKENS)])
        torch.autograd.grad(logits.sum(), trains, allow_unused=True)
    except Exception as error:  # whatever the model's code makes of it
        raise ModelError(
            f"{agent.name} ({agent.base.name}): cannot be trained with adapters on "
            f"{', '.join(agent.tuning.targets)} ({first_line(error)}); change tuning.targets"
        ) from error


def _key(agent: Agent) -> str:
    """Return what agents that share a base in memory have in common."""
    base = (agent.base.location, agent.base.quantize)
    return repr((*base, agent.dtype, agent.tuning.model_dump_json()))


def expected_bytes(agent: Agent) -> int:
    """Return what an agent's base will take in memory, adapter slot included, by its config."""
    size = weight_bytes(agent.base, agent.dtype) or 0
    if agent.tuning.kind == "lora":
        model = empty_model(agent.base)
        size += adapter_weights(model, agent.tuning, agent.base.name) * torch.float32.itemsize
    return size


def snapshot(trainable: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copy parameters to CPU memory."""
    return {name: p.detach().to("cpu", copy=True).contiguous() for name, p in trainable.items()}


def restore(trainable: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> None:
    """Write saved weights into parameters.

    Raises:
        ModelError: names or shapes differ.
    """
    if trainable.keys() != weights.keys():
        odd = sorted(trainable.keys() ^ weights.keys())[0]
        raise ModelError(f"saved weights do not fit the model: {odd} is only on one side")
    with torch.no_grad():
        for name, parameter in trainable.items():
            if parameter.shape != weights[name].shape:
                raise ModelError(
                    f"saved weights do not fit the model: {name} is {tuple(weights[name].shape)}, "
                    f"the model has {tuple(parameter.shape)}"
                )
            parameter.copy_(weights[name])


def save_weights(trainable: Mapping[str, Tensor], path: Path) -> None:
    """Write parameters to a safetensors file; equal weights give equal bytes."""
    save_file(snapshot(dict(sorted(trainable.items()))), path)


def _half_of_free_memory(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0] // 2)
    return _free_memory() // 2


def _free_memory() -> int:
    """Return how much of the machine's memory is to be had, in bytes."""
    import psutil  # a dependency of accelerate

    return int(psutil.virtual_memory().available)
