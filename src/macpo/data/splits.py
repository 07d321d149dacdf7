"""Division of the examples by prompt: teachers' half, student's half, test.

A prompt is in one split at most, with all its pairs. Which one is decided by a hash of the run's
seed and the prompt itself, so rows added to the source move few prompts across the borders, and
the order of the rows decides nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from macpo.data.turns import prompt_key
from macpo.errors import DataError
from macpo.records import SPLITS, PreferenceExample, Split
from macpo.seeds import stable_seed

if TYPE_CHECKING:
    from macpo.config import SplitsConfig


@dataclass(frozen=True, slots=True)
class DataSplits:
    """The three lists, each ordered by the prompts' hashes: its first n prompts are a fair sample.

    Pairs of one prompt stand together, in the order of their rows. The paper calls the prompts of
    `student` Q_w2s; their answers are ground truth that only the ceiling baseline may see. Those of
    `validation`, if there are any, are the teachers' side's.
    """

    teacher: tuple[PreferenceExample, ...]
    student: tuple[PreferenceExample, ...]
    test: tuple[PreferenceExample, ...]
    validation: tuple[PreferenceExample, ...] = ()

    @property
    def by_name(self) -> dict[Split, tuple[PreferenceExample, ...]]:
        """The splits that hold something, by their names."""
        splits: dict[Split, tuple[PreferenceExample, ...]] = {
            name: getattr(self, name) for name in SPLITS
        }
        return {name: examples for name, examples in splits.items() if examples}


def split_examples(
    examples: Sequence[PreferenceExample], splits: SplitsConfig, seed: int
) -> DataSplits:
    """Divide `examples` into splits without a prompt in common.

    Prompts that differ only in whitespace are one prompt here. Sizes count prompts; a fraction is
    of all prompts, rounded down. Prompts beyond these sizes are left out.

    Raises:
        DataError: there are too few prompts, or a fraction comes to none.
    """
    groups: dict[str, list[PreferenceExample]] = {}
    for example in examples:
        groups.setdefault(prompt_key(example.prompt), []).append(example)
    sizes = _sizes(splits, len(groups))
    order = sorted(groups, key=lambda key: (stable_seed(seed, key), key))
    taken = iter(order)
    return DataSplits(
        *(
            tuple(example for _ in range(sizes[name]) for example in groups[next(taken)])
            for name in SPLITS
        )
    )


def with_noise(
    examples: Sequence[PreferenceExample], share: float, seed: int
) -> list[PreferenceExample]:
    """Swap chosen and rejected in a share of the examples: labels of a careless annotator.

    Which ones is drawn from `seed`; those that a smaller share takes are among those of a larger.

    Args:
        examples: the teacher half.
        share: 0 to 1; that share of the examples, rounded to the nearest number, is swapped.
        seed: of the draw.
    """
    draws = np.random.Generator(np.random.Philox(seed)).permutation(len(examples))
    swapped = {int(i) for i in draws[: round(share * len(examples))]}
    return [
        PreferenceExample(e.prompt, e.rejected, e.chosen) if i in swapped else e
        for i, e in enumerate(examples)
    ]


def _sizes(splits: SplitsConfig, prompts: int) -> dict[str, int]:
    """Return the number of prompts in each split."""
    wanted: dict[str, int | float] = {name: getattr(splits, name) for name in SPLITS}
    # The small term is for fractions such as 0.29, of which 100 times is 28.999999999999996.
    sizes = {
        name: int(size * prompts + 1e-9) if isinstance(size, float) else size
        for name, size in wanted.items()
    }
    for name, size in sizes.items():
        if size == 0 and wanted[name] != 0:
            raise DataError(
                f"data.splits.{name}: {wanted[name]:g} of {prompts} prompts is none; raise it, or "
                "write a number of prompts"
            )
    total = sum(sizes.values())
    if total > prompts:
        asked = ", ".join(f"{name} {size:,}" for name, size in sizes.items() if size)
        raise DataError(
            f"data.splits asks for {total:,} prompts ({asked}), but the data holds {prompts:,} "
            "different ones; lower the sizes, or write fractions such as 0.4, 0.4, 0.2"
        )
    return sizes
