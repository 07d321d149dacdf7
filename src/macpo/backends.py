"""Backends: who answers prompts. A config names one (`generation.backend`).

`local` is the policy's own model, in this process. `scripted` is no model at all: random words, for
dry trials of a whole run. Another one is added with `register_backend`; the names are known without
torch, and a backend's code is imported when it first answers.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from macpo.registry import Registry


@dataclass(frozen=True, slots=True)
class Backend:
    """A way to get answers.

    Attributes:
        name: as configs write it.
        version: raised by hand whenever the same request comes to give other answers. It stands in
            the key of every answer; macpo's own version does not, nor in any artifact.
        factory: a `macpo.generation.protocol.GeneratorFactory`, or where there is one, such as
            `my_package.my_module:make_generator`.
        pushes: it can push answers away from another policy's (`negatives: decoding`).
        runs_policy: the policy's own model makes the answers, and so they cost what it costs.
        caution: what has to be known of its answers, told at the start of every run.
    """

    name: str
    version: int
    factory: Callable[..., Any] | str
    pushes: bool = False
    runs_policy: bool = True
    caution: str = ""

    @property
    def label(self) -> str:
        """Name and version, as in keys and in the origin of answers: `local 1`."""
        return f"{self.name} {self.version}"

    def load(self) -> Any:
        """Return the factory, imported if need be."""
        if not isinstance(self.factory, str):
            return self.factory
        module, _, attribute = self.factory.partition(":")
        return getattr(importlib.import_module(module), attribute)


LOCAL = Backend("local", 1, "macpo.generation.local:local_generator", pushes=True)
SCRIPTED = Backend(
    "scripted",
    1,
    "macpo.generation.scripted:scripted_generator",
    runs_policy=False,
    caution="DRY TRIAL: generation.backend is scripted, so every answer is random words and no "
    "model wrote it; everything else is real, but policies learn from noise and metrics mean "
    "nothing. Leave generation.backend out for a true run",
)
BACKENDS: Registry[Backend] = Registry("backend")


def register_backend(backend: Backend) -> None:
    """Add a backend, so that configs can name it.

    Raises:
        ConfigError: another one has that name.
    """
    BACKENDS.register(backend.name, backend)


def find_backend(name: str) -> Backend:
    """Return the backend that a config names.

    Raises:
        ConfigError: there is none; names the nearest.
    """
    return BACKENDS.get(name)


def backend_labelled(label: str) -> Backend:
    """Return the backend with that label.

    Raises:
        ConfigError: there is none.
    """
    return find_backend(label.rpartition(" ")[0])


for _backend in (LOCAL, SCRIPTED):
    register_backend(_backend)
