"""How this process was called and on what it runs: for journals and reports, without secrets."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from macpo.version import __version__

HIDDEN = "***"
PACKAGES = ("torch", "transformers", "peft", "accelerate", "tokenizers", "safetensors", "numpy")

# A name whose last word says that its value is secret. `max_new_tokens` is none.
_SECRET_NAME = re.compile(
    r"(?:^|[^a-z])(?:(?:api|access|private)[_-]?key|key|token|password|passwd|secret|credentials?"
    r"|authorization)$",
    re.IGNORECASE,
)
# Secrets that show by their shape: of Hugging Face, OpenAI, GitHub, Slack, and in URLs.
_SECRET_SHAPES = (
    re.compile(r"\b(?:hf_|sk-|gh[pousr]_|github_pat_|xox[abprs]-)[A-Za-z0-9_-]{8,}"),
    re.compile(r"(?<=://)[^/@\s]+:[^/@\s]+(?=@)"),
    re.compile(r"(?<=[?&]token=)[^&\s]+|(?<=[?&]key=)[^&\s]+"),
    re.compile(r"(?<=Bearer )\S+", re.IGNORECASE),
)
_YAML_VALUE = re.compile(
    r"^(?P<name>[ \t]*(?:- )?[\w.-]+)(?P<colon>:[ \t]+)(?P<value>\S.*)$", re.MULTILINE
)


def command_line(arguments: Sequence[str] | None = None) -> str:
    """Return the command as one would type it, with secrets replaced by `***`.

    Args:
        arguments: the program and what follows it; by default those of this process.
    """
    given = list(sys.argv if arguments is None else arguments)
    if not given:
        return "python"
    return shlex.join([Path(given[0]).name or "python", *_without_secrets(given[1:])])


def hide_secrets(text: str) -> str:
    """Replace what looks like a secret in a text, such as a config file, by `***`."""

    def value(match: re.Match[str]) -> str:
        if _SECRET_NAME.search(match["name"]):
            return f"{match['name']}{match['colon']}{HIDDEN}"
        return match[0]

    return _hide_shapes(_YAML_VALUE.sub(value, text))


def describe_process() -> dict[str, Any]:
    """Return versions of what runs here, and the machine: names, cores, memory in GiB."""
    return {
        "versions": {
            "macpo": __version__,
            "python": platform.python_version(),
            **{name: found for name in PACKAGES if (found := _version(name)) is not None},
        },
        "machine": {
            "host": platform.node(),
            "system": f"{platform.system()} {platform.release()} {platform.machine()}",
            "processor": _processor(),
            "cores": os.cpu_count() or 0,
            "memory_gib": round(_memory() / 2**30, 1),
        },
    }


def _without_secrets(arguments: Sequence[str]) -> list[str]:
    """Hide the values of options and keys with telling names, and what looks like a secret."""
    shown: list[str] = []
    secret_follows = False
    for argument in arguments:
        name, equals, _ = argument.partition("=")
        if secret_follows:
            shown.append(HIDDEN)
        elif equals and _SECRET_NAME.search(name):
            shown.append(f"{name}={HIDDEN}")
        else:
            shown.append(_hide_shapes(argument))
        secret_follows = argument.startswith("--") and not equals and _is_secret(argument)
    return shown


def _is_secret(name: str) -> bool:
    return _SECRET_NAME.search(name) is not None


def _hide_shapes(text: str) -> str:
    for shape in _SECRET_SHAPES:
        text = shape.sub(HIDDEN, text)
    return text


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _processor() -> str:
    """Return the processor's name, as Linux knows it, else as Python does."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor())


def _memory() -> int:
    """Return the machine's memory in bytes."""
    import psutil

    return int(psutil.virtual_memory().total)
