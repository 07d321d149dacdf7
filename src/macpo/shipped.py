"""The examples that ship with macpo: configs and their data, named `example:NAME`.

    locate("example:quickstart")       # examples/quickstart.yaml, wherever macpo is installed
    locate("example:compare/main")
    locate("my-run.yaml")              # any other path is itself

They lie in examples/ at the top of the sources, and the wheel carries a copy inside the package.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from macpo.errors import ConfigError

SCHEME = "example:"
CONFIG_SUFFIX = ".yaml"


@dataclass(frozen=True, slots=True)
class Example:
    """A shipped config: its name with the scheme, and what its first comment says it is."""

    name: str
    summary: str


def is_example(source: str | Path) -> bool:
    """Tell whether `source` names a shipped example."""
    return str(source).startswith(SCHEME)


def locate(source: str | Path) -> Path:
    """Return the file that `source` names: a shipped example's, or the path as it is.

    Raises:
        ConfigError: there is no such example; names the nearest, or all.
    """
    if not is_example(source):
        return Path(source)
    name = str(source).removeprefix(SCHEME)
    folder = examples_folder()
    files = {str(path.relative_to(folder)): path for path in folder.rglob("*.*") if path.is_file()}
    found = files.get(name) or files.get(name + CONFIG_SUFFIX)
    if found is None:
        raise ConfigError(f"{source}: there is no such example; {_remedy(name)}")
    return found


def examples() -> tuple[Example, ...]:
    """Return the shipped configs, those for one run before comparisons."""
    folder = examples_folder()
    paths = sorted(folder.rglob(f"*{CONFIG_SUFFIX}"), key=lambda path: (len(path.parts), path))
    return tuple(Example(_name(path, folder), _summary(path)) for path in paths)


def nearest_example(stem: str) -> str | None:
    """Return the example whose file is named nearly so, without its suffix; None if none is."""
    names = {Path(example.name.removeprefix(SCHEME)).name: example.name for example in examples()}
    near = difflib.get_close_matches(stem, names, n=1, cutoff=0.75)
    return names[near[0]] if near else None


def examples_folder() -> Path:
    """Return where the examples lie: in the installed package, or at the top of a clone.

    Raises:
        ConfigError: they were not installed with the package.
    """
    package = Path(str(resources.files("macpo")))
    for folder in (package / "examples", package.parent.parent / "examples"):
        if (folder / "quickstart.yaml").is_file():
            return folder
    raise ConfigError(
        f"{package}: its examples are missing; install macpo's wheel, or run it from a clone"
    )


def _name(path: Path, folder: Path) -> str:
    return SCHEME + path.relative_to(folder).with_suffix("").as_posix()


def _summary(path: Path) -> str:
    """Return the first sentence of the comment that a config opens with."""
    comment = path.read_text(encoding="utf-8").partition("\n#\n")[0]
    text = " ".join(line.lstrip("# ") for line in comment.splitlines())
    return text.partition(". ")[0].rstrip(".")


def _remedy(name: str) -> str:
    names = [example.name.removeprefix(SCHEME) for example in examples()]
    near = difflib.get_close_matches(name.removesuffix(CONFIG_SUFFIX), names, n=1, cutoff=0.5)
    return f"did you mean {SCHEME}{near[0]}?" if near else f"there are {', '.join(names)}"
