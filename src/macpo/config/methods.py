"""The `method` section: what all methods' options have in common, and which methods there are.

`method: spin` is short for `method: {name: spin}`. The options of each method stand with its
program, in `macpo.methods`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

from macpo.config.base import Section
from macpo.config.values import shown
from macpo.registry import Registry


class MethodConfig(Section):
    """Base of all methods' options.

    What else of a config a method has no use for, such as `rounds` where there are none, is named
    in `unused`, for example `dpo.gamma`: to set it is an error, and so it is for what `idle` names.
    `data.replay` is there by itself, but where `replays` says that teachers learn in rounds.
    `knows_ground_truth` marks the ceiling that the others' performance gap is measured against.
    """

    unused: ClassVar[frozenset[str]] = frozenset()
    replays: ClassVar[bool] = False
    knows_ground_truth: ClassVar[bool] = False

    name: str

    @property
    def idle(self) -> dict[str, str]:
        """Further keys that these options leave without effect, each with the option."""
        return {}

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        """Add what came later than other methods to what they have no use for."""
        super().__pydantic_init_subclass__(**kwargs)
        later = frozenset({"data.replay"})
        cls.unused = cls.unused - later if cls.replays else cls.unused | later

    def faults(self, teachers: int) -> Iterator[str]:
        """Yield what is wrong with these options in a run with that many teachers."""
        yield from ()


METHODS: Registry[type[MethodConfig]] = Registry(
    "method",
    {
        "macpo": "macpo.methods.macpo",
        "naive-sft": "macpo.methods.naive_sft",
        "ceiling": "macpo.methods.ceiling",
        "confident-loss": "macpo.methods.confident_loss",
        "spin": "macpo.methods.spin",
        "self-rewarding": "macpo.methods.self_rewarding",
        "rlaif": "macpo.methods.rlaif",
        "rlcd": "macpo.methods.rlcd",
        "ws-dpo": "macpo.methods.ws_dpo",
        "cw-dpo": "macpo.methods.cw_dpo",
        "wspo": "macpo.methods.wspo",
        "cong": "macpo.methods.cong",
        "weak-to-strong-search": "macpo.methods.weak_to_strong_search",
        "twin-judges": "macpo.methods.twin_judges",
    },
)
DEFAULT_METHOD = "macpo"


def method_class(section: Any) -> type[MethodConfig] | None:
    """Return the class of a method's section as a config has it: a name, keys, or an instance.

    None when there is no such method.
    """
    if isinstance(section, MethodConfig):
        return type(section)
    if isinstance(section, dict):
        section = section.get("name", DEFAULT_METHOD)
    return METHODS.find(section) if isinstance(section, str) else None


def read_method(value: Any) -> MethodConfig:
    """Read a `method` section.

    Raises:
        ValueError: it is none, names no method, or has options that this method lacks.
    """
    if isinstance(value, MethodConfig):
        return value
    if isinstance(value, str):
        value = {"name": value}
    if not isinstance(value, dict):
        raise ValueError(f"must be a method's name, or a section with one (got {shown(value)})")
    kind = method_class(value)
    if kind is None:
        name = value.get("name")
        raise ValueError(
            METHODS.unknown(name)
            if isinstance(name, str)
            else f"must name a method in `name` (got {shown(name)})"
        )
    return kind.model_validate({"name": method_name(kind), **value})


def method_name(section: type[MethodConfig] | MethodConfig) -> str:
    """Return the name that selects a method."""
    kind = type(section) if isinstance(section, MethodConfig) else section
    return str(kind.model_fields["name"].default)
