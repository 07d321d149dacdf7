"""How a config names parts of the testbed: `testbed:2000` as data, `testbed:strong` as a model."""

from __future__ import annotations

from macpo.errors import ConfigError

SCHEME = "testbed"
PREFIX = f"{SCHEME}:"


def is_testbed(source: str) -> bool:
    """Say whether a source of data or of a model is the testbed's."""
    return source.startswith(PREFIX)


def preset_of(source: str) -> str:
    """Return the name of a base model in `testbed:NAME`."""
    return source.removeprefix(PREFIX)


def size_of(source: str) -> int:
    """Return the number of preference pairs in `testbed:NUMBER`.

    Raises:
        ConfigError: there is no number.
    """
    text = source.removeprefix(PREFIX)
    if not text.isdecimal():
        raise ConfigError(
            f"data.source: {source}: write testbed:NUMBER, for example testbed:1500 for as many "
            "prompts"
        )
    return int(text)
