"""Registries: what a config names is looked up here, and others can be added from outside.

    METHODS: Registry[type[MethodConfig]] = Registry("method", {"spin": "macpo.methods.spin"})
    METHODS.get("spin")            # imports that module, which registers itself
    METHODS.register("mine", Mine)

A registry is filled by importing modules: its own ones by name when they are asked for, so that
nothing is imported in vain, and those of plugins (see `macpo.plugins`) when a name is not known.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Mapping
from typing import Generic, TypeVar

from macpo.errors import ConfigError
from macpo.plugins import load_plugins

Thing = TypeVar("Thing")


class Registry(Generic[Thing]):
    """Things by name.

    Args:
        what: they are, in errors: `method`.
        homes: the module that registers each of macpo's own, by name.
    """

    def __init__(self, what: str, homes: Mapping[str, str] | None = None) -> None:
        self.what = what
        self._homes = dict(homes or {})
        self._things: dict[str, Thing] = {}

    def register(self, name: str, thing: Thing) -> None:
        """Add a thing.

        Raises:
            ConfigError: another one has that name.
        """
        known = self._things.setdefault(name, thing)
        if known is not thing:
            raise ConfigError(
                f"{self.what} {name!r} is registered twice, by {_origin(known)} and by "
                f"{_origin(thing)}; give one another name"
            )

    def unregister(self, name: str) -> None:
        """Take a thing away again, as tests do."""
        self._things.pop(name, None)

    def find(self, name: str) -> Thing | None:
        """Return the thing of that name, None when there is none."""
        if name not in self._things and name in self._homes:
            importlib.import_module(self._homes[name])
        if name not in self._things:
            load_plugins()
        return self._things.get(name)

    def get(self, name: str) -> Thing:
        """Return the thing of that name.

        Raises:
            ConfigError: there is none; names the nearest.
        """
        found = self.find(name)
        if found is None:
            raise ConfigError(self.unknown(name))
        return found

    def unknown(self, name: str) -> str:
        """Return what to say of a name that is not known: the nearest one, or all."""
        names = self.names()
        near = difflib.get_close_matches(name[:100], names, n=1)
        remedy = (
            f"did you mean {near[0]}?"
            if near
            else f"write {', '.join(names)}, or name the plugin that adds it with --plugin"
        )
        return f"there is no {self.what} {name[:60]!r}; {remedy}"

    def names(self) -> list[str]:
        """Return all names, macpo's own first."""
        load_plugins()
        return list(dict.fromkeys([*self._homes, *self._things]))

    def all(self) -> dict[str, Thing]:
        """Return all things by name."""
        return {name: self.get(name) for name in self.names()}


def _origin(thing: object) -> str:
    """Say where a class was defined, or what else a thing is."""
    if isinstance(thing, type):
        return f"{thing.__module__}.{thing.__qualname__}"
    return repr(thing)[:100]
