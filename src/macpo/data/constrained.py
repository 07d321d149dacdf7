"""`constraints:NUMBER` as data: prompts with constraints that a rule can check."""

from __future__ import annotations

from typing import TYPE_CHECKING

from macpo.data.rows import RawRow, RowSource
from macpo.data.sources import DATA_SCHEMES, HUB_OPTIONS
from macpo.errors import DataError
from macpo.tasks.writing import MOST_EXAMPLES, constrained_examples, examples_digest

if TYPE_CHECKING:
    from macpo.config import DataConfig

SCHEME = "constraints"


class ConstrainedData:
    """Prompts with constraints and pairs of answers, in TRL's format; drawn in a moment."""

    what = "the drawn"
    unused: tuple[str, ...] = HUB_OPTIONS

    def open(self, config: DataConfig) -> RowSource:
        """See `macpo.data.sources.DataSource.open`."""
        examples = constrained_examples(_size(config.source))
        rows = (RawRow(number, example.to_json()) for number, example in enumerate(examples, 1))
        return RowSource(config.source, "row", rows, len(examples))

    def digest(self, config: DataConfig) -> str:
        """See `macpo.data.sources.DataSource.digest`."""
        return examples_digest(_size(config.source))

    def is_here(self, config: DataConfig) -> bool:
        """See `macpo.data.sources.DataSource.is_here`."""
        return True


def _size(source: str) -> int:
    """Return how many prompts a source such as `constraints:600` asks for.

    Raises:
        DataError: it names no number.
    """
    number = source.partition(":")[2]
    if not (number.isascii() and number.isdecimal()):
        raise DataError(
            f"{source}: write {SCHEME}:NUMBER, such as {SCHEME}:600 (1 to {MOST_EXAMPLES:,})"
        )
    return int(number[:9])


DATA_SCHEMES.register(SCHEME, ConstrainedData())
