"""What all sections of the config tree have in common."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, ValidationInfo, field_validator

from macpo.config.values import shown
from macpo.seeds import plain


class Section(BaseModel):
    """Base of all sections: immutable, and unknown keys are refused.

    Defaults are validated as well, so that `alpha: 16` written out and left out are the same value
    of the same type, and give the same key.

    `added` names keys that came after stages were first kept: with its default such a key is no
    part of a stage's key, so that what was finished before it came is found.
    """

    added: ClassVar[frozenset[str]] = frozenset()

    model_config = ConfigDict(
        extra="forbid", frozen=True, allow_inf_nan=False, validate_default=True
    )

    @field_validator("*", mode="before")
    @classmethod
    def _a_boolean_is_no_number(cls, value: Any, info: ValidationInfo) -> Any:
        # To Python true is 1, and pydantic follows it.
        field = cls.model_fields[str(info.field_name)]
        if isinstance(value, bool) and field.annotation in (int, float, int | float):
            raise ValueError(f"must be a number (got {shown(value)})")
        return value

    def identity(self) -> dict[str, Any]:
        """Return what of this section decides the outcome of a stage, as JSON.

        Raises:
            TypeError: a value has no one form in JSON, as a set has none.
        """
        return {
            name: plain(value)
            for name, value in self.model_dump().items()
            if name not in self.added
            or getattr(self, name) != type(self).model_fields[name].get_default()
        }
