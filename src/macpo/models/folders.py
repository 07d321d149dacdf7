"""Ordinary Hugging Face model folders: which files are the model, and is anything missing."""

from __future__ import annotations

import difflib
import json
from pathlib import Path
from typing import Any

from macpo.errors import ModelError
from macpo.models.cache import reason, remembered_digest
from macpo.seeds import digest

CONFIG = "config.json"
ADAPTER_CONFIG = "adapter_config.json"
GENERATION_CONFIG = "generation_config.json"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
)
UNCONVERTED = ("vocab.txt", "*.model", "*.tiktoken", "tekken.json")
"""What transformers makes a tokenizer of where there is no tokenizer.json."""

PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt")


def weight_files(folder: Path) -> list[Path]:
    """Return the safetensors files that transformers loads from `folder`, in a fixed order.

    Files that an index names are listed whether they exist or not; without an index and without
    a `model.safetensors` the list is empty.

    Raises:
        ModelError: the index cannot be read.
    """
    index = folder / INDEX
    if (folder / WEIGHTS).exists() or not index.exists():
        return [folder / WEIGHTS] if (folder / WEIGHTS).exists() else []
    try:
        names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        if not all(isinstance(name, str) and Path(name).name == name for name in names):
            raise ValueError("it names what is no file in its folder")
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise ModelError(f"{index}: not an index of weight files; fetch it again") from error
    return [folder / name for name in sorted(names)]


def check_weights(folder: Path) -> None:
    """Make sure that the weight files of a folder are whole, by their headers.

    A header says which tensors follow and where the last one ends, so that a file that was cut is
    known without reading it.

    Raises:
        ModelError: one is not; names it.
    """
    from safetensors import SafetensorError, safe_open

    for path in weight_files(folder):
        if not path.is_file():
            continue
        try:
            with safe_open(str(path), framework="pt"):
                pass
        except (SafetensorError, OSError) as error:
            raise ModelError(
                f"{path}: not a whole file of weights ({reason(error)}); fetch it again"
            ) from error


def is_complete(folder: Path) -> bool:
    """Say whether `folder` holds a config and all the weights."""
    files = weight_files(folder)
    return (folder / CONFIG).is_file() and bool(files) and all(path.is_file() for path in files)


def holds_config_alone(folder: Path) -> bool:
    """Say whether `folder` holds a model's config, and weights in no form at all."""
    pickled = any(path for pattern in PICKLED for path in folder.glob(pattern))
    named = (folder / INDEX).exists() or weight_files(folder)
    return (folder / CONFIG).is_file() and not named and not pickled


def check_folder(folder: Path) -> None:
    """Make sure that `folder` holds a model with safetensors weights.

    Raises:
        ModelError: it does not; says what is there instead and what to do.
    """
    if not (folder / CONFIG).is_file():
        raise ModelError(f"{folder}: no {CONFIG} in this folder; {_without_config(folder)}")
    if (folder / ADAPTER_CONFIG).exists():
        raise ModelError(
            f"{folder}: an {ADAPTER_CONFIG} lies beside the model, and transformers would put that "
            "adapter over it without a word; move it into a folder of its own, and name that as "
            "adapter beside source if it is wanted"
        )
    files = weight_files(folder)
    if not files:
        pickled = sorted(path.name for pattern in PICKLED for path in folder.glob(pattern))
        if pickled:
            raise ModelError(
                f"{folder}: only pickled weights ({pickled[0]}), which can run code when opened "
                "and are never read; save the model again with transformers, which writes "
                "safetensors"
            )
        raise ModelError(f"{folder}: no {WEIGHTS} in this folder; fetch or save the weights there")
    missing = [path.name for path in files if not path.is_file()]
    if missing:
        raise ModelError(
            f"{folder}: {len(missing)} of {len(files)} weight files are missing, the first is "
            f"{missing[0]}; fetch the model again"
        )


def generation_stops(folder: Path) -> tuple[int, ...]:
    """Return the ids of tokens that end an answer, as generation_config.json lists them.

    Families write several there: GLM and Qwen end a turn with one token and a text with another.

    Raises:
        ModelError: the file is no such JSON.
    """
    path = folder / GENERATION_CONFIG
    if not path.is_file():
        return ()
    try:
        found = json.loads(path.read_text(encoding="utf-8")).get("eos_token_id")
        return tuple(
            map(int, found if isinstance(found, list) else [] if found is None else [found])
        )
    except (OSError, ValueError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise ModelError(f"{path}: cannot be read ({error}); fetch or mend the file") from error


def folder_digest(folder: Path, *, with_code: bool = False) -> str:
    """Return a digest of config and weights: the same model in another place has the same.

    Args:
        folder: a model's.
        with_code: its Python files count too, since they are run.
    """
    code = sorted(folder.glob("*.py")) if with_code else []
    files = [folder / CONFIG, *weight_files(folder), *code]
    return digest([[path.name, remembered_digest(path)] for path in files])


def tokenizer_files(folder: Path) -> list[list[str]]:
    """Return names and SHA-256 of the files that make a folder's tokenizer and its template."""
    paths = [folder / name for name in TOKENIZER_FILES]
    if not paths[0].is_file():
        more = {path for pattern in UNCONVERTED for path in folder.glob(pattern)}
        paths += sorted(more - set(paths))
    return [[path.name, remembered_digest(path)] for path in paths if path.is_file()]


def beside_digest(folder: Path) -> str:
    """Return a digest of what a folder holds beside config and weights; empty if nothing.

    That is the tokenizer with its template, and where answers end.
    """
    files = tokenizer_files(folder)
    if (folder / GENERATION_CONFIG).is_file():
        files.append([GENERATION_CONFIG, remembered_digest(folder / GENERATION_CONFIG)])
    return digest(files) if files else ""


def read_config(folder: Path, *, with_code: bool) -> Any:
    """Return the transformers config in `folder`, with the defaults that its file leaves out.

    Raises:
        ModelError: transformers cannot use it.
    """
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(
            str(folder), trust_remote_code=with_code, local_files_only=True
        )
    except Exception as error:  # each config class checks its values in its own way
        raise ModelError(f"{folder}: its config cannot be used ({load_failure(error)})") from error


def near_path(path: Path) -> Path | None:
    """Return a folder or GGUF file beside the missing `path` that has a similar name."""
    if not path.parent.is_dir():
        return None
    names = [p.name for p in path.parent.iterdir() if p.is_dir() or p.suffix == ".gguf"]
    near = difflib.get_close_matches(path.name, sorted(names), n=1, cutoff=0.6)
    return path.parent / near[0] if near else None


def load_failure(error: Exception) -> str:
    """Return one line on why transformers could not load something, with the remedy if known."""
    if "trust_remote_code" in str(error):
        return "it needs Python code that came with it; set trust_remote_code: true if you trust it"
    return reason(error)


def _without_config(folder: Path) -> str:
    """Say what to do about a folder without a config."""
    ggufs = sorted(folder.glob("*.gguf"))
    if ggufs:
        return f"name the GGUF file itself: {ggufs[0]}"
    inside = sorted(path.parent for path in folder.glob(f"*/{CONFIG}"))
    if inside:
        return f"did you mean {inside[0]}?"
    return "a model folder is what transformers' save_pretrained writes"
