"""Plugins: modules that add methods, evaluators, metrics or sources when they are imported.

Three kinds, of equal rank: those of macpo itself (the testbed is one, so that nothing in the core
imports it), installed packages with an entry point in the group `macpo.plugins`, and modules or
files that the user names with `--plugin`. A plugin runs with the user's rights: only name code that
you trust. Nothing in a config, a model or a data set can name one.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import importlib.util
import sys
from importlib.metadata import entry_points
from pathlib import Path

from macpo.errors import ConfigError
from macpo.paths import user_path

BUILT_IN = ("macpo.testbed.plugin",)
GROUP = "macpo.plugins"

_NAMED: dict[str, None] = {}


@functools.cache
def load_plugins() -> None:
    """Import the built-in plugins and those of installed packages, once.

    Raises:
        ConfigError: one of an installed package cannot be imported.
    """
    for module in BUILT_IN:
        importlib.import_module(module)
    for point in sorted(entry_points(group=GROUP), key=lambda point: point.name):
        try:
            point.load()
        except Exception as error:  # whatever the package does wrong
            raise ConfigError(
                f"plugin {point.name} ({point.value}): cannot be imported "
                f"({type(error).__name__}: {error}); mend or uninstall its package"
            ) from error


def named_plugins() -> tuple[str, ...]:
    """Return what the user named in this process, in order, for processes that do work of his."""
    return tuple(_NAMED)


def load_plugin(name: str) -> None:
    """Import a plugin that the user names.

    Args:
        name: a module, such as `my_package.methods`, or a Python file, such as `my_method.py`.

    Raises:
        ConfigError: there is none, or it cannot be imported.
    """
    try:
        if name.endswith(".py"):
            path = user_path(name).absolute()
            _import_file(path)
            _NAMED[str(path)] = None
        else:
            importlib.import_module(name)
            _NAMED[name] = None
    except ConfigError:
        raise
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise ConfigError(f"--plugin {name}: cannot be imported ({error})") from error
        raise ConfigError(
            f"--plugin {name}: there is no such module; name an installed one, or a file by its "
            "path, such as ./my_method.py"
        ) from None
    except Exception as error:  # whatever the user's code does wrong
        raise ConfigError(
            f"--plugin {name}: cannot be imported ({type(error).__name__}: {error})"
        ) from error


def _import_file(path: Path) -> None:
    """Import a Python file under a name of its own, once."""
    if not path.is_file():
        raise ConfigError(f"--plugin {path}: no such file; check the path")
    name = f"macpo_plugin_{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    if name in sys.modules:
        return
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None  # a path that ends in .py has a spec with a loader
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
