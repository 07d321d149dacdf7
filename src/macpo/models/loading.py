"""Loading what `resolve` found: weights, tokenizer, and the size of a model that is not here."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from macpo.errors import ModelError
from macpo.models.chat import Chat, SystemTurn
from macpo.models.classes import auto_class
from macpo.models.folders import (
    CONFIG,
    check_folder,
    generation_stops,
    load_failure,
    read_config,
    weight_files,
)
from macpo.models.pruning import pruned_config
from macpo.models.quantised import read_model, stays_quantised
from macpo.models.quantising import NF4_BYTES, nf4_bytes, refuse_unmade, settings
from macpo.models.shapes import known_config
from macpo.models.sources import ResolvedModel
from macpo.models.templates import read_template

if TYPE_CHECKING:
    import torch

# transformers can make up an almost empty tokenizer for a folder that holds none of these.
TOKENIZER_FILES = ("tokenizer.json", "vocab.json", "vocab.txt", "*.model", "*.tiktoken")

SIZE_IN_NAME = re.compile(r"(?<![a-z0-9.])(?:(\d+)x)?(\d+(?:\.\d+)?)([mb])(?![a-z])")
UNITS = {"m": 10**6, "b": 10**9}


@dataclass(frozen=True, slots=True)
class ParameterCount:
    """Number of weights of a model; `estimated` when it was read off the model's name."""

    count: int
    estimated: bool


def load_model(resolved: ResolvedModel, dtype: torch.dtype, device: torch.device | str) -> Any:
    """Load a causal language model, in evaluation mode, straight to a device.

    Only safetensors files are read. Code that came with the model runs only if the config says
    `trust_remote_code`.

    Args:
        resolved: a local model.
        dtype: of the weights.
        device: where the weights go.

    Returns:
        A transformers `PreTrainedModel`.

    Raises:
        ModelError: the model is not local, is no causal language model, or lacks weights.
    """
    import torch

    folder = _local_folder(resolved)
    check_folder(folder)
    config = read_config(folder, with_code=resolved.trust_remote_code)
    try:
        return read_model(
            str(folder),
            config,
            resolved.name,
            **_made_while_loading(resolved, dtype),
            dtype=dtype,
            device_map=torch.device(device),  # not through a copy in host memory
            trust_remote_code=resolved.trust_remote_code,
            local_files_only=True,
        )
    except ModelError:
        raise
    except Exception as error:  # configs and weight files fail in as many ways as there are models
        raise ModelError(
            f"{resolved.name}: {folder} cannot be loaded ({load_failure(error)})"
        ) from error


def _made_while_loading(resolved: ResolvedModel, dtype: torch.dtype) -> dict[str, Any]:
    """Return the options of `from_pretrained` by which weights are quantised, if they are to be."""
    if resolved.quantize is None:
        return {}
    refuse_unmade(resolved.name)
    return {"quantization_config": settings(str(dtype).removeprefix("torch."))}


def load_tokenizer(resolved: ResolvedModel, chat_template: str | None = None) -> Any:
    """Load a model's tokenizer.

    Args:
        resolved: a local model.
        chat_template: `alpaca`, `chatml`, `vicuna` or the path of a Jinja file, which replaces
            the tokenizer's own; None keeps that.

    Returns:
        A transformers tokenizer whose `chat_template` is the one to use.

    Raises:
        ModelError: there is no tokenizer, or no such template.
    """
    from transformers import AutoTokenizer

    folder = _local_folder(resolved)
    if not any(any(folder.glob(name)) for name in TOKENIZER_FILES):
        raise ModelError(
            f"{resolved.name}: no tokenizer in {folder}; save it there with the tokenizer's "
            "save_pretrained"
        )
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            str(folder), trust_remote_code=resolved.trust_remote_code, local_files_only=True
        )
    except Exception as error:  # as above
        raise ModelError(
            f"{resolved.name}: the tokenizer in {folder} cannot be loaded ({load_failure(error)})"
        ) from error
    if chat_template is not None:
        tokenizer.chat_template = read_template(chat_template)
    return tokenizer


def load_chat(
    resolved: ResolvedModel,
    chat_template: str | None = None,
    *,
    template_args: Mapping[str, object] | None = None,
    system_turn: SystemTurn = "auto",
) -> Chat:
    """Load a model's tokenizer with its chat template, and what else ends its answers.

    Args:
        resolved: a local model, or one whose layers are still to be cut out of a folder here.
        chat_template: see `load_tokenizer`.
        template_args: see `Chat`.
        system_turn: see `Chat`.

    Raises:
        ModelError: the tokenizer cannot be used, or its template writes tokens that the model does
            not have.
    """
    chat = Chat(
        load_tokenizer(replace(resolved, local=True), chat_template),
        template_args=template_args,
        system_turn=system_turn,
        stops=generation_stops(Path(resolved.location)),
        name=resolved.name,
    )
    folder = Path(resolved.location)
    if (folder / CONFIG).is_file():
        config = read_config(folder, with_code=resolved.trust_remote_code).get_text_config()
        chat.check_vocabulary(int(config.vocab_size))
    return chat


def parameter_count(resolved: ResolvedModel) -> ParameterCount | None:
    """Return how many weights a model has, without reading them.

    Counted on a model without weights when its config is here or its shape is known; else read off
    the name, such as 65e9 for `llama-65b`; None when the name does not say, or when layers are to
    be cut out of a model whose layers are not known.

    Raises:
        ModelError: the config cannot be read, or `layers` names a layer that it lacks.
    """
    model = outline(resolved)
    if model is not None:
        weights = model.parameters()  # tied weights count once
        return ParameterCount(sum(weight.numel() for weight in weights), estimated=False)
    if resolved.layers:
        return None
    match = SIZE_IN_NAME.search(resolved.name.partition("@")[0].rpartition("/")[2].lower())
    if match is None:
        return None
    size = int(match[1] or 1) * float(match[2]) * UNITS[match[3]]
    return ParameterCount(round(size), estimated=True)


def weight_bytes(resolved: ResolvedModel, dtype: str) -> int | None:
    """Return what a model's weights take once they are loaded; None where their number is unknown.

    Args:
        resolved: the model, whose weights are not read.
        dtype: of those that are not quantised.

    Raises:
        ModelError: see `parameter_count`.
    """
    import torch

    itemsize = getattr(torch, dtype).itemsize
    model = outline(resolved)
    if model is None:
        known = parameter_count(resolved)
        return (
            None
            if known is None
            else int(known.count * (NF4_BYTES if resolved.quantize else itemsize))
        )
    if resolved.quantize is not None:
        return nf4_bytes(model, itemsize)
    if resolved.local and stays_quantised(model.config, resolved.name):
        return sum(file.stat().st_size for file in weight_files(Path(resolved.location)))
    return int(sum(weight.numel() for weight in model.parameters()) * itemsize)


def empty_model(resolved: ResolvedModel) -> Any:
    """Build a model without weights, on the meta device, from the config in its folder.

    Raises:
        ModelError: the config cannot be read, is of no causal language model, or lacks a layer that
            `layers` names.
    """
    trust = resolved.trust_remote_code
    return _empty(resolved, read_config(Path(resolved.location), with_code=trust))


def outline(resolved: ResolvedModel) -> Any:
    """Return a model without weights that has the shape of `resolved`; None if it is not known.

    From its config where that is here, else from `macpo.models.shapes`.

    Raises:
        ModelError: see `empty_model`.
    """
    if (Path(resolved.location) / CONFIG).is_file():
        return empty_model(resolved)
    config = known_config(resolved.location)
    return None if config is None else _empty(resolved, config)


def _empty(resolved: ResolvedModel, config: Any) -> Any:
    """Build a model without weights, on the meta device."""
    import torch

    trust = resolved.trust_remote_code
    if resolved.layers:
        config = pruned_config(config, resolved.layers, resolved.name)
    try:
        with torch.device("meta"):
            return auto_class(config).from_config(config, trust_remote_code=trust)
    except ValueError as error:
        raise ModelError(
            f"{resolved.name}: no causal language model ({load_failure(error)})"
        ) from error


def _local_folder(resolved: ResolvedModel) -> Path:
    """Return the folder of a local model."""
    if not resolved.local:
        raise ModelError(
            f"{resolved.name}: its weights are not on this machine yet; resolve it with fetch=True"
        )
    return Path(resolved.location)
