"""A model that begins where somebody's LoRA adapter ended: base and adapter merged into one folder.

That is what most people's SFT leaves behind. Merged once and kept in the model cache as cut models
are, it is an ordinary model afterwards: it can be cut, trained with another adapter, or whole.
"""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path
from typing import Any

from macpo.errors import ModelError
from macpo.models.cache import reason, remembered_digest
from macpo.models.folders import ADAPTER_CONFIG, CONFIG, INDEX, load_failure, read_config
from macpo.models.quantised import dequantised, read_model
from macpo.models.quantising import NOTE, noted
from macpo.seeds import digest

RECIPE = 1
"""Part of every key; raise it when merging writes something else than before."""

ADAPTER_WEIGHTS = "adapter_model.safetensors"
TOKENIZER = ("tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab*", "merges.txt")
TEMPLATE = ("chat_template*",)


def read_adapter(adapter: Path) -> dict[str, Any]:
    """Return the config of an adapter folder, as PEFT's `save_pretrained` writes it.

    Raises:
        ModelError: it is no such folder, or its weights are pickled.
    """
    try:
        config = dict(json.loads((adapter / ADAPTER_CONFIG).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise ModelError(
            f"{adapter}: no adapter, since {ADAPTER_CONFIG} cannot be read ({reason(error)}); name "
            "a folder that PEFT's save_pretrained wrote"
        ) from error
    if not (adapter / ADAPTER_WEIGHTS).is_file():
        raise ModelError(
            f"{adapter}: no {ADAPTER_WEIGHTS} in this adapter's folder; pickled weights are never "
            "read, so save it again with PEFT, which writes safetensors"
        )
    return config


def adapter_digest(adapter: Path) -> str:
    """Return a digest of an adapter that does not depend on where it or its base lies."""
    config = read_adapter(adapter)
    kept = {k: v for k, v in config.items() if k not in ("base_model_name_or_path", "revision")}
    note = [remembered_digest(adapter / NOTE)] if (adapter / NOTE).is_file() else []
    return digest([kept, remembered_digest(adapter / ADAPTER_WEIGHTS), *note])


def merge_folder(base: Path, adapter: Path, folder: Path, *, name: str, with_code: bool) -> None:
    """Write the model of `base` with an adapter merged into it to `folder`.

    Tokenizer and chat template are the adapter's where its folder holds them, else the base's.

    Args:
        base: a complete model folder.
        adapter: the adapter's folder.
        folder: an empty folder.
        name: of the base, for messages.
        with_code: the base needs `trust_remote_code`.

    Raises:
        ModelError: the adapter does not fit the base, or is of a kind that cannot be merged.
    """
    from peft import PeftModel

    read_adapter(adapter)
    config = read_config(base, with_code=with_code)
    try:
        model = read_model(
            str(base),
            config,
            name,
            trust_remote_code=with_code,
            local_files_only=True,
            **{"dtype": "auto", **noted(adapter)},
        )
    except ModelError:
        raise
    except Exception as error:  # as many ways as there are models
        raise ModelError(f"{name}: {base} cannot be loaded ({load_failure(error)})") from error
    model = dequantised(model, name)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        try:
            adapted = PeftModel.from_pretrained(model, str(adapter))
            merged = adapted.merge_and_unload(safe_merge=True)
        except Exception as error:  # likewise, and kinds of adapters that have no merge
            raise ModelError(
                f"{adapter}: cannot be merged into {name} ({reason(error)}); name the base that it "
                "was trained on, or merge it with PEFT and name the folder"
            ) from error
    if any("missing adapter keys" in str(warning.message) for warning in said):
        raise ModelError(
            f"{adapter}: does not fit {name}, which has layers that it holds no weights for; name "
            "the base that it was trained on"
        )
    merged.save_pretrained(str(folder))
    _copy_rest(base, folder, ("*",))
    if (adapter / "tokenizer_config.json").is_file():
        _copy_rest(adapter, folder, TOKENIZER)
    _copy_rest(adapter, folder, TEMPLATE)


def _copy_rest(source: Path, folder: Path, patterns: tuple[str, ...]) -> None:
    """Copy what is neither config nor weights; files of these names are replaced."""
    for pattern in patterns:
        for path in source.glob(pattern):
            weights = path.suffix in (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".h5")
            if path.is_file() and path.name not in (CONFIG, INDEX) and not weights:
                shutil.copyfile(path, folder / path.name)
