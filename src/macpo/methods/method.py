"""What a method is: options, and a program that lays out stages."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, TypeVar

from macpo.config.methods import METHODS, MethodConfig, method_name

if TYPE_CHECKING:
    from macpo.program import Program


class Method(MethodConfig):
    """Base of all methods.

        @register_method
        class Mine(Method):
            name: Literal["mine"] = "mine"
            strength: float = 1.0

            def lay_out(self, program: Program) -> None:
                ...

    Fields are the options of the config's `method` section, checked as pydantic does. Options are
    read whenever a config is, so a method's module imports nothing heavy but inside of `lay_out`.
    """

    @abstractmethod
    def lay_out(self, program: Program) -> None:
        """Lay out the run's stages; nothing is run."""


MethodKind = TypeVar("MethodKind", bound=Method)


def register_method(kind: type[MethodKind]) -> type[MethodKind]:
    """Make a method known by its name, for `method:` in configs; used as a decorator.

    Raises:
        ConfigError: another method has that name.
        TypeError: it is no `Method`, or has no `name` with a default.
    """
    if not (isinstance(kind, type) and issubclass(kind, Method)):
        raise TypeError(f"{kind!r} is no class derived from macpo.methods.Method")
    if not isinstance(kind.model_fields["name"].default, str):
        raise TypeError(f'{kind.__name__}: give it a name: Literal["mine"] = "mine"')
    METHODS.register(method_name(kind), kind)
    return kind
