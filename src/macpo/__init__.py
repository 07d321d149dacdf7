"""MACPO: multi-agent contrastive preference optimization (arXiv 2410.07672).

    import macpo

    config = macpo.load_config("example:quickstart", ["rounds=1"])
    print(macpo.plan(config).to_run)
    result = macpo.run(config, "runs/quickstart")
    student = macpo.open_run("runs/quickstart").policy("student")

The command line is a thin shell over the functions re-exported here. Importing this package is
cheap: each of them is loaded, and torch with it, when it is first asked for.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from macpo.version import __version__

if TYPE_CHECKING:
    from macpo.api import evaluate, run
    from macpo.config import RunConfig, load_config
    from macpo.data import check_data
    from macpo.evaluation import register_evaluator
    from macpo.methods import register_method
    from macpo.metrics import register_metric
    from macpo.planning import plan
    from macpo.publish import merge_adapter
    from macpo.run_api import filter_by_perplexity, open_run
    from macpo.run_status import status

__all__ = [
    "RunConfig",
    "__version__",
    "check_data",
    "evaluate",
    "filter_by_perplexity",
    "load_config",
    "merge_adapter",
    "open_run",
    "plan",
    "register_evaluator",
    "register_method",
    "register_metric",
    "run",
    "status",
]

_HOMES = {
    "RunConfig": "macpo.config",
    "check_data": "macpo.data",
    "evaluate": "macpo.api",
    "filter_by_perplexity": "macpo.run_api",
    "load_config": "macpo.config",
    "merge_adapter": "macpo.publish",
    "open_run": "macpo.run_api",
    "plan": "macpo.planning",
    "register_evaluator": "macpo.evaluation",
    "register_method": "macpo.methods",
    "register_metric": "macpo.metrics",
    "run": "macpo.api",
    "status": "macpo.run_status",
}


def __getattr__(name: str) -> Any:
    """Load what is re-exported when it is first asked for."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
