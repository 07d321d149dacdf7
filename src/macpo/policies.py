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
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from macpo.agents import Agent, Policy
from macpo.errors import ModelError
from macpo.likelihood import LikelihoodEngine
from macpo.likelihood.architecture import Architecture, inspect_architecture
from macpo.models.chat import Chat
from macpo.models.loading import empty_model, load_model, load_tokenizer

WEIGHTS_FILE = "weights.safetensors"

_log = logging.getLogger("macpo")


@dataclass(frozen=True, slots=True)
class LoadedPolicy:
    """A policy ready to score, answer or train.

    `model` is a PEFT model under LoRA and a transformers model otherwise; `trainable` holds the
    parameters that train, by name, in a fixed order.
    """

    model: Any
    chat: Chat
    architecture: Architecture
    trainable: dict[str, torch.nn.Parameter]

    def engine(self, pack_tokens: int) -> LikelihoodEngine:
        """Return a likelihood engine over this policy."""
        return LikelihoodEngine(self.model, pack_tokens=pack_tokens, architecture=self.architecture)


@dataclass(slots=True)
class _Base:
    """A base model in memory, with its adapter slot."""

    model: Any
    architecture: Architecture
    trainable: dict[str, torch.nn.Parameter]
    pristine: dict[str, Tensor]
    holds: str | None  # key of the weights in it; empty for the bare base; None while unknown


class PolicyPool:
    """Loads policies on one device.

    Args:
        device: where models go.
        locate: returns the folder of the artifact with a policy's weights, given its stage key.
        memory_bytes: what base models may take together; the least recently used go first.
    """

    def __init__(
        self,
        device: torch.device,
        locate: Callable[[str], Path],
        memory_bytes: int | None = None,
    ) -> None:
        self.device = device
        self._locate = locate
        self._memory = memory_bytes if memory_bytes is not None else _half_of_free_memory(device)
        self._bases: dict[str, _Base] = {}
        self._chats: dict[tuple[str, str | None], Chat] = {}

    def chat(self, agent: Agent) -> Chat:
        """Return the agent's tokenizer and template, without loading its weights."""
        key = (agent.base.location, agent.chat_template)
        if key not in self._chats:
            self._chats[key] = Chat(load_tokenizer(agent.base, agent.chat_template))
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
        return LoadedPolicy(base.model, self.chat(policy.agent), base.architecture, base.trainable)

    def load_for_training(self, policy: Policy, seed: int) -> LoadedPolicy:
        """Return the policy to train from; afterwards its weights are nobody's.

        Under LoRA a policy without weights starts from a fresh adapter drawn from `seed`: A is
        uniform as PEFT draws it, B is zero.
        """
        loaded = self.load(policy)
        base = self._base(policy.agent)
        base.holds = None
        if policy.weights is None and policy.agent.tuning.kind == "lora":
            _draw_adapter(base.trainable, seed)
        return loaded

    def _base(self, agent: Agent) -> _Base:
        key = repr((agent.base.location, agent.dtype, agent.tuning.model_dump_json()))
        if key in self._bases:
            self._bases[key] = self._bases.pop(key)  # most recently used last
            return self._bases[key]
        if self._bases:
            self._make_room(expected_bytes(agent))
        model = load_model(agent.base, getattr(torch, agent.dtype), self.device)
        architecture = inspect_architecture(model)
        if architecture.fallback_reason:
            _log.info("%s: padded rows, since %s", agent.base.name, architecture.fallback_reason)
        model.requires_grad_(agent.tuning.kind == "full")
        if agent.tuning.kind == "lora":
            model = _with_adapter(model, agent)
        model.eval()  # no dropout but LoRA's own, which training turns on
        trainable = {n: p for n, p in sorted(model.named_parameters()) if p.requires_grad}
        self._make_room(_bytes_of(model))  # should it have come out larger than expected
        base = _Base(model, architecture, trainable, snapshot(trainable), holds=None)
        self._bases[key] = base
        return base

    def _make_room(self, needed: int) -> None:
        """Drop the least recently used bases until `needed` bytes fit the budget."""
        while self._bases:
            held = sum(_bytes_of(base.model) for base in self._bases.values())
            if held + needed <= self._memory:
                return
            del self._bases[next(iter(self._bases))]
            gc.collect()  # a model refers to itself, and would stay until some later collection
            if self.device.type == "cuda":
                torch.cuda.empty_cache()


def expected_bytes(agent: Agent) -> int:
    """Return what an agent's base will take in memory, adapter slot included, by its config."""
    model = empty_model(agent.base)
    size = sum(p.numel() for p in model.parameters()) * getattr(torch, agent.dtype).itemsize
    if agent.tuning.kind == "lora":
        size += adapter_weights(model, agent) * torch.float32.itemsize
    return int(size)


def adapter_weights(model: Any, agent: Agent) -> int:
    """Return how many weights an agent's adapter over a model has; its targets must fit."""
    targets = agent.tuning.targets
    head = model.get_output_embeddings()
    shapes = [
        tuple(layer.weight.shape)
        for name, layer in _linear_layers(model)
        if (layer is not head if targets == ("all-linear",) else _meets(name, targets))
    ]
    return sum(agent.tuning.rank * (rows + columns) for rows, columns in shapes)


def _linear_layers(model: Any) -> Iterator[tuple[str, Any]]:
    """Yield what an adapter can be put over."""
    from transformers.pytorch_utils import Conv1D  # GPT-2's linear layer

    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear | Conv1D):
            yield name, module


def _meets(name: str, targets: Sequence[str]) -> bool:
    """Tell whether PEFT adapts the layer of that name."""
    return any(name == target or name.endswith(f".{target}") for target in targets)


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


def lora_config(agent: Agent) -> Any:
    """Return PEFT's config for an agent's adapters."""
    from peft import LoraConfig

    targets = agent.tuning.targets
    return LoraConfig(
        task_type="CAUSAL_LM",
        r=agent.tuning.rank,
        lora_alpha=agent.tuning.alpha,
        lora_dropout=agent.tuning.dropout,
        target_modules="all-linear" if targets == ("all-linear",) else sorted(targets),
    )


def _with_adapter(model: Any, agent: Agent) -> Any:
    """Put an adapter slot over a model; adapter weights are float32 whatever the base is.

    Raises:
        ModelError: a target names no linear layer, or the LM head, or PEFT refuses the model.
    """
    from peft import get_peft_model
    from transformers.pytorch_utils import Conv1D  # GPT-2's linear layer

    _check_targets(model, agent)
    config = lora_config(agent)
    # PEFT would find this out by itself, and warn that it did.
    config.fan_in_fan_out = any(isinstance(module, Conv1D) for module in model.modules())
    try:
        peft_model = get_peft_model(model, config, autocast_adapter_dtype=True)
    except ValueError as error:
        reason = str(error).splitlines()[0]
        raise ModelError(
            f"{agent.base.name}: PEFT cannot adapt {', '.join(agent.tuning.targets)} ({reason}); "
            "change tuning.targets"
        ) from error
    for parameter in peft_model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return peft_model


def _check_targets(model: Any, agent: Agent) -> None:
    """Refuse a target that PEFT would pass over, or that the likelihood engine would."""
    names = [name for name, _ in _linear_layers(model)]
    head = model.get_output_embeddings()
    heads = [name for name, module in model.named_modules() if module is head]
    layers = sorted({name.rpartition(".")[2] for name in names if name not in heads})
    for target in agent.tuning.targets:
        met = [name for name in names if _meets(name, (target,))]
        if target != "all-linear" and (not met or set(met) & set(heads)):
            raise ModelError(
                f"{agent.base.name}: tuning.targets: {target} fits no layer that can be adapted; "
                f"this model's linear layers are {', '.join(layers)}"
            )


def _draw_adapter(trainable: Mapping[str, Tensor], seed: int) -> None:
    """Initialise a LoRA adapter as PEFT does (Kaiming uniform A, zero B), from a seed."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in trainable.items():
            if ".lora_A." in name:
                bound = parameter.shape[1] ** -0.5  # kaiming_uniform_(a=sqrt(5)) over fan-in
                draw = torch.rand(parameter.shape, generator=generator)
                parameter.copy_((2 * draw - 1) * bound)
            else:
                parameter.zero_()


def _bytes_of(model: Any) -> int:
    return sum(p.numel() * p.element_size() for p in model.parameters())


def _half_of_free_memory(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0] // 2)
    import psutil  # a dependency of accelerate

    return int(psutil.virtual_memory().available // 2)
