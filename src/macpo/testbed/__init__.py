"""A small controlled world: prompts, answers of known worth, an oracle, and bases to align.

examples = preference_examples(2000, seed=0)                 # preference data
build_base("strong", folder)                                 # an unaligned base, from scratch
verdict = judge(examples[0].prompt, "Hello! It is 7.")        # scores any text, says why
summarise([judge(p, a) for p, a in answers]).to_json()       # each kind of behaviour apart
"""

from typing import TYPE_CHECKING, Any

from macpo.testbed.bases import PRESETS, base_digest
from macpo.testbed.corpus import (
    BAD_SYSTEM,
    GOOD_SYSTEM,
    RATING,
    RATINGS,
    instructed,
    rating_prompt,
)
from macpo.testbed.dataset import WORLD_VERSION, dataset_digest, preference_examples
from macpo.testbed.oracle import Verdict, judge
from macpo.testbed.summary import Summary, summarise

if TYPE_CHECKING:
    from macpo.testbed.pretraining import build_base

__all__ = [
    "BAD_SYSTEM",
    "GOOD_SYSTEM",
    "PRESETS",
    "RATING",
    "RATINGS",
    "WORLD_VERSION",
    "Summary",
    "Verdict",
    "base_digest",
    "build_base",
    "dataset_digest",
    "instructed",
    "judge",
    "preference_examples",
    "rating_prompt",
    "summarise",
]


def __getattr__(name: str) -> Any:
    """Import `build_base` when it is asked for: it needs torch, and nothing else here does."""
    if name != "build_base":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from macpo.testbed.pretraining import build_base

    return build_base
