"""Trackers: programs that show a run's numbers while it goes on. A config names them (`track:`).

Each is known by name without being imported; what it needs is in an extra of the same name.
Another one is added with `register_tracker`.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from macpo.errors import ConfigError
from macpo.registry import Registry


@dataclass(frozen=True, slots=True)
class Tracker:
    """A way to follow runs.

    Attributes:
        name: as configs write it, and as the extra that installs it is called.
        package: that has to be importable.
        factory: a `macpo.monitors.protocol.MonitorFactory`, or where there is one, such as
            `my_package.my_module:start`.
    """

    name: str
    package: str
    factory: Callable[..., Any] | str

    def load(self) -> Any:
        """Return the factory, imported if need be.

        Raises:
            ConfigError: the package is not here.
        """
        if importlib.util.find_spec(self.package) is None:
            raise ConfigError(
                f"track: {self.name} needs the package {self.package}, which is not here; "
                f"pip install 'macpo[{self.name}]', or leave {self.name} out of track"
            )
        if not isinstance(self.factory, str):
            return self.factory
        module, _, attribute = self.factory.partition(":")
        return getattr(importlib.import_module(module), attribute)


TRACKERS: Registry[Tracker] = Registry("tracker")


def register_tracker(tracker: Tracker) -> None:
    """Add a tracker, so that configs can name it.

    Raises:
        ConfigError: another one has that name.
    """
    TRACKERS.register(tracker.name, tracker)


for _name in ("tensorboard", "trackio", "wandb"):
    register_tracker(Tracker(_name, _name, f"macpo.monitors.{_name}_monitor:start"))
