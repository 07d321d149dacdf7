"""Checkpoints with quantised weights, as the bases of adapters.

What transformers can dequantise while it loads (FP8, MXFP4, compressed-tensors) is dequantised, to
the run's dtype, and is an ordinary model from then on. Other weights stay as they are, frozen, if
transformers says that adapters over them can be trained (bitsandbytes, GPTQ, AWQ, torchao in 8
bits). The rest is refused. All of it is asked of transformers' own quantisers.
"""

from __future__ import annotations

import copy
from typing import Any

from macpo.errors import ModelError
from macpo.models.cache import reason
from macpo.models.classes import auto_class

TRIED_TOKENS = 24
UNQUANTISED = "name the model that it was quantised from"


def read_model(source: str, config: Any, name: str, **options: Any) -> Any:
    """Load a model with its language model's head; weights are dequantised if they can be.

    Args:
        source: a folder, or a name on the hub.
        config: its transformers config.
        name: of the model, for messages.
        **options: of transformers' `from_pretrained`.

    Raises:
        ModelError: it lacks weights, or they are quantised in a way that transformers does not
            know. Other errors are transformers' own, of as many kinds as there are models.
    """
    quantiser = _quantiser(config, name)
    dequantises = quantiser is not None and _dequantises(quantiser)
    if dequantises:
        options["quantization_config"] = quantiser.quantization_config
    model, report = auto_class(config).from_pretrained(
        source, use_safetensors=True, output_loading_info=True, **options
    )
    # transformers fills what is missing with random numbers and goes on.
    lost = sorted(map(str, {*report["missing_keys"], *report["mismatched_keys"]}))
    if lost:
        raise ModelError(
            f"{name}: {source} does not hold {len(lost)} of the model's tensors, the first is "
            f"{lost[0]}; the config and the weights do not belong together"
        )
    if dequantises:
        _forget_format(model)
    return model


def stays_quantised(config: Any, name: str) -> bool:
    """Tell whether a loaded model has quantised weights.

    Raises:
        ModelError: transformers does not know how its weights are quantised.
    """
    quantiser = _quantiser(config, name)
    return quantiser is not None and not _dequantises(quantiser)


def refuse_quantised(config: Any, name: str, *, whole: bool, again: bool = False) -> None:
    """Refuse quantised weights that cannot be read here, or not trained over.

    Args:
        config: a transformers config.
        name: of the model, for messages.
        whole: the model is to be trained without adapters.
        again: it is to be quantised while it loads (`macpo.models.quantising`).

    Raises:
        ModelError: says what to install or to name instead.
    """
    quantiser = _quantiser(config, name)
    if quantiser is None:
        return
    head = f"{name}: its weights are quantised ({_method(quantiser)})"
    if again:
        raise ModelError(f"{head} already; remove quantize, or {UNQUANTISED}")
    try:
        quantiser.validate_environment(device_map=None)
    except Exception as error:  # each quantiser has its own ways
        raise ModelError(
            f"{head} and cannot be read here ({reason(error)}); install what that needs, or "
            f"{UNQUANTISED}"
        ) from error
    if _dequantises(quantiser):
        return
    if whole:
        raise ModelError(
            f"{head}, so it cannot train whole; set tuning.kind: lora, or {UNQUANTISED}"
        )
    if not quantiser.is_trainable:
        raise ModelError(f"{head}, over which transformers trains no adapters; {UNQUANTISED}")


def refuse_divided(config: Any, name: str) -> None:
    """Refuse to divide weights that stay quantised among processes (`engine.sharding`).

    Raises:
        ModelError: they do.
    """
    if stays_quantised(config, name):
        raise ModelError(
            f"{name}: its weights are quantised, which engine.sharding cannot divide; "
            f"{UNQUANTISED}, or set engine.sharding: none"
        )


def refuse_cut(config: Any, name: str) -> None:
    """Refuse to cut layers out of quantised weights, whose scales and packing lie beside them.

    Raises:
        ModelError: the weights are quantised.
    """
    quantiser = _quantiser(config, name)
    if quantiser is not None:
        raise ModelError(
            f"{name}: its weights are quantised ({_method(quantiser)}), so no layers can be cut "
            f"out of it; {UNQUANTISED}"
        )


def hint(model: Any) -> str:
    """Return what to add where a model fails its trials: quantised weights may be why, or nothing.

    In 8 bits bitsandbytes computes columns with outliers apart, and which those are depends on all
    the sequences of a batch (`llm_int8_threshold` over 0): 0.05 in logits of a tiny Llama.
    """
    quantiser = getattr(model, "hf_quantizer", None)
    if quantiser is None:
        return ""
    return (
        f"; its weights are quantised ({_method(quantiser)}), perhaps so that a sequence's numbers "
        f"depend on what is computed beside it: {UNQUANTISED}, or one in 4 bits"
    )


def dequantised(model: Any, name: str) -> Any:
    """Return a loaded model with ordinary weights, to merge an adapter into.

    Raises:
        ModelError: transformers cannot dequantise it, or it would be another model then, as where
            activations are rounded as well (bitsandbytes in 8 bits).
    """
    import torch

    from macpo.probe import agree, own_logits, probe_ids

    quantiser = getattr(model, "hf_quantizer", None)
    if quantiser is None:
        return model
    ids = [probe_ids(model, TRIED_TOKENS)]
    with torch.inference_mode():
        [own] = own_logits(model, ids)
    fault = "as ordinary weights they give other logits"
    try:
        plain = model.dequantize()
        _forget_format(plain)
        with torch.inference_mode():
            [theirs] = own_logits(plain, ids)
        if agree(theirs, own, own.dtype):
            return plain
    except (NotImplementedError, ValueError, RuntimeError) as error:
        fault = reason(error)
    raise ModelError(
        f"{name}: its weights are quantised ({_method(quantiser)}), and no adapter can be merged "
        f"into them ({fault}); keep base and adapter apart, or merge into the model that it was "
        "quantised from"
    )


def _quantiser(config: Any, name: str) -> Any:
    """Return transformers' quantiser, told to dequantise if it can; None for ordinary weights."""
    from transformers.quantizers import AutoHfQuantizer

    found = getattr(config, "quantization_config", None)
    found = found or getattr(config.get_text_config(), "quantization_config", None)
    if not found:
        return None
    try:
        quantiser = AutoHfQuantizer.from_config(copy.deepcopy(found), pre_quantized=True)
    except Exception as error:  # a method that is not known, a library that is not there
        method = found.get("quant_method") if isinstance(found, dict) else type(found).__name__
        raise ModelError(
            f"{name}: its weights are quantised ({method}) and cannot be read here "
            f"({reason(error)}); install what that needs, or {UNQUANTISED}"
        ) from error
    if hasattr(quantiser.quantization_config, "dequantize"):
        quantiser.quantization_config.dequantize = True
    return quantiser


def _forget_format(model: Any) -> None:
    """Let `save_pretrained` write a dequantised model's weights as they are.

    Otherwise it would quantise them again, under a config that no longer says so (transformers
    5.23).
    """
    model._weight_conversions = None


def _dequantises(quantiser: Any) -> bool:
    return bool(getattr(quantiser.quantization_config, "dequantize", False))


def _method(quantiser: Any) -> str:
    """Return what the way of quantising is called."""
    method = quantiser.quantization_config.quant_method
    return str(getattr(method, "value", method))
