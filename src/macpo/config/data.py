"""The section `data`: where preference data is, what its columns hold, and how it is divided."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import (
    Field,
    SerializerFunctionWrapHandler,
    field_validator,
    model_serializer,
    model_validator,
)

from macpo.config.base import Section
from macpo.config.values import (
    NonNegative,
    Ratio,
    Size,
    SizeOrZero,
    Source,
    Text,
)
from macpo.words import Criterion, FormatChoice


class SplitsConfig(Section):
    """How many prompts each side gets; a prompt is in one of them at most.

    The paper takes 5,000 / 5,000 / 2,000 prompts (HH-RLHF). `validation` prompts belong to the side
    of the teachers, who have labels, and nobody learns from them: a run may decide by them when to
    stop, as it must not by the test split.
    """

    teacher: Size = 5000
    student: Size = 5000
    test: Size = 2000
    validation: SizeOrZero = 0

    @model_serializer(mode="wrap")
    def _without_what_is_not_there(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # So that data without such a split has the key that it had before there was one.
        values: dict[str, Any] = write(self)
        return values if self.validation else {k: values[k] for k in values if k != "validation"}

    @model_validator(mode="after")
    def _fractions_leave_no_overlap(self) -> SplitsConfig:
        sizes = (self.teacher, self.student, self.test, self.validation)
        total = sum(size for size in sizes if isinstance(size, float))
        if total > 1 + 1e-9:
            raise ValueError(f"the fractions add up to {total:g}; make that 1.0 at most")
        return self


class ColumnsConfig(Section):
    """Which columns of the data hold what, where no format knows their names.

    `chosen` and `rejected` may hold an answer each or whole conversations; then `prompt` can be
    left out.
    """

    prompt: Text | None = None
    system: Text | None = None
    chosen: Text
    rejected: Text

    def as_columns(self) -> dict[str, Any]:
        """Return the arguments of `macpo.data.columns.Columns`."""
        return {
            "chosen": self.chosen,
            "rejected": self.rejected,
            "prompt": () if self.prompt is None else (self.prompt,),
            "system": () if self.system is None else (self.system,),
        }


class DataConfig(Section):
    """Where the preference data is and how it is divided.

    `source` is a path (.jsonl, .json, .csv, .tsv, each also with .gz or .zst, .parquet, .arrow, a
    folder of such files, or one that `datasets` saved; relative to the config file), or
    `testbed:NUMBER` for as many pairs of the testbed's world (a scheme; plugins can add others), or
    a hub name, which `hub_config`, `hub_split` (of folders, too) and `hub_revision` (a branch, tag
    or commit) narrow down. `columns` says which columns hold what, where no `format` fits.
    `max_bad_rows` is a number of rows, or a fraction of all rows when it is below 1. `noise` is the
    share of the teacher half's pairs whose labels are swapped. `replay` is the share of a teacher's
    pairs in every round that are ground truth of its half, beside those of its own: it replays what
    it was taught.
    """

    source: Source
    format: FormatChoice = "auto"
    columns: ColumnsConfig | None = None
    criterion: Criterion = "helpful"  # which PKU-SafeRLHF label decides
    hub_split: Text = "train"
    hub_config: Text | None = None
    hub_revision: Text | None = None
    max_bad_rows: NonNegative = 0.05
    noise: Annotated[float, Field(ge=0, le=1)] = 0.0
    replay: Ratio = 0.0
    splits: SplitsConfig = SplitsConfig()

    @model_validator(mode="after")
    def _columns_or_format(self) -> DataConfig:
        if self.columns is not None and self.format != "auto":
            raise ValueError("columns and format both say what the rows look like; remove one")
        return self

    @field_validator("max_bad_rows")
    @classmethod
    def _rows_are_whole(cls, value: float) -> float:
        if value > 1 and not value.is_integer():
            raise ValueError(f"{value} is neither a number of rows nor a fraction below 1")
        return value
