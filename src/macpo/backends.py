"""Backends: who answers prompts. A config names one (`generation.backend`).

`local` is the policy's own model, in this process. `vllm` is vLLM in a process of its own, `server`
a server that is there already; both answer with the policy's weights, and are held to that.
`scripted` is no model at all: random words, for dry trials of a whole run. Another one is added
with `register_backend`; the names are known without torch, and a backend's code is imported when
it first answers.
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
        options: the class of its section, if it has keys beside `backend`: a
            `macpo.config.GenerationConfig`, or where there is one, as with `factory`.
        engine: finds the version of what answers where that is not macpo's own: a function, or
            where there is one, that takes the section, and raises a `ConfigError` where nothing
            can answer. It is asked before the first stage, and its answer is part of keys.
        pushes: it can push answers away from another policy's (`negatives: decoding`).
        runs_policy: the policy's own model makes the answers, and so they cost what it costs.
        caution: what has to be known of its answers, told at the start of every run.
    """

    name: str
    version: int
    factory: Callable[..., Any] | str
    options: type | str | None = None
    engine: Callable[[Any], str] | str | None = None
    pushes: bool = False
    runs_policy: bool = True
    caution: str = ""

    @property
    def label(self) -> str:
        """Name and version, as in keys and in the origin of answers: `local 1`."""
        return f"{self.name} {self.version}"

    def labelled(self, section: Any) -> str:
        """Return the label, with the version of the engine where there is one: `vllm 1+0.32.0`.

        Args:
            section: `generation` of the config.

        Raises:
            ConfigError: the engine is not there, or will not do.
        """
        if self.engine is None:
            return self.label
        return f"{self.label}+{_imported(self.engine)(section)}"

    def load(self) -> Any:
        """Return the factory, imported if need be."""
        return _imported(self.factory)

    def section(self) -> Any:
        """Return the class of its section, imported if need be; None if it has no keys."""
        return _imported(self.options)


def _imported(what: Any) -> Any:
    """Return a thing, imported if it is said where there is one: `my_package.my_module:thing`."""
    if not isinstance(what, str):
        return what
    module, _, attribute = what.partition(":")
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
VLLM = Backend(
    "vllm",
    1,
    "macpo.generation.served.vllm:vllm_generator",
    options="macpo.config.serving:VllmConfig",
    engine="macpo.generation.served.vllm:find_version",
)
SERVER = Backend(
    "server",
    1,
    "macpo.generation.served.server:server_generator",
    options="macpo.config.serving:ServerConfig",
    engine="macpo.generation.served.server:find_version",
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


for _backend in (LOCAL, VLLM, SERVER, SCRIPTED):
    register_backend(_backend)
