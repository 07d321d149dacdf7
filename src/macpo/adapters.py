"""LoRA adapters over a base model: which layers they go over, and putting them there.

Everything is asked of PEFT itself, on the model or on one without weights (the meta device): what a
plan says of targets, what a run refuses before its first stage and what is trained are the same.
"""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from macpo.config import ALL_LINEAR, AUTO, PAPER_TARGETS, TuningConfig
from macpo.errors import ModelError
from macpo.models.classes import text_decoder_name

TOWERS = re.compile("vision|visual|image|video|audio|speech|multi_?modal")
"""What layers of encoders are called, also within text decoders; text never runs through them."""

MAMBAS = frozenset({"mamba", "mamba2", "falcon_mamba"})
"""Types of models whose `out_proj` PEFT does not adapt, and that have nothing but a mixer."""


def choose_targets(model: Any) -> tuple[str, ...]:
    """Return the layers to adapt where a config leaves that open (`targets: auto`).

    The paper's `q_proj` and `v_proj` where both are; else the linear layers among those that PEFT
    adapts in models of this type; else all linear layers.

    Args:
        model: a transformers causal LM, with or without weights.
    """
    from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as DEFAULTS

    names = [name for name, _ in _linear_layers(model)]
    if all(any(_meets(name, (target,)) for name in names) for target in PAPER_TARGETS):
        return PAPER_TARGETS
    usual = DEFAULTS.get(model.config.model_type, ())
    if isinstance(usual, str):  # a pattern of names
        usual = ()
    found = tuple(t for t in usual if any(_meets(name, (t,)) for name in names))
    if not found and model.config.model_type in MAMBAS:
        layers = {name.rpartition(".")[2] for name in names} - {"out_proj"}
        found = tuple(sorted(layers - {_head_name(model)}))
    return found or (ALL_LINEAR,)


def _head_name(model: Any) -> str:
    """Return the last part of the LM head's name."""
    head = model.get_output_embeddings()
    names = [name for name, module in model.named_modules() if module is head]
    return names[0].rpartition(".")[2] if names else ""


def lora_config(tuning: TuningConfig, exclude: str | None = None) -> Any:
    """Return PEFT's config for adapters over a model whose targets are settled.

    Args:
        tuning: of kind `lora`.
        exclude: a pattern of names of layers that targets do not mean.
    """
    from peft import LoraConfig

    targets = tuning.targets
    return LoraConfig(
        task_type="CAUSAL_LM",
        r=tuning.rank,
        lora_alpha=tuning.alpha,
        lora_dropout=tuning.dropout,
        target_modules=ALL_LINEAR if targets == (ALL_LINEAR,) else sorted(targets),
        exclude_modules=exclude,
    )


def with_adapter(model: Any, tuning: TuningConfig, name: str) -> Any:
    """Put an adapter slot over a model; adapter weights are float32 whatever the base is.

    Args:
        model: a transformers causal LM; over one on the meta device the adapter is there, too.
        tuning: of kind `lora`; `auto` stands for `choose_targets`.
        name: of the model, for errors.

    Returns:
        A PEFT model, whose `peft_config["default"]` says what PEFT made of the targets.

    Raises:
        ModelError: a target names no linear layer, or the LM head, or PEFT refuses the model.
    """
    from peft import get_peft_model
    from transformers.pytorch_utils import Conv1D  # GPT-2's linear layer

    if tuning.targets == (AUTO,):
        tuning = tuning.model_copy(update={"targets": choose_targets(model)})
    _check_targets(model, tuning, name)
    config = lora_config(tuning, _exclusions(model, tuning.targets))
    # PEFT would find this out by itself, and warn that it did.
    config.fan_in_fan_out = any(isinstance(module, Conv1D) for module in model.modules())
    try:
        with quiet_peft():
            peft_model = get_peft_model(
                model,
                config,
                autocast_adapter_dtype=True,
                low_cpu_mem_usage=model.device.type == "meta",
            )
    except ValueError as error:
        reason = str(error).splitlines()[0]
        raise ModelError(
            f"{name}: PEFT cannot adapt {', '.join(tuning.targets)} ({reason}); "
            "change tuning.targets"
        ) from error
    for parameter in peft_model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return peft_model


@contextmanager
def quiet_peft() -> Iterator[None]:
    """Silence PEFT 0.21's false alarm: it looks for the ranks of fused experts among modules."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*_pattern keys did not match", RuntimeWarning)
        yield


def adapter_weights(model: Any, tuning: TuningConfig, name: str) -> int:
    """Return how many weights an adapter over a model has.

    Args:
        model: a transformers causal LM on the meta device, good for nothing else afterwards.
        tuning: see `with_adapter`.
        name: likewise.

    Raises:
        ModelError: see `with_adapter`.
    """
    model.requires_grad_(False)
    adapted = with_adapter(model, tuning, name)
    return sum(p.numel() for p in adapted.parameters() if p.requires_grad)


def draw_adapter(trainable: Mapping[str, Tensor], seed: int) -> None:
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


def write_adapter(model: Any, folder: Path, *, base: str, revision: str | None) -> None:
    """Write adapter weights and config as PEFT names them; equal adapters give equal bytes.

    The config is PEFT's own, with what it made of the targets: experts of a mixture, for example,
    are parameters there, with ranks of their own, and cannot be found again from tensors' names.

    Args:
        model: a PEFT model.
        folder: where `adapter_model.safetensors` and `adapter_config.json` go.
        base: how others find the base model.
        revision: of the base, likewise.
    """
    from peft import get_peft_model_state_dict
    from safetensors.torch import save_file

    tensors = {
        name: tensor.detach().cpu().contiguous()
        for name, tensor in sorted(get_peft_model_state_dict(model).items())
    }
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    config = {
        **model.peft_config["default"].to_dict(),
        "base_model_name_or_path": base,
        "revision": revision,
        "inference_mode": True,
    }
    # Sets have no order of their own: sorted, so that equal adapters are equal bytes.
    plain = {k: sorted(v) if isinstance(v, set) else v for k, v in config.items()}
    text = json.dumps(plain, indent=2, sort_keys=True, default=str)
    (folder / "adapter_config.json").write_text(text + "\n", encoding="utf-8")


def _check_targets(model: Any, tuning: TuningConfig, model_name: str) -> None:
    """Refuse a target that PEFT would pass over, or that the likelihood engine would."""
    names = [name for name, _ in _linear_layers(model)]
    head = model.get_output_embeddings()
    heads = [name for name, module in model.named_modules() if module is head]
    layers = sorted({name.rpartition(".")[2] for name in names if name not in heads})
    for target in tuning.targets:
        met = [name for name in names if _meets(name, (target,))]
        if target != ALL_LINEAR and (not met or set(met) & set(heads)):
            raise ModelError(
                f"{model_name}: tuning.targets: {target} fits no layer that can be adapted; "
                f"this model's linear layers are {', '.join(layers)}"
            )


def _linear_layers(model: Any) -> Iterator[tuple[str, Any]]:
    """Yield what an adapter can be put over: linear layers of the text decoder."""
    outside = re.compile(_outside(model))
    for name, module in _all_linear(model):
        if not outside.fullmatch(name) and _is_linear(module):
            yield name, module


def _all_linear(model: Any) -> Iterator[tuple[str, Any]]:
    """Yield what PEFT takes for a linear layer."""
    from transformers.pytorch_utils import Conv1D  # GPT-2's linear layer

    quantised = getattr(model, "hf_quantizer", None) is not None
    for name, module in model.named_modules():
        linear = isinstance(module, torch.nn.Linear | Conv1D)
        if linear or (quantised and hasattr(module, "in_features")):
            yield name, module


def _is_linear(module: Any) -> bool:
    """Tell whether a layer maps vectors to vectors, as the adapter beside it will.

    Some that are linear layers by class do not: routers that return two tensors (Llama 4,
    Phi-3.5-MoE), weights for groups of heads (DeepSeek V4). Those with a forward of their own are
    tried.
    """
    own = (
        isinstance(module, torch.nn.Linear) and type(module).forward is not torch.nn.Linear.forward
    )
    if not own or not type(module).__module__.startswith("transformers.models."):
        return True
    weight = module.weight
    vectors = torch.zeros(2, module.in_features, dtype=weight.dtype, device=weight.device)
    try:
        with torch.no_grad():
            output = module(vectors)
    except (RuntimeError, ValueError, TypeError, IndexError):
        return False
    return isinstance(output, Tensor) and output.shape == (2, module.out_features)


def _exclusions(model: Any, targets: Sequence[str]) -> str | None:
    """Return a pattern of the layers that targets would meet and do not mean; None for none."""
    outside = re.compile(_outside(model))
    head = model.get_output_embeddings()
    found = set()
    for name, module in _all_linear(model):
        if module is head or not (targets == (ALL_LINEAR,) or _meets(name, targets)):
            continue
        if outside.fullmatch(name):
            found.add(outside.pattern)
        elif not _is_linear(module):  # in every layer
            found.add(re.sub(r"(?<=\.)\d+(?=\\?\.)", r"\\d+", re.escape(name)))
    return "|".join(sorted(found)) or None


def _outside(model: Any) -> str:
    """Return a pattern of the names of all that stands beside the text decoder."""
    towers = rf".*(?:{TOWERS.pattern}).*"
    decoder = text_decoder_name(model)
    return towers if decoder is None else rf"(?!{re.escape(decoder)}\.).*|{towers}"


def _meets(name: str, targets: Sequence[str]) -> bool:
    """Tell whether PEFT adapts the layer of that name."""
    return any(name == target or name.endswith(f".{target}") for target in targets)
