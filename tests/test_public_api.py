"""What `import macpo` offers, and how little it costs."""

from __future__ import annotations

import inspect
import os
import subprocess
import sys

import pytest

import macpo
from tests.runs import SOURCES

PUBLIC = {
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
}


def python(code: str) -> str:
    """Run code in a fresh interpreter and return what it printed."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(SOURCES)},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    return done.stdout


def test_public_names() -> None:
    assert set(macpo.__all__) == PUBLIC
    assert set(dir(macpo)) >= PUBLIC


def test_importing_macpo_imports_nothing_else() -> None:
    shown = python(
        "import sys; before = set(sys.modules); import macpo\n"
        "new = {m.partition('.')[0] for m in set(sys.modules) - before}\n"
        "print(sorted(new - sys.stdlib_module_names))"
    )

    assert shown == "['macpo']\n"


@pytest.mark.parametrize("name", sorted(PUBLIC - {"__version__"}))
def test_public_functions_are_those_of_their_modules(name: str) -> None:
    function = getattr(macpo, name)

    assert inspect.isclass(function) if name == "RunConfig" else inspect.isfunction(function)
    assert function.__name__ == name
    assert inspect.getdoc(function)


def test_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'macpo' has no attribute 'rum'"):
        _ = macpo.rum
