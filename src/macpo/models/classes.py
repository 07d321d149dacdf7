"""Which of transformers' auto classes reads a model: by its own mappings, never by a list of ours.

Most models that chat are causal LMs by name. In others the text model is a part of a composite,
beside encoders of pictures or sound (Mistral 3, Qwen 3 VL, LLaVA, Voxtral). Such a one is loaded
whole, as its users load it, and serves as a causal LM: it is given text alone, its decoder and LM
head are the policy, and adapters bear the names that they have in the whole.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

PROCESSORS = "*processor_config.json"
"""What tells users of a composite how pictures or sound are read."""


def auto_class(config: Any) -> Any:
    """Return the auto class that loads a model with its language model's head.

    A composite's text model alone is taken only if what transformers saves of it can be loaded by
    an auto class again (Qwen 3.5); where it cannot (Emu 3, Mllama) the composite is taken.

    Args:
        config: a transformers config.

    Returns:
        `AutoModelForCausalLM` also where none will do: it says so when it is called, and it is the
        one by which code that came with a model is found.
    """
    from transformers import (
        AutoModelForCausalLM,
        AutoModelForImageTextToText,
        AutoModelForMultimodalLM,
    )

    for auto in (AutoModelForCausalLM, AutoModelForImageTextToText, AutoModelForMultimodalLM):
        classes = auto._model_mapping
        if type(config) in classes:
            kind = getattr(classes[type(config)], "config_class", type(config))
            if kind is type(config) or kind in classes:
                return auto
    return AutoModelForCausalLM


def text_decoder_name(model: Any) -> str | None:
    """Return what a composite calls its text decoder; None for a model that is nothing else.

    Args:
        model: a transformers model, with or without weights.
    """
    if model.config.get_text_config() is model.config:
        return None
    decoder = model.get_decoder()
    names = (name for name, module in model.named_modules() if module is decoder)
    return next(names, None) or None


def copy_processors(base: Path, folder: Path) -> None:
    """Copy how a composite's other inputs are read, so that a model in `folder` is whole."""
    for path in sorted(base.glob(PROCESSORS)):
        shutil.copyfile(path, folder / path.name)
