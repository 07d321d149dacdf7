"""The `generation` section: what all backends' keys have in common, and looking them up.

The keys of a backend stand with it (`macpo.backends.Backend.options`); those of macpo's own that
answer in another process are in `macpo.config.serving`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any, ClassVar

from pydantic import field_validator

from macpo.backends import BACKENDS, LOCAL, Backend, find_backend
from macpo.config.base import Section
from macpo.config.values import Text, shown
from macpo.errors import ConfigError


class GenerationConfig(Section):
    """Who answers prompts: `local` is the policy's own model, in this process.

    `vllm` is vLLM in a process and an interpreter of its own, `server` a server that is there; each
    has keys of its own. `scripted` makes a dry trial: every answer is random words that no model
    wrote, and all the rest (training, filter, evaluation, what is left behind) is real. Others can
    be registered. Only the backend's name and its engine's version are part of a stage's key.

    `paths` names keys that may be a path, and then one relative to the config file.
    """

    paths: ClassVar[frozenset[str]] = frozenset()

    backend: Text = LOCAL.name

    @field_validator("backend")
    @classmethod
    def _is_registered(cls, value: str) -> str:
        try:
            return find_backend(value).name
        except ConfigError as error:
            raise ValueError(str(error)) from error

    def backend_of(self, agent: str) -> Backend:
        """Return what answers for an agent."""
        return find_backend(self.backend)

    def faults(self, agents: Collection[str]) -> Iterator[str]:
        """Yield what is wrong with this section in a run with agents of these names."""
        yield from ()


DECODED_HERE = GenerationConfig()
"""The section of who says nothing of it."""


def generation_class(section: Any) -> type[GenerationConfig] | None:
    """Return the class of a section as a config has it: keys, or an instance.

    None when it names no backend that there is.
    """
    if isinstance(section, GenerationConfig):
        return type(section)
    name = section.get("backend", LOCAL.name) if isinstance(section, Mapping) else None
    backend = BACKENDS.find(name) if isinstance(name, str) else None
    if backend is None:
        return None
    found: type[GenerationConfig] = backend.section() or GenerationConfig
    return found


def read_generation(value: Any) -> GenerationConfig:
    """Read a `generation` section.

    Raises:
        ValueError: it is none, names no backend, or has keys that this one lacks.
    """
    if isinstance(value, GenerationConfig):
        return value
    if not isinstance(value, Mapping):
        raise ValueError(f"must be a section, that is keys with values (got {shown(value)})")
    return (generation_class(value) or GenerationConfig).model_validate(value)
