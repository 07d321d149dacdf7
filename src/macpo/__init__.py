"""MACPO: multi-agent contrastive preference optimization (arXiv 2410.07672).

    import macpo

    config = macpo.load_config("examples/quickstart.yaml", ["rounds=1"])
    print(macpo.plan(config).to_run)
    with ConsoleObserver() as observer:          # macpo.report.console
        result = macpo.run(config, Path("runs/quickstart"), observer)

The command line is a thin shell over the functions re-exported here. Importing this package is
cheap: each of them is loaded, and torch with it, when it is first asked for.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from macpo.config import load_config
    from macpo.data import check_data
    from macpo.planning import plan
    from macpo.publish import merge_adapter
    from macpo.run import run
    from macpo.status import status

__version__ = "0.1.0"
__all__ = [
    "__version__",
    "check_data",
    "load_config",
    "merge_adapter",
    "plan",
    "run",
    "status",
]

_HOMES = {
    "check_data": "macpo.data",
    "load_config": "macpo.config",
    "merge_adapter": "macpo.publish",
    "plan": "macpo.planning",
    "run": "macpo.run",
    "status": "macpo.status",
}


def __getattr__(name: str) -> Any:
    """Load a re-exported function when it is first asked for."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


class _Package(ModuleType):
    """Keeps `macpo.run` and `macpo.status` functions.

    They live in modules of the same names, which Python would bind here whenever one of these is
    first imported.
    """

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in _HOMES or not isinstance(value, ModuleType):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
