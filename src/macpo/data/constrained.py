"""`constraints:NUMBER` and `short-constraints:NUMBER` as data: prompts that a rule can check."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from macpo.data.rows import RawRow, RowSource
from macpo.data.sources import DATA_SCHEMES, HUB_OPTIONS
from macpo.errors import DataError
from macpo.records import PreferenceExample
from macpo.tasks.short import MOST_SHORT, short_digest, short_examples
from macpo.tasks.writing import MOST_EXAMPLES, constrained_examples, examples_digest

if TYPE_CHECKING:
    from macpo.config import DataConfig


class ConstrainedData:
    """Prompts with constraints and pairs of answers, in TRL's format; drawn in a moment.

    Args:
        scheme: what stands before the colon.
        draw: draws so many examples.
        digest_of: stands for so many examples, for stage keys.
        sizes: how many to ask for, and how many at most; for messages.
    """

    what = "the drawn"
    unused: tuple[str, ...] = HUB_OPTIONS

    def __init__(
        self,
        scheme: str,
        draw: Callable[[int], list[PreferenceExample]],
        digest_of: Callable[[int], str],
        sizes: tuple[int, int],
    ) -> None:
        self.scheme = scheme
        self._draw, self._digest_of, self._sizes = draw, digest_of, sizes

    def open(self, config: DataConfig) -> RowSource:
        """See `macpo.data.sources.DataSource.open`."""
        examples = self._draw(self._size(config.source))
        rows = (RawRow(number, example.to_json()) for number, example in enumerate(examples, 1))
        return RowSource(config.source, "row", rows, len(examples))

    def digest(self, config: DataConfig) -> str:
        """See `macpo.data.sources.DataSource.digest`."""
        return self._digest_of(self._size(config.source))

    def is_here(self, config: DataConfig) -> bool:
        """See `macpo.data.sources.DataSource.is_here`."""
        return True

    def _size(self, source: str) -> int:
        """Return how many prompts a source such as `constraints:600` asks for.

        Raises:
            DataError: it names no number.
        """
        number = source.partition(":")[2]
        if not (number.isascii() and number.isdecimal()):
            usual, most = self._sizes
            raise DataError(
                f"{source}: write {self.scheme}:NUMBER, such as {self.scheme}:{usual} "
                f"(1 to {most:,})"
            )
        return int(number[:9])


for data in (
    ConstrainedData("constraints", constrained_examples, examples_digest, (600, MOST_EXAMPLES)),
    ConstrainedData("short-constraints", short_examples, short_digest, (400, MOST_SHORT)),
):
    DATA_SCHEMES.register(data.scheme, data)
