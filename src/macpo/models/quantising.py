"""Weights in four bits, made while a model loads: the frozen base of QLoRA (arXiv 2305.14314).

Every linear layer but the head is kept in NF4 and turned back into the run's dtype when it is
needed; its scales are quantised as well. The files of the model stay as they are, and nothing is
written. Numbers of an adapter are good over such a base alone: what is handed out says so, in
`base_quantization.json`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from macpo.errors import ModelError
from macpo.models.cache import reason

NF4 = "nf4"
"""What `quantize` calls it."""

RECIPE = 1
"""Part of every digest; raise it when the same word comes to stand for other weights."""

NOTE = "base_quantization.json"
"""Beside an adapter: what transformers' `BitsAndBytesConfig` takes to make its base."""

SCALES = 64
"""Weights that share a scale of a byte; 256 scales share a float32 in their turn."""

NF4_BYTES = 1 / 2 + 1 / SCALES + 4 / (256 * SCALES)
"""What one weight takes."""


def options(dtype: str) -> dict[str, Any]:
    """Return what `BitsAndBytesConfig` takes, as JSON.

    Args:
        dtype: that the weights are multiplied in, such as `bfloat16`.
    """
    return {
        "load_in_4bit": True,
        "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_use_double_quant": True,
        "bnb_4bit_compute_dtype": dtype,
    }


def settings(dtype: str) -> Any:
    """Return the `BitsAndBytesConfig` to load a model with."""
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(**options(dtype))


def refuse_unmade(name: str) -> None:
    """Refuse to quantise where that cannot be done.

    Args:
        name: of the model, for messages.

    Raises:
        ModelError: says what to install.
    """
    from transformers.quantizers import AutoHfQuantizer

    try:
        quantiser = AutoHfQuantizer.from_config(settings("float32"), pre_quantized=False)
        quantiser.validate_environment(device_map=None)
    except Exception as error:  # the library is missing, too old, or has nothing for this machine
        raise ModelError(
            f"{name}: quantize: nf4 cannot be done here ({reason(error)}); pip install "
            "'macpo[quantised]', or remove quantize"
        ) from error


def nf4_bytes(model: Any, itemsize: int) -> int:
    """Return the bytes that the weights of a model take with its linear layers in NF4.

    Args:
        model: a transformers causal LM, for its shape.
        itemsize: bytes of a number of what is not quantised.
    """
    from torch.nn import Linear
    from transformers.pytorch_utils import Conv1D  # GPT-2's linear layer

    head = model.get_output_embeddings()
    packed = sum(
        module.weight.numel()
        for module in model.modules()
        if type(module) in (Linear, Conv1D) and module is not head
    )
    kept = sum(p.numel() for p in model.parameters()) - packed
    return int(packed * NF4_BYTES) + int(kept * itemsize)


def write_note(folder: Path, dtype: str) -> None:
    """Write beside an adapter what its base is quantised by."""
    text = json.dumps(options(dtype), indent=2) + "\n"
    (folder / NOTE).write_text(text, encoding="utf-8")


def noted(adapter: Path) -> dict[str, Any]:
    """Return what to load an adapter's base with, beside its name: options of `from_pretrained`.

    Nothing, for an adapter over ordinary weights.

    Raises:
        ModelError: the note is not one of ours.
    """
    note = adapter / NOTE
    if not note.is_file():
        return {}
    try:
        found = json.loads(note.read_text(encoding="utf-8"))
        dtype = found["bnb_4bit_compute_dtype"]
        if dtype not in ("float32", "bfloat16") or found != options(dtype):
            raise ValueError("it asks for another way than macpo's")
    except (OSError, ValueError, LookupError, TypeError, RecursionError) as error:
        raise ModelError(
            f"{note}: does not say how the adapter's base is quantised ({reason(error)}); bring "
            "back the file that the run wrote"
        ) from error
    refuse_unmade(str(adapter))
    return {"quantization_config": settings(dtype), "dtype": dtype}
