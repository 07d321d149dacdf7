"""Keys of the backends that answer in another process: `vllm` and `server` (docs/vllm.md).

All of them say where an engine is or how it lays out work, so none of them is part of a key.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from typing import ClassVar
from urllib.parse import urlsplit

from pydantic import Field, field_validator

from macpo.backends import LOCAL, Backend, find_backend
from macpo.config.generation import GenerationConfig
from macpo.config.values import Count, Positive, Text, shown


class VllmConfig(GenerationConfig):
    """vLLM answers, in a process that macpo starts.

    `python` is the interpreter of an environment that has vLLM, whose pins differ from macpo's.
    `tensor_parallel` spreads each engine over as many GPUs. A worker that gives no sign for
    `deadline_s` seconds counts as hung, also while it loads. What keys and values may take is
    `engine.decode_memory_gib`, as for `local`.
    """

    paths: ClassVar[frozenset[str]] = frozenset({"python"})

    backend: Text = "vllm"
    python: Text = Field(
        description="name the interpreter of an environment with vLLM, such as "
        ".venv-vllm/bin/python (docs/vllm.md says how to make one)"
    )
    tensor_parallel: Count = 1
    deadline_s: Positive = 900.0

    @field_validator("python")
    @classmethod
    def _home_is_meant(cls, value: str) -> str:
        return os.path.expanduser(value)


class ServerConfig(GenerationConfig):
    """A vLLM server that is there answers, over its OpenAI-compatible API.

    `urls` says by agent where its base is served, such as `student: http://host:8000/v1`; agents
    that are not named answer as under `local`. Adapters are written into the folder `adapters`,
    which the server has to see under the same path, and loaded at run time. `api_key_env` names the
    environment variable with the key, if the server asks for one. A request that takes longer than
    `deadline_s` seconds has failed.
    """

    paths: ClassVar[frozenset[str]] = frozenset({"adapters"})

    backend: Text = "server"
    urls: dict[Text, Text] = Field(
        description="say by agent where its base is served, such as student: http://host:8000/v1"
    )
    adapters: Text | None = None
    api_key_env: Text | None = None
    deadline_s: Positive = 900.0

    @field_validator("urls")
    @classmethod
    def _are_addresses(cls, value: dict[str, str]) -> dict[str, str]:
        if not value:
            raise ValueError("is empty; name an agent, such as student: http://host:8000/v1")
        for agent, url in value.items():
            parts = urlsplit(url)
            if parts.scheme not in ("http", "https") or not parts.hostname:
                raise ValueError(f"{agent}: {shown(url)} is no address; write http://host:8000/v1")
            if parts.username or parts.password:
                raise ValueError(
                    f"{agent}: holds a user or a password; leave them out and use api_key_env"
                )
        return value

    def backend_of(self, agent: str) -> Backend:
        """Return what answers for an agent: the server, if it is named in `urls`."""
        return find_backend(self.backend) if agent in self.urls else LOCAL

    def faults(self, agents: Collection[str]) -> Iterator[str]:
        """Yield which of `urls` are nobody's."""
        for name in sorted(self.urls.keys() - set(agents)):
            yield (
                f"generation.urls: there is no agent {shown(name)}; this run's are "
                f"{', '.join(agents)}"
            )
